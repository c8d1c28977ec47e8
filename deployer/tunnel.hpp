// Tunnels to Hosts that reach nothing of the deployment by themselves: what each carries, under which ports there, and
// what `ocrctl tunnel` is told. Decided here, kept up by lib/remote/tunnel.hpp in a process of its own.
#pragma once

#include "deployer/deployment_file.hpp"
#include "lib/config/config.hpp"
#include "lib/model/unit.hpp"
#include "lib/remote/tunnel.hpp"

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace ocrctl::deployer {

struct TunnelPort {
    std::string name; // "queue" "server" "database"
    int port = 0;     // on the Host's loopback; 0: not chosen yet
    std::string address;
    int target_port = 0;
};

/// The file that `ocrctl tunnel` reads: how to reach the Host and what to carry. No secrets; 0600 all the same.
struct TunnelSettings {
    std::string host, address;
    int port = 22;
    std::string username, private_key, host_key, known_hosts, password_file;
    bool use_agent = false;
    std::string agent_socket; // of the ssh-agent of who deployed last
    std::vector<TunnelPort> ports;

    /// With what the files say now.
    Result<remote::SshTarget> target() const;
    TunnelPort const* find(std::string_view name) const;
};
void to_json(Json& json, TunnelPort const& value);
void from_json(Json const& json, TunnelPort& value);
void to_json(Json& json, TunnelSettings const& value);
void from_json(Json const& json, TunnelSettings& value);
Result<TunnelSettings> load_tunnel(std::filesystem::path const& file);

/// Do the Host's connections go through a tunnel? A loopback address reaches everything by itself: there it has to be
/// said.
bool is_tunnelled(config::Host const& host);
/// "tunnel/ocr1": its unit on the deploying machine.
std::string tunnel_entry(std::string_view host);

TunnelSettings tunnel_of(config::Deployment const& config, config::Host const& host, ledger::StatePaths const& state,
                         DeploymentFile const& facts);
UnitSpec tunnel_unit(TunnelSettings const& tunnel, std::string const& local_host_dir, std::string const& build);

/// Files in HOSTDIR of the deploying machine.
std::filesystem::path tunnel_file(std::filesystem::path const& local_host_dir, std::string_view host);
/// Which sshd serves a tunnel: lib/remote/tunnel.hpp, TunnelOptions::memory.
std::filesystem::path tunnel_memory(std::filesystem::path const& local_host_dir, std::string_view host);

/// Writes the settings of these and removes those of others. Who has no ssh-agent leaves the one there was.
Result<void> write_tunnels(std::filesystem::path const& local_host_dir, std::vector<TunnelSettings> tunnels);

/// How the config says to open a Host.
remote::SshTarget ssh_target(config::Host const& host);

/// Chooses what is not chosen yet, and again what somebody else has taken there.
void choose_tunnel_ports(TunnelSettings const& tunnel, std::set<int> taken, std::map<std::string, int>& ports);

/// Chooses the ports there and tries whether the Host forwards them; starts nothing. A forgotten session of an earlier
/// tunnel, which `memory` names, is ended first; of one that is `up` the ports are taken for granted. Errors: as the
/// Host cannot be reached (ports are chosen unseen then), or does not forward.
Result<void> prepare_tunnel(config::Host const& host, TunnelSettings const& tunnel, bool up,
                            std::filesystem::path const& memory, std::map<std::string, int>& ports);

} // namespace ocrctl::deployer
