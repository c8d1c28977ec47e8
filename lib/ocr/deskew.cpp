#include "lib/ocr/deskew.hpp"

#include <algorithm>
#include <cmath>
#include <opencv2/imgproc.hpp>
#include <vector>

namespace ocrctl::ocr {

namespace {

constexpr int kStrip = 8; // columns that move together

// Ink per row, for each strip of columns.
struct Profiles {
    std::vector<std::vector<float>> strips;
    int height = 0, width = 0;
};

Profiles profiles_of(cv::Mat const& ink) {
    Profiles p;
    p.height = ink.rows;
    p.width = ink.cols;
    for (int x = 0; x < ink.cols; x += kStrip) {
        cv::Mat sums;
        cv::reduce(ink.colRange(x, std::min(ink.cols, x + kStrip)), sums, 1, cv::REDUCE_SUM, CV_32F);
        p.strips.emplace_back(sums.begin<float>(), sums.end<float>());
    }
    return p;
}

// How much the rows differ from their neighbours once the page is sheared by the angle: lines and gaps stand out most
// where the angle is right.
double sharpness(Profiles const& p, double degrees) {
    double slope = std::tan(degrees * CV_PI / 180);
    int reach = static_cast<int>(std::ceil(std::abs(slope) * p.width / 2)) + 2;
    std::vector<float> rows(static_cast<std::size_t>(p.height + 2 * reach), 0.0f);
    for (std::size_t i = 0; i < p.strips.size(); ++i) {
        double centre = (static_cast<double>(i) + 0.5) * kStrip - p.width / 2.0;
        double exact = -centre * slope;
        double whole = std::floor(exact);
        auto part = static_cast<float>(exact - whole);
        auto* to = rows.data() + reach + static_cast<int>(whole);
        auto const& strip = p.strips[i];
        for (std::size_t y = 0; y < strip.size(); ++y) {
            to[y] += strip[y] * (1 - part);
            to[y + 1] += strip[y] * part;
        }
    }
    double sum = 0;
    for (std::size_t y = 1; y < rows.size(); ++y) {
        double step = rows[y] - rows[y - 1];
        sum += step * step;
    }
    return sum;
}

} // namespace

double skew_of(cv::Mat const& gray, double dpi, double max_angle) {
    // About 100 dpi is enough: a line is then still a dozen rows high.
    double scale = std::clamp(100.0 / std::max(dpi, 70.0), 0.1, 1.0);
    cv::Mat small, ink;
    if (gray.cols * scale < 32 || gray.rows * scale < 32) return 0; // resize refuses to make nothing of it
    cv::resize(gray, small, cv::Size(), scale, scale, cv::INTER_AREA);
    // Uneven light: measured against the neighbourhood, not against the page.
    cv::Mat smooth;
    cv::blur(small, smooth, cv::Size(31, 31));
    cv::subtract(smooth, small, ink);
    cv::threshold(ink, ink, 20, 1, cv::THRESH_BINARY);
    // Scan borders would outvote the print.
    int margin_x = ink.cols / 25, margin_y = ink.rows / 25;
    ink = ink(cv::Rect(margin_x, margin_y, ink.cols - 2 * margin_x, ink.rows - 2 * margin_y));
    if (cv::countNonZero(ink) < 200) return 0;

    auto profiles = profiles_of(ink);
    double best = 0, most = sharpness(profiles, 0), none = most;
    auto look = [&](double from, double to, double step) {
        for (double angle = from; angle <= to + 1e-9; angle += step) {
            double value = sharpness(profiles, angle);
            if (value > most) most = value, best = angle;
        }
    };
    look(-max_angle, max_angle, 0.2);
    look(best - 0.2, best + 0.2, 0.05);
    look(best - 0.05, best + 0.05, 0.01);
    if (most < none * 1.02) return 0; // no better than straight
    return std::round(best * 100) / 100;
}

} // namespace ocrctl::ocr
