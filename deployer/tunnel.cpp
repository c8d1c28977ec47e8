#include "deployer/tunnel.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <cstdlib>
#include <random>

namespace ocrctl::deployer {

namespace fs = std::filesystem;

OCRCTL_JSON_FIELDS(TunnelPort, name, port, address, target_port)
OCRCTL_JSON_FIELDS(TunnelSettings, host, address, port, username, private_key, host_key, known_hosts, password_file,
                   use_agent, agent_socket, ports)

Result<remote::SshTarget> TunnelSettings::target() const {
    remote::SshTarget target;
    target.name = host;
    target.address = address;
    target.port = port;
    target.username = username;
    target.private_key = private_key;
    target.use_agent = use_agent;
    target.agent_socket = agent_socket;
    target.host_key = host_key;
    target.known_hosts = known_hosts;
    if (use_agent && agent_socket.empty())
        return fail(
            ErrorKind::Denied,
            "{}: the ssh-agent that it is opened with is not known: run ocrctl deploy from a session with an ssh-agent",
            host);
    if (!password_file.empty()) {
        auto password = read_file(password_file);
        if (!password) return fail(password.error().during(host));
        target.password = Secret(*password);
    }
    return target;
}

TunnelPort const* TunnelSettings::find(std::string_view name) const {
    auto found = std::ranges::find(ports, name, &TunnelPort::name);
    return found == ports.end() ? nullptr : &*found;
}

Result<TunnelSettings> load_tunnel(fs::path const& file) {
    auto text = read_file(file);
    if (!text) return std::unexpected(text.error());
    auto settings = json_to<TunnelSettings>(std::string_view(*text));
    if (!settings) return fail(settings.error().during(file.string()));
    return settings;
}

bool is_tunnelled(config::Host const& host) {
    if (host.connection != config::Connection::Ssh || host.reach != config::Reach::Tunnel) return false;
    return host.reach_said || !config::is_loopback(host.address);
}

std::string tunnel_entry(std::string_view host) {
    return fmt::format("tunnel/{}", host);
}

TunnelSettings tunnel_of(config::Deployment const& config, config::Host const& host, ledger::StatePaths const& state,
                         DeploymentFile const& facts) {
    TunnelSettings tunnel;
    tunnel.host = host.name;
    tunnel.address = host.address;
    tunnel.port = host.port;
    tunnel.username = host.login.username;
    tunnel.private_key = host.login.private_key.string();
    tunnel.use_agent = host.login.use_agent;
    tunnel.host_key = host.host_key;
    tunnel.known_hosts = host.known_hosts.string();
    if (!host.login.password.empty()) tunnel.password_file = (state.secrets() / ssh_secret(host.name)).string();
    auto known = facts.hosts.find(host.name);
    auto carry = [&](std::string const& name, std::string const& listens, int port) {
        int chosen = 0;
        if (known != facts.hosts.end())
            if (auto there = known->second.tunnel.find(name); there != known->second.tunnel.end())
                chosen = there->second;
        tunnel.ports.push_back({name, chosen, config::connect_address(listens), port});
    };
    auto const& queue = config.process_queue;
    bool external = queue.kind == config::ServiceKind::External || queue.skip_deployment;
    carry("queue", queue.address, external ? config::queue_port(queue) : facts.queue.port);
    carry("server", config.listen.address, config.listen.port);
    bool foreign =
        std::ranges::any_of(host.workers, [](auto const& group) { return group.kind == config::WorkerKind::Foreign; });
    if (foreign && config.database.kind != config::ServiceKind::Embedded)
        carry("database", config.database.address, config::database_port(config.database));
    return tunnel;
}

fs::path tunnel_file(fs::path const& local_host_dir, std::string_view host) {
    return local_host_dir / "tunnels" / fmt::format("{}.json", host);
}
fs::path tunnel_memory(fs::path const& local_host_dir, std::string_view host) {
    return local_host_dir / "tunnels" / fmt::format("{}.sshd", host);
}

UnitSpec tunnel_unit(TunnelSettings const& tunnel, std::string const& local_host_dir, std::string const& build) {
    ledger::HostPaths paths{local_host_dir};
    UnitSpec unit;
    unit.entry = tunnel_entry(tunnel.host);
    unit.kind = UnitKind::Tunnel;
    unit.argv = {paths.bin(build).string(), "tunnel", "--settings", tunnel_file(local_host_dir, tunnel.host).string()};
    unit.cwd = local_host_dir;
    unit.log = (paths.logs() / (ledger::entry_file_name(unit.entry) + ".log")).string();
    unit.ready.kind = "report";
    unit.ready.timeout_s = 30; // to say hello; a Host that is away is waited for
    unit.grace_s = 2;
    // The settings are in a file; without this a change would not restart it. Another ssh-agent need not.
    auto settings = tunnel;
    settings.agent_socket.clear();
    unit.env["OCRCTL_SETTINGS"] = sha256_hex(dump(Json(settings))).substr(0, 16);
    return unit;
}

Result<void> write_tunnels(fs::path const& local_host_dir, std::vector<TunnelSettings> tunnels) {
    std::set<fs::path> kept;
    auto const* agent = std::getenv("SSH_AUTH_SOCK");
    for (auto& tunnel : tunnels) {
        auto file = tunnel_file(local_host_dir, tunnel.host);
        kept.insert(file.filename());
        kept.insert(tunnel_memory(local_host_dir, tunnel.host).filename());
        auto before = load_tunnel(file);
        if (tunnel.use_agent) tunnel.agent_socket = agent && *agent ? agent : before ? before->agent_socket : "";
        if (before && Json(*before) == Json(tunnel)) continue;
        if (auto made = make_folder(file.parent_path(), 0700); !made) return made;
        if (auto written = write_file_atomically(file, Json(tunnel).dump(2) + "\n", 0600); !written) return written;
    }
    std::error_code error;
    for (auto const& item : fs::directory_iterator(local_host_dir / "tunnels", error))
        if (!kept.contains(item.path().filename())) remove_tree(item.path());
    return {};
}

remote::SshTarget ssh_target(config::Host const& host) {
    remote::SshTarget target;
    target.name = host.name;
    target.address = host.address;
    target.port = host.port;
    target.username = host.login.username;
    target.private_key = host.login.private_key;
    target.password = host.login.password;
    target.use_agent = host.login.use_agent;
    target.host_key = host.host_key;
    target.known_hosts = host.known_hosts;
    return target;
}

void choose_tunnel_ports(TunnelSettings const& tunnel, std::set<int> taken, std::map<std::string, int>& ports) {
    static thread_local std::mt19937 random{std::random_device{}()};
    // Below the range from which the kernel takes ports for outgoing connections.
    std::uniform_int_distribution<int> some(20000, 32000);
    for (auto const& item : tunnel.ports) {
        int port = item.port;
        while (port == 0 || taken.contains(port)) port = some(random);
        taken.insert(port);
        ports[item.name] = port;
    }
}

Result<void> prepare_tunnel(config::Host const& host, TunnelSettings const& tunnel, bool up, fs::path const& memory,
                            std::map<std::string, int>& ports) {
    choose_tunnel_ports(tunnel, {}, ports);
    auto session = remote::SshSession::connect(ssh_target(host));
    if (!session) return std::unexpected(session.error());
    if (!up)
        if (auto earlier = remote::remembered_server(memory))
            if (auto ended = remote::end_server(*session, *earlier); !ended) return ended;
    auto there = remote::listeners_on(*session);
    if (!there) return std::unexpected(there.error());
    std::set<int> taken, own;
    for (auto const& item : tunnel.ports)
        if (up && item.port != 0) own.insert(item.port);
    for (auto const& listener : *there)
        if (!own.contains(listener.port)) taken.insert(listener.port);
    choose_tunnel_ports(tunnel, taken, ports);
    std::vector<remote::Forward> forwards;
    for (auto const& item : tunnel.ports)
        if (auto port = ports.at(item.name); !own.contains(port))
            forwards.push_back({item.name, port, item.address, item.target_port});
    return remote::Forwards::rehearse(std::move(*session), std::move(forwards));
}

} // namespace ocrctl::deployer
