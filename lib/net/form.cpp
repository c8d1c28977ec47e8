#include "lib/net/form.hpp"

#include "lib/base/text.hpp"
#include "lib/net/url.hpp"

namespace ocrctl::net {

namespace {

bool starts_with_nocase(std::string_view text, std::string_view start) {
    if (text.size() < start.size()) return false;
    for (std::size_t i = 0; i < start.size(); ++i)
        if (std::tolower(static_cast<unsigned char>(text[i])) != start[i]) return false;
    return true;
}

/// The value of `name` in `form-data; name="x"; filename="a \"b\".txt"`.
std::optional<std::string> parameter(std::string_view value, std::string_view name) {
    std::size_t at = value.find(';');
    while (at != std::string_view::npos && at < value.size()) {
        auto piece = value.substr(at + 1);
        piece.remove_prefix(std::min(piece.size(), piece.find_first_not_of(" \t")));
        auto equals = piece.find_first_of("=;");
        if (equals == std::string_view::npos || piece[equals] == ';') {
            at = value.find(';', at + 1);
            continue;
        }
        auto key = trim(piece.substr(0, equals));
        std::string text;
        std::size_t i = equals + 1;
        if (i < piece.size() && piece[i] == '"') {
            for (++i; i < piece.size() && piece[i] != '"'; ++i) {
                // Browsers and Python's clients escape only the quote (%22) or put a backslash before it.
                if (piece[i] == '\\' && i + 1 < piece.size() && (piece[i + 1] == '"' || piece[i + 1] == '\\')) ++i;
                text += piece[i];
            }
            ++i;
        } else {
            while (i < piece.size() && piece[i] != ';') text += piece[i++];
            text = std::string(trim(text));
        }
        if (key.size() == name.size() && starts_with_nocase(key, name)) return text;
        auto next = piece.find(';', std::min(i, piece.size()));
        if (next == std::string_view::npos) break;
        at = static_cast<std::size_t>(piece.data() - value.data()) + next;
    }
    return std::nullopt;
}

Result<std::vector<FormPart>> parse_multipart(std::string_view body, std::string const& boundary) {
    std::vector<FormPart> parts;
    std::string const line = "--" + boundary;
    std::string const separator = "\r\n" + line;
    auto at = body.starts_with(line) ? line.size() : body.find(separator);
    if (at == std::string_view::npos) return fail(ErrorKind::Invalid, "the multipart body has no boundary \"{}\"", boundary);
    if (!body.starts_with(line)) at += separator.size();
    for (;;) {
        auto rest = body.substr(at);
        if (rest.starts_with("--")) return parts;
        auto end_of_line = rest.find("\r\n"); // blanks may follow the boundary
        if (end_of_line == std::string_view::npos) break;
        at += end_of_line + 2;
        rest = body.substr(at);
        FormPart part;
        bool named = false;
        for (;;) {
            auto line_end = rest.find("\r\n");
            if (line_end == std::string_view::npos) return fail(ErrorKind::Invalid, "the multipart body ends inside a part's header");
            auto header = rest.substr(0, line_end);
            at += line_end + 2;
            rest = body.substr(at);
            if (header.empty()) break;
            auto colon = header.find(':');
            if (colon == std::string_view::npos) continue;
            auto key = trim(header.substr(0, colon));
            auto value = trim(header.substr(colon + 1));
            if (starts_with_nocase(key, "content-disposition")) {
                if (auto name = parameter(value, "name")) {
                    part.name = *name;
                    named = true;
                }
                part.filename = parameter(value, "filename");
            } else if (starts_with_nocase(key, "content-type")) {
                part.content_type = std::string(value);
            }
        }
        // An empty body may leave out its own line end.
        auto end = rest.starts_with(line) ? 0 : rest.find(separator);
        if (end == std::string_view::npos) break;
        part.body = std::string(rest.substr(0, end));
        if (!named) return fail(ErrorKind::Invalid, "a part of the multipart body has no name");
        parts.push_back(std::move(part));
        at += end + (rest.starts_with(line) ? line.size() : separator.size());
    }
    return fail(ErrorKind::Invalid, "the multipart body is cut off: its closing boundary is missing");
}

} // namespace

Result<std::vector<FormPart>> parse_form(Request const& request) {
    auto type = request.headers.get("content-type");
    if (starts_with_nocase(type, "application/x-www-form-urlencoded")) {
        std::vector<FormPart> parts;
        for (auto& [name, value] : parse_query(request.body)) {
            FormPart part;
            part.name = std::move(name);
            part.body = std::move(value);
            parts.push_back(std::move(part));
        }
        return parts;
    }
    if (starts_with_nocase(type, "multipart/form-data")) {
        auto boundary = parameter(type, "boundary");
        if (!boundary || boundary->empty()) return fail(ErrorKind::Invalid, "the content type multipart/form-data has no boundary");
        return parse_multipart(request.body, *boundary);
    }
    return fail(ErrorKind::Invalid, "expected a form (multipart/form-data or application/x-www-form-urlencoded), got \"{}\"", type);
}

FormPart const* find_part(std::vector<FormPart> const& parts, std::string_view name) noexcept {
    for (auto const& part : parts)
        if (part.name == name) return &part;
    return nullptr;
}

} // namespace ocrctl::net
