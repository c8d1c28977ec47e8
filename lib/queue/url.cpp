#include "lib/queue/broker.hpp"

#include <charconv>

namespace ocrctl::queue {
namespace {

std::optional<std::string> decode(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i];
            continue;
        }
        unsigned value = 0;
        if (i + 2 >= text.size()) return std::nullopt;
        auto [end, problem] = std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16);
        if (problem != std::errc() || end != text.data() + i + 3) return std::nullopt;
        out += static_cast<char>(value);
        i += 2;
    }
    return out;
}

std::string encode(std::string_view text) {
    std::string out;
    for (unsigned char c : text) {
        if (std::isalnum(c) || c == '-' || c == '_' || c == '.' || c == '~') out += static_cast<char>(c);
        else out += fmt::format("%{:02X}", c);
    }
    return out;
}

std::string address(BrokerUrl const& url) {
    return url.host.find(':') == std::string::npos ? fmt::format("{}:{}", url.host, url.port)
                                                   : fmt::format("[{}]:{}", url.host, url.port);
}

} // namespace

std::string BrokerUrl::shown() const {
    return fmt::format("amqp://{}{}", address(*this), vhost == "/" ? std::string() : "/" + encode(vhost));
}

Secret BrokerUrl::full() const {
    return Secret(fmt::format("amqp://{}:{}@{}/{}", encode(user), encode(password.reveal()), address(*this), encode(vhost)));
}

Result<BrokerUrl> parse_broker_url(std::string_view text) {
    constexpr std::string_view kScheme = "amqp://";
    if (text.starts_with("amqps://")) return fail(ErrorKind::Invalid, "broker address: amqps (TLS) is not supported yet, use amqp://");
    if (!text.starts_with(kScheme)) return fail(ErrorKind::Invalid, "broker address: must begin with amqp://");
    text.remove_prefix(kScheme.size());
    BrokerUrl url;
    if (auto query = text.find_first_of("?#"); query != std::string_view::npos) text = text.substr(0, query);
    auto slash = text.find('/');
    auto authority = text.substr(0, slash);
    if (slash != std::string_view::npos) {
        auto path = text.substr(slash + 1);
        if (!path.empty() && path != "/") {
            auto vhost = decode(path);
            if (!vhost) return fail(ErrorKind::Invalid, "broker address: bad % sequence in the vhost");
            url.vhost = *vhost;
        }
    }
    if (auto at = authority.rfind('@'); at != std::string_view::npos) {
        auto login = authority.substr(0, at);
        authority.remove_prefix(at + 1);
        auto colon = login.find(':');
        auto user = decode(login.substr(0, colon));
        auto password = decode(colon == std::string_view::npos ? std::string_view() : login.substr(colon + 1));
        if (!user || !password) return fail(ErrorKind::Invalid, "broker address: bad % sequence in user or password");
        url.user = *user;
        url.password = Secret(*password);
    }
    std::string_view port;
    if (authority.starts_with('[')) {
        auto end = authority.find(']');
        if (end == std::string_view::npos) return fail(ErrorKind::Invalid, "broker address: missing ] after an IPv6 address");
        url.host = authority.substr(1, end - 1);
        if (end + 1 < authority.size()) port = authority.substr(end + 1);
        if (!port.empty() && port.front() != ':') return fail(ErrorKind::Invalid, "broker address: expected a port after ]");
        if (!port.empty()) port.remove_prefix(1);
    } else {
        auto colon = authority.rfind(':');
        url.host = authority.substr(0, colon);
        if (colon != std::string_view::npos) port = authority.substr(colon + 1);
    }
    if (url.host.empty()) return fail(ErrorKind::Invalid, "broker address: no host");
    if (!port.empty()) {
        auto [end, problem] = std::from_chars(port.data(), port.data() + port.size(), url.port);
        if (problem != std::errc() || end != port.data() + port.size() || url.port < 1 || url.port > 65535)
            return fail(ErrorKind::Invalid, "broker address: port must be a number from 1 to 65535, got \"{}\"", port);
    }
    return url;
}

} // namespace ocrctl::queue
