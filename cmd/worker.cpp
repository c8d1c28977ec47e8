// ocrctl worker: one Worker, started by its agent with --slot, or by hand with all it needs.
#include "cmd/commands.hpp"
#include "host_agent/worker.hpp"
#include "lib/log/log.hpp"

#include <CLI/CLI.hpp>
#include <boost/asio/signal_set.hpp>
#include <cstdlib>
#include <fmt/format.h>
#include <memory>
#include <unistd.h>

namespace ocrctl {
namespace {

namespace fs = std::filesystem;

struct Arguments {
    std::string slot, processor, amqp_file, queue, parameters = "{}", executable;
    std::vector<std::string> models;
};

std::string from_env(char const* name) {
    auto* value = std::getenv(name);
    return value ? value : "";
}

awaitable<void> obey_signals(asio::signal_set& signals, host_agent::Worker& worker) {
    for (int count = 0;; ++count) {
        auto [error, signal] = co_await signals.async_wait(as_tuple);
        if (error) co_return;
        if (count == 0) worker.drain();
        else worker.end();
    }
}

int run_worker(Arguments const& arguments) {
    host_agent::Worker::Options options;
    options.host = from_env("OCRCTL_HOST");
    if (options.host.empty()) {
        char name[256] = {};
        ::gethostname(name, sizeof name - 1);
        options.host = name;
    }
    options.slot = Slot(arguments.slot);
    options.scratch = fs::temp_directory_path();
    if (arguments.processor.empty()) {
        options.agent_socket = from_env("OCRCTL_AGENT_SOCKET");
        if (arguments.slot.empty() || options.agent_socket.empty()) {
            fmt::print(stderr, "ocrctl worker: --slot needs an agent ($OCRCTL_AGENT_SOCKET); by hand give --processor, --amqp-file and --queue\n");
            return 2;
        }
        // An agent starts its Workers in its state folder, which has a place for temporary files.
        std::error_code error;
        if (auto here = fs::current_path(error); !error && fs::exists(here / "desired.json", error)) options.scratch = here / "tmp";
    } else {
        if (arguments.amqp_file.empty() || arguments.queue.empty()) {
            fmt::print(stderr, "ocrctl worker: --processor needs --amqp-file and --queue\n");
            return 2;
        }
        auto parameters = parse_json(arguments.parameters);
        if (!parameters || !parameters->is_object()) {
            fmt::print(stderr, "ocrctl worker: --parameters must be a JSON object{}\n", parameters ? "" : ": " + parameters.error().message());
            return 2;
        }
        host_agent::Assignment assignment;
        assignment.target.name = assignment.processor = arguments.processor;
        assignment.queue = arguments.queue;
        assignment.amqp_file = arguments.amqp_file;
        assignment.parameters = *parameters;
        assignment.models = arguments.models;
        assignment.executable = arguments.executable;
        assignment.engine = arguments.executable.empty() && arguments.processor.starts_with("ocrd-ocrctl-") ? "builtin" : "cli";
        options.assignment = std::move(assignment);
        if (arguments.slot.empty()) options.slot = Slot(fmt::format("{}/{}/shard-0/rep-{}", options.host, arguments.processor, ::getpid()));
    }
    asio::io_context io(1);
    host_agent::Worker worker(io.get_executor(), std::move(options));
    asio::signal_set signals(io, SIGTERM, SIGINT);
    asio::co_spawn(io, obey_signals(signals, worker), [](std::exception_ptr) {});
    std::exception_ptr problem;
    asio::co_spawn(io, worker.run(), [&](std::exception_ptr escaped) {
        problem = escaped;
        signals.cancel();
        io.stop();
    });
    io.run();
    if (problem) std::rethrow_exception(problem);
    return 0;
}

} // namespace

void add_worker(CLI::App& app, int& exit_code) {
    auto arguments = std::make_shared<Arguments>();
    auto* command = app.add_subcommand("worker", "Runs one Worker: takes Jobs from a queue and has an engine do them");
    command->footer("An agent starts it as: ocrctl worker --slot ocr1/ocrd-ocrctl-recognize-1/shard-0/rep-1\n"
                    "example by hand: ocrctl worker --processor ocrd-ocrctl-binarize --amqp-file url.txt --queue ocrctl.test.ocrd-ocrctl-binarize");
    command->add_option("--slot", arguments->slot, "The place it fills; its agent tells it what to do there");
    command->add_option("--processor", arguments->processor, "By hand: the Processor");
    command->add_option("--amqp-file", arguments->amqp_file, "By hand: a file that holds the broker's amqp:// URL");
    command->add_option("--queue", arguments->queue, "By hand: the queue to take Jobs from");
    command->add_option("--parameters", arguments->parameters, "By hand: the Processor's parameters as JSON");
    command->add_option("--models", arguments->models, "By hand: folders with models");
    command->add_option("--executable", arguments->executable, "By hand: the OCR-D command-line program to run for the Processor");
    command->callback([arguments, &exit_code] { exit_code = run_worker(*arguments); });
}

} // namespace ocrctl
