// One thread that writes Batches in the order in which they come, those together that wait together.
#pragma once

#include "lib/log/log.hpp"
#include "lib/store/store.hpp"

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ocrctl::store {

/// Owned by a back end. write() and post() may be called on any thread; `commit` runs on the writer's own, and sets the
/// result of each request, or takes its `done` to answer later. close() writes what waits and joins.
class GroupWriter {
public:
    struct Request {
        Batch batch;
        std::move_only_function<void(Result<void>)> done;
        Result<void> result;
    };
    using Commit = std::function<void(std::vector<Request>&)>;

    explicit GroupWriter(Commit commit);
    ~GroupWriter();
    GroupWriter(GroupWriter const&) = delete;
    GroupWriter& operator=(GroupWriter const&) = delete;

    awaitable<Result<void>> write(Batch batch);
    void post(Batch batch);
    void close();

private:
    void enqueue(Batch batch, std::move_only_function<void(Result<void>)> done);
    void loop();

    log::Logger log_{"store"};
    Commit commit_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Request> waiting_;
    bool closed_ = false;
    std::jthread thread_;
};

} // namespace ocrctl::store
