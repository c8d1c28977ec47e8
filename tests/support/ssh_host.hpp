// A Host for tests: an sshd of its own on a loopback port, with keys of its own, for the user who runs the test.
#pragma once

#include <filesystem>
#include <string>
#include <sys/types.h>

namespace ocrctl::test {

/// Starts in the constructor and answers when that returns (throws std::runtime_error otherwise); the destructor ends
/// it with all its sessions and removes its folder. Not thread-safe.
class SshHost {
public:
    /// Why none can be started here, or "".
    static std::string missing();

    /// `more`: further lines of sshd_config, before the usual ones (sshd takes the first of each).
    explicit SshHost(std::string const& more = "");
    ~SshHost();
    SshHost(SshHost const&) = delete;
    SshHost& operator=(SshHost const&) = delete;

    int port() const noexcept { return port_; }
    std::string const& user() const noexcept { return user_; }
    /// A key the host accepts, and one it does not.
    std::filesystem::path key() const { return folder_ / "user_key"; }
    std::filesystem::path wrong_key() const { return folder_ / "wrong_key"; }
    /// Holds this host's key; an empty one to start from.
    std::filesystem::path known_hosts() const { return folder_ / "known_hosts"; }
    std::filesystem::path empty_known_hosts() const { return folder_ / "known_hosts.empty"; }
    std::string const& fingerprint() const noexcept { return fingerprint_; }
    std::filesystem::path const& folder() const noexcept { return folder_; }

    /// Ends sshd and cuts its sessions; start() brings it back on the same port.
    void stop();
    void start();
    /// Stops (SIGSTOP) or resumes the processes that serve the sessions: the connection stands and nothing answers.
    void freeze(bool frozen);

private:
    std::filesystem::path folder_;
    std::string user_, fingerprint_;
    int port_ = 0;
    pid_t pid_ = -1;
};

/// A loopback port that is free now.
int free_port();

} // namespace ocrctl::test
