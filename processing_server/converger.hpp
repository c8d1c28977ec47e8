// How the server asks for a host to be made right again (docs/contracts.md, "Deployment"). The deployer implements it; cmd/serve.cpp
// hands it over: the two folders do not include one another.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/base/error.hpp"

#include <string>

namespace ocrctl::server {

class Converger {
public:
    virtual ~Converger() = default;

    /// Reconnects or restarts the agent of this host. Called when it has been silent for a second, again with back-off
    /// while it stays away, never while the deployment closes. Success: done what could be done; the agent will dial in.
    virtual awaitable<Result<void>> bring_back(std::string host) = 0;

    /// POST /stop: ends the whole deployment, this server too, by a kill-all that outlives it. Success: it has begun.
    virtual awaitable<Result<void>> stop_all() = 0;
};

} // namespace ocrctl::server
