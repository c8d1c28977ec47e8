// Where a deployment keeps things: the folder layout as functions, so that it is written down once.
#pragma once

#include "lib/base/error.hpp"

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::ledger {

/// /var/lib/ocrctl as root, else $XDG_STATE_HOME/ocrctl or ~/.local/state/ocrctl.
/// Usage without a home (neither HOME nor a usable one in the user database).
Result<std::filesystem::path> default_state_root();
/// The central state folder of a deployment: `state` if given, else default_state_root()/name.
Result<std::filesystem::path> state_folder(std::string_view name, std::filesystem::path const& state = {});

/// The layout of a central state folder.
struct StatePaths {
    std::filesystem::path root;
    std::filesystem::path deployment() const { return root / "deployment.json"; }
    std::filesystem::path ledger() const { return root / "ledger.jsonl"; }
    std::filesystem::path lock() const { return root / "deploy.lock"; }
    std::filesystem::path closing() const { return root / "closing"; }
    std::filesystem::path secrets() const { return root / "secrets"; } // 0700
    std::filesystem::path store() const { return root / "store" / "ocrctl.sqlite"; }
    std::filesystem::path logs() const { return root / "logs"; }
    std::filesystem::path job_logs() const { return root / "logs" / "jobs"; }
    std::filesystem::path rabbitmq() const { return root / "rabbitmq"; }
    std::filesystem::path mets_sockets() const { return root / "mets"; } // the server's, a Unix socket per METS
    std::filesystem::path config() const { return root / "config.yml"; }
    std::filesystem::path hosts() const { return root / "hosts"; }
    std::filesystem::path host(std::string_view name) const { return root / "hosts" / name; }
};

/// The layout of a host's state folder (HOSTDIR).
struct HostPaths {
    std::filesystem::path root;
    std::filesystem::path ledger() const { return root / "ledger.jsonl"; }
    std::filesystem::path desired() const { return root / "desired.json"; }
    std::filesystem::path report() const {
        return root / "report.json";
    } // of the last start, on the deploying machine, if it has no agent
    std::filesystem::path lock() const { return root / "agent.lock"; }
    std::filesystem::path closing() const { return root / "closing"; } // while it exists nothing is started
    std::filesystem::path lease() const { return root / "lease.json"; }
    std::filesystem::path secrets() const { return root / "secrets"; } // 0700
    std::filesystem::path logs() const { return root / "logs"; }
    std::filesystem::path agent_log() const { return root / "logs" / "agent.log"; }
    std::filesystem::path bin(std::string_view build) const { return root / "bin" / build / "ocrctl"; }
    std::filesystem::path tmp() const { return root / "tmp"; }
    std::filesystem::path socket() const; // host_socket_path(root)
};

/// HOSTDIR/agent.sock, or, where that is too long for a socket's name, /tmp/ocrctl-<16 hex of sha256(HOSTDIR)>.sock.
/// HOSTDIR is made absolute and normal first, so that all callers mean the same.
std::filesystem::path host_socket_path(std::filesystem::path const& host_dir);

/// A file name for an entry: "h/g/shard-0/rep-1" becomes "h_g_shard-0_rep-1".
std::string entry_file_name(std::string_view entry);

/// A deployment whose state folder was found.
struct DeploymentInfo {
    std::string id, name;
    std::filesystem::path state, config;
    bool live = false;    // its Ledger names something that may still be running
    bool closing = false; // a kill-all was begun
};

/// Reads deployment.json and the ledgers of a state folder. NotFound if it is none; one whose deployment.json is gone
/// while a ledger names something that may be running is one still (without an id, named as its folder).
Result<DeploymentInfo> read_deployment(std::filesystem::path const& state);
/// Deployments under the default state root (or another root), by name; `all` names those that have ended, too. Without a root also those
/// kept elsewhere whose agent runs on this machine.
std::vector<DeploymentInfo> find_deployments(bool all = false, std::filesystem::path const& root = {});

} // namespace ocrctl::ledger
