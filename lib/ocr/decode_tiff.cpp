#include "lib/ocr/decoders.hpp"

#include <cstdarg>
#include <memory>
#include <tiffio.h>

namespace ocrctl::ocr {

namespace {

struct TiffClose {
    void operator()(TIFF* tiff) const noexcept { TIFFClose(tiff); }
};
using TiffPtr = std::unique_ptr<TIFF, TiffClose>;

// libtiff reports through process-wide handlers; the text of the last error on this thread is kept here.
thread_local std::string last_error;

void keep_error(char const*, char const* format, va_list args) {
    char text[400];
    std::vsnprintf(text, sizeof text, format, args);
    if (last_error.empty()) last_error = text;
}

void install_handlers() {
    static bool const once = [] {
        TIFFSetErrorHandler(keep_error);
        TIFFSetWarningHandler(nullptr);
        return true;
    }();
    (void)once;
    last_error.clear();
}

Error damaged() {
    auto text = last_error.empty() ? std::string("libtiff gives no reason") : last_error;
    while (!text.empty() && (text.back() == '.' || text.back() == '\n')) text.pop_back();
    return Error(ErrorKind::Invalid, "is truncated or damaged: " + text);
}

Result<TiffPtr> open_tiff(std::filesystem::path const& file) {
    install_handlers();
    TiffPtr tiff(TIFFOpen(file.c_str(), "r"));
    if (!tiff) return fail(damaged());
    return tiff;
}

// Thumbnails and masks are directories of the file, but no pages.
bool is_page(TIFF* tiff) {
    std::uint32_t type = 0;
    TIFFGetFieldDefaulted(tiff, TIFFTAG_SUBFILETYPE, &type);
    return (type & (FILETYPE_REDUCEDIMAGE | FILETYPE_MASK)) == 0;
}

struct Layout {
    std::uint32_t width = 0, height = 0;
    std::uint16_t bits = 1, samples = 1, photometric = PHOTOMETRIC_MINISBLACK, planar = PLANARCONFIG_CONTIG,
                  format = SAMPLEFORMAT_UINT;
    std::uint16_t orientation = ORIENTATION_TOPLEFT, compression = COMPRESSION_NONE;
    bool tiled = false;
};

Layout layout_of(TIFF* tiff) {
    Layout l;
    TIFFGetField(tiff, TIFFTAG_IMAGEWIDTH, &l.width);
    TIFFGetField(tiff, TIFFTAG_IMAGELENGTH, &l.height);
    TIFFGetFieldDefaulted(tiff, TIFFTAG_BITSPERSAMPLE, &l.bits);
    TIFFGetFieldDefaulted(tiff, TIFFTAG_SAMPLESPERPIXEL, &l.samples);
    TIFFGetField(tiff, TIFFTAG_PHOTOMETRIC, &l.photometric);
    TIFFGetFieldDefaulted(tiff, TIFFTAG_PLANARCONFIG, &l.planar);
    TIFFGetFieldDefaulted(tiff, TIFFTAG_SAMPLEFORMAT, &l.format);
    TIFFGetFieldDefaulted(tiff, TIFFTAG_ORIENTATION, &l.orientation);
    TIFFGetFieldDefaulted(tiff, TIFFTAG_COMPRESSION, &l.compression);
    l.tiled = TIFFIsTiled(tiff);
    return l;
}

bool is_gray(Layout const& l) {
    return l.samples == 1 && (l.photometric == PHOTOMETRIC_MINISBLACK || l.photometric == PHOTOMETRIC_MINISWHITE);
}

// Rows of plain gray or RGB, the great majority of scans: read as they lie.
Result<void> read_rows(TIFF* tiff, Layout const& l, cv::Mat& pixels) {
    std::vector<unsigned char> line(static_cast<std::size_t>(TIFFScanlineSize64(tiff)));
    bool inverted = l.photometric == PHOTOMETRIC_MINISWHITE;
    auto flip = static_cast<unsigned char>(inverted ? 0xff : 0);
    auto values = static_cast<std::size_t>(l.width) * l.samples;
    for (std::uint32_t y = 0; y < l.height; ++y) {
        auto* out = pixels.ptr<unsigned char>(static_cast<int>(y));
        if (TIFFReadScanline(tiff, line.data(), y) < 0) return fail(damaged());
        if (l.bits == 1) {
            for (std::size_t x = 0; x < values; ++x) {
                bool one = (line[x >> 3] >> (7 - (x & 7))) & 1;
                out[x] = one != inverted ? 255 : 0;
            }
        } else if (l.bits == 8) {
            for (std::size_t x = 0; x < values; ++x) out[x] = line[x] ^ flip;
        } else { // 16: libtiff has brought the bytes into our order
            auto const* wide = reinterpret_cast<std::uint16_t const*>(line.data());
            for (std::size_t x = 0; x < values; ++x) out[x] = static_cast<unsigned char>(wide[x] >> 8) ^ flip;
        }
    }
    return {};
}

// Everything else (tiles, palettes, alpha, YCbCr, CMYK, planes): libtiff's own conversion, a band of rows at a time.
Result<void> read_any(TIFF* tiff, Layout const& l, cv::Mat& pixels) {
    char text[1024] = "";
    TIFFRGBAImage rgba;
    if (!TIFFRGBAImageOK(tiff, text) || !TIFFRGBAImageBegin(&rgba, tiff, 1, text))
        return fail(ErrorKind::Invalid, "is a kind of TIFF that cannot be read: {}", text[0] ? text : last_error);
    std::unique_ptr<TIFFRGBAImage, void (*)(TIFFRGBAImage*)> end(&rgba, TIFFRGBAImageEnd);
    rgba.req_orientation = rgba.orientation; // the stored order, unturned
    std::uint32_t band = l.tiled ? 0 : 1;
    TIFFGetField(tiff, l.tiled ? TIFFTAG_TILELENGTH : TIFFTAG_ROWSPERSTRIP, &band);
    if (band == 0 || band > l.height) band = l.height;
    while (band < 64 && band < l.height) band *= 2; // narrow strips: several at once
    band = std::min(band, l.height);
    std::vector<std::uint32_t> raster(static_cast<std::size_t>(l.width) * band);
    for (std::uint32_t y = 0; y < l.height; y += band) {
        auto rows = std::min(band, l.height - y);
        rgba.row_offset = static_cast<int>(y);
        rgba.col_offset = 0;
        if (!TIFFRGBAImageGet(&rgba, raster.data(), l.width, rows)) return fail(damaged());
        for (std::uint32_t row = 0; row < rows; ++row) {
            auto const* in = raster.data() + static_cast<std::size_t>(row) * l.width;
            auto* out = pixels.ptr<unsigned char>(static_cast<int>(y + row));
            for (std::uint32_t x = 0; x < l.width; ++x) {
                auto p = in[x];
                auto white = 255u - TIFFGetA(p); // colours come multiplied by alpha: lay them on white
                auto r = static_cast<unsigned char>(std::min(255u, TIFFGetR(p) + white));
                if (pixels.channels() == 1) {
                    out[x] = r;
                    continue;
                }
                out[3 * x] = r;
                out[3 * x + 1] = static_cast<unsigned char>(std::min(255u, TIFFGetG(p) + white));
                out[3 * x + 2] = static_cast<unsigned char>(std::min(255u, TIFFGetB(p) + white));
            }
        }
    }
    return {};
}

void read_resolution(TIFF* tiff, Image& image) {
    float x = 0;
    std::uint16_t unit = RESUNIT_INCH;
    if (!TIFFGetField(tiff, TIFFTAG_XRESOLUTION, &x)) return;
    TIFFGetFieldDefaulted(tiff, TIFFTAG_RESOLUTIONUNIT, &unit);
    if (unit == RESUNIT_INCH) image.dpi = x;
    if (unit == RESUNIT_CENTIMETER) image.dpi = x * 2.54;
}

} // namespace

Result<int> count_tiff_frames(std::filesystem::path const& file) {
    auto tiff = open_tiff(file);
    if (!tiff) return std::unexpected(tiff.error());
    int pages = 0;
    do pages += is_page(tiff->get());
    while (TIFFReadDirectory(tiff->get()));
    return std::max(pages, 1);
}

Result<Image> decode_tiff(std::filesystem::path const& file, int frame, bool header_only) {
    auto opened = open_tiff(file);
    if (!opened) return std::unexpected(opened.error());
    TIFF* tiff = opened->get();

    std::vector<std::uint16_t> pages;
    do
        if (is_page(tiff)) pages.push_back(static_cast<std::uint16_t>(TIFFCurrentDirectory(tiff)));
    while (TIFFReadDirectory(tiff));
    if (pages.empty()) pages.push_back(0);
    if (static_cast<std::size_t>(frame) >= pages.size())
        return fail(ErrorKind::Invalid, "has {} page(s), there is no page {}", pages.size(), frame + 1);
    last_error.clear();
    if (!TIFFSetDirectory(tiff, pages[static_cast<std::size_t>(frame)])) return fail(damaged());

    Image image;
    if (pages.size() > 1 && frame == 0)
        image.warnings.push_back(fmt::format("holds {} pages, the first one is used", pages.size()));
    auto l = layout_of(tiff);
    if (auto fits = check_size(l.width, l.height); !fits) return fail(fits.error());
    bool rgb = l.samples == 3 && l.photometric == PHOTOMETRIC_RGB;
    bool plain = !l.tiled && l.format == SAMPLEFORMAT_UINT &&
                 ((is_gray(l) && (l.bits == 1 || l.bits == 8 || l.bits == 16)) ||
                  (rgb && l.planar == PLANARCONFIG_CONTIG && (l.bits == 8 || l.bits == 16)));
    bool gray = is_gray(l) || (l.samples == 2 && l.photometric <= PHOTOMETRIC_MINISBLACK);
    image.bilevel = is_gray(l) && l.bits == 1;
    image.width = static_cast<int>(l.width);
    image.height = static_cast<int>(l.height);
    read_resolution(tiff, image);
    set_orientation(l.orientation, image);
    if (header_only) return image;
    image.pixels.create(image.height, image.width, gray ? CV_8UC1 : CV_8UC3);
    auto read = plain ? read_rows(tiff, l, image.pixels) : read_any(tiff, l, image.pixels);
    if (!read) return std::unexpected(read.error());
    // Some codecs (JPEG, fax) only complain about missing data and go on.
    if (!last_error.empty()) return fail(damaged());
    return image;
}

} // namespace ocrctl::ocr
