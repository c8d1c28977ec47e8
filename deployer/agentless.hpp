// Hosts without an agent (`agent: false`): their Workers are started once, by `ocrctl host start` there, and nobody
// looks after them. What that start told is kept in STATE/hosts/H/report.json: all that the server and `plan` know of
// them.
#pragma once

#include "deployer/host_setup.hpp"

#include <chrono>
#include <string>

namespace ocrctl::deployer {

/// Before anything is started there: the Host's record in the central Ledger is open, an agent of an earlier deploy has
/// ended, and the server can know which machine it is.
Result<void> prepare_agentless(SetupContext& context, HostDriver& driver, HostPlan const& plan,
                               std::string const& boot);

struct AgentlessStart {
    std::size_t ready = 0;
    std::optional<Error> error; // of the first that is not ready, with the end of its log
};
/// Starts what is missing and waits until all are READY or have ended. The broker must run. Errors: those of the Host;
/// what is not READY is in the result.
Result<AgentlessStart> start_agentless(ledger::StatePaths const& paths, SetupResult const& host,
                                       std::chrono::milliseconds limit);

/// What the last start told; nothing if there was none.
std::optional<HostReport> agentless_report(ledger::StatePaths const& paths, std::string const& host);

} // namespace ocrctl::deployer
