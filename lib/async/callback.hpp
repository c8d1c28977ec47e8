// A coroutine that waits for another thread's call: `auto n = co_await from_callback<int>([&](auto done) { start(std::move(done)); });`
// `done` may be called once, on any thread; the awaiter goes on where it was. Cancelling does not interrupt it.
#pragma once

#include "lib/async/asio.hpp"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <functional>
#include <memory>
#include <utility>

namespace ocrctl {

template <class T, class Start>
awaitable<T> from_callback(Start start) {
    auto executor = co_await asio::this_coro::executor;
    auto begin = [executor](auto handler, Start run) {
        auto shared = std::make_shared<decltype(handler)>(std::move(handler));
        run(std::move_only_function<void(T)>([shared, executor, guard = asio::make_work_guard(executor)](T value) {
            asio::post(executor, [shared, value = std::move(value)]() mutable {
                auto call = std::move(*shared);
                call(std::move(value));
            });
        }));
    };
    co_return co_await asio::async_initiate<decltype(use_awaitable) const, void(T)>(std::move(begin), use_awaitable, std::move(start));
}

} // namespace ocrctl
