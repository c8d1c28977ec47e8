// OCR-D's METS server API, served from the METS files in memory: on /tcp_mets and on a Unix socket per workspace
// (network protocol section 5). No process per workspace.
#pragma once

#include "lib/net/router.hpp"
#include "processing_server/settings.hpp"
#include "processing_server/workspaces.hpp"

#include <memory>
#include <string>

namespace ocrctl::server {

/// Additions go through the Workspace: whoever saves saves them, and a METS edited by somebody else meanwhile loses
/// none. Sockets lie in STATE/mets, mode 0666; those of an earlier life are removed by the constructor.
///
/// Lives on the io thread; refers to what it is given, all of which outlives it.
class MetsApi {
public:
    /// `url`: where the server listens; read when an address is asked for.
    MetsApi(asio::any_io_executor io, Settings const& settings, Workspaces& workspaces, std::string const& url);
    ~MetsApi();

    /// POST /tcp_mets, and POST /v1/mets {"path_to_mets": ...}: {"mets_server_url": ..., "workspace_path": ...}, an
    /// address for whoever starts a Processor by hand with -U; its socket stays until DELETE / on it.
    void add_routes(net::Router& router);

    /// What a foreign Worker is told as mets_server_url for this workspace folder (canonical): the path of a socket
    /// that listens when this returns, or the /tcp_mets URL (use_tcp_mets, a Worker on another host, a path too long
    /// for a socket).
    awaitable<Result<std::string>> address_for(std::string folder, bool other_host,
                                               std::string mets_basename = "mets.xml");
    /// The address is not needed any more. When all who asked for it have released it, what is unsaved is saved, and
    /// the socket goes once nobody is connected.
    void release(std::string const& folder, std::string const& mets_basename = "mets.xml");
    /// METS files with an address that somebody needs, or with a socket that is not closed yet.
    std::size_t addresses() const noexcept;

    /// Saves what is in memory. For the end of a foreign Job: OCR-D's client does not look at the status of its own
    /// PUT, so only this tells that a Job's entries are on disk. Errors: as of saving; Conflict: the METS was edited
    /// meanwhile, and what was added does not go with it (names each file).
    awaitable<Result<void>> save(std::string folder, std::string mets_basename = "mets.xml");

    /// Closes and removes the sockets, saves what is unsaved.
    awaitable<void> stop();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace ocrctl::server
