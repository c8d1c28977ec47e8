// A limit for any wait: Boost 1.81 has no cancel_after.
#pragma once

#include "lib/async/asio.hpp"

#include <boost/asio/experimental/awaitable_operators.hpp>
#include <chrono>
#include <optional>

namespace ocrctl {

/// The value, or nothing once the limit has passed (the work is then cancelled and has ended). A blocking C call
/// inside is not interrupted: it needs its own limit.
template <class T>
awaitable<std::optional<T>> within(std::chrono::milliseconds limit, awaitable<T> work) {
    using namespace asio::experimental::awaitable_operators;
    asio::steady_timer timer(co_await asio::this_coro::executor, limit);
    auto first = co_await (std::move(work) || timer.async_wait(use_awaitable));
    if (auto* value = std::get_if<0>(&first)) co_return std::move(*value);
    co_return std::nullopt;
}

/// Suspends for a time; false if cancelled meanwhile.
inline awaitable<bool> pause(std::chrono::milliseconds time) {
    asio::steady_timer timer(co_await asio::this_coro::executor, time);
    auto [error] = co_await timer.async_wait(as_tuple);
    co_return !error;
}

} // namespace ocrctl
