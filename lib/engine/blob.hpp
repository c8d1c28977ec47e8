// The engine program inside our own binary. Linked (ocrctl::engine_blob) only where engines are started from one file;
// without it the symbols are null and $OCRCTL_ENGINE must name the program.
#pragma once

#include "lib/base/error.hpp"

#include <filesystem>

namespace ocrctl::engine {

/// A path that can be executed: `wanted`, else $OCRCTL_ENGINE, else a memory file with the blob, made once per process.
/// Unavailable: this binary has no engine inside.
Result<std::filesystem::path> engine_program(std::filesystem::path const& wanted = {});

} // namespace ocrctl::engine
