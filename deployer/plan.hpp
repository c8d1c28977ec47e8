// What a deployment shall be, host by host, computed from config and facts alone, and how that differs from what is.
#pragma once

#include "deployer/deployment_file.hpp"
#include "deployer/rabbitmq.hpp"
#include "deployer/tunnel.hpp"
#include "lib/config/config.hpp"
#include "lib/model/unit.hpp"

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace ocrctl::deployer {

/// What the config does not say.
struct Facts {
    ledger::StatePaths state;
    DeploymentFile deployment;                      // id, ports, folders on the Hosts
    std::string build;
    std::optional<std::filesystem::path> rabbitmq;  // RabbitMQ's program folder on this machine
};

/// A program of others that a Host must have, and where it is looked for there.
struct Program {
    std::string executable; // a name, or a path
    std::string path;       // PATH; "" = that of the Host's agent
    friend auto operator<=>(Program const&, Program const&) = default;
};

/// A foreign Worker under supervision.
struct ForeignWorker {
    std::string slot, processor, host;
    std::string vhost;      // its own; "" = it shares the common one (external broker)
    std::string server;     // the processing server as seen from its Host: where its callbacks go
    bool agent = true;      // false: nobody reports of it
};

struct HostPlan {
    std::string name;
    bool local = false;                   // this machine
    config::Host const* config = nullptr; // nullptr: the deploying machine, where the config has no local Host
    std::string state;                    // HOSTDIR there; "" for a Host that was never reached yet
    std::string amqp_host;                // the broker as seen from there
    int amqp_port = 0;
    std::string mongo_host;               // MongoDB as seen from there; "" = none
    int mongo_port = 0;
    std::optional<TunnelSettings> tunnel; // through which it reaches broker and server; nothing: directly
    DesiredState desired;                 // generation is not set
    std::vector<std::string> models;      // language models its Workers are loaded with
    bool runs_ocr = false;                // has a managed Worker of a built-in Processor other than dummy
    std::set<Program> programs;
};

/// Pure; refers to the config it was made from.
struct Plan {
    std::string local_host;
    std::string queue_kind;          // native | external
    std::optional<RabbitMq> rabbitmq;
    std::string queue_user;
    std::string database_kind;       // embedded | external
    std::vector<ForeignWorker> foreign;
    std::string server;              // URL for this machine
    std::string internal;            // URL for the Hosts of foreign Workers
    Json server_settings;            // STATE/server.json
    std::vector<HostPlan> hosts;     // the deploying machine first, then as in the config
    std::vector<std::string> problems; // what this version or this combination cannot do, each a sentence

    static Plan from(config::Deployment const& config, Facts const& facts);
    HostPlan const* host(std::string_view name) const;
};

/// Name of the deploying machine's Host: the first local one of the config, else "localhost" (or "deployer" if taken).
std::string local_host_name(config::Deployment const& config);

/// amqp://user:password@host:port/vhost, percent-encoded.
std::string amqp_url(std::string_view user, Secret const& password, std::string_view host, int port, std::string_view vhost);

/// mongodb://user:password@host:port, percent-encoded; without database, as OCR-D's own.
std::string mongo_url(std::optional<config::Credentials> const& credentials, std::string_view host, int port);

/// What a Host is known to run.
struct Observed {
    bool agent = false;                       // its agent is alive
    std::optional<DesiredState> desired;      // what it was told last
    std::set<std::string> running;            // entries that are alive, as far as known
};

enum class Verb { Start, Restart, Stop, Keep };
struct Change {
    std::string host;
    Verb verb = Verb::Keep;
    std::string what, detail;
    /// "localhost     start    queue (RabbitMQ on 127.0.0.1:5672)"
    std::string text() const;
};

/// Hosts in `observed` that the plan does not have are stopped. Keep lines are included.
std::vector<Change> changes(Plan const& plan, std::map<std::string, Observed> const& observed);

/// Equal but for the generation?
bool same(DesiredState const& a, DesiredState const& b);

} // namespace ocrctl::deployer
