// One Host made as the Plan wants it: reached, its folder and the binary there, desired state and secrets written, its
// agent running. Used by deploy for all Hosts and by Converge for one that was lost.
#pragma once

#include "deployer/host_driver.hpp"
#include "deployer/plan.hpp"
#include "lib/ledger/ledger.hpp"

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace ocrctl::deployer {

/// How to reach a Host, as the central Ledger keeps it: all that kill-all has.
struct HostRecord {
    std::string connection = "local"; // local | ssh
    std::string address;
    int port = 22;
    std::string username, private_key, host_key, known_hosts;
    std::string password_file;        // in STATE/secrets
    bool use_agent = false;
    std::string state;                // HOSTDIR there
    std::string binary;               // ours there
    std::map<std::string, int> tunnel; // what it reaches through its tunnel -> port on its loopback
};
void to_json(Json& json, HostRecord const& record);
void from_json(Json const& json, HostRecord& record);

/// How a Host over SSH is opened, with its password read.
Result<remote::SshTarget> target_of(std::string const& host, HostRecord const& record,
                                    std::chrono::milliseconds timeout = std::chrono::seconds(10));

/// Connects (SSH) or not (this machine).
Result<std::unique_ptr<HostDriver>> driver_for(std::string const& host, HostRecord const& record, std::chrono::milliseconds timeout = std::chrono::seconds(10));

/// Name of a Host's agent in the central Ledger.
std::string agent_entry(std::string_view host);

/// Runs on the Host: boot id, pid and start time say whether this very process lives.
Result<bool> alive_on(HostDriver& driver, process::Identity const& identity);

/// What all Hosts of one deploy share. Thread-safe through `mutex` where it is written.
struct SetupContext {
    ledger::StatePaths paths;
    ledger::Ledger* ledger = nullptr;
    config::Deployment const* config = nullptr;
    Facts* facts = nullptr;             // deployment.hosts is completed by setup
    std::mutex* mutex = nullptr;
    std::string queue_user;
    Secret queue_password;
    Secret worker_key;                  // of foreign Workers' passwords
    std::string token;
    bool fresh = false;                 // the first deploy, or the first since kill-all: what lies on Hosts is history
    std::function<void(std::string const& host, std::string const& text)> say;
};

/// The Host's plan, with its folder and generation filled in, once its agent runs and was told.
struct SetupResult {
    HostPlan plan;
    HostRecord record;
    process::Identity agent; // none on a Host without: nothing was started there (agentless.hpp)
    bool started = false; // its agent was started by this call
};
Result<SetupResult> setup_host(SetupContext& context, std::string const& host);

/// Ends the agent alone: what it supervises goes on and is adopted by the next one.
Result<void> end_agent(HostDriver& driver, HostPlan const& plan, process::Identity const& agent);

/// The part of a login's environment that programs of others need (PATH, OCRD_*, ...), as the user's own shell has it there. OCR-D
/// starts Workers from such a shell, so this is where users set them. Empty if the shell does not tell.
std::map<std::string, std::string> login_environment(HostDriver& driver);

/// A sentence for each program of others that the Host lacks.
std::vector<std::string> programs_missing(HostDriver& driver, HostPlan const& plan);

/// What a Host must have, asked of it by its own means; a sentence for each thing that is missing.
std::vector<std::string> missing_on(HostDriver& driver, HostPlan const& plan, std::string const& binary, std::vector<std::filesystem::path> const& model_folders);

} // namespace ocrctl::deployer
