// What is left to do for a Job, and what a result means for it. Pure.
#pragma once

#include "lib/mets/mets.hpp"
#include "lib/model/task.hpp"

#include <chrono>
#include <optional>
#include <string>

namespace ocrctl::server {

inline constexpr double kMaxMissing = 0.1; // OCR-D's share of failed pages above which a Job fails
inline constexpr int kMaxRetries = 3;      // further attempts because of transient trouble
inline constexpr int kMaxEngineDeaths = 2; // then a Job is quarantined

/// The pages of the current attempt, without those whose outputs are there already and are kept. Conflict: there are
/// such, and the Job says abort.
Result<std::vector<std::string>> pages_to_do(mets::Mets const& mets, Job const& job);

/// Why a Job with these failed pages has failed: "2 of 20 pages failed: PHYS_0003: no image ..."; "" if it has not.
std::string failure_of(Job const& job);

/// What follows from an accepted result. `job` is the Job afterwards: committed and final (a reason makes it FAILED), or with
/// the next attempt and the pages that are left for it.
struct Decision {
    Job job;
    bool final = true;
    std::chrono::milliseconds wait{0}; // before the next attempt
    mets::RunFiles files;              // of the pages that went well
};
Decision decide(Job const& before, TaskResult const& result);

/// The files of the pages that went well: what is applied to the METS, now or after a restart.
mets::RunFiles run_files(Job const& job, TaskResult const& result);

} // namespace ocrctl::server
