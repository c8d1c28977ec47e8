#include "host_agent/control_socket.hpp"

#include "lib/async/within.hpp"
#include "lib/base/text.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl::host_agent {

namespace field = log::field;
using asio::local::stream_protocol;
using log::kv;
using std::chrono::milliseconds;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kLongestLine = 32U << 20; // a desired state of some thousand units

Json reply_error(Error const& error) {
    return Json{{"ok", false}, {"error", error.message()}, {"kind", name(error.kind())}};
}

} // namespace

Result<void> ControlSocket::listen() {
    auto file = agent_.paths.socket();
    ::unlink(file.c_str()); // we hold the lock: whoever listened here is dead
    try {
        acceptor_.emplace(agent_.io);
        acceptor_->open();
        auto before = ::umask(0177);
        boost::system::error_code problem;
        acceptor_->bind(stream_protocol::endpoint(file.string()), problem);
        ::umask(before);
        if (problem) return fail(errno_error(problem.value(), fmt::format("listen on {}", file.string())));
        acceptor_->listen(128);
    } catch (boost::system::system_error const& problem) {
        return fail(errno_error(problem.code().value(), fmt::format("listen on {}", file.string())));
    }
    return {};
}

awaitable<void> ControlSocket::accept() {
    while (!agent_.quitting) {
        auto [problem, socket] = co_await acceptor_->async_accept(as_tuple);
        if (agent_.quitting) co_return;
        if (problem) {
            agent_.log.warn("control.accept", kv(field::kError, problem.message()));
            co_await pause(100ms);
            continue;
        }
        agent_.tasks.spawn("control session",
                           serve(std::make_shared<Session>(std::move(socket), agent_.io.get_executor())));
    }
}

awaitable<void> ControlSocket::write_out(SessionPtr session) {
    while (session->open) {
        if (session->out.empty()) {
            co_await session->wake.wait();
            continue;
        }
        auto [problem, size] =
            co_await asio::async_write(session->socket, asio::buffer(session->out.front()), as_tuple);
        if (problem) {
            session->close();
            co_return;
        }
        session->out.pop_front();
        if (session->out.empty()) session->wake.notify_all();
    }
}

awaitable<void> ControlSocket::serve(SessionPtr session) {
    agent_.tasks.spawn("control writer", write_out(session));
    std::string buffer;
    for (;;) {
        auto [problem, size] = co_await asio::async_read_until(
            session->socket, asio::dynamic_buffer(buffer, kLongestLine), '\n', as_tuple);
        if (problem) break;
        auto request = parse_json(std::string_view(buffer).substr(0, size - 1));
        buffer.erase(0, size);
        if (!request || !request->is_object() || !request->contains("op") || !(*request)["op"].is_string()) {
            session->send(reply_error(Error(ErrorKind::Invalid, "expected a JSON object with \"op\" on one line")));
            continue;
        }
        // A request of the wrong shape ends its session, not the agent.
        std::string broken;
        try {
            co_await handle(session, std::move(*request));
        } catch (Json::exception const& wrong) {
            broken = wrong.what();
        }
        if (!broken.empty()) session->send(reply_error(Error(ErrorKind::Invalid, broken)));
        if (!session->open) break;
    }
    session->close();
    if (!session->slot.empty()) agent_.log.debug("worker.disconnected", kv(field::kSlot, session->slot));
}

awaitable<void> ControlSocket::handle(SessionPtr session, Json request) {
    auto op = request["op"].get<std::string>();
    if (op == "hello") {
        workers_.hello(session, request);
    } else if (op == "state") {
        workers_.state(session, request);
    } else if (op == "beat") {
        workers_.beat(session);
    } else if (op == "status") {
        session->send(Json{{"ok", true}, {"report", supervisor_.report()}});
    } else if (op == "watch") {
        agent_.tasks.spawn("control watch", watch_report(session));
    } else if (op == "apply") {
        auto wanted = json_to<DesiredState>(request.value("desired", Json()));
        auto applied = wanted ? commands_.apply(std::move(*wanted)) : Result<void>(fail(wanted.error()));
        if (applied)
            session->send(Json{{"ok", true}, {"generation", agent_.desired.generation}});
        else
            session->send(reply_error(applied.error()));
    } else if (op == "close") {
        agent_.close_deployment();
        session->send(Json{{"ok", true}});
    } else if (op == "cancel") {
        bool told = workers_.cancel(request.value("slot", std::string()), request.value("job", std::string()));
        session->send(Json{{"ok", told}, {"error", told ? "" : "no such Worker is connected"}});
    } else if (op == "stop") {
        std::set<UnitKind> kinds;
        for (auto const& kind : request.value("kinds", std::vector<std::string>())) {
            for (auto const& tier : tiers())
                for (auto known : tier)
                    if (wire(known) == kind) kinds.insert(known);
        }
        std::optional<milliseconds> grace;
        if (request.contains("grace_s"))
            grace = milliseconds(static_cast<std::int64_t>(request["grace_s"].get<double>() * 1000));
        auto [stopped, left] = co_await supervisor_.stop_kinds(std::move(kinds), grace);
        session->send(Json{{"ok", true}, {"stopped", stopped}, {"left", left}});
    } else if (op == "exit") {
        session->send(Json{{"ok", true}});
        auto until = SteadyClock::now() + 1s;
        while (session->open && !session->out.empty() && SteadyClock::now() < until) co_await pause(1ms);
        agent_.log.info("agent.exit", kv(field::kReason, "asked to"));
        commands_.quit();
    } else {
        session->send(reply_error(Error(ErrorKind::Invalid, fmt::format("unknown op {}", op))));
    }
}

awaitable<void> ControlSocket::watch_report(SessionPtr session) {
    std::string last;
    while (session->open && !agent_.quitting) {
        auto text = dump(Json(supervisor_.report()));
        if (text != last) session->send(Json(supervisor_.report()));
        last = std::move(text);
        auto before = agent_.version;
        co_await agent_.changed(SteadyClock::now() + 1s); // the limit finds a session that was closed
        if (agent_.version != before) co_await pause(10ms);
    }
}

void ControlSocket::close() {
    boost::system::error_code ignored;
    if (acceptor_) acceptor_->close(ignored);
    ::unlink(agent_.paths.socket().c_str());
}

} // namespace ocrctl::host_agent
