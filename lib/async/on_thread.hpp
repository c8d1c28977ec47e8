// Blocking work away from the io thread: `auto rows = co_await on_thread(pool, [&] { return query(); });`
// One small async operation, not a coroutine on the pool: that aborts the process if it is cancelled while the work
// runs (Boost 1.81). Cancelling does not interrupt the work; the awaiter gets its result when it ends.
#pragma once

#include "lib/async/asio.hpp"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/thread_pool.hpp>
#include <exception>
#include <optional>
#include <type_traits>

namespace ocrctl {

template <class Work>
auto on_thread(asio::thread_pool& pool, Work work) -> awaitable<std::invoke_result_t<Work&>> {
    using Value = std::invoke_result_t<Work&>;
    auto executor = co_await asio::this_coro::executor;
    if constexpr (std::is_void_v<Value>) {
        auto start = [&pool, executor](auto handler, Work job) {
            asio::post(pool, [handler = std::move(handler), job = std::move(job), executor,
                              guard = asio::make_work_guard(executor)]() mutable {
                std::exception_ptr problem;
                try {
                    job();
                } catch (...) {
                    problem = std::current_exception();
                }
                asio::post(executor, [handler = std::move(handler), problem]() mutable { handler(problem); });
            });
        };
        co_await asio::async_initiate<decltype(use_awaitable) const, void(std::exception_ptr)>(std::move(start), use_awaitable,
                                                                                               std::move(work));
    } else {
        auto start = [&pool, executor](auto handler, Work job) {
            asio::post(pool, [handler = std::move(handler), job = std::move(job), executor,
                              guard = asio::make_work_guard(executor)]() mutable {
                std::exception_ptr problem;
                std::optional<Value> value;
                try {
                    value.emplace(job());
                } catch (...) {
                    problem = std::current_exception();
                }
                asio::post(executor, [handler = std::move(handler), problem, value = std::move(value)]() mutable {
                    handler(problem, std::move(value));
                });
            });
        };
        auto value = co_await asio::async_initiate<decltype(use_awaitable) const,
                                                   void(std::exception_ptr, std::optional<Value>)>(
            std::move(start), use_awaitable, std::move(work));
        co_return std::move(*value);
    }
}

} // namespace ocrctl
