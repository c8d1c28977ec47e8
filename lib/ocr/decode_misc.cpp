#include "lib/ocr/decoders.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <leptonica/allheaders.h>
#include <memory>
#include <openjpeg.h>
#include <webp/decode.h>

namespace ocrctl::ocr {

// --- EXIF

void set_orientation(int exif, Image& image) {
    switch (exif) {
    case 3:
        image.orientation = 180;
        break;
    case 6:
        image.orientation = 90;
        break;
    case 8:
        image.orientation = -90;
        break;
    case 2:
    case 4:
    case 5:
    case 7:
        image.warnings.push_back(
            fmt::format("is marked as mirrored (EXIF orientation {}), it is read as it is stored", exif));
        break;
    default:
        break;
    }
}

void read_exif(std::string_view block, Image& image) {
    if (block.size() < 8) return;
    bool little = block.starts_with("II");
    auto number = [&](std::size_t at, int bytes) -> std::uint32_t {
        std::uint32_t value = 0;
        if (at + static_cast<std::size_t>(bytes) > block.size()) return 0;
        for (int i = 0; i < bytes; ++i) {
            auto byte = static_cast<unsigned char>(block[at + static_cast<std::size_t>(little ? bytes - 1 - i : i)]);
            value = value << 8 | byte;
        }
        return value;
    };
    std::size_t folder = number(4, 4);
    auto count = number(folder, 2);
    double resolution = 0;
    std::uint32_t unit = 2;
    for (std::uint32_t i = 0; i < count && i < 200; ++i) {
        std::size_t entry = folder + 2 + std::size_t{12} * i;
        if (entry + 12 > block.size()) break;
        auto tag = number(entry, 2);
        if (tag == 0x112) set_orientation(static_cast<int>(number(entry + 8, 2)), image);
        if (tag == 0x128) unit = number(entry + 8, 2);
        if (tag == 0x11a) {
            std::size_t value = number(entry + 8, 4);
            auto below = number(value + 4, 4);
            if (below) resolution = static_cast<double>(number(value, 4)) / below;
        }
    }
    if (unit == 3) resolution *= 2.54;
    // The container's own field (JFIF, pHYs) wins where it is plausible: it is what other readers see.
    if ((image.dpi < 70 || image.dpi > 2400) && resolution > 0 && unit != 1) image.dpi = resolution;
}

// --- JPEG 2000

namespace {

// Streams and codecs are the same type to openjpeg, so they need a deleter each.
struct StreamFree {
    void operator()(opj_stream_t* s) const noexcept { opj_stream_destroy(s); }
};
struct CodecFree {
    void operator()(opj_codec_t* c) const noexcept { opj_destroy_codec(c); }
};
struct ImageFree {
    void operator()(opj_image_t* i) const noexcept { opj_image_destroy(i); }
};

struct Bytes {
    std::string_view bytes;
    std::size_t at = 0;
};

OPJ_SIZE_T read_bytes(void* buffer, OPJ_SIZE_T size, void* user) {
    auto* from = static_cast<Bytes*>(user);
    auto left = from->bytes.size() - from->at;
    if (left == 0) return static_cast<OPJ_SIZE_T>(-1);
    auto take = std::min<std::size_t>(size, left);
    std::memcpy(buffer, from->bytes.data() + from->at, take);
    from->at += take;
    return take;
}
OPJ_OFF_T skip_bytes(OPJ_OFF_T size, void* user) {
    auto* from = static_cast<Bytes*>(user);
    auto left = from->bytes.size() - from->at;
    auto step = std::min<std::size_t>(static_cast<std::size_t>(std::max<OPJ_OFF_T>(size, 0)), left);
    from->at += step;
    return static_cast<OPJ_OFF_T>(step);
}
OPJ_BOOL seek_bytes(OPJ_OFF_T to, void* user) {
    auto* from = static_cast<Bytes*>(user);
    if (to < 0 || static_cast<std::size_t>(to) > from->bytes.size()) return OPJ_FALSE;
    from->at = static_cast<std::size_t>(to);
    return OPJ_TRUE;
}

// The capture or display resolution of a JP2 file: boxes jp2h > res > resc/resd.
double jp2_resolution(std::string_view bytes) {
    auto number = [&](std::size_t at, int n) {
        std::uint32_t value = 0;
        for (int i = 0; i < n; ++i)
            value = value << 8 | static_cast<unsigned char>(bytes[at + static_cast<std::size_t>(i)]);
        return value;
    };
    for (std::string_view name : {"resc", "resd"}) {
        auto at = bytes.substr(0, std::min<std::size_t>(bytes.size(), 4096)).find(name);
        if (at == std::string_view::npos || at + 14 > bytes.size()) continue;
        auto below = number(at + 10, 2), above = number(at + 8, 2);
        auto exponent = static_cast<signed char>(bytes[at + 13]);
        if (below) return above * std::pow(10.0, exponent) / below * 0.0254;
    }
    return 0;
}

} // namespace

Result<Image> decode_jpeg2000(std::string_view bytes, bool header_only) {
    bool raw = bytes.starts_with("\xff\x4f");
    Bytes source{bytes};
    std::unique_ptr<opj_stream_t, StreamFree> stream(opj_stream_create(1 << 20, OPJ_TRUE));
    std::unique_ptr<opj_codec_t, CodecFree> codec(opj_create_decompress(raw ? OPJ_CODEC_J2K : OPJ_CODEC_JP2));
    std::string problem;
    auto keep = [](char const* text, void* user) {
        auto& kept = *static_cast<std::string*>(user);
        if (kept.empty()) kept = text;
    };
    opj_set_error_handler(codec.get(), keep, &problem);
    std::string complaint;
    opj_set_warning_handler(codec.get(), keep, &complaint);
    opj_set_info_handler(codec.get(), [](char const*, void*) {}, nullptr);
    opj_stream_set_user_data(stream.get(), &source, nullptr);
    opj_stream_set_user_data_length(stream.get(), bytes.size());
    opj_stream_set_read_function(stream.get(), read_bytes);
    opj_stream_set_skip_function(stream.get(), skip_bytes);
    opj_stream_set_seek_function(stream.get(), seek_bytes);
    opj_dparameters_t parameters;
    opj_set_default_decoder_parameters(&parameters);
    auto damaged = [&]() {
        auto text = problem.empty() ? (complaint.empty() ? std::string("its data end too early") : complaint) : problem;
        while (!text.empty() && (text.back() == '\n' || text.back() == '.')) text.pop_back();
        return fail(ErrorKind::Invalid, "is truncated or damaged: {}", text);
    };
    if (!opj_setup_decoder(codec.get(), &parameters)) return damaged();
    opj_decoder_set_strict_mode(codec.get(), OPJ_TRUE);
    opj_image_t* made = nullptr;
    bool header = opj_read_header(stream.get(), codec.get(), &made);
    std::unique_ptr<opj_image_t, ImageFree> picture(made);
    if (!header || !picture) return damaged();
    Image image;
    if (!raw) image.dpi = jp2_resolution(bytes);
    if (picture->x1 <= picture->x0 || picture->y1 <= picture->y0) return damaged();
    if (auto fits = check_size(picture->x1 - picture->x0, picture->y1 - picture->y0); !fits) return fail(fits.error());
    int width = static_cast<int>(picture->x1 - picture->x0), height = static_cast<int>(picture->y1 - picture->y0);
    image.width = width;
    image.height = height;
    if (header_only) return image;
    if (!opj_decode(codec.get(), stream.get(), picture.get()) || !opj_end_decompress(codec.get(), stream.get()))
        return damaged();

    auto components = picture->numcomps;
    if (components == 0 || !picture->comps[0].data) return damaged();
    bool colour = components >= 3;
    bool alpha = components == 2 || components == 4;
    bool ycc = picture->color_space == OPJ_CLRSPC_SYCC || picture->color_space == OPJ_CLRSPC_EYCC;
    if (picture->color_space == OPJ_CLRSPC_CMYK) alpha = false;
    image.pixels.create(height, width, colour ? CV_8UC3 : CV_8UC1);
    auto value = [&](unsigned c, int x, int y) -> int {
        auto const& part = picture->comps[c];
        int px = std::min<int>(x / static_cast<int>(std::max(1u, part.dx)), static_cast<int>(part.w) - 1);
        int py = std::min<int>(y / static_cast<int>(std::max(1u, part.dy)), static_cast<int>(part.h) - 1);
        int v = part.data[static_cast<std::size_t>(py) * part.w + static_cast<std::size_t>(px)];
        if (part.sgnd) v += 1 << (part.prec - 1);
        int most = (1 << part.prec) - 1;
        if (part.prec > 8)
            v >>= part.prec - 8;
        else if (part.prec < 8)
            v = v * 255 / most;
        return std::clamp(v, 0, 255);
    };
    for (unsigned c = 0; c < components && c < 4; ++c)
        if (!picture->comps[c].data || picture->comps[c].w == 0 || picture->comps[c].h == 0) return damaged();
    auto byte = [](double v) { return static_cast<unsigned char>(std::clamp(v + 0.5, 0.0, 255.0)); };
    for (int y = 0; y < height; ++y) {
        auto* out = image.pixels.ptr(y);
        for (int x = 0; x < width; ++x) {
            int over = 255;
            if (alpha) over = value(components - 1, x, y);
            if (!colour) {
                out[x] = static_cast<unsigned char>((value(0, x, y) * over + 255 * (255 - over)) / 255);
                continue;
            }
            int a = value(0, x, y), b = value(1, x, y), c = value(2, x, y);
            if (ycc) {
                double cb = b - 128.0, cr = c - 128.0, luma = a;
                a = byte(luma + 1.402 * cr), b = byte(luma - 0.344136 * cb - 0.714136 * cr),
                c = byte(luma + 1.772 * cb);
            } else if (picture->color_space == OPJ_CLRSPC_CMYK && components == 4) {
                int k = 255 - value(3, x, y);
                a = (255 - a) * k / 255, b = (255 - b) * k / 255, c = (255 - c) * k / 255;
            }
            out[3 * x] = static_cast<unsigned char>((a * over + 255 * (255 - over)) / 255);
            out[3 * x + 1] = static_cast<unsigned char>((b * over + 255 * (255 - over)) / 255);
            out[3 * x + 2] = static_cast<unsigned char>((c * over + 255 * (255 - over)) / 255);
        }
    }
    image.bilevel = components == 1 && picture->comps[0].prec == 1;
    return image;
}

// --- WebP

Result<Image> decode_webp(std::string_view bytes, bool header_only) {
    auto const* data = reinterpret_cast<std::uint8_t const*>(bytes.data());
    WebPBitstreamFeatures features;
    if (WebPGetFeatures(data, bytes.size(), &features) != VP8_STATUS_OK)
        return fail(ErrorKind::Invalid, "is truncated or damaged: its WebP header cannot be read");
    if (features.has_animation) return fail(ErrorKind::Invalid, "is an animation, not a page");
    Image image;
    image.width = features.width;
    image.height = features.height;
    std::uint8_t* done = nullptr;
    cv::Mat rgba;
    if (!header_only) image.pixels.create(features.height, features.width, CV_8UC3);
    if (header_only) {
        done = const_cast<std::uint8_t*>(data);
    } else if (features.has_alpha) {
        rgba.create(features.height, features.width, CV_8UC4);
        done = WebPDecodeRGBAInto(data, bytes.size(), rgba.data, rgba.step * static_cast<std::size_t>(rgba.rows),
                                  static_cast<int>(rgba.step));
    } else {
        done = WebPDecodeRGBInto(data, bytes.size(), image.pixels.data,
                                 image.pixels.step * static_cast<std::size_t>(image.pixels.rows),
                                 static_cast<int>(image.pixels.step));
    }
    if (!done) return fail(ErrorKind::Invalid, "is truncated or damaged: its WebP data end too early or make no sense");
    for (int y = 0; y < rgba.rows; ++y) {
        auto const* in = rgba.ptr(y);
        auto* out = image.pixels.ptr(y);
        for (int x = 0; x < rgba.cols; ++x)
            for (int c = 0; c < 3; ++c)
                out[3 * x + c] = static_cast<unsigned char>(
                    (in[4 * x + c] * in[4 * x + 3] + 255 * (255 - in[4 * x + 3]) + 127) / 255);
    }
    // RIFF chunks: EXIF stands after the image data.
    for (std::size_t at = 12; at + 8 <= bytes.size();) {
        std::uint32_t size = 0;
        for (int i = 3; i >= 0; --i)
            size = size << 8 | static_cast<unsigned char>(bytes[at + 4 + static_cast<std::size_t>(i)]);
        if (size > bytes.size() - at - 8) break;
        if (bytes.substr(at, 4) == "EXIF") {
            auto block = bytes.substr(at + 8, size);
            using namespace std::string_view_literals;
            if (block.starts_with("Exif\0\0"sv)) block.remove_prefix(6);
            read_exif(block, image);
        }
        at += 8 + std::size_t{size} + (size & 1);
    }
    return image;
}

// --- BMP, GIF, PNM

Result<Image> decode_other(std::filesystem::path const& file) {
    struct PixFree {
        void operator()(Pix* pix) const noexcept { pixDestroy(&pix); }
    };
    setMsgSeverity(L_SEVERITY_NONE);
    l_int32 columns = 0, rows = 0;
    if (pixReadHeader(file.c_str(), nullptr, &columns, &rows, nullptr, nullptr, nullptr) == 0 && columns > 0 && rows > 0)
        if (auto fits = check_size(static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)); !fits)
            return fail(fits.error());
    std::unique_ptr<Pix, PixFree> pix(pixRead(file.c_str()));
    if (!pix) return fail(ErrorKind::Invalid, "is truncated or damaged");
    Image image;
    image.bilevel = pixGetDepth(pix.get()) == 1;
    image.dpi = pixGetXRes(pix.get());
    std::unique_ptr<Pix, PixFree> flat(pixRemoveColormap(pix.get(), REMOVE_CMAP_BASED_ON_SRC));
    bool colour = flat && pixGetDepth(flat.get()) == 32;
    std::unique_ptr<Pix, PixFree> eight(!flat ? nullptr : colour ? pixClone(flat.get()) : pixConvertTo8(flat.get(), 0));
    if (!eight) return fail(ErrorKind::Invalid, "is a kind of image that cannot be read");
    int width = pixGetWidth(eight.get()), height = pixGetHeight(eight.get()), words = pixGetWpl(eight.get());
    image.pixels.create(height, width, colour ? CV_8UC3 : CV_8UC1);
    for (int y = 0; y < height; ++y) {
        l_uint32* line = pixGetData(eight.get()) + static_cast<std::ptrdiff_t>(y) * words;
        auto* out = image.pixels.ptr(y);
        for (int x = 0; x < width; ++x) {
            if (!colour) {
                out[x] = static_cast<unsigned char>(GET_DATA_BYTE(line, x));
                continue;
            }
            l_int32 r = 0, g = 0, b = 0;
            extractRGBValues(line[x], &r, &g, &b);
            out[3 * x] = static_cast<unsigned char>(r);
            out[3 * x + 1] = static_cast<unsigned char>(g);
            out[3 * x + 2] = static_cast<unsigned char>(b);
        }
    }
    return image;
}

} // namespace ocrctl::ocr
