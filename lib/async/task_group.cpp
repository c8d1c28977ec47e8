#include "lib/async/task_group.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/system/system_error.hpp>

namespace ocrctl {

struct TaskGroup::Entry {
    std::string name;
    asio::cancellation_signal signal;
};

TaskGroup::TaskGroup(asio::any_io_executor executor, std::string_view area)
    : executor_(executor), log_(area), ended_(std::move(executor)) {}

TaskGroup::~TaskGroup() = default;

void TaskGroup::spawn(std::string name, awaitable<void> work) {
    auto entry = entries_.emplace(entries_.end());
    entry->name = std::move(name);
    auto done = [this, entry](std::exception_ptr problem) {
        if (problem) {
            try {
                std::rethrow_exception(problem);
            } catch (boost::system::system_error const& error) {
                if (error.code() != asio::error::operation_aborted)
                    log_.error("task.failed", log::kv("task", entry->name), log::kv("error", error.what()));
            } catch (std::exception const& error) {
                log_.error("task.failed", log::kv("task", entry->name), log::kv("error", error.what()));
            }
        }
        entries_.erase(entry);
        if (entries_.empty()) ended_.notify_all();
    };
    asio::co_spawn(executor_, std::move(work), asio::bind_cancellation_slot(entry->signal.slot(), std::move(done)));
}

void TaskGroup::cancel() {
    // emit() may end a coroutine at once and with it its entry: step on first.
    for (auto entry = entries_.begin(); entry != entries_.end();) {
        auto current = entry++;
        current->signal.emit(asio::cancellation_type::terminal);
    }
}

awaitable<void> TaskGroup::join() {
    while (!entries_.empty()) co_await ended_.wait();
}

} // namespace ocrctl
