// Coroutines that belong to somebody. Nothing is detached: a TaskGroup logs what escapes from one, ends only that
// one, can be asked to stop and waited for. Lives on one executor; all functions are called there.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/async/event.hpp"
#include "lib/log/log.hpp"

#include <boost/asio/cancellation_signal.hpp>
#include <list>
#include <string>

namespace ocrctl {

class TaskGroup {
public:
    explicit TaskGroup(asio::any_io_executor executor, std::string_view area = "task");
    ~TaskGroup();

    /// Starts work on the group's executor. The name appears in the log if an exception escapes.
    void spawn(std::string name, awaitable<void> work);

    /// Asks all to end: each pending wait is cancelled (terminal). Those that start later are not affected.
    void cancel();

    /// Until none is left.
    awaitable<void> join();

    std::size_t size() const noexcept { return entries_.size(); }

private:
    struct Entry;
    asio::any_io_executor executor_;
    log::Logger log_;
    std::list<Entry> entries_;
    Event ended_;
};

} // namespace ocrctl
