#include "lib/ocr/image.hpp"

#include "lib/base/files.hpp"
#include "lib/ocr/decoders.hpp"

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>
#include <fcntl.h>
#include <opencv2/imgproc.hpp>
#include <png.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl::ocr {

namespace {

constexpr std::size_t kHeadBytes = 64;

ImageKind kind_of_mimetype(std::string_view mimetype) noexcept {
    if (mimetype == "image/tiff" || mimetype == "image/tif") return ImageKind::Tiff;
    if (mimetype == "image/jpeg" || mimetype == "image/jpg" || mimetype == "image/pjpeg") return ImageKind::Jpeg;
    if (mimetype == "image/png") return ImageKind::Png;
    if (mimetype == "image/jp2" || mimetype == "image/jpx" || mimetype == "image/jpeg2000") return ImageKind::Jpeg2000;
    if (mimetype == "image/webp") return ImageKind::Webp;
    return ImageKind::Unknown;
}

struct Head {
    ImageKind kind;
    std::uintmax_t size;
};

Result<Head> head_of(std::filesystem::path const& file) {
    Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)); // a pipe would wait for a writer
    if (!fd) return fail(errno_error(errno, fmt::format("open image {}", file.string())));
    struct stat info{};
    if (::fstat(fd.get(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))
        return fail(ErrorKind::Invalid, "image {} is not a regular file", file.filename().string());
    std::array<char, kHeadBytes> bytes{};
    auto got = ::read(fd.get(), bytes.data(), bytes.size());
    if (got < 0) return fail(errno_error(errno, fmt::format("read image {}", file.string())));
    if (got == 0) return fail(ErrorKind::Invalid, "image {} is empty (0 bytes)", file.filename().string());
    auto kind = kind_of({bytes.data(), static_cast<std::size_t>(got)});
    auto size = ::lseek(fd.get(), 0, SEEK_END);
    return Head{kind, static_cast<std::uintmax_t>(std::max<off_t>(size, 0))};
}

double plausible(double dpi) noexcept {
    return dpi >= 70 && dpi <= 2400 ? dpi : 0;
}

} // namespace

ImageKind kind_of(std::string_view head) noexcept {
    auto starts = [&](std::string_view magic) { return head.starts_with(magic); };
    using namespace std::string_view_literals;
    if (starts("II*\0"sv) || starts("MM\0*"sv) || starts("II+\0"sv) || starts("MM\0+"sv)) return ImageKind::Tiff;
    if (starts("\xff\xd8\xff"sv)) return ImageKind::Jpeg;
    if (starts("\x89PNG\r\n\x1a\n"sv)) return ImageKind::Png;
    if (starts("\0\0\0\x0cjP  \r\n\x87\n"sv) || starts("\xff\x4f\xff\x51"sv)) return ImageKind::Jpeg2000;
    if (starts("RIFF"sv) && head.size() >= 12 && head.substr(8, 4) == "WEBP") return ImageKind::Webp;
    if (starts("BM"sv) || starts("GIF8"sv)) return ImageKind::Other;
    if (head.size() > 3 && head[0] == 'P' && head[1] >= '1' && head[1] <= '7' &&
        std::isspace(static_cast<unsigned char>(head[2])))
        return ImageKind::Other;
    return ImageKind::Unknown;
}

Result<void> check_size(std::uint64_t width, std::uint64_t height) {
    constexpr std::uint64_t kLongest = 200000;
    if (width == 0 || height == 0)
        return fail(ErrorKind::Invalid, "has an impossible size of {} x {} pixels", width, height);
    // Whatever has that many pixels is beyond Tesseract as well.
    static_assert(kMostPixels > std::uint64_t{kTesseractSide} * kTesseractSide);
    if (width > kLongest || height > kLongest || width * height > kMostPixels)
        return fail(ErrorKind::TooLarge, "{} x {} pixels are more than Tesseract can read ({} a side)", width, height,
                    kTesseractSide);
    return {};
}

std::string_view name_of(ImageKind kind) noexcept {
    switch (kind) {
    case ImageKind::Tiff:
        return "a TIFF image";
    case ImageKind::Jpeg:
        return "a JPEG image";
    case ImageKind::Png:
        return "a PNG image";
    case ImageKind::Jpeg2000:
        return "a JPEG 2000 image";
    case ImageKind::Webp:
        return "a WebP image";
    case ImageKind::Other:
        return "an image of another kind";
    case ImageKind::Unknown:
        break;
    }
    return "no image that can be read";
}

namespace {

Result<Image> read(std::filesystem::path const& file, int frame, std::string_view mimetype, bool header_only) {
    auto head = head_of(file);
    if (!head) return std::unexpected(head.error());
    auto const name = file.filename().string();
    auto declared = kind_of_mimetype(mimetype);
    if (head->kind == ImageKind::Unknown)
        return fail(ErrorKind::Invalid,
                    "{} is no image that can be read: it is neither TIFF, JPEG, PNG, JPEG 2000 nor WebP", name);
    if (declared != ImageKind::Unknown && declared != head->kind)
        return fail(ErrorKind::Invalid, "{} is {}, but is declared to be {} ({})", name, name_of(head->kind),
                    name_of(declared), mimetype);
    if (frame < 0 || (frame > 0 && head->kind != ImageKind::Tiff))
        return fail(ErrorKind::Invalid, "{} has one page, there is no page {}", name, frame + 1);

    Result<Image> image = [&]() -> Result<Image> {
        try {
            if (head->kind == ImageKind::Tiff) return decode_tiff(file, frame, header_only);
            if (head->kind == ImageKind::Other) return decode_other(file);
            auto bytes = read_file(file);
            if (!bytes) return std::unexpected(bytes.error());
            switch (head->kind) {
            case ImageKind::Jpeg:
                return decode_jpeg(*bytes, header_only);
            case ImageKind::Png:
                return decode_png(*bytes, header_only);
            case ImageKind::Jpeg2000:
                return decode_jpeg2000(*bytes, header_only);
            default:
                return decode_webp(*bytes, header_only);
            }
        } catch (std::bad_alloc const&) {
            return fail(ErrorKind::TooLarge, "not enough memory to decode it");
        } catch (cv::Exception const& problem) {
            return fail(problem.code == cv::Error::StsNoMem ? ErrorKind::TooLarge : ErrorKind::Invalid, "{}",
                        problem.err);
        }
    }();
    if (!image) return fail(image.error().during("image " + name));
    image->dpi = plausible(image->dpi);
    for (auto& warning : image->warnings) warning = name + " " + warning;
    if (!image->pixels.empty()) image->width = image->pixels.cols, image->height = image->pixels.rows;
    return image;
}

} // namespace

Result<Image> read_image(std::filesystem::path const& file, int frame, std::string_view mimetype) {
    return read(file, frame, mimetype, false);
}

Result<Image> probe_image(std::filesystem::path const& file, int frame, std::string_view mimetype) {
    return read(file, frame, mimetype, true);
}

Result<int> count_frames(std::filesystem::path const& file) {
    auto head = head_of(file);
    if (!head) return std::unexpected(head.error());
    if (head->kind == ImageKind::Unknown)
        return fail(ErrorKind::Invalid,
                    "{} is no image that can be read: it is neither TIFF, JPEG, PNG, JPEG 2000 nor WebP",
                    file.filename().string());
    if (head->kind != ImageKind::Tiff) return 1;
    auto frames = count_tiff_frames(file);
    if (!frames) return fail(frames.error().during("image " + file.filename().string()));
    return frames;
}

namespace {

struct PngWriting {
    int fd = -1;
    int error = 0;
};

void png_put(png_structp png, png_bytep data, png_size_t size) {
    auto* to = static_cast<PngWriting*>(png_get_io_ptr(png));
    while (size > 0) {
        auto wrote = ::write(to->fd, data, size);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) {
            to->error = errno;
            png_error(png, "write");
        }
        data += wrote;
        size -= static_cast<png_size_t>(wrote);
    }
}

// Nothing in here has a destructor: libpng leaves by longjmp.
bool put_png(PngWriting* to, unsigned char const* pixels, std::size_t step, int width, int height, int channels,
             bool bilevel, unsigned per_metre, unsigned char* row) {
    png_structp png =
        png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, [](png_structp, png_const_charp) {});
    png_infop info = png ? png_create_info_struct(png) : nullptr;
    if (!info || setjmp(png_jmpbuf(png))) {
        png_destroy_write_struct(&png, &info);
        return false;
    }
    png_set_write_fn(png, to, png_put, [](png_structp) {});
    png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), bilevel ? 1 : 8,
                 channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (per_metre) png_set_pHYs(png, info, per_metre, per_metre, PNG_RESOLUTION_METER);
    // Level 1: the next step reads it once; a slower level costs more time than it saves disk.
    png_set_compression_level(png, 1);
    png_set_filter(png, 0, bilevel ? PNG_FILTER_NONE : PNG_FILTER_SUB);
    png_write_info(png, info);
    for (int y = 0; y < height; ++y) {
        unsigned char const* line = pixels + step * static_cast<std::size_t>(y);
        if (bilevel) {
            std::memset(row, 0, static_cast<std::size_t>(width + 7) / 8);
            for (int x = 0; x < width; ++x)
                if (line[x]) row[x >> 3] |= static_cast<unsigned char>(0x80 >> (x & 7));
            png_write_row(png, row);
        } else {
            png_write_row(png, line);
        }
    }
    png_write_end(png, nullptr);
    png_destroy_write_struct(&png, &info);
    return true;
}

} // namespace

Result<void> write_png(std::filesystem::path const& file, cv::Mat const& pixels, bool bilevel, double dpi) {
    Fd fd(::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd) return fail(errno_error(errno, fmt::format("write image {}", file.string())));
    PngWriting to{fd.get(), 0};
    std::vector<unsigned char> row(static_cast<std::size_t>(pixels.cols + 7) / 8);
    auto per_metre = static_cast<unsigned>(dpi / 0.0254 + 0.5);
    if (!put_png(&to, pixels.data, pixels.step, pixels.cols, pixels.rows, pixels.channels(),
                 bilevel && pixels.channels() == 1, per_metre, row.data()))
        return fail(errno_error(to.error ? to.error : ENOMEM, fmt::format("write image {}", file.string())));
    if (::fsync(fd.get()) != 0) return fail(errno_error(errno, fmt::format("flush image {}", file.string())));
    return {};
}

cv::Mat to_gray(cv::Mat const& pixels) {
    if (pixels.channels() == 1) return pixels;
    cv::Mat gray;
    cv::cvtColor(pixels, gray, cv::COLOR_RGB2GRAY);
    return gray;
}

double estimate_dpi(cv::Mat const& pixels) {
    cv::Mat gray = to_gray(pixels);
    // A cut-out from the middle is enough to see letters, and bounds the time on a newspaper page.
    constexpr int kSide = 3000;
    cv::Rect middle((gray.cols - std::min(gray.cols, kSide)) / 2, (gray.rows - std::min(gray.rows, kSide)) / 2,
                    std::min(gray.cols, kSide), std::min(gray.rows, kSide));
    cv::Mat ink, labels, stats, centres;
    cv::threshold(gray(middle), ink, 0, 255, cv::THRESH_BINARY_INV | cv::THRESH_OTSU);
    int count = cv::connectedComponentsWithStats(ink, labels, stats, centres, 8, CV_32S);
    std::vector<int> heights;
    for (int i = 1; i < count; ++i) {
        int w = stats.at<int>(i, cv::CC_STAT_WIDTH), h = stats.at<int>(i, cv::CC_STAT_HEIGHT);
        if (h >= 6 && h <= 300 && w <= 4 * h && h <= 6 * w) heights.push_back(h);
    }
    if (heights.size() < 20) return 300;
    auto median = heights.begin() + static_cast<std::ptrdiff_t>(heights.size() / 2);
    std::nth_element(heights.begin(), median, heights.end());
    // Lower-case letters of 10 point print are about 5.3 points high: a 13.6th of an inch.
    double dpi = *median * 13.6;
    return std::clamp(std::round(dpi / 10) * 10, 70.0, 2400.0);
}

} // namespace ocrctl::ocr
