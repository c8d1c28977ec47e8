// ocrctl deploy config.yml: everything running, READY, addresses printed.
#include "cmd/commands.hpp"

#include "cmd/ended.hpp"
#include "deployer/deployer.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <memory>
#include <pthread.h>
#include <thread>
#include <unistd.h>

namespace ocrctl {

namespace {

struct Options {
    std::string config = "config.yml", state;
    int limit = 300;
    bool foreground = false, json = false, list_crash_points = false;
};

sigset_t ending_signals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    return set;
}

/// This process becomes `ocrctl kill-all`: whatever a deploy was just doing ends with it, its lock is let go.
[[noreturn]] void become_kill_all(std::filesystem::path const& state) {
    fmt::print("\nending \"{}\"\n", state.filename().string());
    std::fflush(stdout);
    auto set = ending_signals();
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    ::execl("/proc/self/exe", "ocrctl", "kill-all", "--state", state.c_str(), static_cast<char*>(nullptr));
    std::perror("ocrctl kill-all");
    ::_exit(70);
}

Json report_json(deployer::DeployReport const& report) {
    auto hosts = Json::array();
    for (auto const& host : report.hosts)
        hosts.push_back({{"host", host.host}, {"workers", host.workers}, {"ready", !host.error}, {"error", host.error ? host.error->message() : ""}});
    return {{"name", report.name}, {"id", report.id},   {"state", report.state.string()}, {"server", report.server},
            {"queue", report.queue}, {"hosts", hosts}, {"seconds", report.seconds},      {"complete", report.complete()}};
}

int deploy(Options const& options) {
    if (options.list_crash_points) {
        for (auto point : crash_points()) fmt::print("{}\n", point);
        return 0;
    }
    say_when_ended();
    deployer::DeployOptions wanted;
    wanted.config = options.config;
    wanted.state = options.state;
    wanted.limit = std::chrono::seconds(options.limit);
    wanted.say = [&](std::string const& line) {
        fmt::print(options.json ? stderr : stdout, "{}\n", line);
        std::fflush(stdout);
    };
    if (options.foreground) {
        auto state = deployer::state_of(wanted);
        if (!state) {
            fmt::print(stderr, "{}\n", state.error().message());
            return state.error().exit_code();
        }
        auto set = ending_signals();
        pthread_sigmask(SIG_BLOCK, &set, nullptr); // before any thread is started
        std::thread([folder = *state, set] {
            int signal = 0;
            sigwait(&set, &signal);
            become_kill_all(folder);
        }).detach(); // ends with the process
    } else {
        say_what_goes_on_when_interrupted();
    }
    auto report = deployer::deploy(wanted);
    if (!report) {
        fmt::print(stderr, "{}\n", report.error().message());
        return report.error().exit_code();
    }
    if (options.json) {
        fmt::print("{}\n", dump(report_json(*report)));
    } else {
        std::size_t workers = 0;
        for (auto const& host : report->hosts) workers += host.workers;
        for (auto const& host : report->hosts)
            if (host.error) fmt::print(stderr, "{}\n", host.error->message());
        fmt::print("{}: {} with {} in {:.1f} s\n  server  {}\n  queue   {}\n  state   {}\n", report->name, report->complete() ? "ready" : "not complete", counted(workers, "worker"),
                   report->seconds, report->server, report->queue, report->state.string());
    }
    std::fflush(stdout);
    if (options.foreground) {
        fmt::print("Ctrl-C ends everything\n");
        std::fflush(stdout);
        for (;;) ::pause();
    }
    return report->complete() ? 0 : Error(ErrorKind::Partly, "").exit_code();
}

} // namespace

void add_deploy(CLI::App& app, int& exit_code) {
    auto options = std::make_shared<Options>();
    auto* command = app.add_subcommand("deploy", "Start what a configuration describes, or change what runs to match it");
    command->add_option("config", options->config, "The configuration")->capture_default_str();
    command->add_option("--state", options->state, "Folder for the deployment's state");
    command->add_option("--limit", options->limit, "Seconds until everything must be ready")->capture_default_str()->check(CLI::Range(1, 86400));
    command->add_flag("--foreground", options->foreground, "Stay attached; Ctrl-C is kill-all");
    command->add_flag("--json", options->json, "Print one JSON document on stdout, progress on stderr");
    command->add_flag("--list-crash-points", options->list_crash_points)->group("");
    command->footer("Example:\n  ocrctl deploy config.yml\nExit code: 0 everything is ready, 1 nothing was started, 2 the configuration is wrong, 3 some hosts failed");
    command->callback([options, &exit_code] { exit_code = deploy(*options); });
}

} // namespace ocrctl
