// What the parts of the host agent share: its folder, its ledger, what is wanted of it, and whether it is closing.
// Internal.
#pragma once

#include "host_agent/agent.hpp"
#include "host_agent/agent_unit.hpp"
#include "lib/async/event.hpp"
#include "lib/async/task_group.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/log/fields.hpp"
#include "lib/model/unit.hpp"

#include <optional>
#include <string>
#include <vector>

namespace ocrctl::host_agent {

/// Lives on the io thread and outlives all parts. Whoever changes what a report shows calls notify().
struct AgentState {
    explicit AgentState(AgentOptions given);

    AgentOptions options;
    ledger::HostPaths paths;
    log::Logger log{"agent"};
    asio::io_context io{1};
    TaskGroup tasks{io.get_executor(), "agent"};
    Event changed_event{io.get_executor()};
    std::optional<ledger::Ledger> book; // opened before anything else is done

    DesiredState desired;
    bool closing = false;      // nothing is started any more
    bool ending = false;       // the lease is over: as closing, and then this process ends
    bool quitting = false;     // this process ends, units go on
    std::uint64_t version = 0; // of the report

    void notify();
    /// Until something changed, or the time has come. The caller looks at its own condition again.
    awaitable<void> changed(std::optional<SteadyClock::time_point> until = {});
    /// False if the ledger cannot be written, which is logged.
    bool record(ledger::Record line);
    /// Closing, ending or quitting; also looks for the marker of a kill-all that did not reach our socket.
    bool no_starts();
    /// Nothing is started from now on: marker and ledger record are on disk.
    void close_deployment();
};

/// What a connection may ask of the agent as a whole.
class AgentCommands {
public:
    virtual ~AgentCommands() = default;
    /// Takes over a desired state. Invalid; Conflict: an older generation, another deployment, or closing.
    virtual Result<void> apply(DesiredState wanted) = 0;
    /// Anything heard from the server renews the lease.
    virtual void renew_lease() = 0;
    /// This process ends, units go on.
    virtual void quit() = 0;
};

/// Workers first, tunnels last: the order in which kinds are ended.
std::vector<std::vector<UnitKind>> const& tiers();

} // namespace ocrctl::host_agent
