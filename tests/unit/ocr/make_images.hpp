// Images of every kind that libraries hold, made by the codec libraries themselves from one pattern.
#pragma once

#include <filesystem>
#include <opencv2/core.hpp>
#include <string>

namespace ocrctl::ocr {

/// White paper with black bars, and a colour cast if there are three channels (RGB).
cv::Mat pattern(int width, int height, int channels);

struct TiffKind {
    int bits = 8;
    bool rgb = false, palette = false, alpha = false, tiled = false, big = false, group4 = false;
    bool white_is_zero = false;
    double dpi = 300;
    bool per_cm = false;
    int orientation = 1;
    int pages = 1;
    bool thumbnail = false; // a reduced image before the pages' end
};
void make_tiff(std::filesystem::path const& file, cv::Mat const& pixels, TiffKind const& kind);

/// Gray, RGB; `cmyk`: from RGB, with Adobe's inverted marker. `exif`: an orientation, 0 for none.
void make_jpeg(std::filesystem::path const& file, cv::Mat const& pixels, bool cmyk = false, int dpi = 300,
               int exif = 0);
void make_jpeg2000(std::filesystem::path const& file, cv::Mat const& pixels, int tile = 0, int resolutions = 6);
void make_webp(std::filesystem::path const& file, cv::Mat const& pixels);

std::string slurp(std::filesystem::path const& file);
void spill(std::filesystem::path const& file, std::string const& bytes);

} // namespace ocrctl::ocr
