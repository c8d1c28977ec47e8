// The skew of a page, measured by the sharpness of its row profile.
#pragma once

#include <opencv2/core.hpp>

namespace ocrctl::ocr {

/// Degrees by which text lines fall towards the right (a page turned clockwise): turning the image counter-clockwise by
/// that much sets it straight. 0 if there is too little print to say. Looks between -max_angle and max_angle.
double skew_of(cv::Mat const& gray, double dpi, double max_angle);

} // namespace ocrctl::ocr
