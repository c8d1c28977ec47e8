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

struct TiffFrames {
    std::vector<TiffFrame> pages;
    bool damaged = false; // the directories break off or lead astray after these: there may have been more
};

/// Reduced images and masks do not count, as in the engine. No pages: no TIFF, or a damaged one (the engine says how).
TiffFrames tiff_frames(std::filesystem::path const& file);

} // namespace ocrctl
