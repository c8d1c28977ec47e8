// What becomes of the files of a run before it is reported. Internal to lib/engine.
#pragma once

#include "lib/engine/engine.hpp"

namespace ocrctl::engine {

/// Flushes the files of an outcome in the staging folder and fills in size and digest where they are missing. A file that is
/// not there makes the page fail.
void settle(PageOutcome& outcome, std::filesystem::path const& staging, bool flushed);

/// The end of a log, at most 64 KiB, beginning at a line.
void append_log(std::string& log, std::string_view more);

/// "the deadline passed", from now; nothing if there is none or it is far away.
std::chrono::milliseconds until_deadline(Task const& task);

/// What the rest of a Task's pages get when it ends early.
void fail_rest(TaskResult& result, Task const& task, std::string const& reason);

} // namespace ocrctl::engine
