// ocrctl agent: the host agent's process. The Deployer starts it; by hand it is useful with --foreground.
#include "cmd/commands.hpp"

#include "host_agent/agent.hpp"
#include "lib/base/files.hpp"
#include "lib/ledger/paths.hpp"

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <filesystem>
#include <fmt/format.h>
#include <memory>
#include <unistd.h>

namespace ocrctl {
namespace {

namespace fs = std::filesystem;

/// The Deployer puts the binary at bin/<build-id>/ocrctl: the folder tells the build.
std::string build_of_this() {
    std::error_code error;
    auto self = fs::read_symlink("/proc/self/exe", error);
    if (!error && self.parent_path().parent_path().filename() == "bin") return self.parent_path().filename().string();
    return "local";
}

struct Options {
    std::string state;
    bool foreground = false;
};

int run_agent(Options const& options) {
    auto host_dir = fs::absolute(options.state).lexically_normal();
    ledger::HostPaths paths{host_dir};
    std::error_code error;
    if (!fs::exists(host_dir, error)) { // deploy writes desired.json before it starts an agent
        fmt::print(stderr, "ocrctl agent: there is no folder {}: name the state folder of a host that was deployed\n", host_dir.string());
        return Error(ErrorKind::NotFound, "").exit_code();
    }
    if (!options.foreground && ::isatty(2)) { // a terminal is not where a log belongs
        if (auto made = make_folder(paths.logs()); made) {
            int log = ::open(paths.agent_log().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
            if (log >= 0) {
                ::dup2(log, 1);
                ::dup2(log, 2);
                ::close(log);
            }
        }
    }
    host_agent::Agent agent({host_dir, build_of_this()});
    auto ended = agent.run();
    if (ended) return 0;
    fmt::print(stderr, "ocrctl agent: {}\n", ended.error().message());
    return ended.error().exit_code();
}

} // namespace

void add_agent(CLI::App& app, int& exit_code) {
    auto options = std::make_shared<Options>();
    auto* command = app.add_subcommand("agent", "Keep the units of one host running (started by deploy)");
    command->add_option("--state", options->state, "The host's state folder")->required();
    command->add_flag("--foreground", options->foreground, "Log to the terminal instead of logs/agent.log");
    command->footer("Example:\n  ocrctl agent --state /var/lib/ocrctl/demo/hosts/localhost --foreground\n"
                    "SIGTERM ends the agent and leaves its units running; the next agent adopts them.\nExit code: 0 ended as asked, 1 one runs already");
    command->callback([options, &exit_code] { exit_code = run_agent(*options); });
}

} // namespace ocrctl
