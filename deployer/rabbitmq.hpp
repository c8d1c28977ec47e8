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
};

/// The folder with rabbitmq-server and its friends; nothing if RabbitMQ is not installed here.
std::optional<std::filesystem::path> find_rabbitmq();
/// What to say then.
std::string rabbitmq_missing();

/// rabbitmq.conf.
std::string rabbitmq_conf(RabbitMq const& node);
/// The one user and its vhost, the password as a salted hash: loaded at each start, also of an emptied node.
std::string rabbitmq_definitions(RabbitMq const& node, std::string const& user, Secret const& password, std::string_view salt4);

/// Writes all files; what did not change is left alone. Call it before the unit is started.
Result<void> write_rabbitmq_files(RabbitMq const& node, std::string const& user, Secret const& password, Secret const& cookie);

/// Entry "queue": the node in the foreground as one process, with epmd, which survives a stop, to go with it.
UnitSpec rabbitmq_unit(RabbitMq const& node);

} // namespace ocrctl::deployer
