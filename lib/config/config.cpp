#include "lib/config/config.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/config/section.hpp"
#include "lib/parameters/parameters.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <set>

namespace ocrctl::config {

namespace {

using namespace std::string_view_literals;

// ---- The keys of each mapping; config.yml.example shows every one of them (tests/unit/config).

constexpr std::array kTopKeys = {"name"sv,        "listen"sv,         "internal_callback_url"sv, "use_tcp_mets"sv, "auth"sv,
                                 "workspaces"sv,  "state"sv,          "models"sv,                "tools"sv,        "log_level"sv,
                                 "drain"sv,       "grace"sv,          "lease"sv,                 "parallel_hosts"sv,
                                 "existing_output"sv, "max_body"sv,   "process_queue"sv,         "database"sv,     "hosts"sv};
constexpr std::array kListenKeys = {"address"sv, "port"sv};
constexpr std::array kAuthKeys = {"tokens"sv};
constexpr std::array kQueueKeys = {"kind"sv,
                                   "address"sv,
                                   "port"sv,
                                   "credentials"sv,
                                   "ssh"sv,
                                   "skip_deployment"sv,
                                   "image"sv,
                                   "vhost"sv,
                                   "consumer_timeout"sv,
                                   "durable_exchange"sv,
                                   "durable_queues"sv};
constexpr std::array kDatabaseKeys = {"kind"sv, "address"sv, "port"sv, "credentials"sv, "ssh"sv, "skip_deployment"sv, "image"sv};
constexpr std::array kCredentialKeys = {"username"sv, "password"sv};
constexpr std::array kSshKeys = {"username"sv, "password"sv, "path_to_privkey"sv, "ssh_agent"sv};
constexpr std::array kHostKeys = {"name"sv,     "connection"sv, "address"sv,     "port"sv,  "username"sv, "password"sv, "path_to_privkey"sv, "ssh_agent"sv,
                                  "host_key"sv, "known_hosts"sv, "reach"sv,      "agent"sv, "state"sv,    "path_map"sv, "env"sv,             "workers"sv};
constexpr std::array kWorkerKeys = {"name"sv, "processor"sv, "number_of_instance"sv, "instances"sv, "deploy_type"sv, "kind"sv,
                                    "executable"sv, "image"sv, "parameters"sv, "env"sv, "page_timeout"sv};

// ---- Checks of single values

/// Letters, digits, dot, hyphen, underscore, beginning with a letter or digit: safe as a folder, a queue, a variable.
bool is_name(std::string_view text) {
    auto alnum = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); };
    if (text.empty() || text.size() > 64 || !alnum(text.front())) return false;
    return std::ranges::all_of(text, [&](char c) { return alnum(c) || c == '.' || c == '-' || c == '_'; });
}

/// The nearest thing to a name that a text gives.
std::string as_name(std::string text) {
    for (auto& c : text)
        if (!is_name(std::string("x") + c)) c = '-';
    text.erase(0, std::min(text.find_first_not_of(".-_"), text.size()));
    if (text.size() > 64) text.resize(64);
    return text.empty() ? "default" : text;
}

bool is_variable(std::string_view text) {
    if (text.empty() || (text.front() >= '0' && text.front() <= '9')) return false;
    return std::ranges::all_of(text, [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; });
}

bool is_ipv6(std::string const& text) {
    in6_addr parsed{};
    return inet_pton(AF_INET6, text.c_str(), &parsed) == 1;
}

std::string read_name(Section const& section, std::string_view key, std::string fallback) {
    auto name = section.text(key, fallback);
    if (name == fallback || is_name(name)) return name;
    section.problem(key, fmt::format("expected letters, digits, dots, hyphens and underscores, beginning with a letter or digit, at most 64, got \"{}\"", name));
    return fallback;
}

/// A host name or an IP address, without scheme and port.
std::string read_address(Section const& section, std::string_view key, std::string fallback) {
    auto address = section.text(key, fallback);
    if (address == "*") {
        section.problem(key, "expected a host name or an IP address, got \"*\" (write 0.0.0.0 for all addresses of this machine)");
    } else if (address.find("://") != std::string::npos) {
        section.problem(key, fmt::format("expected a host name or an IP address, got the URL \"{}\"", address));
    } else if (address.find(':') != std::string::npos && !is_ipv6(address)) {
        section.problem(key, fmt::format("expected a host name or an IP address, got \"{}\" (the port has a key of its own: port)", address));
    } else if (address.find_first_of(" \t\r\n/@") != std::string::npos || address.starts_with('-')) {
        section.problem(key, fmt::format("expected a host name or an IP address, got \"{}\"", address));
    } else {
        return address;
    }
    return fallback;
}

std::map<std::string, std::string> read_env(Section const& section) {
    auto env = section.texts("env");
    for (auto const& [name, value] : env) {
        auto path = section.path_of("env") + "." + name;
        if (!is_variable(name)) section.reading().problem(path, "is no name of an environment variable");
        else if (name.starts_with("OCRCTL_")) section.reading().problem(path, "variables beginning with OCRCTL_ are set by ocrctl itself");
        else if (value.find('\0') != std::string::npos) section.reading().problem(path, "holds a NUL character");
    }
    return env;
}

// ---- One function per struct

Listen read_listen(Section const& listen) {
    listen.only(kListenKeys);
    Listen c;
    c.address = read_address(listen, "address", c.address);
    c.port = listen.port("port", c.port);
    return c;
}

Auth read_auth(Section const& top) {
    Auth c;
    if (!top.has("auth")) return c;
    if (!top.is_section("auth")) {
        auto word = top.text("auth", "");
        if (word == "none") c.kind = AuthKind::None;
        else if (!word.empty()) top.problem("auth", fmt::format("expected none, or a mapping with the key tokens, got \"{}\"", word));
        return c;
    }
    auto auth = top.section("auth");
    auth.only(kAuthKeys);
    if (!auth.has("tokens")) auth.missing("tokens");
    c.kind = AuthKind::Tokens;
    c.tokens_file = auth.path("tokens");
    return c;
}

std::optional<Credentials> read_credentials(Section const& service) {
    if (!service.has("credentials")) return {};
    auto section = service.section("credentials");
    section.only(kCredentialKeys);
    Credentials c;
    c.username = section.text("username");
    c.password = Secret(section.text("password"));
    return c;
}

/// The ways to log in, from a mapping that has them among its keys.
SshLogin read_login(Section const& section) {
    SshLogin c;
    c.username = section.text("username");
    c.password = Secret(section.text("password", ""));
    c.private_key = section.path("path_to_privkey");
    c.use_agent = section.flag("ssh_agent", c.use_agent);
    int ways = int(section.has("password")) + int(section.has("path_to_privkey")) + int(c.use_agent);
    if (ways == 0) section.reading().problem(section.path(), "needs one of password, path_to_privkey, ssh_agent: true");
    if (ways > 1)
        section.problem(section.has("password") ? "password" : "path_to_privkey", "only one of password, path_to_privkey, ssh_agent can be given");
    if (c.username.find_first_of(" \t\r\n@") != std::string::npos || c.username.starts_with('-'))
        section.problem("username", fmt::format("expected a user's name, got \"{}\"", c.username));
    return c;
}

enum class ServiceRole { Queue, Database };

Service read_service(Section const& section, ServiceRole role) {
    bool queue = role == ServiceRole::Queue;
    section.only(queue ? Keys(kQueueKeys) : Keys(kDatabaseKeys));
    Service c;
    std::vector<std::pair<std::string_view, ServiceKind>> kinds = {
        {"native", ServiceKind::Native}, {"docker", ServiceKind::Docker}, {"external", ServiceKind::External}};
    if (!queue) kinds.insert(kinds.begin(), {"embedded", ServiceKind::Embedded});
    c.kind = section.choice("kind", kinds, c.kind);
    c.address = read_address(section, "address", c.address);
    c.port = section.port("port", c.port);
    c.credentials = read_credentials(section);
    if (section.has("ssh")) {
        auto ssh = section.section("ssh");
        ssh.only(kSshKeys);
        c.ssh = read_login(ssh);
    }
    c.skip_deployment = section.flag("skip_deployment", c.kind == ServiceKind::External);
    c.image = section.text("image", c.image);
    if (c.skip_deployment) {
        if (c.kind != ServiceKind::Unset && c.kind != ServiceKind::External)
            section.problem("skip_deployment", fmt::format("contradicts kind: {}: what is not deployed is external", wire(c.kind)));
        c.kind = ServiceKind::External;
    } else if (c.kind == ServiceKind::External) {
        section.problem("skip_deployment", "contradicts kind: external");
    }
    if (c.kind == ServiceKind::Embedded)
        for (auto key : {"address", "port", "credentials", "ssh", "image"})
            if (section.has(key)) section.problem(key, "has no meaning for kind: embedded");
    if (queue) {
        c.vhost = section.text("vhost", c.vhost);
        c.consumer_timeout = section.duration("consumer_timeout", c.consumer_timeout);
        c.durable_exchange = section.flag("durable_exchange", c.durable_exchange);
        c.durable_queues = section.flag("durable_queues", c.durable_queues);
        if (section.has("consumer_timeout") && c.consumer_timeout.count() == 0) section.problem("consumer_timeout", "must be more than 0");
        if (c.kind != ServiceKind::External)
            for (auto key : {"vhost", "consumer_timeout"})
                if (section.has(key)) section.problem(key, "is for an external broker; one that ocrctl starts is set up by ocrctl");
    }
    return c;
}

WorkerGroup read_worker(Section const& worker) {
    worker.only(kWorkerKeys);
    WorkerGroup c;
    // OCR-D's `name` is the Processor; with `processor`, `name` is left for the group.
    auto key = worker.has("processor") ? "processor" : "name";
    c.processor = worker.text(key);
    if (worker.has("processor")) c.name = read_name(worker, "name", "");
    if (!c.processor.empty()) {
        if (!c.processor.starts_with("ocrd-")) {
            worker.problem(key, fmt::format("a Processor's name begins with \"ocrd-\", got \"{}\"", c.processor));
        } else if (!is_name(c.processor)) {
            worker.problem(key, fmt::format("expected the name of a Processor, got \"{}\"", c.processor));
        } else if (c.processor.starts_with("ocrd-ocrctl-") && !is_builtin_processor(c.processor)) {
            auto near = closest(c.processor, builtin_processors());
            worker.problem(key, near.empty() ? fmt::format("no such Processor in ocrctl; it has {}", join(builtin_processors(), ", "))
                                             : fmt::format("no such Processor in ocrctl (did you mean \"{}\"?)", near));
        }
    }
    if (worker.has("instances") && worker.has("number_of_instance"))
        worker.problem("instances", "is another name of number_of_instance: give one of them");
    c.count = static_cast<int>(worker.number(worker.has("instances") ? "instances" : "number_of_instance", 1, 1024, c.count));
    c.deploy_type = worker.choice<DeployType>("deploy_type", {{"native", DeployType::Native}, {"docker", DeployType::Docker}}, c.deploy_type);
    bool built_in = c.processor.starts_with("ocrd-ocrctl-");
    if (!built_in) c.kind = WorkerKind::Foreign;
    c.kind = worker.choice<WorkerKind>("kind", {{"managed", WorkerKind::Managed}, {"foreign", WorkerKind::Foreign}}, c.kind);
    c.executable = worker.text("executable", c.executable);
    c.image = worker.text("image", c.image);
    c.parameters = worker.object("parameters");
    c.env = read_env(worker);
    c.page_timeout = worker.duration("page_timeout", c.page_timeout);
    if (built_in && c.kind == WorkerKind::Foreign)
        worker.problem("kind", fmt::format("{} is part of ocrctl and runs in managed Workers only", c.processor));
    if (built_in && worker.has("executable")) worker.problem("executable", fmt::format("{} is part of ocrctl and has no executable of its own", c.processor));
    if (!built_in && c.kind == WorkerKind::Foreign)
        for (auto refused : {"parameters", "page_timeout"})
            if (worker.has(refused)) worker.problem(refused, "foreign Workers cannot be told that; kind: managed can");
    return c;
}

Host read_host(Section const& host) {
    host.only(kHostKeys);
    Host c;
    c.name = read_name(host, "name", "");
    c.address = read_address(host, "address", c.address);
    bool credentials = host.has("username") || host.has("password") || host.has("path_to_privkey") || host.has("ssh_agent");
    if (host.has("connection")) {
        c.connection = host.choice<Connection>("connection", {{"local", Connection::Local}, {"ssh", Connection::Ssh}}, c.connection);
    } else if (credentials) {
        c.connection = Connection::Ssh;
    } else if (!is_loopback(c.address)) {
        c.connection = Connection::Ssh;
        host.reading().problem(host.path(), fmt::format("another machine ({}) needs username and one of password, path_to_privkey, ssh_agent: true; this machine needs connection: local", c.address));
    } else if (!host.has("address")) {
        host.missing("address");
    }
    if (c.connection == Connection::Ssh) {
        if (host.has("connection") && !host.has("address")) host.missing("address");
        if (credentials || host.has("connection")) c.login = read_login(host);
    } else {
        for (auto key : {"port", "username", "password", "path_to_privkey", "ssh_agent", "host_key", "known_hosts", "reach"})
            if (host.has(key)) host.problem(key, "has no meaning for connection: local");
    }
    c.port = host.port("port", c.port);
    c.host_key = host.text("host_key", c.host_key);
    if (!c.host_key.empty()) {
        auto digest = std::string_view(c.host_key).substr(std::min<std::size_t>(7, c.host_key.size()));
        bool base64 = digest.size() == 43 && digest.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") == std::string_view::npos;
        if (!c.host_key.starts_with("SHA256:") || !base64)
            host.problem("host_key", "expected SHA256: and 43 characters, as ssh-keygen -lf prints them");
    }
    c.known_hosts = host.path("known_hosts");
    c.reach = host.choice<Reach>("reach", {{"tunnel", Reach::Tunnel}, {"direct", Reach::Direct}}, c.reach);
    c.reach_said = host.has("reach");
    c.agent = host.flag("agent", c.agent);
    if (c.connection == Connection::Local) {
        c.state = host.path("state").string();
    } else {
        c.state = host.text("state", c.state);
        if (!c.state.empty() && !c.state.starts_with('/'))
            host.problem("state", fmt::format("expected an absolute path on that host, got \"{}\"", c.state));
    }
    c.path_map = host.texts("path_map");
    for (auto const& [from, to] : c.path_map)
        if (!from.starts_with('/') || !to.starts_with('/'))
            host.reading().problem(host.path_of("path_map") + "." + from, fmt::format("expected absolute paths, got \"{}: {}\"", from, to));
    c.env = read_env(host);
    for (auto const& worker : host.list("workers")) c.workers.push_back(read_worker(worker));
    return c;
}

Deployment read_deployment(Section const& top, std::filesystem::path const& file) {
    top.only(kTopKeys);
    Deployment c;
    c.file = std::filesystem::absolute(file).lexically_normal();
    c.name = read_name(top, "name", as_name(file.stem().string()));
    if (top.has("listen")) c.listen = read_listen(top.section("listen"));
    c.internal_callback_url = top.text("internal_callback_url", c.internal_callback_url);
    if (!c.internal_callback_url.empty() && (!c.internal_callback_url.starts_with("http://") || c.internal_callback_url.size() < 8))
        top.problem("internal_callback_url", fmt::format("expected a URL beginning with http:// (OCR-D's workers know no other), got \"{}\"", c.internal_callback_url));
    c.use_tcp_mets = top.flag("use_tcp_mets", c.use_tcp_mets);
    c.auth = read_auth(top);
    c.workspaces = top.paths("workspaces");
    c.state = top.path("state");
    c.models = top.paths("models");
    c.tools = top.paths("tools");
    c.log_level = top.choice<std::string>("log_level", {{"trace", "trace"}, {"debug", "debug"}, {"info", "info"}, {"warn", "warn"}, {"error", "error"}}, c.log_level);
    c.drain = top.duration("drain", c.drain);
    c.grace = top.duration("grace", c.grace);
    c.lease = top.duration("lease", c.lease);
    if (c.lease < std::chrono::minutes(5)) top.problem("lease", "must be at least 5m: the server renews it once a minute");
    c.parallel_hosts = static_cast<int>(top.number("parallel_hosts", 1, 256, c.parallel_hosts));
    c.existing_output = top.choice<ExistingOutput>(
        "existing_output", {{"skip", ExistingOutput::Skip}, {"overwrite", ExistingOutput::Overwrite}, {"abort", ExistingOutput::Abort}}, c.existing_output);
    c.max_body = top.bytes("max_body", c.max_body);
    if (top.has("process_queue")) c.process_queue = read_service(top.section("process_queue"), ServiceRole::Queue);
    if (top.has("database")) c.database = read_service(top.section("database"), ServiceRole::Database);
    else c.database.kind = ServiceKind::Embedded;
    for (auto const& host : top.list("hosts")) c.hosts.push_back(read_host(host));
    return c;
}

// ---- Names that were not given

void name_hosts(Deployment& c) {
    std::set<std::string> taken;
    for (auto const& host : c.hosts)
        if (!host.name.empty()) taken.insert(host.name);
    for (auto& host : c.hosts) {
        if (!host.name.empty()) continue;
        auto base = as_name(host.address);
        host.name = base;
        for (int n = 2; !taken.insert(host.name).second; ++n) host.name = fmt::format("{}-{}", base, n);
    }
}

void name_groups(Host& host) {
    std::set<std::string> taken;
    for (auto const& group : host.workers)
        if (!group.name.empty()) taken.insert(group.name);
    std::map<std::string, int> ordinals;
    for (auto& group : host.workers) {
        int n = ++ordinals[group.processor];
        if (!group.name.empty()) continue;
        do group.name = fmt::format("{}-{}", group.processor, n++);
        while (!taken.insert(group.name).second);
    }
}

// ---- Checks across fields

std::string host_path(std::size_t index) { return fmt::format("hosts[{}]", index); }
std::string worker_path(std::size_t host, std::size_t index) { return fmt::format("hosts[{}].workers[{}]", host, index); }

void check_unique_names(Deployment const& c, Reading& reading) {
    std::map<std::string, std::size_t> hosts;
    for (std::size_t h = 0; h < c.hosts.size(); ++h) {
        auto const& host = c.hosts[h];
        auto [seen, fresh] = hosts.emplace(host.name, h);
        if (!fresh)
            reading.problem(host_path(h) + ".name", fmt::format("the name \"{}\" belongs to the host of line {} already", host.name, reading.where(host_path(seen->second)).line));
        std::map<std::string, std::size_t> groups;
        for (std::size_t w = 0; w < host.workers.size(); ++w) {
            auto [other, is_fresh] = groups.emplace(host.workers[w].name, w);
            if (!is_fresh)
                reading.problem(worker_path(h, w) + ".name", fmt::format("the name \"{}\" belongs to the Workers of line {} already", host.workers[w].name,
                                                                        reading.where(worker_path(h, other->second)).line));
        }
    }
}

/// docs/contracts.md, "Names and ids": a Processor has one kind of Worker per deployment, since its Queue belongs to that kind.
void check_one_kind(Deployment const& c, Reading& reading) {
    std::map<std::string, std::pair<WorkerKind, std::string>> kinds;
    for (std::size_t h = 0; h < c.hosts.size(); ++h)
        for (std::size_t w = 0; w < c.hosts[h].workers.size(); ++w) {
            auto const& group = c.hosts[h].workers[w];
            if (group.processor.empty()) continue;
            auto path = worker_path(h, w);
            auto [first, fresh] = kinds.emplace(group.processor, std::pair(group.kind, path));
            if (!fresh && first->second.first != group.kind)
                reading.problem(path + ".kind", fmt::format("{} has {} Workers in line {}, here they are {}; a Processor has one kind in a deployment", group.processor,
                                                           wire(first->second.first), reading.where(first->second.second).line, wire(group.kind)));
        }
}

void check_ports(Deployment const& c, Reading& reading) {
    struct Use {
        std::string what, path, address;
        int port;
    };
    std::vector<Use> uses = {{"the server", "listen.port", c.listen.address, c.listen.port}};
    if (auto port = queue_port(c.process_queue)) uses.push_back({"process_queue", "process_queue.port", c.process_queue.address, port});
    if (auto port = database_port(c.database)) uses.push_back({"database", "database.port", c.database.address, port});
    auto same_place = [](std::string const& a, std::string const& b) { return a == b || (is_this_machine(a) && is_this_machine(b)); };
    for (std::size_t later = 1; later < uses.size(); ++later)
        for (std::size_t earlier = 0; earlier < later; ++earlier)
            if (uses[later].port == uses[earlier].port && same_place(uses[later].address, uses[earlier].address)) {
                reading.problem(uses[later].path, fmt::format("port {} of {} is used by {} already", uses[later].port, uses[later].address, uses[earlier].what));
                break;
            }
}

void check_reach(Deployment const& c, Reading& reading) {
    for (std::size_t h = 0; h < c.hosts.size(); ++h) {
        auto const& host = c.hosts[h];
        if (host.connection != Connection::Ssh || host.reach != Reach::Direct || is_loopback(host.address)) continue;
        auto path = host_path(h) + ".reach";
        if (is_loopback(c.listen.address))
            reading.problem(path, fmt::format("direct: {} cannot reach the server at {}; set listen.address, or use reach: tunnel", host.name, host_port(c.listen.address, c.listen.port)));
        if (is_loopback(c.process_queue.address))
            reading.problem(path, fmt::format("direct: {} cannot reach the broker at {}; set process_queue.address, or use reach: tunnel", host.name, c.process_queue.address));
        bool foreign = std::ranges::any_of(host.workers, [](auto const& group) { return group.kind == WorkerKind::Foreign; });
        if (foreign && c.database.kind == ServiceKind::External && is_loopback(c.database.address))
            reading.problem(path, fmt::format("direct: {} cannot reach the database at {}; set database.address, or use reach: tunnel", host.name, c.database.address));
    }
}

void check_auth(Deployment const& c, Reading& reading) {
    if (c.auth.kind == AuthKind::Unset && !is_loopback(c.listen.address))
        reading.problem("listen.address", fmt::format("listening on {} lets other machines in, unasked who they are: say auth: none if that is wanted", c.listen.address));
    if (c.auth.kind == AuthKind::Tokens) // silently open would be worse than refused
        reading.problem("auth.tokens", "the server of this version does not check tokens: listen on loopback, or say auth: none");
}

void check_database(Deployment const& c, Reading& reading) {
    std::string first, path;
    for (std::size_t h = 0; h < c.hosts.size() && path.empty(); ++h)
        for (std::size_t w = 0; w < c.hosts[h].workers.size() && path.empty(); ++w)
            if (c.hosts[h].workers[w].kind == WorkerKind::Foreign && c.hosts[h].workers[w].processor.starts_with("ocrd-")) {
                first = c.hosts[h].workers[w].processor;
                path = worker_path(h, w);
            }
    if (!path.empty() && c.database.kind == ServiceKind::Embedded)
        reading.problem(path, fmt::format("foreign Workers ({}) keep their Jobs in MongoDB, but the database is embedded: give database: {{address: ..., port: ..., skip_deployment: true}}, "
                                          "or run the Processor with kind: managed",
                                          first));
}

/// What a group preloads must be what its Processor declares; a required parameter may come with the Job.
void check_parameters_of_groups(Deployment const& c, Reading& reading) {
    for (std::size_t h = 0; h < c.hosts.size(); ++h)
        for (std::size_t w = 0; w < c.hosts[h].workers.size(); ++w) {
            auto const& group = c.hosts[h].workers[w];
            auto const* declared = tools::builtin_tool(group.processor);
            if (!declared || group.parameters.empty()) continue;
            auto tool = *declared;
            for (auto& parameter : tool["parameters"]) parameter.erase("required");
            if (auto checked = parameters::check_parameters(tool, group.parameters); !checked)
                reading.problem(worker_path(h, w) + ".parameters", checked.error().message());
        }
}

/// docs/contracts.md, "Deployment": without an agent a host's Workers are started and stopped, nothing more. The Workers that need
/// no more than that are OCR-D's own.
void check_agentless(Deployment const& c, Reading& reading) {
    for (std::size_t h = 0; h < c.hosts.size(); ++h) {
        auto const& host = c.hosts[h];
        if (host.agent) continue;
        if (host.connection == Connection::Local)
            reading.problem(host_path(h) + ".agent", "false: this machine always has an agent, which looks after the server and the services");
        for (std::size_t w = 0; w < host.workers.size(); ++w) {
            auto const& group = host.workers[w];
            if (group.processor.empty()) continue;
            if (group.kind == WorkerKind::Managed)
                reading.problem(worker_path(h, w), fmt::format("{} runs in managed Workers, which take their orders from an agent, but {} has none (agent: false): only foreign Workers can run there",
                                                               group.processor, host.name));
            else if (group.deploy_type == DeployType::Docker)
                reading.problem(worker_path(h, w) + ".deploy_type", fmt::format("docker: {} has no agent (agent: false), so only native Workers can run there", host.name));
        }
    }
}

void check_deploy_types(Deployment const& c, Reading& reading) {
    for (std::size_t h = 0; h < c.hosts.size(); ++h)
        for (std::size_t w = 0; w < c.hosts[h].workers.size(); ++w)
            if (c.hosts[h].workers[w].deploy_type == DeployType::Docker)
                reading.warning(worker_path(h, w) + ".deploy_type", "this version deploys native Workers only");
}

} // namespace

std::string Problem::text() const {
    auto where = line ? fmt::format("{}:{}:{}", file, line, column) : file;
    return path.empty() ? fmt::format("{}: {}", where, message) : fmt::format("{}: {}: {}", where, path, message);
}

Loaded load_text(std::string_view yaml, std::filesystem::path const& file) {
    Loaded loaded;
    Reading reading(file, yaml);
    try {
        auto documents = YAML::LoadAll(std::string(yaml));
        if (documents.empty() || documents.front().IsNull()) {
            reading.problem(Place{}, "", "is empty");
        } else {
            if (documents.size() > 1) reading.problem(reading.place(documents[1].Mark()), "", "holds more than one YAML document");
            Section top(documents.front(), "", reading.place(documents.front().Mark()), reading);
            if (documents.front().IsMap()) {
                auto& c = loaded.config = read_deployment(top, file);
                name_hosts(c);
                for (auto& host : c.hosts) name_groups(host);
                check_unique_names(c, reading);
                check_one_kind(c, reading);
                check_ports(c, reading);
                check_reach(c, reading);
                check_auth(c, reading);
                check_database(c, reading);
                check_parameters_of_groups(c, reading);
                check_agentless(c, reading);
                check_deploy_types(c, reading);
            }
        }
    } catch (YAML::Exception const& broken) {
        reading.problem(reading.place(broken.mark), "", fmt::format("is not YAML: {}", broken.msg));
    } catch (std::exception const& other) {
        reading.problem(Place{}, "", fmt::format("cannot be read: {}", other.what()));
    }
    loaded.problems = reading.take_problems();
    loaded.warnings = reading.take_warnings();
    return loaded;
}

Loaded load(std::filesystem::path const& file) {
    constexpr std::uintmax_t kMost = 16u << 20;
    std::error_code error;
    auto const kind = std::filesystem::status(file, error).type();
    auto refused = [&](std::string why) {
        Loaded loaded;
        loaded.problems.push_back({file.string(), 0, 0, "", std::move(why)});
        return loaded;
    };
    // Opening a pipe would wait for ever, a device may never end.
    using std::filesystem::file_type;
    if (kind != file_type::regular && kind != file_type::directory && kind != file_type::not_found && kind != file_type::none && kind != file_type::unknown)
        return refused("is not a regular file");
    if (kind == file_type::regular && std::filesystem::file_size(file, error) > kMost && !error)
        return refused(fmt::format("is larger than {} MiB: that is no configuration", kMost >> 20));
    auto text = read_file(file);
    if (!text) {
        auto message = text.error().message();
        auto action = fmt::format("read {}: ", file.string()); // the file's name is in front already
        if (message.starts_with(action)) message.erase(0, action.size());
        return refused("cannot be read: " + message);
    }
    return load_text(*text, file);
}

Result<Deployment> load_or_error(std::filesystem::path const& file) {
    auto loaded = load(file);
    if (loaded.problems.empty()) return std::move(loaded.config);
    std::vector<std::string> lines;
    for (auto const& problem : loaded.problems) lines.push_back(problem.text());
    return fail(ErrorKind::Usage, "{}", join(lines, "\n"));
}

std::vector<std::string> known_keys() {
    std::vector<std::string> all;
    auto add = [&all](std::string_view prefix, Keys keys) {
        for (auto key : keys) all.push_back(fmt::format("{}{}", prefix, key));
    };
    add("", kTopKeys);
    add("listen.", kListenKeys);
    add("auth.", kAuthKeys);
    add("process_queue.", kQueueKeys);
    add("database.", kDatabaseKeys);
    for (auto service : {"process_queue", "database"}) {
        add(fmt::format("{}.credentials.", service), kCredentialKeys);
        add(fmt::format("{}.ssh.", service), kSshKeys);
    }
    add("hosts[].", kHostKeys);
    add("hosts[].workers[].", kWorkerKeys);
    return all;
}

} // namespace ocrctl::config
