// HTTP messages as the rest of the program sees them. No Beast type leaves this folder.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/base/error.hpp"
#include "lib/model/json.hpp"

#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ocrctl::net {

/// Names compare without regard to case; order and repetitions are kept.
class Headers {
public:
    Headers() = default;
    Headers(std::initializer_list<std::pair<std::string, std::string>> fields) : fields_(fields) {}
    /// The first value, or "".
    std::string_view get(std::string_view name) const noexcept;
    bool has(std::string_view name) const noexcept;
    void add(std::string name, std::string value) { fields_.emplace_back(std::move(name), std::move(value)); }
    void set(std::string name, std::string value);
    auto begin() const noexcept { return fields_.begin(); }
    auto end() const noexcept { return fields_.end(); }
    std::size_t size() const noexcept { return fields_.size(); }

private:
    std::vector<std::pair<std::string, std::string>> fields_;
};

struct Request {
    std::string method;   // "GET"
    std::string target;   // as sent: "/processor/job/x?y=1"
    std::string path;     // still percent-encoded, without the query
    std::vector<std::pair<std::string, std::string>> query; // decoded
    Headers headers;
    std::string body;
    std::map<std::string, std::string> params; // of the route's pattern, decoded
    std::string remote;   // "127.0.0.1:40312", or "unix"

    /// The first query value of that name, or the default.
    std::string query_or(std::string_view name, std::string_view otherwise = "") const;
    bool has_query(std::string_view name) const noexcept;
    /// A path parameter; "" if the pattern has none of that name.
    std::string const& param(std::string const& name) const;
    /// The body as JSON; Invalid if it is none.
    Result<Json> json() const { return parse_json(body); }
};

struct Response {
    int status = 200;
    std::string content_type;
    std::string body;
    Headers headers; // besides content-type, content-length, connection

    static Response json(int status, Json const& body);
    static Response text(int status, std::string body, std::string content_type = "text/plain; charset=utf-8");
    /// {"detail": ...} with the status of the error's kind, or with one that the route demands.
    static Response error(Error const& error);
    static Response error(int status, std::string_view detail);

    bool ok() const noexcept { return status >= 200 && status < 300; }
    /// On the client's side: the body's "detail", else the beginning of the body.
    std::string detail() const;
};

/// What a route does. The Request is the handler's own. An exception becomes a 500 and is logged.
using Handler = std::function<awaitable<Response>(Request)>;

std::string_view reason_phrase(int status) noexcept;

} // namespace ocrctl::net
