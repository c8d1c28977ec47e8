#include "lib/ocr/binarize.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <opencv2/imgproc.hpp>
#include <vector>

namespace ocrctl::ocr {

namespace {

struct Row {
    unsigned char const* gray;
    unsigned char* out;
    std::uint32_t const *sums, *squares; // prefix sums over columns: [0] = 0, [x] = columns before x
    int width, half, rows;               // rows of the window that lie in the image
    float k;
};

inline unsigned char ink_or_paper(Row const& r, int x, int from, int to, float per_pixel) {
    // Differences of prefix sums are right even where the sums have wrapped round.
    float sum = static_cast<float>(r.sums[to] - r.sums[from]);
    float square = static_cast<float>(r.squares[to] - r.squares[from]);
    float mean = sum * per_pixel;
    float variance = std::max(square * per_pixel - mean * mean, 0.0f);
    float threshold = mean * (1.0f + r.k * (std::sqrt(variance) * (1.0f / 128.0f) - 1.0f));
    return static_cast<float>(r.gray[x]) > threshold ? 255 : 0;
}

void threshold_row(Row const& r) {
    int left = std::min(r.half, r.width), right = std::max(left, r.width - r.half - 1);
    auto edge = [&](int x) {
        int from = std::max(0, x - r.half), to = std::min(r.width, x + r.half + 1);
        r.out[x] = ink_or_paper(r, x, from, to, 1.0f / (static_cast<float>(to - from) * static_cast<float>(r.rows)));
    };
    for (int x = 0; x < left; ++x) edge(x);
    // The window lies inside for all of these: no branches, so that the compiler can take eight at a time.
    float per_pixel = 1.0f / (static_cast<float>(2 * r.half + 1) * static_cast<float>(r.rows));
    for (int x = left; x < right; ++x) r.out[x] = ink_or_paper(r, x, x - r.half, x + r.half + 1, per_pixel);
    for (int x = right; x < r.width; ++x) edge(x);
}

} // namespace

cv::Mat binarize_sauvola(cv::Mat const& gray, int half, double k) {
    CV_Assert(gray.type() == CV_8UC1 && half >= 1);
    int width = gray.cols, height = gray.rows;
    cv::Mat out(height, width, CV_8UC1);
    auto columns = static_cast<std::size_t>(width);
    std::vector<std::uint32_t> column_sums(columns), column_squares(columns), sums(columns + 1), squares(columns + 1);
    auto add = [&](int y) {
        auto const* row = gray.ptr(y);
        for (std::size_t x = 0; x < columns; ++x) {
            column_sums[x] += row[x];
            column_squares[x] += static_cast<std::uint32_t>(row[x]) * row[x];
        }
    };
    auto drop = [&](int y) {
        auto const* row = gray.ptr(y);
        for (std::size_t x = 0; x < columns; ++x) {
            column_sums[x] -= row[x];
            column_squares[x] -= static_cast<std::uint32_t>(row[x]) * row[x];
        }
    };
    for (int y = 0; y < std::min(half, height); ++y) add(y);
    for (int y = 0; y < height; ++y) {
        if (y + half < height) add(y + half);
        if (y - half - 1 >= 0) drop(y - half - 1);
        std::uint32_t sum = 0, square = 0;
        for (std::size_t x = 0; x < columns; ++x) {
            sums[x + 1] = sum += column_sums[x];
            squares[x + 1] = square += column_squares[x];
        }
        int rows = std::min(height, y + half + 1) - std::max(0, y - half);
        threshold_row({gray.ptr(y), out.ptr(y), sums.data(), squares.data(), width, half, rows, static_cast<float>(k)});
    }
    return out;
}

cv::Mat binarize_otsu(cv::Mat const& gray) {
    cv::Mat out;
    cv::threshold(gray, out, 0, 255, cv::THRESH_BINARY | cv::THRESH_OTSU);
    return out;
}

} // namespace ocrctl::ocr
