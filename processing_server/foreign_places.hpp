// The places and lanes of ForeignWorkers, for the files that implement it: foreign_workers.cpp (who there is),
// foreign_giving.cpp (Jobs go out), foreign_results.cpp (Jobs come back).
#pragma once

#include "processing_server/foreign_workers.hpp"

namespace ocrctl::server {

inline constexpr auto kCompare = std::chrono::seconds(5);   // between looks at all rows of Jobs that are out
inline constexpr auto kLookAgain = std::chrono::seconds(1); // for a Worker, while Jobs wait for one
inline constexpr auto kBroker = std::chrono::seconds(5);    // limit of one question to the broker

inline std::string path_of_mets(Job const& job) {
    return (std::filesystem::path(job.workspace) / job.mets_basename).native();
}

struct ForeignWorkers::Place {
    std::string slot, processor, host;
    std::string internal_url; // how it reaches the server; empty: as all do
    bool agent = true;        // false: nobody reports of it
    std::unique_ptr<queue::Publisher> publisher;
    JobId job;           // empty: free
    bool usable = false; // a Worker consumes, as far as is known
    bool looking = false, doubting = false, doubted_again = false;
    bool known = false; // the broker answered when it was looked for the last time
    Clock::time_point looked{};
    bool reported = false; // by its host's agent; then the next three say how it is
    int pid = 0, restarts = 0;
    UnitState state = UnitState::Waiting;
    bool gone = false;  // the process that was given the Job has ended, as its agent says
    bool blame = false; // and by itself
};

struct ForeignWorkers::Lane {
    explicit Lane(std::string name) : processor(std::move(name)) {}
    std::string processor;
    std::size_t consumers = 0;
    std::set<JobId> jobs;
    bool looking = false, doubting = false;
    bool known = false; // the broker answered when it was looked at the last time
    Clock::time_point looked{};
    /// As many as are worked on, and one that waits.
    std::size_t capacity() const noexcept { return consumers == 0 ? 0 : consumers + 1; }
};

} // namespace ocrctl::server
