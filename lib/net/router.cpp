#include "lib/net/router.hpp"

#include "lib/net/url.hpp"

#include <algorithm>
#include <fmt/ranges.h>

namespace ocrctl::net {

namespace {

/// "/a//b" is "a", "", "b"; "/" is "".
template <class Text>
void segments_of(std::string_view path, std::vector<Text>& out) {
    if (path.starts_with('/')) path.remove_prefix(1);
    for (;;) {
        auto slash = path.find('/');
        out.emplace_back(path.substr(0, slash));
        if (slash == std::string_view::npos) return;
        path.remove_prefix(slash + 1);
    }
}

bool is_parameter(std::string const& segment) { return segment.size() > 2 && segment.front() == '{' && segment.back() == '}'; }
bool takes_rest(std::string const& segment) { return is_parameter(segment) && segment[segment.size() - 2] == '*'; }

bool fits(std::vector<std::string> const& pattern, std::vector<std::string_view> const& path) {
    bool rest = takes_rest(pattern.back());
    if (rest ? path.size() < pattern.size() : path.size() != pattern.size()) return false;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        if (is_parameter(pattern[i])) {
            if (path[i].empty() && !takes_rest(pattern[i])) return false;
        } else if (pattern[i] != path[i]) {
            return false;
        }
    }
    return true;
}

std::map<std::string, std::string> params_of(std::vector<std::string> const& pattern, std::vector<std::string_view> const& path) {
    std::map<std::string, std::string> params;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        if (takes_rest(pattern[i])) {
            auto const* begin = path[i].data();
            auto const* end = path.back().data() + path.back().size();
            params[pattern[i].substr(1, pattern[i].size() - 3)] =
                percent_decode(std::string_view(begin, static_cast<std::size_t>(end - begin)));
        } else if (is_parameter(pattern[i])) {
            params[pattern[i].substr(1, pattern[i].size() - 2)] = percent_decode(path[i]);
        }
    }
    return params;
}

} // namespace

void Router::add(std::string method, std::string pattern, Handler handler) {
    Route route;
    route.method = std::move(method);
    segments_of(pattern, route.segments);
    route.handler = std::move(handler);
    routes_.push_back(std::move(route));
}

void Router::add_websocket(std::string pattern, WebSocketHandler handler, UpgradeCheck check) {
    Route route;
    route.method = "GET";
    segments_of(pattern, route.segments);
    route.websocket = std::move(handler);
    route.check = std::move(check);
    routes_.push_back(std::move(route));
}

std::vector<std::pair<std::string, std::string>> Router::routes() const {
    std::vector<std::pair<std::string, std::string>> all;
    for (auto const& route : routes_) all.emplace_back(route.method, "/" + fmt::format("{}", fmt::join(route.segments, "/")));
    return all;
}

Router::Match Router::find(Request const& request, bool upgrade) const {
    Match match;
    std::vector<std::string_view> path;
    segments_of(request.path, path);
    std::vector<std::string> allowed;
    bool needs_upgrade = false;
    for (auto const& route : routes_) {
        if (!fits(route.segments, path)) continue;
        if (route.method != request.method) {
            allowed.push_back(route.method);
            continue;
        }
        if (route.websocket && !upgrade) {
            needs_upgrade = true;
            continue;
        }
        match.handler = route.handler ? &route.handler : nullptr;
        match.websocket = route.websocket ? &route.websocket : nullptr;
        match.check = route.check ? &route.check : nullptr;
        match.params = params_of(route.segments, path);
        return match;
    }
    if (needs_upgrade) {
        match.refusal = Response::error(426, "this address speaks WebSocket: send Upgrade: websocket");
        match.refusal->headers.add("upgrade", "websocket");
        return match;
    }
    if (!allowed.empty()) {
        std::ranges::sort(allowed);
        allowed.erase(std::ranges::unique(allowed).begin(), allowed.end());
        match.refusal = Response::error(405, "Method Not Allowed");
        match.refusal->headers.add("allow", fmt::format("{}", fmt::join(allowed, ", ")));
        return match;
    }
    if (path.size() > 1 && path.back().empty()) {
        path.pop_back();
        if (std::ranges::any_of(routes_, [&](Route const& route) { return fits(route.segments, path); })) {
            auto shorter = std::string_view(request.path).substr(0, request.path.size() - 1);
            auto query = std::string_view(request.target).substr(std::min(request.path.size(), request.target.size()));
            auto host = request.headers.get("host");
            Response redirect;
            redirect.status = 307;
            // Absolute as OCR-D's server has it; "//x" would lead to another host.
            bool absolute = !host.empty();
            redirect.headers.add("location", fmt::format("{}{}{}{}", absolute ? "http://" : "", host, shorter, query));
            if (absolute || !shorter.starts_with("//")) {
                match.refusal = std::move(redirect);
                return match;
            }
        }
    }
    match.refusal = Response::error(404, "Not Found");
    return match;
}

} // namespace ocrctl::net
