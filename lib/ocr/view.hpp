// The image that a step works on, chosen and made as OCR-D's image_from_page does it: the richest AlternativeImage that
// has the wanted features and none of the filtered ones, then cropped, turned by quarters and deskewed where the
// annotation says so and the image is not yet; with the transform between the page's coordinates and its own.
#pragma once

#include "lib/base/error.hpp"
#include "lib/ocr/image.hpp"
#include "lib/ocr/page.hpp"

#include <filesystem>
#include <string>
#include <string_view>

namespace ocrctl::ocr {

/// Where a page's files are: the run's own staging folder first, then the Workspace. Paths that lead out are refused.
class Files {
public:
    Files(std::filesystem::path workspace, std::filesystem::path staging)
        : workspace_(std::move(workspace)), staging_(std::move(staging)) {}
    /// NotFound names the path; Denied: it leads out of the Workspace.
    Result<std::filesystem::path> find(std::string const& path) const;
    std::filesystem::path const& staging() const noexcept { return staging_; }

private:
    std::filesystem::path workspace_, staging_;
};

struct View {
    cv::Mat pixels;
    bool bilevel = false;
    double dpi = 0;       // of the image's metadata, 0 if unknown
    std::string features; // as AlternativeImage/@comments has them
    Transform from_page = Transform::eye();
    int page_width = 0, page_height = 0;

    /// A polygon of the view in page coordinates, rounded and clipped into the page; empty if nothing is left.
    Polygon to_page(Polygon const& polygon) const;
};

/// `wanted` and `filtered` are comma-separated features. NotFound if no image satisfies them; Invalid if an image's
/// size contradicts the annotation. `known` is the page's own image if it is already in memory.
Result<View> view_of(Page const& page, Files const& files, std::string_view wanted = {}, std::string_view filtered = {},
                     Image const* known = nullptr);

/// The median of each channel: what fills corners that a turn exposes.
cv::Scalar background_of(cv::Mat const& pixels);

/// A copy turned by `degrees` counter-clockwise, large enough for its corners, and the transform that did it.
cv::Mat turned(cv::Mat const& pixels, bool bilevel, double degrees, Transform& transform);

} // namespace ocrctl::ocr
