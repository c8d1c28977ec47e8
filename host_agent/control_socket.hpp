// The agent's Unix socket: JSON lines from Workers, the Deployer and kill-all. Internal to the host agent.
#pragma once

#include "host_agent/control_session.hpp"
#include "host_agent/worker_channel.hpp"

#include <optional>

namespace ocrctl::host_agent {

/// Lives on the io thread. Requests are {"op": ...}; each but a Worker's own messages gets {"ok": ...}.
class ControlSocket {
public:
    ControlSocket(AgentState& agent, Supervisor& supervisor, WorkerChannel& workers, AgentCommands& commands)
        : agent_(agent), supervisor_(supervisor), workers_(workers), commands_(commands) {}

    /// Only for this user (0600).
    Result<void> listen();
    /// Serves connections until closed.
    awaitable<void> accept();
    /// Takes no more connections; the file is gone.
    void close();

private:
    awaitable<void> serve(SessionPtr session);
    awaitable<void> write_out(SessionPtr session);
    awaitable<void> handle(SessionPtr session, Json request);
    awaitable<void> watch_report(SessionPtr session);

    AgentState& agent_;
    Supervisor& supervisor_;
    WorkerChannel& workers_;
    AgentCommands& commands_;
    std::optional<asio::local::stream_protocol::acceptor> acceptor_;
};

} // namespace ocrctl::host_agent
