// What fixtures that start a server of their own share.
#pragma once

#include <filesystem>
#include <string>
#include <sys/types.h>
#include <vector>

namespace ocrctl::test {

/// True if a test tier was demanded by name: OCRCTL_REQUIRE=rabbitmq,ssh
bool required(std::string const& name);

/// A TCP port on the loopback that nobody listens on.
int spare_port();

/// A child that dies with us, leader of its group, in `folder`, its output appended to a file there.
pid_t launch(std::vector<std::string> const& argv, std::vector<std::string> const& env, std::filesystem::path const& folder, std::string const& log);

/// Signals it (SIGKILL: its group), waits until it is gone, and forgets it; what does not end within a minute is killed.
void end(pid_t& pid, int signal);

} // namespace ocrctl::test
