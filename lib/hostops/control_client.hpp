// Talks to an agent of this machine over its control socket: a line of JSON out, lines back.
#pragma once

#include "lib/base/files.hpp"
#include "lib/model/json.hpp"

#include <chrono>
#include <filesystem>
#include <string>

namespace ocrctl::hostops {

/// One connection. Blocking, not thread-safe.
class ControlClient {
public:
    /// Unavailable: nobody listens there.
    static Result<ControlClient> connect(std::filesystem::path const& host_dir);

    Result<void> send(Json const& request);
    /// The next line. Timeout; Unavailable once the agent has gone.
    Result<Json> receive(std::chrono::milliseconds limit);
    /// Both; a reply with "ok": false is an error with its text and kind.
    Result<Json> ask(Json const& request, std::chrono::milliseconds limit = std::chrono::seconds(10));

    /// To be polled; readable: receive() has something, or the agent has gone.
    int descriptor() const noexcept { return fd_.get(); }

private:
    explicit ControlClient(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
    std::string buffer_;
};

} // namespace ocrctl::hostops
