// ocrctl wait deployment|job|workflow: until it is READY or has ended.
#include "cmd/client.hpp"
#include "cmd/commands.hpp"
#include "lib/base/text.hpp"
#include "lib/net/url.hpp"

#include <CLI/CLI.hpp>
#include <memory>
#include <thread>

namespace ocrctl {

namespace {

using Clock = std::chrono::steady_clock;

struct WaitOptions {
    Where where;
    std::string id;
    int timeout = 0;
    bool json = false, quiet = false;
};

std::optional<std::chrono::seconds> limit_of(WaitOptions const& options) {
    if (options.timeout <= 0) return std::nullopt;
    return std::chrono::seconds(options.timeout);
}

/// Which units are not READY; nothing if all are. A host without agent counts as one.
std::vector<std::string> not_ready(Json const& status) {
    std::vector<std::string> names;
    std::size_t units = 0;
    for (auto const& host : status.value("hosts", Json::array())) {
        if (host.value("agent", true) && !host.value("connected", false))
            names.push_back("the agent of " + host.value("host", ""));
        for (auto const& unit : host.value("units", Json::array())) {
            ++units;
            if (unit.value("state", "") != "ready")
                names.push_back(fmt::format("{} ({}{})", unit.value("entry", ""), unit.value("state", ""),
                                            unit.value("detail", "").empty() ? "" : ": " + unit.value("detail", "")));
        }
    }
    if (units == 0) names.push_back("no host has reported yet");
    return names;
}

int wait_for_deployment(WaitOptions const& options) {
    auto const begun = Clock::now();
    long version = -1;
    std::string last = "the server does not answer";
    for (;;) {
        auto const left = options.timeout > 0 ? std::chrono::seconds(options.timeout) - (Clock::now() - begun) : Clock::duration(std::chrono::hours(1));
        if (left <= Clock::duration::zero()) return complain("wait", Error(ErrorKind::Timeout, fmt::format("not ready within {} s: {}", options.timeout, last)));
        auto url = find_server(options.where);
        if (!url && url.error().kind() == ErrorKind::Usage) return complain("wait", url.error());
        if (!url) {
            last = url.error().message();
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
            continue;
        }
        // A long poll: the answer comes when something changes.
        auto const seconds = std::clamp<long>(std::chrono::duration_cast<std::chrono::seconds>(left).count(), 0, 20);
        auto status = Api(*url).get(fmt::format("/v1/status?after={}&timeout={}", version, seconds), std::chrono::seconds(seconds + 5));
        if (!status) {
            last = status.error().message();
            version = -1;
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
            continue;
        }
        version = status->value("version", -1L);
        auto missing = not_ready(*status);
        if (missing.empty()) {
            if (options.json) fmt::print("{}\n", dump(*status));
            else if (!options.quiet) fmt::print("{}: ready, server {}\n", status->value("name", ""), status->value("address", ""));
            return 0;
        }
        auto shown = join(std::vector<std::string>(missing.begin(), missing.begin() + static_cast<long>(std::min<std::size_t>(missing.size(), 5))), ", ");
        if (missing.size() > 5) shown += fmt::format(" and {} more", missing.size() - 5);
        if (!options.quiet && shown != last) fmt::print(stderr, "waiting for {}\n", shown);
        last = shown;
    }
}

} // namespace

void add_wait(CLI::App& app, int& exit_code) {
    auto* group = app.add_subcommand("wait", "Waits until a deployment is ready, or a Job or workflow has ended");
    group->require_subcommand(1);
    group->footer("examples:\n  ocrctl wait deployment --timeout 60\n  ocrctl wait workflow 0190f3c2-...\nExit code: 0 ready or SUCCESS, 1 failed or too late.");
    auto options = std::make_shared<WaitOptions>();
    auto subcommand = [&](char const* name, char const* about, bool id) {
        auto* command = group->add_subcommand(name, about);
        add_where(*command, options->where);
        if (id) command->add_option("id", options->id, "Its id")->required();
        command->add_option("--timeout", options->timeout, "Give up after so many seconds [never]")->type_name("SECONDS")->check(CLI::Range(1, 10000000));
        command->add_flag("-q,--quiet", options->quiet, "Only the exit code");
        command->add_flag("--json", options->json, "Print what was waited for as JSON");
        command->footer(fmt::format("example: ocrctl wait {}{}", name, id ? " 0190f3c2-..." : " --timeout 60"));
        return command;
    };
    subcommand("deployment", "Until every unit on every host is READY", false)->callback([options, &exit_code] { exit_code = wait_for_deployment(*options); });
    auto ended = [options, &exit_code](Result<Json> const& document) {
        if (!document) {
            exit_code = complain("wait", document.error());
            return;
        }
        auto const state = document->value("state", "");
        if (options->json) fmt::print("{}\n", dump(*document));
        else if (!options->quiet) fmt::print("{}\n", state);
        exit_code = state == "SUCCESS" ? 0 : 1;
    };
    subcommand("job", "Until a Job has ended", true)->callback([options, ended, &exit_code] {
        auto url = find_server(options->where);
        if (!url) exit_code = complain("wait", url.error());
        else ended(follow_job(Api(*url), options->id, limit_of(*options)));
    });
    subcommand("workflow", "Until all Jobs of a workflow have ended", true)->callback([options, ended, &exit_code] {
        auto url = find_server(options->where);
        if (!url) {
            exit_code = complain("wait", url.error());
            return;
        }
        Api api(*url);
        auto workflow = follow_workflow(api, options->id, limit_of(*options), options->quiet);
        ended(workflow);
        if (workflow && exit_code != 0 && !options->quiet) print_failures(api, *workflow);
    });
}

} // namespace ocrctl
