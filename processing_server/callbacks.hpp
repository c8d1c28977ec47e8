// Tells clients about the ends of their Jobs.
#pragma once

#include "lib/async/task_group.hpp"
#include "lib/net/client.hpp"
#include "lib/store/store.hpp"

#include <deque>

namespace ocrctl::server {

/// POSTs OCR-D's result message to a Job's callback_url (or a workflow's) until somebody answers, with growing pauses, for about a day;
/// over restarts too, since the Store keeps who is still to be told. A few at a time. Lives on the io thread.
class Callbacks {
public:
    Callbacks(asio::any_io_executor io, store::Store& store);
    void tell(Job const& job);
    /// `note`: the Job under whose id the Store keeps that it is still to be told.
    void tell(JobId note, std::string url, Json const& message);
    std::size_t waiting() const noexcept { return waiting_; }
    awaitable<void> stop();

private:
    struct Call {
        JobId job;
        std::string url, body;
        int tries = 0;
    };
    awaitable<void> work();
    awaitable<void> later(Call call, std::chrono::milliseconds wait);

    log::Logger log_;
    store::Store& store_;
    net::HttpClient client_;
    TaskGroup tasks_;
    Event arrived_;
    std::deque<Call> calls_;
    std::size_t waiting_ = 0, workers_ = 0;
    bool stopping_ = false;
};

/// OCR-D's result message (network protocol 3.4).
Json result_message(Job const& job);
/// The same about a workflow: its id, SUCCESS or FAILED.
Json result_message(WorkflowId const& id, JobState state, std::string const& path_to_mets);

} // namespace ocrctl::server
