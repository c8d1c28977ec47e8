// SSH to a Host: run, copy. The only folder that knows libssh.
#pragma once

#include "lib/base/error.hpp"
#include "lib/base/secret.hpp"

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace ocrctl::remote {

/// Where and as whom. With none of private_key, password and use_agent, the running ssh-agent and then the user's
/// default keys are tried.
struct SshTarget {
    std::string name;                  // the Host's name: how messages call it, and what `ocrctl trust` takes
    std::string address;
    int port = 22;
    std::string username;              // empty: the user who runs us
    std::filesystem::path private_key; // "" = none
    Secret password;
    bool use_agent = false;
    std::filesystem::path agent_socket; // of the ssh-agent; empty: $SSH_AUTH_SOCK
    std::string host_key;              // pinned, "SHA256:..."; empty: known_hosts decides
    std::filesystem::path known_hosts; // empty: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts
    std::chrono::milliseconds timeout{10000}; // to connect, and for each answer that is due at once
};

/// "ocr1 (ocr@192.0.2.7:22)"
std::string describe(SshTarget const& target);

struct ExecResult {
    int exit_code = -1; // 128 + n if a signal ended it
    std::string out, err;
};

/// One authenticated connection. Not thread-safe: one thread at a time, best one thread for each Host. Calls block,
/// each for at most its limit; after a Timeout or Unavailable the session is of no more use. The destructor
/// disconnects; what was started there in a session of its own (setsid) goes on.
class SshSession {
public:
    /// Errors: Unavailable (unreachable, no answer), Denied (key of the host unknown, changed or not the pinned one;
    /// login refused), NotFound (no such private key), Invalid (it cannot be used).
    static Result<SshSession> connect(SshTarget target);
    ~SshSession();
    SshSession(SshSession&&) noexcept;
    SshSession& operator=(SshSession&&) noexcept;

    /// Runs a command line in the login shell there; its exit code is a result, not an error. `input` is its stdin.
    Result<ExecResult> exec(std::string const& command, std::string_view input = {},
                            std::chrono::milliseconds limit = std::chrono::seconds(30));

    /// Copies a file: temporary name beside the target, mode, rename. Makes the folder. What is there is replaced.
    Result<void> upload(std::filesystem::path const& file, std::string const& remote_path, int mode = 0644,
                        std::chrono::milliseconds limit = std::chrono::minutes(10));

    SshTarget const& target() const noexcept;

private:
    friend class Forwards;
    struct Impl;
    explicit SshSession(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// The key that a host shows, unverified; for `ocrctl trust`.
struct HostKey {
    std::string type;        // "ssh-ed25519"
    std::string fingerprint; // "SHA256:..."
    bool known = false;      // it is in known_hosts already
    bool changed = false;    // known_hosts has another one for this host
};
Result<HostKey> host_key_of(SshTarget const& target);

/// Adds the key with this fingerprint to known_hosts; Denied if the host shows another one now.
Result<void> trust_host_key(SshTarget const& target, std::string const& fingerprint);

/// A word for /bin/sh, quoted where it needs it.
std::string shell_quote(std::string_view word);

} // namespace ocrctl::remote
