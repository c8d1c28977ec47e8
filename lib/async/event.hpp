// A condition that coroutines wait for. Lives on one executor (thread or strand): notify() and wait() are called
// there. A waiter re-checks its own condition after each wake, as with a condition variable.
#pragma once

#include "lib/async/asio.hpp"

#include <chrono>

namespace ocrctl {

class Event {
public:
    explicit Event(asio::any_io_executor executor) : timer_(std::move(executor), asio::steady_timer::time_point::max()) {}

    void notify_all() { timer_.cancel(); }

    /// Until notified, or the wait is cancelled.
    awaitable<void> wait() { (void)co_await timer_.async_wait(as_tuple); }

private:
    asio::steady_timer timer_;
};

} // namespace ocrctl
