// URLs, percent-encoding and query strings.
#pragma once

#include "lib/base/error.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ocrctl::net {

/// http://host[:port]/target, ws://..., or http+unix://<percent-encoded socket path>/target.
struct Url {
    std::string scheme;      // "http" "ws" "http+unix"
    std::string host;        // without brackets; empty for a socket
    std::uint16_t port = 80;
    std::string socket;      // absolute path of a Unix socket, else empty
    std::string target = "/"; // path and query, as sent
    /// "127.0.0.1:8080" or the socket's path: which server.
    std::string authority() const;
};

/// Invalid if it is none of these forms (https is refused with the reason).
Result<Url> parse_url(std::string_view text);

/// The URL of a target behind a Unix socket.
std::string unix_url(std::string_view socket_path, std::string_view target);

std::string percent_encode(std::string_view text);
/// "%41" is "A"; a broken escape stays as it is. `plus_is_blank` for query strings and forms.
std::string percent_decode(std::string_view text, bool plus_is_blank = false);

std::vector<std::pair<std::string, std::string>> parse_query(std::string_view text);

} // namespace ocrctl::net
