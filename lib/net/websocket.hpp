// WebSocket connections, both ends. Text frames.
#pragma once

#include "lib/net/http.hpp"

#include <chrono>
#include <memory>

namespace ocrctl::net {

/// One connection. Lives on the executor it was made on; all functions are called there.
///
/// Pings go out when the line is quiet; a peer that does not answer them within `kIdle` counts as gone, and read() and
/// write() fail. Destroying it cuts the connection; close() says good-bye first.
class WebSocket {
public:
    static constexpr std::chrono::seconds kIdle{20};

    virtual ~WebSocket() = default;

    /// The next message. Unavailable once the peer has closed or is gone. One reader at a time.
    virtual awaitable<Result<std::string>> read() = 0;

    /// Until the message is handed to the kernel; messages go out in the order of the calls, also if several wait.
    virtual awaitable<Result<void>> write(std::string message) = 0;

    /// Queues a message without waiting for it; false if the connection is gone.
    virtual bool post(std::string message) = 0;

    /// Good-bye, in the background: read() and what is still to be written fail from now on. Twice is once.
    virtual void close() = 0;

    virtual bool open() const noexcept = 0;
    virtual std::string const& remote() const noexcept = 0;
};

/// Connects and upgrades; http:// and ws:// mean the same. Refusals by the server carry its status and detail in the message
/// (401 is Denied, 404 NotFound). Unavailable, Timeout else.
awaitable<Result<std::shared_ptr<WebSocket>>> websocket_connect(std::string url, Headers headers,
                                                                std::chrono::milliseconds timeout);

} // namespace ocrctl::net
