// The agent's connection to the processing server: it dials out, reports, and takes the desired state. Internal to the
// host agent.
#pragma once

#include "host_agent/worker_channel.hpp"
#include "lib/net/websocket.hpp"

#include <memory>
#include <string>

namespace ocrctl::host_agent {

/// Lives on the io thread. One WebSocket at a time; a lost one is dialled again with a delay of up to 2 s.
class ServerLink {
public:
    ServerLink(AgentState& agent, Supervisor& supervisor, WorkerChannel& workers, AgentCommands& commands)
        : agent_(agent), supervisor_(supervisor), workers_(workers), commands_(commands) {}

    /// Until the agent quits.
    awaitable<void> dial();

private:
    awaitable<void> report_to(std::shared_ptr<net::WebSocket> socket, std::string server);
    void from_server(std::string const& text);

    AgentState& agent_;
    Supervisor& supervisor_;
    WorkerChannel& workers_;
    AgentCommands& commands_;
};

} // namespace ocrctl::host_agent
