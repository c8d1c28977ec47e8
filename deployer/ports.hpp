// TCP ports of this machine: which are free, and who holds the others.
#pragma once

#include <optional>
#include <set>
#include <string>

namespace ocrctl::deployer {

/// Can something listen there now?
bool port_free(std::string const& address, int port);
/// A free one from 20000 to 32000 that is not in `taken`, by chance; outside the range from which the kernel takes ports for outgoing
/// connections where it leaves one, so that nobody gets it while its owner restarts. 0 if there is none.
/// `taken` is for those that were chosen and that nobody listens at yet.
int choose_port(std::set<int> const& taken = {}, std::string const& address = "127.0.0.1");
/// "pid 4711 (beam.smp)", as far as it can be told.
std::optional<std::string> port_holder(int port);

} // namespace ocrctl::deployer
