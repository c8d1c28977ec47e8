// Processes of this machine: who they are, starting, signalling and ending them. A pid alone names nobody (it is used
// again), so everything goes by Identity. Free functions, thread-safe; those that block say so.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/base/error.hpp"
#include "lib/base/files.hpp"
#include "lib/model/json.hpp"

#include <chrono>
#include <compare>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ocrctl::process {

/// Environment variables that everything we start carries; how a process is found whose identity was never written.
inline constexpr char kDeploymentMark[] = "OCRCTL_DEPLOYMENT";
inline constexpr char kHostMark[] = "OCRCTL_HOST";
inline constexpr char kEntryMark[] = "OCRCTL_ENTRY";

/// A process for ever: boot id, pid, start time in clock ticks since boot.
struct Identity {
    std::string boot;
    int pid = 0;
    std::uint64_t start = 0;
    friend auto operator<=>(Identity const&, Identity const&) = default;
};
void to_json(Json& json, Identity const& identity);
void from_json(Json const& json, Identity& identity);

/// The id of this boot of this machine.
std::string const& boot_id();

/// Nothing if no such process lives (a zombie is dead).
std::optional<Identity> identity_of(int pid);
Identity own_identity();
bool alive(Identity const& identity);

/// One row of the process table.
struct Row {
    Identity identity;
    int parent = 0, group = 0, session = 0;
    char state = '?';
    std::string command; // as in /proc/PID/comm, at most 15 characters
};
std::optional<Row> row_of(int pid);
/// Every process, zombies too.
std::vector<Row> table();

struct Marks {
    std::string deployment, host, entry;
};
/// What a process carries; empty texts if it cannot be read or carries none.
Marks marks_of(int pid);

/// How a process ended.
struct ExitStatus {
    bool known = false; // not a child of ours: gone is all we know
    int code = 0;       // exit code, if signal is 0
    int signal = 0;
    bool success() const noexcept { return known && signal == 0 && code == 0; }
    /// "ended with code 1", "was killed by SIGKILL (9)", "ended (exit code unknown)"
    std::string text() const;
};

struct SpawnOptions {
    std::vector<std::string> argv; // argv[0] is looked up in PATH
    std::map<std::string, std::string> env;
    bool inherit_env = true; // false: env alone
    std::filesystem::path cwd;
    std::optional<std::string> input;     // stdin; nothing: /dev/null
    std::filesystem::path log;            // stdout and stderr are appended to this file (0640); empty: /dev/null
    bool pipe_output = false, pipe_errors = false; // read ends in Child instead
    std::map<int, int> fds;               // descriptor in the child (3 and up) -> ours; all others are closed
    bool new_session = true;              // false: only a process group of its own, in our session
    std::filesystem::path executable;     // runs this file instead of looking argv[0] up
};

/// A started process: owned by who holds it, must be waited for (wait, try_reap) or it stays a zombie until we end.
struct Child {
    Identity identity;
    Fd pidfd;
    Fd output, errors;
};

/// Starts a program in its own session (so pid == group == session), without copying this process (posix_spawn), all
/// signals at their defaults. NotFound: no such program or folder; Denied: not executable.
Result<Child> spawn(SpawnOptions const& options);

/// A pidfd for a process that is surely the one meant; NotFound if it has ended.
Result<Fd> open_pidfd(Identity const& identity);

/// Until the process behind the pidfd has ended; a child is reaped.
awaitable<ExitStatus> wait(int pidfd);
/// The same, blocking, for at most `limit`: nothing if it still runs then.
std::optional<ExitStatus> wait_for(int pidfd, std::chrono::milliseconds limit);

/// Reaps children that nobody started here: orphans handed to us as their subreaper. Call it on SIGCHLD.
void reap_strays();

/// To the group it leads, or to it alone if it leads none. NotFound if it has ended.
Result<void> signal_group(Identity const& identity, int signal);
Result<void> signal_one(Identity const& identity, int signal);

/// A process to end, with everything of its session, and everything that carries its marks if they are given.
struct StopTarget {
    std::optional<Identity> identity; // nothing: by marks alone (its identity was never written)
    Marks marks;                      // deployment and entry must both be given to count; host may be empty
    bool ask = true;                  // false: SIGTERM (or another way) was used already, only wait, then KILL
};
struct StopOutcome {
    std::vector<Row> left; // what could not be ended (another user's, or unkillable in the kernel)
};
/// Ends all, in parallel: TERM to each group, up to `grace` until they are gone, TERM and KILL to what remains of them
/// (children that outlived their parent too), verified. Blocks for at most grace + about 5 s.
StopOutcome stop_processes(std::vector<StopTarget> const& targets, std::chrono::milliseconds grace);
StopOutcome stop_processes(std::vector<Identity> const& identities, std::chrono::milliseconds grace);

/// A live process that carries a deployment's mark.
struct Found {
    Identity identity;
    std::string host, entry, command;
};
void to_json(Json& json, Found const& found);
void from_json(Json const& json, Found& found);

/// Every live process of a deployment (of one of its hosts, if given), except this one and, unless they are asked for,
/// those of its ancestors that are ocrctl commands.
enum class Ancestors { Excluded, Included };
std::vector<Found> scan(std::string_view deployment, std::string_view host = "", Ancestors ancestors = Ancestors::Excluded);

/// Ids of deployments that live processes carry which belong to a state folder: their program, the folder they were
/// given by --state, or their agent's socket lies there. For when nothing but the processes says which deployment it was.
std::vector<std::string> deployments_below(std::filesystem::path const& folder);

/// "error while loading shared libraries: libX.so.5: ..." in a program's output: the sentence that names the library
/// and the Debian package to install. Nothing if the text does not say so.
std::optional<std::string> missing_library(std::string_view output);

} // namespace ocrctl::process
