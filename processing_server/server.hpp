// The processing server, wired: Store, broker, Jobs, agents, HTTP.
#pragma once

#include "processing_server/converger.hpp"
#include "processing_server/settings.hpp"

#include <boost/asio/io_context.hpp>
#include <memory>

namespace ocrctl::server {

/// start() recovers what was under way and listens; stop() takes no more requests, saves what is applied, and closes. Lives on the
/// thread that runs `io`. A kill -9 at any moment loses nothing that a client was told.
class ProcessingServer {
public:
    /// `converger` may be null; else it outlives the server.
    ProcessingServer(asio::io_context& io, Settings settings, Converger* converger = nullptr);
    ~ProcessingServer();

    /// Errors: Invalid (Store damaged or newer, a broken catalogue), Conflict (port in use), Denied, Unavailable.
    awaitable<Result<void>> start();
    awaitable<void> stop(std::chrono::milliseconds limit);

    std::string const& url() const noexcept;
    int port() const noexcept;

private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

} // namespace ocrctl::server
