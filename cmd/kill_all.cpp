// ocrctl kill-all: everything stopped in reverse order, and proof that nothing is left.
#include "cmd/commands.hpp"

#include "cmd/ended.hpp"
#include "deployer/kill_all.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/model/json.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

namespace ocrctl {

namespace {

struct Options {
    std::string state, name;
    int grace = 10;
    bool purge = false, json = false;
};

constexpr int kLeft = 3;

/// The folder that is meant: the one named, or the only live deployment. Nothing: none is live.
Result<std::optional<std::filesystem::path>> state_of(Options const& options) {
    if (!options.state.empty()) return std::filesystem::path(options.state);
    if (!options.name.empty()) {
        for (auto const& one : ledger::find_deployments())
            if (one.name == options.name) return one.state;
        return ledger::state_folder(options.name);
    }
    if (auto root = ledger::default_state_root(); !root) return std::unexpected(root.error());
    auto live = ledger::find_deployments();
    if (live.empty()) { // as the ledgers say; the processes may say otherwise
        live = ledger::find_deployments(true);
        std::erase_if(live, [](auto const& deployment) { return !deployer::still_runs(deployment.state); });
    }
    if (live.empty()) return std::nullopt;
    if (live.size() == 1) return live.front().state;
    std::string text = "several deployments are running; say which by --name or --state:";
    for (auto const& deployment : live) text += fmt::format("\n  --name {:<20} {}", deployment.name, deployment.state.string());
    return fail(ErrorKind::Usage, "{}", text);
}

void print_json(deployer::KillAllReport const& report) {
    fmt::print("{}\n", dump(Json{{"name", report.name},
                                 {"nothing_to_do", report.nothing_to_do},
                                 {"hosts", report.hosts},
                                 {"left", report.left},
                                 {"unreachable", report.unreachable},
                                 {"removed", report.removed.string()},
                                 {"seconds", report.seconds}}));
}

int kill_all(Options const& options) {
    say_when_ended();
    auto state = state_of(options);
    if (!state) {
        fmt::print(stderr, "{}\n", state.error().message());
        return state.error().exit_code();
    }
    deployer::KillAllReport report;
    report.nothing_to_do = true;
    if (*state) {
        deployer::KillAllOptions wanted;
        wanted.state = **state;
        wanted.grace = std::chrono::seconds(options.grace);
        wanted.purge = options.purge;
        wanted.say = [&](std::string const& line) {
            fmt::print(options.json ? stderr : stdout, "{}\n", line);
            std::fflush(stdout);
        };
        auto done = deployer::kill_all(wanted);
        if (!done) {
            fmt::print(stderr, "{}\n", done.error().message());
            return done.error().exit_code();
        }
        report = std::move(*done);
    }
    if (options.json) {
        print_json(report);
    } else if (report.nothing_to_do) {
        fmt::print("nothing to do\n");
    } else {
        for (auto const& line : report.left) fmt::print("{}\n", line);
        for (auto const& line : report.unreachable) fmt::print("{}\n", line);
        fmt::print("{} left on {} ({:.1f} s)\n", report.left.size(), counted(report.hosts, "host"), report.seconds);
        if (!report.unreachable.empty()) fmt::print("{} could not be asked: run ocrctl kill-all again\n", counted(report.unreachable.size(), "host"));
    }
    if (!options.json && !report.removed.empty()) fmt::print("removed {}\n", report.removed.string());
    return report.clean() ? 0 : kLeft;
}

} // namespace

void add_kill_all(CLI::App& app, int& exit_code) {
    auto options = std::make_shared<Options>();
    auto* command = app.add_subcommand("kill-all", "Stop everything a deployment started, on every host, and prove that nothing is left");
    command->add_option("--state", options->state, "The deployment's state folder");
    command->add_option("--name", options->name, "The deployment's name")->excludes("--state");
    command->add_option("--grace", options->grace, "Seconds for Workers to finish, and between asking a process to end and ending it")->capture_default_str()->check(CLI::Range(0, 86400));
    command->add_flag("--purge", options->purge, "Remove data, logs and ledger, too");
    command->add_flag("--json", options->json, "Print one JSON document on stdout, progress on stderr");
    command->footer("Example:\n  ocrctl kill-all\nExit code: 0 nothing is left, 1 no deployment there, 2 several deployments are running, 3 something is left or a host was not reached");
    command->callback([options, &exit_code] { exit_code = kill_all(*options); });
}

} // namespace ocrctl
