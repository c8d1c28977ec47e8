// OCR-D's METS server API, served from the METS files in memory: on /tcp_mets and on a Unix socket per workspace (network
// protocol section 5). No process per workspace.
#pragma once

#include "lib/net/router.hpp"
#include "processing_server/settings.hpp"
#include "processing_server/workspaces.hpp"

#include <memory>
#include <string>

namespace ocrctl::server {

/// Lives on the io thread; refers to what it is given, all of which outlives it.
class MetsApi {
public:
    MetsApi(asio::any_io_executor io, asio::thread_pool& pool, Settings const& settings, Workspaces& workspaces);
    ~MetsApi();

    /// POST /tcp_mets.
    void add_routes(net::Router& router);

    /// What a foreign Worker is told as mets_server_url for this workspace folder (canonical): the path of a socket that listens
    /// when this returns, or the /tcp_mets URL (use_tcp_mets, a Worker on another host, a path too long for a socket).
    awaitable<Result<std::string>> address_for(std::string folder, bool other_host);
    /// The address is not needed any more; the socket goes when all who asked for it have released it and nobody is connected.
    void release(std::string const& folder);

    awaitable<void> stop();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace ocrctl::server
