// Talks to an agent of this machine over its control socket: a line of JSON out, a line back.
#pragma once

#include "lib/base/files.hpp"
#include "lib/model/json.hpp"

#include <chrono>
#include <filesystem>
#include <string>

namespace ocrctl::deployer {

/// One connection. Blocking; not thread-safe.
class AgentClient {
public:
    /// Unavailable: nobody listens there.
    static Result<AgentClient> connect(std::filesystem::path const& socket);

    Result<void> send(Json const& request);
    /// The next line. Timeout; Unavailable when the agent has gone.
    Result<Json> receive(std::chrono::milliseconds limit);
    /// Both; a reply with ok: false is an error with its text.
    Result<Json> request(Json const& request, std::chrono::milliseconds limit = std::chrono::seconds(10));

private:
    explicit AgentClient(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
    std::string buffer_;
};

} // namespace ocrctl::deployer
