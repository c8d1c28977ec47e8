// The configuration file: YAML in, checked structs out, every problem at once with file:line:column. A superset of
// OCR-D's processing-server config. docs/configuration.md and config.yml.example describe each key. No code past this
// folder sees a YAML node, and no default is written anywhere but in the member initialisers below.
#pragma once

#include "lib/base/error.hpp"
#include "lib/base/secret.hpp"
#include "lib/model/json.hpp"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ocrctl::config {

struct Credentials {
    std::string username;
    Secret password;
};

/// How to log in by SSH: exactly one of password, private_key, use_agent is set.
struct SshLogin {
    std::string username;
    Secret password;
    std::filesystem::path private_key; // absolute, `~` expanded
    bool use_agent = false;            // keys of the running ssh-agent
};

/// Unset: native if the program is installed, else docker; the Deployer decides. Embedded is for the database only.
enum class ServiceKind { Unset, Embedded, Native, Docker, External };

/// process_queue and database.
struct Service {
    ServiceKind kind = ServiceKind::Unset;   // skip_deployment: true makes it External
    std::string address = "127.0.0.1";
    int port = 0;                            // 0: a free port, chosen by the Deployer; external: queue_port(), database_port()
    std::optional<Credentials> credentials;  // absent: generated (native, docker), or the program's own default (external)
    std::optional<SshLogin> ssh;             // OCR-D: where address is another machine, how to get there
    bool skip_deployment = false;
    std::string image;                       // docker only; "" = the Deployer's
    std::string vhost = "/";                 // process_queue only
    std::chrono::seconds consumer_timeout{1800}; // process_queue only: what an external broker enforces; a native one is set by us
    bool durable_exchange = false, durable_queues = false; // process_queue only: how foreign Workers declare theirs
};

/// Workers reach broker and server through forwards inside the SSH connection, or by themselves.
enum class Reach { Tunnel, Direct };
enum class Connection { Local, Ssh };
enum class DeployType { Native, Docker };
/// Managed: `ocrctl worker`, with a built-in Processor or any OCR-D command-line Processor. Foreign: `ocrd-x worker`.
enum class WorkerKind { Managed, Foreign };

/// One workers[] entry: `count` like Workers on a host. In YAML `name` is the Processor, as OCR-D has it; where
/// `processor` is given too, `name` is the group's.
struct WorkerGroup {
    std::string name;       // unique on its host; default "<processor>-<n>", n counting the host's groups of that Processor
    std::string processor;  // "ocrd-x"
    int count = 1;          // number_of_instance, or instances
    DeployType deploy_type = DeployType::Native;
    WorkerKind kind = WorkerKind::Managed; // default: managed for ocrd-ocrctl-*, else foreign
    std::string executable; // "" = the Processor's name, looked up in PATH
    std::string image;      // docker only
    Json parameters = Json::object(); // what its engines are loaded with before the first Job
    std::map<std::string, std::string> env;
    std::chrono::seconds page_timeout{0}; // 0 = none
};

struct Host {
    std::string name;                 // unique; default: the address, with -2, -3 for repeats
    Connection connection = Connection::Local;
    std::string address = "localhost";
    int port = 22;
    SshLogin login;                   // ssh only
    std::string host_key;             // "SHA256:..."; "" = known_hosts decides
    std::filesystem::path known_hosts; // "" = ~/.ssh/known_hosts and what `ocrctl trust` wrote
    Reach reach = Reach::Tunnel;      // ssh only
    bool reach_said = false;          // by the file: a loopback address needs no tunnel unless it is said
    bool agent = true;                // false: (foreign) Workers are started straight over SSH, nobody looks after them
    std::string state;                // folder on that host that gets NAME/hosts/HOST; "" = its default
    std::map<std::string, std::string> path_map; // path on the server -> path on this host
    std::map<std::string, std::string> env;      // of all its Workers
    std::vector<WorkerGroup> workers;
};

struct Listen {
    std::string address = "127.0.0.1";
    int port = 8080;
};

/// Unset is allowed on loopback only and means None there.
enum class AuthKind { Unset, None, Tokens };
struct Auth {
    AuthKind kind = AuthKind::Unset;
    std::filesystem::path tokens_file;
};

/// What happens to output that is already there, unless a submission says otherwise.
enum class ExistingOutput { Skip, Overwrite, Abort };

struct Deployment {
    std::string name;                        // default: the file's stem
    std::filesystem::path file;              // absolute path of the file it was read from
    Listen listen;
    std::string internal_callback_url;       // "" = from listen
    bool use_tcp_mets = false;
    Auth auth;
    std::vector<std::filesystem::path> workspaces; // roots below which Workspaces may lie; empty = anywhere
    std::filesystem::path state;             // the deployment's own folder; "" = /var/lib/ocrctl/NAME, $XDG_STATE_HOME/ocrctl/NAME
    std::vector<std::filesystem::path> models; // folders or files searched before the usual places
    std::vector<std::filesystem::path> tools;  // OCR-D tool catalogues (ocrd-all-tool.json) beside the built-in one
    std::string log_level = "info";          // trace debug info warn error
    std::chrono::seconds drain{30};          // how long stopping waits for running Jobs
    std::chrono::seconds grace{10};          // between TERM and KILL
    std::chrono::seconds lease{86400};       // how long agents go on without hearing from the server
    int parallel_hosts = 16;                 // hosts worked on at once
    ExistingOutput existing_output = ExistingOutput::Skip;
    std::uint64_t max_body = 16 * 1024 * 1024; // bytes of a request
    Service process_queue;
    Service database;                        // kind Embedded where the file has no database and no foreign Workers
    std::vector<Host> hosts;
};

/// Line and column count from 1; 0 where the file could not be read at all.
struct Problem {
    std::string file;
    int line = 0, column = 0;
    std::string path; // "hosts[0].workers[1].name", "" for the whole file
    std::string message;

    /// `config.yml:3:5: hosts[0].adress: unknown key (did you mean "address"?)`
    std::string text() const;
};

struct Loaded {
    Deployment config;             // to be used only if there are no problems
    std::vector<Problem> problems; // in the order of the file
    std::vector<Problem> warnings; // valid, but this version will not do all of it
};

/// Reads and checks a file; never throws. Touches nothing but that file.
Loaded load(std::filesystem::path const& file);
/// The same from text; `file` is what problems name and what relative paths are relative to.
Loaded load_text(std::string_view yaml, std::filesystem::path const& file);
/// The Deployment, or one Usage error whose message holds all problems, one a line.
Result<Deployment> load_or_error(std::filesystem::path const& file);

/// All keys the reader knows, as paths without indexes: "hosts[].workers[].name".
std::vector<std::string> known_keys();

/// The Processors that are part of ocrctl: "ocrd-ocrctl-dummy", ...
std::vector<std::string> const& builtin_processors();
bool is_builtin_processor(std::string_view name);

/// 127.0.0.0/8, ::1, localhost.
bool is_loopback(std::string_view address);
/// Names this machine for sure: loopback or a wildcard.
bool is_this_machine(std::string_view address);
/// What callers on this machine connect to when the server listens there: a wildcard becomes loopback.
std::string connect_address(std::string_view listen_address);
/// "host:port", IPv6 in brackets.
std::string host_port(std::string_view address, int port);

/// The configured port, or the usual one of an external service (5672, 27017); 0 = the Deployer picks a free one.
int queue_port(Service const& queue);
int database_port(Service const& database);

bool has_foreign_workers(Deployment const& deployment);

std::string_view wire(ServiceKind kind) noexcept;    // "unset" "embedded" "native" "docker" "external"
std::string_view wire(Reach reach) noexcept;         // "tunnel" "direct"
std::string_view wire(Connection value) noexcept;    // "local" "ssh"
std::string_view wire(DeployType type) noexcept;     // "native" "docker"
std::string_view wire(WorkerKind kind) noexcept;     // "managed" "foreign"
std::string_view wire(ExistingOutput value) noexcept; // "skip" "overwrite" "abort"
std::string_view wire(AuthKind kind) noexcept;       // "unset" "none" "tokens"

} // namespace ocrctl::config
