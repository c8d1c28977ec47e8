// One unit as the agent sees it, and what it needs of its surroundings. Internal to the host agent.
#pragma once

#include "lib/async/event.hpp"
#include "lib/model/unit.hpp"
#include "lib/process/process.hpp"

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::host_agent {

using SteadyClock = std::chrono::steady_clock;

/// Lives on the io thread. Shared by the coroutine that supervises it, those of its running process, and its session.
struct Unit {
    UnitSpec spec;
    std::optional<UnitSpec> next; // takes over once the running process has ended
    bool removed = false;         // not wanted any more: stop, then forget
    bool held = false;            // told to stop: not started until the next desired state
    bool done = false;            // ended, and not to be restarted
    bool recorded = false;        // the ledger has an intent of it that is not yet stopped
    bool stuck = false;           // it could not be ended

    UnitState state = UnitState::Waiting;
    Millis since = now_millis();
    int restarts = 0;
    std::string detail, job;
    std::string last_exit; // the detail of the last exit that was not asked for
    std::int64_t jobs_done = 0;

    // Of the running process.
    int incarnation = 0;
    bool running = false;
    std::optional<process::Identity> identity;
    Fd pidfd;
    std::optional<process::ExitStatus> exit; // set by its watcher
    bool ready = false, hello = false;
    bool late = false;  // killed because it was not ready in time
    bool beats = false; // its Worker promised a sign of life every few seconds
    int silent = 0;     // ticks of our own without one (worker_channel.hpp)
    bool hung = false;  // killed because there was none
    SteadyClock::time_point started{}, ready_since{};
    std::uintmax_t log_start = 0;

    // Of the next start.
    bool served = false;    // what it needs elsewhere accepted connections just now
    int failures = 0;
    bool was_ready = false; // the last process had been ready
    SteadyClock::time_point retry{};
    bool leftovers = false; // something of an earlier process may still live

    // Of stopping: how long it may finish its task, then how long after TERM.
    std::optional<SteadyClock::time_point> drain_until;
    std::optional<std::chrono::milliseconds> grace;

    std::function<bool(Json const&)> to_worker; // set while its Worker is connected

    bool unwanted() const noexcept { return removed || held || next.has_value(); }
};
using UnitPtr = std::shared_ptr<Unit>;

/// 0, 1, 2, 4 ... 30 s after the first, second, third ... failure in a row.
std::chrono::seconds restart_delay(int failures);

} // namespace ocrctl::host_agent
