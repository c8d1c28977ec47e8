// Which waiting Job goes to a target next. Pure; lives on one thread. Order: priority, then turns between workspaces, then
// first come, first served. All operations are logarithmic at most in the number of workspaces and Jobs.
#pragma once

#include "lib/model/job.hpp"

#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace ocrctl::server {

class Scheduler {
public:
    /// `front`: before the others of its workspace and priority (a further attempt).
    void add(JobId const& job, std::string const& target, std::string const& workspace, int priority, bool front = false);
    /// Takes it out; false if it does not wait here.
    bool remove(JobId const& job);
    /// The next Job of this target, taken out.
    std::optional<JobId> next(std::string const& target);

    bool waits(JobId const& job) const { return places_.contains(job); }
    std::size_t size() const noexcept { return places_.size(); }
    std::size_t size(std::string const& target) const;

private:
    struct Level { // one priority of one target
        std::map<std::string, std::list<JobId>> queues; // workspace -> its Jobs
        std::list<std::string> turns;                   // workspaces, the next one first
    };
    struct Place {
        std::string target, workspace;
        int priority;
        std::list<JobId>::iterator position;
    };
    using Levels = std::map<int, Level, std::greater<>>;
    void take_out(Levels& levels, Place const& place);

    std::unordered_map<std::string, Levels> targets_;
    std::unordered_map<std::string, std::size_t> sizes_;
    std::unordered_map<JobId, Place> places_;
};

/// How many Jobs of a target may be in the broker: twice its slots (those READY, and at least those configured), or ten
/// minutes of measured work, whichever is more, within what a restart can republish quickly.
struct WindowPolicy {
    std::size_t configured_slots = 1, ready_slots = 0;
    double seconds_per_job = 0; // measured; 0: nothing measured yet
    std::size_t size() const noexcept;
};

} // namespace ocrctl::server
