// Inside lib/net: one socket type for TCP and Unix sockets, so that each Beast template is instantiated once.
#pragma once

#include "lib/net/url.hpp"
#include "lib/net/websocket.hpp"

#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>

namespace ocrctl::net {

using Socket = asio::generic::stream_protocol::socket;
using tcp = asio::ip::tcp;
using local = asio::local::stream_protocol;

/// Asio opens sockets that children inherit; a listening one would keep its port in use.
void close_on_exec(int fd) noexcept;

/// Unavailable: "connect to 127.0.0.1:8080: Connection refused". No limit of its own.
awaitable<Result<Socket>> connect_to(Url url);

/// The server's side of an upgrade; the request's headers have been read, nothing has been answered.
awaitable<Result<std::shared_ptr<WebSocket>>> accept_websocket(Socket socket, Request const& request);

} // namespace ocrctl::net
