// STATE/deployment.json: what a deployment is and what was chosen for it (ports, folders on the Hosts) when it was first
// deployed, so that a later deploy, the server and kill-all find the same. Never secrets.
#pragma once

#include "lib/base/clock.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/model/json.hpp"

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace ocrctl::deployer {

struct ListenFact {
    std::string address = "127.0.0.1";
    int port = 0;
};

struct QueueFact {
    std::string kind;     // native | external
    std::string address;  // where it listens
    int port = 0;
    int dist_port = 0, epmd_port = 0; // native: Erlang's own, loopback only
};

struct HostFact {
    std::string state; // HOSTDIR there
    // PATH, OCRD_* and the like as a user who logs in there has them (here: whoever deployed first): what programs of others are started with.
    std::map<std::string, std::string> login;
    std::map<std::string, int> tunnel; // what it reaches through its tunnel -> port on its loopback
};

struct DeploymentFile {
    std::string id, name;
    std::string config;      // the original file; relative paths in STATE/config.yml are relative to it
    Millis created = 0;
    std::string build;       // of the last deploy
    std::string local_host;  // the deploying machine's Host
    ListenFact listen;
    std::string server;      // where this machine reaches the server: "http://127.0.0.1:8080"
    QueueFact queue;
    std::map<std::string, HostFact> hosts;
};

void to_json(Json& json, ListenFact const& value);
void from_json(Json const& json, ListenFact& value);
void to_json(Json& json, QueueFact const& value);
void from_json(Json const& json, QueueFact& value);
void to_json(Json& json, HostFact const& value);
void from_json(Json const& json, HostFact& value);
void to_json(Json& json, DeploymentFile const& value);
void from_json(Json const& json, DeploymentFile& value);

/// NotFound if the folder holds none.
Result<DeploymentFile> load_deployment(ledger::StatePaths const& paths);
Result<void> save_deployment(ledger::StatePaths const& paths, DeploymentFile const& deployment);

/// Names of the files in STATE/secrets and HOSTDIR/secrets.
inline constexpr char kAmqpUrl[] = "amqp-url";
inline constexpr char kQueuePassword[] = "queue-password";
inline constexpr char kErlangCookie[] = "erlang-cookie";
inline constexpr char kAgentToken[] = "agent-token";
inline constexpr char kMongoUrl[] = "mongo-url";
inline constexpr char kWorkerKey[] = "worker-key"; // what passwords of foreign Workers are made from
/// The URL of a foreign Worker's own vhost: with the Worker's login on its Host, with the server's in STATE.
std::string worker_amqp_name(std::string_view vhost);

/// Name of the file with the password by which a Host is opened.
std::string ssh_secret(std::string_view host);

/// The secret's value; it is made (hex, `bytes` random bytes), written 0600 and flushed if it is not there yet.
Result<std::string> secret(std::filesystem::path const& folder, std::string const& name, std::size_t bytes);
/// Writes 0600, only if it differs.
Result<void> write_secret(std::filesystem::path const& folder, std::string const& name, std::string_view value);

/// First 16 hex digits of the SHA-256 of the program that runs: the name of its folder on Hosts.
Result<std::string> own_build();

} // namespace ocrctl::deployer
