// ocrctl host ...: what kill-all and the Deployer have done on a host, over SSH or here.
#include "cmd/commands.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/hostops/host_ops.hpp"
#include "lib/hostops/start.hpp"
#include "lib/queue/broker.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fmt/format.h>
#include <iostream>
#include <memory>
#include <string>

namespace ocrctl {
namespace {

constexpr int kPartly = 3;

struct Options {
    std::string state, kinds = "all", deployment, host, amqp_file, queue;
    double grace_s = 10, limit_s = 300;
    bool json = false;
};

int failed(Error const& error) {
    fmt::print(stderr, "ocrctl host: {}\n", error.message());
    return error.exit_code();
}

std::chrono::milliseconds grace_of(Options const& options) {
    return std::chrono::milliseconds(static_cast<std::int64_t>(options.grace_s * 1000));
}

int stop(Options const& options) {
    auto kinds = hostops::parse_kinds(options.kinds);
    if (!kinds) return failed(kinds.error());
    auto report = hostops::stop(options.state, *kinds, grace_of(options));
    if (!report) return failed(report.error());
    if (options.json) {
        fmt::print("{}\n", dump(Json(*report)));
    } else {
        for (auto const& entry : report->stopped) fmt::print("stopped {}\n", entry);
        for (auto const& entry : report->left) fmt::print("left {}\n", entry);
    }
    return report->left.empty() ? 0 : kPartly;
}

int start(Options const& options) {
    auto report = hostops::start(options.state, std::chrono::milliseconds(static_cast<std::int64_t>(options.limit_s * 1000)));
    if (!report) return failed(report.error());
    if (options.json) fmt::print("{}\n", dump(Json(*report)));
    bool all = true;
    for (auto const& unit : report->units) {
        all = all && unit.state == UnitState::Ready;
        if (!options.json) fmt::print("{} {} pid {}{}{}\n", wire(unit.state), unit.entry, unit.pid, unit.detail.empty() ? "" : ": ", unit.detail);
    }
    return all ? 0 : kPartly;
}

int scan(Options const& options) {
    auto report = hostops::scan(options.state, options.deployment, options.host);
    if (options.json) {
        fmt::print("{}\n", dump(Json(report)));
    } else {
        for (auto const& found : report.processes) fmt::print("process {} {} {}\n", found.identity.pid, found.command, found.entry);
        for (auto const& socket : report.sockets) fmt::print("socket {}\n", socket);
    }
    return 0; // the report is the result; whether it is good news is the caller's to say
}

int close(Options const& options) {
    auto done = hostops::close(options.state);
    if (!done) return failed(done.error());
    if (options.json) fmt::print("{{\"ok\":true}}\n");
    return 0;
}

int control(Options const& options) {
    std::string line;
    if (!std::getline(std::cin, line)) return failed(Error(ErrorKind::Usage, "expected one line of JSON on stdin"));
    auto done = hostops::control(options.state, line, [](std::string_view reply) {
        fmt::print("{}\n", reply);
        std::fflush(stdout);
    });
    return done ? 0 : failed(done.error());
}

int clean(Options const& options) {
    auto done = hostops::clean(options.state, options.deployment, options.host);
    if (!done) return failed(done.error());
    if (options.json) fmt::print("{{\"ok\":true}}\n");
    return 0;
}

/// Whether somebody consumes a queue: how an agent knows that a foreign Worker is READY, in whose vhost nobody else is.
int consumed(Options const& options) {
    auto text = read_file(options.amqp_file);
    if (!text) return failed(text.error());
    auto url = queue::parse_broker_url(trim(*text));
    if (!url) return failed(url.error());
    auto session = queue::Session::open(*url, "ocrctl agent");
    if (!session) return failed(session.error());
    auto consumers = session->consumers(options.queue);
    if (!consumers) return failed(consumers.error());
    return *consumers > 0 ? 0 : 1;
}

} // namespace

void add_host(CLI::App& app, int& exit_code) {
    auto* host = app.add_subcommand("host", "Act on one host's state folder, with or without its agent (used by deploy and kill-all)");
    host->require_subcommand(1);
    host->footer("Example:\n  ocrctl host stop --state /var/lib/ocrctl/demo/hosts/localhost --kinds worker --grace 10 --json");
    auto options = std::make_shared<Options>();
    auto add = [&](std::string const& name, std::string const& about, int (*action)(Options const&)) {
        auto* command = host->add_subcommand(name, about);
        command->add_option("--state", options->state, "The host's state folder")->required();
        command->add_flag("--json", options->json, "Print the result as JSON");
        command->callback([options, action, &exit_code] { exit_code = action(*options); });
        return command;
    };
    auto* starting = add("start", "Start what the desired state names and does not run, once (hosts without an agent)", start);
    starting->add_option("--limit", options->limit_s, "Seconds to become ready")->capture_default_str()->check(CLI::NonNegativeNumber);
    starting->footer("Example:\n  ocrctl host start --state DIR --limit 60 --json\nExit code: 0 all are ready, 3 some are not");
    auto* stopping = add("stop", "End the units of some kinds, by identity", stop);
    stopping->add_option("--kinds", options->kinds, "worker,foreign-worker,agent,server,database,queue,tunnel or all")->capture_default_str();
    stopping->add_option("--grace", options->grace_s, "Seconds to finish before they are killed")->capture_default_str()->check(CLI::NonNegativeNumber);
    stopping->footer("Example:\n  ocrctl host stop --state DIR --kinds worker,agent --grace 10 --json\nExit code: 0 all gone, 3 some are left");
    auto* scanning = add("scan", "Print what of a deployment still runs or lies here", scan);
    scanning->add_option("--deployment", options->deployment, "The deployment's id, as in its deployment.json (not its name)")->required();
    scanning->add_option("--host", options->host, "Only what belongs to this host");
    scanning->footer("Example:\n  ocrctl host scan --state DIR --deployment d7 --host ocr1 --json");
    add("close", "Let nothing be started here any more", close)->footer("Example:\n  ocrctl host close --state DIR");
    add("control", "Send one line from stdin to the agent and print its replies", control)
        ->footer("Example:\n  echo '{\"op\":\"status\"}' | ocrctl host control --state DIR");
    auto* consuming = host->add_subcommand("consumed", "Exit 0 if the broker knows a consumer of a queue");
    consuming->add_option("--amqp-file", options->amqp_file, "The file that holds the amqp:// URL")->required();
    consuming->add_option("--queue", options->queue, "The queue")->required();
    consuming->callback([options, &exit_code] { exit_code = consumed(*options); });
    consuming->footer("Example:\n  ocrctl host consumed --amqp-file DIR/secrets/amqp-url --queue ocrd-dummy\nExit code: 0 consumed, 1 not");
    auto* cleaning = add("clean", "Remove everything but logs, data and the archived ledger, if nothing runs any more", clean);
    cleaning->add_option("--deployment", options->deployment, "The deployment's id, as in its deployment.json (not its name)")->required();
    cleaning->add_option("--host", options->host, "Only what belongs to this host");
    cleaning->footer("Example:\n  ocrctl host clean --state DIR --deployment d7 --host ocr1");
}

} // namespace ocrctl
