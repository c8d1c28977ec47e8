// Who may write which pages of which output group. Pure: no I/O, no time; lives on one thread.
//
// A ticket covers (workspace, output group, page) for each of its groups and pages; "all pages" meets everything in its
// group. Tickets are served in the order in which they were taken, also those that still wait for something else: a later
// ticket never overtakes an earlier one that it meets. Since Jobs depend only on Jobs submitted before them, the waiting has no
// cycles. Input groups do not lock, as in OCR-D (network protocol 2.5).
#pragma once

#include "lib/model/job.hpp"

#include <deque>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace ocrctl::server {

class PageLocks {
public:
    /// Takes a ticket; true: granted at once. No pages: all pages. A Job takes one ticket at most.
    bool take(JobId const& job, std::string const& workspace, std::vector<std::string> const& groups,
              std::vector<std::string> const& pages);

    /// Gives a ticket back, granted or waiting; returns those that are granted by this, in order. Unknown: nothing.
    std::vector<JobId> release(JobId const& job);

    bool granted(JobId const& job) const;
    /// A Job that stands in its way, for messages; empty if none does.
    JobId blocker(JobId const& job) const;
    std::size_t size() const noexcept { return tickets_.size(); }

private:
    struct Space;
    struct Ticket {
        JobId job;
        std::uint64_t number = 0;
        std::size_t blocks = 0; // places where an earlier ticket stands before it; 0: granted
        std::vector<Space*> spaces;
        std::vector<std::string> pages;
        bool all() const noexcept { return pages.empty(); }
    };
    struct Space { // one output group of one workspace
        std::string key;
        std::map<std::uint64_t, Ticket*> tickets;                           // all, by number
        std::map<std::uint64_t, Ticket*> whole;                             // those for all pages
        std::unordered_map<std::string, std::deque<Ticket*>> by_page;       // the others, a queue for each page
    };

    std::uint64_t next_ = 1;
    std::unordered_map<JobId, std::unique_ptr<Ticket>> tickets_;
    std::unordered_map<std::string, std::unique_ptr<Space>> spaces_;
};

} // namespace ocrctl::server
