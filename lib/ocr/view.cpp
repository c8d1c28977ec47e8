#include "lib/ocr/view.hpp"

#include "lib/base/text.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <opencv2/imgproc.hpp>
#include <set>

namespace ocrctl::ocr {

Result<std::filesystem::path> Files::find(std::string const& path) const {
    namespace fs = std::filesystem;
    if (path.find("://") != std::string::npos)
        return fail(ErrorKind::NotFound, "{} is not on this machine: remote images are fetched before a run", path);
    fs::path relative = fs::path(path).lexically_normal();
    if (relative.is_absolute()) {
        relative = relative.lexically_relative(workspace_);
    }
    if (relative.empty() || *relative.begin() == "..")
        return fail(ErrorKind::Denied, "{} leads out of the workspace", path);
    std::error_code ignored;
    for (auto const& base : {staging_, workspace_})
        if (!base.empty() && fs::exists(base / relative, ignored)) return base / relative;
    return fail(ErrorKind::NotFound, "there is no file {} in the workspace {}", relative.string(), workspace_.string());
}

Polygon View::to_page(Polygon const& polygon) const {
    return on_page(transformed(from_page.inv(), polygon), page_width, page_height);
}

cv::Scalar background_of(cv::Mat const& pixels) {
    int channels = pixels.channels();
    std::array<std::array<std::uint32_t, 256>, 3> counts{};
    std::size_t seen = 0;
    int step = std::max(1, std::min(pixels.rows, pixels.cols) / 500); // every so many rows and columns are enough
    for (int y = 0; y < pixels.rows; y += step) {
        auto const* row = pixels.ptr(y);
        for (int x = 0; x < pixels.cols; x += step, ++seen)
            for (int c = 0; c < channels; ++c) ++counts[static_cast<std::size_t>(c)][row[x * channels + c]];
    }
    cv::Scalar median;
    for (int c = 0; c < channels; ++c) {
        std::size_t sum = 0;
        int v = 0;
        while (v < 255 && (sum += counts[static_cast<std::size_t>(c)][static_cast<std::size_t>(v)]) * 2 < seen) ++v;
        median[c] = v;
    }
    return median;
}

cv::Mat turned(cv::Mat const& pixels, bool bilevel, double degrees, Transform& transform) {
    double angle = degrees * CV_PI / 180, c = std::abs(std::cos(angle)), s = std::abs(std::sin(angle));
    double w = pixels.cols, h = pixels.rows;
    double new_w = c * w + s * h, new_h = s * w + c * h;
    Transform moved = shift(new_w / 2, new_h / 2) * turn(degrees) * shift(-w / 2, -h / 2);
    // Ours acts on corners of pixels, OpenCV's on their centres.
    Transform centres = shift(-0.5, -0.5) * moved * shift(0.5, 0.5);
    cv::Matx23d affine(centres(0, 0), centres(0, 1), centres(0, 2), centres(1, 0), centres(1, 1), centres(1, 2));
    cv::Mat out;
    cv::warpAffine(pixels, out, affine,
                   cv::Size(static_cast<int>(std::ceil(new_w - 1e-6)), static_cast<int>(std::ceil(new_h - 1e-6))),
                   cv::INTER_LINEAR, cv::BORDER_CONSTANT, background_of(pixels));
    if (bilevel) cv::threshold(out, out, 127, 255, cv::THRESH_BINARY);
    transform = moved * transform;
    return out;
}

namespace {

std::set<std::string> feature_set(std::string_view features) {
    std::set<std::string> found;
    for (auto const& feature : split(features, ','))
        if (!trim(feature).empty()) found.emplace(trim(feature));
    return found;
}

// Features that the annotation tells us how to make.
std::size_t not_automatic(std::set<std::string> const& features) {
    return static_cast<std::size_t>(std::ranges::count_if(features, [](std::string const& f) {
        return f != "cropped" && f != "deskewed" && !f.starts_with("rotated-");
    }));
}

} // namespace

Result<View> view_of(Page const& page, Files const& files, std::string_view wanted_text, std::string_view filtered_text,
                     Image const* known) {
    auto wanted = feature_set(wanted_text), filtered = feature_set(filtered_text);
    View view;
    view.page_width = page.width();
    view.page_height = page.height();

    pugi::xml_node best;
    std::set<std::string> best_features;
    for (auto candidate : children_of(page.node(), "AlternativeImage")) {
        auto features = feature_set(candidate.attribute("comments").value());
        bool all = std::ranges::all_of(wanted, [&](auto const& f) { return features.contains(f); });
        bool none = std::ranges::none_of(filtered, [&](auto const& f) { return features.contains(f); });
        if (all && none && not_automatic(features) >= not_automatic(best_features)) {
            best = candidate;
            best_features = features;
        }
    }
    std::string name = best ? best.attribute("filename").value() : page.image();
    std::vector<std::string> applied;
    if (best) {
        view.features = best.attribute("comments").value();
        for (auto const& f : split(view.features, ',')) applied.emplace_back(trim(f));
    }
    if (known && !best) {
        view.pixels = known->pixels;
        view.bilevel = known->bilevel;
        view.dpi = known->dpi;
    } else {
        auto file = files.find(name);
        if (!file) return std::unexpected(file.error());
        auto image = read_image(*file, best ? 0 : page.frame());
        if (!image) return std::unexpected(image.error());
        view.pixels = image->pixels;
        view.bilevel = image->bilevel;
        view.dpi = image->dpi;
    }

    // PAGE counts clockwise, OCR-D's image functions the other way; quarters and the rest are separate steps.
    double angle = -page.orientation();
    double quarters = std::fmod(std::fmod(angle + 45, 360) + 360, 360);
    int orientation = static_cast<int>(std::floor(quarters / 90)) * 90;
    double skew = std::fmod(std::fmod(angle, 360) + 360, 360) - orientation;
    if (skew > 180) skew -= 360;
    auto rotated = "rotated-" + std::to_string(orientation);
    Polygon border = coords_of(child_of(page.node(), "Border"));

    auto before = applied.size();
    auto lacks = [&](std::string const& f) {
        return std::ranges::find(applied, f) == applied.end() && !filtered.contains(f);
    };
    std::vector<std::string> steps = applied;
    if (!border.empty() && lacks("cropped")) steps.emplace_back("cropped");
    if (orientation != 0 && lacks(rotated)) steps.push_back(rotated);
    if (skew != 0 && lacks("deskewed")) steps.emplace_back("deskewed");
    steps.emplace_back(); // the place where sizes are compared if there is nothing to add

    cv::Size2d size(page.width(), page.height()); // what the image should have after the steps so far
    for (std::size_t i = 0; i < steps.size(); ++i) {
        auto const& step = steps[i];
        bool make = i >= before;
        if (i == before &&
            (std::abs(view.pixels.cols - size.width) >= 2 || std::abs(view.pixels.rows - size.height) >= 2))
            return fail(ErrorKind::Invalid,
                        "image {} has {} x {} pixels, but PAGE-XML says it should have {:.0f} x {:.0f}", name,
                        view.pixels.cols, view.pixels.rows, size.width, size.height);
        if (step == "cropped") {
            Polygon inside = transformed(view.from_page, border);
            auto box = bounds(inside);
            cv::Rect crop(cv::Point(static_cast<int>(std::floor(box.x)), static_cast<int>(std::floor(box.y))),
                          cv::Point(static_cast<int>(std::ceil(box.x + box.width)),
                                    static_cast<int>(std::ceil(box.y + box.height))));
            crop &= cv::Rect(0, 0, static_cast<int>(size.width), static_cast<int>(size.height));
            if (crop.empty()) return fail(ErrorKind::Invalid, "the Border of the page lies outside of its image");
            if (make) {
                cv::Mat cut = view.pixels(crop).clone();
                bool box_like = inside.size() == 4 && view.from_page(0, 1) == 0;
                if (!box_like) {
                    cv::Mat outside(cut.size(), CV_8UC1, cv::Scalar(255));
                    std::vector<cv::Point> corners;
                    for (auto p : inside)
                        corners.emplace_back(static_cast<int>(std::lround(p.x)) - crop.x,
                                             static_cast<int>(std::lround(p.y)) - crop.y);
                    cv::fillPoly(outside, std::vector<std::vector<cv::Point>>{corners}, cv::Scalar(0));
                    cut.setTo(background_of(view.pixels), outside);
                }
                view.pixels = cut;
            }
            view.from_page = shift(-crop.x, -crop.y) * view.from_page;
            size = cv::Size2d(crop.width, crop.height);
        } else if (step.starts_with("rotated-")) {
            int degrees = std::atoi(step.c_str() + 8); // counter-clockwise
            double w = size.width, h = size.height;
            bool sideways = degrees == 90 || degrees == 270;
            view.from_page = shift((sideways ? h : w) / 2, (sideways ? w : h) / 2) * turn(degrees) *
                             shift(-w / 2, -h / 2) * view.from_page;
            if (sideways) std::swap(size.width, size.height);
            if (make) {
                cv::Mat out;
                cv::rotate(view.pixels, out,
                           degrees == 90    ? cv::ROTATE_90_COUNTERCLOCKWISE
                           : degrees == 180 ? cv::ROTATE_180
                                            : cv::ROTATE_90_CLOCKWISE);
                view.pixels = out;
            }
        } else if (step == "deskewed") {
            if (make) {
                view.pixels = turned(view.pixels, view.bilevel, skew, view.from_page);
                size = cv::Size2d(view.pixels.cols, view.pixels.rows);
            } else {
                double a = skew * CV_PI / 180, c = std::abs(std::cos(a)), s = std::abs(std::sin(a));
                cv::Size2d grown(c * size.width + s * size.height, s * size.width + c * size.height);
                view.from_page = shift(grown.width / 2, grown.height / 2) * turn(skew) *
                                 shift(-size.width / 2, -size.height / 2) * view.from_page;
                size = grown;
            }
        }
        if (make && !step.empty()) view.features += (view.features.empty() ? "" : ",") + step;
    }
    auto have = feature_set(view.features);
    for (auto const& f : wanted)
        if (!have.contains(f)) return fail(ErrorKind::NotFound, "the page has no image with the feature {}", f);
    for (auto const& f : filtered)
        if (have.contains(f)) return fail(ErrorKind::NotFound, "the page has no image without the feature {}", f);
    return view;
}

} // namespace ocrctl::ocr
