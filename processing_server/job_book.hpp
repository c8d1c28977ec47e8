// The open Jobs: what the Store says about them, in memory, with their dependencies, page locks and places in the queue.
// Everything that changes a Job's state goes through here.
#pragma once

#include "lib/async/event.hpp"
#include "lib/async/task_group.hpp"
#include "lib/store/store.hpp"
#include "processing_server/page_locks.hpp"
#include "processing_server/scheduler.hpp"

#include <deque>
#include <functional>
#include <unordered_map>

namespace ocrctl::server {

/// Where an open Job stands; its JobState follows from it.
enum class Phase {
    Waiting,    // CACHED: for a dependency or a page lock (or, for moments, for its first commit)
    Ready,      // QUEUED: in the scheduler
    Publishing, // QUEUED: on its way into the broker
    Published,  // QUEUED or RUNNING: in the broker or with a Worker
    BackingOff, // QUEUED: a further attempt after transient trouble
    Committed,  // its last result is in the Store; the METS is not yet saved
};

/// Who is told when a workflow has ended. The Store has the note of it under the id of one of its Jobs.
struct WorkflowCallback {
    JobId note;
    std::string url, path_to_mets;
};

struct OpenJob {
    Job job;
    Phase phase = Phase::Waiting;
    std::size_t unmet = 0;         // dependencies whose results are not yet in the METS
    std::vector<JobId> dependants;
    bool durable = false;          // its row is in the Store
    bool applied = false;          // its results are in the METS in memory: dependants may go
    bool running = false;          // a Worker reports it
    std::optional<JobState> ending; // decided, not yet durable: nothing else may happen to it
    bool deciding = false;         // its result is being committed: nobody else may write its row
};

/// A Job's end that is to be recorded.
struct Ending {
    JobId id;
    JobState state = JobState::Failed;
    std::string reason;
};

/// Where Jobs of one target wait together. A Processor that changed from managed to foreign between two starts has two.
std::string foreign_lane(std::string const& processor);
std::string lane_of(Job const& job);

/// How the Jobs of a workflow that has open ones stand: processor -> state -> count.
using WorkflowCounts = std::map<std::string, std::map<JobState, std::size_t>>;

/// Of a workflow whose Jobs have all ended: Failed if one failed or was cancelled, else Success.
JobState final_state(WorkflowCounts const& counts);

/// Lives on the io thread; refers to the Store, which outlives it.
class JobBook {
public:
    JobBook(asio::any_io_executor io, store::Store& store);

    // --- Jobs come ---
    /// What is known about a Job without asking the Store.
    std::optional<JobState> known_state(JobId const& id) const;
    /// Takes a Job in: its ticket for the page locks, its dependencies, its state (Queued or Cached). `ended` holds the states of
    /// dependencies that known_state() does not know. A dependency that failed makes the result Cancelled: then nothing
    /// was taken in. Call durable() once the Store has it, or forget() if it could not be written.
    JobState insert(Job& job, std::unordered_map<JobId, JobState> const& ended);
    void durable(JobId const& id);
    void forget(JobId const& id);
    /// After a restart, in the order of open_jobs(); like insert(), but the row exists, and published ones count as such.
    /// Cancelled: a dependency failed; the caller ends it.
    JobState recover(Job job, std::unordered_map<JobId, JobState> const& ended, bool committed);

    OpenJob* find(JobId const& id);
    OpenJob const* find(JobId const& id) const;
    std::size_t size() const noexcept { return open_.size(); }
    std::unordered_map<JobId, std::unique_ptr<OpenJob>> const& all() const noexcept { return open_; }

    // --- Jobs go to the broker --- (`target`: a lane_of())
    std::optional<JobId> next(std::string const& target);       // Ready -> Publishing
    std::size_t ready(std::string const& target) const { return scheduler_.size(target); }
    void published(OpenJob& job);                               // Publishing -> Published
    void publish_again(OpenJob& job);                           // -> Ready, before others
    std::size_t in_broker(std::string const& target) const;
    std::set<std::string> const& targets() const noexcept { return targets_; } // of managed Workers
    std::set<std::string> const& foreign() const noexcept {
        return foreign_processors_;
    } // Processors with foreign Jobs
    /// Something became Ready, or a place in a window came free.
    Event& wake() noexcept { return wake_; }

    // --- Jobs come back ---
    void out_of_broker(OpenJob& job);   // its result came: the window has a free place
    void backing_off(OpenJob& job);     // -> BackingOff
    void again(OpenJob& job);           // BackingOff -> Ready
    void committed(OpenJob& job);       // -> Committed
    void applied(JobId const& id);      // dependants go

    /// Records ends, and the cancelling of all that depends on failed ones; `extra` goes with them. Returns when all of it is
    /// durable (a Store that cannot write is tried again until stop()) and locks are free. Jobs whose end is
    /// already under way are left alone.
    awaitable<void> end(std::vector<Ending> endings, store::Batch extra);

    /// Called for each ended Job, on the io thread: callbacks, cleaning up.
    std::function<void(Job const&)> on_end;
    /// After on_end of its last Job, for each workflow of tell_at_end(): Success or Failed.
    std::function<void(WorkflowId const&, WorkflowCallback const&, JobState)> on_workflow_end;

    // --- what people ask ---
    JobState shown_state(OpenJob const& job) const noexcept;
    std::map<JobState, std::size_t> const& counts() const noexcept { return counts_; }
    void set_counts(std::map<JobState, std::size_t> counts);
    void set_running(OpenJob& job, bool running, std::string const& slot);
    /// Counts of a workflow with open Jobs; null: ask the Store.
    WorkflowCounts const* workflow(WorkflowId const& id) const;
    void set_workflow(WorkflowId const& id, WorkflowCounts counts);
    /// Of a workflow with open Jobs.
    void tell_at_end(WorkflowId const& id, WorkflowCallback callback);
    PageLocks const& locks() const noexcept { return locks_; }
    /// Changes with every state change: for long polls.
    std::uint64_t version() const noexcept { return version_; }
    std::size_t open_in(std::string const& workspace) const;

    void stop() { stopping_ = true; }

private:
    void count(Job const& job, JobState state, int change);
    void move(OpenJob& job, Phase phase);
    void promote(OpenJob& job);
    void leave_broker(OpenJob& job);
    OpenJob& add(Job job);
    void close(OpenJob& job);
    std::optional<std::pair<WorkflowCallback, JobState>> workflow_that_ends_with(Job const& job) const;

    log::Logger log_;
    store::Store& store_;
    Event wake_;
    PageLocks locks_;
    Scheduler scheduler_;
    std::unordered_map<JobId, std::unique_ptr<OpenJob>> open_;
    std::unordered_map<JobId, JobState> recent_; // ended lately: spares the Store a question
    std::deque<JobId> recent_order_;
    std::unordered_map<std::string, std::size_t> in_broker_;
    std::unordered_map<std::string, std::size_t> by_workspace_;
    std::set<std::string> targets_, foreign_processors_;
    std::map<JobState, std::size_t> counts_;
    struct WorkflowState {
        WorkflowCounts counts;
        std::size_t open = 0;
        std::optional<WorkflowCallback> callback;
    };
    std::unordered_map<WorkflowId, WorkflowState> workflows_;
    std::uint64_t version_ = 1;
    bool stopping_ = false;
};

} // namespace ocrctl::server
