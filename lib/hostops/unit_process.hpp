// A unit becomes a process: what it is started with, the start as the host ledger has it, whether it answers, what its
// end tells. Used by the agent, which goes on looking after it, and by start() (start.hpp), which does not.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/model/unit.hpp"
#include "lib/process/process.hpp"

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::hostops {

/// The host that a unit belongs to.
struct UnitHome {
    ledger::HostPaths paths;
    std::string deployment, host;
    bool agent = true; // its agent's socket is told to it
};

process::Marks unit_marks(UnitHome const& home, UnitSpec const& spec);

/// The marks and what the specification says; the secrets come from their files.
Result<std::map<std::string, std::string>> unit_environment(UnitHome const& home, UnitSpec const& spec);

std::filesystem::path unit_log(UnitHome const& home, UnitSpec const& spec);

/// How far a start got.
struct UnitStart {
    bool recorded = false;               // the ledger has its intent
    std::optional<process::Child> child; // it was started; killed already if there is an error, too
    std::uintmax_t log_start = 0;        // what its log held before
    std::optional<Error> error;
};

/// Starts it in a session of its own: intent on disk, process, identity on disk. A process whose identity cannot be
/// recorded is killed. `crash_points` names those in between: "agent" or "host".
UnitStart start_unit(ledger::Ledger& book, UnitHome const& home, UnitSpec const& spec, std::string_view crash_points);

/// The process that was started as this entry (the leader of its session), among those that a scan found.
std::optional<process::Identity> find_unit(std::vector<process::Found> const& found, std::string_view entry);

/// The last line with text in it that a process wrote to its log since `from`, and its end (at most 8 KiB).
struct LogEnd {
    std::string last_line, text;
};
LogEnd log_end(std::filesystem::path const& log, std::uintmax_t from);

/// What the report says about an exit: "ended with code 1: cannot open port".
std::string exit_detail(process::ExitStatus const& status, LogEnd const& log);

/// The first of these addresses that does not accept a connection and keep it for a moment, "" if all do.
awaitable<std::string> first_silent(std::vector<std::string> addresses);

/// One try whether the process of a unit answers as its Readiness wants (tcp, http, exec, connected).
awaitable<bool> unit_answers(UnitHome home, UnitSpec spec, process::Identity identity);

} // namespace ocrctl::hostops
