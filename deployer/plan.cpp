#include "deployer/plan.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <cctype>

namespace ocrctl::deployer {

namespace fs = std::filesystem;

namespace {

std::string encoded(std::string_view text) {
    std::string result;
    for (unsigned char c : text) {
        if (std::isalnum(c) || c == '-' || c == '_' || c == '.' || c == '~') result.push_back(static_cast<char>(c));
        else result += fmt::format("%{:02X}", static_cast<unsigned>(c));
    }
    return result;
}

bool wildcard(std::string_view address) { return address == "0.0.0.0" || address == "::" || address == "*"; }

/// The address under which a Host reaches something that listens here; "" if the config does not tell.
std::string seen_from(config::Host const& host, std::string const& listens) {
    if (host.connection == config::Connection::Local || config::is_loopback(host.address)) return config::connect_address(listens);
    if (wildcard(listens) || config::is_loopback(listens)) return "";
    return listens;
}

/// Names of language models in a recognize group's parameters ("eng+frk").
void collect_models(config::WorkerGroup const& group, std::vector<std::string>& models) {
    if (group.processor != "ocrd-ocrctl-recognize") return;
    auto found = group.parameters.find("model");
    if (found == group.parameters.end() || !found->is_string()) return;
    for (auto const& name : split(found->get<std::string>(), '+'))
        if (!name.empty() && std::ranges::find(models, name) == models.end()) models.push_back(name);
}

/// What a Worker gets from its Host and the config; programs of others also what a user has there.
std::map<std::string, std::string> environment_of(Facts const& facts, config::Host const& host, config::WorkerGroup const& group) {
    std::map<std::string, std::string> env;
    auto known = facts.deployment.hosts.find(host.name);
    if (known != facts.deployment.hosts.end() && !config::is_builtin_processor(group.processor)) env = known->second.login;
    for (auto const* more : {&host.env, &group.env})
        for (auto const& [key, value] : *more) env[key] = value;
    return env;
}

UnitSpec worker_unit(config::Deployment const& config, Facts const& facts, config::Host const* host, config::WorkerGroup const& group, int replica, std::string const& host_dir) {
    auto const& host_name = host->name;
    auto const& build = facts.build;
    ledger::HostPaths paths{host_dir};
    UnitSpec unit;
    unit.entry = fmt::format("{}/{}/shard-0/rep-{}", host_name, group.name, replica);
    unit.kind = UnitKind::Worker;
    unit.argv = {paths.bin(build).string(), "worker", "--slot", unit.entry};
    unit.env = environment_of(facts, *host, group);
    unit.cwd = host_dir;
    unit.log = (paths.logs() / (ledger::entry_file_name(unit.entry) + ".log")).string();
    unit.ready.kind = "report";
    unit.ready.timeout_s = 120;
    unit.grace_s = static_cast<int>(config.grace.count());
    bool builtin = config::is_builtin_processor(group.processor);
    Json models = Json::array();
    for (auto const& model : config.models) models.push_back(model.string());
    unit.assignment = {
        {"target", Json{{"kind", "processor"}, {"name", group.processor}, {"version", ""}}},
        {"queue", fmt::format("ocrctl.{}.{}", config.name, group.processor)},
        {"processor", group.processor},
        {"parameters", group.parameters},
        {"amqp_file", (paths.secrets() / kAmqpUrl).string()},
        {"path_map", host->path_map},
        {"models", models},
        {"engine", builtin ? "builtin" : "cli"},
        {"executable", builtin ? "" : group.executable.empty() ? group.processor : group.executable},
        {"page_timeout_s", group.page_timeout.count()},
    };
    return unit;
}

std::string program_of(config::WorkerGroup const& group) { return group.executable.empty() ? group.processor : group.executable; }

/// An unmodified OCR-D program. It takes its URLs on the command line only, so they are read from files at the start.
UnitSpec foreign_unit(config::Deployment const& config, Facts const& facts, HostPlan const& host, config::WorkerGroup const& group, int replica, std::string const& vhost) {
    ledger::HostPaths paths{host.state};
    UnitSpec unit;
    unit.entry = fmt::format("{}/{}/shard-0/rep-{}", host.name, group.name, replica);
    unit.kind = UnitKind::ForeignWorker;
    auto amqp_file = (paths.secrets() / (vhost.empty() ? std::string(kAmqpUrl) : worker_amqp_name(vhost))).string();
    unit.argv = {program_of(group), "worker", "--database", file_word((paths.secrets() / kMongoUrl).string()), "--queue", file_word(amqp_file)};
    unit.env = environment_of(facts, *host.config, group);
    // Jobs' logs: the server reads them where it runs on the same machine. Sockets are made by nobody there, but the folder is.
    unit.env.try_emplace("OCRD_NETWORK_LOGS_ROOT_DIR", (paths.logs() / "ocrd").string());
    unit.env.try_emplace("OCRD_NETWORK_SOCKETS_ROOT_DIR", (paths.root / "ocrd_sockets").string());
    unit.cwd = host.state;
    unit.log = (paths.logs() / (ledger::entry_file_name(unit.entry) + ".log")).string();
    auto broker = config::host_port(host.amqp_host, host.amqp_port);
    if (vhost.empty()) {
        unit.ready.kind = "connected"; // whose the consumers of a shared queue are is not known
        unit.ready.address = broker;
    } else {
        unit.ready.kind = "exec";
        unit.ready.argv = {paths.bin(facts.build).string(), "host", "consumed", "--amqp-file", amqp_file, "--queue", group.processor};
    }
    unit.ready.timeout_s = 300; // some import half of the machine learning there is
    unit.needs_tcp = {broker, config::host_port(host.mongo_host, host.mongo_port)};
    unit.grace_s = static_cast<int>(config.grace.count());
    unit.assignment = {{"processor", group.processor}};
    return unit;
}

/// What processing_server/settings.hpp reads.
Json settings_of(config::Deployment const& config, Facts const& facts, Plan const& plan) {
    Json processors = Json::object();
    for (auto const& host : config.hosts) {
        for (auto const& group : host.workers) {
            auto& entry = processors[group.processor];
            if (entry.is_null()) entry = Json{{"kind", config::wire(group.kind)}, {"count", 0}};
            entry["count"] = entry["count"].get<int>() + group.count;
            // How the server asks a program of this machine what it is (--dump-json).
            if (host.connection == config::Connection::Local && !config::is_builtin_processor(group.processor) && !entry.contains("here")) {
                entry.update(Json{{"here", true}, {"executable", group.executable}, {"env", environment_of(facts, host, group)}});
            }
        }
    }
    auto strings = [](std::vector<fs::path> const& paths) {
        Json list = Json::array();
        for (auto const& path : paths) list.push_back(path.string());
        return list;
    };
    Json foreign = Json::array();
    for (auto const& worker : plan.foreign)
        foreign.push_back({{"slot", worker.slot},
                           {"processor", worker.processor},
                           {"amqp_file", worker.vhost.empty() ? std::string() : (facts.state.secrets() / worker_amqp_name(worker.vhost)).string()},
                           {"internal_url", config.internal_callback_url.empty() ? worker.server : std::string()},
                           {"agent", worker.agent}});
    std::string internal = config.internal_callback_url;
    while (internal.ends_with('/')) internal.pop_back();
    return Json{
        {"name", config.name},
        {"deployment", facts.deployment.id},
        {"listen", Json{{"address", config.listen.address}, {"port", config.listen.port}}},
        {"amqp_file", (facts.state.secrets() / kAmqpUrl).string()},
        {"token_file", (facts.state.secrets() / kAgentToken).string()},
        {"workspaces", strings(config.workspaces)},
        {"existing_output", config::wire(config.existing_output)},
        {"consumer_timeout_s", plan.queue_kind == "external" ? config.process_queue.consumer_timeout.count()
                                                             : kNativeConsumerTimeout.count()},
        {"processors", processors},
        {"log_level", config.log_level},
        {"max_body", config.max_body},
        {"tools", strings(config.tools)},
        {"mongo_file", plan.database_kind == "embedded" ? std::string() : (facts.state.secrets() / kMongoUrl).string()},
        {"internal_url", internal.empty() ? plan.internal : internal},
        {"use_tcp_mets", config.use_tcp_mets},
        {"foreign_workers", foreign},
        {"ocrd_durable_exchange", config.process_queue.durable_exchange},
        {"ocrd_durable_queues", config.process_queue.durable_queues},
    };
}

} // namespace

std::string local_host_name(config::Deployment const& config) {
    for (auto const& host : config.hosts)
        if (host.connection == config::Connection::Local) return host.name;
    bool taken = std::ranges::any_of(config.hosts, [](auto const& host) { return host.name == "localhost"; });
    return taken ? "deployer" : "localhost";
}

std::string amqp_url(std::string_view user, Secret const& password, std::string_view host, int port, std::string_view vhost) {
    return fmt::format("amqp://{}:{}@{}/{}", encoded(user), encoded(password.reveal()), config::host_port(host, port), encoded(vhost));
}

std::string mongo_url(std::optional<config::Credentials> const& credentials, std::string_view host, int port) {
    auto login = credentials ? fmt::format("{}:{}@", encoded(credentials->username), encoded(credentials->password.reveal())) : std::string();
    return fmt::format("mongodb://{}{}", login, config::host_port(host, port));
}

HostPlan const* Plan::host(std::string_view name) const {
    for (auto const& host : hosts)
        if (host.name == name) return &host;
    return nullptr;
}

Plan Plan::from(config::Deployment const& config, Facts const& facts) {
    Plan plan;
    plan.local_host = local_host_name(config);
    auto const& queue = config.process_queue;
    auto const& chosen = facts.deployment.queue;

    // Queue
    if (queue.kind == config::ServiceKind::External || queue.skip_deployment) {
        plan.queue_kind = "external";
    } else {
        plan.queue_kind = "native";
        if (queue.kind == config::ServiceKind::Docker)
            plan.problems.push_back("process_queue: docker is not supported by this version; use native (package rabbitmq-server) or skip_deployment: true");
        else if (!facts.rabbitmq)
            plan.problems.push_back(rabbitmq_missing());
        if (queue.ssh && !config::is_this_machine(queue.address))
            plan.problems.push_back("process_queue: a broker on another machine is not started by this version; start it there and set skip_deployment: true");
        RabbitMq node;
        node.programs = facts.rabbitmq.value_or("");
        node.folder = facts.state.rabbitmq();
        node.logs = facts.state.logs();
        node.address = queue.address;
        node.port = chosen.port;
        node.dist_port = chosen.dist_port;
        node.epmd_port = chosen.epmd_port;
        node.vhost = queue.vhost;
        plan.rabbitmq = node;
    }
    plan.queue_user = queue.credentials ? queue.credentials->username : plan.queue_kind == "external" ? "guest" : "ocrctl";

    // Database
    auto const& database = config.database;
    plan.database_kind = database.kind == config::ServiceKind::Embedded ? "embedded" : "external";
    if (plan.database_kind == "external" && !database.skip_deployment)
        plan.problems.push_back(fmt::format("database: starting a MongoDB{} is not supported by this version: start one and set skip_deployment: true with its address and "
                                            "port, or, without foreign Workers, leave the key out",
                                            database.kind == config::ServiceKind::Docker ? " in docker" : ""));

    plan.server = fmt::format("http://{}", config::host_port(config::connect_address(config.listen.address), config.listen.port));

    plan.internal = plan.server;
    // Hosts
    auto host_dir = [&](std::string const& name, bool local) {
        if (local) return facts.state.host(name).string();
        auto found = facts.deployment.hosts.find(name);
        return found == facts.deployment.hosts.end() ? std::string() : found->second.state;
    };
    auto add = [&](std::string const& name, config::Host const* host) {
        HostPlan entry;
        entry.name = name;
        entry.config = host;
        entry.local = host == nullptr || host->connection == config::Connection::Local;
        entry.state = host_dir(name, entry.local);
        entry.desired.deployment = facts.deployment.id;
        entry.desired.host = name;
        entry.desired.lease_s = static_cast<int>(config.lease.count());
        ledger::HostPaths paths{entry.state};
        entry.desired.token_file = (paths.secrets() / kAgentToken).string();
        bool first = name == plan.local_host;
        entry.amqp_host = plan.queue_kind == "external" ? queue.address : host ? seen_from(*host, queue.address) : config::connect_address(queue.address);
        entry.amqp_port = plan.queue_kind == "external" ? config::queue_port(queue) : chosen.port;
        if (plan.database_kind == "external") {
            entry.mongo_host = database.address;
            entry.mongo_port = config::database_port(database);
        }
        entry.desired.server = plan.server;
        if (host && !entry.local) {
            entry.desired.agent = host->agent;
            auto server = seen_from(*host, config.listen.address);
            if (server.empty() && host->reach == config::Reach::Direct)
                plan.problems.push_back(fmt::format("hosts: {}: the server listens on {}, which says nothing to another machine: set listen.address to the address "
                                                    "of this machine that {} uses",
                                                    name, config.listen.address, name));
            if (entry.amqp_host.empty() && host->reach == config::Reach::Direct)
                plan.problems.push_back(fmt::format("hosts: {}: the broker listens on {}, which says nothing to another machine: set process_queue.address to the "
                                                    "address of this machine that {} uses",
                                                    name, queue.address, name));
            entry.desired.server = fmt::format("http://{}", config::host_port(server, config.listen.port));
            if (is_tunnelled(*host)) {
                entry.tunnel = tunnel_of(config, *host, facts.state, facts.deployment);
                entry.amqp_host = "127.0.0.1";
                entry.amqp_port = entry.tunnel->find("queue")->port;
                entry.desired.server = fmt::format("http://127.0.0.1:{}", entry.tunnel->find("server")->port);
                if (auto const* carried = entry.tunnel->find("database")) {
                    entry.mongo_host = "127.0.0.1";
                    entry.mongo_port = carried->port;
                }
            }
        }
        if (first) {
            for (auto const& other : config.hosts)
                if (is_tunnelled(other))
                    entry.desired.units.push_back(
                        tunnel_unit(tunnel_of(config, other, facts.state, facts.deployment), entry.state, facts.build));
            if (plan.rabbitmq) entry.desired.units.push_back(rabbitmq_unit(*plan.rabbitmq));
            UnitSpec server;
            server.entry = "server";
            server.kind = UnitKind::Server;
            server.argv = {paths.bin(facts.build).string(), "serve", "--state", facts.state.root.string()};
            server.cwd = facts.state.root.string();
            server.log = (facts.state.logs() / "server.log").string();
            server.ready.kind = "http";
            server.ready.address = plan.server + "/readyz";
            server.ready.timeout_s = 120;
            server.grace_s = static_cast<int>(config.grace.count());
            server.remove = {facts.state.mets_sockets().string()}; // a killed server leaves them
            if (plan.rabbitmq) server.needs = {"queue"};
            entry.desired.units.push_back(std::move(server));
        }
        if (host) {
            for (auto const& group : host->workers) {
                if (group.deploy_type == config::DeployType::Docker) {
                    plan.problems.push_back(fmt::format("hosts: {}: {}: deploy_type: docker is not supported by this version; use native", name, group.name));
                    continue;
                }
                bool foreign = group.kind == config::WorkerKind::Foreign;
                if (foreign || !config::is_builtin_processor(group.processor)) {
                    auto env = environment_of(facts, *host, group);
                    entry.programs.insert({program_of(group), env.contains("PATH") ? env["PATH"] : ""});
                }
                if (foreign) {
                    if (entry.desired.server != plan.server) plan.internal = entry.desired.server;
                    for (int replica = 0; replica < group.count; ++replica) {
                        auto slot = fmt::format("{}/{}/shard-0/rep-{}", name, group.name, replica);
                        auto vhost = plan.rabbitmq ? worker_vhost(slot) : std::string();
                        auto unit = foreign_unit(config, facts, entry, group, replica, vhost);
                        if (plan.rabbitmq && first) unit.needs = {"queue"};
                        entry.desired.units.push_back(std::move(unit));
                        plan.foreign.push_back({slot, group.processor, name, vhost, entry.desired.server, entry.desired.agent});
                        if (plan.rabbitmq) plan.rabbitmq->worker_vhosts.push_back(vhost);
                    }
                    continue;
                }
                collect_models(group, entry.models);
                if (config::is_builtin_processor(group.processor) && group.processor != "ocrd-ocrctl-dummy") entry.runs_ocr = true;
                for (int replica = 0; replica < group.count; ++replica)
                    entry.desired.units.push_back(worker_unit(config, facts, host, group, replica, entry.state));
            }
        }
        plan.hosts.push_back(std::move(entry));
    };

    config::Host const* local = nullptr;
    for (auto const& host : config.hosts)
        if (host.name == plan.local_host && host.connection == config::Connection::Local) local = &host;
    add(plan.local_host, local);
    for (auto const& host : config.hosts)
        if (&host != local) add(host.name, &host);

    plan.server_settings = settings_of(config, facts, plan);
    // The server's settings are in a file; without this a changed config would not restart it.
    for (auto& unit : plan.hosts.front().desired.units)
        if (unit.kind == UnitKind::Server) unit.env["OCRCTL_SETTINGS"] = sha256_hex(plan.server_settings.dump()).substr(0, 16);
    return plan;
}

bool same(DesiredState const& a, DesiredState const& b) {
    Json left = a, right = b;
    left.erase("generation");
    right.erase("generation");
    return left == right;
}

std::string Change::text() const {
    constexpr std::string_view kVerbs[] = {"start", "restart", "stop", "keep"};
    return fmt::format("{:<16} {:<8} {}{}", host, kVerbs[static_cast<int>(verb)], what, detail.empty() ? "" : " (" + detail + ")");
}

namespace {

std::string what(UnitSpec const& unit) {
    if (unit.kind == UnitKind::Worker || unit.kind == UnitKind::ForeignWorker) return "worker " + unit.entry;
    return unit.entry;
}

std::string detail(Plan const& plan, UnitSpec const& unit) {
    if (unit.kind == UnitKind::Queue && plan.rabbitmq)
        return plan.rabbitmq->port ? fmt::format("RabbitMQ, native, port {}", plan.rabbitmq->port) : std::string("RabbitMQ, native, a free port");
    if (unit.kind == UnitKind::Server) return plan.server;
    if (unit.kind == UnitKind::Worker) return unit.assignment.value("processor", "");
    if (unit.kind == UnitKind::ForeignWorker) return unit.assignment.value("processor", "") + ", foreign";
    if (unit.kind == UnitKind::Tunnel)
        for (auto const& host : plan.hosts)
            if (host.tunnel && tunnel_entry(host.name) == unit.entry) {
                std::vector<std::string> ports;
                for (auto const& item : host.tunnel->ports)
                    ports.push_back(
                        fmt::format("{} on {} there", item.name,
                                    item.port ? fmt::format("port {}", item.port) : std::string("a free port")));
                return fmt::format("ssh {}: {}", config::host_port(host.tunnel->address, host.tunnel->port),
                                   join(ports, ", "));
            }
    return "";
}

std::string detail(Plan const& plan, HostPlan const& host, UnitSpec const& unit) {
    return detail(plan, unit) + (host.desired.agent ? "" : ", without agent");
}

/// A unit as it matters to its agent; a change of anything here restarts it.
bool same_unit(UnitSpec const& a, UnitSpec const& b) { return Json(a) == Json(b); }

} // namespace

std::vector<Change> changes(Plan const& plan, std::map<std::string, Observed> const& observed) {
    std::vector<Change> result;
    for (auto const& host : plan.hosts) {
        auto found = observed.find(host.name);
        Observed const none;
        Observed const& now = found == observed.end() ? none : found->second;
        if (!host.desired.agent && now.agent) result.push_back({host.name, Verb::Stop, "agent", "agent: false"});
        if (host.desired.agent)
            result.push_back({host.name, now.agent ? Verb::Keep : Verb::Start, "agent",
                              host.local ? "this machine"
                              : host.config
                                  ? fmt::format("ssh {}", config::host_port(host.config->address, host.config->port))
                                  : ""});
        for (auto const& unit : host.desired.units) {
            Verb verb = Verb::Start;
            if (now.running.contains(unit.entry)) {
                verb = Verb::Restart;
                if (now.desired)
                    for (auto const& before : now.desired->units)
                        if (before.entry == unit.entry && same_unit(before, unit)) verb = Verb::Keep;
            }
            result.push_back({host.name, verb, what(unit), detail(plan, host, unit)});
        }
        for (auto const& entry : now.running) {
            bool wanted = std::ranges::any_of(host.desired.units, [&](auto const& unit) { return unit.entry == entry; });
            if (!wanted) result.push_back({host.name, Verb::Stop, entry, "not in the config any more"});
        }
    }
    for (auto const& [name, now] : observed) {
        if (plan.host(name)) continue;
        for (auto const& entry : now.running) result.push_back({name, Verb::Stop, entry, "its host is not in the config any more"});
        if (now.agent) result.push_back({name, Verb::Stop, "agent", "its host is not in the config any more"});
    }
    return result;
}

} // namespace ocrctl::deployer
