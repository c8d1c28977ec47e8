// The Store: the truth about Jobs, workflows and scripts. One interface, one conformance suite
// (tests/unit/store/conformance.hpp); SQLite is the embedded default.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/model/job.hpp"
#include "lib/model/task.hpp"

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace ocrctl::store {

/// Changes that are written in order. Each document is written whole or not at all; a batch may be written again
/// (after an error whose end is unknown) and ends in the same state.
class Batch {
public:
    /// A new Job, all of it.
    void put(Job const& job) { changes_.emplace_back(PutJob{job}); }
    /// What changes during a Job's life: state, attempt, reason, times, ... Its specification stays as it was put.
    void update(Job const& job);
    void put(Workflow const& workflow) { changes_.emplace_back(workflow); }
    /// A script under its id, new or replaced.
    void put(WorkflowScript script) { changes_.emplace_back(PutScript{std::move(script), false}); }
    /// A new script; the write fails with Conflict, naming the other id, if one with the same hash is there.
    void add(WorkflowScript script) { changes_.emplace_back(PutScript{std::move(script), true}); }
    /// An accepted result whose files are not yet in a saved METS: applied again at start.
    void put_outcome(TaskResult const& result) { changes_.emplace_back(PutOutcome{result}); }
    /// The METS that holds this Job's outcomes, up to this attempt, is on disk.
    void drop_outcomes(JobId job, int attempt) { changes_.emplace_back(DropOutcomes{std::move(job), attempt}); }
    /// The client is to be told of the Job's end; repeated after a restart until it is dropped.
    void put_callback(JobId job) { changes_.emplace_back(PutCallback{std::move(job)}); }
    void drop_callback(JobId job) { changes_.emplace_back(DropCallback{std::move(job)}); }
    void set(std::string key, std::string value) { changes_.emplace_back(SetValue{std::move(key), std::move(value)}); }

    bool empty() const noexcept { return changes_.empty(); }
    std::size_t size() const noexcept { return changes_.size(); }
    void append(Batch other);

    struct PutJob { Job job; };
    struct UpdateJob { JobId id; JobState state; std::string status; };
    struct PutScript { WorkflowScript script; bool only_new; };
    struct PutOutcome { TaskResult result; };
    struct DropOutcomes { JobId job; int attempt; };
    struct PutCallback { JobId job; };
    struct DropCallback { JobId job; };
    struct SetValue { std::string key, value; };
    using Change = std::variant<PutJob, UpdateJob, Workflow, PutScript, PutOutcome, DropOutcomes, PutCallback, DropCallback, SetValue>;
    std::vector<Change> const& changes() const noexcept { return changes_; }
    void add_change(Change change) { changes_.push_back(std::move(change)); }

private:
    std::vector<Change> changes_;
};

/// How many Jobs of one Processor in one workflow are in one state.
struct StateCount {
    std::string processor;
    JobState state = JobState::Unset;
    std::size_t count = 0;
};

/// May be awaited from any executor; the awaiter goes on where it was. What write() reports is durable, and visible
/// to every read that starts afterwards. Batches are written in the order in which write() and post() are called.
/// Errors: Unavailable (disk full, read-only: nothing of the batch is there; try again), Conflict (see Batch::add).
class Store {
public:
    virtual ~Store() = default;

    virtual awaitable<Result<void>> write(Batch batch) = 0;
    /// Written soon; nobody waits for it, a failure is only logged. For what is cheap to lose.
    virtual void post(Batch batch) = 0;

    virtual awaitable<Result<std::optional<Job>>> job(JobId id) = 0;
    /// Those that exist; the order of the result is not that of the ids.
    virtual awaitable<Result<std::vector<Job>>> jobs(std::vector<JobId> ids) = 0;
    /// Cached, Queued and Running, in the order in which they were first put.
    virtual awaitable<Result<std::vector<Job>>> open_jobs() = 0;
    /// Newest first; no state: all.
    virtual awaitable<Result<std::vector<Job>>> jobs_in(std::optional<JobState> state, std::size_t limit) = 0;
    virtual awaitable<Result<std::map<JobState, std::size_t>>> counts() = 0;
    /// By Job, each Job's in the order of its attempts.
    virtual awaitable<Result<std::vector<TaskResult>>> outcomes() = 0;
    /// Jobs whose client is still to be told.
    virtual awaitable<Result<std::vector<Job>>> callbacks() = 0;

    virtual awaitable<Result<std::optional<Workflow>>> workflow(WorkflowId id) = 0;
    virtual awaitable<Result<std::vector<StateCount>>> workflow_counts(WorkflowId id) = 0;
    /// Its failed Jobs, for reports.
    virtual awaitable<Result<std::vector<Job>>> workflow_failures(WorkflowId id) = 0;
    virtual awaitable<Result<std::optional<WorkflowScript>>> script(std::string id) = 0;
    virtual awaitable<Result<std::optional<std::string>>> value(std::string key) = 0;

    /// Why it can be neither read nor, in the end, written to at the moment; empty: nothing is known. Any thread.
    virtual std::string problem() const { return {}; }

    /// What is queued is written, then threads are joined. Nothing may be called afterwards.
    virtual void close() = 0;
};

/// The changing part of a Job as it is stored, and back.
Json status_json(Job const& job);
void apply_status(Json const& status, Job& job);

} // namespace ocrctl::store
