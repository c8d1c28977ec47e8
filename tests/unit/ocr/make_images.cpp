#include "tests/unit/ocr/make_images.hpp"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <jpeglib.h>
#include <openjpeg.h>
#include <sstream>
#include <stdexcept>
#include <tiffio.h>
#include <vector>
#include <webp/encode.h>

namespace ocrctl::ocr {

cv::Mat pattern(int width, int height, int channels) {
    cv::Mat image(height, width, CV_8UC(channels), cv::Scalar::all(255));
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            if ((y / 8) % 3 == 1 && (x / 5) % 4 != 0 && x > width / 10)
                for (int c = 0; c < channels; ++c)
                    image.ptr(y)[x * channels + c] = static_cast<unsigned char>(c == 0 ? 0 : 40 * c);
    return image;
}

namespace {

void write_page(TIFF* tiff, cv::Mat const& pixels, TiffKind const& k) {
    int w = pixels.cols, h = pixels.rows;
    int channels = pixels.channels() + (k.alpha ? 1 : 0);
    TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, w);
    TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, h);
    TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, k.bits);
    TIFFSetField(tiff, TIFFTAG_SAMPLESPERPIXEL, channels);
    TIFFSetField(tiff, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
    TIFFSetField(tiff, TIFFTAG_ORIENTATION, k.orientation);
    TIFFSetField(tiff, TIFFTAG_XRESOLUTION, k.per_cm ? k.dpi / 2.54 : k.dpi);
    TIFFSetField(tiff, TIFFTAG_YRESOLUTION, k.per_cm ? k.dpi / 2.54 : k.dpi);
    TIFFSetField(tiff, TIFFTAG_RESOLUTIONUNIT, k.per_cm ? RESUNIT_CENTIMETER : RESUNIT_INCH);
    TIFFSetField(tiff, TIFFTAG_COMPRESSION, k.group4 ? COMPRESSION_CCITTFAX4 : COMPRESSION_LZW);
    TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC,
                 k.palette         ? PHOTOMETRIC_PALETTE
                 : k.rgb           ? PHOTOMETRIC_RGB
                 : k.white_is_zero ? PHOTOMETRIC_MINISWHITE
                                   : PHOTOMETRIC_MINISBLACK);
    if (k.alpha) {
        std::uint16_t kind = EXTRASAMPLE_UNASSALPHA;
        TIFFSetField(tiff, TIFFTAG_EXTRASAMPLES, 1, &kind);
    }
    if (k.palette) { // index i is gray 255 - i, so that a reader who ignores it sees a negative
        std::vector<std::uint16_t> map(256);
        for (int i = 0; i < 256; ++i) map[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>((255 - i) * 257);
        TIFFSetField(tiff, TIFFTAG_COLORMAP, map.data(), map.data(), map.data());
    }
    auto sample = [&](int y, int x, int c) -> unsigned {
        if (c >= pixels.channels()) return 255;
        unsigned v = pixels.ptr(y)[x * pixels.channels() + c];
        return k.palette || k.white_is_zero ? 255 - v : v;
    };
    auto put = [&](std::vector<unsigned char>& row, int at, unsigned v) {
        if (k.bits == 1) {
            if (v > 127) row[static_cast<std::size_t>(at / 8)] |= static_cast<unsigned char>(0x80 >> (at % 8));
        } else if (k.bits == 8) {
            row[static_cast<std::size_t>(at)] = static_cast<unsigned char>(v);
        } else {
            auto wide = static_cast<std::uint16_t>(v * 257);
            std::memcpy(row.data() + 2 * at, &wide, 2);
        }
    };
    if (k.tiled) {
        TIFFSetField(tiff, TIFFTAG_TILEWIDTH, 64);
        TIFFSetField(tiff, TIFFTAG_TILELENGTH, 64);
        for (int ty = 0; ty < h; ty += 64)
            for (int tx = 0; tx < w; tx += 64) {
                std::vector<unsigned char> tile(static_cast<std::size_t>(TIFFTileSize(tiff)));
                for (int y = 0; y < 64; ++y)
                    for (int x = 0; x < 64; ++x)
                        for (int c = 0; c < channels; ++c)
                            put(tile, (y * 64 + x) * channels + c,
                                ty + y < h && tx + x < w ? sample(ty + y, tx + x, c) : 0);
                TIFFWriteTile(tiff, tile.data(), static_cast<std::uint32_t>(tx), static_cast<std::uint32_t>(ty), 0, 0);
            }
    } else {
        TIFFSetField(tiff, TIFFTAG_ROWSPERSTRIP, 32);
        for (int y = 0; y < h; ++y) {
            std::vector<unsigned char> row(static_cast<std::size_t>(TIFFScanlineSize(tiff)));
            for (int x = 0; x < w; ++x)
                for (int c = 0; c < channels; ++c) put(row, x * channels + c, sample(y, x, c));
            TIFFWriteScanline(tiff, row.data(), static_cast<std::uint32_t>(y));
        }
    }
}

} // namespace

void make_tiff(std::filesystem::path const& file, cv::Mat const& pixels, TiffKind const& kind) {
    TIFF* tiff = TIFFOpen(file.c_str(), kind.big ? "w8" : "w");
    if (!tiff) throw std::runtime_error("cannot write " + file.string());
    for (int page = 0; page < kind.pages; ++page) {
        if (page > 0) TIFFSetField(tiff, TIFFTAG_SUBFILETYPE, FILETYPE_PAGE);
        cv::Mat one = pixels.rowRange(0, pixels.rows - 8 * page); // pages differ in height
        write_page(tiff, one, kind);
        TIFFWriteDirectory(tiff);
        if (kind.thumbnail && page == 0) {
            TIFFSetField(tiff, TIFFTAG_SUBFILETYPE, FILETYPE_REDUCEDIMAGE);
            write_page(tiff, pixels.rowRange(0, 16), kind);
            TIFFWriteDirectory(tiff);
        }
    }
    TIFFClose(tiff);
}

void make_jpeg(std::filesystem::path const& file, cv::Mat const& pixels, bool cmyk, int dpi, int exif) {
    jpeg_compress_struct c;
    jpeg_error_mgr error;
    c.err = jpeg_std_error(&error);
    jpeg_create_compress(&c);
    FILE* out = std::fopen(file.c_str(), "wb");
    jpeg_stdio_dest(&c, out);
    c.image_width = static_cast<unsigned>(pixels.cols);
    c.image_height = static_cast<unsigned>(pixels.rows);
    c.input_components = cmyk ? 4 : pixels.channels();
    c.in_color_space = cmyk ? JCS_CMYK : pixels.channels() == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, 95, TRUE);
    c.density_unit = 1;
    c.X_density = c.Y_density = static_cast<std::uint16_t>(dpi);
    jpeg_start_compress(&c, TRUE);
    if (exif) {
        unsigned char block[] = {'E', 'x', 'i', 'f', 0,    0, 'M', 'M', 0, 42, 0, 0, 0,
                                 8,   0,   1,   1,   0x12, 0, 3,   0,   0, 0,  1, 0, static_cast<unsigned char>(exif),
                                 0,   0,   0,   0,   0,    0};
        jpeg_write_marker(&c, JPEG_APP0 + 1, block, sizeof block);
    }
    std::vector<unsigned char> row(static_cast<std::size_t>(pixels.cols) * 4);
    while (c.next_scanline < c.image_height) {
        auto const* in = pixels.ptr(static_cast<int>(c.next_scanline));
        if (cmyk) // Adobe's way: inverted, all black in the colours
            for (int x = 0; x < pixels.cols; ++x) {
                for (int i = 0; i < 3; ++i) row[static_cast<std::size_t>(4 * x + i)] = in[3 * x + i];
                row[static_cast<std::size_t>(4 * x + 3)] = 255;
            }
        else
            std::memcpy(row.data(), in, static_cast<std::size_t>(pixels.cols * pixels.channels()));
        JSAMPROW line = row.data();
        jpeg_write_scanlines(&c, &line, 1);
    }
    jpeg_finish_compress(&c);
    std::fclose(out);
    jpeg_destroy_compress(&c);
}

void make_jpeg2000(std::filesystem::path const& file, cv::Mat const& pixels, int tile, int resolutions) {
    int channels = pixels.channels();
    std::vector<opj_image_cmptparm_t> parts(static_cast<std::size_t>(channels));
    for (auto& p : parts) {
        std::memset(&p, 0, sizeof p);
        p.dx = p.dy = 1;
        p.w = static_cast<unsigned>(pixels.cols);
        p.h = static_cast<unsigned>(pixels.rows);
        p.prec = p.bpp = 8;
    }
    opj_image_t* image = opj_image_create(static_cast<unsigned>(channels), parts.data(),
                                          channels == 1 ? OPJ_CLRSPC_GRAY : OPJ_CLRSPC_SRGB);
    image->x1 = static_cast<unsigned>(pixels.cols);
    image->y1 = static_cast<unsigned>(pixels.rows);
    for (int y = 0; y < pixels.rows; ++y)
        for (int x = 0; x < pixels.cols; ++x)
            for (int c = 0; c < channels; ++c)
                image->comps[c].data[y * pixels.cols + x] = pixels.ptr(y)[x * channels + c];
    opj_cparameters_t p;
    opj_set_default_encoder_parameters(&p);
    p.tcp_numlayers = 1;
    p.cp_disto_alloc = 1;
    p.numresolution = resolutions;
    if (tile) p.tile_size_on = OPJ_TRUE, p.cp_tdx = p.cp_tdy = tile;
    opj_codec_t* codec = opj_create_compress(OPJ_CODEC_JP2);
    opj_setup_encoder(codec, &p, image);
    opj_stream_t* stream = opj_stream_create_default_file_stream(file.c_str(), OPJ_FALSE);
    bool ok = opj_start_compress(codec, image, stream) && opj_encode(codec, stream) && opj_end_compress(codec, stream);
    opj_stream_destroy(stream);
    opj_destroy_codec(codec);
    opj_image_destroy(image);
    if (!ok) throw std::runtime_error("cannot write " + file.string());
}

void make_webp(std::filesystem::path const& file, cv::Mat const& pixels) {
    std::uint8_t* bytes = nullptr;
    auto size = WebPEncodeLosslessRGB(pixels.data, pixels.cols, pixels.rows, static_cast<int>(pixels.step), &bytes);
    spill(file, {reinterpret_cast<char*>(bytes), size});
    WebPFree(bytes);
}

std::string slurp(std::filesystem::path const& file) {
    std::ifstream in(file, std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    return out.str();
}

void spill(std::filesystem::path const& file, std::string const& bytes) {
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << bytes;
}

} // namespace ocrctl::ocr
