// Named points at which a test may end this process as kill -9 does: deploy, agent, server and Worker call
// crash_point("deploy.after-lock") where a crash would hurt most. Without OCRCTL_CRASH_AT in the environment it costs
// one comparison.
#pragma once

#include <string_view>
#include <vector>

namespace ocrctl {

/// SIGKILL to this process if OCRCTL_CRASH_AT names this point. The name must stand in crash_points().
void crash_point(std::string_view name);

/// Every name, in the order in which a deployment passes them.
std::vector<std::string_view> const& crash_points();

} // namespace ocrctl
