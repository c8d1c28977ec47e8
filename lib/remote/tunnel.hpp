// A tunnel: the forwards of one Host, kept up over every loss of the connection.
#pragma once

#include "lib/remote/forwards.hpp"

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace ocrctl::remote {

struct TunnelState {
    bool listening = false;
    std::string detail; // what it does or what is wrong, one sentence
};

struct TunnelOptions {
    std::function<Result<SshTarget>()> target; // asked before each connect: a changed password counts at once
    std::vector<Forward> forwards;
    /// Who serves us there, kept over our own death: an sshd that has not noticed it would hold the ports.
    std::filesystem::path memory;
    Patience patience;
    std::function<void(TunnelState const&)> told; // on the thread of run(), only when something has changed
};

/// Owns the connection, on the thread that calls run(). stop() may be called from any thread.
class Tunnel {
public:
    explicit Tunnel(TunnelOptions options);
    ~Tunnel();

    /// Until stop(). Waits 0, 1, 2, 4, 8 s between attempts, from 0 again once it has listened for a minute.
    void run();
    void stop();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// The program there that serves a session: its sshd.
struct SshServer {
    std::string boot;
    int pid = 0;
    std::uint64_t start = 0;
};
/// Nothing where the Host does not tell (hidden processes).
Result<std::optional<SshServer>> server_of(SshSession& session);
/// The one that a tunnel noted last.
std::optional<SshServer> remembered_server(std::filesystem::path const& memory);
/// Ends an earlier one by its identity, if it still lives, and waits until it is gone. Errors: Denied, Timeout.
Result<void> end_server(SshSession& session, SshServer const& server);

} // namespace ocrctl::remote
