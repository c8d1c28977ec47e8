// One Host as the Deployer and kill-all handle it: this machine, or another one over SSH. What has to be done on a Host
// beyond launching and copying is done by our own binary there (`ocrctl host ...`), so that both ways are one.
#pragma once

#include "lib/base/error.hpp"
#include "lib/model/json.hpp"
#include "lib/process/process.hpp"
#include "lib/remote/ssh_session.hpp"

#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::deployer {

struct Output {
    int exit_code = -1;
    std::string out, err;
};

struct HostLook {
    std::string state_root; // where deployments of this user keep their state by default
    std::string boot;
    std::string machine;    // "x86_64"
};

struct Launch {
    std::vector<std::string> argv;
    std::map<std::string, std::string> env; // in addition to what is there
    std::string log;                        // appended to; its folder is made
};

/// Calls block, each for at most its limit. One thread at a time.
class HostDriver {
public:
    virtual ~HostDriver() = default;
    virtual std::string const& name() const noexcept = 0;
    virtual bool local() const noexcept = 0;

    virtual Result<HostLook> look() = 0;
    virtual Result<bool> exists(std::string const& path) = 0;
    /// Brings a file (the binary); what is there under that name is kept: names hold the build id.
    virtual Result<void> bring(std::filesystem::path const& file, std::string const& path) = 0;
    /// Writes a small file: temporary name, rename. Makes the folder (0700 for mode 0600).
    virtual Result<void> put(std::string const& path, std::string_view content, int mode) = 0;
    /// Runs a program to its end.
    virtual Result<Output> run(std::vector<std::string> const& argv, std::string_view input = {},
                               std::chrono::milliseconds limit = std::chrono::seconds(30)) = 0;
    /// Starts a program in a session of its own that outlives us; when this returns, a shell with this
    /// identity is about to become the program, and everything carried the environment given from its first instant.
    virtual Result<process::Identity> launch(Launch const& launch) = 0;
};

std::unique_ptr<HostDriver> local_driver(std::string name);
/// Connects. Errors: those of SshSession::connect.
Result<std::unique_ptr<HostDriver>> ssh_driver(remote::SshTarget target);

/// The line for /bin/sh that starts a program in the background and prints "BOOT PID START" of what is executed: free of
/// races, whatever the login shell is.
std::string launch_line(Launch const& launch);
/// Reads what it prints.
Result<process::Identity> launched(std::string_view output);

} // namespace ocrctl::deployer
