// From a config file to everything running: the one entry for `ocrctl deploy`.
#pragma once

#include "deployer/plan.hpp"

#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace ocrctl::deployer {

struct DeployOptions {
    std::filesystem::path config;
    std::filesystem::path state;                 // "" = as the config says, or the default
    std::chrono::seconds limit{300};             // for everything to become READY
    std::function<void(std::string const&)> say; // a progress line; calls are serialised
};

struct HostOutcome {
    std::string host;
    std::size_t workers = 0;  // READY
    std::optional<Error> error;
};

struct DeployReport {
    std::string id, name;
    std::filesystem::path state;
    std::string server, queue; // addresses
    std::vector<HostOutcome> hosts;
    double seconds = 0;
    bool complete() const;     // every Host is as it shall be
};

/// Takes the wanted Plan and the ledgers and makes the difference happen; returns when all is READY, or a Host has
/// failed and the others are READY. Run again, it converges. Errors (nothing was started): Usage (config), Conflict (the
/// lock is held: by whom; a port is in use; a kill-all is unfinished), Unavailable (RabbitMQ is not installed, ...).
Result<DeployReport> deploy(DeployOptions const& options);

/// The state folder that a deploy with these options would use. Usage: the config is wrong.
Result<std::filesystem::path> state_of(DeployOptions const& options);

struct PlanReport {
    std::string name;
    std::filesystem::path state;
    std::vector<Change> steps;
    std::vector<std::string> problems; // pre-flight: what would stop a deploy
    bool changed = false;
};
/// What deploy would do; changes nothing, takes no lock. Looks at this machine and, with `reach_hosts`, at the others.
Result<PlanReport> plan(DeployOptions const& options, bool reach_hosts);

} // namespace ocrctl::deployer
