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

UnitSpec worker_unit(config::Deployment const& config, config::Host const* host, config::WorkerGroup const& group, std::string const& host_name, int replica,
                     std::string const& host_dir, std::string const& build) {
    ledger::HostPaths paths{host_dir};
    UnitSpec unit;
    unit.entry = fmt::format("{}/{}/shard-0/rep-{}", host_name, group.name, replica);
    unit.kind = UnitKind::Worker;
    unit.argv = {paths.bin(build).string(), "worker", "--slot", unit.entry};
    unit.env = host->env;
    for (auto const& [key, value] : group.env) unit.env[key] = value;
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

/// What processing_server/settings.hpp reads.
Json settings_of(config::Deployment const& config, Facts const& facts, Plan const& plan) {
    Json processors = Json::object();
    for (auto const& host : config.hosts) {
        for (auto const& group : host.workers) {
            auto& entry = processors[group.processor];
            if (entry.is_null()) entry = Json{{"kind", config::wire(group.kind)}, {"count", 0}};
            entry["count"] = entry["count"].get<int>() + group.count;
        }
    }
    auto strings = [](std::vector<fs::path> const& paths) {
        Json list = Json::array();
        for (auto const& path : paths) list.push_back(path.string());
        return list;
    };
    return Json{
        {"name", config.name},
        {"deployment", facts.deployment.id},
        {"listen", Json{{"address", config.listen.address}, {"port", config.listen.port}}},
        {"amqp_file", (facts.state.secrets() / kAmqpUrl).string()},
        {"token_file", (facts.state.secrets() / kAgentToken).string()},
        {"workspaces", strings(config.workspaces)},
        {"existing_output", config::wire(config.existing_output)},
        {"consumer_timeout_s", plan.queue_kind == "external" ? config.process_queue.consumer_timeout.count() : kNativeConsumerTimeout.count()},
        {"processors", processors},
        {"log_level", config.log_level},
        {"max_body", config.max_body},
        {"tools", strings(config.tools)},
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
    using Kind = config::ServiceKind;
    if (config.database.kind != Kind::Embedded && config.database.kind != Kind::Unset)
        plan.problems.push_back(fmt::format("database: {} is not supported by this version; leave the key out or set it to embedded",
                                            config.database.skip_deployment ? "an external MongoDB" : std::string(config::wire(config.database.kind))));

    plan.server = fmt::format("http://{}", config::host_port(config::connect_address(config.listen.address), config.listen.port));

    plan.server_settings = settings_of(config, facts, plan);

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
        entry.desired.server = plan.server;
        if (host && !entry.local) {
            if (host->reach == config::Reach::Tunnel && !config::is_loopback(host->address))
                plan.problems.push_back(fmt::format("hosts: {}: reach: tunnel is not supported by this version; set reach: direct, and listen.address and "
                                                    "process_queue.address to an address of this machine that {} can reach",
                                                    name, name));
            if (!host->agent) plan.problems.push_back(fmt::format("hosts: {}: agent: false is not supported by this version", name));
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
        }
        if (first) {
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
            if (plan.rabbitmq) server.needs = {"queue"};
            // Its settings are in a file; without this a changed config would not restart it.
            server.env["OCRCTL_SETTINGS"] = sha256_hex(plan.server_settings.dump()).substr(0, 16);
            entry.desired.units.push_back(std::move(server));
        }
        if (host) {
            for (auto const& group : host->workers) {
                if (group.kind == config::WorkerKind::Foreign) {
                    plan.problems.push_back(fmt::format("hosts: {}: {}: foreign Workers (unmodified `{} worker` programs) are not supported by this version; with kind: managed "
                                                        "ocrctl runs the same Processor by its command line",
                                                        name, group.name, group.processor));
                    continue;
                }
                if (group.deploy_type == config::DeployType::Docker) {
                    plan.problems.push_back(fmt::format("hosts: {}: {}: deploy_type: docker is not supported by this version; use native", name, group.name));
                    continue;
                }
                collect_models(group, entry.models);
                if (config::is_builtin_processor(group.processor) && group.processor != "ocrd-ocrctl-dummy") entry.runs_ocr = true;
                for (int replica = 0; replica < group.count; ++replica)
                    entry.desired.units.push_back(worker_unit(config, host, group, name, replica, entry.state, facts.build));
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
    if (unit.kind == UnitKind::Worker) return "worker " + unit.entry;
    return unit.entry;
}

std::string detail(Plan const& plan, UnitSpec const& unit) {
    if (unit.kind == UnitKind::Queue && plan.rabbitmq)
        return plan.rabbitmq->port ? fmt::format("RabbitMQ, native, port {}", plan.rabbitmq->port) : std::string("RabbitMQ, native, a free port");
    if (unit.kind == UnitKind::Server) return plan.server;
    if (unit.kind == UnitKind::Worker) return unit.assignment.value("processor", "");
    return "";
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
        result.push_back({host.name, now.agent ? Verb::Keep : Verb::Start, "agent", host.local ? "this machine" : host.config ? fmt::format("ssh {}:{}", host.config->address, host.config->port) : ""});
        for (auto const& unit : host.desired.units) {
            Verb verb = Verb::Start;
            if (now.running.contains(unit.entry)) {
                verb = Verb::Restart;
                if (now.desired)
                    for (auto const& before : now.desired->units)
                        if (before.entry == unit.entry && same_unit(before, unit)) verb = Verb::Keep;
            }
            result.push_back({host.name, verb, what(unit), detail(plan, unit)});
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
