#include "lib/ocr/decoders.hpp"

#include <csetjmp>
#include <cstdio>
#include <jerror.h>
#include <jpeglib.h>

namespace ocrctl::ocr {

namespace {

struct ErrorState {
    jpeg_error_mgr base;
    std::jmp_buf escape;
    char text[JMSG_LENGTH_MAX];
    bool truncated;
};

// What the part below longjmp's reach hands back; no destructors run between setjmp and longjmp.
struct Decoding {
    jpeg_decompress_struct decoder;
    ErrorState error;
    cv::Mat* pixels;
    bool cmyk, inverted;
    unsigned char* row; // CMYK only
};

void on_error(j_common_ptr common) {
    auto* error = reinterpret_cast<ErrorState*>(common->err);
    common->err->format_message(common, error->text);
    std::longjmp(error->escape, 1);
}

void on_message(j_common_ptr common, int level) {
    if (level >= 0) return;
    auto* error = reinterpret_cast<ErrorState*>(common->err);
    ++common->err->num_warnings;
    auto code = common->err->msg_code;
    // The decoder would fill the rest with gray and go on.
    if (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_BOGUS_PROGRESSION ||
        code == JWRN_MUST_RESYNC || code == JWRN_HUFF_BAD_CODE) {
        error->truncated = true;
        common->err->format_message(common, error->text);
    }
}

bool start(Decoding& d, std::string_view bytes) {
    if (setjmp(d.error.escape)) return false;
    jpeg_create_decompress(&d.decoder);
    jpeg_mem_src(&d.decoder, reinterpret_cast<unsigned char const*>(bytes.data()), bytes.size());
    jpeg_save_markers(&d.decoder, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&d.decoder, TRUE);
    return true;
}

bool set_up(Decoding& d) {
    if (setjmp(d.error.escape)) return false;
    switch (d.decoder.jpeg_color_space) {
    case JCS_GRAYSCALE:
        d.decoder.out_color_space = JCS_GRAYSCALE;
        break;
    case JCS_CMYK:
    case JCS_YCCK:
        d.decoder.out_color_space = JCS_CMYK;
        d.cmyk = true;
        d.inverted = d.decoder.saw_Adobe_marker;
        break;
    default:
        d.decoder.out_color_space = JCS_RGB;
        break;
    }
    jpeg_start_decompress(&d.decoder);
    return true;
}

bool read_rows(Decoding& d) {
    if (setjmp(d.error.escape)) return false;
    auto& decoder = d.decoder;
    while (decoder.output_scanline < decoder.output_height) {
        auto* out = d.pixels->data + d.pixels->step * decoder.output_scanline;
        JSAMPROW row = d.cmyk ? d.row : out;
        if (jpeg_read_scanlines(&decoder, &row, 1) != 1) return false;
        if (!d.cmyk) continue;
        for (unsigned x = 0; x < decoder.output_width; ++x) {
            unsigned c = row[4 * x], m = row[4 * x + 1], y = row[4 * x + 2], k = row[4 * x + 3];
            if (!d.inverted) c = 255 - c, m = 255 - m, y = 255 - y, k = 255 - k;
            out[3 * x] = static_cast<unsigned char>(c * k / 255);
            out[3 * x + 1] = static_cast<unsigned char>(m * k / 255);
            out[3 * x + 2] = static_cast<unsigned char>(y * k / 255);
        }
    }
    jpeg_finish_decompress(&decoder);
    return true;
}

} // namespace

Result<Image> decode_jpeg(std::string_view bytes, bool header_only) {
    Decoding d{};
    d.decoder.err = jpeg_std_error(&d.error.base);
    d.error.base.error_exit = on_error;
    d.error.base.emit_message = on_message;
    struct End {
        jpeg_decompress_struct& decoder;
        ~End() { jpeg_destroy_decompress(&decoder); }
    } end{d.decoder};

    Image image;
    if (!start(d, bytes)) return fail(ErrorKind::Invalid, "is truncated or damaged: {}", d.error.text);
    if (auto fits = check_size(d.decoder.image_width, d.decoder.image_height); !fits) return fail(fits.error());
    if (!set_up(d)) return fail(ErrorKind::Invalid, "is truncated or damaged: {}", d.error.text);
    image.width = static_cast<int>(d.decoder.output_width);
    image.height = static_cast<int>(d.decoder.output_height);
    if (d.decoder.saw_JFIF_marker) {
        if (d.decoder.density_unit == 1) image.dpi = d.decoder.X_density;
        if (d.decoder.density_unit == 2) image.dpi = d.decoder.X_density * 2.54;
    }
    for (auto* marker = d.decoder.marker_list; marker; marker = marker->next) {
        std::string_view block(reinterpret_cast<char const*>(marker->data), marker->data_length);
        using namespace std::string_view_literals;
        if (block.starts_with("Exif\0\0"sv)) read_exif(block.substr(6), image);
    }
    if (header_only) return image;
    image.pixels.create(image.height, image.width, d.decoder.out_color_space == JCS_GRAYSCALE ? CV_8UC1 : CV_8UC3);
    std::vector<unsigned char> row(d.cmyk ? std::size_t{4} * d.decoder.output_width : 0);
    d.pixels = &image.pixels;
    d.row = row.data();
    if (!read_rows(d) || d.error.truncated)
        return fail(ErrorKind::Invalid, "is truncated or damaged: {}", d.error.text);
    return image;
}

} // namespace ocrctl::ocr
