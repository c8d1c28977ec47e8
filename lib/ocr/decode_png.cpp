#include "lib/ocr/decoders.hpp"

#include <csetjmp>
#include <cstring>
#include <png.h>

namespace ocrctl::ocr {

namespace {

struct Decoding {
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::string_view bytes;
    std::size_t at = 0;
    char text[200] = "";
    int width = 0, height = 0, channels = 0;
    bool bilevel = false;
    png_bytep* rows = nullptr;
};

void on_error(png_structp png, png_const_charp text) {
    auto* d = static_cast<Decoding*>(png_get_error_ptr(png));
    std::snprintf(d->text, sizeof d->text, "%s", text);
    png_longjmp(png, 1);
}

void take(png_structp png, png_bytep to, png_size_t size) {
    auto* d = static_cast<Decoding*>(png_get_io_ptr(png));
    if (d->bytes.size() - d->at < size) png_error(png, "the file ends too early");
    std::memcpy(to, d->bytes.data() + d->at, size);
    d->at += size;
}

bool start(Decoding& d) {
    if (setjmp(png_jmpbuf(d.png))) return false;
    png_set_read_fn(d.png, &d, take);
    png_set_user_limits(d.png, 0x7fffffff, 0x7fffffff); // check_size says it better
    png_read_info(d.png, d.info);
    d.width = static_cast<int>(png_get_image_width(d.png, d.info));
    d.height = static_cast<int>(png_get_image_height(d.png, d.info));
    return true;
}

bool set_up(Decoding& d) {
    if (setjmp(png_jmpbuf(d.png))) return false;
    auto depth = png_get_bit_depth(d.png, d.info);
    auto colour = png_get_color_type(d.png, d.info);
    bool transparent = png_get_valid(d.png, d.info, PNG_INFO_tRNS) || (colour & PNG_COLOR_MASK_ALPHA);
    d.bilevel = depth == 1 && colour == PNG_COLOR_TYPE_GRAY && !transparent;
    if (depth == 16) png_set_scale_16(d.png);
    if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(d.png);
    if (colour == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(d.png);
    if (png_get_valid(d.png, d.info, PNG_INFO_tRNS)) png_set_tRNS_to_alpha(d.png);
    png_set_interlace_handling(d.png);
    png_read_update_info(d.png, d.info);
    d.channels = png_get_channels(d.png, d.info);
    return true;
}

bool read_rows(Decoding& d) {
    if (setjmp(png_jmpbuf(d.png))) return false;
    png_read_image(d.png, d.rows);
    png_read_end(d.png, nullptr);
    return true;
}

// Two or four channels to one or three: alpha laid on white.
cv::Mat on_white(cv::Mat const& in) {
    int colours = in.channels() - 1;
    cv::Mat out(in.rows, in.cols, CV_8UC(colours));
    for (int y = 0; y < in.rows; ++y) {
        auto const* from = in.ptr(y);
        auto* to = out.ptr(y);
        for (int x = 0; x < in.cols; ++x, from += colours + 1, to += colours)
            for (int c = 0; c < colours; ++c)
                to[c] = static_cast<unsigned char>((from[c] * from[colours] + 255 * (255 - from[colours]) + 127) / 255);
    }
    return out;
}

} // namespace

Result<Image> decode_png(std::string_view bytes, bool header_only) {
    Decoding d;
    d.bytes = bytes;
    d.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &d, on_error, [](png_structp, png_const_charp) {});
    d.info = d.png ? png_create_info_struct(d.png) : nullptr;
    struct End {
        Decoding& d;
        ~End() { png_destroy_read_struct(&d.png, &d.info, nullptr); }
    } end{d};
    if (!d.info) return fail(ErrorKind::TooLarge, "not enough memory to decode it");
    if (!start(d)) return fail(ErrorKind::Invalid, "is truncated or damaged: {}", d.text);
    if (auto fits = check_size(static_cast<std::uint64_t>(d.width), static_cast<std::uint64_t>(d.height)); !fits)
        return fail(fits.error());
    if (!set_up(d)) return fail(ErrorKind::Invalid, "is truncated or damaged: {}", d.text);

    Image image;
    image.width = d.width;
    image.height = d.height;
    image.bilevel = d.bilevel;
    if (!header_only) {
        cv::Mat pixels(d.height, d.width, CV_8UC(d.channels));
        std::vector<png_bytep> rows(static_cast<std::size_t>(d.height));
        for (int row = 0; row < d.height; ++row) rows[static_cast<std::size_t>(row)] = pixels.ptr(row);
        d.rows = rows.data();
        if (!read_rows(d)) return fail(ErrorKind::Invalid, "is truncated or damaged: {}", d.text);
        image.pixels = d.channels == 2 || d.channels == 4 ? on_white(pixels) : pixels;
    }

    png_uint_32 x = 0, y = 0;
    int unit = PNG_RESOLUTION_UNKNOWN;
    if (png_get_pHYs(d.png, d.info, &x, &y, &unit) && unit == PNG_RESOLUTION_METER)
        image.dpi = std::round(x * 0.0254 * 100) / 100;
    png_uint_32 size = 0;
    png_bytep exif = nullptr;
    if (png_get_eXIf_1(d.png, d.info, &size, &exif) && exif)
        read_exif({reinterpret_cast<char const*>(exif), size}, image);
    return image;
}

} // namespace ocrctl::ocr
