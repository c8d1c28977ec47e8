#include "processing_server/scheduler.hpp"

#include <algorithm>

namespace ocrctl::server {

void Scheduler::add(JobId const& job, std::string const& target, std::string const& workspace, int priority, bool front) {
    auto& level = targets_[target][priority];
    auto [queue, fresh] = level.queues.try_emplace(workspace);
    if (fresh) level.turns.push_back(workspace);
    auto position = queue->second.insert(front ? queue->second.begin() : queue->second.end(), job);
    auto [place, added] = places_.emplace(job, Place{target, workspace, priority, position});
    OCRCTL_CHECK(added);
    ++sizes_[target];
}

void Scheduler::take_out(Levels& levels, Place const& place) {
    auto level = levels.find(place.priority);
    auto queue = level->second.queues.find(place.workspace);
    queue->second.erase(place.position);
    if (queue->second.empty()) {
        level->second.queues.erase(queue);
        level->second.turns.remove(place.workspace);
        if (level->second.queues.empty()) levels.erase(level);
    }
    --sizes_[place.target];
}

bool Scheduler::remove(JobId const& job) {
    auto place = places_.find(job);
    if (place == places_.end()) return false;
    take_out(targets_[place->second.target], place->second);
    places_.erase(place);
    return true;
}

std::optional<JobId> Scheduler::next(std::string const& target) {
    auto found = targets_.find(target);
    if (found == targets_.end() || found->second.empty()) return std::nullopt;
    auto& level = found->second.begin()->second;
    level.turns.splice(level.turns.end(), level.turns, level.turns.begin()); // this workspace's next turn is last
    auto job = level.queues.find(level.turns.back())->second.front();
    auto place = places_.find(job);
    take_out(found->second, place->second);
    places_.erase(place);
    return job;
}

std::size_t Scheduler::size(std::string const& target) const {
    auto found = sizes_.find(target);
    return found == sizes_.end() ? 0 : found->second;
}

std::size_t WindowPolicy::size() const noexcept {
    auto slots = std::max<std::size_t>({1, configured_slots, ready_slots});
    auto window = 2 * slots;
    if (seconds_per_job > 0) {
        auto measured = static_cast<double>(slots) * 600.0 / seconds_per_job;
        auto most = std::min<std::size_t>(64 * slots, 1024);
        window = std::max(window, measured > static_cast<double>(most) ? most : static_cast<std::size_t>(measured));
    }
    return window;
}

} // namespace ocrctl::server
