#include "lib/net/url.hpp"

#include <charconv>

namespace ocrctl::net {

namespace {

int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

} // namespace

std::string Url::authority() const {
    if (!socket.empty()) return socket;
    bool v6 = host.find(':') != std::string::npos;
    return fmt::format("{}{}{}:{}", v6 ? "[" : "", host, v6 ? "]" : "", port);
}

Result<Url> parse_url(std::string_view text) {
    auto const bad = [&](std::string_view why) { return fail(ErrorKind::Invalid, "\"{}\" is no URL we can use: {}", text, why); };
    Url url;
    auto colon = text.find("://");
    if (colon == std::string_view::npos) return bad("expected http://HOST:PORT/...");
    url.scheme = text.substr(0, colon);
    if (url.scheme == "https" || url.scheme == "wss") return bad("TLS is not built in, use http:// or a proxy");
    if (url.scheme != "http" && url.scheme != "ws" && url.scheme != "http+unix")
        return bad("expected http://, ws:// or http+unix://");
    auto rest = text.substr(colon + 3);
    auto end = rest.find_first_of("/?#");
    auto host = rest.substr(0, end);
    auto target = end == std::string_view::npos ? std::string_view() : rest.substr(end);
    target = target.substr(0, target.find('#'));
    url.target = target.empty() ? "/" : target.front() == '?' ? "/" + std::string(target) : std::string(target);
    for (char c : url.target)
        if (static_cast<unsigned char>(c) <= ' ' || c == 0x7f) return bad("it has a blank or control character");
    if (url.scheme == "http+unix") {
        url.socket = percent_decode(host);
        if (url.socket.empty()) return bad("the socket's path is missing");
        return url;
    }
    if (auto at = host.rfind('@'); at != std::string_view::npos) host.remove_prefix(at + 1);
    std::string_view port;
    if (host.starts_with('[')) {
        auto close = host.find(']');
        if (close == std::string_view::npos) return bad("] is missing");
        port = host.substr(close + 1);
        host = host.substr(1, close - 1);
        if (!port.empty() && port.front() != ':') return bad("expected : after ]");
    } else if (auto at = host.find(':'); at != std::string_view::npos) {
        port = host.substr(at);
        host = host.substr(0, at);
    }
    if (host.empty()) return bad("the host is missing");
    url.host = host;
    if (port.size() > 1) {
        port.remove_prefix(1);
        auto [last, error] = std::from_chars(port.data(), port.data() + port.size(), url.port);
        if (error != std::errc() || last != port.data() + port.size() || url.port == 0) return bad("the port is no number from 1 to 65535");
    }
    return url;
}

std::string unix_url(std::string_view socket_path, std::string_view target) {
    return fmt::format("http+unix://{}{}", percent_encode(socket_path), target);
}

std::string percent_encode(std::string_view text) {
    static constexpr char digits[] = "0123456789ABCDEF";
    std::string out;
    for (unsigned char c : text) {
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.' || c == '~') {
            out += static_cast<char>(c);
        } else {
            out += '%';
            out += digits[c >> 4];
            out += digits[c & 15];
        }
    }
    return out;
}

std::string percent_decode(std::string_view text, bool plus_is_blank) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '%' && i + 2 < text.size() && hex(text[i + 1]) >= 0 && hex(text[i + 2]) >= 0) {
            out += static_cast<char>(hex(text[i + 1]) * 16 + hex(text[i + 2]));
            i += 2;
        } else {
            out += plus_is_blank && text[i] == '+' ? ' ' : text[i];
        }
    }
    return out;
}

std::vector<std::pair<std::string, std::string>> parse_query(std::string_view text) {
    std::vector<std::pair<std::string, std::string>> out;
    while (!text.empty()) {
        auto piece = text.substr(0, text.find('&'));
        text.remove_prefix(std::min(text.size(), piece.size() + 1));
        if (piece.empty()) continue;
        auto equals = piece.find('=');
        auto value = equals == std::string_view::npos ? std::string_view() : piece.substr(equals + 1);
        out.emplace_back(percent_decode(piece.substr(0, equals), true), percent_decode(value, true));
    }
    return out;
}

} // namespace ocrctl::net
