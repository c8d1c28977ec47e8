// The HTTP client: http:// and http+unix:// (lib/net/url.hpp).
#pragma once

#include "lib/net/http.hpp"

#include <chrono>
#include <memory>

namespace ocrctl::net {

/// Keeps connections and uses them again. Lives on one executor; all functions are called there. The destructor closes idle
/// connections; requests under way keep what they need.
class HttpClient {
public:
    explicit HttpClient(asio::any_io_executor executor);
    ~HttpClient();

    /// The answer, whatever its status. Unavailable: not reached or cut ("connect to 127.0.0.1:8080: Connection refused"). Timeout.
    /// A request that is safe to repeat (not POST) is sent once more if a kept connection turns out to be dead.
    awaitable<Result<Response>> request(std::string method, std::string url, Headers headers, std::string body,
                                        std::chrono::milliseconds timeout);

private:
    struct Impl;
    std::shared_ptr<Impl> impl_;
};

/// The same for commands: blocks, with an io_context of its own.
Result<Response> http_request(std::string method, std::string url, Headers headers = {}, std::string body = {},
                              std::chrono::milliseconds timeout = std::chrono::seconds(30));

} // namespace ocrctl::net
