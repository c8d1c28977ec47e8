// Which handler answers which request.
#pragma once

#include "lib/net/http.hpp"
#include "lib/net/websocket.hpp"

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace ocrctl::net {

/// A WebSocket's whole life: the connection is closed when it returns.
using WebSocketHandler = std::function<awaitable<void>(std::shared_ptr<WebSocket>, Request)>;
/// Asked before an upgrade: nothing to go on, or the refusal.
using UpgradeCheck = std::function<std::optional<Response>(Request const&)>;

/// Patterns with {name} for one segment, or a last {name*} for the rest of the path. The first added route that fits wins. Filled
/// before the server listens, then only read.
class Router {
public:
    void add(std::string method, std::string pattern, Handler handler);
    void add_websocket(std::string pattern, WebSocketHandler handler, UpgradeCheck check = {});

    /// Method and pattern of each, in the order in which they were added.
    std::vector<std::pair<std::string, std::string>> routes() const;

    struct Match {
        Handler const* handler = nullptr;
        WebSocketHandler const* websocket = nullptr;
        UpgradeCheck const* check = nullptr;
        std::map<std::string, std::string> params;
        std::optional<Response> refusal; // 404, 405 with Allow, 307 for a trailing slash, 426 for a missing upgrade
    };
    Match find(Request const& request, bool upgrade) const;

private:
    struct Route {
        std::string method;
        std::vector<std::string> segments;
        Handler handler;
        WebSocketHandler websocket;
        UpgradeCheck check;
    };
    std::vector<Route> routes_;
};

} // namespace ocrctl::net
