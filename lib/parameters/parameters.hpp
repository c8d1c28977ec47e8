// The check of a Job's parameters against what its Processor declares (the tool JSON of OCR-D): no others than the
// declared, all required ones there, each of its type and within its bounds.
#pragma once

#include "lib/model/json.hpp"

namespace ocrctl::parameters {

/// Pure: neither the tool nor the parameters are changed; thread-safe. Invalid lists every fault as OCR-D words it,
/// `[path] text` with the path's parts joined by dots (empty for the whole object), joined by "; ".
/// Internal if the tool JSON itself is broken.
Result<void> check_parameters(Json const& tool, Json const& parameters);

/// The same; gives the parameters with declared defaults filled in, which is what was checked.
Result<Json> checked_parameters(Json const& tool, Json const& parameters);

} // namespace ocrctl::parameters
