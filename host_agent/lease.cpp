#include "host_agent/lease.hpp"

#include "lib/base/files.hpp"

#include <algorithm>
#include <ctime>

namespace ocrctl::host_agent {

using log::kv;
using std::chrono::milliseconds;

namespace {

/// The clock of the lease: it counts while the machine is suspended, and nobody sets it.
std::int64_t boot_clock_ms() {
    timespec now{};
    ::clock_gettime(CLOCK_BOOTTIME, &now);
    return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
}

} // namespace

void Lease::renew() {
    if (agent_.desired.lease_s <= 0) return;
    auto length = std::int64_t{agent_.desired.lease_s} * 1000;
    end_ = boot_clock_ms() + length;
    if (end_ - saved_ < std::min<std::int64_t>(60000, length / 10)) return;
    Json json{{"boot", process::boot_id()}, {"end_ms", end_}, {"lease_s", agent_.desired.lease_s}};
    if (auto written = write_file_atomically(agent_.paths.lease(), dump(json), 0600); written) saved_ = end_;
    agent_.notify();
}

void Lease::load() {
    auto text = read_file(agent_.paths.lease());
    auto json = text ? parse_json(*text) : Result<Json>(fail(text.error()));
    if (json && json->is_object() && json->value("boot", std::string()) == process::boot_id()) {
        end_ = saved_ = json->value("end_ms", std::int64_t{0});
        return;
    }
    if (!agent_.desired.deployment.empty()) renew();
}

awaitable<void> Lease::ended() {
    for (;;) {
        if (agent_.desired.lease_s <= 0 || end_ == 0) {
            co_await agent_.changed();
            continue;
        }
        auto left = end_ - boot_clock_ms();
        if (left <= 0) break;
        // The steady clock stands still in suspend, so look again now and then.
        co_await agent_.changed(SteadyClock::now() + milliseconds(std::min<std::int64_t>(left, 30000)));
    }
    agent_.log.warn("lease.ended", kv("lease_s", agent_.desired.lease_s));
}

} // namespace ocrctl::host_agent
