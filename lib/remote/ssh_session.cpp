#include "lib/remote/ssh_session.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/remote/session_impl.hpp"

#include <libssh/callbacks.h>

#include <algorithm>
#include <cstdlib>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace ocrctl::remote {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// libssh's codes, translated here and nowhere else.
ErrorKind kind_of(ssh_session session) {
    switch (ssh_get_error_code(session)) {
    case SSH_REQUEST_DENIED: return ErrorKind::Denied;
    case SSH_EINTR:
    case SSH_FATAL: return ErrorKind::Unavailable;
    default: return ErrorKind::Unavailable;
    }
}

milliseconds left_until(Clock::time_point deadline) {
    return std::max(milliseconds(0), std::chrono::duration_cast<milliseconds>(deadline - Clock::now()));
}

Result<SshPtr<ssh_session>> new_session(SshTarget const& target, char const* host_key_types = nullptr) {
    SshPtr<ssh_session> session(ssh_new());
    if (!session) return fail(ErrorKind::Internal, "libssh has no memory for a session");
    auto* s = session.get();
    int off = 0, nodelay = 1, port = target.port;
    // Nobody's ~/.ssh/config changes what a deployment does.
    ssh_options_set(s, SSH_OPTIONS_PROCESS_CONFIG, &off);
    ssh_options_set(s, SSH_OPTIONS_NODELAY, &nodelay);
    ssh_options_set(s, SSH_OPTIONS_PORT, &port);
    long micros = static_cast<long>(std::chrono::duration_cast<std::chrono::microseconds>(target.timeout).count());
    ssh_options_set(s, SSH_OPTIONS_TIMEOUT_USEC, &micros);
    if (ssh_options_set(s, SSH_OPTIONS_HOST, target.address.c_str()) < 0)
        return fail(ErrorKind::Invalid, "{}: \"{}\" is not an address", target.name, target.address);
    if (!target.username.empty()) ssh_options_set(s, SSH_OPTIONS_USER, target.username.c_str());
    if (!target.known_hosts.empty()) ssh_options_set(s, SSH_OPTIONS_KNOWNHOSTS, target.known_hosts.c_str());
    if (!target.agent_socket.empty()) ssh_options_set(s, SSH_OPTIONS_IDENTITY_AGENT, target.agent_socket.c_str());
    if (host_key_types) ssh_options_set(s, SSH_OPTIONS_HOSTKEYS, host_key_types);
    if (ssh_connect(s) != SSH_OK)
        return fail(ErrorKind::Unavailable, "{}: cannot be reached: {}", describe(target), text_of(s));
    return session;
}

Result<std::string> fingerprint_of(ssh_session session, std::string* type = nullptr) {
    ssh_key raw = nullptr;
    if (ssh_get_server_publickey(session, &raw) != SSH_OK) return fail(ErrorKind::Unavailable, "the host shows no key");
    SshPtr<ssh_key> key(raw);
    if (type) *type = ssh_key_type_to_char(ssh_key_type(key.get()));
    unsigned char* hash = nullptr;
    std::size_t size = 0;
    if (ssh_get_publickey_hash(key.get(), SSH_PUBLICKEY_HASH_SHA256, &hash, &size) != 0)
        return fail(ErrorKind::Internal, "the host's key cannot be hashed");
    char* text = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, size);
    std::string result = text ? text : "";
    ssh_string_free_char(text);
    ssh_clean_pubkey_hash(&hash);
    return result;
}

std::string known_hosts_name(SshTarget const& target) {
    return target.known_hosts.empty() ? "known_hosts" : target.known_hosts.string();
}

/// The key the host shows is the one we expect, or an error that says what to do.
Result<void> check_known(ssh_session session, SshTarget const& target) {
    auto fingerprint = fingerprint_of(session);
    if (!fingerprint) return fail(fingerprint.error().during(describe(target)));
    switch (ssh_session_is_known_server(session)) {
    case SSH_KNOWN_HOSTS_OK: return {};
    case SSH_KNOWN_HOSTS_CHANGED:
    case SSH_KNOWN_HOSTS_OTHER:
        return fail(ErrorKind::Denied,
                    "{}: its host key has changed: it shows {}, {} has another one; either the machine was set up anew or somebody "
                    "is in between; if the new key is right, remove the old one (ssh-keygen -R) and run: ocrctl trust {}",
                    describe(target), *fingerprint, known_hosts_name(target), target.name);
    case SSH_KNOWN_HOSTS_UNKNOWN:
    case SSH_KNOWN_HOSTS_NOT_FOUND:
        return fail(ErrorKind::Denied, "{}: its host key is not known: {}; if that is its key, run: ocrctl trust {}",
                    describe(target), *fingerprint, target.name);
    case SSH_KNOWN_HOSTS_ERROR: break;
    }
    return fail(ErrorKind::Invalid, "{}: {} cannot be read: {}", describe(target), known_hosts_name(target), text_of(session));
}

/// With a pinned key the host may still prefer to show a key of another type: each family is asked for.
Result<SshPtr<ssh_session>> pinned_session(SshTarget const& target) {
    std::string shown;
    for (char const* types : {"ssh-ed25519", "ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521", "rsa-sha2-512,rsa-sha2-256"}) {
        auto session = new_session(target, types);
        if (!session) {
            // No key of this family is an answer too; a host that is away is not.
            if (session.error().message().find("match") != std::string::npos) continue;
            return session;
        }
        auto fingerprint = fingerprint_of(session->get());
        if (!fingerprint) return fail(fingerprint.error().during(describe(target)));
        if (*fingerprint == target.host_key) return session;
        if (shown.empty()) shown = *fingerprint;
    }
    return fail(ErrorKind::Denied, "{}: its host key is {}, but the config pins {}; somebody may be in between, or the machine was set up anew",
                describe(target), shown.empty() ? "of a kind we do not speak" : shown, target.host_key);
}

Result<void> with_key(ssh_session session, SshTarget const& target) {
    auto const& file = target.private_key;
    if (::access(file.c_str(), R_OK) != 0) return fail(errno_error(errno, fmt::format("{}: private key {}", describe(target), file.string())));
    ssh_key raw = nullptr;
    // A null passphrase makes libssh ask on the terminal; the callback says no instead.
    auto no_passphrase = [](char const*, char*, size_t, int, int, void*) { return -1; };
    int rc = ssh_pki_import_privkey_file(file.c_str(), nullptr, no_passphrase, nullptr, &raw);
    SshPtr<ssh_key> key(raw);
    if (rc != SSH_OK)
        return fail(ErrorKind::Invalid, "{}: private key {} cannot be used: it is not a private key, or it has a passphrase (add it to ssh-agent and set use_agent)",
                    describe(target), file.string());
    rc = ssh_userauth_publickey(session, nullptr, key.get());
    if (rc == SSH_AUTH_SUCCESS) return {};
    if (rc == SSH_AUTH_ERROR) return fail(kind_of(session), "{}: login failed: {}", describe(target), text_of(session));
    return fail(ErrorKind::Denied, "{}: the host does not accept the key {}", describe(target), file.string());
}

Result<void> with_agent(ssh_session session, SshTarget const& target) {
    if (!target.agent_socket.empty()) {
        if (::access(target.agent_socket.c_str(), R_OK | W_OK) != 0)
            return fail(ErrorKind::Denied,
                        "{}: the ssh-agent of {} has ended: run ocrctl deploy again from a session with an ssh-agent",
                        describe(target), target.agent_socket.string());
    } else if (!std::getenv("SSH_AUTH_SOCK")) {
        return fail(ErrorKind::Denied, "{}: no ssh-agent is running here (SSH_AUTH_SOCK is not set)", describe(target));
    }
    if (ssh_userauth_agent(session, nullptr) == SSH_AUTH_SUCCESS) return {};
    return fail(ErrorKind::Denied, "{}: the host does not accept a key of the ssh-agent", describe(target));
}

Result<void> with_password(ssh_session session, SshTarget const& target) {
    int rc = SSH_AUTH_DENIED;
    if (ssh_userauth_list(session, nullptr) & SSH_AUTH_METHOD_PASSWORD)
        rc = ssh_userauth_password(session, nullptr, target.password.reveal().c_str());
    if (rc != SSH_AUTH_SUCCESS && (ssh_userauth_list(session, nullptr) & SSH_AUTH_METHOD_INTERACTIVE)) {
        rc = ssh_userauth_kbdint(session, nullptr, nullptr);
        for (int round = 0; rc == SSH_AUTH_INFO && round < 4; ++round) {
            int prompts = ssh_userauth_kbdint_getnprompts(session);
            for (int i = 0; i < prompts; ++i)
                ssh_userauth_kbdint_setanswer(session, static_cast<unsigned>(i), target.password.reveal().c_str());
            rc = ssh_userauth_kbdint(session, nullptr, nullptr);
        }
    }
    if (rc == SSH_AUTH_SUCCESS) return {};
    return fail(ErrorKind::Denied, "{}: the host does not accept the password", describe(target));
}

Result<void> log_in(ssh_session session, SshTarget const& target) {
    if (ssh_userauth_none(session, nullptr) == SSH_AUTH_SUCCESS) return {};
    Result<void> result = fail(ErrorKind::Denied, "{}: no way to log in", describe(target));
    if (!target.private_key.empty()) {
        result = with_key(session, target);
        if (result) return result;
    }
    if (target.use_agent) {
        auto agent = with_agent(session, target);
        if (agent) return agent;
        if (target.private_key.empty()) result = agent;
    }
    if (!target.password.empty()) {
        auto password = with_password(session, target);
        if (password) return password;
        if (target.private_key.empty() && !target.use_agent) result = password;
    }
    if (target.private_key.empty() && !target.use_agent && target.password.empty()) {
        if (std::getenv("SSH_AUTH_SOCK") && ssh_userauth_agent(session, nullptr) == SSH_AUTH_SUCCESS) return {};
        if (ssh_userauth_publickey_auto(session, nullptr, "") == SSH_AUTH_SUCCESS) return {};
        return fail(ErrorKind::Denied, "{}: the host accepts none of your keys; name one by private_key, or give a password", describe(target));
    }
    return result;
}

/// What libssh calls back with while one command runs.
struct Running {
    ExecResult result;
    bool closed = false;
};

int on_data(ssh_session, ssh_channel, void* data, uint32_t size, int is_stderr, void* user) {
    auto& running = *static_cast<Running*>(user);
    (is_stderr ? running.result.err : running.result.out).append(static_cast<char const*>(data), size);
    return static_cast<int>(size);
}
void on_close(ssh_session, ssh_channel, void* user) { static_cast<Running*>(user)->closed = true; }
void on_exit_status(ssh_session, ssh_channel, int status, void* user) { static_cast<Running*>(user)->result.exit_code = status; }
void on_exit_signal(ssh_session, ssh_channel, char const* signal, int, char const*, char const*, void* user) {
    std::string_view name = signal ? signal : "";
    static_cast<Running*>(user)->result.exit_code = 128 + (name == "KILL" ? 9 : name == "TERM" ? 15 : name == "SEGV" ? 11 : name == "ABRT" ? 6 : 1);
}

} // namespace

std::string text_of(ssh_session session) {
    std::string text = ssh_get_error(session);
    while (!text.empty() && (text.back() == '.' || text.back() == '\n')) text.pop_back();
    return text.empty() ? "no reason given" : text;
}

std::string describe(SshTarget const& target) {
    bool brackets = target.address.find(':') != std::string::npos;
    return fmt::format("{} ({}{}{}{}{}:{})", target.name.empty() ? target.address : target.name, target.username,
                       target.username.empty() ? "" : "@", brackets ? "[" : "", target.address, brackets ? "]" : "",
                       target.port);
}

std::string shell_quote(std::string_view word) {
    bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
        return std::isalnum(c) || std::string_view("_-./:=,+@%").find(static_cast<char>(c)) != std::string_view::npos;
    });
    if (plain) return std::string(word);
    std::string quoted = "'";
    for (char c : word) {
        if (c == '\'') quoted += "'\\''";
        else quoted += c;
    }
    return quoted + "'";
}

Result<ExecResult> SshSession::Impl::run(std::string const& command, std::function<Result<std::string_view>()> next,
                                         milliseconds limit) {
    auto deadline = Clock::now() + limit;
    auto* s = session.get();
    auto broken = [&](std::string_view action) {
        return fail(ErrorKind::Unavailable, "{}: {}: {}", describe(target), action, text_of(s));
    };
    SshPtr<ssh_channel> channel(ssh_channel_new(s));
    if (!channel || ssh_channel_open_session(channel.get()) != SSH_OK) return broken("open a channel");
    Running running;
    ssh_channel_callbacks_struct callbacks{};
    callbacks.userdata = &running;
    callbacks.channel_data_function = on_data;
    callbacks.channel_close_function = on_close;
    callbacks.channel_exit_status_function = on_exit_status;
    callbacks.channel_exit_signal_function = on_exit_signal;
    ssh_callbacks_init(&callbacks);
    if (ssh_set_channel_callbacks(channel.get(), &callbacks) != SSH_OK) return broken("watch a channel");
    // Whatever happens, libssh must not call into this frame once it is gone.
    struct Detach {
        ssh_channel channel;
        ssh_channel_callbacks callbacks;
        ~Detach() { ssh_remove_channel_callbacks(channel, callbacks); }
    } detach{channel.get(), &callbacks};
    if (ssh_channel_request_exec(channel.get(), command.c_str()) != SSH_OK) return broken("start a command");

    bool refused = false; // the command ended without reading all its stdin
    while (!refused && !running.closed) {
        auto piece = next();
        if (!piece) return std::unexpected(piece.error());
        if (piece->empty()) break;
        std::string_view rest = *piece;
        while (!rest.empty()) {
            if (Clock::now() > deadline) return too_slow(command, limit);
            if (running.closed || ssh_channel_is_closed(channel.get())) {
                refused = true;
                break;
            }
            int written = ssh_channel_write(channel.get(), rest.data(),
                                            static_cast<uint32_t>(std::min<std::size_t>(rest.size(), 128 * 1024)));
            if (written < 0) {
                if (!ssh_is_connected(s)) return broken("send");
                refused = true;
                break;
            }
            rest.remove_prefix(static_cast<std::size_t>(written));
        }
    }
    ssh_channel_send_eof(channel.get());

    SshPtr<ssh_event> event(ssh_event_new());
    if (!event || ssh_event_add_session(event.get(), s) != SSH_OK) return broken("wait for a command");
    struct Leave {
        ssh_event event;
        ssh_session session;
        ~Leave() { ssh_event_remove_session(event, session); }
    } leave{event.get(), s};
    while (!running.closed && !ssh_channel_is_closed(channel.get())) {
        auto left = left_until(deadline);
        if (left.count() == 0) return too_slow(command, limit);
        int rc = ssh_event_dopoll(event.get(), static_cast<int>(std::min<long long>(left.count(), 1000)));
        if (rc == SSH_ERROR || !ssh_is_connected(s)) {
            if (running.closed) break;
            return fail(ErrorKind::Unavailable, "{}: the connection was lost", describe(target));
        }
    }
    return std::move(running.result);
}

std::unexpected<Error> SshSession::Impl::too_slow(std::string const& command, milliseconds limit) const {
    return fail(ErrorKind::Timeout, "{}: no end after {} s: {}", describe(target), limit.count() / 1000.0,
                command.substr(0, 80));
}

SshSession::SshSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SshSession::~SshSession() = default;
SshSession::SshSession(SshSession&&) noexcept = default;
SshSession& SshSession::operator=(SshSession&&) noexcept = default;
SshTarget const& SshSession::target() const noexcept { return impl_->target; }

Result<SshSession> SshSession::connect(SshTarget target) {
    if (target.name.empty()) target.name = target.address;
    Result<SshPtr<ssh_session>> session = target.host_key.empty() ? new_session(target) : pinned_session(target);
    if (!session) return std::unexpected(session.error());
    if (target.host_key.empty()) {
        auto known = check_known(session->get(), target);
        if (!known) return std::unexpected(known.error());
    }
    auto in = log_in(session->get(), target);
    if (!in) return std::unexpected(in.error());
    auto impl = std::make_unique<Impl>();
    impl->target = std::move(target);
    impl->session = std::move(*session);
    return SshSession(std::move(impl));
}

Result<ExecResult> SshSession::exec(std::string const& command, std::string_view input, milliseconds limit) {
    auto next = [&input]() -> Result<std::string_view> { return std::exchange(input, {}); };
    return impl_->run(command, next, limit);
}

Result<void> SshSession::upload(std::filesystem::path const& file, std::string const& remote_path, int mode, milliseconds limit) {
    Fd source(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!source) return fail(errno_error(errno, fmt::format("open {}", file.string())));
    struct stat info {};
    if (::fstat(source.get(), &info) != 0) return fail(errno_error(errno, fmt::format("look at {}", file.string())));
    std::vector<char> buffer(512 * 1024);
    auto next = [&]() -> Result<std::string_view> {
        auto size = ::read(source.get(), buffer.data(), buffer.size());
        if (size < 0) return fail(errno_error(errno, fmt::format("read {}", file.string())));
        return std::string_view(buffer.data(), static_cast<std::size_t>(size));
    };
    auto target_path = shell_quote(remote_path);
    auto temporary = shell_quote(fmt::format("{}.{}.part", remote_path, random_hex(6)));
    auto folder = shell_quote(std::filesystem::path(remote_path).parent_path().string());
    // Whoever copies may be killed: `cat` takes the end of the connection for the end of the file.
    auto script = fmt::format("umask 077; mkdir -p {0} && cat > {1} && chmod {2:o} {1} && [ \"$(wc -c < {1})\" -eq {4} ] && mv -f {1} {3} || "
                              "{{ rm -f {1}; exit 1; }}",
                              folder, temporary, mode, target_path, info.st_size);
    auto result = impl_->run(fmt::format("exec /bin/sh -c {}", shell_quote(script)), next, limit);
    if (!result) return fail(result.error().during(fmt::format("copy {} to {}", file.filename().string(), impl_->target.name)));
    if (result->exit_code != 0)
        return fail(ErrorKind::Unavailable, "{}: copy {} to {}: {}", describe(impl_->target), file.filename().string(), remote_path,
                    result->err.empty() ? fmt::format("exit code {}", result->exit_code) : result->err.substr(0, result->err.find('\n')));
    return {};
}

Result<HostKey> host_key_of(SshTarget const& target) {
    auto session = new_session(target);
    if (!session) return std::unexpected(session.error());
    HostKey key;
    auto fingerprint = fingerprint_of(session->get(), &key.type);
    if (!fingerprint) return std::unexpected(fingerprint.error());
    key.fingerprint = *fingerprint;
    auto state = ssh_session_is_known_server(session->get());
    key.known = state == SSH_KNOWN_HOSTS_OK;
    key.changed = state == SSH_KNOWN_HOSTS_CHANGED || state == SSH_KNOWN_HOSTS_OTHER;
    return key;
}

Result<void> trust_host_key(SshTarget const& target, std::string const& fingerprint) {
    auto session = new_session(target);
    if (!session) return std::unexpected(session.error());
    auto shown = fingerprint_of(session->get());
    if (!shown) return std::unexpected(shown.error());
    if (*shown != fingerprint) return fail(ErrorKind::Denied, "{}: it shows the key {}, not {}", describe(target), *shown, fingerprint);
    if (ssh_session_update_known_hosts(session->get()) != SSH_OK)
        return fail(ErrorKind::Denied, "{} cannot be written: {}", known_hosts_name(target), text_of(session->get()));
    return {};
}

} // namespace ocrctl::remote
