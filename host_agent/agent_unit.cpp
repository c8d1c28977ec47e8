#include "host_agent/agent_unit.hpp"

#include <algorithm>

namespace ocrctl::host_agent {

std::chrono::seconds restart_delay(int failures) {
    if (failures <= 1) return std::chrono::seconds(0);
    return std::chrono::seconds(std::min(30, 1 << std::min(failures - 2, 5)));
}

} // namespace ocrctl::host_agent
