// What the foreign Workers' programs on other machines say of themselves (--dump-json), kept for the server's tool
// catalogue in STATE/found-tools.json. Programs of this machine the server asks itself.
#pragma once

#include "deployer/host_driver.hpp"
#include "lib/model/unit.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace ocrctl::deployer {

/// Asks the programs of the foreign Workers among `units` on that Host, some at a time, those alone that are new or
/// have changed since they were asked; their answers are merged into `file`. Returns the Processors that gave none.
/// Thread-safe, for one driver each. Errors: those of the driver and of writing the file.
Result<std::vector<std::string>> ask_programs(HostDriver& driver, std::vector<UnitSpec> const& units,
                                              std::filesystem::path const& file);

} // namespace ocrctl::deployer
