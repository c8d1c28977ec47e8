// ocrctl validate config.yml: all problems of a configuration, or what it describes.
#include "cmd/commands.hpp"

#include "lib/base/text.hpp"
#include "lib/config/config.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

namespace ocrctl {

namespace {

Json problems_json(std::vector<config::Problem> const& problems) {
    auto list = Json::array();
    for (auto const& problem : problems)
        list.push_back({{"file", problem.file}, {"line", problem.line}, {"column", problem.column}, {"path", problem.path}, {"message", problem.message}});
    return list;
}

Json summary_json(config::Deployment const& deployment) {
    auto hosts = Json::array();
    for (auto const& host : deployment.hosts) {
        auto workers = Json::array();
        for (auto const& group : host.workers)
            workers.push_back({{"name", group.name}, {"processor", group.processor}, {"count", group.count}, {"kind", wire(group.kind)}, {"deploy_type", wire(group.deploy_type)}});
        hosts.push_back({{"name", host.name}, {"connection", wire(host.connection)}, {"address", host.address}, {"workers", workers}});
    }
    return {{"name", deployment.name},
            {"address", config::host_port(deployment.listen.address, deployment.listen.port)},
            {"process_queue", wire(deployment.process_queue.kind)},
            {"database", wire(deployment.database.kind)},
            {"hosts", hosts}};
}

std::string service_text(config::Service const& service, int port) {
    if (service.kind == config::ServiceKind::Unset) return "native";
    if (service.kind == config::ServiceKind::External) return fmt::format("external at {}", config::host_port(service.address, port));
    return std::string(wire(service.kind));
}

std::string summary_text(config::Deployment const& deployment) {
    int workers = 0;
    for (auto const& host : deployment.hosts)
        for (auto const& group : host.workers) workers += group.count;
    auto text = fmt::format("{}: {} with {}, server at {}\n", deployment.name, counted(deployment.hosts.size(), "host"), counted(static_cast<std::size_t>(workers), "Worker"),
                            config::host_port(deployment.listen.address, deployment.listen.port));
    text += fmt::format("  queue {}, database {}\n", service_text(deployment.process_queue, queue_port(deployment.process_queue)),
                        service_text(deployment.database, database_port(deployment.database)));
    for (auto const& host : deployment.hosts) {
        std::vector<std::string> groups;
        for (auto const& group : host.workers)
            groups.push_back(fmt::format("{} x {}{}", group.count, group.processor, group.kind == config::WorkerKind::Foreign ? " (foreign)" : ""));
        auto where = host.connection == config::Connection::Ssh ? fmt::format("ssh {}@{}", host.login.username, config::host_port(host.address, host.port)) : "this machine";
        text += fmt::format("  {} ({}): {}\n", host.name, where, groups.empty() ? "no Workers" : join(groups, ", "));
    }
    return text;
}

int validate(std::string const& file, bool json) {
    auto loaded = config::load(file);
    bool valid = loaded.problems.empty();
    if (json) {
        Json document = {{"file", file}, {"valid", valid}, {"problems", problems_json(loaded.problems)}, {"warnings", problems_json(loaded.warnings)}};
        if (valid) document["deployment"] = summary_json(loaded.config);
        fmt::print("{}\n", dump(document));
    } else {
        for (auto const& problem : loaded.problems) fmt::print(stderr, "{}\n", problem.text());
        for (auto const& warning : loaded.warnings) fmt::print(stderr, "{} (warning)\n", warning.text());
        if (valid) fmt::print("{}: valid\n{}", file, summary_text(loaded.config));
        else fmt::print(stderr, "{}: {}\n", file, counted(loaded.problems.size(), "problem"));
    }
    return valid ? 0 : Error(ErrorKind::Usage, "").exit_code();
}

} // namespace

void add_validate(CLI::App& app, int& exit_code) {
    struct Options {
        std::string file = "config.yml";
        bool json = false;
    };
    auto options = std::make_shared<Options>();
    auto* command = app.add_subcommand("validate", "Check a configuration and report every problem with its line");
    command->add_option("config", options->file, "The configuration")->capture_default_str();
    command->add_flag("--json", options->json, "Print one JSON document on stdout");
    command->footer("Example:\n  ocrctl validate config.yml\nExit code: 0 valid, 2 not");
    command->callback([options, &exit_code] { exit_code = validate(options->file, options->json); });
}

} // namespace ocrctl
