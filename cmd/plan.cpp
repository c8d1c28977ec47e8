// ocrctl plan config.yml: what deploy would do, and what would stop it.
#include "cmd/commands.hpp"

#include "deployer/deployer.hpp"
#include "lib/base/text.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

namespace ocrctl {

namespace {

struct Options {
    std::string config = "config.yml", state;
    bool json = false, offline = false, all = false;
};

int plan(Options const& options) {
    deployer::DeployOptions wanted;
    wanted.config = options.config;
    wanted.state = options.state;
    auto report = deployer::plan(wanted, !options.offline);
    if (!report) {
        fmt::print(stderr, "{}\n", report.error().message());
        return report.error().exit_code();
    }
    int code = !report->problems.empty() ? 1 : report->changed ? 4 : 0;
    if (options.json) {
        constexpr char const* kVerbs[] = {"start", "restart", "stop", "keep"};
        auto steps = Json::array();
        for (auto const& step : report->steps)
            steps.push_back({{"host", step.host}, {"verb", kVerbs[static_cast<int>(step.verb)]}, {"what", step.what}, {"detail", step.detail}});
        fmt::print("{}\n", dump(Json{{"name", report->name}, {"state", report->state.string()}, {"changed", report->changed}, {"steps", steps}, {"problems", report->problems}}));
        return code;
    }
    std::size_t kept = 0;
    for (auto const& step : report->steps) {
        if (step.verb == deployer::Verb::Keep && !options.all) ++kept;
        else fmt::print("{}\n", step.text());
    }
    for (auto const& problem : report->problems) fmt::print(stderr, "problem: {}\n", problem);
    auto changes = report->steps.size() - kept;
    if (!report->changed) fmt::print("{}: nothing to do, {} as it shall be\n", report->name, counted(report->steps.size(), "step"));
    else fmt::print("{}: {}, {} unchanged\n", report->name, counted(changes, "change"), kept);
    return code;
}

} // namespace

void add_plan(CLI::App& app, int& exit_code) {
    auto options = std::make_shared<Options>();
    auto* command = app.add_subcommand("plan", "Print what deploy would do, with its pre-flight results; change nothing");
    command->add_option("config", options->config, "The configuration")->capture_default_str();
    command->add_option("--state", options->state, "Folder of the deployment's state");
    command->add_flag("--offline", options->offline, "Do not connect to other hosts");
    command->add_flag("--all", options->all, "List what stays as it is, too");
    command->add_flag("--json", options->json, "Print one JSON document on stdout");
    command->footer("Example:\n  ocrctl plan config.yml\nExit code: 0 nothing to do, 4 changes, 1 something is in the way, 2 the configuration is wrong");
    command->callback([options, &exit_code] { exit_code = plan(*options); });
}

} // namespace ocrctl
