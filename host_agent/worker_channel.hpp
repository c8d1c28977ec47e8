// What Workers and their agent say to each other on the control socket. Internal to the host agent.
//
//     Worker -> agent   {"op":"hello","slot"}  {"op":"state","state","detail","job","pages","pages_done","jobs_done"}
//     agent -> Worker   {"op":"assign","assignment"}  {"op":"cancel","job"}  {"op":"drain"}
#pragma once

#include "host_agent/control_session.hpp"
#include "host_agent/supervisor.hpp"

namespace ocrctl::host_agent {

/// Lives on the io thread. Keeps nothing itself: what a Worker says goes into its unit.
class WorkerChannel {
public:
    WorkerChannel(AgentState& agent, Supervisor& supervisor) : agent_(agent), supervisor_(supervisor) {}

    /// A Worker names its slot: it gets its assignment, or is told to end if it is not the process that we know there.
    void hello(SessionPtr const& session, Json const& request);
    /// What it is doing.
    void state(SessionPtr const& session, Json const& request);
    /// Tells the Worker of this slot to give up a Job; false if none is connected.
    bool cancel(std::string const& slot, std::string const& job);

private:
    AgentState& agent_;
    Supervisor& supervisor_;
};

} // namespace ocrctl::host_agent
