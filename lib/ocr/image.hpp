// Page images, read whole and exactly as they are stored: no turning by EXIF, no scaling. Every decoder's complaint
// about missing data is an error, so that a half-gray page never passes for a whole one.
#pragma once

#include "lib/base/error.hpp"

#include <cstdint>
#include <filesystem>
#include <opencv2/core.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::ocr {

enum class ImageKind { Unknown, Tiff, Jpeg, Png, Jpeg2000, Webp, Other };

/// By the first bytes of the file, never by its name.
ImageKind kind_of(std::string_view head) noexcept;
std::string_view name_of(ImageKind kind) noexcept; // "a TIFF image"

inline constexpr int kTesseractSide = 32767;                   // pixels: Tesseract counts with 16 bits
inline constexpr std::uint64_t kMostPixels = 1'200'000'000; // of an image that is decoded at all

struct Image {
    cv::Mat pixels; // 8 bit: one channel (gray) or three (RGB, in this order); empty after probe_image
    int width = 0, height = 0;
    bool bilevel = false;              // only 0 and 255 occur
    double dpi = 0;                    // what the file says, 0 if nothing plausible (70 to 2400)
    double orientation = 0;            // degrees clockwise that turn it upright, as PAGE's @orientation; from EXIF
    std::vector<std::string> warnings; // one sentence each: "x.tif holds 3 pages, the first one is used"
};

/// Reads frame `frame` (from 0) of a TIFF, or the whole of any other image. `mimetype` is what the caller was told the
/// file is; another kind of image is Invalid, unless it is empty. NotFound, Denied, Invalid (empty, truncated, damaged,
/// no image at all, no such frame), TooLarge (more than kMostPixels, no memory for it).
Result<Image> read_image(std::filesystem::path const& file, int frame = 0, std::string_view mimetype = {});

/// The same without the pixels, by the file's header alone: says nothing about damage further on.
Result<Image> probe_image(std::filesystem::path const& file, int frame = 0, std::string_view mimetype = {});

/// How many pages the file has: reduced images and masks inside a TIFF do not count.
Result<int> count_frames(std::filesystem::path const& file);

/// Writes an 8-bit gray or RGB image as PNG, with one bit a pixel if `bilevel`, with its resolution, flushed to disk.
Result<void> write_png(std::filesystem::path const& file, cv::Mat const& pixels, bool bilevel, double dpi);

/// One channel, by the usual weights. Shares the pixels if they are gray already.
cv::Mat to_gray(cv::Mat const& pixels);

/// The resolution that typical print of the seen letter height would have; 300 where there are no letters.
double estimate_dpi(cv::Mat const& pixels);

} // namespace ocrctl::ocr
