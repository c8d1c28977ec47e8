#include "lib/net/server.hpp"

#include "lib/async/within.hpp"
#include "lib/log/fields.hpp"
#include "lib/log/log.hpp"
#include "lib/net/socket.hpp"

#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <fcntl.h>
#include <list>
#include <map>
#include <sys/stat.h>
#include <unistd.h>
#include <unordered_set>

namespace ocrctl::net {

namespace http = boost::beast::http;
using log::kv;
using Clock = std::chrono::steady_clock;

namespace {

/// One connection as the sweeper and stop() see it.
struct Connection {
    Connection(Socket s, std::string from) : socket(std::move(s)), remote(std::move(from)) {}
    Socket socket;
    std::string remote;
    Clock::time_point deadline = Clock::time_point::max(); // past it the socket is closed
    bool busy = false;                                      // a request is being answered
    std::weak_ptr<WebSocket> websocket;
};

struct UnixListener {
    local::acceptor acceptor;
    std::filesystem::path path;
    ino_t inode = 0; // the file is removed only while it is still ours
};

bool contains_nocase(std::string_view text, std::string_view word) {
    for (std::size_t i = 0; i + word.size() <= text.size(); ++i) {
        std::size_t k = 0;
        while (k < word.size() && std::tolower(static_cast<unsigned char>(text[i + k])) == word[k]) ++k;
        if (k == word.size()) return true;
    }
    return false;
}

std::string_view view(boost::beast::string_view text) { return {text.data(), text.size()}; }

Request make_request(http::request<http::string_body>&& message, std::string const& remote) {
    Request request;
    request.method = view(message.method_string());
    request.target = view(message.target());
    auto target = std::string_view(request.target);
    if (target.starts_with("http://")) { // absolute form, as proxies send it
        auto slash = target.find('/', 7);
        target = slash == std::string_view::npos ? "/" : target.substr(slash);
        request.target = std::string(target);
        target = request.target;
    }
    auto question = target.find('?');
    request.path = target.substr(0, question);
    if (question != std::string_view::npos) request.query = parse_query(target.substr(question + 1));
    for (auto const& field : message) request.headers.add(std::string(view(field.name_string())), std::string(view(field.value())));
    request.body = std::move(message.body());
    request.remote = remote;
    return request;
}

std::string head_of(Response const& response, bool keep_alive, bool old_client) {
    std::string head;
    head.reserve(256);
    fmt::format_to(std::back_inserter(head), "HTTP/1.1 {} {}\r\n", response.status, reason_phrase(response.status));
    if (!response.content_type.empty()) fmt::format_to(std::back_inserter(head), "content-type: {}\r\n", response.content_type);
    if (response.status != 204 && response.status != 304)
        fmt::format_to(std::back_inserter(head), "content-length: {}\r\n", response.body.size());
    for (auto const& [name, value] : response.headers) {
        // A line end in a value would let its author write headers of his own.
        if (value.find_first_of("\r\n") != std::string::npos) continue;
        fmt::format_to(std::back_inserter(head), "{}: {}\r\n", name, value);
    }
    if (!keep_alive)
        head += "connection: close\r\n";
    else if (old_client)
        head += "connection: keep-alive\r\n";
    head += "\r\n";
    return head;
}

} // namespace

void close_on_exec(int fd) noexcept { ::fcntl(fd, F_SETFD, FD_CLOEXEC); }

struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
    Impl(asio::any_io_executor ex, Router const& r, ServerOptions o)
        : executor(ex), router(r), options(o), tasks(ex, "net"), sweep_timer(ex) {}

    asio::any_io_executor executor;
    Router const& router;
    ServerOptions options;
    log::Logger log{"net"};
    std::list<tcp::acceptor> acceptors;
    std::list<UnixListener> unix_listeners;
    std::unordered_set<std::shared_ptr<Connection>> connections;
    TaskGroup tasks;
    asio::steady_timer sweep_timer;
    bool sweeping = false, stopping = false;

    template <class Acceptor>
    awaitable<void> accept_loop(std::shared_ptr<Impl> self, Acceptor& acceptor);
    awaitable<void> session(std::shared_ptr<Impl> self, std::shared_ptr<Connection> connection);
    awaitable<void> sweep(std::shared_ptr<Impl> self);
    awaitable<Response> answer(Handler const& handler, Request request);
    awaitable<bool> send(Connection& connection, Response const& response, bool keep_alive, bool old_client, bool with_body);
    awaitable<void> drain(Connection& connection);
    awaitable<void> upgrade(Connection& connection, std::shared_ptr<Connection> held, WebSocketHandler const& handler, Request request);
    void take(Socket socket, std::string remote);
    void close_listeners();
    static void remove_file(UnixListener const& listener);
};

template <class Acceptor>
awaitable<void> HttpServer::Impl::accept_loop(std::shared_ptr<Impl>, Acceptor& acceptor) {
    bool complained = false;
    while (acceptor.is_open()) {
        auto [error, socket] = co_await acceptor.async_accept(as_tuple);
        if (!acceptor.is_open() || error == asio::error::operation_aborted) break;
        if (error) { // no descriptors left, most likely: say it once, do not spin
            if (!complained) log.warn("accept.failed", kv(log::field::kError, error.message()));
            complained = true;
            co_await pause(std::chrono::milliseconds(100));
            continue;
        }
        complained = false;
        close_on_exec(socket.native_handle());
        std::string remote = "unix";
        if constexpr (std::is_same_v<Acceptor, tcp::acceptor>) {
            boost::system::error_code ignored;
            socket.set_option(tcp::no_delay(true), ignored);
            auto peer = socket.remote_endpoint(ignored);
            remote = fmt::format("{}:{}", peer.address().to_string(), peer.port());
        }
        take(Socket(std::move(socket)), std::move(remote));
    }
}

void HttpServer::Impl::take(Socket socket, std::string remote) {
    if (connections.size() >= options.max_connections) {
        auto refusal = Response::error(503, "too many connections, try again later");
        auto text = head_of(refusal, false, false) + refusal.body;
        boost::system::error_code ignored;
        socket.non_blocking(true, ignored);
        (void)socket.send(asio::buffer(text), 0, ignored); // fits into an empty socket buffer
        socket.shutdown(Socket::shutdown_both, ignored);
        return;
    }
    auto connection = std::make_shared<Connection>(std::move(socket), std::move(remote));
    connections.insert(connection);
    tasks.spawn("http session", session(shared_from_this(), connection));
    if (!sweeping) {
        sweeping = true;
        tasks.spawn("http deadlines", sweep(shared_from_this()));
    }
}

/// One timer for all deadlines: a timer per request would cost more than parsing it.
awaitable<void> HttpServer::Impl::sweep(std::shared_ptr<Impl> self) {
    while (!connections.empty() && !stopping) {
        sweep_timer.expires_after(std::chrono::milliseconds(500));
        auto [error] = co_await sweep_timer.async_wait(as_tuple);
        if (error) break;
        auto now = Clock::now();
        for (auto const& connection : connections) {
            if (connection->deadline > now) continue;
            boost::system::error_code ignored;
            connection->socket.close(ignored);
        }
    }
    sweeping = false;
}

awaitable<Response> HttpServer::Impl::answer(Handler const& handler, Request request) {
    auto const what = request.method + " " + request.path;
    std::string problem;
    try {
        co_return co_await handler(std::move(request));
    } catch (boost::system::system_error const& error) {
        if (error.code() == asio::error::operation_aborted) throw; // the server is stopping
        problem = error.what();
    } catch (std::exception const& error) {
        problem = error.what();
    }
    log.error("request.failed", kv("request", what), kv(log::field::kError, problem));
    co_return Response::error(500, fmt::format("internal error: {}", problem));
}

awaitable<bool> HttpServer::Impl::send(Connection& connection, Response const& response, bool keep_alive, bool old_client, bool with_body) {
    auto head = head_of(response, keep_alive, old_client);
    connection.deadline = Clock::now() + options.read_timeout + std::chrono::seconds(response.body.size() >> 20);
    if (!with_body || response.body.size() < 4096) {
        if (with_body) head += response.body;
        auto [error, n] = co_await asio::async_write(connection.socket, asio::buffer(head), as_tuple);
        co_return !error;
    }
    std::array<asio::const_buffer, 2> const buffers{asio::buffer(head), asio::buffer(response.body)};
    auto [error, n] = co_await asio::async_write(connection.socket, buffers, as_tuple);
    co_return !error;
}

/// Closing with unread bytes would reset the connection and take the answer with it: read on for a moment.
awaitable<void> HttpServer::Impl::drain(Connection& connection) {
    boost::system::error_code ignored;
    connection.socket.shutdown(Socket::shutdown_send, ignored);
    connection.deadline = Clock::now() + std::chrono::seconds(3);
    std::vector<char> sink(65536);
    for (;;) {
        auto [error, n] = co_await connection.socket.async_read_some(asio::buffer(sink), as_tuple);
        if (error) co_return;
    }
}

awaitable<void> HttpServer::Impl::upgrade(Connection& connection, std::shared_ptr<Connection> held, WebSocketHandler const& handler,
                                          Request request) {
    connection.deadline = Clock::time_point::max(); // the WebSocket has its own
    auto what = request.path;
    auto websocket = co_await accept_websocket(std::move(connection.socket), request);
    if (!websocket) {
        log.info("websocket.refused", kv("request", what), kv(log::field::kError, websocket.error().message()));
        co_return;
    }
    held->websocket = *websocket;
    std::string problem;
    try {
        auto call = handler(*websocket, std::move(request));
        co_await std::move(call);
    } catch (boost::system::system_error const& error) {
        if (error.code() != asio::error::operation_aborted) problem = error.what();
    } catch (std::exception const& error) {
        problem = error.what();
    }
    if (!problem.empty()) log.error("websocket.failed", kv("request", what), kv(log::field::kError, problem));
    (*websocket)->close();
}

awaitable<void> HttpServer::Impl::session(std::shared_ptr<Impl> self, std::shared_ptr<Connection> connection) {
    struct Leave { // also when the coroutine is destroyed
        Impl& impl;
        std::shared_ptr<Connection> const& connection;
        ~Leave() { impl.connections.erase(connection); }
    } leave{*self, connection};

    auto& c = *connection;
    std::vector<char> input(16384);
    std::string pending; // read, not yet parsed
    for (;;) {
        std::optional<http::request_parser<http::string_body>> parser;
        parser.emplace();
        parser->eager(true);
        parser->header_limit(static_cast<std::uint32_t>(options.max_header));
        parser->body_limit(options.max_body);
        c.busy = false;
        bool begun = !pending.empty(), continued = false;
        if (stopping) co_return;
        c.deadline = Clock::now() + (begun ? options.read_timeout : options.idle_timeout);
        std::optional<Response> refusal;
        while (!parser->is_done()) {
            bool progress = false;
            while (!pending.empty() && !parser->is_done()) {
                boost::system::error_code error;
                auto n = parser->put(asio::buffer(pending), error);
                pending.erase(0, n);
                if (error == http::error::need_more) {
                    error = {};
                    if (n == 0) break;
                }
                if (error == http::error::body_limit) {
                    refusal = Response::error(413, fmt::format("the body is larger than {} bytes", options.max_body));
                } else if (error == http::error::header_limit) {
                    refusal = Response::error(431, fmt::format("the header is larger than {} bytes", options.max_header));
                } else if (error) {
                    refusal = Response::error(400, fmt::format("this is no HTTP request: {}", error.message()));
                }
                if (refusal) break;
                progress = true;
                if (n == 0) break;
            }
            (void)progress;
            if (refusal || parser->is_done()) break;
            if (pending.size() > options.max_header && !parser->is_header_done()) {
                refusal = Response::error(431, fmt::format("the header is larger than {} bytes", options.max_header));
                break;
            }
            if (parser->is_header_done() && !continued) {
                continued = true;
                auto expect = parser->get().find(http::field::expect);
                if (expect != parser->get().end() && contains_nocase(view(expect->value()), "100-continue")) {
                    static constexpr std::string_view go_on = "HTTP/1.1 100 Continue\r\n\r\n";
                    auto [error, n] = co_await asio::async_write(c.socket, asio::buffer(go_on), as_tuple);
                    if (error) co_return;
                }
            }
            auto [error, n] = co_await c.socket.async_read_some(asio::buffer(input), as_tuple);
            if (error) co_return; // closed, by the peer, by stop() or by its deadline
            if (!begun) {
                begun = true;
                c.deadline = Clock::now() + options.read_timeout;
            }
            pending.append(input.data(), n);
        }
        c.busy = true;
        if (refusal) {
            if (co_await send(c, *refusal, false, false, true)) co_await drain(c);
            co_return;
        }
        bool keep_alive = parser->keep_alive();
        auto message = parser->release();
        bool old_client = message.version() < 11;
        bool is_head = message.method() == http::verb::head;
        bool wants_upgrade = contains_nocase(view(message[http::field::upgrade]), "websocket") &&
                             contains_nocase(view(message[http::field::connection]), "upgrade");
        auto request = make_request(std::move(message), c.remote);
        auto match = router.find(request, wants_upgrade);
        request.params = std::move(match.params);
        c.deadline = Clock::time_point::max(); // a handler may take its time (long polls)
        if (match.websocket) {
            std::optional<Response> no;
            if (match.check) no = (*match.check)(request);
            if (!no) {
                co_await upgrade(c, connection, *match.websocket, std::move(request));
                co_return;
            }
            match.refusal = std::move(no);
        }
        Response response;
        if (match.refusal)
            response = std::move(*match.refusal);
        else
            response = co_await answer(*match.handler, std::move(request));
        if (stopping) keep_alive = false;
        bool sent = co_await send(c, response, keep_alive, old_client, !is_head);
        if (!sent) co_return;
        if (!keep_alive) {
            if (!pending.empty()) co_await drain(c);
            boost::system::error_code ignored;
            c.socket.shutdown(Socket::shutdown_both, ignored);
            co_return;
        }
    }
}

void HttpServer::Impl::remove_file(UnixListener const& listener) {
    struct stat info{};
    if (::lstat(listener.path.c_str(), &info) == 0 && info.st_ino == listener.inode) ::unlink(listener.path.c_str());
}

void HttpServer::Impl::close_listeners() {
    boost::system::error_code ignored;
    for (auto& acceptor : acceptors) acceptor.close(ignored);
    for (auto& listener : unix_listeners)
        if (listener.acceptor.is_open()) {
            remove_file(listener);
            listener.acceptor.close(ignored);
        }
}

HttpServer::HttpServer(asio::any_io_executor executor, Router const& router, ServerOptions options)
    : impl_(std::make_shared<Impl>(std::move(executor), router, options)) {}

namespace {

template <class Impl>
awaitable<void> keep_until_ended(std::shared_ptr<Impl> impl) {
    co_await impl->tasks.join();
}

awaitable<bool> all_ended(TaskGroup& tasks) {
    co_await tasks.join();
    co_return true;
}

} // namespace

HttpServer::~HttpServer() {
    impl_->stopping = true;
    impl_->close_listeners();
    if (impl_->tasks.size() == 0) return;
    impl_->tasks.cancel();
    // Sessions end on the executor's next turns and need the group until then.
    asio::co_spawn(impl_->executor, keep_until_ended(impl_), [](std::exception_ptr) {});
}

Result<Bound> HttpServer::listen(std::string const& address, std::uint16_t port) {
    boost::system::error_code error;
    auto ip = asio::ip::make_address(address, error);
    tcp::endpoint endpoint(ip, port);
    if (error) {
        tcp::resolver resolver(impl_->executor);
        auto found = resolver.resolve(address, std::to_string(port), tcp::resolver::passive, error);
        if (error || found.empty()) return fail(ErrorKind::Invalid, "listen on {}: {}", address, error.message());
        endpoint = found.begin()->endpoint();
    }
    tcp::acceptor acceptor(impl_->executor);
    acceptor.open(endpoint.protocol(), error);
    if (error) return fail(ErrorKind::Unavailable, "listen on {}: {}", address, error.message());
    close_on_exec(acceptor.native_handle());
    acceptor.set_option(asio::socket_base::reuse_address(true), error);
    acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(1024, error);
    if (error == asio::error::address_in_use) return fail(ErrorKind::Conflict, "port {} on {} is in use", port, address);
    if (error == asio::error::access_denied) return fail(ErrorKind::Denied, "port {} on {} needs more rights", port, address);
    if (error) return fail(ErrorKind::Invalid, "listen on port {} of {}: {}", port, address, error.message());
    auto local_end = acceptor.local_endpoint(error);
    Bound bound;
    bound.address = local_end.address().to_string();
    bound.port = local_end.port();
    bool v6 = local_end.address().is_v6();
    bound.url = fmt::format("http://{}{}{}:{}", v6 ? "[" : "", bound.address, v6 ? "]" : "", bound.port);
    auto& kept = impl_->acceptors.emplace_back(std::move(acceptor));
    impl_->tasks.spawn("http accept", impl_->accept_loop(impl_, kept));
    return bound;
}

Result<void> HttpServer::listen_unix(std::filesystem::path const& path, int mode) {
    if (path.native().size() > 107) return fail(ErrorKind::Invalid, "{}: longer than the 107 bytes that a socket's path may have", path.native());
    boost::system::error_code error;
    local::endpoint endpoint(path.native());
    struct stat info{};
    if (::lstat(path.c_str(), &info) == 0) {
        if (!S_ISSOCK(info.st_mode)) return fail(ErrorKind::Conflict, "{} exists and is no socket", path.native());
        local::socket probe(impl_->executor);
        probe.connect(endpoint, error);
        if (!error) return fail(ErrorKind::Conflict, "{} is in use: somebody answers there", path.native());
        ::unlink(path.c_str());
        error = {};
    }
    local::acceptor acceptor(impl_->executor);
    acceptor.open(endpoint.protocol(), error);
    if (error) return fail(ErrorKind::Unavailable, "listen on {}: {}", path.native(), error.message());
    close_on_exec(acceptor.native_handle());
    acceptor.bind(endpoint, error);
    if (error) return fail(errno_error(error.value(), fmt::format("listen on {}", path.native())));
    ::chmod(path.c_str(), static_cast<mode_t>(mode)); // nobody can connect before listen()
    acceptor.listen(1024, error);
    if (error) return fail(errno_error(error.value(), fmt::format("listen on {}", path.native())));
    ::lstat(path.c_str(), &info);
    UnixListener listener{std::move(acceptor), path, info.st_ino};
    auto& kept = impl_->unix_listeners.emplace_back(std::move(listener));
    impl_->tasks.spawn("http accept", impl_->accept_loop(impl_, kept.acceptor));
    return {};
}

void HttpServer::close_unix(std::filesystem::path const& path) {
    for (auto& listener : impl_->unix_listeners) {
        if (listener.path != path || !listener.acceptor.is_open()) continue;
        Impl::remove_file(listener);
        boost::system::error_code ignored;
        listener.acceptor.close(ignored);
    }
}

awaitable<void> HttpServer::stop(std::chrono::milliseconds grace) {
    auto impl = impl_;
    impl->stopping = true;
    impl->close_listeners();
    impl->sweep_timer.cancel();
    for (auto const& connection : impl->connections) {
        boost::system::error_code ignored;
        if (!connection->busy) connection->socket.close(ignored);
        if (auto websocket = connection->websocket.lock()) websocket->close();
    }
    auto ended = co_await within(grace, all_ended(impl->tasks));
    if (ended) co_return;
    impl->tasks.cancel();
    (void)co_await within(std::chrono::seconds(5), all_ended(impl->tasks));
}

std::size_t HttpServer::connections() const noexcept { return impl_->connections.size(); }

} // namespace ocrctl::net
