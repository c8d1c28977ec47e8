#include "lib/mets/mets.hpp"

#include <algorithm>
#include <array>
#include <cctype>

namespace ocrctl::mets {

namespace {

int hex_value(char c) noexcept {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

struct Extension {
    std::string_view extension, mimetype;
};

// The first extension of a MIME type is the one that is written. After OCR-D's constants, with its gaps filled.
constexpr std::array kExtensions{
    Extension{".xml", kPageMimetype},           Extension{".xml", kAltoMimetype},
    Extension{".xml", "text/xml"},              Extension{".xml", "application/xml"},
    Extension{".tif", "image/tiff"},            Extension{".tiff", "image/tiff"},
    Extension{".tif", "image/tif"},             Extension{".png", "image/png"},
    Extension{".jpg", "image/jpeg"},            Extension{".jpeg", "image/jpeg"},
    Extension{".jpg", "image/jpg"},             Extension{".jp2", "image/jp2"},
    Extension{".jpx", "image/jpx"},             Extension{".webp", "image/webp"},
    Extension{".bmp", "image/bmp"},             Extension{".gif", "image/gif"},
    Extension{".ppm", "image/x-portable-pixmap"}, Extension{".pnm", "image/x-portable-anymap"},
    Extension{".pbm", "image/x-portable-bitmap"}, Extension{".pgm", "image/x-portable-graymap"},
    Extension{".pdf", kPdfMimetype},            Extension{".txt", kTextMimetype},
    Extension{".html", kHocrMimetype},          Extension{".hocr", kHocrMimetype},
    Extension{".html", "text/html"},            Extension{".json", "application/json"},
};

} // namespace

std::string_view extension_of(std::string_view mimetype) noexcept {
    auto const* known = std::find_if(kExtensions.begin(), kExtensions.end(), [&](auto const& e) { return e.mimetype == mimetype; });
    return known == kExtensions.end() ? std::string_view{} : known->extension;
}

std::string_view mimetype_of(std::string_view file_name) noexcept {
    auto const dot = file_name.rfind('.');
    if (dot == std::string_view::npos) return "application/octet-stream";
    auto const extension = file_name.substr(dot);
    auto same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
    auto const* known = std::find_if(kExtensions.begin(), kExtensions.end(), [&](auto const& e) {
        return std::equal(extension.begin(), extension.end(), e.extension.begin(), e.extension.end(), same);
    });
    return known == kExtensions.end() ? std::string_view{"application/octet-stream"} : known->mimetype;
}

std::string encode_href(std::string_view path) {
    constexpr std::string_view kReserved = " \"#%<>?[\\]^`{|}";
    constexpr std::string_view kHex = "0123456789ABCDEF";
    std::string href;
    bool first_segment = true; // a colon there would read as a scheme
    for (char c : path) {
        auto const byte = static_cast<unsigned char>(c);
        if (c == '/') first_segment = false;
        if (byte < 0x20 || byte == 0x7f || kReserved.find(c) != std::string_view::npos || (c == ':' && first_segment)) {
            href += '%';
            href += kHex[byte >> 4];
            href += kHex[byte & 15];
        } else {
            href += c;
        }
    }
    return href;
}

std::string decode_href(std::string_view href) {
    std::string path;
    for (std::size_t i = 0; i < href.size(); ++i) {
        if (href[i] == '%' && i + 2 < href.size()) {
            int const high = hex_value(href[i + 1]), low = hex_value(href[i + 2]);
            if (high >= 0 && low >= 0) {
                path += static_cast<char>(high * 16 + low);
                i += 2;
                continue;
            }
        }
        path += href[i];
    }
    return path;
}

} // namespace ocrctl::mets
