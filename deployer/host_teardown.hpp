// Brings one Host back to nothing: by lib/hostops on this machine, by `ocrctl host ...` over SSH on others.
#pragma once

#include "deployer/host_setup.hpp"
#include "lib/hostops/host_ops.hpp"

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace ocrctl::deployer {

/// One thread at a time. An error means that the Host could not be asked or refused; what was done there stays done.
class HostTeardown {
public:
    /// Connects; brings the program there if it is gone.
    static Result<std::unique_ptr<HostTeardown>> open(std::string const& host, HostRecord const& record, std::string deployment);

    /// Nothing is started there any more.
    Result<void> close();
    /// Ends the units of these kinds ("worker", ...); "agent" is the agent itself.
    Result<hostops::StopReport> stop(std::vector<std::string> const& kinds, std::chrono::seconds grace);
    /// Waits until nobody listens on the ports of its tunnel, which is gone; an sshd that has not noticed it, `memory`
    /// names it, is ended. Lines on ports that stay open.
    Result<std::vector<std::string>> close_tunnel(std::filesystem::path const& memory);
    /// Ends whatever else carries the deployment's mark; lines on what could not be ended, and on sockets that are left.
    Result<std::vector<std::string>> sweep(std::chrono::seconds grace);
    /// Removes all but data, logs and ledger; with `purge` those, too.
    Result<void> clean(bool purge);

private:
    HostTeardown(std::string host, HostRecord record, std::string deployment, std::unique_ptr<HostDriver> driver);
    Result<Output> host_command(std::vector<std::string> arguments, std::chrono::milliseconds limit);
    Result<hostops::ScanReport> scan();

    std::string host_;
    HostRecord record_;
    std::string deployment_;
    std::unique_ptr<HostDriver> driver_;
};

} // namespace ocrctl::deployer
