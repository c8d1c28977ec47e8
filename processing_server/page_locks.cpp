#include "processing_server/page_locks.hpp"

#include <algorithm>

namespace ocrctl::server {

bool PageLocks::take(JobId const& job, std::string const& workspace, std::vector<std::string> const& groups,
                     std::vector<std::string> const& pages) {
    auto owned = std::make_unique<Ticket>();
    auto& ticket = *owned;
    ticket.job = job;
    ticket.number = next_++;
    ticket.pages = pages;
    std::set<std::string> unique_groups(groups.begin(), groups.end());
    for (auto const& group : unique_groups) {
        auto key = workspace + '\n' + group;
        auto& space = spaces_[key];
        if (!space) {
            space = std::make_unique<Space>();
            space->key = key;
        }
        ticket.spaces.push_back(space.get());
        if (ticket.all()) {
            ticket.blocks += space->tickets.size();
            space->whole.emplace(ticket.number, &ticket);
        } else {
            ticket.blocks += space->whole.size();
            for (auto const& page : ticket.pages) {
                auto& queue = space->by_page[page];
                if (!queue.empty()) ++ticket.blocks;
                queue.push_back(&ticket);
            }
        }
        space->tickets.emplace(ticket.number, &ticket);
    }
    auto granted = ticket.blocks == 0;
    auto [place, fresh] = tickets_.emplace(job, std::move(owned));
    OCRCTL_CHECK(fresh);
    return granted;
}

std::vector<JobId> PageLocks::release(JobId const& job) {
    auto found = tickets_.find(job);
    if (found == tickets_.end()) return {};
    auto owned = std::move(found->second);
    tickets_.erase(found);
    auto& ticket = *owned;
    std::map<std::uint64_t, JobId> granted;
    auto unblock = [&](Ticket& other) {
        OCRCTL_CHECK(other.blocks > 0);
        if (--other.blocks == 0) granted.emplace(other.number, other.job);
    };
    for (auto* space : ticket.spaces) {
        space->tickets.erase(ticket.number);
        if (ticket.all()) {
            space->whole.erase(ticket.number);
            for (auto other = space->tickets.upper_bound(ticket.number); other != space->tickets.end(); ++other)
                unblock(*other->second);
        } else {
            for (auto other = space->whole.upper_bound(ticket.number); other != space->whole.end(); ++other)
                unblock(*other->second);
            for (auto const& page : ticket.pages) {
                auto queue = space->by_page.find(page);
                auto& waiting = queue->second;
                auto was_first = waiting.front() == &ticket;
                waiting.erase(std::ranges::find(waiting, &ticket));
                if (waiting.empty()) space->by_page.erase(queue);
                else if (was_first) unblock(*waiting.front());
            }
        }
        if (space->tickets.empty()) spaces_.erase(std::string(space->key));
    }
    std::vector<JobId> result;
    for (auto& [number, id] : granted) result.push_back(std::move(id));
    return result;
}

bool PageLocks::granted(JobId const& job) const {
    auto found = tickets_.find(job);
    return found != tickets_.end() && found->second->blocks == 0;
}

JobId PageLocks::blocker(JobId const& job) const {
    auto found = tickets_.find(job);
    if (found == tickets_.end() || found->second->blocks == 0) return {};
    auto const& ticket = *found->second;
    for (auto const* space : ticket.spaces) {
        auto const& before = ticket.all() ? space->tickets : space->whole;
        if (!before.empty() && before.begin()->first < ticket.number) return before.begin()->second->job;
        for (auto const& page : ticket.pages)
            if (auto const* first = space->by_page.at(page).front(); first != &ticket) return first->job;
    }
    return {};
}

} // namespace ocrctl::server
