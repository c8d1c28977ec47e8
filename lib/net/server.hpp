// The HTTP server.
#pragma once

#include "lib/async/task_group.hpp"
#include "lib/net/router.hpp"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace ocrctl::net {

struct ServerOptions {
    std::size_t max_body = 64u << 20;     // more: 413
    std::size_t max_header = 64u << 10;   // more: 431
    std::size_t max_connections = 4096;   // more: 503 and closed
    std::chrono::seconds read_timeout{30}; // for one request to arrive, and for one answer to leave
    std::chrono::seconds idle_timeout{75}; // between requests of a connection
};

struct Bound {
    std::string address; // "127.0.0.1"
    std::uint16_t port = 0;
    std::string url;     // "http://127.0.0.1:8080"
};

/// Serves a Router on addresses and Unix sockets: HTTP/1.1 with keep-alive and pipelining, HTTP/1.0, chunked bodies,
/// Expect: 100-continue, WebSocket upgrades.
///
/// Lives on one executor of one thread; all functions are called there, handlers run there. The router outlives it. stop()
/// closes the listeners and idle connections at once, lets requests under way finish for `grace`, then cancels them. Destroy it
/// after stop() has returned, or after its io_context has ended.
class HttpServer {
public:
    HttpServer(asio::any_io_executor executor, Router const& router, ServerOptions options = {});
    ~HttpServer();

    /// Port 0: one that is free. Conflict: "port 8080 on 127.0.0.1 is in use". May be called for several addresses.
    Result<Bound> listen(std::string const& address, std::uint16_t port);

    /// A stale socket file of nobody is replaced; Conflict if somebody answers there. stop() removes the file.
    Result<void> listen_unix(std::filesystem::path const& path, int mode = 0600);
    /// Stops listening on one Unix socket and removes its file.
    void close_unix(std::filesystem::path const& path);

    awaitable<void> stop(std::chrono::milliseconds grace);

    std::size_t connections() const noexcept;

private:
    struct Impl;
    std::shared_ptr<Impl> impl_;
};

} // namespace ocrctl::net
