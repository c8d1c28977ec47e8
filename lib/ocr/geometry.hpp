// Points and polygons of a page, in pixels of the stored image, and the transforms between it and derived images.
#pragma once

#include <opencv2/core.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::ocr {

using Polygon = std::vector<cv::Point2d>;
/// Affine, homogeneous; acts on pixel corners (0,0 is the upper left corner of the first pixel), as OCR-D's do.
using Transform = cv::Matx33d;

cv::Point2d transformed(Transform const& t, cv::Point2d p) noexcept;
Polygon transformed(Transform const& t, Polygon polygon);
Transform shift(double x, double y) noexcept;
/// Passive rotation as OCR-D's rotate_coordinates has it: `degrees` counter-clockwise, image y pointing down.
Transform turn(double degrees) noexcept;

Polygon rectangle(cv::Rect2d const& box);
cv::Rect2d bounds(Polygon const& polygon);

/// "10,20 30,20 ...": empty for text that is no list of points.
Polygon parse_points(std::string_view text);
std::string format_points(Polygon const& polygon);

/// Rounds, clips into a page of width x height pixels, drops repeated points; at least three corners and some area, or
/// empty if nothing of the polygon lies in the page.
Polygon on_page(Polygon const& polygon, int width, int height);

} // namespace ocrctl::ocr
