#include "lib/net/http.hpp"

#include <algorithm>

namespace ocrctl::net {

namespace {

bool same(std::string_view a, std::string_view b) noexcept {
    auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [&](char x, char y) { return lower(x) == lower(y); });
}

} // namespace

std::string_view Headers::get(std::string_view name) const noexcept {
    for (auto const& [key, value] : fields_)
        if (same(key, name)) return value;
    return {};
}

bool Headers::has(std::string_view name) const noexcept {
    return std::ranges::any_of(fields_, [&](auto const& field) { return same(field.first, name); });
}

void Headers::set(std::string name, std::string value) {
    std::erase_if(fields_, [&](auto const& field) { return same(field.first, name); });
    add(std::move(name), std::move(value));
}

std::string Request::query_or(std::string_view name, std::string_view otherwise) const {
    for (auto const& [key, value] : query)
        if (key == name) return value;
    return std::string(otherwise);
}

bool Request::has_query(std::string_view name) const noexcept {
    return std::ranges::any_of(query, [&](auto const& pair) { return pair.first == name; });
}

std::string const& Request::param(std::string const& name) const {
    static std::string const none;
    auto found = params.find(name);
    return found == params.end() ? none : found->second;
}

Response Response::json(int status, Json const& body) {
    Response response;
    response.status = status;
    response.content_type = "application/json";
    response.body = dump(body);
    return response;
}

Response Response::text(int status, std::string body, std::string content_type) {
    Response response;
    response.status = status;
    response.content_type = std::move(content_type);
    response.body = std::move(body);
    return response;
}

Response Response::error(Error const& error) { return Response::error(error.http_status(), error.message()); }

Response Response::error(int status, std::string_view detail) {
    Json body;
    body["detail"] = std::string(detail);
    return json(status, body);
}

std::string Response::detail() const {
    if (auto json = parse_json(body); json && json->is_object() && json->contains("detail")) {
        auto const& detail = (*json)["detail"];
        return detail.is_string() ? detail.get<std::string>() : dump(detail);
    }
    return body.substr(0, 500);
}

std::string_view reason_phrase(int status) noexcept {
    switch (status) {
    case 100: return "Continue";
    case 101: return "Switching Protocols";
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 206: return "Partial Content";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 304: return "Not Modified";
    case 307: return "Temporary Redirect";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 411: return "Length Required";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 422: return "Unprocessable Entity";
    case 426: return "Upgrade Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    default: return status < 300 ? "OK" : "Error";
    }
}

} // namespace ocrctl::net
