#include "processing_server/foreign_message.hpp"

#include <fmt/format.h>

namespace ocrctl::server {
namespace {

// The code point at `at` and its length; malformed UTF-8 gives U+FFFD and one byte.
std::pair<char32_t, std::size_t> code_point(std::string_view text, std::size_t at) {
    auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    auto first = byte(at);
    if (first < 0x80) return {first, 1};
    auto length = first >= 0xF0 && first < 0xF8 ? 4u : first >= 0xE0 ? 3u : first >= 0xC2 ? 2u : 0u;
    if (length == 0 || first >= 0xF8 || at + length > text.size()) return {0xFFFD, 1};
    char32_t value = first & (0xFFu >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(at + i) & 0xC0) != 0x80) return {0xFFFD, 1};
        value = (value << 6) | (byte(at + i) & 0x3Fu);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return {0xFFFD, 1};
    return {value, length};
}

void put_text(std::string& out, std::string_view text) {
    out += '"';
    for (std::size_t at = 0; at < text.size();) {
        auto [point, length] = code_point(text, at);
        switch (point) {
        case '"':
            out += "\\\"";
            break;
        case '\\':
            out += "\\\\";
            break;
        case '\n':
            out += "\\n";
            break;
        case '\r':
            out += "\\r";
            break;
        case '\t':
            out += "\\t";
            break;
        default:
            // Not printable for YAML, or a line break there (U+0085, U+2028, U+2029).
            if (point < 0x20 || (point >= 0x7F && point < 0xA0) || point == 0x2028 || point == 0x2029 ||
                point == 0xFEFF || point == 0xFFFE || point == 0xFFFF)
                out += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(point));
            else if (point == 0xFFFD)
                out += "\xEF\xBF\xBD";
            else
                out.append(text, at, length);
        }
        at += length;
    }
    out += '"';
}

void put(std::string& out, Json const& value) {
    auto separator = "";
    switch (value.type()) {
    case Json::value_t::object:
        out += '{';
        for (auto const& [key, one] : value.items()) {
            out += separator;
            put_text(out, key);
            out += ": ";
            put(out, one);
            separator = ", ";
        }
        out += '}';
        break;
    case Json::value_t::array:
        out += '[';
        for (auto const& one : value) {
            out += separator;
            put(out, one);
            separator = ", ";
        }
        out += ']';
        break;
    case Json::value_t::string:
        put_text(out, value.get_ref<std::string const&>());
        break;
    case Json::value_t::number_float: {
        auto text = value.dump(); // "1e-05", which YAML 1.1 takes for a string
        if (auto exponent = text.find('e'); exponent != std::string::npos && text.find('.') == std::string::npos)
            text.insert(exponent, ".0");
        out += text;
        break;
    }
    default:
        out += value.dump();
    }
}

} // namespace

std::string yaml_safe_json(Json const& value) {
    std::string out;
    put(out, value);
    return out;
}

std::string foreign_message(Job const& job, std::string const& path_to_mets, std::string const& page_id,
                            std::string const& internal_url, Millis now) {
    Json message{{"job_id", job.id.str()},
                 {"processor_name", job.target.name},
                 {"created_time", now / 1000},
                 {"path_to_mets", path_to_mets},
                 {"input_file_grps", job.input_groups},
                 {"parameters", job.parameters},
                 {"internal_callback_url", internal_url + "/result_callback"}};
    if (!job.output_groups.empty()) message["output_file_grps"] = job.output_groups;
    if (!page_id.empty()) message["page_id"] = page_id;
    return yaml_safe_json(message);
}

} // namespace ocrctl::server
