// The host agent: keeps the units of one host running (services, the server, Workers, tunnels), adopts what an earlier
// agent started, reports, and stops everything when told or when its lease ends. Its own death disturbs no unit.
#pragma once

#include "lib/base/error.hpp"

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

namespace ocrctl::host_agent {

struct AgentOptions {
    std::filesystem::path host_dir; // desired.json, ledger.jsonl, agent.sock, logs/ ... (lib/ledger/paths.hpp)
    std::string build;              // what the report names as agent_build
    std::chrono::milliseconds silence =
        std::chrono::seconds(10); // a Worker that shows no life for so long is killed and started again
};

/// Owns everything of the process: one io thread (the caller of run), a few threads for what blocks. Make one per
/// process.
class Agent {
public:
    explicit Agent(AgentOptions options);
    ~Agent();

    /// Until told to end (SIGTERM, SIGINT, op exit: units go on and the next agent adopts them) or the lease has ended
    /// (units are stopped first). Conflict: an agent already runs on this folder.
    Result<void> run();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace ocrctl::host_agent
