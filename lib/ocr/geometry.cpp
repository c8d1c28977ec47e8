#include "lib/ocr/geometry.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fmt/format.h>

namespace ocrctl::ocr {

cv::Point2d transformed(Transform const& t, cv::Point2d p) noexcept {
    return {t(0, 0) * p.x + t(0, 1) * p.y + t(0, 2), t(1, 0) * p.x + t(1, 1) * p.y + t(1, 2)};
}

Polygon transformed(Transform const& t, Polygon polygon) {
    for (auto& point : polygon) point = transformed(t, point);
    return polygon;
}

Transform shift(double x, double y) noexcept {
    return {1, 0, x, 0, 1, y, 0, 0, 1};
}

Transform turn(double degrees) noexcept {
    double angle = degrees * CV_PI / 180, c = std::cos(angle), s = std::sin(angle);
    return {c, s, 0, -s, c, 0, 0, 0, 1};
}

Polygon rectangle(cv::Rect2d const& box) {
    return {{box.x, box.y},
            {box.x + box.width, box.y},
            {box.x + box.width, box.y + box.height},
            {box.x, box.y + box.height}};
}

cv::Rect2d bounds(Polygon const& polygon) {
    if (polygon.empty()) return {};
    double left = polygon[0].x, right = left, top = polygon[0].y, bottom = top;
    for (auto const& p : polygon) {
        left = std::min(left, p.x), right = std::max(right, p.x);
        top = std::min(top, p.y), bottom = std::max(bottom, p.y);
    }
    return {left, top, right - left, bottom - top};
}

Polygon parse_points(std::string_view text) {
    Polygon polygon;
    char const* at = text.data();
    char const* end = at + text.size();
    auto blanks = [&] {
        while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) ++at;
    };
    for (blanks(); at < end; blanks()) {
        cv::Point2d p;
        auto x = std::from_chars(at, end, p.x);
        if (x.ec != std::errc{} || x.ptr == end || *x.ptr != ',') return {};
        auto y = std::from_chars(x.ptr + 1, end, p.y);
        if (y.ec != std::errc{} || !std::isfinite(p.x) || !std::isfinite(p.y)) return {};
        at = y.ptr;
        polygon.push_back(p);
    }
    return polygon;
}

std::string format_points(Polygon const& polygon) {
    std::string text;
    for (auto const& p : polygon)
        fmt::format_to(std::back_inserter(text), "{}{},{}", text.empty() ? "" : " ", std::lround(p.x),
                       std::lround(p.y));
    return text;
}

namespace {

// Sutherland-Hodgman against one side; inside and cut are given as functions of the side.
template <class Inside, class Cut> Polygon clip_side(Polygon const& in, Inside inside, Cut cut) {
    Polygon out;
    for (std::size_t i = 0; i < in.size(); ++i) {
        auto const& a = in[i];
        auto const& b = in[(i + 1) % in.size()];
        if (inside(a)) out.push_back(a);
        if (inside(a) != inside(b)) out.push_back(cut(a, b));
    }
    return out;
}

double area(Polygon const& polygon) {
    double twice = 0;
    for (std::size_t i = 0; i < polygon.size(); ++i) {
        auto const& a = polygon[i];
        auto const& b = polygon[(i + 1) % polygon.size()];
        twice += a.x * b.y - b.x * a.y;
    }
    return std::abs(twice) / 2;
}

} // namespace

Polygon on_page(Polygon const& polygon, int width, int height) {
    // Corner coordinates up to the last pixel: a validator compares them with the image's size.
    double right = width - 1, bottom = height - 1;
    auto at_x = [](double x) {
        return
            [x](cv::Point2d a, cv::Point2d b) { return cv::Point2d(x, a.y + (b.y - a.y) * (x - a.x) / (b.x - a.x)); };
    };
    auto at_y = [](double y) {
        return
            [y](cv::Point2d a, cv::Point2d b) { return cv::Point2d(a.x + (b.x - a.x) * (y - a.y) / (b.y - a.y), y); };
    };
    Polygon cut = clip_side(polygon, [](cv::Point2d p) { return p.x >= 0; }, at_x(0));
    cut = clip_side(cut, [=](cv::Point2d p) { return p.x <= right; }, at_x(right));
    cut = clip_side(cut, [](cv::Point2d p) { return p.y >= 0; }, at_y(0));
    cut = clip_side(cut, [=](cv::Point2d p) { return p.y <= bottom; }, at_y(bottom));
    Polygon out;
    for (auto p : cut) {
        p = {std::round(p.x), std::round(p.y)};
        if (out.empty() || out.back() != p) out.push_back(p);
    }
    while (out.size() > 1 && out.front() == out.back()) out.pop_back();
    if (out.size() >= 3 && area(out) >= 1) return out;
    if (cut.empty() || right < 1 || bottom < 1) return {};
    // Thinner than a pixel: the smallest box around it.
    auto box = bounds(cut);
    double x = std::clamp(std::floor(box.x), 0.0, right - 1), y = std::clamp(std::floor(box.y), 0.0, bottom - 1);
    return rectangle({x, y, std::min(std::max(1.0, std::ceil(box.width)), right - x),
                      std::min(std::max(1.0, std::ceil(box.height)), bottom - y)});
}

} // namespace ocrctl::ocr
