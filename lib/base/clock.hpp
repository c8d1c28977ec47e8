// Time as we store and print it. Durations are std::chrono everywhere; instants in documents are milliseconds since
// the epoch, UTC.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace ocrctl {

using Millis = std::int64_t;

inline Millis now_millis() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

/// "2026-03-01T09:12:07.114Z"
std::string format_time(Millis instant);

} // namespace ocrctl
