#include "deployer/plan.hpp"

#include <algorithm>
#include <gtest/gtest.h>

namespace ocrctl::deployer {
namespace {

config::Deployment config_of(std::string const& yaml) {
    auto loaded = config::load_text(yaml, "/cfg/config.yml");
    for (auto const& problem : loaded.problems) ADD_FAILURE() << problem.text();
    return loaded.config;
}

Facts facts_of(config::Deployment const& config) {
    Facts facts;
    facts.state.root = "/state/demo";
    facts.build = "0123456789abcdef";
    facts.rabbitmq = "/usr/lib/rabbitmq/bin";
    facts.deployment.id = "id-1";
    facts.deployment.name = config.name;
    facts.deployment.local_host = local_host_name(config);
    facts.deployment.queue = {"native", "127.0.0.1", 25672, 25673, 25674};
    return facts;
}

constexpr char kLocal[] = R"(name: demo
listen: {address: 127.0.0.1, port: 8081}
hosts:
  - name: here
    connection: local
    workers:
      - {name: ocrd-ocrctl-dummy, number_of_instance: 2}
)";

constexpr char kTwo[] = R"(name: demo
listen: {address: 192.0.2.1, port: 8081}
auth: none
process_queue: {address: 192.0.2.1}
hosts:
  - name: ocr1
    connection: ssh
    address: 192.0.2.7
    username: ocr
    path_to_privkey: /keys/id
    host_key: SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
    reach: direct
    workers:
      - {name: ocrd-ocrctl-recognize, number_of_instance: 1, parameters: {model: eng+deu}}
)";

UnitSpec const* unit(HostPlan const& host, std::string const& entry) {
    auto found = std::ranges::find(host.desired.units, entry, &UnitSpec::entry);
    return found == host.desired.units.end() ? nullptr : &*found;
}

std::string joined(std::vector<std::string> const& lines) {
    std::string all;
    for (auto const& line : lines) all += line + "\n";
    return all;
}

TEST(PlanTest, TheDeployingMachineRunsQueueServerAndItsWorkersInThisOrder) {
    auto config = config_of(kLocal);
    auto plan = Plan::from(config, facts_of(config));
    EXPECT_EQ(joined(plan.problems), "");
    ASSERT_EQ(plan.hosts.size(), 1u);
    auto const& host = plan.hosts[0];
    EXPECT_EQ(host.name, "here");
    EXPECT_EQ(host.state, "/state/demo/hosts/here");
    ASSERT_EQ(host.desired.units.size(), 4u);
    EXPECT_EQ(host.desired.units[0].entry, "queue");
    EXPECT_EQ(host.desired.units[1].entry, "server");
    EXPECT_EQ(host.desired.units[1].needs, std::vector<std::string>{"queue"});
    EXPECT_EQ(host.desired.units[1].argv, (std::vector<std::string>{"/state/demo/hosts/here/bin/0123456789abcdef/ocrctl", "serve", "--state", "/state/demo"}));
    EXPECT_EQ(host.desired.units[1].ready.address, "http://127.0.0.1:8081/readyz");
    EXPECT_EQ(host.desired.units[1].remove, std::vector<std::string>{"/state/demo/mets"}); // its sockets
    EXPECT_EQ(host.desired.units[2].entry, "here/" + config.hosts[0].workers[0].name + "/shard-0/rep-0");
    EXPECT_EQ(host.desired.units[3].entry, "here/" + config.hosts[0].workers[0].name + "/shard-0/rep-1");
    EXPECT_EQ(host.desired.token_file, "/state/demo/hosts/here/secrets/agent-token");
}

TEST(PlanTest, AWorkerGetsItsAssignmentWithFilesForSecretsNotSecrets) {
    auto config = config_of(kLocal);
    auto plan = Plan::from(config, facts_of(config));
    auto const& worker = plan.hosts[0].desired.units[2];
    EXPECT_EQ(worker.ready.kind, "report");
    EXPECT_EQ(worker.assignment.at("queue"), "ocrctl.demo.ocrd-ocrctl-dummy");
    EXPECT_EQ(worker.assignment.at("engine"), "builtin");
    EXPECT_EQ(worker.assignment.at("amqp_file"), "/state/demo/hosts/here/secrets/amqp-url");
    EXPECT_EQ(worker.assignment.at("target").at("name"), "ocrd-ocrctl-dummy");
}

TEST(PlanTest, TheDeployingMachineHasAnAgentEvenIfTheConfigNamesItNowhere) {
    auto config = config_of(kTwo);
    auto facts = facts_of(config);
    facts.deployment.hosts["ocr1"].state = "/var/lib/ocrctl/demo/hosts/ocr1";
    auto plan = Plan::from(config, facts);
    EXPECT_EQ(joined(plan.problems), "");
    ASSERT_EQ(plan.hosts.size(), 2u);
    EXPECT_EQ(plan.hosts[0].name, "localhost");
    EXPECT_EQ(plan.hosts[0].config, nullptr);
    EXPECT_NE(unit(plan.hosts[0], "server"), nullptr);
    auto const& remote = plan.hosts[1];
    EXPECT_FALSE(remote.local);
    EXPECT_EQ(remote.desired.server, "http://192.0.2.1:8081");
    EXPECT_EQ(remote.amqp_host, "192.0.2.1");
    EXPECT_EQ(remote.models, (std::vector<std::string>{"eng", "deu"}));
    ASSERT_EQ(remote.desired.units.size(), 1u);
    EXPECT_EQ(remote.desired.units[0].argv[0], "/var/lib/ocrctl/demo/hosts/ocr1/bin/0123456789abcdef/ocrctl");
}

TEST(PlanTest, SaysWhichPackageIsMissingForTheBroker) {
    auto config = config_of(kLocal);
    auto facts = facts_of(config);
    facts.rabbitmq.reset();
    auto plan = Plan::from(config, facts);
    EXPECT_NE(joined(plan.problems).find("apt-get install rabbitmq-server"), std::string::npos) << joined(plan.problems);
}

TEST(PlanTest, AnExternalBrokerIsNotStarted) {
    auto config = config_of(std::string(kLocal) + "process_queue: {skip_deployment: true, address: broker.example, port: 5673, credentials: {username: u, password: p}}\n");
    auto plan = Plan::from(config, facts_of(config));
    EXPECT_EQ(plan.queue_kind, "external");
    EXPECT_EQ(unit(plan.hosts[0], "queue"), nullptr);
    EXPECT_TRUE(unit(plan.hosts[0], "server")->needs.empty());
    EXPECT_EQ(plan.hosts[0].amqp_host, "broker.example");
    EXPECT_EQ(plan.hosts[0].amqp_port, 5673);
    EXPECT_EQ(plan.queue_user, "u");
}

constexpr char kAgentless[] = R"(name: demo
listen: {address: 192.0.2.1, port: 8081}
auth: none
process_queue: {address: 192.0.2.1}
database: {skip_deployment: true, address: db.example, port: 27018}
hosts:
  - name: ocr1
    address: 192.0.2.7
    username: ocr
    path_to_privkey: /keys/id
    reach: direct
    agent: false
    workers:
      - {name: ocrd-dummy, number_of_instance: 2}
)";

TEST(PlanTest, AHostWithoutAnAgentIsToldSoAndItsWorkersHaveVhostsOfTheirOwn) {
    auto config = config_of(kAgentless);
    auto facts = facts_of(config);
    facts.deployment.hosts["ocr1"].state = "/there";
    auto plan = Plan::from(config, facts);
    EXPECT_EQ(joined(plan.problems), "");
    EXPECT_TRUE(plan.hosts[0].desired.agent);
    auto const& host = plan.hosts[1];
    EXPECT_FALSE(host.desired.agent);
    ASSERT_EQ(host.desired.units.size(), 2u);
    EXPECT_EQ(host.desired.units[0].kind, UnitKind::ForeignWorker);
    EXPECT_EQ(host.desired.units[0].ready.kind, "exec");
    ASSERT_EQ(plan.foreign.size(), 2u);
    EXPECT_FALSE(plan.foreign[0].agent);
    EXPECT_NE(plan.foreign[0].vhost, plan.foreign[1].vhost);
    EXPECT_EQ(plan.server_settings.at("foreign_workers")[0].at("agent"), false);
    EXPECT_EQ(plan.server_settings.at("foreign_workers")[0].at("internal_url"), "http://192.0.2.1:8081");
}

TEST(PlanTest, ChangesOfAHostWithoutAnAgentNameItsWorkersAloneAndAnAgentThatGoes) {
    auto config = config_of(kAgentless);
    auto facts = facts_of(config);
    facts.deployment.hosts["ocr1"].state = "/there";
    auto plan = Plan::from(config, facts);
    Observed now;
    now.desired = plan.hosts[1].desired;
    now.running = {plan.hosts[1].desired.units[0].entry};
    auto lines = [&] {
        std::string all;
        for (auto const& change : changes(plan, {{"ocr1", now}}))
            if (change.host == "ocr1") all += change.text() + "\n";
        return all;
    };
    EXPECT_EQ(lines(), "ocr1             keep     worker ocr1/ocrd-dummy-1/shard-0/rep-0 (ocrd-dummy, foreign, without agent)\n"
                       "ocr1             start    worker ocr1/ocrd-dummy-1/shard-0/rep-1 (ocrd-dummy, foreign, without agent)\n");
    now.agent = true;
    EXPECT_TRUE(lines().starts_with("ocr1             stop     agent (agent: false)\n")) << lines();
}

constexpr char kForeign[] = R"(name: demo
listen: {address: 127.0.0.1, port: 8081}
database: {skip_deployment: true, address: db.example, port: 27018, credentials: {username: u, password: "p/w"}}
hosts:
  - name: here
    connection: local
    env: {OCRD_MAX_PROCESSOR_CACHE: 3}
    workers:
      - {name: ocrd-dummy, number_of_instance: 2, env: {PATH: /opt/ocrd/bin}}
      - {name: ocrd-ocrctl-dummy}
)";

TEST(PlanTest, AForeignWorkerIsStartedWithItsUrlsFromFilesAndAVhostOfItsOwn) {
    auto config = config_of(kForeign);
    auto plan = Plan::from(config, facts_of(config));
    EXPECT_EQ(joined(plan.problems), "");
    auto const& host = plan.hosts[0];
    auto const* worker = unit(host, "here/ocrd-dummy-1/shard-0/rep-1");
    ASSERT_NE(worker, nullptr);
    EXPECT_EQ(worker->kind, UnitKind::ForeignWorker);
    EXPECT_EQ(worker->argv, (std::vector<std::string>{"ocrd-dummy", "worker", "--database", "{file:/state/demo/hosts/here/secrets/mongo-url}", "--queue",
                                                      "{file:/state/demo/hosts/here/secrets/amqp-worker~here~ocrd-dummy-1~shard-0~rep-1}"}));
    EXPECT_EQ(worker->needs, std::vector<std::string>{"queue"});
    EXPECT_EQ(worker->needs_tcp, (std::vector<std::string>{"127.0.0.1:25672", "db.example:27018"}));
    EXPECT_EQ(worker->ready.kind, "exec");
    EXPECT_EQ(worker->ready.argv.at(2), "consumed");
    EXPECT_EQ(worker->env.at("OCRD_NETWORK_LOGS_ROOT_DIR"), "/state/demo/hosts/here/logs/ocrd");
    EXPECT_EQ(worker->env.at("OCRD_MAX_PROCESSOR_CACHE"), "3");
    EXPECT_EQ(host.programs, (std::set<Program>{{"ocrd-dummy", "/opt/ocrd/bin"}}));
    ASSERT_TRUE(plan.rabbitmq);
    EXPECT_EQ(plan.rabbitmq->worker_vhosts, (std::vector<std::string>{"worker~here~ocrd-dummy-1~shard-0~rep-0", "worker~here~ocrd-dummy-1~shard-0~rep-1"}));
    EXPECT_EQ(Json(host.desired).dump().find("p/w"), std::string::npos);
    EXPECT_EQ(mongo_url(config.database.credentials, host.mongo_host, host.mongo_port), "mongodb://u:p%2Fw@db.example:27018");
}

TEST(PlanTest, TheServerIsToldOfMongoDbAndOfEachForeignWorker) {
    auto config = config_of(kForeign);
    auto plan = Plan::from(config, facts_of(config));
    auto const& settings = plan.server_settings;
    EXPECT_EQ(settings.at("mongo_file"), "/state/demo/secrets/mongo-url");
    EXPECT_EQ(settings.at("internal_url"), "http://127.0.0.1:8081");
    EXPECT_EQ(settings.at("use_tcp_mets"), false);
    EXPECT_EQ(settings.at("ocrd_durable_exchange"), false);
    EXPECT_EQ(settings.at("ocrd_durable_queues"), false);
    ASSERT_EQ(settings.at("foreign_workers").size(), 2u);
    EXPECT_EQ(settings.at("foreign_workers")[0].at("slot"), "here/ocrd-dummy-1/shard-0/rep-0");
    EXPECT_EQ(settings.at("foreign_workers")[0].at("processor"), "ocrd-dummy");
    EXPECT_EQ(settings.at("foreign_workers")[0].at("amqp_file"), "/state/demo/secrets/amqp-worker~here~ocrd-dummy-1~shard-0~rep-0");
    EXPECT_EQ(settings.at("processors").at("ocrd-dummy").at("kind"), "foreign");

    auto before = unit(plan.hosts[0], "server")->env.at("OCRCTL_SETTINGS");
    config.internal_callback_url = "http://10.0.0.5:8000/";
    config.use_tcp_mets = true;
    config.process_queue.durable_queues = true;
    plan = Plan::from(config, facts_of(config));
    EXPECT_EQ(plan.server_settings.at("internal_url"), "http://10.0.0.5:8000");
    EXPECT_EQ(plan.server_settings.at("foreign_workers")[0].at("internal_url"), "");
    EXPECT_EQ(plan.server_settings.at("use_tcp_mets"), true);
    EXPECT_EQ(plan.server_settings.at("ocrd_durable_exchange"), false);
    EXPECT_EQ(plan.server_settings.at("ocrd_durable_queues"), true);
    EXPECT_NE(unit(plan.hosts[0], "server")->env.at("OCRCTL_SETTINGS"), before) << "other settings restart the server";
}

TEST(PlanTest, OnABrokerOfOthersForeignWorkersShareTheVhost) {
    auto config = config_of(std::string(kForeign) + "process_queue: {skip_deployment: true, address: broker.example, credentials: {username: u, password: p}}\n");
    auto plan = Plan::from(config, facts_of(config));
    EXPECT_EQ(joined(plan.problems), "");
    auto const* worker = unit(plan.hosts[0], "here/ocrd-dummy-1/shard-0/rep-0");
    ASSERT_NE(worker, nullptr);
    EXPECT_EQ(worker->argv.back(), "{file:/state/demo/hosts/here/secrets/amqp-url}");
    EXPECT_EQ(worker->ready.kind, "connected");
    EXPECT_EQ(worker->ready.address, "broker.example:5672");
    EXPECT_TRUE(worker->needs.empty());
    EXPECT_EQ(plan.server_settings.at("foreign_workers")[0].at("amqp_file"), "");
}

TEST(PlanTest, ProgramsOfOthersGetWhatAUserHasOnThatHost) {
    auto config = config_of(std::string(kTwo) + "      - {name: ocrd-tesserocr-recognize, kind: managed}\n");
    auto facts = facts_of(config);
    facts.deployment.hosts["ocr1"] = {"/var/lib/ocrctl/demo/hosts/ocr1", {{"PATH", "/home/ocr/venv/bin:/usr/bin"}, {"OCRD_MAX_PARALLEL_PAGES", "2"}}};
    auto plan = Plan::from(config, facts);
    auto const& remote = plan.hosts[1];
    ASSERT_EQ(remote.desired.units.size(), 2u);
    EXPECT_TRUE(remote.desired.units[0].env.empty()) << "a Processor of ocrctl needs none of it";
    EXPECT_EQ(remote.desired.units[1].env.at("PATH"), "/home/ocr/venv/bin:/usr/bin");
    EXPECT_EQ(remote.desired.units[1].env.at("OCRD_MAX_PARALLEL_PAGES"), "2");
    EXPECT_EQ(remote.programs, (std::set<Program>{{"ocrd-tesserocr-recognize", "/home/ocr/venv/bin:/usr/bin"}}));
}

TEST(PlanTest, AMongoDbThatNobodyStartsIsAProblem) {
    auto config = config_of(kForeign);
    config.database.skip_deployment = false;
    config.database.kind = config::ServiceKind::Native;
    auto plan = Plan::from(config, facts_of(config));
    EXPECT_NE(joined(plan.problems).find("skip_deployment: true"), std::string::npos) << joined(plan.problems);
}

TEST(PlanTest, AWildcardAddressSaysNothingToAnotherMachineAndIsRefusedWithTheKeyToSet) {
    auto config = config_of(kTwo);
    config.listen.address = "0.0.0.0";
    config.process_queue.address = "0.0.0.0";
    auto plan = Plan::from(config, facts_of(config));
    EXPECT_NE(joined(plan.problems).find("set listen.address"), std::string::npos) << joined(plan.problems);
    EXPECT_NE(joined(plan.problems).find("set process_queue.address"), std::string::npos) << joined(plan.problems);
}

TEST(PlanTest, BrokerAndServerComeThroughATunnelThatTheDeployingMachineKeepsUp) {
    auto config = config_of(kTwo);
    config.listen.address = "127.0.0.1";
    config.process_queue.address = "127.0.0.1";
    for (auto& host : config.hosts) host.reach = config::Reach::Tunnel;
    auto facts = facts_of(config);
    facts.deployment.queue.port = 5999;
    facts.deployment.hosts["ocr1"].tunnel = {{"queue", 20001}, {"server", 20002}};
    auto plan = Plan::from(config, facts);
    EXPECT_EQ(joined(plan.problems).find("reach"), std::string::npos) << joined(plan.problems);
    auto const* far = plan.host("ocr1");
    ASSERT_TRUE(far && far->tunnel);
    EXPECT_EQ(far->amqp_host, "127.0.0.1");
    EXPECT_EQ(far->amqp_port, 20001);
    EXPECT_EQ(far->desired.server, "http://127.0.0.1:20002");
    EXPECT_EQ(far->tunnel->find("queue")->target_port, 5999);
    EXPECT_EQ(far->tunnel->find("server")->target_port, config.listen.port);
    EXPECT_EQ(far->tunnel->find("database"), nullptr); // nobody there asks it
    auto const& units = plan.host(plan.local_host)->desired.units;
    auto unit = std::ranges::find(units, std::string("tunnel/ocr1"), &UnitSpec::entry);
    ASSERT_NE(unit, units.end());
    EXPECT_EQ(unit->kind, UnitKind::Tunnel);
    // Another port is another tunnel.
    auto before = unit->env.at("OCRCTL_SETTINGS");
    facts.deployment.hosts["ocr1"].tunnel["queue"] = 20003;
    auto changed = Plan::from(config, facts);
    auto const& after = changed.host(changed.local_host)->desired.units;
    EXPECT_NE(std::ranges::find(after, std::string("tunnel/ocr1"), &UnitSpec::entry)->env.at("OCRCTL_SETTINGS"),
              before);
}

TEST(PlanTest, ALoopbackAddressIsTunnelledOnlyWhereThatIsSaid) {
    config::Host host;
    host.connection = config::Connection::Ssh;
    host.address = "127.0.0.1";
    EXPECT_FALSE(is_tunnelled(host));
    host.reach_said = true;
    EXPECT_TRUE(is_tunnelled(host));
    host.reach = config::Reach::Direct;
    EXPECT_FALSE(is_tunnelled(host));
}

TEST(PlanTest, PortsOfATunnelStayUnlessSomebodyElseHasTakenThem) {
    TunnelSettings tunnel;
    tunnel.ports = {{"queue", 20001, "127.0.0.1", 5672}, {"server", 0, "127.0.0.1", 8080}};
    std::map<std::string, int> ports;
    choose_tunnel_ports(tunnel, {}, ports);
    EXPECT_EQ(ports["queue"], 20001);
    EXPECT_GE(ports["server"], 20000);
    EXPECT_NE(ports["server"], 20001);
    choose_tunnel_ports(tunnel, {20001}, ports);
    EXPECT_NE(ports["queue"], 20001);
    EXPECT_GE(ports["queue"], 20000);
}

TEST(PlanTest, EverythingIsStartedWhereNothingRuns) {
    auto config = config_of(kLocal);
    auto plan = Plan::from(config, facts_of(config));
    auto steps = changes(plan, {});
    ASSERT_EQ(steps.size(), 5u);
    for (auto const& step : steps) EXPECT_EQ(step.verb, Verb::Start) << step.text();
    EXPECT_EQ(steps[0].text(), "here             start    agent (this machine)");
    EXPECT_EQ(steps[1].text(), "here             start    queue (RabbitMQ, native, port 25672)");
    EXPECT_EQ(steps[2].text(), "here             start    server (http://127.0.0.1:8081)");
}

TEST(PlanTest, NothingIsDoneWhereEverythingRuns) {
    auto config = config_of(kLocal);
    auto plan = Plan::from(config, facts_of(config));
    Observed now;
    now.agent = true;
    now.desired = plan.hosts[0].desired;
    now.desired->generation = 7;
    for (auto const& each : plan.hosts[0].desired.units) now.running.insert(each.entry);
    for (auto const& step : changes(plan, {{"here", now}})) EXPECT_EQ(step.verb, Verb::Keep) << step.text();
    EXPECT_TRUE(same(*now.desired, plan.hosts[0].desired));
}

TEST(PlanTest, OneWorkerLessStopsOneWorkerAndOneMoreStartsOne) {
    auto config = config_of(kLocal);
    auto plan = Plan::from(config, facts_of(config));
    Observed now;
    now.agent = true;
    now.desired = plan.hosts[0].desired;
    for (auto const& each : plan.hosts[0].desired.units) now.running.insert(each.entry);
    auto fewer = config;
    fewer.hosts[0].workers[0].count = 1;
    auto count = [](std::vector<Change> const& steps, Verb verb, std::string const& part) {
        return std::ranges::count_if(steps, [&](auto const& step) { return step.verb == verb && step.what.find(part) != std::string::npos; });
    };
    auto steps = changes(Plan::from(fewer, facts_of(fewer)), {{"here", now}});
    EXPECT_EQ(count(steps, Verb::Stop, "rep-1"), 1);
    EXPECT_EQ(count(steps, Verb::Keep, "rep-0"), 1);
    auto more = config;
    more.hosts[0].workers[0].count = 3;
    steps = changes(Plan::from(more, facts_of(more)), {{"here", now}});
    EXPECT_EQ(count(steps, Verb::Start, "rep-2"), 1);
    EXPECT_EQ(count(steps, Verb::Keep, "rep-"), 2);
}

TEST(PlanTest, AHostThatLeftTheConfigIsStopped) {
    auto config = config_of(kLocal);
    auto plan = Plan::from(config, facts_of(config));
    Observed gone;
    gone.agent = true;
    gone.running = {"ocr9/ocrd-ocrctl-dummy-1/shard-0/rep-0"};
    auto steps = changes(plan, {{"ocr9", gone}});
    auto stops = std::ranges::count_if(steps, [](auto const& step) { return step.host == "ocr9" && step.verb == Verb::Stop; });
    EXPECT_EQ(stops, 2);
}

TEST(PlanTest, TheSameConfigGivesTheSamePlan) {
    auto config = config_of(kTwo);
    auto facts = facts_of(config);
    EXPECT_EQ(Json(Plan::from(config, facts).hosts[0].desired), Json(Plan::from(config, facts).hosts[0].desired));
}

TEST(AmqpUrl, EncodesWhatAUrlCannotHold) {
    EXPECT_EQ(amqp_url("u@x", Secret("p/w:"), "127.0.0.1", 5672, "/"), "amqp://u%40x:p%2Fw%3A@127.0.0.1:5672/%2F");
}

} // namespace
} // namespace ocrctl::deployer
