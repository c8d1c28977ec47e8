#include "lib/ocr/image.hpp"

#include "lib/ocr/binarize.hpp"
#include "lib/ocr/deskew.hpp"
#include "tests/support/scratch_folder.hpp"
#include "tests/unit/ocr/make_images.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <opencv2/imgproc.hpp>
#include <random>

namespace ocrctl::ocr {
namespace {

class ImageTest : public ::testing::Test {
protected:
    std::filesystem::path path(std::string const& name) { return folder_.path() / name; }

    // The mean difference from the pattern, after making both gray.
    static double difference(cv::Mat const& a, cv::Mat const& b) {
        cv::Mat difference;
        cv::absdiff(to_gray(a), to_gray(b), difference);
        return cv::mean(difference)[0];
    }
    void expect_like(std::string const& name, cv::Mat const& wanted, double tolerance) {
        auto image = read_image(path(name));
        ASSERT_TRUE(image) << name << ": " << image.error().message();
        ASSERT_EQ(image->pixels.size(), wanted.size()) << name;
        EXPECT_LE(difference(image->pixels, wanted), tolerance) << name;
        auto probed = probe_image(path(name));
        ASSERT_TRUE(probed) << name;
        EXPECT_EQ(probed->width, wanted.cols) << name;
        EXPECT_EQ(probed->height, wanted.rows) << name;
        EXPECT_EQ(probed->dpi, image->dpi) << name;
    }
    std::string why_not(std::string const& name, std::string_view mimetype = {}) {
        auto image = read_image(path(name), 0, mimetype);
        return image ? "(it could be read)" : image.error().message();
    }

    test::ScratchFolder folder_;
    cv::Mat gray_ = pattern(200, 150, 1), rgb_ = pattern(200, 150, 3);
};

TEST_F(ImageTest, ReadsEveryKindOfTiff) {
    cv::Mat bilevel;
    cv::threshold(gray_, bilevel, 127, 255, cv::THRESH_BINARY);
    make_tiff(path("g4.tif"), bilevel, {.bits = 1, .group4 = true, .white_is_zero = true});
    expect_like("g4.tif", bilevel, 0);
    EXPECT_TRUE(read_image(path("g4.tif"))->bilevel);
    make_tiff(path("gray8.tif"), gray_, {});
    expect_like("gray8.tif", gray_, 0);
    make_tiff(path("white.tif"), gray_, {.white_is_zero = true});
    expect_like("white.tif", gray_, 0);
    make_tiff(path("gray16.tif"), gray_, {.bits = 16});
    expect_like("gray16.tif", gray_, 0);
    make_tiff(path("rgb16.tif"), rgb_, {.bits = 16, .rgb = true});
    expect_like("rgb16.tif", rgb_, 0);
    make_tiff(path("palette.tif"), gray_, {.palette = true});
    expect_like("palette.tif", gray_, 1);
    make_tiff(path("alpha.tif"), rgb_, {.rgb = true, .alpha = true});
    expect_like("alpha.tif", rgb_, 1);
    make_tiff(path("tiled.tif"), rgb_, {.rgb = true, .tiled = true});
    expect_like("tiled.tif", rgb_, 0);
    make_tiff(path("tiledgray.tif"), gray_, {.tiled = true});
    expect_like("tiledgray.tif", gray_, 0);
    make_tiff(path("big.tif"), rgb_, {.rgb = true, .big = true});
    expect_like("big.tif", rgb_, 0);
}

TEST_F(ImageTest, ReadsJpegPngJpeg2000AndWebp) {
    make_jpeg(path("gray.jpg"), gray_);
    expect_like("gray.jpg", gray_, 4);
    make_jpeg(path("rgb.jpg"), rgb_);
    expect_like("rgb.jpg", rgb_, 8);
    make_jpeg(path("cmyk.jpg"), rgb_, true);
    expect_like("cmyk.jpg", rgb_, 4);
    make_jpeg2000(path("gray.jp2"), gray_);
    expect_like("gray.jp2", gray_, 0);
    make_jpeg2000(path("tiled.jp2"), rgb_, 64, 3);
    expect_like("tiled.jp2", rgb_, 0);
    make_webp(path("page.webp"), rgb_);
    expect_like("page.webp", rgb_, 0);
    ASSERT_TRUE(write_png(path("gray.png"), gray_, false, 300));
    expect_like("gray.png", gray_, 0);
    ASSERT_TRUE(write_png(path("rgb.png"), rgb_, false, 300));
    expect_like("rgb.png", rgb_, 0);
    cv::Mat bilevel = binarize_otsu(gray_);
    ASSERT_TRUE(write_png(path("bilevel.png"), bilevel, true, 300));
    expect_like("bilevel.png", bilevel, 0);
    EXPECT_TRUE(read_image(path("bilevel.png"))->bilevel);
    EXPECT_NEAR(read_image(path("bilevel.png"))->dpi, 300, 0.5);
}

TEST_F(ImageTest, CountsAndReadsThePagesOfATiffButNotItsThumbnails) {
    make_tiff(path("three.tif"), gray_, {.pages = 3, .thumbnail = true});
    EXPECT_EQ(count_frames(path("three.tif")).value(), 3);
    auto first = read_image(path("three.tif"));
    ASSERT_TRUE(first);
    ASSERT_EQ(first->warnings.size(), 1u);
    EXPECT_EQ(first->warnings[0], "three.tif holds 3 pages, the first one is used");
    auto third = read_image(path("three.tif"), 2);
    ASSERT_TRUE(third) << third.error().message();
    EXPECT_EQ(third->height, 150 - 16);
    EXPECT_TRUE(third->warnings.empty());
    auto fourth = read_image(path("three.tif"), 3);
    ASSERT_FALSE(fourth);
    EXPECT_EQ(fourth.error().message(), "image three.tif: has 3 page(s), there is no page 4");
}

TEST_F(ImageTest, TakesOnlyPlausibleResolutions) {
    make_tiff(path("cm.tif"), gray_, {.dpi = 300, .per_cm = true});
    EXPECT_NEAR(read_image(path("cm.tif"))->dpi, 300, 0.5);
    make_jpeg(path("one.jpg"), gray_, false, 1);
    EXPECT_EQ(read_image(path("one.jpg"))->dpi, 0);
    make_jpeg(path("web.jpg"), gray_, false, 72);
    EXPECT_EQ(read_image(path("web.jpg"))->dpi, 72);
    make_tiff(path("absurd.tif"), gray_, {.dpi = 25400});
    EXPECT_EQ(read_image(path("absurd.tif"))->dpi, 0);
}

TEST_F(ImageTest, LeavesPixelsAsTheyAreStoredAndReportsTheOrientation) {
    make_jpeg(path("turned.jpg"), gray_, false, 300, 6);
    auto image = read_image(path("turned.jpg"));
    ASSERT_TRUE(image);
    EXPECT_EQ(image->width, 200);
    EXPECT_EQ(image->orientation, 90);
    make_tiff(path("turned.tif"), rgb_, {.rgb = true, .tiled = true, .orientation = 8});
    auto tiff = read_image(path("turned.tif"));
    ASSERT_TRUE(tiff);
    EXPECT_EQ(tiff->orientation, -90);
    EXPECT_EQ(difference(tiff->pixels, rgb_), 0);
}

TEST_F(ImageTest, RefusesTruncatedImagesOfEveryKindInOneSentence) {
    make_tiff(path("a.tif"), rgb_, {.rgb = true});
    make_tiff(path("t.tif"), rgb_, {.rgb = true, .tiled = true});
    make_jpeg(path("a.jpg"), rgb_);
    make_jpeg2000(path("a.jp2"), rgb_);
    make_webp(path("a.webp"), rgb_);
    ASSERT_TRUE(write_png(path("a.png"), rgb_, false, 300));
    for (std::string name : {"a.tif", "t.tif", "a.jpg", "a.jp2", "a.webp", "a.png"}) {
        auto whole = slurp(path(name));
        for (double part : {0.9, 0.5, 0.2}) {
            spill(path("cut-" + name),
                  whole.substr(0, static_cast<std::size_t>(part * static_cast<double>(whole.size()))));
            auto why = why_not("cut-" + name);
            EXPECT_NE(why.find("image cut-" + name + ": is truncated or damaged"), std::string::npos)
                << part << " " << why;
            EXPECT_EQ(why.find('\n'), std::string::npos) << why;
        }
    }
}

TEST_F(ImageTest, SaysWhatIsWrongWithAFileThatIsNoImage) {
    spill(path("empty.tif"), "");
    EXPECT_EQ(why_not("empty.tif"), "image empty.tif is empty (0 bytes)");
    spill(path("text.png"), "this is no picture, but a letter to the editor");
    EXPECT_EQ(why_not("text.png"),
              "text.png is no image that can be read: it is neither TIFF, JPEG, PNG, JPEG 2000 nor WebP");
    make_jpeg(path("really.jpg"), rgb_);
    EXPECT_EQ(why_not("really.jpg", "image/tiff"),
              "really.jpg is a JPEG image, but is declared to be a TIFF image (image/tiff)");
    EXPECT_NE(why_not("missing.tif").find("No such file"), std::string::npos);
}

TEST_F(ImageTest, ReadsANewspaperPageOfTwentyThousandPixels) {
    cv::Mat large(20000, 20000, CV_8UC1, cv::Scalar(255));
    cv::rectangle(large, {100, 100}, {19000, 300}, cv::Scalar(0), cv::FILLED);
    make_tiff(path("large.tif"), large, {.bits = 1, .group4 = true});
    auto image = read_image(path("large.tif"));
    ASSERT_TRUE(image) << image.error().message();
    EXPECT_EQ(image->width, 20000);
    EXPECT_EQ(cv::norm(image->pixels, large, cv::NORM_INF), 0);
}

TEST_F(ImageTest, RefusesAbsurdSizesByTheHeader) {
    // The headers alone: nothing is to be decoded.
    auto number = [](unsigned value) {
        std::string bytes;
        for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xff);
        return bytes;
    };
    auto png = [&](unsigned width, unsigned height) {
        using namespace std::string_literals;
        auto chunk = "IHDR" + number(width) + number(height) + "\x08\x02\0\0\0"s;
        auto crc = ~0u;
        for (unsigned char byte : chunk) {
            crc ^= byte;
            for (int i = 0; i < 8; ++i) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        }
        return "\x89PNG\r\n\x1a\n" + number(13) + chunk + number(~crc) + number(0) + "IDAT\x35\xaf\x06\x1e";
    };
    spill(path("a.png"), png(40000, 40000));
    EXPECT_EQ(why_not("a.png"), "image a.png: 40000 x 40000 pixels are more than Tesseract can read (32767 a side)");
    EXPECT_FALSE(probe_image(path("a.png")));
    spill(path("b.png"), png(1, 0x7fffffff));
    EXPECT_NE(why_not("b.png").find("1 x 2147483647 pixels are more than"), std::string::npos) << why_not("b.png");
    spill(path("c.png"), png(30000, 39000));
    EXPECT_TRUE(probe_image(path("c.png")));
    spill(path("d.pgm"), "P5\n50000 50000\n255\n");
    EXPECT_NE(why_not("d.pgm").find("50000 x 50000 pixels are more than"), std::string::npos) << why_not("d.pgm");

    make_jpeg(path("whole.jpg"), rgb_);
    auto jpeg = slurp(path("whole.jpg"));
    auto frame = jpeg.find("\xff\xc0");
    ASSERT_NE(frame, std::string::npos);
    jpeg.replace(frame + 5, 4, "\xea\x60\xea\x60");
    spill(path("e.jpg"), jpeg);
    EXPECT_EQ(why_not("e.jpg"), "image e.jpg: 60000 x 60000 pixels are more than Tesseract can read (32767 a side)");
}

TEST(Binarize, ColumnSumsGiveWhatTheFormulaSays) {
    std::mt19937 random(7);
    cv::Mat gray(61, 83, CV_8UC1);
    for (auto it = gray.begin<unsigned char>(); it != gray.end<unsigned char>(); ++it)
        *it = static_cast<unsigned char>(random() % 256);
    for (int half : {1, 5, 40, 100}) {
        auto fast = binarize_sauvola(gray, half, 0.34);
        int different = 0;
        for (int y = 0; y < gray.rows; ++y)
            for (int x = 0; x < gray.cols; ++x) {
                double sum = 0, squares = 0, n = 0;
                for (int v = std::max(0, y - half); v <= std::min(gray.rows - 1, y + half); ++v)
                    for (int u = std::max(0, x - half); u <= std::min(gray.cols - 1, x + half); ++u) {
                        double g = gray.at<unsigned char>(v, u);
                        sum += g, squares += g * g, ++n;
                    }
                double mean = sum / n, deviation = std::sqrt(std::max(0.0, squares / n - mean * mean));
                double threshold = mean * (1 + 0.34 * (deviation / 128 - 1));
                double g = gray.at<unsigned char>(y, x);
                if (std::abs(g - threshold) < 1e-2) continue; // on the edge, rounding decides
                different += fast.at<unsigned char>(y, x) != (g > threshold ? 255 : 0);
            }
        EXPECT_EQ(different, 0) << "half " << half;
    }
}

TEST(Deskew, FindsTheAngleOfTurnedLines) {
    cv::Mat page(1600, 1200, CV_8UC1, cv::Scalar(240));
    for (int y = 200; y < 1400; y += 50)
        for (int x = 150; x < 1050; x += 24) cv::rectangle(page, {x, y}, {x + 14, y + 20}, cv::Scalar(20), cv::FILLED);
    for (double angle : {-2.3, -0.5, 0.0, 1.3, 4.0}) {
        // OpenCV counts counter-clockwise; a page turned clockwise has lines that fall.
        auto m = cv::getRotationMatrix2D({600, 800}, -angle, 1);
        cv::Mat turned;
        cv::warpAffine(page, turned, m, page.size(), cv::INTER_LINEAR, cv::BORDER_CONSTANT, cv::Scalar(240));
        EXPECT_NEAR(skew_of(turned, 300, 5), angle, 0.08);
    }
    EXPECT_EQ(skew_of(cv::Mat(1600, 1200, CV_8UC1, cv::Scalar(255)), 300, 5), 0);
    for (auto size : {cv::Size(1, 1), cv::Size(1, 3000), cv::Size(3000, 1)})
        EXPECT_EQ(skew_of(cv::Mat(size, CV_8UC1, cv::Scalar(0)), 300, 5), 0) << size;
}

} // namespace
} // namespace ocrctl::ocr
