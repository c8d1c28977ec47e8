// The pages of a TIFF, found by walking its directories: enough to plan without the image libraries, which only engines
// load.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace ocrctl {

struct TiffFrame {
    std::uint32_t width = 0, height = 0;
};

/// Reduced images and masks do not count, as in the engine. Empty: no TIFF, or a damaged one (the engine says how).
std::vector<TiffFrame> tiff_frames(std::filesystem::path const& file);

} // namespace ocrctl
