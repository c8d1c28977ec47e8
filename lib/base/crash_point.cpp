#include "lib/base/crash_point.hpp"

#include "lib/base/error.hpp"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <unistd.h>

namespace ocrctl {

std::vector<std::string_view> const& crash_points() {
    static std::vector<std::string_view> const points{
        "deploy.after-lock",
        "deploy.after-deployment-file",
        "deploy.after-secrets",
        "deploy.after-queue-files",
        "deploy.after-host-record",
        "deploy.after-desired",
        "deploy.after-agent-intent",
        "deploy.after-agent-launch",
        "deploy.after-agent-identity",
        "deploy.after-agent-ready",
        "deploy.after-apply",
        "deploy.after-services-ready",
        "deploy.after-remote-connect",
        "deploy.after-remote-binary",
        "deploy.after-remote-desired",
        "deploy.after-remote-intent",
        "deploy.after-remote-launch",
        "deploy.after-remote-identity",
        "deploy.after-agentless-record",
        "deploy.after-agentless-desired",
        "deploy.before-wait",
        "deploy.before-agentless-start",
        "deploy.after-agentless-start",
        "deploy.before-ready",
        "deploy.after-ready",
        "agent.after-lock",
        "agent.after-socket",
        "agent.after-intent",
        "agent.after-spawn",
        "agent.after-identity",
        "agent.after-ready",
        "host.after-lock",
        "host.after-intent",
        "host.after-spawn",
        "host.after-identity",
        "host.after-ready",
        "server.after-accept",
        "server.after-journal",
        "server.after-publish",
        "server.after-commit",
        "server.after-acknowledge",
        "server.after-rename",
        "server.before-save",
        "server.after-save",
        "server.foreign-after-store",
        "server.foreign-after-mirror",
        "server.foreign-after-publish",
        "worker.after-take",
        "worker.after-run",
        "worker.after-result",
    };
    return points;
}

void crash_point(std::string_view name) {
    static char const* const wanted = std::getenv("OCRCTL_CRASH_AT");
    if (wanted == nullptr || name != wanted) return;
    OCRCTL_CHECK(std::ranges::find(crash_points(), name) != crash_points().end());
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();
}

} // namespace ocrctl
