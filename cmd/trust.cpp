// ocrctl trust HOST: adds a host's key to known_hosts, after you have seen its fingerprint.
#include "cmd/commands.hpp"

#include "lib/config/config.hpp"
#include "lib/remote/ssh_session.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <unistd.h>

namespace ocrctl {

namespace {

struct Options {
    std::string host, config, known_hosts, fingerprint;
    int port = 0;
    bool yes = false;
};

/// HOST is a host of the config, or an address.
Result<remote::SshTarget> target_of(Options const& options) {
    remote::SshTarget target;
    target.name = target.address = options.host;
    bool implicit = options.config.empty();
    std::string file = implicit ? "config.yml" : options.config;
    if (!implicit || ::access(file.c_str(), R_OK) == 0) {
        auto config = config::load_or_error(file);
        if (!config && !implicit) return std::unexpected(config.error());
        if (config) {
            for (auto const& host : config->hosts) {
                if (host.name != options.host || host.connection != config::Connection::Ssh) continue;
                target.address = host.address;
                target.port = host.port;
                target.known_hosts = host.known_hosts;
            }
        }
    }
    if (auto colon = target.address.rfind(':'); target.address == options.host && colon != std::string::npos && target.address.find(':') == colon) {
        target.port = std::atoi(target.address.c_str() + colon + 1);
        target.address.resize(colon);
    }
    if (options.port != 0) target.port = options.port;
    if (!options.known_hosts.empty()) target.known_hosts = options.known_hosts;
    return target;
}

int failed(Error const& error) {
    fmt::print(stderr, "{}\n", error.message());
    return error.exit_code();
}

int trust(Options const& options) {
    auto target = target_of(options);
    if (!target) return failed(target.error());
    auto key = remote::host_key_of(*target);
    if (!key) return failed(key.error());
    fmt::print("{}: {} {}\n", describe(*target), key->type, key->fingerprint);
    if (key->known) {
        fmt::print("already trusted\n");
        return 0;
    }
    if (key->changed)
        return failed(Error(ErrorKind::Denied, fmt::format("{} has another key for it; if this one is right, remove that first: ssh-keygen -R {}",
                                                           target->known_hosts.empty() ? "known_hosts" : target->known_hosts.string(),
                                                           target->port == 22 ? target->address : fmt::format("'[{}]:{}'", target->address, target->port))));
    if (!options.fingerprint.empty() && options.fingerprint != key->fingerprint)
        return failed(Error(ErrorKind::Denied, fmt::format("that is not {}", options.fingerprint)));
    if (options.fingerprint.empty() && !options.yes) {
        if (!::isatty(0)) return failed(Error(ErrorKind::Usage, "not trusted: nobody can be asked here; give --fingerprint SHA256:... or --yes"));
        fmt::print("Compare this with what the machine itself says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub). Trust it? [y/N] ");
        std::fflush(stdout);
        std::string answer;
        std::getline(std::cin, answer);
        if (answer != "y" && answer != "yes") {
            fmt::print("not trusted\n");
            return 1;
        }
    }
    auto done = remote::trust_host_key(*target, key->fingerprint);
    if (!done) return failed(done.error());
    fmt::print("trusted\n");
    return 0;
}

} // namespace

void add_trust(CLI::App& app, int& exit_code) {
    auto options = std::make_shared<Options>();
    auto* command = app.add_subcommand("trust", "Show a host's SSH key and add it to known_hosts");
    command->add_option("host", options->host, "A host of the configuration, or ADDRESS[:PORT]")->required();
    command->add_option("--config", options->config, "The configuration (default: config.yml, if it is there)");
    command->add_option("--port", options->port, "SSH port")->check(CLI::Range(1, 65535));
    command->add_option("--known-hosts", options->known_hosts, "File to add the key to (default: ~/.ssh/known_hosts)");
    command->add_option("--fingerprint", options->fingerprint, "Trust the key only if it is this one (SHA256:...)");
    command->add_flag("--yes", options->yes, "Do not ask");
    command->footer("Example:\n  ocrctl trust ocr1 --fingerprint SHA256:5VdG...\nExit code: 0 trusted, 1 not");
    command->callback([options, &exit_code] { exit_code = trust(*options); });
}

} // namespace ocrctl
