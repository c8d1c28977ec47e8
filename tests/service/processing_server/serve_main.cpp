// processing_server_under_test STATE: what `ocrctl serve --state STATE` does, alone.
#include "lib/log/log.hpp"
#include "lib/store/mongo.hpp"
#include "processing_server/server.hpp"

#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>

using namespace ocrctl;

namespace {

awaitable<void> serve(server::ProcessingServer& server, asio::signal_set& signals, int& exit_code) {
    auto started = co_await server.start();
    if (!started) {
        fmt::print(stderr, "{}\n", started.error().message());
        exit_code = started.error().exit_code();
        co_return;
    }
    (void)co_await signals.async_wait(as_tuple);
    co_await server.stop(std::chrono::seconds(20));
}

} // namespace

int main(int, char** argv) {
    auto settings = server::read_settings(argv[1]);
    if (!settings) {
        fmt::print(stderr, "{}\n", settings.error().message());
        return settings.error().exit_code();
    }
    log::set_level(std::string_view(settings->log_level));
    store::MongoLibrary mongo;
    asio::io_context io(1);
    asio::signal_set signals(io, SIGTERM, SIGINT);
    int exit_code = 0;
    {
        server::ProcessingServer server(io, std::move(*settings));
        asio::co_spawn(io, serve(server, signals, exit_code), [&](std::exception_ptr escaped) {
            io.stop();
            if (escaped) std::rethrow_exception(escaped);
        });
        io.run();
    }
    return exit_code;
}
