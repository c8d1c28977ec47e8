#include "lib/store/journaled_store.hpp"

#include "lib/async/callback.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/log/fields.hpp"
#include "lib/store/group_writer.hpp"
#include "lib/store/journal.hpp"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <fcntl.h>
#include <mutex>
#include <thread>
#include <unistd.h>

namespace ocrctl::store {
namespace {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;
using Done = std::move_only_function<void(Result<void>)>;

constexpr std::size_t kWave = 2'000;  // changes given to the back end together
constexpr auto kGather = 20ms;         // until a wave is sent, unless somebody waits: a database takes few big commands much cheaper than many small ones
constexpr auto kRetry = 250ms;        // while it is away
constexpr int kInternalTries = 20;       // of what the back end says it failed at by itself: then it is refused, so that nothing waits behind it for ever
constexpr std::size_t kTooBig = 12 << 20; // bytes of a change: a document in MongoDB ends at 16 MiB

/// Not an answer about what was written: the same again later. Databases say Internal for whatever went wrong with them.
bool is_away(Result<void> const& result) { return !result && result.error().kind() != ErrorKind::Conflict && result.error().kind() != ErrorKind::Invalid; }

/// A script that must be new may be refused: whoever adds it waits for that.
bool needs_answer(Batch const& batch) {
    return std::ranges::any_of(batch.changes(), [](auto const& change) {
        auto const* put = std::get_if<Batch::PutScript>(&change);
        return put != nullptr && put->only_new;
    });
}

class JournaledStore final : public Store {
public:
    struct Waiting {
        std::uint64_t number; // in the journal; what only waits for an answer has that of the one before it
        Batch batch;
        std::size_t bytes; // of its line
        Done done;         // of who waits for the back end's answer
    };

    JournaledStore(std::unique_ptr<Store> behind, Journal journal, std::vector<Waiting> recovered, JournalOptions options)
        : behind_(std::move(behind)), options_(std::move(options)), journal_(std::move(journal)),
          writer_([this](std::vector<GroupWriter::Request>& group) { keep(group); }) {
        for (auto& waiting : recovered) add(std::move(waiting));
        taken_ = journal_.next_number() - 1;
        if (waiting_.empty()) applied_ = taken_;
        else log_.info("journal.recovered", kv(field::kCount, waiting_.size()));
        applier_ = std::jthread([this] { apply(); });
    }
    ~JournaledStore() override { close(); }

    void close() override {
        if (std::exchange(closed_, true)) return;
        writer_.close(); // what waits for the journal is in it
        {
            std::lock_guard lock(mutex_);
            closing_ = true;
        }
        wake_.notify_all();
        applier_.join();
        behind_->close();
        if (waiting_.empty()) journal_.remove_segments();
        else log_.warn("journal.left", kv(field::kCount, waiting_.size()), kv(field::kPath, options_.folder.native()));
    }

    awaitable<Result<void>> write(Batch batch) override {
        if (auto room = co_await until([this] { return bytes_ < options_.limit; }, &waiting_for_room_); !room) co_return room;
        co_return co_await writer_.write(std::move(batch));
    }
    void post(Batch batch) override {
        bool full;
        {
            std::lock_guard lock(mutex_);
            full = bytes_ >= options_.limit;
        }
        if (full) log_.warn("write.failed", kv(field::kError, "too much waits for the database"));
        else writer_.post(std::move(batch));
    }

    std::string problem() const override {
        std::lock_guard lock(mutex_);
        return away_ ? fmt::format("{}; {} bytes of changes wait for it", away_->message(), bytes_) : std::string();
    }

    awaitable<Result<std::optional<Job>>> job(JobId id) override { return read<std::optional<Job>>([id](Store& s) { return s.job(id); }); }
    awaitable<Result<std::vector<Job>>> jobs(std::vector<JobId> ids) override { return read<std::vector<Job>>([ids = std::move(ids)](Store& s) { return s.jobs(ids); }); }
    awaitable<Result<std::vector<Job>>> open_jobs() override { return read<std::vector<Job>>([](Store& s) { return s.open_jobs(); }); }
    awaitable<Result<std::vector<Job>>> jobs_in(std::optional<JobState> state, std::size_t limit) override { return read<std::vector<Job>>([=](Store& s) { return s.jobs_in(state, limit); }); }
    awaitable<Result<std::map<JobState, std::size_t>>> counts() override { return read<std::map<JobState, std::size_t>>([](Store& s) { return s.counts(); }); }
    awaitable<Result<std::vector<TaskResult>>> outcomes() override { return read<std::vector<TaskResult>>([](Store& s) { return s.outcomes(); }); }
    awaitable<Result<std::vector<Job>>> callbacks() override { return read<std::vector<Job>>([](Store& s) { return s.callbacks(); }); }
    awaitable<Result<std::optional<Workflow>>> workflow(WorkflowId id) override { return read<std::optional<Workflow>>([id](Store& s) { return s.workflow(id); }); }
    awaitable<Result<std::vector<StateCount>>> workflow_counts(WorkflowId id) override { return read<std::vector<StateCount>>([id](Store& s) { return s.workflow_counts(id); }); }
    awaitable<Result<std::vector<Job>>> workflow_failures(WorkflowId id) override { return read<std::vector<Job>>([id](Store& s) { return s.workflow_failures(id); }); }
    awaitable<Result<std::optional<WorkflowScript>>> script(std::string id) override { return read<std::optional<WorkflowScript>>([id](Store& s) { return s.script(id); }); }
    awaitable<Result<std::optional<std::string>>> value(std::string key) override { return read<std::optional<std::string>>([key](Store& s) { return s.value(key); }); }

private:
    struct Waiter {
        std::function<bool()> reached; // called with the lock held
        Done done;
    };

    /// Everything that was reported before is in the back end: what is read then shows it.
    template <class T, class Ask>
    awaitable<Result<T>> read(Ask ask) {
        std::uint64_t taken;
        {
            std::lock_guard lock(mutex_);
            taken = taken_;
        }
        if (auto there = co_await until([this, taken] { return applied_ >= taken; }); !there) co_return std::unexpected(there.error());
        co_return co_await ask(*behind_);
    }

    /// Unavailable while the back end is away. `turn` counts those who wait for the same: nobody overtakes them.
    awaitable<Result<void>> until(std::function<bool()> reached, std::size_t* turn = nullptr) {
        {
            std::lock_guard lock(mutex_);
            if ((turn == nullptr || *turn == 0) && reached()) co_return Result<void>{};
            if (turn != nullptr) ++*turn;
        }
        auto result = co_await from_callback<Result<void>>([this, &reached](Done done) {
            Result<void> now;
            {
                std::lock_guard lock(mutex_);
                if (!reached()) {
                    if (!away_) {
                        waiters_.push_back(Waiter{std::move(reached), std::move(done)});
                        wake_.notify_all();
                        return;
                    }
                    now = fail(*away_);
                }
            }
            done(std::move(now));
        });
        if (turn != nullptr) {
            std::lock_guard lock(mutex_);
            --*turn;
        }
        co_return result;
    }

    // On the writer's thread: into the journal, then to the applier.
    void keep(std::vector<GroupWriter::Request>& group) {
        std::vector<std::string> texts;
        std::vector<GroupWriter::Request*> kept;
        for (auto& request : group) {
            if (needs_answer(request.batch)) continue;
            std::size_t biggest = 0;
            auto text = text_of(request.batch, &biggest);
            if (biggest > kTooBig) {
                request.result = fail(ErrorKind::Invalid, "write to the store: {} bytes in one document are too much (it takes {})", biggest, kTooBig);
                continue;
            }
            texts.push_back(std::move(text));
            kept.push_back(&request);
        }
        std::uint64_t first, done;
        {
            std::lock_guard lock(mutex_);
            first = std::max(taken_ + 1, journal_.next_number());
            done = applied_;
        }
        journal_.release(done);
        auto appended = journal_.append(first, texts, done);
        auto is_job = [](Batch::Change const& change) { return std::holds_alternative<Batch::PutJob>(change); };
        auto has_job = [&](auto const* request) { return std::ranges::any_of(request->batch.changes(), is_job); };
        if (appended && std::ranges::any_of(kept, has_job)) crash_point("server.after-journal");
        {
            std::lock_guard lock(mutex_);
            std::size_t n = 0;
            if (appended && !texts.empty()) taken_ = first - 1;
            for (auto& request : group) {
                if (!request.result) continue;
                bool const in_journal = n < kept.size() && kept[n] == &request;
                auto const bytes = in_journal ? texts[n++].size() : 0;
                if (in_journal && !appended) request.result = appended;
                else if (in_journal) add(Waiting{++taken_, std::move(request.batch), bytes, {}});
                else add(Waiting{taken_, std::move(request.batch), 0, std::move(request.done)});
            }
        }
        wake_.notify_all();
    }

    // With the lock held (or before the threads run).
    void add(Waiting waiting) {
        bytes_ += waiting.bytes;
        waiting_.push_back(std::move(waiting));
    }

    // The applier's thread.
    void apply() {
        asio::io_context io;
        int tries = 0; // of the same front
        for (;;) {
            std::vector<Waiting> wave;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [this] { return closing_ || !waiting_.empty(); });
                if (waiting_.empty()) return;
                wake_.wait_for(lock, kGather, [this] { return closing_ || !waiters_.empty() || waiting_.back().done || bytes_ >= options_.limit / 2; });
                // After a failure one goes ahead to see whether the back end is there: those behind it are not to come before it.
                auto const most = away_ ? std::size_t(1) : kWave;
                std::size_t changes = 0;
                while (!waiting_.empty() && changes < most) {
                    changes += waiting_.front().batch.size();
                    wave.push_back(std::move(waiting_.front()));
                    waiting_.pop_front();
                }
            }
            auto sent = send(io, wave);
            tries = sent.applied == 0 && sent.away && sent.away->kind() == ErrorKind::Internal ? tries + 1 : 0;
            if (tries >= kInternalTries) {
                answer(wave.front(), fail(*sent.away));
                sent.applied = 1;
                tries = 0;
            }
            std::unique_lock lock(mutex_);
            for (std::size_t i = 0; i < sent.applied; ++i) bytes_ -= wave[i].bytes;
            if (sent.applied > 0) applied_ = std::max(applied_, wave[sent.applied - 1].number);
            if (sent.applied == wave.size()) {
                away_.reset();
                wake_waiters(lock, {});
                continue;
            }
            // From the first that failed on, all again: they are made in their order, whatever became of the later ones.
            away_ = *sent.away;
            // Who waits for an answer hears that nobody gives one, unless it was given: then it is found out again.
            std::vector<Done> unanswered;
            std::deque<Waiting> rest;
            for (std::size_t i = sent.applied; i < wave.size(); ++i)
                if (wave[i].done && is_away(sent.results[i])) unanswered.push_back(std::move(wave[i].done));
                else rest.push_back(std::move(wave[i]));
            for (auto& waiting : waiting_)
                if (waiting.done) unanswered.push_back(std::move(waiting.done));
                else rest.push_back(std::move(waiting));
            waiting_ = std::move(rest);
            auto problem = *away_;
            wake_waiters(lock, std::move(unanswered), problem);
            if (waiting_.empty()) away_.reset(); // nothing is left to find out by that it is back
            if (closing_) return;
            wake_.wait_for(lock, kRetry, [this] { return closing_; });
        }
    }

    struct Sent {
        std::size_t applied = 0;    // of the wave, from its start
        std::optional<Error> away;  // of the next one
        std::vector<Result<void>> results;
    };
    Sent send(asio::io_context& io, std::vector<Waiting>& wave) {
        std::vector<Result<void>> results(wave.size());
        for (std::size_t i = 0; i < wave.size(); ++i)
            asio::co_spawn(io, behind_->write(wave[i].batch), [&results, i](std::exception_ptr problem, Result<void> result) {
                OCRCTL_CHECK(!problem);
                results[i] = std::move(result);
            });
        io.restart();
        io.run();
        Sent sent;
        for (; sent.applied < wave.size(); ++sent.applied) {
            auto& waiting = wave[sent.applied];
            auto& result = results[sent.applied];
            if (is_away(result)) {
                sent.away = result.error();
                break;
            }
            answer(waiting, result);
        }
        sent.results = std::move(results);
        return sent;
    }
    void answer(Waiting& waiting, Result<void> const& result) {
        if (waiting.done) waiting.done(result);
        else if (!result) refused(text_of(waiting.batch), result.error());
    }

    // Calls them without the lock. Those who wait hear what is; with a problem, that nobody can be served.
    void wake_waiters(std::unique_lock<std::mutex>& lock, std::vector<Done> more, std::optional<Error> const& problem = {}) {
        std::vector<Done> good, bad = std::move(more);
        std::vector<Waiter> rest;
        for (auto& waiter : waiters_)
            if (waiter.reached()) good.push_back(std::move(waiter.done));
            else if (problem) bad.push_back(std::move(waiter.done));
            else rest.push_back(std::move(waiter));
        waiters_ = std::move(rest);
        lock.unlock();
        for (auto& done : good) done({});
        for (auto& done : bad) done(fail(*problem));
        lock.lock();
    }

    void refused(std::string const& text, Error const& error) {
        log_.error("write.refused", kv(field::kError, error.message()), kv(field::kPath, (options_.folder / "refused.jsonl").native()));
        Fd file(::open((options_.folder / "refused.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
        auto line = text + "\n";
        if (!file || ::write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()) || ::fdatasync(file.get()) != 0)
            log_.error("write.lost", kv(field::kError, errno_error(errno, "write refused.jsonl").message()));
    }

    log::Logger log_{"store"};
    std::unique_ptr<Store> behind_;
    JournalOptions options_;
    Journal journal_; // the writer's thread's

    mutable std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Waiting> waiting_;    // in the journal (or needing an answer), not in the back end; without the wave under way
    std::size_t bytes_ = 0;          // of their lines, with the wave under way
    std::uint64_t taken_ = 0, applied_ = 0;
    std::optional<Error> away_;      // the back end's, since it is away
    std::vector<Waiter> waiters_;
    std::size_t waiting_for_room_ = 0;
    bool closing_ = false;

    bool closed_ = false;            // the owner's thread's
    GroupWriter writer_;
    std::jthread applier_;           // last: it uses the others
};

} // namespace

Result<std::unique_ptr<Store>> open_journaled(std::unique_ptr<Store> behind, JournalOptions options) {
    auto journal = Journal::open(options.folder);
    if (!journal) return std::unexpected(journal.error());
    std::vector<JournaledStore::Waiting> recovered;
    for (auto& record : journal->take_recovered()) {
        auto batch = batch_of(record.text);
        if (!batch)
            return fail(ErrorKind::Invalid, "the journal in {} was written by another version of ocrctl, or is damaged ({}): start that version, or move the folder away and lose what is only there",
                        options.folder.native(), batch.error().message());
        recovered.push_back({record.number, std::move(*batch), record.text.size(), {}});
    }
    return std::make_unique<JournaledStore>(std::move(behind), std::move(*journal), std::move(recovered), std::move(options));
}

} // namespace ocrctl::store
