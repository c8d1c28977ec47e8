#include "lib/net/websocket.hpp"

#include "lib/async/event.hpp"
#include "lib/async/within.hpp"
#include "lib/net/socket.hpp"

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/websocket.hpp>
#include <deque>

namespace ocrctl::net {

namespace beast = boost::beast;
namespace ws = boost::beast::websocket;
namespace http = boost::beast::http;

namespace {

constexpr std::size_t kMaxMessage = 64u << 20;

/// What the connection's operations share: it lives until the last of them has ended, longer than the WebSocket that its
/// user holds.
struct Core : std::enable_shared_from_this<Core> {
    explicit Core(Socket socket, std::string from)
        : stream(std::move(socket)), written(stream.get_executor()), remote(std::move(from)) {
        ws::stream_base::timeout timeout{};
        timeout.handshake_timeout = std::chrono::seconds(20);
        timeout.idle_timeout = WebSocket::kIdle;
        timeout.keep_alive_pings = true;
        stream.set_option(timeout);
        stream.read_message_max(kMaxMessage);
    }

    struct Waiting {
        std::string message;
        std::shared_ptr<bool> done; // set once it is written; null: nobody waits
    };

    ws::stream<Socket> stream;
    Event written;
    std::string remote;
    std::deque<Waiting> queue;
    bool writing = false, closed = false;
    std::string reason = "closed";

    Error gone() const { return Error(ErrorKind::Unavailable, fmt::format("WebSocket with {}: {}", remote, reason)); }

    void fail_with(std::string why) {
        if (closed) return;
        closed = true;
        reason = std::move(why);
        queue.clear();
        written.notify_all();
        boost::system::error_code ignored;
        beast::get_lowest_layer(stream).close(ignored);
    }

    void pump() {
        if (writing || closed || queue.empty()) return;
        writing = true;
        auto self = shared_from_this();
        stream.text(true);
        stream.async_write(asio::buffer(queue.front().message), [self](boost::system::error_code error, std::size_t) {
            self->writing = false;
            if (self->closed && !self->closing) return;
            if (error) return self->fail_with(error.message());
            if (!self->queue.empty()) {
                if (self->queue.front().done) *self->queue.front().done = true;
                self->queue.pop_front();
            }
            self->written.notify_all();
            if (self->closing && self->queue.empty()) return self->say_goodbye();
            self->pump();
        });
    }

    bool closing = false;
    void close() {
        if (closed || closing) return;
        closing = true;
        if (!writing) say_goodbye();
    }

    void say_goodbye() {
        auto self = shared_from_this();
        stream.async_close(ws::close_code::normal, [self](boost::system::error_code) { self->fail_with("closed"); });
    }
};

class BeastWebSocket final : public WebSocket {
public:
    explicit BeastWebSocket(std::shared_ptr<Core> core) : core_(std::move(core)) {}
    ~BeastWebSocket() override {
        if (!core_->closing) core_->fail_with("closed");
    }

    awaitable<Result<std::string>> read() override {
        auto core = core_;
        if (core->closed || core->closing) co_return fail(core->gone());
        beast::flat_buffer buffer;
        auto [error, n] = co_await core->stream.async_read(buffer, as_tuple);
        if (error) {
            if (error == ws::error::closed)
                core->fail_with("the peer has closed it");
            else if (error == beast::error::timeout)
                core->fail_with("the peer does not answer any more");
            else if (!core->closing)
                core->fail_with(error.message());
            co_return fail(core->gone());
        }
        auto data = buffer.data();
        co_return std::string(static_cast<char const*>(data.data()), data.size());
    }

    awaitable<Result<void>> write(std::string message) override {
        auto core = core_;
        if (core->closed || core->closing) co_return fail(core->gone());
        auto done = std::make_shared<bool>(false);
        core->queue.push_back({std::move(message), done});
        core->pump();
        while (!*done && !core->closed) co_await core->written.wait();
        if (!*done) co_return fail(core->gone());
        co_return Result<void>();
    }

    bool post(std::string message) override {
        if (core_->closed || core_->closing) return false;
        core_->queue.push_back({std::move(message), nullptr});
        core_->pump();
        return true;
    }

    void close() override { core_->close(); }
    bool open() const noexcept override { return !core_->closed && !core_->closing; }
    std::string const& remote() const noexcept override { return core_->remote; }

private:
    std::shared_ptr<Core> core_;
};

awaitable<Result<std::shared_ptr<WebSocket>>> connect_without_limit(Url url, Headers headers) {
    auto socket = co_await connect_to(url);
    if (!socket) co_return fail(socket.error());
    auto core = std::make_shared<Core>(std::move(*socket), url.authority());
    core->stream.set_option(ws::stream_base::decorator([headers](ws::request_type& request) {
        for (auto const& [name, value] : headers) request.set(name, value);
    }));
    ws::response_type response;
    auto const host = url.socket.empty() ? url.authority() : std::string("localhost");
    auto [error] = co_await core->stream.async_handshake(response, host, url.target, as_tuple);
    if (error == ws::error::upgrade_declined) {
        auto status = static_cast<int>(response.result_int());
        Response refusal;
        refusal.body = response.body();
        auto kind = status == 401 || status == 403 ? ErrorKind::Denied
                    : status == 404                ? ErrorKind::NotFound
                    : status >= 500                ? ErrorKind::Unavailable
                                                   : ErrorKind::Invalid;
        auto detail = refusal.detail();
        co_return fail(kind, "connect to {}{}: refused with {} {}{}{}", url.authority(), url.target, status, reason_phrase(status),
                       detail.empty() ? "" : ": ", detail);
    }
    if (error) co_return fail(ErrorKind::Unavailable, "connect to {}{}: {}", url.authority(), url.target, error.message());
    std::shared_ptr<WebSocket> made = std::make_shared<BeastWebSocket>(std::move(core));
    co_return made;
}

} // namespace

awaitable<Result<std::shared_ptr<WebSocket>>> accept_websocket(Socket socket, Request const& request) {
    http::request<http::empty_body> message;
    message.version(11);
    message.method(http::verb::get);
    message.target(request.target);
    for (auto const& [name, value] : request.headers) message.insert(name, value);
    auto core = std::make_shared<Core>(std::move(socket), request.remote);
    auto [error] = co_await core->stream.async_accept(message, as_tuple);
    if (error) co_return fail(ErrorKind::Invalid, "WebSocket with {}: {}", request.remote, error.message());
    std::shared_ptr<WebSocket> made = std::make_shared<BeastWebSocket>(std::move(core));
    co_return made;
}

awaitable<Result<std::shared_ptr<WebSocket>>> websocket_connect(std::string url, Headers headers, std::chrono::milliseconds timeout) {
    auto parsed = parse_url(url);
    if (!parsed) co_return fail(parsed.error());
    auto work = connect_without_limit(std::move(*parsed), std::move(headers));
    auto made = co_await within(timeout, std::move(work));
    if (!made) co_return fail(ErrorKind::Timeout, "connect to {}: no answer within {} ms", url, timeout.count());
    co_return std::move(*made);
}

} // namespace ocrctl::net
