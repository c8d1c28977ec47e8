#include "host_agent/server_link.hpp"

#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/net/url.hpp"

#include <algorithm>

namespace ocrctl::host_agent {

namespace field = log::field;
using log::kv;
using std::chrono::milliseconds;
using namespace std::chrono_literals;

awaitable<void> ServerLink::dial() {
    auto delay = 50ms;
    std::string said;
    while (!agent_.quitting) {
        if (agent_.desired.server.empty()) {
            co_await agent_.changed();
            continue;
        }
        auto server = agent_.desired.server;
        auto token = agent_.desired.token_file.empty() ? Result<std::string>(std::string())
                                                       : read_file(agent_.desired.token_file);
        Result<std::shared_ptr<net::WebSocket>> socket = fail(ErrorKind::Unavailable, "");
        if (token) {
            net::Headers headers{{"Authorization", "Bearer " + std::string(trim(*token))}};
            auto url = fmt::format("{}/v1/agents/connect?host={}", server, net::percent_encode(agent_.desired.host));
            socket = co_await net::websocket_connect(std::move(url), std::move(headers), 5s);
        } else {
            socket = fail(token.error());
        }
        if (!socket) {
            if (said != socket.error().message()) { // once per reason
                said = socket.error().message();
                agent_.log.info("server.unreachable", kv(field::kAddress, server), kv(field::kError, said));
            }
            co_await pause(delay);
            delay = std::min<milliseconds>(delay * 2, 2s);
            continue;
        }
        auto begin_ = SteadyClock::now();
        said.clear();
        agent_.log.info("server.connected", kv(field::kAddress, server));
        agent_.tasks.spawn("server reports", report_to(*socket, server));
        for (;;) {
            auto message = co_await (*socket)->read();
            if (!message) {
                if (!agent_.quitting)
                    agent_.log.info("server.lost", kv(field::kAddress, server),
                                    kv(field::kError, message.error().message()));
                break;
            }
            from_server(*message);
        }
        (*socket)->close();
        agent_.notify();
        if (SteadyClock::now() - begin_ > 1s) delay = 50ms;
        co_await pause(delay);
        delay = std::min<milliseconds>(delay * 2, 2s);
    }
}

awaitable<void> ServerLink::report_to(std::shared_ptr<net::WebSocket> socket, std::string server) {
    while (socket->open() && !agent_.quitting) {
        auto sent = agent_.version;
        auto written = co_await socket->write(dump(Json{{"op", "report"}, {"report", supervisor_.report()}}));
        if (!written) break;
        co_await pause(50ms); // changes that come together go together
        auto until = SteadyClock::now() + 10s;
        while (agent_.version == sent && socket->open() && SteadyClock::now() < until && !agent_.quitting)
            co_await agent_.changed(until);
        if (agent_.desired.server != server) break; // it has moved: dial the new address
    }
    socket->close();
}

void ServerLink::from_server(std::string const& text) {
    auto json = parse_json(text);
    if (!json || !json->is_object()) return;
    commands_.renew_lease();
    try {
        auto op = json->value("op", std::string());
        if (op == "desired") {
            auto wanted = json_to<DesiredState>((*json)["desired"]);
            auto applied = wanted ? commands_.apply(std::move(*wanted)) : Result<void>(fail(wanted.error()));
            if (!applied) agent_.log.warn("agent_.desired.refused", kv(field::kError, applied.error().message()));
        } else if (op == "cancel") {
            workers_.cancel(json->value("slot", std::string()), json->value("job", std::string()));
        } else if (op == "close") {
            agent_.close_deployment();
        }
    } catch (Json::exception const& wrong) {
        agent_.log.warn("server.frame", kv(field::kError, wrong.what()));
    }
}

} // namespace ocrctl::host_agent
