// A private RabbitMQ node from Debian's package, under the deployment's own folder: own ports, data, cookie, users;
// nothing of a system-wide node is touched, nothing listens beyond loopback unless the config says so.
#pragma once

#include "lib/base/error.hpp"
#include "lib/base/secret.hpp"
#include "lib/model/unit.hpp"

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::deployer {

/// How long a native node lets a Worker take for one message: longer than any Job.
inline constexpr std::chrono::seconds kNativeConsumerTimeout{30 * 86400};

struct RabbitMq {
    std::filesystem::path programs; // RabbitMQ's own bin folder, not the wrappers in /usr/sbin (they change the user)
    std::filesystem::path folder;   // STATE/rabbitmq: rabbitmq.conf, definitions.json, home/, data/
    std::filesystem::path logs;     // STATE/logs
    std::string address = "127.0.0.1"; // beside loopback
    int port = 0, dist_port = 0, epmd_port = 0;
    std::string vhost = "/";
    std::vector<std::string> worker_vhosts; // one for each supervised foreign Worker, which is the user of the same name
};

/// The folder with rabbitmq-server and its friends; nothing if RabbitMQ is not installed here.
std::optional<std::filesystem::path> find_rabbitmq();
/// What to say then.
std::string rabbitmq_missing();

/// A foreign Worker's place in the broker, from its slot: the name of its vhost and of its user; needs no encoding in a URL.
std::string worker_vhost(std::string_view slot);
/// The password of that user: `key` is the deployment's, and a Worker's password says nothing about another's.
Secret worker_password(Secret const& key, std::string_view vhost);

/// Who may enter a node that we administer.
struct RabbitMqLogins {
    std::string user; // ours: administrator, and at home in every vhost
    Secret password;
    Secret worker_key; // see worker_password
};

/// rabbitmq.conf.
std::string rabbitmq_conf(RabbitMq const& node);
/// Our user and the common vhost, and one of each for every foreign Worker; passwords as salted hashes. Loaded at each start,
/// also of an emptied node.
std::string rabbitmq_definitions(RabbitMq const& node, RabbitMqLogins const& logins);

/// Writes all files; what did not change is left alone. Call it before the unit is started.
Result<void> write_rabbitmq_files(RabbitMq const& node, RabbitMqLogins const& logins, Secret const& cookie);

/// Makes a running node take the definitions file over, and drops vhosts and users of foreign Workers that are in it no more; nothing
/// is done if it has this file's already. One that does not run will load the file when it starts. Blocks for some seconds.
/// Unavailable: the node refused, or does not answer.
Result<void> apply_rabbitmq_definitions(RabbitMq const& node, bool running);

/// Entry "queue": the node in the foreground as one process, with epmd, which survives a stop, to go with it.
UnitSpec rabbitmq_unit(RabbitMq const& node);

} // namespace ocrctl::deployer
