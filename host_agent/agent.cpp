#include "host_agent/agent.hpp"

#include "host_agent/agent_unit.hpp"
#include "lib/async/on_thread.hpp"
#include "lib/async/task_group.hpp"
#include "lib/async/within.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/log/fields.hpp"
#include "lib/net/url.hpp"
#include "lib/net/websocket.hpp"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/write.hpp>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <deque>
#include <map>
#include <set>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl::host_agent {
namespace {

namespace fs = std::filesystem;
namespace field = log::field;
using asio::local::stream_protocol;
using log::kv;
using process::Identity;
using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::seconds;
using namespace std::chrono_literals;
using namespace asio::experimental::awaitable_operators;

constexpr std::size_t kLongestLine = 32U << 20; // a desired state of some thousand units

/// The clock of the lease: it counts while the machine is suspended, and nobody sets it.
std::int64_t boot_clock_ms() {
    timespec now{};
    ::clock_gettime(CLOCK_BOOTTIME, &now);
    return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
}

/// One connection on the control socket. Shared by its reader, its writer and the unit of its Worker.
struct Session {
    Session(stream_protocol::socket peer, asio::any_io_executor executor) : socket(std::move(peer)), wake(std::move(executor)) {}
    stream_protocol::socket socket;
    std::deque<std::string> out;
    Event wake; // something to write, everything written, or closed
    bool open = true;
    std::string slot; // of the Worker at the other end

    void send(Json const& json) {
        if (!open) return;
        out.push_back(dump(json) + "\n");
        wake.notify_all();
    }
    void close() {
        open = false;
        boost::system::error_code ignored;
        socket.close(ignored);
        wake.notify_all();
    }
};
using SessionPtr = std::shared_ptr<Session>;

Json reply_error(Error const& error) { return Json{{"ok", false}, {"error", error.message()}, {"kind", name(error.kind())}}; }

/// Workers first, tunnels last: the order in which kinds are ended.
std::vector<std::vector<UnitKind>> const& tiers() {
    static std::vector<std::vector<UnitKind>> const order{{UnitKind::Worker, UnitKind::ForeignWorker},
                                                          {UnitKind::Agent},
                                                          {UnitKind::Server},
                                                          {UnitKind::Database},
                                                          {UnitKind::Queue},
                                                          {UnitKind::Tunnel}};
    return order;
}

} // namespace

struct Agent::Impl {
    explicit Impl(AgentOptions given) : options(std::move(given)), paths{fs::absolute(options.host_dir).lexically_normal()} {}

    AgentOptions options;
    ledger::HostPaths paths;
    log::Logger log{"agent"};
    asio::io_context io{1};
    asio::thread_pool blocking{4}; // ending processes waits for them
    int blocked = 0;               // such waits under way
    TaskGroup tasks{io.get_executor(), "agent"};
    Event changed_event{io.get_executor()};
    asio::steady_timer farewell{io};
    std::optional<ledger::LockFile> lock;
    std::optional<ledger::Ledger> book;
    std::optional<stream_protocol::acceptor> acceptor;
    std::optional<asio::signal_set> signals, children;

    DesiredState desired;
    std::map<std::string, UnitPtr> units;
    bool closing = false;  // nothing is started any more
    bool ending = false;   // the lease is over: as closing, and then this process ends
    bool quitting = false; // this process ends, units go on
    std::int64_t lease_end = 0, lease_saved = 0;
    std::uint64_t version = 0; // of the report
    std::string connected_to;  // server, while connected
    std::optional<Error> failure;

    // ------------------------------------------------------------------------------------------- small things

    void notify() {
        ++version;
        changed_event.notify_all();
    }

    /// Until something changed, or the time has come. The caller looks at its own condition again.
    awaitable<void> changed(std::optional<SteadyClock::time_point> until = {}) {
        if (!until) {
            co_await changed_event.wait();
            co_return;
        }
        asio::steady_timer timer(io, *until);
        co_await (changed_event.wait() || timer.async_wait(use_awaitable));
    }

    void set_state(Unit& unit, UnitState state, std::string detail) {
        if (unit.state == state && unit.detail == detail) return;
        if (unit.state != state) unit.since = now_millis();
        unit.state = state;
        unit.detail = std::move(detail);
        log.info(fmt::format("unit.{}", wire(state)), kv(field::kEntry, unit.spec.entry), kv(field::kPid, unit.identity ? unit.identity->pid : 0),
                 kv("detail", unit.detail));
        notify();
    }

    bool record(ledger::Record line) {
        auto written = book->append(std::move(line));
        if (!written) log.error("ledger.failed", kv(field::kError, written.error().message()));
        return written.has_value();
    }

    process::Marks marks(Unit const& unit) const { return {desired.deployment, desired.host, unit.spec.entry}; }

    /// The marks and what the specification says; the secrets come from their files.
    Result<std::map<std::string, std::string>> environment(Unit const& unit) const {
        auto env = unit.spec.env;
        for (auto const& [variable, file] : unit.spec.env_files) {
            auto content = read_file(file);
            if (!content) return fail(content.error().during(variable));
            env[variable] = trim(*content);
        }
        env[process::kDeploymentMark] = desired.deployment;
        env[process::kHostMark] = desired.host;
        env[process::kEntryMark] = unit.spec.entry;
        env["OCRCTL_AGENT_SOCKET"] = paths.socket().string();
        return env;
    }

    fs::path log_file(Unit const& unit) const {
        if (!unit.spec.log.empty()) return unit.spec.log;
        return paths.logs() / (ledger::entry_file_name(unit.spec.entry) + ".log");
    }

    HostReport report() const {
        HostReport report;
        report.deployment = desired.deployment;
        report.host = desired.host;
        report.agent_build = options.build;
        report.boot_id = process::boot_id();
        report.agent_pid = ::getpid();
        report.generation = desired.generation;
        report.closing = closing || ending;
        for (auto const& [entry, unit] : units) {
            UnitReport row;
            row.entry = entry;
            row.kind = unit->spec.kind;
            row.state = unit->state;
            row.pid = unit->running && unit->identity ? unit->identity->pid : 0;
            row.since = unit->since;
            row.restarts = unit->restarts;
            row.detail = unit->detail;
            row.job = unit->job;
            row.jobs_done = unit->jobs_done;
            if (unit->spec.assignment.is_object() && unit->spec.assignment.contains("processor") && unit->spec.assignment["processor"].is_string())
                row.processor = unit->spec.assignment["processor"];
            report.units.push_back(std::move(row));
        }
        return report;
    }

    bool no_starts() {
        std::error_code ignored;
        if (!closing && fs::exists(paths.closing(), ignored)) { // written by a kill-all that did not reach our socket
            closing = true;
            notify();
        }
        return closing || ending || quitting;
    }

    void close_deployment() {
        std::error_code ignored;
        if (!fs::exists(paths.closing(), ignored)) {
            if (auto made = write_file_atomically(paths.closing(), "closing\n", 0600); !made)
                log.error("closing.failed", kv(field::kError, made.error().message()));
        }
        if (closing) return;
        record(ledger::closing());
        closing = true;
        log.info("agent.closing");
        notify();
    }

    // ------------------------------------------------------------------------------------------- one unit's life

    awaitable<void> supervise(UnitPtr unit) {
        for (;;) {
            if (quitting) co_return;
            if (unit->running) {
                if (unit->exit) {
                    after_exit(*unit);
                    continue;
                }
                if (unit->unwanted()) {
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
                co_await changed(waits && ready.timeout_s > 0 ? std::optional(limit) : std::nullopt);
                continue;
            }
            if (unit->leftovers) {
                unit->leftovers = false;
                auto target = process::StopTarget{std::nullopt, marks(*unit), true};
                auto outcome = co_await stop_now(std::move(target), 1s);
                if (!outcome.left.empty())
                    log.warn("unit.leftovers", kv(field::kEntry, unit->spec.entry), kv(field::kPid, outcome.left.front().identity.pid));
                continue;
            }
            if (unit->recorded && unit->unwanted()) {
                record(ledger::stopped(unit->spec.entry));
                for (auto const& path : unit->spec.remove) remove_tree(path);
                unit->recorded = false;
                set_state(*unit, UnitState::Stopped, unit->detail);
                notify();
                continue;
            }
            if (unit->removed) {
                auto place = units.find(unit->spec.entry);
                if (place != units.end() && place->second == unit) units.erase(place);
                notify();
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
            if (unit->held || no_starts()) {
                if (unit->state != UnitState::Failed) set_state(*unit, UnitState::Stopped, unit->detail);
                co_await changed();
                continue;
            }
            if (unit->done) {
                co_await changed();
                continue;
            }
            if (auto missing = unmet(*unit); !missing.empty()) {
                if (unit->failures == 0) set_state(*unit, UnitState::Waiting, fmt::format("waits for {}", missing));
                co_await changed();
                continue;
            }
            if (SteadyClock::now() < unit->retry) {
                co_await changed(unit->retry);
                continue;
            }
            start(unit);
        }
    }

    std::string unmet(Unit const& unit) const {
        for (auto const& entry : unit.spec.needs) {
            auto place = units.find(entry);
            if (place == units.end() || !place->second->ready || place->second->removed) return entry;
        }
        return "";
    }

    void failed_start(Unit& unit, Error const& error) {
        ++unit.failures;
        ++unit.restarts;
        unit.retry = SteadyClock::now() + std::max(1s, restart_delay(unit.failures));
        set_state(unit, UnitState::Failed, error.message());
    }

    void start(UnitPtr const& unit) {
        auto env = environment(*unit);
        if (!env) return failed_start(*unit, env.error());
        auto log_path = log_file(*unit);
        if (auto made = make_folder(log_path.parent_path()); !made) return failed_start(*unit, made.error());
        Json spec = unit->spec;
        spec["deployment"] = desired.deployment;
        auto written = book->append(ledger::intent(unit->spec.entry, std::string(wire(unit->spec.kind)), desired.host, std::move(spec)));
        if (!written) return failed_start(*unit, written.error());
        unit->recorded = true;
        crash_point("agent.after-intent");

        process::SpawnOptions options_;
        options_.argv = unit->spec.argv;
        options_.env = std::move(*env);
        options_.cwd = unit->spec.cwd;
        options_.log = log_path;
        std::error_code no_log;
        auto size = fs::file_size(log_path, no_log);
        unit->log_start = no_log ? 0 : size;
        auto child = process::spawn(options_);
        if (!child) {
            record(ledger::exited(unit->spec.entry, child.error().message()));
            return failed_start(*unit, child.error());
        }
        crash_point("agent.after-spawn");
        unit->identity = child->identity;
        unit->pidfd = std::move(child->pidfd);
        begin(unit);
        set_state(*unit, UnitState::Starting, "");
        if (!record(ledger::identity(unit->spec.entry, child->identity))) {
            // The search by marks would find it; but what cannot be recorded is better not run.
            unit->late = true;
            (void)process::signal_group(child->identity, SIGKILL);
            return;
        }
        crash_point("agent.after-identity");
        if (unit->spec.ready.kind == "started") mark_ready(*unit);
    }

    /// A process of this unit runs: watch it, and ask whether it is ready.
    void begin(UnitPtr const& unit) {
        ++unit->incarnation;
        unit->running = true;
        unit->exit.reset();
        unit->ready = unit->hello = unit->late = unit->was_ready = unit->stuck = false;
        unit->to_worker = nullptr;
        unit->job.clear();
        unit->started = SteadyClock::now();
        tasks.spawn("watch " + unit->spec.entry, watch(unit, unit->incarnation));
        auto const& kind = unit->spec.ready.kind;
        if (kind != "started" && kind != "report") tasks.spawn("probe " + unit->spec.entry, probe(unit, unit->incarnation));
    }

    awaitable<void> watch(UnitPtr unit, int incarnation) {
        auto status = co_await process::wait(unit->pidfd.get());
        if (unit->incarnation != incarnation) co_return;
        unit->exit = status;
        notify();
    }

    awaitable<void> probe(UnitPtr unit, int incarnation) {
        auto current = [&] { return unit->incarnation == incarnation && unit->running && !unit->exit && !unit->ready; };
        auto delay = 20ms;
        while (current()) {
            auto env = environment(*unit);
            auto readiness = unit->spec.ready;
            auto variables = env ? *env : std::map<std::string, std::string>{};
            bool answered = co_await answers(std::move(readiness), std::move(variables), unit->spec.cwd);
            if (!current()) co_return;
            if (answered) {
                mark_ready(*unit);
                co_return;
            }
            co_await pause(delay);
            delay = std::min(delay * 2, milliseconds(500));
        }
    }

    void mark_ready(Unit& unit) {
        if (!unit.ready) {
            unit.ready = unit.was_ready = true;
            unit.ready_since = SteadyClock::now();
            record(ledger::ready(unit.spec.entry));
            crash_point("agent.after-ready");
        }
        if (unit.state != UnitState::Stopping) set_state(unit, UnitState::Ready, "");
    }

    void after_exit(Unit& unit) {
        auto status = *unit.exit;
        auto detail = exit_detail(status, log_end(log_file(unit), unit.log_start));
        if (unit.late) detail = fmt::format("was not ready within {} s", unit.spec.ready.timeout_s);
        record(ledger::exited(unit.spec.entry, detail));
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
        } else if (no_starts()) {
            set_state(unit, UnitState::Stopped, detail);
        } else if (!unit.spec.restart) {
            unit.done = true;
            set_state(unit, status.success() && worked ? UnitState::Stopped : UnitState::Failed, detail);
        } else {
            unit.failures = healthy ? 1 : unit.failures + 1;
            ++unit.restarts;
            unit.retry = SteadyClock::now() + restart_delay(unit.failures);
            // Once may be chance. Not ready in time, a missing library, three times in a row are not.
            bool hopeless = unit.late || unit.failures >= 3 || detail.starts_with("the shared library");
            set_state(unit, worked || !hopeless ? UnitState::BackOff : UnitState::Failed, detail);
        }
    }

    awaitable<process::StopOutcome> stop_now(process::StopTarget target, milliseconds grace) {
        ++blocked;
        auto work = [target = std::move(target), grace] { return process::stop_processes({target}, grace); };
        auto outcome = co_await on_thread(blocking, std::move(work));
        --blocked;
        co_return outcome;
    }

    awaitable<void> reap(process::Child child) { (void)co_await process::wait(child.pidfd.get()); }

    /// Ends the running process: a Worker finishes its task first, then stop_argv or TERM, then KILL. Its watcher notes
    /// the exit; if it cannot be ended, that is reported and tried again.
    awaitable<void> end(UnitPtr unit) {
        auto grace = unit->grace.value_or(seconds(unit->spec.grace_s));
        set_state(*unit, UnitState::Stopping, unit->late ? "is not ready in time" : "");
        bool worker = unit->spec.kind == UnitKind::Worker;
        if (worker && !unit->late && unit->to_worker && unit->to_worker(Json{{"op", "drain"}})) {
            if (!unit->drain_until) unit->drain_until = SteadyClock::now() + grace;
            while (!unit->exit && SteadyClock::now() < *unit->drain_until) co_await changed(unit->drain_until); // op stop may shorten it
            grace = std::min<milliseconds>(grace, 2s);
        } else if (!unit->spec.stop_argv.empty() && !unit->exit) {
            process::SpawnOptions ask;
            ask.argv = unit->spec.stop_argv;
            if (auto env = environment(*unit)) ask.env = *env;
            ask.cwd = unit->spec.cwd;
            ask.log = log_file(*unit);
            auto child = process::spawn(ask);
            if (child) {
                tasks.spawn("stop command", reap(std::move(*child)));
                auto until = SteadyClock::now() + grace;
                while (!unit->exit && SteadyClock::now() < until) co_await changed(until);
                grace = std::min<milliseconds>(grace, 2s);
            } else {
                log.warn("stop.command", kv(field::kEntry, unit->spec.entry), kv(field::kError, child.error().message()));
            }
        }
        auto target = process::StopTarget{unit->identity, marks(*unit), true};
        auto outcome = co_await stop_now(std::move(target), grace);
        auto until = SteadyClock::now() + 2s;
        while (!unit->exit && SteadyClock::now() < until) co_await changed(until);
        if (unit->exit) co_return;
        unit->stuck = true;
        set_state(*unit, UnitState::Stopping, fmt::format("pid {} cannot be ended", unit->identity ? unit->identity->pid : 0));
        notify();
        co_await changed(SteadyClock::now() + 5s);
    }

    // ------------------------------------------------------------------------------------------- the desired state

    static Result<void> check(DesiredState const& wanted) {
        std::set<std::string> seen;
        for (auto const& spec : wanted.units) {
            if (spec.entry.empty() || spec.argv.empty()) return fail(ErrorKind::Invalid, "a unit without entry or argv");
            if (!seen.insert(spec.entry).second) return fail(ErrorKind::Invalid, "two units are called {}", spec.entry);
        }
        if (wanted.deployment.empty() || wanted.host.empty()) return fail(ErrorKind::Invalid, "a desired state without deployment or host");
        return {};
    }

    Result<void> apply(DesiredState wanted) {
        if (auto checked = check(wanted); !checked) return checked;
        if (no_starts()) return fail(ErrorKind::Conflict, "this deployment is closing: nothing is started any more");
        if (!desired.deployment.empty()) {
            if (wanted.deployment != desired.deployment || wanted.host != desired.host)
                return fail(ErrorKind::Conflict, "this agent serves host {} of deployment {}", desired.host, desired.deployment);
            if (wanted.generation < desired.generation)
                return fail(ErrorKind::Conflict, "generation {} is older than {}, which is in force", wanted.generation, desired.generation);
        }
        if (Json(wanted) != Json(desired))
            if (auto written = write_file_atomically(paths.desired(), dump(Json(wanted)), 0600); !written) return written;
        desired = std::move(wanted);
        log.info("desired.applied", kv("generation", desired.generation), kv(field::kCount, desired.units.size()));
        reconcile();
        renew_lease();
        return {};
    }

    /// A unit that is to be something else starts anew; a Worker's assignment alone is told to it.
    static void adapt(Unit& unit, UnitSpec const& spec) {
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

    void reconcile() {
        std::set<std::string> wanted;
        for (auto const& spec : desired.units) {
            wanted.insert(spec.entry);
            auto& unit = units[spec.entry];
            if (!unit) {
                unit = std::make_shared<Unit>();
                unit->spec = spec;
                tasks.spawn("supervise " + spec.entry, supervise(unit));
                continue;
            }
            unit->removed = unit->held = false;
            unit->grace.reset();
            adapt(*unit, spec);
        }
        for (auto& [entry, unit] : units)
            if (!wanted.contains(entry)) unit->removed = true;
        notify();
    }

    /// What an earlier agent started and still lives becomes ours; what it began without writing the identity is found by
    /// its marks; what has ended meanwhile is noted.
    Result<void> adopt() {
        auto state = book->replay();
        if (!state) return std::unexpected(state.error());
        if (state->closing) closing = true;
        bool any = std::ranges::any_of(state->entries, [](auto const& e) { return e.second.open(); });
        if (!any) return {};
        for (auto const& [name_, entry] : state->entries)
            if (desired.deployment.empty() && entry.open() && entry.spec.is_object()) {
                desired.deployment = entry.spec.value("deployment", std::string());
                desired.host = entry.host;
            }
        auto found = process::scan(desired.deployment, desired.host, process::Ancestors::Included); // a server may have started us
        for (auto const& name_ : state->order) {
            auto const& entry = state->entries.at(name_);
            if (!entry.open()) continue;
            auto spec = json_to<UnitSpec>(entry.spec);
            if (!spec || spec->entry != name_) {
                log.warn("ledger.spec", kv(field::kEntry, name_));
                continue;
            }
            auto unit = std::make_shared<Unit>();
            unit->spec = *spec;
            unit->recorded = true;
            auto identity = entry.exited ? std::nullopt : entry.identity;
            bool written = identity.has_value();
            if (identity && !process::alive(*identity)) identity.reset();
            if (!identity && !written)
                for (auto const& process_ : found) { // the leader of the session is the one that was started
                    auto row = process_.entry == name_ ? process::row_of(process_.identity.pid) : std::nullopt;
                    if (row && row->session == process_.identity.pid) identity = process_.identity;
                }
            auto pidfd = identity ? process::open_pidfd(*identity) : Result<Fd>(fail(ErrorKind::NotFound, "ended"));
            if (pidfd) {
                if (!written && !record(ledger::identity(name_, *identity))) return fail(ErrorKind::Unavailable, "the host ledger cannot be written");
                unit->identity = identity;
                unit->pidfd = std::move(*pidfd);
                std::error_code ignored;
                auto size = fs::file_size(log_file(*unit), ignored);
                unit->log_start = ignored ? 0 : size;
                begin(unit);
                bool ready = entry.ready || unit->spec.ready.kind == "started";
                unit->ready = unit->was_ready = ready;
                unit->ready_since = SteadyClock::now();
                set_state(*unit, ready ? UnitState::Ready : UnitState::Starting, "");
                log.info("unit.adopted", kv(field::kEntry, name_), kv(field::kPid, identity->pid));
            } else {
                if (!entry.exited) record(ledger::exited(name_, "ended while no agent ran"));
                unit->leftovers = std::ranges::any_of(found, [&](auto const& f) { return f.entry == name_; });
                unit->detail = entry.exited ? entry.status : "ended while no agent ran";
            }
            units[name_] = unit;
            tasks.spawn("supervise " + name_, supervise(unit));
        }
        return {};
    }

    // ------------------------------------------------------------------------------------------- stopping

    /// Ends all units of these kinds, tier after tier; gives back the entries that could not be ended.
    awaitable<std::pair<std::vector<std::string>, std::vector<std::string>>> stop_kinds(std::set<UnitKind> kinds, std::optional<milliseconds> grace) {
        std::vector<std::string> stopped, left;
        for (auto const& tier : tiers()) {
            std::vector<UnitPtr> members;
            for (auto const& [entry, unit] : units)
                if (kinds.contains(unit->spec.kind) && std::ranges::find(tier, unit->spec.kind) != tier.end()) members.push_back(unit);
            for (auto const& unit : members) {
                unit->held = true;
                unit->stuck = false;
                if (grace) {
                    unit->grace = grace;
                    auto until = SteadyClock::now() + *grace;
                    unit->drain_until = unit->drain_until ? std::min(*unit->drain_until, until) : until;
                }
            }
            notify();
            for (auto const& unit : members) {
                while ((unit->running || unit->recorded || unit->leftovers) && !unit->stuck && !quitting) co_await changed();
                if (unit->running || unit->recorded)
                    left.push_back(unit->spec.entry);
                else
                    stopped.push_back(unit->spec.entry);
            }
        }
        co_return std::pair(std::move(stopped), std::move(left));
    }

    awaitable<void> last_task() {
        while (tasks.size() > 1) co_await pause(1ms);
        farewell.cancel();
        io.stop();
    }

    void quit() {
        if (quitting) return;
        quitting = true;
        notify();
        boost::system::error_code ignored;
        if (acceptor) acceptor->close(ignored);
        ::unlink(paths.socket().c_str());
        if (signals) signals->cancel(ignored);
        if (children) children->cancel(ignored);
        tasks.cancel();
        // What does not let itself be cancelled (a good-bye to the server) gets no more than this.
        farewell.expires_after(2s);
        farewell.async_wait([this](boost::system::error_code) { io.stop(); });
        tasks.spawn("farewell", last_task());
    }

    // ------------------------------------------------------------------------------------------- lease

    void renew_lease() {
        if (desired.lease_s <= 0) return;
        auto length = std::int64_t{desired.lease_s} * 1000;
        lease_end = boot_clock_ms() + length;
        if (lease_end - lease_saved < std::min<std::int64_t>(60000, length / 10)) return;
        Json json{{"boot", process::boot_id()}, {"end_ms", lease_end}, {"lease_s", desired.lease_s}};
        if (auto written = write_file_atomically(paths.lease(), dump(json), 0600); written) lease_saved = lease_end;
        notify();
    }

    void load_lease() {
        auto text = read_file(paths.lease());
        auto json = text ? parse_json(*text) : Result<Json>(fail(text.error()));
        if (json && json->is_object() && json->value("boot", std::string()) == process::boot_id()) {
            lease_end = lease_saved = json->value("end_ms", std::int64_t{0});
            return;
        }
        if (!desired.deployment.empty()) renew_lease();
    }

    awaitable<void> watch_lease() {
        for (;;) {
            if (desired.lease_s <= 0 || lease_end == 0) {
                co_await changed();
                continue;
            }
            auto left = lease_end - boot_clock_ms();
            if (left <= 0) break;
            // The steady clock stands still in suspend, so look again now and then.
            co_await changed(SteadyClock::now() + milliseconds(std::min<std::int64_t>(left, 30000)));
        }
        log.warn("lease.ended", kv("lease_s", desired.lease_s));
        ending = true;
        notify();
        std::set<UnitKind> all;
        for (auto const& tier : tiers()) all.insert(tier.begin(), tier.end());
        auto [stopped, left] = co_await stop_kinds(std::move(all), std::nullopt);
        if (!left.empty()) log.error("lease.left", kv(field::kCount, left.size()), kv(field::kEntry, join(left, ",")));
        quit();
    }

    // ------------------------------------------------------------------------------------------- control socket

    Result<void> listen() {
        auto file = paths.socket();
        ::unlink(file.c_str()); // we hold the lock: whoever listened here is dead
        try {
            acceptor.emplace(io);
            acceptor->open();
            auto before = ::umask(0177);
            boost::system::error_code problem;
            acceptor->bind(stream_protocol::endpoint(file.string()), problem);
            ::umask(before);
            if (problem) return fail(errno_error(problem.value(), fmt::format("listen on {}", file.string())));
            acceptor->listen(128);
        } catch (boost::system::system_error const& problem) {
            return fail(errno_error(problem.code().value(), fmt::format("listen on {}", file.string())));
        }
        return {};
    }

    awaitable<void> accept() {
        while (!quitting) {
            auto [problem, socket] = co_await acceptor->async_accept(as_tuple);
            if (quitting) co_return;
            if (problem) {
                log.warn("control.accept", kv(field::kError, problem.message()));
                co_await pause(100ms);
                continue;
            }
            tasks.spawn("control session", serve(std::make_shared<Session>(std::move(socket), io.get_executor())));
        }
    }

    awaitable<void> write_out(SessionPtr session) {
        while (session->open) {
            if (session->out.empty()) {
                co_await session->wake.wait();
                continue;
            }
            auto [problem, size] = co_await asio::async_write(session->socket, asio::buffer(session->out.front()), as_tuple);
            if (problem) {
                session->close();
                co_return;
            }
            session->out.pop_front();
            if (session->out.empty()) session->wake.notify_all();
        }
    }

    awaitable<void> serve(SessionPtr session) {
        tasks.spawn("control writer", write_out(session));
        std::string buffer;
        for (;;) {
            auto [problem, size] = co_await asio::async_read_until(session->socket, asio::dynamic_buffer(buffer, kLongestLine), '\n', as_tuple);
            if (problem) break;
            auto request = parse_json(std::string_view(buffer).substr(0, size - 1));
            buffer.erase(0, size);
            if (!request || !request->is_object() || !request->contains("op") || !(*request)["op"].is_string()) {
                session->send(reply_error(Error(ErrorKind::Invalid, "expected a JSON object with \"op\" on one line")));
                continue;
            }
            // A request of the wrong shape ends its session, not the agent.
            std::string broken;
            try {
                co_await handle(session, std::move(*request));
            } catch (Json::exception const& wrong) {
                broken = wrong.what();
            }
            if (!broken.empty()) session->send(reply_error(Error(ErrorKind::Invalid, broken)));
            if (!session->open) break;
        }
        session->close();
        if (!session->slot.empty()) log.debug("worker.disconnected", kv(field::kSlot, session->slot));
    }

    awaitable<void> handle(SessionPtr session, Json request) {
        auto op = request["op"].get<std::string>();
        if (op == "hello") {
            hello(session, request);
        } else if (op == "state") {
            worker_state(session, request);
        } else if (op == "status") {
            session->send(Json{{"ok", true}, {"report", report()}});
        } else if (op == "watch") {
            tasks.spawn("control watch", watch_report(session));
        } else if (op == "apply") {
            auto wanted = json_to<DesiredState>(request.value("desired", Json()));
            auto applied = wanted ? apply(std::move(*wanted)) : Result<void>(fail(wanted.error()));
            if (applied)
                session->send(Json{{"ok", true}, {"generation", desired.generation}});
            else
                session->send(reply_error(applied.error()));
        } else if (op == "close") {
            close_deployment();
            session->send(Json{{"ok", true}});
        } else if (op == "cancel") {
            bool told = cancel(request.value("slot", std::string()), request.value("job", std::string()));
            session->send(Json{{"ok", told}, {"error", told ? "" : "no such Worker is connected"}});
        } else if (op == "stop") {
            std::set<UnitKind> kinds;
            for (auto const& kind : request.value("kinds", std::vector<std::string>())) {
                for (auto const& tier : tiers())
                    for (auto known : tier)
                        if (wire(known) == kind) kinds.insert(known);
            }
            std::optional<milliseconds> grace;
            if (request.contains("grace_s")) grace = milliseconds(static_cast<std::int64_t>(request["grace_s"].get<double>() * 1000));
            auto [stopped, left] = co_await stop_kinds(std::move(kinds), grace);
            session->send(Json{{"ok", true}, {"stopped", stopped}, {"left", left}});
        } else if (op == "exit") {
            session->send(Json{{"ok", true}});
            auto until = SteadyClock::now() + 1s;
            while (session->open && !session->out.empty() && SteadyClock::now() < until) co_await pause(1ms);
            log.info("agent.exit", kv(field::kReason, "asked to"));
            quit();
        } else {
            session->send(reply_error(Error(ErrorKind::Invalid, fmt::format("unknown op {}", op))));
        }
    }

    awaitable<void> watch_report(SessionPtr session) {
        std::string last;
        while (session->open && !quitting) {
            auto text = dump(Json(report()));
            if (text != last) session->send(Json(report()));
            last = std::move(text);
            auto before = version;
            co_await changed(SteadyClock::now() + 1s); // the limit finds a session that was closed
            if (version != before) co_await pause(10ms);
        }
    }

    bool cancel(std::string const& slot, std::string const& job) {
        auto place = units.find(slot);
        if (place == units.end() || !place->second->to_worker) return false;
        return place->second->to_worker(Json{{"op", "cancel"}, {"job", job}});
    }

    // ------------------------------------------------------------------------------------------- Workers

    void hello(SessionPtr const& session, Json const& request) {
        auto slot = request.value("slot", std::string());
        ucred peer{};
        socklen_t size = sizeof peer;
        ::getsockopt(session->socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size);
        auto place = units.find(slot);
        auto unit = place == units.end() ? nullptr : place->second;
        bool ours = unit && unit->running && unit->identity && !unit->exit &&
                    (unit->identity->pid == peer.pid || ::getsid(peer.pid) == unit->identity->pid);
        if (!ours) { // of an earlier life of this slot, or of nobody: it is to end
            log.warn("worker.refused", kv(field::kSlot, slot), kv(field::kPid, peer.pid));
            session->send(Json{{"op", "drain"}});
            return;
        }
        session->slot = slot;
        unit->hello = true;
        std::weak_ptr<Session> weak = session;
        unit->to_worker = [weak](Json const& message) {
            auto alive = weak.lock();
            if (!alive || !alive->open) return false;
            alive->send(message);
            return true;
        };
        session->send(Json{{"op", "assign"}, {"assignment", unit->spec.assignment}});
        log.debug("worker.connected", kv(field::kSlot, slot), kv(field::kPid, peer.pid));
        notify();
    }

    void worker_state(SessionPtr const& session, Json const& request) {
        auto place = units.find(session->slot);
        if (session->slot.empty() || place == units.end()) return;
        auto& unit = *place->second;
        if (!unit.running || unit.exit) return;
        auto text = [&](char const* key) {
            auto value = request.find(key);
            return value != request.end() && value->is_string() ? value->get<std::string>() : std::string();
        };
        auto number = [&](char const* key) {
            auto value = request.find(key);
            return value != request.end() && value->is_number_integer() ? value->get<std::int64_t>() : std::int64_t{-1};
        };
        auto state = text("state");
        auto job = text("job");
        if (auto done = number("jobs_done"); done >= 0)
            unit.jobs_done = done;
        else if (!unit.job.empty() && unit.job != job)
            ++unit.jobs_done;
        bool moved = unit.job != job;
        unit.job = job;
        auto detail = text("detail");
        if (auto pages = number("pages"); detail.empty() && state == "busy" && pages > 0)
            detail = fmt::format("page {} of {}", std::max<std::int64_t>(0, number("pages_done")), pages);
        if (state == "ready" || state == "busy") {
            mark_ready(unit);
            if (unit.detail != detail && unit.state == UnitState::Ready) {
                unit.detail = detail;
                moved = true;
            }
        } else if (unit.state == UnitState::Stopping) {
            // keeps saying so
        } else if (state == "broken") {
            set_state(unit, UnitState::Failed, detail.empty() ? "is broken" : detail);
        } else if (state == "starting") {
            set_state(unit, UnitState::Starting, detail);
        }
        if (moved) notify();
    }

    // ------------------------------------------------------------------------------------------- the server

    awaitable<void> dial() {
        auto delay = 50ms;
        std::string said;
        while (!quitting) {
            if (desired.server.empty()) {
                co_await changed();
                continue;
            }
            auto server = desired.server;
            auto token = desired.token_file.empty() ? Result<std::string>(std::string()) : read_file(desired.token_file);
            Result<std::shared_ptr<net::WebSocket>> socket = fail(ErrorKind::Unavailable, "");
            if (token) {
                net::Headers headers{{"Authorization", "Bearer " + std::string(trim(*token))}};
                auto url = fmt::format("{}/v1/agents/connect?host={}", server, net::percent_encode(desired.host));
                socket = co_await net::websocket_connect(std::move(url), std::move(headers), 5s);
            } else {
                socket = fail(token.error());
            }
            if (!socket) {
                if (said != socket.error().message()) { // once per reason
                    said = socket.error().message();
                    log.info("server.unreachable", kv(field::kAddress, server), kv(field::kError, said));
                }
                co_await pause(delay);
                delay = std::min<milliseconds>(delay * 2, 2s);
                continue;
            }
            auto begin_ = SteadyClock::now();
            said.clear();
            connected_to = server;
            log.info("server.connected", kv(field::kAddress, server));
            tasks.spawn("server reports", report_to(*socket, server));
            for (;;) {
                auto message = co_await (*socket)->read();
                if (!message) {
                    if (!quitting) log.info("server.lost", kv(field::kAddress, server), kv(field::kError, message.error().message()));
                    break;
                }
                from_server(*message);
            }
            (*socket)->close();
            connected_to.clear();
            notify();
            if (SteadyClock::now() - begin_ > 1s) delay = 50ms;
            co_await pause(delay);
            delay = std::min<milliseconds>(delay * 2, 2s);
        }
    }

    awaitable<void> report_to(std::shared_ptr<net::WebSocket> socket, std::string server) {
        while (socket->open() && !quitting) {
            auto sent = version;
            auto written = co_await socket->write(dump(Json{{"op", "report"}, {"report", report()}}));
            if (!written) break;
            co_await pause(50ms); // changes that come together go together
            auto until = SteadyClock::now() + 10s;
            while (version == sent && socket->open() && SteadyClock::now() < until && !quitting) co_await changed(until);
            if (desired.server != server) break; // it has moved: dial the new address
        }
        socket->close();
    }

    void from_server(std::string const& text) {
        auto json = parse_json(text);
        if (!json || !json->is_object()) return;
        renew_lease();
        try {
            auto op = json->value("op", std::string());
            if (op == "desired") {
                auto wanted = json_to<DesiredState>((*json)["desired"]);
                auto applied = wanted ? apply(std::move(*wanted)) : Result<void>(fail(wanted.error()));
                if (!applied) log.warn("desired.refused", kv(field::kError, applied.error().message()));
            } else if (op == "cancel") {
                cancel(json->value("slot", std::string()), json->value("job", std::string()));
            } else if (op == "close") {
                close_deployment();
            }
        } catch (Json::exception const& wrong) {
            log.warn("server.frame", kv(field::kError, wrong.what()));
        }
    }

    // ------------------------------------------------------------------------------------------- the process

    awaitable<void> watch_signals() {
        auto [problem, number] = co_await signals->async_wait(as_tuple);
        if (problem) co_return;
        log.info("agent.exit", kv(field::kReason, number == SIGTERM ? "SIGTERM" : "SIGINT"));
        quit();
    }

    awaitable<void> watch_children() {
        while (!quitting) {
            auto [problem, number] = co_await children->async_wait(as_tuple);
            if (problem) co_return;
            process::reap_strays();
        }
    }

    Result<void> run() {
        if (auto made = make_folder(paths.root, 0700); !made) return made;
        if (auto made = make_folder(paths.logs()); !made) return made;
        auto taken = ledger::LockFile::take(paths.lock(), "agent");
        if (!taken) return fail(taken.error().during("an agent runs here already"));
        lock = std::move(*taken);
        crash_point("agent.after-lock");
        auto opened = ledger::Ledger::open(paths.ledger());
        if (!opened) return std::unexpected(opened.error());
        book = std::move(*opened);
        if (auto text = read_file(paths.desired()); text) {
            auto wanted = json_to<DesiredState>(std::string_view(*text));
            if (!wanted) return fail(wanted.error().during(paths.desired().string()));
            if (auto checked = check(*wanted); !checked) return fail(checked.error().during(paths.desired().string()));
            desired = std::move(*wanted);
        } else if (text.error().kind() != ErrorKind::NotFound) {
            return std::unexpected(text.error());
        }
        log = log.with(kv(field::kDeployment, desired.deployment), kv(field::kHost, desired.host));

        ::signal(SIGPIPE, SIG_IGN);
        ::signal(SIGHUP, SIG_IGN);
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);
        signals.emplace(io, SIGTERM, SIGINT);
        children.emplace(io, SIGCHLD);

        std::error_code ignored;
        closing = fs::exists(paths.closing(), ignored);
        load_lease();
        if (auto adopted = adopt(); !adopted) return adopted;
        if (closing && units.empty()) { // a kill-all passed by before we came up
            log.info("agent.exit", kv(field::kReason, "the deployment is closing"));
            return {};
        }
        if (auto listening = listen(); !listening) return listening;
        if (auto state = book->replay(); state && std::ranges::find(state->paths, paths.socket().string()) == state->paths.end())
            record(ledger::path("", paths.socket().string()));
        crash_point("agent.after-socket");
        if (!desired.host.empty()) reconcile();

        tasks.spawn("control", accept());
        tasks.spawn("lease", watch_lease());
        tasks.spawn("server", dial());
        tasks.spawn("signals", watch_signals());
        tasks.spawn("children", watch_children());
        log.info("agent.started", kv(field::kPid, ::getpid()), kv("build", options.build), kv(field::kPath, paths.socket().string()));
        io.run();
        acceptor.reset();
        if (blocked > 0) {
            // In the middle of ending a unit that takes its time. Nothing of ours is unwritten, and the next agent goes on with it;
            // joining the threads could take as long as the unit's grace.
            ::fflush(nullptr);
            ::_exit(0);
        }
        return {};
    }
};

Agent::Agent(AgentOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Agent::~Agent() = default;

Result<void> Agent::run() { return impl_->run(); }

} // namespace ocrctl::host_agent
