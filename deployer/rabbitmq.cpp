#include "deployer/rabbitmq.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/base/text.hpp"
#include "lib/model/json.hpp"
#include "lib/process/process.hpp"

#include <array>
#include <csignal>
#include <cstdint>
#include <unistd.h>

namespace ocrctl::deployer {

namespace fs = std::filesystem;

namespace {

std::string bytes_of_hex(std::string_view hex) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2) bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
    return bytes;
}

std::string base64(std::string_view bytes) {
    constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t group = 0;
        for (std::size_t k = 0; k < 3; ++k) group = group << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
        for (std::size_t k = 0; k < 4; ++k) text.push_back(i + k <= bytes.size() ? kDigits[group >> (18 - 6 * k) & 63] : '=');
    }
    return text;
}

constexpr std::string_view kWorkerPrefix = "worker~";

/// A path inside a value of rabbitmq.conf or an Erlang term needs no quoting unless it holds odd characters.
Result<void> plain(fs::path const& path) {
    if (path.string().find_first_of(" \t\n\"'#\\") != std::string::npos)
        return fail(ErrorKind::Invalid, "RabbitMQ cannot work below {}: choose a state folder without blanks and quotes", path.string());
    return {};
}

Result<void> write_if_changed(fs::path const& file, std::string_view content, int mode) {
    auto there = read_file(file);
    if (there && *there == content) return {};
    return write_file_atomically(file, content, mode);
}

bool is_loopback_or_empty(std::string const& address) {
    return address.empty() || address == "localhost" || address.starts_with("127.") || address == "::1";
}

} // namespace

std::optional<fs::path> find_rabbitmq() {
    for (fs::path folder : {"/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"})
        if (::access((folder / "rabbitmq-server").c_str(), X_OK) == 0) return folder;
    return std::nullopt;
}

std::string rabbitmq_missing() {
    return "RabbitMQ is not installed here: apt-get install rabbitmq-server, or name a running broker by process_queue: "
           "{skip_deployment: true, address: ..., port: ...}";
}

std::string rabbitmq_conf(RabbitMq const& node) {
    std::string conf = fmt::format("# Written by ocrctl deploy; changes are overwritten.\nlisteners.tcp.1 = {}:{}\n",
                                   node.address == "0.0.0.0" ? "0.0.0.0" : "127.0.0.1", node.port);
    if (node.address != "0.0.0.0" && !is_loopback_or_empty(node.address)) conf += fmt::format("listeners.tcp.2 = {}:{}\n", node.address, node.port);
    return conf
           + fmt::format("num_acceptors.tcp = 4\n"
                         "load_definitions = {}\n"
                         // In milliseconds: no Job of ours takes longer, and the broker's default of 30 minutes is shorter than many.
                         "consumer_timeout = {}\n"
                         "disk_free_limit.absolute = 200MB\n"
                         "log.console = false\nlog.dir = {}\nlog.file = rabbitmq.log\nlog.file.level = info\n"
                         "log.file.rotation.size = 10485760\nlog.file.rotation.count = 3\n",
                         (node.folder / "definitions.json").string(), std::chrono::milliseconds(kNativeConsumerTimeout).count(), node.logs.string());
}

std::string worker_vhost(std::string_view slot) {
    std::string name(kWorkerPrefix); // "~" is in no host's or group's name
    for (char c : slot) name.push_back(c == '/' ? '~' : c);
    return name;
}

Secret worker_password(Secret const& key, std::string_view vhost) { return Secret(sha256_hex(fmt::format("{}:{}", key.reveal(), vhost)).substr(0, 48)); }

std::string rabbitmq_definitions(RabbitMq const& node, RabbitMqLogins const& logins) {
    Json users = Json::array(), vhosts = Json::array(), permissions = Json::array();
    auto add_user = [&](std::string const& name, Secret const& password, std::string const& tags) {
        // The salt is the password's own, so that the file stays the same from deploy to deploy.
        auto salt = bytes_of_hex(sha256_hex("salt:" + password.reveal()).substr(0, 8));
        users.push_back({{"name", name},
                         {"password_hash", base64(salt + bytes_of_hex(sha256_hex(salt + password.reveal())))},
                         {"hashing_algorithm", "rabbit_password_hashing_sha256"},
                         {"tags", tags},
                         {"limits", Json::object()}});
    };
    auto allow = [&](std::string const& user, std::string const& vhost) {
        permissions.push_back({{"user", user}, {"vhost", vhost}, {"configure", ".*"}, {"write", ".*"}, {"read", ".*"}});
    };
    add_user(logins.user, logins.password, "administrator");
    vhosts.push_back({{"name", node.vhost}});
    allow(logins.user, node.vhost);
    for (auto const& vhost : node.worker_vhosts) {
        add_user(vhost, worker_password(logins.worker_key, vhost), "");
        vhosts.push_back({{"name", vhost}});
        allow(vhost, vhost);
        allow(logins.user, vhost);
    }
    Json definitions = {{"users", users}, {"vhosts", vhosts}, {"permissions", permissions}};
    return definitions.dump(2) + "\n";
}

Result<void> write_rabbitmq_files(RabbitMq const& node, RabbitMqLogins const& logins, Secret const& cookie) {
    auto good = plain(node.folder);
    if (!good) return good;
    for (auto const& folder : {node.folder, node.folder / "home", node.folder / "data"}) {
        auto made = make_folder(folder, 0700);
        if (!made) return made;
    }
    auto logs = make_folder(node.logs);
    if (!logs) return logs;
    struct File {
        fs::path path;
        std::string content;
        int mode;
    };
    std::array<File, 6> const files{{
        {node.folder / "rabbitmq.conf", rabbitmq_conf(node), 0644},
        {node.folder / "definitions.json", rabbitmq_definitions(node, logins), 0600},
        {node.folder / "enabled_plugins", "[].\n", 0644},
        {node.folder / "rabbitmq-env.conf", "# So that the system's own is not read; the environment of the unit says everything.\n", 0644},
        // The node's name ends in localhost: found here, whatever the machine's resolver says.
        {node.folder / "inetrc", "{host, {127,0,0,1}, [\"localhost\"]}.\n{lookup, [file, native]}.\n", 0644},
        {node.folder / "home" / ".erlang.cookie", cookie.reveal(), 0400},
    }};
    for (auto const& file : files) {
        auto written = write_if_changed(file.path, file.content, file.mode);
        if (!written) return written;
    }
    return {};
}

Result<void> apply_rabbitmq_definitions(RabbitMq const& node, bool running) {
    auto file = node.folder / "definitions.json";
    auto note = node.folder / "definitions.applied"; // what a node that was stopped and started since has, too
    auto digest = sha256_of_file(file);
    if (!digest) return std::unexpected(digest.error());
    auto noted = read_file(note);
    if (noted && *noted == *digest) return {};
    if (!running) return write_file_atomically(note, *digest);
    // One call for both: the Erlang of a command line program takes longer to start than all of the work.
    std::string wanted;
    for (auto const& vhost : node.worker_vhosts) wanted += fmt::format("{}<<\"{}\">>", wanted.empty() ? "" : ",", vhost);
    auto term = fmt::format("{{ok, Text}} = file:read_file(\"{}\"), "
                            "ok = rabbit_definitions:import_raw(Text), "
                            "Ours = fun(N) -> binary:longest_common_prefix([N, <<\"{}\">>]) =:= {} andalso not lists:member(N, [{}]) end, "
                            "[ok = rabbit_vhost:delete(V, <<\"ocrctl\">>) || V <- rabbit_vhost:list_names(), Ours(V)], "
                            "[ok = rabbit_auth_backend_internal:delete_user(U, <<\"ocrctl\">>) || "
                            "[{{user, U}} | _] <- rabbit_auth_backend_internal:list_users(), Ours(U)], applied.",
                            file.string(), kWorkerPrefix, kWorkerPrefix.size(), wanted);
    auto unit = rabbitmq_unit(node);
    process::SpawnOptions options;
    options.argv = {(node.programs / "rabbitmqctl").string(), "--quiet", "--timeout", "60", "eval", term};
    options.env = unit.env;
    options.env.erase("RUNNING_UNDER_SYSTEMD");
    options.cwd = node.folder;
    options.pipe_output = true;
    options.log = node.logs / "rabbitmqctl.log";
    auto child = process::spawn(options);
    if (!child) return std::unexpected(child.error());
    std::string output;
    char buffer[4096];
    for (ssize_t size; (size = ::read(child->output.get(), buffer, sizeof buffer)) > 0 || (size < 0 && errno == EINTR);)
        if (size > 0) output.append(buffer, static_cast<std::size_t>(size));
    auto status = process::wait_for(child->pidfd.get(), std::chrono::seconds(90));
    if (!status) {
        (void)process::signal_group(child->identity, SIGKILL);
        (void)process::wait_for(child->pidfd.get(), std::chrono::seconds(5));
        return fail(ErrorKind::Unavailable, "rabbitmqctl does not end; its log is {}", options.log.string());
    }
    if (status->success() && output.find("applied") != std::string::npos) return write_file_atomically(note, *digest);
    return fail(ErrorKind::Unavailable, "the broker does not take its users and vhosts over: {}", trim(output.substr(0, 500)));
}

UnitSpec rabbitmq_unit(RabbitMq const& node) {
    UnitSpec unit;
    unit.entry = "queue";
    unit.kind = UnitKind::Queue;
    unit.argv = {(node.programs / "rabbitmq-server").string()};
    auto in = [&](char const* name) { return (node.folder / name).string(); };
    unit.env = {
        {"HOME", in("home")},
        {"RABBITMQ_CONF_ENV_FILE", in("rabbitmq-env.conf")},
        {"RABBITMQ_NODENAME", "ocrctl@localhost"},
        {"RABBITMQ_CONFIG_FILE", in("rabbitmq.conf")},
        {"RABBITMQ_ADVANCED_CONFIG_FILE", in("advanced.config")},
        {"RABBITMQ_ENABLED_PLUGINS_FILE", in("enabled_plugins")},
        {"RABBITMQ_MNESIA_BASE", in("data")},
        {"RABBITMQ_GENERATED_CONFIG_DIR", in("data/config")},
        {"RABBITMQ_PID_FILE", in("data/pid")},
        {"RABBITMQ_LOG_BASE", node.logs.string()},
        {"RABBITMQ_DIST_PORT", std::to_string(node.dist_port)},
        {"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}"},
        {"ERL_EPMD_PORT", std::to_string(node.epmd_port)},
        {"ERL_EPMD_ADDRESS", "127.0.0.1"},
        {"ERL_INETRC", in("inetrc")},
        {"ERL_CRASH_DUMP_BYTES", "0"},
        // The script then becomes the Erlang machine instead of waiting for it: one process to signal, TERM stops it cleanly.
        {"RUNNING_UNDER_SYSTEMD", "true"},
    };
    unit.cwd = node.folder.string();
    unit.log = (node.logs / "queue.log").string();
    unit.ready.kind = "tcp";
    unit.ready.address = fmt::format("127.0.0.1:{}", node.port);
    unit.ready.timeout_s = 180;
    unit.grace_s = 30;
    unit.also = {"epmd"};
    return unit;
}

} // namespace ocrctl::deployer
