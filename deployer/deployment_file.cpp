#include "deployer/deployment_file.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"

namespace ocrctl::deployer {

OCRCTL_JSON_FIELDS(ListenFact, address, port)
OCRCTL_JSON_FIELDS(QueueFact, kind, address, port, dist_port, epmd_port)
OCRCTL_JSON_FIELDS(HostFact, state, login, tunnel)
OCRCTL_JSON_FIELDS(DeploymentFile, id, name, config, created, build, local_host, listen, server, queue, hosts)

Result<DeploymentFile> load_deployment(ledger::StatePaths const& paths) {
    auto text = read_file(paths.deployment());
    if (!text) return std::unexpected(text.error());
    auto deployment = json_to<DeploymentFile>(std::string_view(*text));
    if (!deployment) return fail(deployment.error().during(paths.deployment().string()));
    return deployment;
}

Result<void> save_deployment(ledger::StatePaths const& paths, DeploymentFile const& deployment) {
    return write_file_atomically(paths.deployment(), Json(deployment).dump(2) + "\n");
}

std::string ssh_secret(std::string_view host) {
    return "ssh-" + ledger::entry_file_name(host);
}

Result<std::string> secret(std::filesystem::path const& folder, std::string const& name, std::size_t bytes) {
    auto there = read_file(folder / name);
    if (there && !there->empty()) return there;
    if (!there && there.error().kind() != ErrorKind::NotFound) return there;
    auto value = random_hex(bytes);
    auto written = write_secret(folder, name, value);
    if (!written) return std::unexpected(written.error());
    return value;
}

Result<void> write_secret(std::filesystem::path const& folder, std::string const& name, std::string_view value) {
    auto there = read_file(folder / name);
    if (there && *there == value) return {};
    auto made = make_folder(folder, 0700);
    if (!made) return made;
    return write_file_atomically(folder / name, value, 0600);
}

std::string worker_amqp_name(std::string_view vhost) { return fmt::format("amqp-{}", vhost); }

Result<std::string> own_build() {
    static auto const build = sha256_of_file("/proc/self/exe");
    if (!build) return std::unexpected(build.error());
    return build->substr(0, 16);
}

} // namespace ocrctl::deployer
