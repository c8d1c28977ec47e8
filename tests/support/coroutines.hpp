// Runs coroutines from a test's body, with a limit.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/async/within.hpp"

#include <chrono>
#include <functional>
#include <gtest/gtest.h>
#include <optional>

namespace ocrctl::test {

/// Runs the context until the coroutine has ended and gives its value; a test failure and a default value past the limit
/// (the coroutine is left where it is: the context must not outlive what it refers to).
template <class T>
T run(asio::io_context& io, awaitable<T> work, std::chrono::seconds limit = std::chrono::seconds(60)) {
    std::optional<T> value;
    std::exception_ptr problem;
    asio::co_spawn(io, std::move(work), [&](std::exception_ptr p, T v) {
        problem = p;
        value = std::move(v);
    });
    auto end = std::chrono::steady_clock::now() + limit;
    io.restart();
    while (!value && std::chrono::steady_clock::now() < end) {
        if (io.run_one_for(std::chrono::milliseconds(100)) == 0) io.restart();
    }
    if (problem) std::rethrow_exception(problem);
    if (!value) {
        ADD_FAILURE() << "not done after " << limit.count() << " s";
        std::abort(); // its frame refers to the test's locals
    }
    return std::move(*value);
}

/// Runs the context until the condition holds; false past the limit.
inline bool run_until(asio::io_context& io, std::function<bool()> const& condition,
                      std::chrono::seconds limit = std::chrono::seconds(60)) {
    auto end = std::chrono::steady_clock::now() + limit;
    io.restart();
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        if (io.run_one_for(std::chrono::milliseconds(20)) == 0) io.restart();
    }
    return true;
}

} // namespace ocrctl::test
