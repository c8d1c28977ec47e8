// From everything running to nothing left, from the ledgers alone: neither config nor server nor agents are needed.
#pragma once

#include "lib/base/error.hpp"

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace ocrctl::deployer {

struct KillAllOptions {
    std::filesystem::path state;
    std::chrono::seconds grace{10};              // for Workers to finish what they are at, and between TERM and KILL
    bool purge = false;                          // data, logs and ledgers, too
    std::function<void(std::string const&)> say; // a progress line
};

struct KillAllReport {
    std::string name;
    bool nothing_to_do = false;
    std::size_t hosts = 0;             // verified empty
    std::vector<std::string> left;     // "ocr1: pid 4711 (beam.smp, queue)"
    std::vector<std::string> unreachable; // a sentence for each Host that could not be asked
    std::filesystem::path removed;        // by purge
    double seconds = 0;
    bool clean() const noexcept { return left.empty() && unreachable.empty(); }
};

/// Marks the deployment as closing (nobody starts anything from then on), takes the deploy lock over, then in this order:
/// intake, Workers, agents, server, database, queue, tunnels; then looks at every Host for what carries the deployment's
/// mark. May be killed and run again at any point; what was done stays done. Errors: NotFound (no deployment there).
/// The proof does not rest on the central Ledger: host folders below STATE/hosts and marked processes of this machine count, too.
Result<KillAllReport> kill_all(KillAllOptions const& options);

/// Does a process of this machine carry the mark of the deployment that is (or was) kept in this folder?
bool still_runs(std::filesystem::path const& state);

} // namespace ocrctl::deployer
