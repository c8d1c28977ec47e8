// What is done to a host's state folder from outside its agent, whether that lives or not: closing it, stopping what its
// ledger names, proving that nothing is left, clearing it away. `ocrctl host ...` runs these over SSH; the Deployer calls
// them for its own machine. All functions block; each may be called again after a crash and goes on from there.
#pragma once

#include "lib/base/error.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/model/unit.hpp"
#include "lib/process/process.hpp"

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::hostops {

/// Nothing is started on this host any more: marker and ledger record are on disk, a living agent knows it.
Result<void> close(std::filesystem::path const& host_dir);

struct StopReport {
    std::vector<std::string> stopped; // entries that are gone for certain and noted as stopped (also by earlier calls' kills)
    std::vector<std::string> left;    // entries that could not be ended
};
void to_json(Json& json, StopReport const& report);
void from_json(Json const& json, StopReport& report);

/// Ends every unit of these kinds, Workers first, tunnels last; UnitKind::Agent means the agent itself (it goes after the Workers,
/// leaving other units alone). Through the agent while it lives (Workers finish their task within `grace`), by identity
/// from the host ledger otherwise. Close first, or an agent that is being started elsewhere may start them again.
Result<StopReport> stop(std::filesystem::path const& host_dir, std::vector<UnitKind> const& kinds, std::chrono::milliseconds grace);

/// Ends these by what the ledger says of them (identity, and marks), and notes it there.
void stop_entries(ledger::Ledger& book, std::vector<ledger::Entry> const& entries, std::chrono::milliseconds grace, StopReport& report);

struct ScanReport {
    std::vector<process::Found> processes;
    std::vector<std::string> sockets; // that still exist
};
void to_json(Json& json, ScanReport const& report);
void from_json(Json const& json, ScanReport& report);

/// What is left of a deployment on this host.
ScanReport scan(std::filesystem::path const& host_dir, std::string_view deployment, std::string_view host);

/// Sends one line to the agent and hands on the lines that come back: one, or for "watch" all until it ends.
Result<void> control(std::filesystem::path const& host_dir, std::string_view request, std::function<void(std::string_view)> const& reply);

/// Removes all but logs, data and the ledger (archived as ledger-<time>.jsonl). Conflict while something of the deployment is
/// running here. A folder that is empty then goes, too.
Result<void> clean(std::filesystem::path const& host_dir, std::string_view deployment, std::string_view host);

/// "worker,server" to kinds; Usage for an unknown name. "all" names every kind.
Result<std::vector<UnitKind>> parse_kinds(std::string_view text);

} // namespace ocrctl::hostops
