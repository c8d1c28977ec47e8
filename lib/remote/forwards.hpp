// Reverse forwards: ports on a Host's loopback, whose connections come through an SSH session to addresses that this
// machine reaches.
#pragma once

#include "lib/remote/ssh_session.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::remote {

/// What connects to 127.0.0.1:port there is connected to address:target_port as seen from here.
struct Forward {
    std::string name; // what it is for: "queue"
    int port = 0;
    std::string address; // name, IPv4 or IPv6
    int target_port = 0;
};

/// How long a Host may be silent before it is asked for a sign of life, and before the connection counts as lost.
struct Patience {
    std::chrono::milliseconds quiet{3000}, dead{10000};
};

/// Owns the session and all connections through it. Not thread-safe: one owner, whose thread pump() blocks. Each
/// connection holds at most some 1.5 MiB in either direction; a side that does not read makes the other one wait, and
/// no other connection. The destructor cuts everything.
class Forwards {
public:
    /// Has the Host listen. Errors: Conflict (a port is in use there), Denied (it does not forward ports, or would
    /// listen on more than its loopback), Unavailable (the connection was lost).
    static Result<Forwards> listen(SshSession session, std::vector<Forward> forwards);
    /// Would it? Listens, and gives the ports back before it returns. Errors as above.
    static Result<void> rehearse(SshSession session, std::vector<Forward> forwards);
    ~Forwards();
    Forwards(Forwards&&) noexcept;
    Forwards& operator=(Forwards&&) noexcept;

    /// Carries data until the connection is lost (Unavailable), silent for too long (Timeout), or `wake` becomes
    /// readable (success).
    Result<void> pump(int wake, Patience patience = {});

    struct Counts {
        std::size_t open = 0;       // connections now
        std::uint64_t accepted = 0; // so far
        std::uint64_t refused = 0;  // of these, those whose target did not answer
    };
    Counts counts() const noexcept;

private:
    struct Impl;
    explicit Forwards(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// A listening TCP socket, as /proc/net/tcp and tcp6 show it.
struct Listener {
    int port = 0;
    bool loopback = false;
};
std::vector<Listener> listeners(std::string_view proc_net_tcp);
/// The same of a Host; Unavailable if it cannot be asked.
Result<std::vector<Listener>> listeners_on(SshSession& session);

} // namespace ocrctl::remote
