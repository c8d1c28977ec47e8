#include "lib/store/group_writer.hpp"

#include "lib/async/callback.hpp"
#include "lib/log/fields.hpp"

namespace ocrctl::store {
namespace {

constexpr std::size_t kGroupLimit = 20'000; // changes in one group

} // namespace

GroupWriter::GroupWriter(Commit commit) : commit_(std::move(commit)), thread_([this] { loop(); }) {}
GroupWriter::~GroupWriter() { close(); }

void GroupWriter::close() {
    {
        std::lock_guard lock(mutex_);
        if (closed_) return;
        closed_ = true;
    }
    wake_.notify_one();
    thread_.join();
}

awaitable<Result<void>> GroupWriter::write(Batch batch) {
    if (batch.empty()) co_return Result<void>{};
    co_return co_await from_callback<Result<void>>([this, &batch](auto done) { enqueue(std::move(batch), std::move(done)); });
}

void GroupWriter::post(Batch batch) {
    if (batch.empty()) return;
    enqueue(std::move(batch), [this](Result<void> const& result) {
        if (!result) log_.warn("write.failed", log::kv(log::field::kError, result.error().message()));
    });
}

void GroupWriter::enqueue(Batch batch, std::move_only_function<void(Result<void>)> done) {
    {
        std::lock_guard lock(mutex_);
        if (!closed_) {
            waiting_.push_back(Request{std::move(batch), std::move(done), {}});
            done = nullptr;
        }
    }
    if (done) done(fail(ErrorKind::Unavailable, "the store is closed"));
    else wake_.notify_one();
}

void GroupWriter::loop() {
    std::vector<Request> group;
    for (;;) {
        {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
            if (waiting_.empty()) return;
            std::size_t changes = 0;
            while (!waiting_.empty() && changes < kGroupLimit) {
                changes += waiting_.front().batch.size();
                group.push_back(std::move(waiting_.front()));
                waiting_.pop_front();
            }
        }
        commit_(group);
        for (auto& request : group)
            if (request.done) request.done(std::move(request.result));
        group.clear();
    }
}

} // namespace ocrctl::store
