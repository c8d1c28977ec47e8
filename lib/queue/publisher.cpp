#include "lib/queue/link.hpp"

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <algorithm>
#include <charconv>
#include <deque>
#include <functional>

namespace ocrctl::queue {
namespace {

using Steady = std::chrono::steady_clock;
using Results = std::vector<Result<void>>;

/// Messages that are awaited together. Shared by its entries; decided on the connection's thread or, when cancelled,
/// on the awaiter's.
struct Batch {
    std::mutex mutex;
    Results results;
    std::size_t open = 0;
    std::move_only_function<void(Results)> done;

    void decide(std::size_t index, Result<void> result) {
        std::move_only_function<void(Results)> call;
        {
            std::lock_guard lock(mutex);
            if (!done) return;
            results[index] = std::move(result);
            if (--open) return;
            call = std::exchange(done, nullptr);
        }
        call(std::move(results));
    }
    void decide_all(Error const& error) {
        std::move_only_function<void(Results)> call;
        {
            std::lock_guard lock(mutex);
            if (!done) return;
            call = std::exchange(done, nullptr);
            for (auto& result : results) result = fail(error);
        }
        call(std::move(results));
    }
};

struct Entry {
    Message message;
    std::shared_ptr<Batch> batch;
    std::size_t index = 0;
    Steady::time_point deadline;
    std::uint64_t number = 0; // confirm number within the connection
    Steady::time_point sent{};
    bool settled = false;     // timed out while sent: keeps its place in the window
    bool returned = false;
};

struct Errand {
    std::function<Result<void>(Session&)> work;
    std::shared_ptr<Batch> batch;
    Steady::time_point deadline;
};

} // namespace

struct Publisher::Impl : Link {
    Impl(asio::any_io_executor executor, BrokerUrl url, LinkOptions options, std::size_t window)
        : Link(std::move(executor), std::move(url), options, "queue"), window_(window), confirm_limit_(options.confirm_limit) {}

    void submit(std::vector<Message> messages, std::shared_ptr<Batch> const& batch, Steady::time_point deadline) {
        bool accepted = false;
        {
            std::lock_guard lock(mutex_);
            accepted = !closed_;
            for (std::size_t i = 0; accepted && i < messages.size(); ++i)
                incoming_.push_back({std::move(messages[i]), batch, i, deadline});
        }
        if (accepted) wake();
        else batch->decide_all(Error(ErrorKind::Unavailable, "publish: stopped"));
    }

    void submit(Errand errand) {
        auto batch = errand.batch;
        {
            std::lock_guard lock(mutex_);
            if (!closed_) {
                errands_.push_back(std::move(errand));
                batch = nullptr;
            }
        }
        if (batch) batch->decide_all(Error(ErrorKind::Unavailable, "broker: stopped"));
        else wake();
    }

    void close() {
        {
            std::lock_guard lock(mutex_);
            closed_ = true;
        }
        stop();
        // The thread is gone: everything left is ours.
        Error error(ErrorKind::Unavailable, "publish: stopped");
        collect();
        for (auto* list : {&sent_, &waiting_}) {
            for (auto& entry : *list)
                if (!entry.settled) entry.batch->decide(entry.index, fail(error));
            list->clear();
        }
        for (auto& errand : running_) errand.batch->decide(0, fail(error));
        running_.clear();
    }

protected:
    Result<void> set_up(Connection& connection) override {
        amqp_confirm_select(connection.raw(), kChannel);
        published_ = 0;
        return connection.check(amqp_get_rpc_reply(connection.raw()), "ask for confirms", kChannel);
    }

    Result<void> work(Connection& connection) override {
        collect();
        expire();
        while (!running_.empty()) {
            auto errand = std::move(running_.front());
            running_.pop_front();
            auto done = errand.work(session());
            errand.batch->decide(0, std::move(done));
            if (connection.is_broken()) return fail(ErrorKind::Unavailable, "the connection to the broker is lost");
        }
        if (blocked()) {
            for (auto& entry : sent_) entry.sent = Steady::now(); // the broker said why it does not confirm
            return {};
        }
        if (!sent_.empty() && Steady::now() - sent_.front().sent > confirm_limit_) {
            auto waited = std::exchange(confirm_limit_, std::min(confirm_limit_ * 2, kLongestConfirm));
            return fail(ErrorKind::Unavailable, "publish to {}: no confirm from the broker for {} ms", sent_.front().message.queue, waited.count());
        }
        while (!waiting_.empty() && sent_.size() < window_) {
            auto& entry = waiting_.front();
            entry.number = ++published_;
            entry.sent = Steady::now();
            entry.returned = false;
            char digits[24];
            auto end = std::to_chars(digits, digits + sizeof digits, entry.number).ptr;
            auto put = send(connection, kChannel, entry.message, std::string_view(digits, end));
            sent_.push_back(std::move(entry));
            waiting_.pop_front();
            if (!put) return put;
        }
        return {};
    }

    Result<void> on_frame(Connection& connection, amqp_frame_t& frame) override {
        auto const& method = frame.payload.method;
        switch (method.id) {
        case AMQP_BASIC_ACK_METHOD: {
            auto* ack = static_cast<amqp_basic_ack_t*>(method.decoded);
            settle(ack->delivery_tag, ack->multiple, true);
            return {};
        }
        case AMQP_BASIC_NACK_METHOD: {
            auto* nack = static_cast<amqp_basic_nack_t*>(method.decoded);
            settle(nack->delivery_tag, nack->multiple, false);
            return {};
        }
        case AMQP_BASIC_RETURN_METHOD: {
            std::string correlation;
            auto content = read_content(connection, frame.channel, &correlation);
            if (!content) return fail(content.error());
            std::uint64_t number = 0;
            std::from_chars(correlation.data(), correlation.data() + correlation.size(), number);
            for (auto& entry : sent_)
                if (entry.number == number) entry.returned = true;
            return {};
        }
        default: return {};
        }
    }

    void on_lost(Error const& error) override {
        // What was sent and not confirmed goes again, before what waits, in the old order.
        while (!sent_.empty()) {
            if (!sent_.back().settled) waiting_.push_front(std::move(sent_.back()));
            sent_.pop_back();
        }
        last_error_ = error;
        collect();
        expire();
    }
    void on_idle() override {
        collect();
        expire();
    }

    std::chrono::milliseconds patience() override {
        // Entries with a limit are looked at ten times a second, only while there are any.
        return sent_.empty() && waiting_.empty() && running_.empty() ? std::chrono::seconds(3600) : std::chrono::milliseconds(100);
    }

private:
    void collect() {
        std::lock_guard lock(mutex_);
        for (auto& entry : incoming_) waiting_.push_back(std::move(entry));
        incoming_.clear();
        for (auto& errand : errands_) running_.push_back(std::move(errand));
        errands_.clear();
    }

    void expire() {
        auto now = Steady::now();
        if (now < next_look_) return;
        next_look_ = now + std::chrono::milliseconds(50);
        auto late = [&](std::string const& what) {
            auto reason = last_error_.message().empty() ? std::string("no confirm from the broker") : last_error_.message();
            return Error(ErrorKind::Timeout, fmt::format("{}: {}", what, reason));
        };
        for (auto& entry : sent_)
            if (!entry.settled && entry.deadline <= now) {
                entry.settled = true;
                entry.batch->decide(entry.index, fail(late("publish to " + entry.message.queue)));
            }
        std::erase_if(waiting_, [&](Entry& entry) {
            if (entry.deadline > now) return false;
            entry.batch->decide(entry.index, fail(late("publish to " + entry.message.queue)));
            return true;
        });
        std::erase_if(running_, [&](Errand& errand) {
            if (errand.deadline > now) return false;
            errand.batch->decide(0, fail(late("broker")));
            return true;
        });
    }

    void settle(std::uint64_t number, bool multiple, bool stored) {
        confirm_limit_ = first_confirm_limit_;
        auto end = [&](Entry& entry) {
            if (entry.settled) return;
            if (!stored)
                entry.batch->decide(entry.index, fail(ErrorKind::Unavailable, "publish to {}: the broker could not store the message",
                                                      entry.message.queue));
            else if (entry.returned)
                entry.batch->decide(entry.index, fail(ErrorKind::NotFound, "publish to {}: there is no such queue", entry.message.queue));
            else entry.batch->decide(entry.index, {});
        };
        if (multiple) {
            while (!sent_.empty() && (sent_.front().number <= number || number == 0)) {
                end(sent_.front());
                sent_.pop_front();
            }
            return;
        }
        // Numbers rise along the deque; some may have been confirmed out of order.
        auto at = std::lower_bound(sent_.begin(), sent_.end(), number, [](Entry const& e, std::uint64_t n) { return e.number < n; });
        if (at == sent_.end() || at->number != number) return;
        end(*at);
        sent_.erase(at);
    }

    static constexpr std::chrono::milliseconds kLongestConfirm{160'000};

    std::size_t window_;
    std::chrono::milliseconds confirm_limit_;
    std::chrono::milliseconds const first_confirm_limit_ = confirm_limit_;
    std::mutex mutex_; // guards the next three
    bool closed_ = false;
    std::vector<Entry> incoming_;
    std::vector<Errand> errands_;
    std::deque<Entry> waiting_, sent_;
    std::deque<Errand> running_;
    std::uint64_t published_ = 0;
    Steady::time_point next_look_{};
    Error last_error_;
};

namespace {

Steady::time_point deadline_after(std::chrono::milliseconds limit) {
    return limit.count() <= 0 ? Steady::time_point::max() : Steady::now() + limit;
}

/// One operation: `submit` gets a Batch whose decision resumes the awaiting coroutine on its own executor.
template <class Submit>
awaitable<Results> await_batch(std::size_t count, Submit submit) {
    auto executor = co_await asio::this_coro::executor;
    auto start = [count, executor, submit = std::move(submit)](auto handler) mutable {
        auto batch = std::make_shared<Batch>();
        batch->results.resize(count);
        batch->open = count;
        auto slot = asio::get_associated_cancellation_slot(handler);
        batch->done = [handler = std::move(handler), executor, guard = asio::make_work_guard(executor)](Results results) mutable {
            asio::post(executor, [handler = std::move(handler), results = std::move(results)]() mutable { handler(std::move(results)); });
        };
        if (slot.is_connected())
            slot.assign([weak = std::weak_ptr<Batch>(batch)](asio::cancellation_type) {
                if (auto still = weak.lock()) still->decide_all(Error(ErrorKind::Unavailable, "cancelled"));
            });
        submit(batch);
    };
    co_return co_await asio::async_initiate<decltype(use_awaitable) const, void(Results)>(std::move(start), use_awaitable);
}

} // namespace

Publisher::Publisher(asio::any_io_executor executor, BrokerUrl url, LinkOptions options, std::size_t window)
    : impl_(std::make_unique<Impl>(std::move(executor), std::move(url), std::move(options), window)) {
    impl_->start();
}

Publisher::~Publisher() { stop(); }

void Publisher::stop() { impl_->close(); }

bool Publisher::connected() const noexcept { return impl_->up(); }

awaitable<std::vector<Result<void>>> Publisher::publish_all(std::vector<Message> messages, std::chrono::milliseconds limit) {
    auto count = messages.size();
    if (count == 0) co_return Results();
    auto submit = [this, messages = std::move(messages), deadline = deadline_after(limit)](std::shared_ptr<Batch> const& batch) mutable {
        impl_->submit(std::move(messages), batch, deadline);
    };
    co_return co_await await_batch(count, std::move(submit));
}

awaitable<Result<void>> Publisher::publish(Message message, std::chrono::milliseconds limit) {
    std::vector<Message> one;
    one.push_back(std::move(message));
    auto results = co_await publish_all(std::move(one), limit);
    co_return results.front();
}

awaitable<Result<void>> Publisher::with_session(std::function<Result<void>(Session&)> work, std::chrono::milliseconds limit) {
    auto submit = [this, work = std::move(work), deadline = deadline_after(limit)](std::shared_ptr<Batch> const& batch) mutable {
        impl_->submit(Errand{std::move(work), batch, deadline});
    };
    auto results = co_await await_batch(1, std::move(submit));
    co_return results.front();
}

} // namespace ocrctl::queue
