#include "processing_server/callbacks.hpp"

#include "lib/async/within.hpp"
#include "lib/log/fields.hpp"

#include <algorithm>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;

namespace {
constexpr std::size_t kAtOnce = 16;
constexpr int kTries = 40;
} // namespace

Json result_message(Job const& job) {
    return Json{{"job_id", job.id.str()}, {"state", wire(job.state)}, {"path_to_mets", job.path_to_mets}, {"workspace_id", ""}};
}

Json result_message(WorkflowId const& id, JobState state, std::string const& path_to_mets) {
    return Json{{"job_id", id.str()}, {"state", wire(state)}, {"path_to_mets", path_to_mets}, {"workspace_id", ""}};
}

Callbacks::Callbacks(asio::any_io_executor io, store::Store& store)
    : log_("callbacks"), store_(store), client_(io), tasks_(io, "callbacks"), arrived_(io) {}

void Callbacks::tell(Job const& job) {
    if (!job.callback_url.empty()) tell(job.id, job.callback_url, result_message(job));
}

void Callbacks::tell(JobId note, std::string url, Json const& message) {
    if (stopping_) return;
    ++waiting_;
    calls_.push_back(Call{std::move(note), std::move(url), dump(message)});
    if (workers_ < kAtOnce) {
        ++workers_;
        tasks_.spawn("callback", work());
    }
}

awaitable<void> Callbacks::work() {
    while (!calls_.empty() && !stopping_) {
        auto call = std::move(calls_.front());
        calls_.pop_front();
        auto answer = co_await client_.request("POST", call.url, net::Headers{{"Content-Type", "application/json"}}, call.body, 10s);
        // Whatever it answers, it has been told; OCR-D ignores the status too. A server in trouble is asked again.
        if ((!answer || answer->status >= 500) && ++call.tries < kTries && !stopping_) {
            if (call.tries == 1)
                log_.warn("callback.failed", kv(field::kJob, call.job.str()), kv(field::kAddress, call.url),
                          kv(field::kError, answer ? fmt::format("status {}", answer->status) : answer.error().message()));
            auto wait = std::min<std::chrono::milliseconds>(std::chrono::milliseconds(500 << std::min(call.tries, 12)), 1h);
            tasks_.spawn("callback later", later(std::move(call), wait));
            continue;
        }
        if (!stopping_) {
            store::Batch batch;
            batch.drop_callback(call.job);
            store_.post(std::move(batch));
        }
        --waiting_;
    }
    --workers_;
}

awaitable<void> Callbacks::later(Call call, std::chrono::milliseconds wait) {
    if (!co_await pause(wait) || stopping_) co_return;
    calls_.push_back(std::move(call));
    if (workers_ < kAtOnce) {
        ++workers_;
        tasks_.spawn("callback", work());
    }
}

awaitable<void> Callbacks::stop() {
    stopping_ = true;
    tasks_.cancel();
    co_await tasks_.join();
}

} // namespace ocrctl::server
