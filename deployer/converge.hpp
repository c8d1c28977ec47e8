// Brings a Host back from the state folder alone: for the processing server, when an agent stays silent.
#pragma once

#include "lib/base/error.hpp"

#include <filesystem>
#include <memory>
#include <string>

namespace ocrctl::deployer {

/// Thread-safe; calls block (connect, look, start: some seconds at most, 30 if the Host does not answer), so run them on a
/// pool thread. Holds the deploy lock while any call is at work.
class Converge {
public:
    explicit Converge(std::filesystem::path state);
    ~Converge();

    /// The agent runs when this returns, or an error says why not; one that lives is left alone. Errors: Conflict (a deploy or
    /// kill-all holds the lock; the deployment is closing), and those of the Host.
    Result<void> bring_back(std::string const& host);

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace ocrctl::deployer
