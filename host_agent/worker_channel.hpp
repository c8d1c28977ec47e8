// What Workers and their agent say to each other on the control socket. Internal to the host agent.
//
//     Worker -> agent   {"op":"hello","slot","beats"}
//     {"op":"state","state","detail","job","pages","pages_done","jobs_done"}  {"op":"beat"} agent -> Worker
//     {"op":"assign","assignment"}  {"op":"cancel","job"}  {"op":"drain"}
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
    /// It lives.
    void beat(SessionPtr const& session);
    /// Has Workers ended that promised signs of life and give none: stopped ones, and those whose thread hangs. Until
    /// the agent quits.
    ///
    /// Silence is counted in ticks of the agent's own, each worth the same however long it took: what passes while the
    /// agent is stopped, starved or suspended together with its Workers is one tick. A busy engine is another process
    /// and delays no beat.
    awaitable<void> watch_silence();
    /// Tells the Worker of this slot to give up a Job; false if none is connected.
    bool cancel(std::string const& slot, std::string const& job);

private:
    AgentState& agent_;
    Supervisor& supervisor_;
};

} // namespace ocrctl::host_agent
