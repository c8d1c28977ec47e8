// Units: what a host agent keeps running (a service, the server, a Worker, a tunnel), the desired state it is given,
// and what it reports. The same documents go over the agent's Unix socket, its WebSocket to the server, and to disk.
#pragma once

#include "lib/base/clock.hpp"
#include "lib/model/json.hpp"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl {

/// In the order in which they are started; kill-all goes backwards. Agents themselves are ledger entries of kind "agent".
enum class UnitKind { Tunnel, Queue, Database, Server, Agent, Worker, ForeignWorker };
std::string_view wire(UnitKind kind) noexcept; // "tunnel" "queue" "database" "server" "agent" "worker" "foreign-worker"

/// When a unit counts as READY.
struct Readiness {
    // started | tcp (address) | http (address: url, 200) | exec (argv exits 0) | report (the unit tells its agent) |
    // connected (it has a TCP connection to the port of address)
    std::string kind = "started";
    std::string address;          // "127.0.0.1:5672" or "http://127.0.0.1:8080/readyz"
    std::vector<std::string> argv;
    int timeout_s = 60;           // after that the unit is Failed and restarted with back-off
};

struct UnitSpec {
    std::string entry;                       // stable id in the ledger: "queue", "server", or the slot of a Worker
    UnitKind kind = UnitKind::Worker;
    std::vector<std::string> argv;           // a word made by file_word() becomes the file's content right before the start
    std::map<std::string, std::string> env;  // in addition to the OCRCTL_* marks, which the agent sets; no secrets here
    std::map<std::string, std::string> env_files; // variable -> file whose content it gets (secrets)
    std::string cwd, log;                    // log: appended to
    Readiness ready;
    std::vector<std::string> needs;          // entries of this host that must be READY before the start
    std::vector<std::string> needs_tcp;      // "host:port" of services elsewhere that must accept a connection before the start
    std::vector<std::string> stop_argv;      // asked to stop by this instead of SIGTERM
    int grace_s = 10;                        // between asking and SIGKILL
    bool restart = true;
    std::vector<std::string> also;           // programs that survive it and are stopped with it, each found by mark + name (epmd)
    std::vector<std::string> remove;         // paths removed once it is gone: sockets, temporary folders; never data or logs
    Json assignment;                         // a managed Worker's: {target, queue, processor, parameters, amqp_url_file, path_map, ...}
};

/// A word of UnitSpec::argv that stands for the content of a file: for programs that take secrets on their command line only.
/// Neither desired state nor ledger hold more than the file's name.
std::string file_word(std::string_view file);
/// The file that a word stands for, if it is one.
std::optional<std::string> file_of_word(std::string_view word);

struct DesiredState {
    std::string deployment;   // id, the value of OCRCTL_DEPLOYMENT
    std::string host;         // value of OCRCTL_HOST
    std::int64_t generation = 0;
    bool agent = true; // false: no agent runs there; the units are started once, by `ocrctl host start`
    int lease_s = 86400;
    std::string server;       // "http://127.0.0.1:8080": where the agent dials in; "" = nowhere yet
    std::string token_file;   // the agent's join token
    std::vector<UnitSpec> units;
};

enum class UnitState { Waiting, Starting, Ready, BackOff, Stopping, Stopped, Failed };
std::string_view wire(UnitState state) noexcept; // "waiting" "starting" "ready" "back-off" "stopping" "stopped" "failed"

struct UnitReport {
    std::string entry;
    UnitKind kind = UnitKind::Worker;
    UnitState state = UnitState::Waiting;
    int pid = 0;
    Millis since = 0;            // of this state
    int restarts = 0;
    std::string detail;          // one sentence: the last exit or what it waits for
    std::string last_exit;       // why it was restarted the last time; kept while it is ready again
    std::string job;             // a Worker's current Job
    std::string processor;       // a Worker's
    std::int64_t jobs_done = 0;
};

struct HostReport {
    std::string deployment, host, agent_build, boot_id;
    int agent_pid = 0;
    std::int64_t generation = 0; // acknowledged
    bool closing = false;
    std::vector<UnitReport> units;
};

void to_json(Json& json, UnitKind const& kind);
void from_json(Json const& json, UnitKind& kind);
void to_json(Json& json, UnitState const& state);
void from_json(Json const& json, UnitState& state);
void to_json(Json& json, Readiness const& value);
void from_json(Json const& json, Readiness& value);
void to_json(Json& json, UnitSpec const& value);
void from_json(Json const& json, UnitSpec& value);
void to_json(Json& json, DesiredState const& value);
void from_json(Json const& json, DesiredState& value);
void to_json(Json& json, UnitReport const& value);
void from_json(Json const& json, UnitReport& value);
void to_json(Json& json, HostReport const& value);
void from_json(Json const& json, HostReport& value);

} // namespace ocrctl
