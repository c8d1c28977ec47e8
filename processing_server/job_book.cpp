#include "processing_server/job_book.hpp"

#include "lib/async/within.hpp"
#include "lib/base/clock.hpp"
#include "lib/log/fields.hpp"

#include <algorithm>

namespace ocrctl::server {
namespace {

constexpr std::size_t kRecent = 200'000;

bool failed(JobState state) { return state == JobState::Failed || state == JobState::Cancelled; }

JobState state_in(Phase phase) { return phase == Phase::Waiting ? JobState::Cached : JobState::Queued; }

} // namespace

std::string foreign_lane(std::string const& processor) {
    return "foreign/" + processor;
}
std::string lane_of(Job const& job) {
    return job.foreign ? foreign_lane(job.target.name) : job.target.name;
}

JobBook::JobBook(asio::any_io_executor io, store::Store& store) : log_("jobs"), store_(store), wake_(std::move(io)) {}

std::optional<JobState> JobBook::known_state(JobId const& id) const {
    if (auto const* open = find(id)) return open->ending && failed(*open->ending) ? *open->ending : open->job.state;
    if (auto ended = recent_.find(id); ended != recent_.end()) return ended->second;
    return std::nullopt;
}

OpenJob* JobBook::find(JobId const& id) {
    auto found = open_.find(id);
    return found == open_.end() ? nullptr : found->second.get();
}
OpenJob const* JobBook::find(JobId const& id) const {
    auto found = open_.find(id);
    return found == open_.end() ? nullptr : found->second.get();
}

void JobBook::count(Job const& job, JobState state, int change) {
    counts_[state] += static_cast<std::size_t>(change);
    if (!job.workflow.empty())
        if (auto workflow = workflows_.find(job.workflow); workflow != workflows_.end()) {
            auto& by_state = workflow->second.counts[job.target.name];
            if ((by_state[state] += static_cast<std::size_t>(change)) == 0) by_state.erase(state);
        }
    ++version_;
}

JobState JobBook::shown_state(OpenJob const& job) const noexcept {
    if (job.phase != Phase::Waiting && job.running) return JobState::Running;
    return job.job.state;
}

// The one place where phase and state of an open Job change, so that the counts stay right.
void JobBook::move(OpenJob& job, Phase phase) {
    auto before = shown_state(job);
    job.phase = phase;
    if (phase != Phase::Published && phase != Phase::Committed) job.running = false;
    job.job.state = state_in(phase);
    if (auto after = shown_state(job); after != before) {
        count(job.job, before, -1);
        count(job.job, after, +1);
    }
}

void JobBook::set_running(OpenJob& job, bool running, std::string const& slot) {
    if (job.phase != Phase::Published || job.running == running) return;
    auto before = shown_state(job);
    job.running = running;
    if (running) {
        job.job.slot = Slot(slot);
        if (job.job.started == 0) job.job.started = now_millis();
    }
    count(job.job, before, -1);
    count(job.job, shown_state(job), +1);
}

OpenJob& JobBook::add(Job job) {
    auto owned = std::make_unique<OpenJob>();
    auto& entry = *owned;
    entry.job = std::move(job);
    entry.job.state = JobState::Cached;
    if (!entry.job.workflow.empty()) ++workflows_[entry.job.workflow].open;
    ++by_workspace_[entry.job.workspace];
    open_.emplace(entry.job.id, std::move(owned));
    (entry.job.foreign ? foreign_processors_ : targets_).insert(entry.job.target.name);
    // Without a page_id a Job is for all pages, also those that come later.
    auto whole = !entry.job.page_id || entry.job.page_id->empty();
    (void)locks_.take(entry.job.id, entry.job.workspace, entry.job.output_groups, whole ? std::vector<std::string>{} : entry.job.pages);
    return entry;
}

JobState JobBook::insert(Job& job, std::unordered_map<JobId, JobState> const& ended) {
    std::vector<OpenJob*> waits_for;
    for (auto const& id : job.depends_on) {
        if (auto* dependency = find(id)) {
            if (dependency->ending && failed(*dependency->ending)) return job.state = JobState::Cancelled;
            if (!dependency->applied) waits_for.push_back(dependency);
            continue;
        }
        auto known = known_state(id);
        auto looked_up = ended.find(id);
        auto state = known ? *known : looked_up != ended.end() ? looked_up->second : JobState::Unset;
        if (failed(state)) return job.state = JobState::Cancelled;
    }
    job.attempt = std::max(job.attempt, 1);
    auto& entry = add(job);
    for (auto* dependency : waits_for) {
        dependency->dependants.push_back(job.id);
        ++entry.unmet;
    }
    // The state a client sees and the Store keeps; it enters the queue once it is durable.
    entry.job.state = entry.unmet == 0 && locks_.granted(job.id) ? JobState::Queued : JobState::Cached;
    count(entry.job, entry.job.state, +1);
    return job.state = entry.job.state;
}

void JobBook::durable(JobId const& id) {
    if (auto* entry = find(id)) {
        entry->durable = true;
        promote(*entry);
    }
}

void JobBook::forget(JobId const& id) {
    auto* entry = find(id);
    if (entry == nullptr) return;
    count(entry->job, shown_state(*entry), -1);
    close(*entry);
}

JobState JobBook::recover(Job job, std::unordered_map<JobId, JobState> const& ended, bool committed) {
    auto const id = job.id;
    auto was_published = job.published && job.state != JobState::Cached;
    std::vector<OpenJob*> waits_for;
    auto result = JobState::Queued;
    for (auto const& dependency_id : job.depends_on) {
        if (auto* dependency = find(dependency_id)) {
            if (!dependency->applied) waits_for.push_back(dependency);
        } else if (auto state = ended.find(dependency_id); state == ended.end() || failed(state->second))
            result = JobState::Cancelled;
    }
    auto& entry = add(std::move(job));
    entry.durable = true;
    count(entry.job, entry.job.state, +1);
    for (auto* dependency : waits_for) {
        dependency->dependants.push_back(id);
        ++entry.unmet;
    }
    if (result == JobState::Cancelled) return result;
    if (committed) {
        move(entry, Phase::Committed);
    } else if (was_published) {
        ++in_broker_[lane_of(entry.job)];
        move(entry, Phase::Published);
    } else {
        promote(entry);
    }
    return entry.job.state;
}

void JobBook::promote(OpenJob& entry) {
    if (entry.phase != Phase::Waiting || !entry.durable || entry.unmet > 0 || entry.ending || !locks_.granted(entry.job.id)) return;
    move(entry, Phase::Ready);
    scheduler_.add(entry.job.id, lane_of(entry.job), entry.job.workspace, entry.job.priority);
    wake_.notify_all();
}

std::optional<JobId> JobBook::next(std::string const& target) {
    auto id = scheduler_.next(target);
    if (!id) return id;
    auto* entry = find(*id);
    OCRCTL_CHECK(entry != nullptr);
    ++in_broker_[target];
    move(*entry, Phase::Publishing);
    return id;
}

void JobBook::published(OpenJob& entry) {
    if (entry.phase != Phase::Publishing) return; // its result may have come already
    entry.job.published = true;
    move(entry, Phase::Published);
}

void JobBook::publish_again(OpenJob& entry) {
    if (entry.ending || entry.deciding || (entry.phase != Phase::Publishing && entry.phase != Phase::Published)) return;
    leave_broker(entry);
    entry.job.published = false;
    move(entry, Phase::Ready);
    scheduler_.add(entry.job.id, lane_of(entry.job), entry.job.workspace, entry.job.priority, true);
    wake_.notify_all();
}

std::size_t JobBook::in_broker(std::string const& target) const {
    auto found = in_broker_.find(target);
    return found == in_broker_.end() ? 0 : found->second;
}

void JobBook::leave_broker(OpenJob& entry) {
    if (entry.phase != Phase::Publishing && entry.phase != Phase::Published) return;
    --in_broker_[lane_of(entry.job)];
    wake_.notify_all();
}

void JobBook::out_of_broker(OpenJob& entry) {
    if (entry.phase == Phase::Ready) scheduler_.remove(entry.job.id); // published before a restart, result came first
    leave_broker(entry);
}

void JobBook::backing_off(OpenJob& entry) {
    out_of_broker(entry);
    entry.job.published = false;
    move(entry, Phase::BackingOff);
}

void JobBook::again(OpenJob& entry) {
    if (entry.phase != Phase::BackingOff || entry.ending) return;
    move(entry, Phase::Ready);
    scheduler_.add(entry.job.id, lane_of(entry.job), entry.job.workspace, entry.job.priority, true);
    wake_.notify_all();
}

void JobBook::committed(OpenJob& entry) {
    out_of_broker(entry);
    move(entry, Phase::Committed);
}

void JobBook::applied(JobId const& id) {
    auto* entry = find(id);
    if (entry == nullptr || entry->applied) return;
    entry->applied = true;
    for (auto const& dependant : entry->dependants)
        if (auto* other = find(dependant)) {
            OCRCTL_CHECK(other->unmet > 0);
            --other->unmet;
            promote(*other);
        }
}

// Out of memory: what it held goes to others.
void JobBook::close(OpenJob& entry) {
    auto const id = entry.job.id;
    auto const workflow = entry.job.workflow;
    scheduler_.remove(id);
    leave_broker(entry);
    if (auto jobs = by_workspace_.find(entry.job.workspace); --jobs->second == 0) by_workspace_.erase(jobs);
    open_.erase(id); // entry is gone
    if (!workflow.empty())
        if (auto found = workflows_.find(workflow); found != workflows_.end() && --found->second.open == 0) workflows_.erase(found);
    for (auto const& granted : locks_.release(id))
        if (auto* other = find(granted)) promote(*other);
}

awaitable<void> JobBook::end(std::vector<Ending> endings, store::Batch extra) {
    // Those that depend on a failed one are cancelled with it, theirs too.
    std::vector<Ending> decided;
    for (std::size_t i = 0; i < endings.size(); ++i) {
        auto ending = endings[i]; // by value: the vector grows
        auto* entry = find(ending.id);
        if (entry == nullptr || entry->ending) continue;
        entry->ending = ending.state;
        scheduler_.remove(ending.id);
        if (failed(ending.state))
            for (auto const& dependant : entry->dependants)
                endings.push_back(Ending{dependant, JobState::Cancelled,
                                         fmt::format("Job {}, which it depends on, {}", ending.id.str(),
                                                     ending.state == JobState::Failed ? "failed" : "was cancelled")});
        decided.push_back(std::move(ending));
    }
    // Documents are written one after the other: a Job that has ended is one whose client will be told, and only then its
    // outcomes are not needed any more.
    auto now = now_millis();
    std::vector<Job> ended;
    for (auto const& ending : decided) {
        auto job = find(ending.id)->job;
        job.state = ending.state;
        if (!ending.reason.empty()) job.reason = ending.reason;
        job.committed = false;
        job.ended = now;
        ended.push_back(std::move(job));
    }
    for (auto const& job : ended)
        if (!job.callback_url.empty()) extra.put_callback(job.id);
    for (auto const& job : ended) extra.update(job);
    for (auto const& job : ended) extra.drop_outcomes(job.id, job.attempt);
    auto wait = std::chrono::milliseconds(100);
    for (;;) {
        auto copy = extra;
        auto written = co_await store_.write(std::move(copy));
        if (written) break;
        if (stopping_) co_return;
        log_.error("end.not-stored", log::kv(log::field::kError, written.error().message()), log::kv(log::field::kAfterMs, wait.count()));
        if (!co_await pause(wait)) co_return;
        wait = std::min(wait * 2, std::chrono::milliseconds(10'000));
    }
    for (auto const& ending : decided) {
        auto* entry = find(ending.id);
        if (entry == nullptr) continue;
        count(entry->job, shown_state(*entry), -1);
        auto job = entry->job;
        job.state = ending.state;
        if (!ending.reason.empty()) job.reason = ending.reason;
        job.ended = now;
        count(job, job.state, +1);
        if (job.state == JobState::Success) applied(job.id);
        recent_[job.id] = job.state;
        recent_order_.push_back(job.id);
        auto last = workflow_that_ends_with(job);
        close(*find(job.id));
        if (on_end) on_end(job);
        if (last && on_workflow_end) on_workflow_end(job.workflow, last->first, last->second);
    }
    while (recent_order_.size() > kRecent) {
        recent_.erase(recent_order_.front());
        recent_order_.pop_front();
    }
}

JobState final_state(WorkflowCounts const& counts) {
    for (auto const& [processor, states] : counts)
        for (auto const& [state, count] : states)
            if (count > 0 && (state == JobState::Failed || state == JobState::Cancelled)) return JobState::Failed;
    return JobState::Success;
}

void JobBook::set_counts(std::map<JobState, std::size_t> counts) { counts_ = std::move(counts); }

WorkflowCounts const* JobBook::workflow(WorkflowId const& id) const {
    auto found = workflows_.find(id);
    return found == workflows_.end() ? nullptr : &found->second.counts;
}

void JobBook::set_workflow(WorkflowId const& id, WorkflowCounts counts) { workflows_[id].counts = std::move(counts); }

void JobBook::tell_at_end(WorkflowId const& id, WorkflowCallback callback) {
    workflows_[id].callback = std::move(callback);
}

// Before its last Job is out of memory: who is to be told what.
std::optional<std::pair<WorkflowCallback, JobState>> JobBook::workflow_that_ends_with(Job const& job) const {
    if (job.workflow.empty()) return std::nullopt;
    auto found = workflows_.find(job.workflow);
    if (found == workflows_.end() || found->second.open != 1 || !found->second.callback) return std::nullopt;
    return std::pair(*found->second.callback, final_state(found->second.counts));
}

std::size_t JobBook::open_in(std::string const& workspace) const {
    auto found = by_workspace_.find(workspace);
    return found == by_workspace_.end() ? 0 : found->second;
}

} // namespace ocrctl::server
