// Bilevel images out of gray ones. 0 is ink, 255 is paper.
#pragma once

#include <opencv2/core.hpp>

namespace ocrctl::ocr {

/// Sauvola's local threshold m * (1 + k * (s / 128 - 1)) over a window of (2 * half + 1)^2 pixels, cut at the edges.
/// Works with running column sums: one pass, memory for a few rows, whatever the window.
cv::Mat binarize_sauvola(cv::Mat const& gray, int half, double k);

/// One threshold for the whole image.
cv::Mat binarize_otsu(cv::Mat const& gray);

} // namespace ocrctl::ocr
