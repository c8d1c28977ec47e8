#include "lib/hostops/start.hpp"

#include "lib/async/task_group.hpp"
#include "lib/async/within.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"
#include "lib/hostops/host_ops.hpp"
#include "lib/hostops/unit_process.hpp"
#include "lib/ledger/lock.hpp"

#include <algorithm>
#include <map>

namespace ocrctl::hostops {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;
using namespace std::chrono_literals;

/// One call. Everything lives on the thread of run().
class Start {
public:
    Start(ledger::Ledger book, DesiredState desired, UnitHome home, milliseconds limit)
        : book_(std::move(book)), desired_(std::move(desired)), home_(std::move(home)),
          deadline_(Clock::now() + limit) {}

    Result<HostReport> run() {
        if (auto done = look(); !done) return std::unexpected(done.error());
        for (auto& [entry, unit] : units_) tasks_.spawn(entry, bring_up(unit));
        io_.run(); // until none of them has anything left to wait for
        HostReport report;
        report.deployment = desired_.deployment;
        report.host = desired_.host;
        report.boot_id = process::boot_id();
        report.generation = desired_.generation;
        for (auto const& spec : desired_.units) report.units.push_back(std::move(units_.at(spec.entry).row));
        return report;
    }

private:
    struct Unit {
        UnitSpec spec;
        UnitReport row;
        std::optional<process::Identity> identity;
        Fd pidfd;
        std::uintmax_t log_start = 0;
        bool done = false;
    };

    /// What runs already, by the ledger. What is not as it shall be ends.
    Result<void> look() {
        for (auto const& spec : desired_.units) {
            auto& unit = units_[spec.entry];
            unit.spec = spec;
            unit.row.entry = spec.entry;
            unit.row.kind = spec.kind;
            unit.row.since = now_millis();
            if (spec.assignment.is_object()) unit.row.processor = spec.assignment.value("processor", std::string());
        }
        auto state = book_.replay();
        if (!state) return std::unexpected(state.error());
        auto found = process::scan(desired_.deployment, desired_.host);
        std::vector<ledger::Entry> over;
        auto grace = 0s;
        for (auto const& name : state->order) {
            auto const& entry = state->entries.at(name);
            if (!entry.open()) continue;
            auto identity = entry.exited ? std::nullopt : entry.identity;
            auto noted = identity.has_value();
            if (!noted && !entry.exited) identity = find_unit(found, name);
            auto pidfd = identity ? process::open_pidfd(*identity) : Result<Fd>(fail(ErrorKind::NotFound, "ended"));
            auto wanted = units_.find(name);
            auto before = json_to<UnitSpec>(entry.spec);
            if (pidfd && wanted != units_.end() && before && Json(*before) == Json(wanted->second.spec)) {
                if (!noted)
                    if (auto written = book_.append(ledger::identity(name, *identity)); !written) return written;
                auto& unit = wanted->second;
                unit.identity = identity;
                unit.pidfd = std::move(*pidfd);
                unit.row.pid = identity->pid;
                unit.row.since = entry.since;
                unit.row.state = entry.ready ? UnitState::Ready : UnitState::Starting;
                unit.done = entry.ready;
                std::error_code ignored;
                auto size = fs::file_size(unit_log(home_, unit.spec), ignored);
                unit.log_start = ignored ? 0 : size;
                continue;
            }
            if (!pidfd && wanted != units_.end()) {
                auto words = before ? log_end(unit_log(home_, *before), 0).last_line : std::string();
                auto detail = entry.exited    ? entry.status
                              : words.empty() ? std::string("ended while nobody watched it")
                                              : "ended while nobody watched it: " + words;
                if (!entry.exited)
                    if (auto written = book_.append(ledger::exited(name, detail)); !written) return written;
                wanted->second.row.last_exit = detail;
            }
            if (pidfd && before) grace = std::max(grace, seconds(before->grace_s));
            over.push_back(entry);
        }
        StopReport ended;
        if (!over.empty()) stop_entries(book_, over, grace, ended);
        if (!ended.left.empty()) return fail(ErrorKind::Unavailable, "{} cannot be ended", ended.left.front());
        return {};
    }

    void finish(Unit& unit, UnitState state, std::string detail) {
        if (unit.row.state != state) unit.row.since = now_millis();
        unit.row.state = state;
        unit.row.detail = std::move(detail);
        unit.done = true;
    }

    bool closing() const {
        std::error_code ignored;
        return fs::exists(home_.paths.closing(), ignored);
    }

    awaitable<void> bring_up(Unit& unit) {
        if (!unit.done && !unit.identity) co_await begin(unit);
        if (!unit.done) co_await follow(unit);
    }

    awaitable<void> begin(Unit& unit) {
        for (;;) {
            auto silent = co_await first_silent(unit.spec.needs_tcp);
            if (silent.empty()) break;
            if (closing()) co_return finish(unit, UnitState::Stopped, "the deployment is closing");
            if (Clock::now() > deadline_)
                co_return finish(unit, UnitState::Failed, fmt::format("waits for {}, which does not answer", silent));
            (void)co_await pause(500ms);
        }
        if (closing()) co_return finish(unit, UnitState::Stopped, "the deployment is closing");
        auto start = start_unit(book_, home_, unit.spec, "host");
        if (start.error) co_return finish(unit, UnitState::Failed, start.error->message());
        unit.identity = start.child->identity;
        unit.pidfd = std::move(start.child->pidfd);
        unit.log_start = start.log_start;
        unit.row.pid = unit.identity->pid;
        unit.row.state = UnitState::Starting;
        unit.row.since = now_millis();
    }

    /// Until it answers or has ended, in its time.
    awaitable<void> follow(Unit& unit) {
        auto const& ready = unit.spec.ready;
        auto own_deadline = ready.timeout_s > 0 ? Clock::now() + seconds(ready.timeout_s) : Clock::time_point::max();
        for (auto delay = 20ms;; delay = std::min(delay * 2, milliseconds(500))) {
            if (auto status = co_await within(delay, process::wait(unit.pidfd.get())))
                co_return exited(unit, exit_detail(*status, log_end(unit_log(home_, unit.spec), unit.log_start)));
            if (co_await unit_answers(home_, unit.spec, *unit.identity)) {
                (void)book_.append(ledger::ready(unit.spec.entry));
                crash_point("host.after-ready");
                co_return finish(unit, UnitState::Ready, "");
            }
            if (Clock::now() > own_deadline) {
                (void)process::stop_processes({{unit.identity, unit_marks(home_, unit.spec), true}},
                                              seconds(unit.spec.grace_s));
                co_return exited(unit, fmt::format("was not ready within {} s", ready.timeout_s));
            }
            if (Clock::now() > deadline_ || closing()) co_return finish(unit, UnitState::Starting, "is not ready yet");
        }
    }

    void exited(Unit& unit, std::string detail) {
        (void)book_.append(ledger::exited(unit.spec.entry, detail));
        unit.row.pid = 0;
        finish(unit, UnitState::Failed, std::move(detail));
    }

    ledger::Ledger book_;
    DesiredState desired_;
    UnitHome home_;
    Clock::time_point deadline_;
    std::map<std::string, Unit> units_;
    asio::io_context io_{1};
    TaskGroup tasks_{io_.get_executor(), "start"};
};

} // namespace

Result<HostReport> start(fs::path const& host_dir, milliseconds limit) {
    ledger::HostPaths paths{host_dir};
    auto text = read_file(paths.desired());
    if (!text) return std::unexpected(text.error());
    auto desired = json_to<DesiredState>(std::string_view(*text));
    if (!desired) return fail(desired.error().during(paths.desired().string()));
    if (desired->agent) return fail(ErrorKind::Conflict, "{} has an agent, which starts its units", desired->host);
    if (auto holder = ledger::lock_holder(paths.lock()); holder && holder->command != kStartHolder)
        return fail(ErrorKind::Conflict, "{}: its {} (pid {}) still runs", desired->host, holder->command,
                    holder->identity.pid);
    auto lock = ledger::LockFile::take_over(paths.lock(), kStartHolder);
    if (!lock) return std::unexpected(lock.error());
    crash_point("host.after-lock");
    auto book = ledger::Ledger::open(paths.ledger());
    if (!book) return std::unexpected(book.error());
    auto state = book->replay();
    if (!state) return std::unexpected(state.error());
    std::error_code ignored;
    if (state->closing || fs::exists(paths.closing(), ignored))
        return fail(ErrorKind::Conflict, "{}: the deployment is closing", desired->host);
    UnitHome home{paths, desired->deployment, desired->host, false};
    return Start(std::move(*book), std::move(*desired), std::move(home), limit).run();
}

} // namespace ocrctl::hostops
