// Starting what a host's desired state names, once and from outside: for hosts without an agent. Nothing of ours stays.
#pragma once

#include "lib/base/error.hpp"
#include "lib/model/unit.hpp"

#include <chrono>
#include <filesystem>
#include <string>

namespace ocrctl::hostops {

/// Whom the lock of HOSTDIR (agent.lock) names while a start is at work.
inline constexpr char kStartHolder[] = "host start";

/// Makes the units of the host what HOSTDIR/desired.json names: what runs as it shall is left alone, what runs
/// otherwise or is not wanted ends, what is missing is started, as an agent would do it (host ledger, marks, log).
/// Returns when each unit answers or has ended; one that does not answer in its time is ended, one that still may when
/// `limit` is over goes on and is told as starting. A unit that ended is told with its last words and not started
/// again: the next call does. Blocks; may be killed at any point, the next call goes on from there.
///
/// Errors: NotFound (no desired state); Conflict (the host is closing, or it has an agent); Unavailable (the ledger
/// cannot be written). Another call that is at work on this folder is ended: it belongs to a deploy that has gone.
Result<HostReport> start(std::filesystem::path const& host_dir, std::chrono::milliseconds limit);

} // namespace ocrctl::hostops
