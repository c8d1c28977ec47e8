// Keeps the units of one host running: starts, watches, restarts with back-off, adopts and ends them. Internal to the
// host agent.
#pragma once

#include "host_agent/agent_state.hpp"
#include "lib/hostops/unit_process.hpp"

#include <boost/asio/thread_pool.hpp>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace ocrctl::host_agent {

/// Lives on the io thread; a few threads of its own wait for processes that are being ended. One coroutine per unit in
/// the agent's TaskGroup. Destroying it ends nothing: the next agent adopts the units.
class Supervisor {
public:
    explicit Supervisor(AgentState& agent) : agent_(agent) {}

    /// Makes the units what the desired state wants: what is new is started, what is not wanted ends.
    void reconcile();

    /// What an earlier agent started and still lives becomes ours; what it began without writing the identity is found
    /// by its marks; what has ended meanwhile is noted.
    Result<void> adopt();

    /// Ends all units of these kinds, tier after tier; gives back the entries that ended and those that could not be
    /// ended.
    awaitable<std::pair<std::vector<std::string>, std::vector<std::string>>>
    stop_kinds(std::set<UnitKind> kinds, std::optional<std::chrono::milliseconds> grace);

    /// The unit answered that it is ready.
    void mark_ready(Unit& unit);
    void set_state(Unit& unit, UnitState state, std::string detail);

    UnitPtr find(std::string const& entry) const; // nothing if there is none
    std::map<std::string, UnitPtr> const& units() const noexcept { return units_; }
    HostReport report() const;
    bool empty() const noexcept { return units_.empty(); }
    /// A process is being ended right now: joining the threads could take as long as its grace.
    bool blocked() const noexcept { return blocked_ > 0; }

private:
    awaitable<void> supervise(UnitPtr unit);
    awaitable<void> watch(UnitPtr unit, int incarnation);
    awaitable<void> probe(UnitPtr unit, int incarnation);
    awaitable<void> end(UnitPtr unit);
    awaitable<process::StopOutcome> stop_now(process::StopTarget target, std::chrono::milliseconds grace);
    void start(UnitPtr const& unit);
    void begin(UnitPtr const& unit);
    void failed_start(Unit& unit, Error const& error);
    void after_exit(Unit& unit);

    std::string unmet(Unit const& unit) const;
    process::Marks marks(Unit const& unit) const;
    hostops::UnitHome home() const;

    AgentState& agent_;
    asio::thread_pool blocking_{4}; // ending processes waits for them
    int blocked_ = 0;               // such waits under way
    std::map<std::string, UnitPtr> units_;
};

} // namespace ocrctl::host_agent
