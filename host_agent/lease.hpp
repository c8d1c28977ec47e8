// The lease: an agent that hears nothing from its server for too long stops everything. Internal to the host agent.
#pragma once

#include "host_agent/agent_state.hpp"

#include <cstdint>

namespace ocrctl::host_agent {

/// Lives on the io thread. Kept on disk with the boot it belongs to, on a clock that counts while the machine is
/// suspended.
class Lease {
public:
    explicit Lease(AgentState& agent) : agent_(agent) {}

    /// Its full length from now. Written to disk only when that differs enough.
    void renew();
    /// What an earlier agent wrote, if in this boot; else a full one.
    void load();
    /// Returns when it has ended.
    awaitable<void> ended();

private:
    AgentState& agent_;
    std::int64_t end_ = 0, saved_ = 0;
};

} // namespace ocrctl::host_agent
