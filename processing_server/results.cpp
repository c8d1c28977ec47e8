#include "processing_server/results.hpp"

#include "lib/async/within.hpp"
#include "lib/base/clock.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/files.hpp"
#include "lib/log/fields.hpp"
#include "processing_server/names.hpp"

#include <algorithm>
#include <cstdio>
#include <fcntl.h>
#include <unistd.h>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr std::size_t kGroup = 512;           // results in one commit
constexpr milliseconds kMaxSaveDelay{500};
constexpr milliseconds kMaxBackOff{10'000};
constexpr int kMissingTries = 8;              // for files that a network file system shows late: 10 s

void append(std::filesystem::path const& file, std::string_view text) {
    Fd fd(::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (!fd) return;
    while (!text.empty()) {
        auto written = ::write(fd.get(), text.data(), text.size());
        if (written <= 0) return;
        text.remove_prefix(static_cast<std::size_t>(written));
    }
}

std::string log_text(TaskResult const& result) {
    auto text = fmt::format("=== attempt {} run {} slot {} {} to {}\n{}", result.attempt, result.run.str(), result.slot.str(),
                            format_time(result.started), format_time(result.ended), result.log);
    if (text.back() != '\n') text += '\n';
    for (auto const& page : result.pages) {
        for (auto const& warning : page.warnings) text += fmt::format("page {}: warning: {}\n", page.page_id, warning);
        if (!page.ok) text += fmt::format("page {}: failed: {}\n", page.page_id, page.error);
    }
    if (!result.error.empty()) text += fmt::format("failed: {}\n", result.error);
    return text;
}

void remove_staging(std::filesystem::path const& workspace, std::string const& staging) {
    std::filesystem::path path(staging);
    if (path.empty() || path.is_absolute() || *path.begin() != ".ocrctl" || std::ranges::find(path, "..") != path.end()) return;
    remove_tree(workspace / path);
    std::error_code ignored;
    std::filesystem::remove((workspace / path).parent_path(), ignored); // the Job's folder, if it is empty now
    std::filesystem::remove(workspace / ".ocrctl", ignored);
}

bool is_conflict(Error const& error) { return error.kind() == ErrorKind::Conflict || error.kind() == ErrorKind::Invalid; }

} // namespace

Results::Results(asio::any_io_executor io, asio::thread_pool& pool, Settings const& settings, store::Store& store, JobBook& book,
                 Workspaces& workspaces, Dispatcher& dispatcher, queue::BrokerUrl url)
    : io_(io), pool_(pool), log_("results"), settings_(settings), store_(store), book_(book), workspaces_(workspaces),
      dispatcher_(dispatcher), url_(std::move(url)), tasks_(io, "results"), keepers_tasks_(io, "keeper"), arrived_(io) {}

Results::~Results() { *alive_ = false; }

std::filesystem::path Results::log_of(JobId const& job) const { return settings_.state / "logs" / "jobs" / (job.str() + ".log"); }

void Results::start() {
    queue::Consumer::Options options;
    options.name = "ocrctl server " + settings_.name + " results";
    options.prefetch = 256;
    for (int i = 0; i < kResultQueues; ++i) options.queues.push_back(result_queue(settings_.name, i));
    // The dispatcher declares them; until they are there the Consumer waits for them.
    consumer_ = std::make_unique<queue::Consumer>(io_, url_, std::move(options), [this, alive = alive_](queue::Delivery delivery) {
        if (*alive) received(std::move(delivery));
    });
    tasks_.spawn("results", loop());
}

void Results::received(queue::Delivery delivery) {
    incoming_.push_back(std::move(delivery));
    arrived_.notify_all();
}

awaitable<void> Results::loop() {
    while (!stopping_) {
        if (incoming_.empty()) {
            co_await arrived_.wait();
            continue;
        }
        std::vector<queue::Delivery> group;
        if (incoming_.size() <= kGroup) group.swap(incoming_);
        else {
            group.assign(std::make_move_iterator(incoming_.begin()), std::make_move_iterator(incoming_.begin() + kGroup));
            incoming_.erase(incoming_.begin(), incoming_.begin() + kGroup);
        }
        co_await process(std::move(group));
    }
}

awaitable<void> Results::process(std::vector<queue::Delivery> deliveries) {
    struct Accepted {
        Decision decision;
        TaskResult result;
    };
    std::vector<Accepted> accepted;
    std::set<JobId> seen;
    std::vector<std::pair<std::string, std::string>> stale; // staging folders that nobody needs
    store::Batch batch;
    for (auto const& delivery : deliveries) {
        auto result = json_to<TaskResult>(std::string_view(delivery.body));
        if (!result) {
            log_.error("result.unreadable", kv(field::kQueue, delivery.queue), kv(field::kError, result.error().message()));
            continue;
        }
        auto* entry = book_.find(result->job);
        if (entry == nullptr || entry->ending || entry->phase == Phase::Committed || entry->job.attempt != result->attempt ||
            !seen.insert(result->job).second) {
            log_.debug("result.ignored", kv(field::kJob, result->job.str()), kv(field::kRun, result->run.str()));
            std::string workspace;
            if (entry != nullptr) workspace = entry->job.workspace;
            else if (auto job = co_await store_.job(result->job); job && *job) workspace = (*job)->workspace;
            // A result that comes again (its acknowledgement was lost) may be one that is accepted and not in place yet.
            if (!workspace.empty() && !in_use_.contains(result->staging)) stale.emplace_back(workspace, result->staging);
            continue;
        }
        entry->deciding = true;
        Accepted one;
        one.decision = decide(entry->job, *result);
        one.decision.job.log_file = log_of(result->job).native();
        one.decision.job.state = JobState::Queued;
        if (!one.decision.files.files.empty()) {
            auto kept = *result;
            kept.log.clear();
            batch.put_outcome(kept);
            in_use_.insert(result->staging);
        }
        one.result = std::move(*result);
        accepted.push_back(std::move(one));
    }
    // After the outcomes: a Job that is committed has its outcome in the Store.
    for (auto const& one : accepted) batch.update(one.decision.job);

    // Logs first: whoever sees the end of a Job finds its log.
    std::vector<std::pair<std::filesystem::path, std::string>> logs;
    for (auto const& one : accepted) logs.emplace_back(log_of(one.result.job), log_text(one.result));
    if (!logs.empty() || !stale.empty())
        co_await on_thread(pool_, [&logs, &stale] {
            for (auto const& [file, text] : logs) append(file, text);
            for (auto const& [workspace, staging] : stale) remove_staging(workspace, staging);
        });

    auto wait = milliseconds(100);
    while (!batch.empty()) {
        auto copy = batch;
        auto written = co_await store_.write(std::move(copy));
        if (written) break;
        log_.error("result.not-stored", kv(field::kError, written.error().message()), kv(field::kAfterMs, wait.count()));
        if (stopping_ || !co_await pause(wait)) co_return; // not acknowledged: they come again
        wait = std::min(wait * 2, kMaxBackOff);
    }
    crash_point("server.after-commit");
    for (auto const& delivery : deliveries) consumer_->ack(delivery.tag);
    crash_point("server.after-acknowledge");

    std::vector<Ending> endings;
    for (auto& [decision, result] : accepted) {
        auto* entry = book_.find(result.job);
        if (entry != nullptr) entry->deciding = false;
        if (entry == nullptr || entry->ending) { // cancelled while it was written; that was written after
            in_use_.erase(result.staging);
            continue;
        }
        if (result.ended > result.started && result.error.empty())
            dispatcher_.measured(decision.job.target.name, static_cast<double>(result.ended - result.started) / 1000.0);
        auto state = entry->job.state;
        entry->job = std::move(decision.job);
        entry->job.state = state;
        if (decision.final) {
            book_.committed(*entry);
        } else {
            log_.info("job.attempt", kv(field::kJob, result.job.str()), kv(field::kAttempt, entry->job.attempt),
                      kv(field::kReason, result.error.empty() ? "transient trouble" : result.error));
            book_.backing_off(*entry);
            if (decision.wait.count() == 0) book_.again(*entry);
            else tasks_.spawn("again", again_after(result.job, decision.wait));
        }
        if (!decision.files.files.empty()) {
            enter(entry->job.workspace, entry->job.mets_basename,
                  Item{result.job, result.attempt, decision.final, std::move(decision.files), result.staging});
        } else if (decision.final) {
            endings.push_back(Ending{result.job, entry->job.reason.empty() ? JobState::Success : JobState::Failed, entry->job.reason});
        }
    }
    if (!endings.empty()) tasks_.spawn("end", book_.end(std::move(endings), {}));
}

awaitable<void> Results::again_after(JobId id, milliseconds wait) {
    co_await pause(wait);
    if (auto* entry = book_.find(id)) book_.again(*entry);
}

void Results::recover(std::vector<TaskResult> const& outcomes) {
    std::set<JobId> with_files;
    store::Batch left_over;
    for (auto const& outcome : outcomes) {
        auto* entry = book_.find(outcome.job);
        if (entry == nullptr) { // its Job has ended, and it was not dropped any more
            left_over.drop_outcomes(outcome.job, outcome.attempt);
            continue;
        }
        auto final = entry->job.committed && entry->job.attempt == outcome.attempt;
        // Its Job was not written any more, so its result was not acknowledged: it comes again.
        if (!final && outcome.attempt >= entry->job.attempt) continue;
        if (final) with_files.insert(outcome.job);
        enter(entry->job.workspace, entry->job.mets_basename,
              Item{outcome.job, outcome.attempt, final, run_files(entry->job, outcome), outcome.staging});
    }
    store_.post(std::move(left_over));
    std::vector<Ending> endings;
    for (auto const& [id, entry] : book_.all())
        if (entry->phase == Phase::Committed && !with_files.contains(id))
            endings.push_back(Ending{id, entry->job.reason.empty() ? JobState::Success : JobState::Failed, entry->job.reason});
    if (!endings.empty()) tasks_.spawn("end", book_.end(std::move(endings), {}));
}

void Results::enter(std::string const& workspace, std::string const& mets_basename, Item item) {
    in_use_.insert(item.staging);
    auto key = workspace + '\n' + mets_basename;
    auto& keeper = keepers_[key];
    if (!keeper) {
        keeper = std::make_unique<Keeper>(io_);
        keeper->workspace = workspaces_.open(workspace, mets_basename);
    }
    keeper->to_apply.push_back(std::move(item));
    keeper->wake.notify_all();
    if (!keeper->running) {
        keeper->running = true;
        keepers_tasks_.spawn("keeper", keep(key));
    }
}

Ending Results::ending_of(Item const& item) const {
    auto const* entry = book_.find(item.job);
    auto reason = entry == nullptr ? std::string() : entry->job.reason;
    return Ending{item.job, reason.empty() ? JobState::Success : JobState::Failed, reason};
}

// One METS: apply what came, save when it is due, until nothing is left.
awaitable<void> Results::keep(std::string key) {
    auto& keeper = *keepers_.at(key);
    while (!keeper.to_apply.empty() || !keeper.unsaved.empty()) {
        if (keeper.wait.count() > 0) {
            if (stopping_) break; // it stays committed, and is tried again at the next start
            co_await pause(keeper.wait);
        }
        if (!keeper.to_apply.empty()) {
            co_await apply_some(keeper);
            continue;
        }
        // Cheap saves happen at once, expensive ones take a tenth of the time; and at once when nothing else is coming.
        auto delay = std::min(kMaxSaveDelay, 10 * keeper.last_save);
        auto due = keeper.first_unsaved + delay;
        auto finals = static_cast<std::size_t>(std::ranges::count_if(keeper.unsaved, [](auto const& item) { return item.final; }));
        auto now = steady_clock::now();
        if (!flushing_ && now < due && finals < book_.open_in(keeper.workspace->folder().native())) {
            asio::steady_timer timer(io_, due);
            using namespace asio::experimental::awaitable_operators;
            co_await (keeper.wake.wait() || timer.async_wait(use_awaitable));
            continue;
        }
        co_await save(keeper);
    }
    keeper.running = false;
    if (keeper.to_apply.empty() && keeper.unsaved.empty()) keepers_.erase(key);
}

bool Results::failed_for_now(Keeper& keeper, std::string_view what, Error const& problem) {
    keeper.wait = std::clamp(keeper.wait * 2, milliseconds(100), kMaxBackOff);
    auto text = fmt::format("{}: {}", what, problem.message());
    if (keeper.problem != text)
        log_.error("workspace.stuck", kv(field::kWorkspace, keeper.workspace->folder().native()), kv(field::kError, text));
    keeper.problem = std::move(text);
    return false;
}

awaitable<bool> Results::apply_some(Keeper& keeper) {
    auto items = std::make_shared<std::vector<Item>>(std::move(keeper.to_apply));
    keeper.to_apply.clear();
    auto folder = keeper.workspace->folder();
    using Outcomes = std::vector<Result<std::uint64_t>>;
    auto work = [items, folder, workspace = keeper.workspace](mets::Mets& mets) -> Result<Outcomes> {
        Outcomes outcomes;
        for (auto const& item : *items) {
            // First what the METS says: a result that it refuses leaves no file in the workspace.
            auto fits = mets::check_run(mets, item.files);
            for (auto const& file : item.files.files)
                if (fits && folder / std::filesystem::path(file.path).lexically_normal() == mets.file())
                    fits = fail(ErrorKind::Invalid, "the output file {} would replace the METS", file.path);
            if (!fits) {
                outcomes.push_back(std::unexpected(fits.error()));
                continue;
            }
            if (auto moved = move_into_place(folder, item.staging, item.files.files); !moved) {
                outcomes.push_back(std::unexpected(moved.error()));
                continue;
            }
            crash_point("server.after-rename");
            outcomes.push_back(workspace->apply(mets, item.files));
        }
        return outcomes;
    };
    auto done = co_await keeper.workspace->with(std::move(work));
    std::vector<Ending> endings;
    if (!done) {
        auto const& problem = done.error();
        if (problem.kind() == ErrorKind::NotFound || problem.kind() == ErrorKind::Invalid) {
            for (auto const& item : *items) {
                in_use_.erase(item.staging);
                endings.push_back(Ending{item.job, JobState::Failed, problem.during("record the result").message()});
            }
            tasks_.spawn("end", book_.end(std::move(endings), {}));
            co_return false;
        }
        keeper.to_apply.insert(keeper.to_apply.begin(), std::make_move_iterator(items->begin()), std::make_move_iterator(items->end()));
        co_return failed_for_now(keeper, "record results", problem);
    }
    auto stuck = false;
    std::vector<std::pair<std::string, std::string>> emptied;
    for (std::size_t i = 0; i < items->size(); ++i) {
        auto& item = (*items)[i];
        auto& outcome = (*done)[i];
        if (outcome) {
            in_use_.erase(item.staging);
            emptied.emplace_back(folder.native(), item.staging);
            item.ticket = *outcome;
            if (keeper.unsaved.empty()) keeper.first_unsaved = steady_clock::now();
            auto const* entry = book_.find(item.job);
            if (item.final && entry != nullptr && entry->job.reason.empty()) book_.applied(item.job);
            keeper.unsaved.push_back(std::move(item));
            continue;
        }
        auto const& problem = outcome.error();
        if (is_conflict(problem) || (problem.kind() == ErrorKind::NotFound && ++item.missing >= kMissingTries)) {
            in_use_.erase(item.staging);
            endings.push_back(Ending{item.job, JobState::Failed, problem.during("record the result").message()});
            continue;
        }
        keeper.to_apply.push_back(std::move(item));
        stuck = true;
        failed_for_now(keeper, "record results", problem);
    }
    if (!stuck) {
        keeper.wait = milliseconds(0);
        if (!keeper.problem.empty()) log_.info("workspace.recovered", kv(field::kWorkspace, folder.native()));
        keeper.problem.clear();
    }
    if (!endings.empty()) tasks_.spawn("end", book_.end(std::move(endings), {}));
    if (!emptied.empty())
        asio::post(pool_, [emptied = std::move(emptied)] {
            for (auto const& [workspace, staging] : emptied) remove_staging(workspace, staging);
        });
    co_return !stuck;
}

awaitable<bool> Results::save(Keeper& keeper) {
    auto items = std::make_shared<std::vector<Item>>(std::move(keeper.unsaved));
    keeper.unsaved.clear();
    auto workspace = keeper.workspace;
    struct Saved {
        std::map<std::size_t, Error> conflicts; // items that do not go with what somebody else wrote
    };
    auto work = [items, workspace, folder = workspace->folder()](mets::Mets& mets) -> Result<Saved> {
        Saved saved;
        crash_point("server.before-save");
        if (auto done = workspace->save(mets); !done) {
            auto kind = done.error().kind();
            if (kind != ErrorKind::NotFound && kind != ErrorKind::Invalid) return std::unexpected(done.error());
            // What somebody else wrote cannot be read.
            for (std::size_t i = 0; i < items->size(); ++i) {
                auto settled = workspace->settled((*items)[i].ticket); // by a save of somebody else
                if (settled && !settled->problem) continue;
                saved.conflicts.emplace(i, settled ? *settled->problem : done.error());
                workspace->withdraw((*items)[i].ticket);
            }
            workspace->forget();
            return saved;
        }
        crash_point("server.after-save");
        std::error_code ignored;
        std::vector<std::string> obsolete;
        for (std::size_t i = 0; i < items->size(); ++i) {
            auto settled = workspace->settled((*items)[i].ticket);
            if (!settled) continue;
            if (settled->problem) saved.conflicts.emplace(i, std::move(*settled->problem));
            else obsolete.insert(obsolete.end(), settled->obsolete.begin(), settled->obsolete.end());
        }
        for (auto const& path : obsolete)
            if (!mets.names_path(path)) std::filesystem::remove(folder / path, ignored);
        for (auto const& [i, problem] : saved.conflicts) // refused after all: they are in place already
            for (auto const& file : (*items)[i].files.files)
                if (!mets.names_path(file.path)) std::filesystem::remove(folder / file.path, ignored);
        return saved;
    };
    auto began = steady_clock::now();
    auto saved = co_await workspace->with(std::move(work));
    keeper.last_save = std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
    if (!saved) {
        keeper.unsaved.insert(keeper.unsaved.begin(), std::make_move_iterator(items->begin()), std::make_move_iterator(items->end()));
        co_return failed_for_now(keeper, "save the METS", saved.error());
    }
    keeper.wait = milliseconds(0);
    if (!keeper.problem.empty()) log_.info("workspace.recovered", kv(field::kWorkspace, workspace->folder().native()));
    keeper.problem.clear();
    std::vector<Ending> endings;
    store::Batch extra;
    for (std::size_t i = 0; i < items->size(); ++i) {
        auto const& item = (*items)[i];
        if (auto conflict = saved->conflicts.find(i); conflict != saved->conflicts.end())
            endings.push_back(Ending{item.job, JobState::Failed, conflict->second.message()});
        else if (item.final) endings.push_back(ending_of(item));
        else extra.drop_outcomes(item.job, item.attempt);
    }
    if (!endings.empty() || !extra.empty()) tasks_.spawn("end", book_.end(std::move(endings), std::move(extra)));
    co_return true;
}

std::map<std::string, std::string> Results::problems() const {
    std::map<std::string, std::string> found;
    for (auto const& [key, keeper] : keepers_)
        if (!keeper->problem.empty()) found.emplace(keeper->workspace->file().native(), keeper->problem);
    return found;
}

awaitable<void> Results::stop(milliseconds limit) {
    flushing_ = true;
    if (consumer_) consumer_->stop();
    for (auto& [key, keeper] : keepers_) keeper->wake.notify_all();
    auto until = steady_clock::now() + limit;
    while ((keepers_tasks_.size() > 0 || tasks_.size() > 1) && steady_clock::now() < until) {
        if (!co_await pause(milliseconds(5))) break;
        auto only_stuck = !keepers_.empty() && std::ranges::all_of(keepers_, [](auto const& k) { return k.second->wait.count() > 0; });
        if (only_stuck && incoming_.empty()) break;
    }
    stopping_ = true;
    arrived_.notify_all();
    tasks_.cancel();
    keepers_tasks_.cancel();
    co_await tasks_.join();
    co_await keepers_tasks_.join();
}

} // namespace ocrctl::server
