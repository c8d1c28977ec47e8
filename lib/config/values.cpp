// Words and addresses: what other parts ask about a configuration that was read.
#include "lib/config/config.hpp"

#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <arpa/inet.h>

namespace ocrctl::config {

std::vector<std::string> const& builtin_processors() {
    static std::vector<std::string> const names = [] {
        std::vector<std::string> all;
        for (auto const& [name, _] : tools::builtin_tools().items()) all.push_back(name);
        return all;
    }();
    return names;
}

bool is_builtin_processor(std::string_view name) {
    return std::ranges::find(builtin_processors(), name) != builtin_processors().end();
}

bool is_loopback(std::string_view address) {
    if (address == "localhost" || address == "::1") return true;
    in_addr parsed{};
    return inet_pton(AF_INET, std::string(address).c_str(), &parsed) == 1 && (ntohl(parsed.s_addr) >> 24) == 127;
}

bool is_this_machine(std::string_view address) { return is_loopback(address) || address == "0.0.0.0" || address == "::"; }

std::string connect_address(std::string_view listen_address) {
    if (listen_address == "0.0.0.0") return "127.0.0.1";
    if (listen_address == "::") return "::1";
    return std::string(listen_address);
}

std::string host_port(std::string_view address, int port) {
    return address.find(':') == std::string_view::npos ? fmt::format("{}:{}", address, port) : fmt::format("[{}]:{}", address, port);
}

int queue_port(Service const& queue) { return queue.port == 0 && queue.kind == ServiceKind::External ? 5672 : queue.port; }

int database_port(Service const& database) {
    return database.port == 0 && database.kind == ServiceKind::External ? 27017 : database.port;
}

bool has_foreign_workers(Deployment const& deployment) {
    for (auto const& host : deployment.hosts)
        for (auto const& group : host.workers)
            if (group.kind == WorkerKind::Foreign) return true;
    return false;
}

std::string_view wire(ServiceKind kind) noexcept {
    switch (kind) {
    case ServiceKind::Unset: return "unset";
    case ServiceKind::Embedded: return "embedded";
    case ServiceKind::Native: return "native";
    case ServiceKind::Docker: return "docker";
    case ServiceKind::External: return "external";
    }
    return "unset";
}

std::string_view wire(Reach reach) noexcept { return reach == Reach::Direct ? "direct" : "tunnel"; }
std::string_view wire(Connection value) noexcept { return value == Connection::Ssh ? "ssh" : "local"; }
std::string_view wire(DeployType type) noexcept { return type == DeployType::Docker ? "docker" : "native"; }
std::string_view wire(WorkerKind kind) noexcept { return kind == WorkerKind::Foreign ? "foreign" : "managed"; }

std::string_view wire(ExistingOutput value) noexcept {
    switch (value) {
    case ExistingOutput::Skip: return "skip";
    case ExistingOutput::Overwrite: return "overwrite";
    case ExistingOutput::Abort: return "abort";
    }
    return "skip";
}

std::string_view wire(AuthKind kind) noexcept {
    switch (kind) {
    case AuthKind::Unset: return "unset";
    case AuthKind::None: return "none";
    case AuthKind::Tokens: return "tokens";
    }
    return "unset";
}

} // namespace ocrctl::config
