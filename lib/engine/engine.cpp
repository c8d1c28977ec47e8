#include "lib/engine/engine.hpp"

#include "lib/async/within.hpp"
#include "lib/engine/blob.hpp"
#include "lib/log/log.hpp"
#include "lib/process/process.hpp"

#include <array>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <csignal>
#include <cstring>
#include <sys/socket.h>

namespace ocrctl::engine {
namespace {

constexpr int kEngineFd = 3;
constexpr std::size_t kTail = 16 * 1024;
constexpr std::uint32_t kFrameLimit = 256 * 1024 * 1024;

ErrorKind kind_named(std::string const& text) {
    if (text == "not-found") return ErrorKind::NotFound;
    if (text == "invalid") return ErrorKind::Invalid;
    if (text == "denied") return ErrorKind::Denied;
    if (text == "too-large") return ErrorKind::TooLarge;
    if (text == "unavailable") return ErrorKind::Unavailable;
    return ErrorKind::Internal;
}

std::string last_lines(std::string const& text, std::size_t limit) {
    if (text.size() <= limit) return text;
    auto from = text.find('\n', text.size() - limit);
    return text.substr(from == std::string::npos ? text.size() - limit : from + 1);
}

} // namespace

/// Shared by the Engine and the two coroutines that watch the child: they end when it has ended.
struct Engine::Impl : std::enable_shared_from_this<Engine::Impl> {
    explicit Impl(asio::any_io_executor e) : executor(e), socket(e), errors(e), changed(e), log("engine") {}
    ~Impl() {
        if (ended || !child.pidfd) return;
        // The executor ends before the child did: nobody else is left to reap it.
        ::kill(-child.identity.pid, SIGKILL);
        (void)process::wait_for(child.pidfd.get(), std::chrono::seconds(5));
    }

    asio::any_io_executor executor;
    process::Child child;
    asio::local::stream_protocol::socket socket;
    asio::posix::stream_descriptor errors;
    Event changed;
    log::Logger log;
    std::string tail;
    bool tail_complete = false, ended = false, killed = false, busy = false;
    process::ExitStatus status;

    void kill() {
        if (ended || killed) return;
        killed = true;
        // Not reaped yet, so the number is still its own.
        ::kill(-child.identity.pid, SIGKILL);
    }

    std::string death() const {
        if (auto library = process::missing_library(tail)) return "the engine cannot start on this host: " + *library;
        if (!ended) return "the engine does not answer";
        if (killed) return "the engine was ended";
        auto text = status.signal ? fmt::format("the engine was killed by signal {} ({})", status.signal, ::strsignal(status.signal))
                                  : fmt::format("the engine ended with code {}", status.code);
        return text;
    }

    static awaitable<void> watch_errors(std::shared_ptr<Impl> self) {
        std::array<char, 4096> buffer;
        for (;;) {
            auto [error, got] = co_await self->errors.async_read_some(asio::buffer(buffer), as_tuple);
            if (error) break;
            self->tail.append(buffer.data(), got);
            if (self->tail.size() > 2 * kTail) self->tail = last_lines(self->tail, kTail);
        }
        self->tail_complete = true;
        self->changed.notify_all();
    }

    static awaitable<void> watch_exit(std::shared_ptr<Impl> self) {
        asio::posix::stream_descriptor pidfd(self->executor, ::dup(self->child.pidfd.get()));
        (void)co_await pidfd.async_wait(asio::posix::stream_descriptor::wait_read, as_tuple);
        // A zombie still: what is left of its group can be named by its number.
        ::kill(-self->child.identity.pid, SIGKILL);
        if (auto status = process::wait_for(self->child.pidfd.get(), std::chrono::seconds(1))) self->status = *status;
        self->ended = true;
        for (int i = 0; i < 20 && !self->tail_complete; ++i) co_await pause(std::chrono::milliseconds(10));
        boost::system::error_code ignored;
        self->errors.close(ignored);
        self->socket.close(ignored);
        self->log.debug("engine.ended", log::kv("pid", self->child.identity.pid), log::kv("status", self->status.text()));
        self->changed.notify_all();
        self->tail_complete = true;
        self->changed.notify_all();
    }

    awaitable<void> wait_gone() {
        while (!ended || !tail_complete) co_await changed.wait();
    }

    awaitable<Result<Json>> lost() {
        // The socket closes a moment before the process is gone; one that hangs there is ended.
        auto gone = co_await within(std::chrono::seconds(2), [](Impl* self) -> awaitable<bool> {
            co_await self->wait_gone();
            co_return true;
        }(this));
        if (!gone) {
            ::kill(-child.identity.pid, SIGKILL);
            co_await wait_gone();
        }
        co_return fail(ErrorKind::Unavailable, "{}", death());
    }

    static awaitable<Result<Json>> request(std::shared_ptr<Impl> self, Json json) {
        while (self->busy) co_await self->changed.wait();
        if (self->ended || self->killed) co_return co_await self->lost();
        struct Guard { // whatever ends this early (a cancel above all) leaves an engine that cannot be talked to
            Impl& impl;
            bool done = false;
            ~Guard() {
                impl.busy = false;
                if (!done) impl.kill();
                impl.changed.notify_all();
            }
        };
        self->busy = true;
        Guard guard{*self};
        auto text = dump(json);
        auto size = static_cast<std::uint32_t>(text.size());
        std::string frame{static_cast<char>(size >> 24), static_cast<char>(size >> 16), static_cast<char>(size >> 8), static_cast<char>(size)};
        frame += text;
        auto [write_error, put] = co_await asio::async_write(self->socket, asio::buffer(frame), as_tuple);
        if (write_error == asio::error::operation_aborted && !self->ended) co_return fail(ErrorKind::Unavailable, "cancelled");
        std::array<unsigned char, 4> head;
        auto [head_error, got] = co_await asio::async_read(self->socket, asio::buffer(head), as_tuple);
        if (head_error == asio::error::operation_aborted && !self->ended) co_return fail(ErrorKind::Unavailable, "cancelled");
        if (head_error) {
            guard.done = true;
            co_return co_await self->lost();
        }
        std::uint32_t length = std::uint32_t(head[0]) << 24 | std::uint32_t(head[1]) << 16 | std::uint32_t(head[2]) << 8 | head[3];
        if (length > kFrameLimit) co_return fail(ErrorKind::Internal, "the engine's answer of {} bytes is too long", length);
        std::string body(length, '\0');
        auto [body_error, read] = co_await asio::async_read(self->socket, asio::buffer(body), as_tuple);
        if (body_error == asio::error::operation_aborted && !self->ended) co_return fail(ErrorKind::Unavailable, "cancelled");
        if (body_error) {
            guard.done = true;
            co_return co_await self->lost();
        }
        guard.done = true;
        co_return parse_json(body);
    }
};

Engine::Engine(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() { kill(); }

Result<std::unique_ptr<Engine>> Engine::start(asio::any_io_executor executor, EngineOptions options) {
    auto program = engine_program(options.program);
    if (!program) return fail(program.error());
    std::array<int, 2> pair{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data())) return fail(errno_error(errno, "start an engine"));
    Fd ours(pair[0]), theirs(pair[1]);
    process::SpawnOptions spawn;
    spawn.argv = {"ocrctl-engine", "serve", std::to_string(kEngineFd)};
    spawn.executable = *program;
    spawn.env = options.env;
    // Read when the OpenMP library loads: four threads fighting over two cores are eight times slower than one.
    spawn.env["OMP_THREAD_LIMIT"] = "1";
    spawn.pipe_errors = true;
    spawn.fds = {{kEngineFd, theirs.get()}};
    auto child = process::spawn(spawn);
    if (!child) return fail(Error(ErrorKind::Unavailable, child.error().during("start an engine").message()));
    auto impl = std::make_shared<Impl>(executor);
    impl->child = std::move(*child);
    boost::system::error_code problem;
    impl->socket.assign(asio::local::stream_protocol(), ours.release(), problem);
    impl->errors.assign(impl->child.errors.release(), problem);
    auto escaped = [impl](std::exception_ptr) {};
    asio::co_spawn(executor, Impl::watch_errors(impl), escaped);
    asio::co_spawn(executor, Impl::watch_exit(impl), escaped);
    return std::make_unique<Engine>(impl);
}

awaitable<Result<Provenance>> Engine::load(std::string processor, Json parameters) {
    Json request{{"op", "load"}, {"processor", processor}, {"parameters", std::move(parameters)}};
    auto reply = co_await Impl::request(impl_, std::move(request));
    if (!reply) co_return fail(reply.error());
    if (!reply->value("ok", false))
        co_return fail(kind_named(reply->value("kind", "")), "{}", reply->value("error", "cannot load " + processor));
    co_return json_to<Provenance>(reply->value("provenance", Json::object()));
}

awaitable<Result<EngineReply>> Engine::page(PageRequest request) {
    Json json{{"op", "page"},
              {"processor", request.processor},
              {"parameters", request.parameters},
              {"workspace", request.workspace.string()},
              {"staging", request.staging.string()},
              {"input_groups", request.input_groups},
              {"output_groups", request.output_groups},
              {"page", request.page}};
    auto reply = co_await Impl::request(impl_, std::move(json));
    if (!reply) co_return fail(reply.error());
    EngineReply answer;
    if (reply->contains("outcome")) {
        auto outcome = json_to<PageOutcome>((*reply)["outcome"]);
        if (!outcome) co_return fail(ErrorKind::Internal, "the engine's answer cannot be read: {}", outcome.error().message());
        answer.outcome = std::move(*outcome);
    } else {
        answer.outcome.error = reply->value("error", "the engine gave no result");
    }
    if (answer.outcome.page_id.empty()) answer.outcome.page_id = request.page.page_id;
    answer.log = reply->value("log", "");
    co_return answer;
}

awaitable<Result<std::size_t>> Engine::frames(std::filesystem::path image) {
    Json request{{"op", "frames"}, {"path", image.string()}};
    auto reply = co_await Impl::request(impl_, std::move(request));
    if (!reply) co_return fail(reply.error());
    if (!reply->value("ok", false)) co_return fail(kind_named(reply->value("kind", "")), "{}", reply->value("error", "cannot read the image"));
    co_return reply->value("frames", std::size_t(1));
}

void Engine::kill() { impl_->kill(); }
bool Engine::alive() const noexcept { return !impl_->ended && !impl_->killed; }
int Engine::pid() const noexcept { return impl_->child.identity.pid; }
bool Engine::died() const noexcept { return impl_->ended && !impl_->killed; }
std::string Engine::death() const { return impl_->death(); }
bool Engine::host_lacks_library() const noexcept { return impl_->ended && process::missing_library(impl_->tail).has_value(); }
std::string const& Engine::stderr_tail() const noexcept { return impl_->tail; }
awaitable<void> Engine::gone() {
    auto keep = impl_;
    co_await keep->wait_gone();
}

} // namespace ocrctl::engine
