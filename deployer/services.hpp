// Services that we do not start: do they answer? Asked before anything else is done.
#pragma once

#include "deployer/plan.hpp"

#include <string>
#include <vector>

namespace ocrctl::deployer {

/// Is a MongoDB (or what speaks its protocol) there? Says nothing about the login. Blocks for at most `limit`. Errors: Unavailable.
Result<void> mongo_answers(std::string const& host, int port, std::chrono::milliseconds limit = std::chrono::seconds(5));

/// A sentence for each external service of the plan that does not answer, or not to the login it was given. Blocks.
std::vector<std::string> services_missing(config::Deployment const& config, Plan const& plan);

} // namespace ocrctl::deployer
