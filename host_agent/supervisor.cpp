#include "host_agent/supervisor.hpp"

#include "lib/async/on_thread.hpp"
#include "lib/async/within.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <csignal>
#include <unistd.h>
#include <utility>

namespace ocrctl::host_agent {

namespace fs = std::filesystem;
namespace field = log::field;
using log::kv;
using std::chrono::milliseconds;
using std::chrono::seconds;
using namespace std::chrono_literals;

namespace {

awaitable<void> reap(process::Child child) {
    (void)co_await process::wait(child.pidfd.get());
}

/// A unit that is to be something else starts anew; a Worker's assignment alone is told to it.
void adapt(Unit& unit, UnitSpec const& spec) {
    unit.next.reset();
    auto but_assigned = unit.spec;
    but_assigned.assignment = spec.assignment;
    if (Json(but_assigned) != Json(spec)) {
        unit.next = spec;
        return;
    }
    if (unit.spec.assignment == spec.assignment) return;
    if (unit.spec.kind != UnitKind::Worker) {
        unit.next = spec;
        return;
    }
    unit.spec.assignment = spec.assignment;
    if (unit.to_worker) unit.to_worker(Json{{"op", "assign"}, {"assignment", spec.assignment}});
}

} // namespace

// ------------------------------------------------------------------------------------------- small things

void Supervisor::set_state(Unit& unit, UnitState state, std::string detail) {
    if (unit.state == state && unit.detail == detail) return;
    if (unit.state != state) unit.since = now_millis();
    unit.state = state;
    unit.detail = std::move(detail);
    agent_.log.info(fmt::format("unit.{}", wire(state)), kv(field::kEntry, unit.spec.entry),
                    kv(field::kPid, unit.identity ? unit.identity->pid : 0), kv("detail", unit.detail));
    agent_.notify();
}

hostops::UnitHome Supervisor::home() const {
    return {agent_.paths, agent_.desired.deployment, agent_.desired.host};
}

process::Marks Supervisor::marks(Unit const& unit) const {
    return hostops::unit_marks(home(), unit.spec);
}

UnitPtr Supervisor::find(std::string const& entry) const {
    auto place = units_.find(entry);
    return place == units_.end() ? nullptr : place->second;
}

HostReport Supervisor::report() const {
    HostReport report;
    report.deployment = agent_.desired.deployment;
    report.host = agent_.desired.host;
    report.agent_build = agent_.options.build;
    report.boot_id = process::boot_id();
    report.agent_pid = ::getpid();
    report.generation = agent_.desired.generation;
    report.closing = agent_.closing || agent_.ending;
    for (auto const& [entry, unit] : units_) {
        UnitReport row;
        row.entry = entry;
        row.kind = unit->spec.kind;
        row.state = unit->state;
        row.pid = unit->running && unit->identity ? unit->identity->pid : 0;
        row.since = unit->since;
        row.restarts = unit->restarts;
        row.detail = unit->detail;
        row.last_exit = unit->last_exit;
        row.job = unit->job;
        row.jobs_done = unit->jobs_done;
        if (unit->spec.assignment.is_object() && unit->spec.assignment.contains("processor") &&
            unit->spec.assignment["processor"].is_string())
            row.processor = unit->spec.assignment["processor"];
        report.units.push_back(std::move(row));
    }
    return report;
}

// ------------------------------------------------------------------------------------------- one unit's life

namespace {

/// Until the unit is to end or to be started in another way.
awaitable<void> not_wanted(AgentState& agent, UnitPtr unit) {
    while (!unit->unwanted()) co_await agent.changed();
}

} // namespace

awaitable<void> Supervisor::supervise(UnitPtr unit) {
    using namespace asio::experimental::awaitable_operators;
    for (;;) {
        if (agent_.quitting) co_return;
        if (unit->running) {
            if (unit->exit) {
                after_exit(*unit);
                continue;
            }
            if (unit->unwanted() || unit->hung) {
                co_await end(unit);
                continue;
            }
            auto& ready = unit->spec.ready;
            bool waits = ready.kind == "report" ? !unit->hello : !unit->ready;
            auto limit = unit->started + seconds(ready.timeout_s);
            if (waits && ready.timeout_s > 0 && SteadyClock::now() >= limit) {
                unit->late = true;
                co_await end(unit);
                continue;
            }
            co_await agent_.changed(waits && ready.timeout_s > 0 ? std::optional(limit) : std::nullopt);
            continue;
        }
        if (unit->leftovers) {
            unit->leftovers = false;
            auto target = process::StopTarget{std::nullopt, marks(*unit), true};
            auto outcome = co_await stop_now(std::move(target), 1s);
            if (!outcome.left.empty())
                agent_.log.warn("unit.leftovers", kv(field::kEntry, unit->spec.entry),
                                kv(field::kPid, outcome.left.front().identity.pid));
            continue;
        }
        if (unit->recorded && unit->unwanted()) {
            agent_.record(ledger::stopped(unit->spec.entry));
            for (auto const& path : unit->spec.remove) remove_tree(path);
            unit->recorded = false;
            set_state(*unit, UnitState::Stopped, unit->detail);
            agent_.notify();
            continue;
        }
        if (unit->removed) {
            auto place = units_.find(unit->spec.entry);
            if (place != units_.end() && place->second == unit) units_.erase(place);
            agent_.notify();
            co_return;
        }
        if (unit->next) {
            unit->spec = std::move(*unit->next);
            unit->next.reset();
            unit->failures = 0;
            unit->retry = {};
            unit->done = false;
            set_state(*unit, UnitState::Waiting, "");
            continue;
        }
        if (unit->held || agent_.no_starts()) {
            if (unit->state != UnitState::Failed) set_state(*unit, UnitState::Stopped, unit->detail);
            co_await agent_.changed();
            continue;
        }
        if (unit->done) {
            co_await agent_.changed();
            continue;
        }
        if (auto missing = unmet(*unit); !missing.empty()) {
            if (unit->failures == 0) set_state(*unit, UnitState::Waiting, fmt::format("waits for {}", missing));
            co_await agent_.changed();
            continue;
        }
        if (SteadyClock::now() < unit->retry) {
            co_await agent_.changed(unit->retry);
            continue;
        }
        if (!unit->spec.needs_tcp.empty() && !std::exchange(unit->served, false)) {
            auto asked = co_await (hostops::first_silent(unit->spec.needs_tcp) || not_wanted(agent_, unit));
            if (asked.index() == 1) continue;
            auto silent = std::get<0>(asked);
            unit->served = silent.empty();
            if (unit->served) continue; // much may have changed meanwhile
            set_state(*unit, UnitState::Waiting, fmt::format("waits for {}", silent));
            co_await agent_.changed(SteadyClock::now() + 500ms);
            continue;
        }
        start(unit);
    }
}

std::string Supervisor::unmet(Unit const& unit) const {
    for (auto const& entry : unit.spec.needs) {
        auto place = units_.find(entry);
        if (place == units_.end() || !place->second->ready || place->second->removed) return entry;
    }
    return "";
}

void Supervisor::failed_start(Unit& unit, Error const& error) {
    ++unit.failures;
    ++unit.restarts;
    unit.retry = SteadyClock::now() + std::max(1s, restart_delay(unit.failures));
    set_state(unit, UnitState::Failed, error.message());
}

void Supervisor::start(UnitPtr const& unit) {
    auto start = hostops::start_unit(*agent_.book, home(), unit->spec, "agent");
    unit->recorded |= start.recorded;
    if (!start.child) return failed_start(*unit, *start.error);
    unit->log_start = start.log_start;
    unit->identity = start.child->identity;
    unit->pidfd = std::move(start.child->pidfd);
    begin(unit);
    set_state(*unit, UnitState::Starting, "");
    if (start.error) { // it was killed, since the ledger cannot be written
        agent_.log.error("ledger.failed", kv(field::kError, start.error->message()));
        unit->late = true;
        return;
    }
    if (unit->spec.ready.kind == "started") mark_ready(*unit);
}

/// A process of this unit runs: watch it, and ask whether it is ready.
void Supervisor::begin(UnitPtr const& unit) {
    ++unit->incarnation;
    unit->running = true;
    unit->exit.reset();
    unit->ready = unit->hello = unit->late = unit->was_ready = unit->stuck = unit->beats = unit->hung = false;
    unit->silent = 0;
    unit->to_worker = nullptr;
    unit->job.clear();
    unit->started = SteadyClock::now();
    agent_.tasks.spawn("watch " + unit->spec.entry, watch(unit, unit->incarnation));
    auto const& kind = unit->spec.ready.kind;
    if (kind != "started" && kind != "report")
        agent_.tasks.spawn("probe " + unit->spec.entry, probe(unit, unit->incarnation));
}

awaitable<void> Supervisor::watch(UnitPtr unit, int incarnation) {
    auto status = co_await process::wait(unit->pidfd.get());
    if (unit->incarnation != incarnation) co_return;
    unit->exit = status;
    agent_.notify();
}

awaitable<void> Supervisor::probe(UnitPtr unit, int incarnation) {
    auto current = [&] { return unit->incarnation == incarnation && unit->running && !unit->exit && !unit->ready; };
    auto delay = 20ms;
    while (current()) {
        auto answered = co_await hostops::unit_answers(home(), unit->spec, *unit->identity);
        if (!current()) co_return;
        if (answered) {
            mark_ready(*unit);
            co_return;
        }
        co_await pause(delay);
        delay = std::min(delay * 2, milliseconds(500));
    }
}

void Supervisor::mark_ready(Unit& unit) {
    if (!unit.ready) {
        unit.ready = unit.was_ready = true;
        unit.ready_since = SteadyClock::now();
        agent_.record(ledger::ready(unit.spec.entry));
        crash_point("agent.after-ready");
    }
    if (unit.state != UnitState::Stopping) set_state(unit, UnitState::Ready, "");
}

void Supervisor::after_exit(Unit& unit) {
    auto status = *unit.exit;
    auto detail = hostops::exit_detail(status, hostops::log_end(hostops::unit_log(home(), unit.spec), unit.log_start));
    if (unit.late) detail = fmt::format("was not ready within {} s", unit.spec.ready.timeout_s);
    if (unit.hung)
        detail = fmt::format("gave no sign of life for {} s and was killed",
                             std::chrono::ceil<seconds>(agent_.options.silence).count());
    agent_.record(ledger::exited(unit.spec.entry, detail));
    bool healthy = unit.was_ready && SteadyClock::now() - unit.ready_since >= 60s;
    bool worked = unit.was_ready && !unit.late;
    unit.running = unit.ready = false;
    unit.exit.reset();
    unit.identity.reset();
    unit.pidfd.close();
    unit.to_worker = nullptr;
    unit.job.clear();
    unit.drain_until.reset();
    unit.leftovers = true;
    if (unit.unwanted()) {
        set_state(unit, UnitState::Stopped, "");
    } else if (agent_.no_starts()) {
        set_state(unit, UnitState::Stopped, detail);
    } else if (!unit.spec.restart) {
        unit.done = true;
        set_state(unit, status.success() && worked ? UnitState::Stopped : UnitState::Failed, detail);
    } else {
        unit.failures = healthy ? 1 : unit.failures + 1;
        ++unit.restarts;
        unit.last_exit = detail;
        unit.retry = SteadyClock::now() + restart_delay(unit.failures);
        // Once may be chance. Not ready in time, a missing library, three times in a row are not.
        bool hopeless = unit.late || unit.failures >= 3 || detail.starts_with("the shared library");
        set_state(unit, worked || !hopeless ? UnitState::BackOff : UnitState::Failed, detail);
    }
}

awaitable<process::StopOutcome> Supervisor::stop_now(process::StopTarget target, milliseconds grace) {
    ++blocked_;
    auto work = [target = std::move(target), grace] { return process::stop_processes({target}, grace); };
    auto outcome = co_await on_thread(blocking_, std::move(work));
    --blocked_;
    co_return outcome;
}

/// Ends the running process: a Worker finishes its task first, then stop_argv or TERM, then KILL. Its watcher notes
/// the exit; if it cannot be ended, that is reported and tried again.
awaitable<void> Supervisor::end(UnitPtr unit) {
    auto grace = unit->grace.value_or(seconds(unit->spec.grace_s));
    set_state(*unit, UnitState::Stopping,
              unit->late   ? "is not ready in time"
              : unit->hung ? "gives no sign of life"
                           : "");
    bool worker = unit->spec.kind == UnitKind::Worker;
    if (unit->hung) {
        grace = 0ms; // it would not hear us
    } else if (worker && !unit->late && unit->to_worker && unit->to_worker(Json{{"op", "drain"}})) {
        if (!unit->drain_until) unit->drain_until = SteadyClock::now() + grace;
        while (!unit->exit && !unit->hung && SteadyClock::now() < *unit->drain_until)
            co_await agent_.changed(unit->drain_until); // op stop may shorten it
        grace = unit->hung ? 0ms : std::min<milliseconds>(grace, 2s);
    } else if (!unit->spec.stop_argv.empty() && !unit->exit) {
        process::SpawnOptions ask;
        ask.argv = unit->spec.stop_argv;
        if (auto env = hostops::unit_environment(home(), unit->spec)) ask.env = *env;
        ask.cwd = unit->spec.cwd;
        ask.log = hostops::unit_log(home(), unit->spec);
        auto child = process::spawn(ask);
        if (child) {
            agent_.tasks.spawn("stop command", reap(std::move(*child)));
            auto until = SteadyClock::now() + grace;
            while (!unit->exit && SteadyClock::now() < until) co_await agent_.changed(until);
            grace = std::min<milliseconds>(grace, 2s);
        } else {
            agent_.log.warn("stop.command", kv(field::kEntry, unit->spec.entry),
                            kv(field::kError, child.error().message()));
        }
    }
    auto target = process::StopTarget{unit->identity, marks(*unit), true};
    auto outcome = co_await stop_now(std::move(target), grace);
    auto until = SteadyClock::now() + 2s;
    while (!unit->exit && SteadyClock::now() < until) co_await agent_.changed(until);
    if (unit->exit) co_return;
    unit->stuck = true;
    set_state(*unit, UnitState::Stopping,
              fmt::format("pid {} cannot be ended", unit->identity ? unit->identity->pid : 0));
    agent_.notify();
    co_await agent_.changed(SteadyClock::now() + 5s);
}

// ------------------------------------------------------------------------------------------- all units

void Supervisor::reconcile() {
    std::set<std::string> wanted;
    for (auto const& spec : agent_.desired.units) {
        wanted.insert(spec.entry);
        auto& unit = units_[spec.entry];
        if (!unit) {
            unit = std::make_shared<Unit>();
            unit->spec = spec;
            agent_.tasks.spawn("supervise " + spec.entry, supervise(unit));
            continue;
        }
        unit->removed = unit->held = false;
        unit->grace.reset();
        adapt(*unit, spec);
    }
    for (auto& [entry, unit] : units_)
        if (!wanted.contains(entry)) unit->removed = true;
    agent_.notify();
}

awaitable<std::pair<std::vector<std::string>, std::vector<std::string>>>
Supervisor::stop_kinds(std::set<UnitKind> kinds, std::optional<milliseconds> grace) {
    std::vector<std::string> stopped, left;
    for (auto const& tier : tiers()) {
        std::vector<UnitPtr> members;
        for (auto const& [entry, unit] : units_)
            if (kinds.contains(unit->spec.kind) && std::ranges::find(tier, unit->spec.kind) != tier.end())
                members.push_back(unit);
        for (auto const& unit : members) {
            unit->held = true;
            unit->stuck = false;
            if (grace) {
                unit->grace = grace;
                auto until = SteadyClock::now() + *grace;
                unit->drain_until = unit->drain_until ? std::min(*unit->drain_until, until) : until;
            }
        }
        agent_.notify();
        for (auto const& unit : members) {
            while ((unit->running || unit->recorded || unit->leftovers) && !unit->stuck && !agent_.quitting)
                co_await agent_.changed();
            if (unit->running || unit->recorded)
                left.push_back(unit->spec.entry);
            else
                stopped.push_back(unit->spec.entry);
        }
    }
    co_return std::pair(std::move(stopped), std::move(left));
}

} // namespace ocrctl::host_agent
