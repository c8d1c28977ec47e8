// TCP ports of this machine: which are free, and who holds the others.
#pragma once

#include <optional>
#include <string>

namespace ocrctl::deployer {

/// Can something listen there now?
bool port_free(std::string const& address, int port);
/// A free one below the range from which the kernel takes ports for outgoing connections, so that nobody gets it by chance while its owner restarts; 0 if none was found.
int choose_port(std::string const& address = "127.0.0.1");
/// "pid 4711 (beam.smp)", as far as it can be told.
std::optional<std::string> port_holder(int port);

} // namespace ocrctl::deployer
