// The catalogue of the Processors that are part of ocrctl, as OCR-D's ocrd-tool.json has it. No OCR code is needed to
// read it: the server, the commands and the engine share it.
#pragma once

#include "lib/model/json.hpp"

#include <optional>
#include <string>
#include <string_view>

namespace ocrctl::tools {

/// Executable -> its tool entry: executable, description, steps, categories, cardinalities, parameters, with the
/// schema's defaults expanded, as `--dump-json` prints it. Text is in lib/tools/builtin_tools.json.
Json const& builtin_tools();

/// The entry of one Processor; null if it is none of ours. Valid for ever.
Json const* builtin_tool(std::string_view executable);

/// The parameters with the declared default of each one that is missing. Checks nothing.
Json with_defaults(Json const& tool, Json parameters);

/// How a METS agent names it: "ocrd-ocrctl-binarize v0.1.0".
std::string agent_name(std::string_view executable);

/// The version of ocrctl: "0.1.0".
std::string_view version() noexcept;

} // namespace ocrctl::tools
