// ocrctl serve --state STATE: the processing server of a deployment, started by its agent.
#include "cmd/commands.hpp"

#include "deployer/converge.hpp"
#include "lib/async/on_thread.hpp"
#include "lib/async/within.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/log/log.hpp"
#include "lib/process/process.hpp"
#include "lib/store/mongo.hpp"
#include "processing_server/server.hpp"

#include <CLI/CLI.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <fmt/format.h>
#include <memory>

namespace ocrctl {
namespace {

constexpr std::chrono::seconds kSaveLimit{20}; // of an orderly stop

/// The Deployer behind the server's interface; its calls block, so they run on threads of their own.
class DeployerConverger final : public server::Converger {
public:
    explicit DeployerConverger(std::filesystem::path state) : state_(state), converge_(std::move(state)) {}
    ~DeployerConverger() override { pool_.join(); }

    awaitable<Result<void>> bring_back(std::string host) override {
        auto work = [this, host] { return converge_.bring_back(host); };
        co_return co_await on_thread(pool_, std::move(work));
    }

    awaitable<Result<void>> stop_all() override {
        ledger::StatePaths paths{state_};
        if (!std::filesystem::exists(paths.deployment()))
            co_return fail(ErrorKind::Conflict, "{} is no deployment's state folder: end this server by SIGTERM",
                           state_.native());
        process::SpawnOptions options;
        options.argv = {"ocrctl", "kill-all", "--state", state_.native()};
        options.executable = "/proc/self/exe";
        // It is no part of the deployment: without the marks it is not ended with it.
        options.inherit_env = false;
        for (char** entry = environ; *entry != nullptr; ++entry) {
            std::string_view text(*entry);
            auto name = text.substr(0, text.find('='));
            if (name != process::kDeploymentMark && name != process::kHostMark && name != process::kEntryMark)
                options.env[std::string(name)] = std::string(text.substr(std::min(text.size(), name.size() + 1)));
        }
        options.log = paths.logs() / "kill-all.log";
        auto child = process::spawn(options);
        if (!child) co_return fail(child.error().during("start kill-all"));
        log::Logger("server").info("deployment.stop", log::kv("pid", child->identity.pid));
        co_return Result<void>{};
    }

private:
    std::filesystem::path state_;
    deployer::Converge converge_;
    asio::thread_pool pool_{4};
};

awaitable<void> serve(server::ProcessingServer& server, asio::signal_set& signals, int& exit_code) {
    auto started = co_await server.start();
    if (!started) {
        fmt::print(stderr, "ocrctl serve: {}\n", started.error().message());
        exit_code = started.error().exit_code();
        co_return;
    }
    fmt::print("{}\n", server.url());
    std::fflush(stdout);
    (void)co_await signals.async_wait(as_tuple);
    // A second signal does not wait.
    signals.async_wait([](boost::system::error_code error, int) {
        if (!error) std::_Exit(130);
    });
    co_await server.stop(kSaveLimit);
    signals.cancel();
}

int run_server(std::string const& state) {
    std::error_code problem;
    auto folder = std::filesystem::absolute(state, problem);
    auto settings = server::read_settings(folder);
    if (!settings) {
        fmt::print(stderr, "ocrctl serve: {}\n", settings.error().message());
        return settings.error().exit_code();
    }
    log::set_level(std::string_view(settings->log_level));
    int exit_code = 0;
    store::MongoLibrary mongo; // before any thread
    asio::io_context io(1); // all logic on one thread
    asio::signal_set signals(io, SIGTERM, SIGINT);
    DeployerConverger converger(folder); // brings silent hosts back
    server::ProcessingServer server(io, std::move(*settings), &converger);
    std::exception_ptr thrown;
    asio::co_spawn(io, serve(server, signals, exit_code), [&](std::exception_ptr escaped) {
        thrown = escaped;
        io.stop();
    });
    io.run();
    if (thrown) std::rethrow_exception(thrown);
    return exit_code;
}

} // namespace

void add_serve(CLI::App& app, int& exit_code) {
    auto* command = app.add_subcommand("serve", "Runs the processing server of a deployment; its agent starts it");
    auto state = std::make_shared<std::string>();
    command->add_option("--state", *state, "The deployment's state folder, with server.json")->required();
    command->footer("example: ocrctl serve --state /var/lib/ocrctl/demo");
    command->callback([state, &exit_code] { exit_code = run_server(*state); });
}

} // namespace ocrctl
