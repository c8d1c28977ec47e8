#include "lib/net/client.hpp"

#include "lib/async/within.hpp"
#include "lib/net/socket.hpp"

#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <map>
#include <sys/socket.h>

namespace ocrctl::net {

namespace http = boost::beast::http;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::uint64_t kMaxBody = 1u << 30;
constexpr std::size_t kMaxIdle = 64;
constexpr std::chrono::seconds kMaxIdleTime{60}; // below the 75 s of our own server

struct Idle {
    Socket socket;
    Clock::time_point since;
};

/// No end of stream and no stray bytes wait on it.
bool is_alive(Socket& socket) {
    char byte = 0;
    auto n = ::recv(socket.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

struct Exchange {
    std::optional<Response> response;
    boost::system::error_code error;
    std::string problem;
    bool answered = false;   // a byte of the answer has arrived
    bool keep_alive = false;
};

awaitable<Exchange> exchange(Socket& socket, std::string const& head, std::string const& body, bool is_head) {
    Exchange out;
    std::array<asio::const_buffer, 2> const buffers{asio::buffer(head), asio::buffer(body)};
    auto [write_error, written] = co_await asio::async_write(socket, buffers, as_tuple);
    // A server may refuse before it has read everything: look for its answer all the same.
    std::optional<http::response_parser<http::string_body>> parser;
    auto renew = [&] {
        parser.emplace();
        parser->eager(true);
        parser->body_limit(kMaxBody);
        parser->header_limit(1u << 20);
        if (is_head) parser->skip(true);
    };
    renew();
    std::vector<char> input(65536);
    std::string pending;
    bool ended = false;
    for (;;) {
        while (!pending.empty() && !parser->is_done()) {
            boost::system::error_code error;
            auto n = parser->put(asio::buffer(pending), error);
            pending.erase(0, n);
            if (error == http::error::need_more) {
                if (n == 0) break;
                continue;
            }
            if (error) {
                out.problem = fmt::format("the answer is no HTTP: {}", error.message());
                co_return out;
            }
            if (n == 0) break;
        }
        if (parser->is_done()) {
            auto status = parser->get().result_int();
            if (status >= 100 && status < 200 && status != 101) {
                renew();
                continue;
            }
            break;
        }
        if (ended) {
            out.error = asio::error::eof;
            co_return out;
        }
        auto [error, n] = co_await socket.async_read_some(asio::buffer(input), as_tuple);
        if (error == asio::error::eof) {
            ended = true;
            if (!out.answered || !parser->is_header_done()) {
                out.error = write_error ? write_error : error;
                co_return out;
            }
            boost::system::error_code eof_error;
            parser->put_eof(eof_error);
            if (eof_error) {
                out.problem = "the connection was cut inside the answer";
                co_return out;
            }
            continue;
        }
        if (error) {
            out.error = write_error ? write_error : error;
            co_return out;
        }
        out.answered = true;
        pending.append(input.data(), n);
    }
    out.keep_alive = parser->keep_alive() && !ended && pending.empty() && !write_error;
    auto message = parser->release();
    Response response;
    response.status = static_cast<int>(message.result_int());
    for (auto const& field : message) {
        std::string name(field.name_string().data(), field.name_string().size());
        std::string value(field.value().data(), field.value().size());
        if (field.name() == http::field::content_type) response.content_type = value;
        response.headers.add(std::move(name), std::move(value));
    }
    response.body = std::move(message.body());
    out.response = std::move(response);
    co_return out;
}

awaitable<std::pair<boost::system::error_code, tcp::socket>> connect_tcp(tcp::endpoint endpoint) {
    tcp::socket socket(co_await asio::this_coro::executor);
    boost::system::error_code error;
    socket.open(endpoint.protocol(), error);
    if (!error) {
        close_on_exec(socket.native_handle());
        auto [problem] = co_await socket.async_connect(endpoint, as_tuple);
        error = problem;
        boost::system::error_code ignored;
        if (!error) socket.set_option(tcp::no_delay(true), ignored);
    }
    co_return std::pair(error, std::move(socket));
}

} // namespace

awaitable<Result<Socket>> connect_to(Url url) {
    auto executor = co_await asio::this_coro::executor;
    if (!url.socket.empty()) {
        if (url.socket.size() > 107) co_return fail(ErrorKind::Invalid, "connect to {}: a socket's path has at most 107 bytes", url.socket);
        local::socket socket(executor);
        boost::system::error_code ignored;
        socket.open(local(), ignored);
        if (socket.is_open()) close_on_exec(socket.native_handle());
        auto [error] = co_await socket.async_connect(local::endpoint(url.socket), as_tuple);
        if (error) co_return fail(ErrorKind::Unavailable, "connect to {}: {}", url.socket, error.message());
        co_return Socket(std::move(socket));
    }
    boost::system::error_code error;
    auto address = asio::ip::make_address(url.host, error);
    if (!error) {
        auto [problem, socket] = co_await connect_tcp(tcp::endpoint(address, url.port));
        if (problem) co_return fail(ErrorKind::Unavailable, "connect to {}: {}", url.authority(), problem.message());
        co_return Socket(std::move(socket));
    }
    tcp::resolver resolver(executor);
    auto [resolve_error, found] = co_await resolver.async_resolve(url.host, std::to_string(url.port), as_tuple);
    if (resolve_error) co_return fail(ErrorKind::Unavailable, "find {}: {}", url.host, resolve_error.message());
    boost::system::error_code last = asio::error::host_not_found;
    for (auto const& entry : found) {
        auto [problem, socket] = co_await connect_tcp(entry.endpoint());
        if (!problem) co_return Socket(std::move(socket));
        last = problem;
    }
    co_return fail(ErrorKind::Unavailable, "connect to {}: {}", url.authority(), last.message());
}

struct HttpClient::Impl : std::enable_shared_from_this<HttpClient::Impl> {
    std::map<std::string, std::vector<Idle>> idle;

    std::optional<Socket> take(std::string const& authority) {
        auto found = idle.find(authority);
        if (found == idle.end()) return std::nullopt;
        auto& kept = found->second;
        while (!kept.empty()) {
            auto last = std::move(kept.back());
            kept.pop_back();
            if (Clock::now() - last.since < kMaxIdleTime && is_alive(last.socket)) return std::move(last.socket);
        }
        idle.erase(found);
        return std::nullopt;
    }

    void keep(std::string const& authority, Socket socket) {
        auto& kept = idle[authority];
        if (kept.size() < kMaxIdle) kept.push_back({std::move(socket), Clock::now()});
    }

    awaitable<Result<Response>> request(std::shared_ptr<Impl> self, std::string method, Url url, Headers headers, std::string body) {
        std::string head = fmt::format("{} {} HTTP/1.1\r\n", method, url.target);
        if (!headers.has("host")) fmt::format_to(std::back_inserter(head), "host: {}\r\n", url.socket.empty() ? url.authority() : "localhost");
        for (auto const& [name, value] : headers) {
            if (value.find_first_of("\r\n") != std::string::npos)
                co_return fail(ErrorKind::Invalid, "the value of header {} has a line end", name);
            fmt::format_to(std::back_inserter(head), "{}: {}\r\n", name, value);
        }
        if (!body.empty() || method == "POST" || method == "PUT" || method == "PATCH")
            fmt::format_to(std::back_inserter(head), "content-length: {}\r\n", body.size());
        head += "\r\n";
        auto const authority = url.authority();
        bool repeatable = method != "POST" && method != "PATCH";
        for (;;) {
            auto socket = take(authority);
            bool reused = socket.has_value();
            if (!socket) {
                auto connected = co_await connect_to(url);
                if (!connected) co_return fail(connected.error());
                socket.emplace(std::move(*connected));
            }
            auto result = co_await exchange(*socket, head, body, method == "HEAD");
            if (result.response) {
                if (result.keep_alive) keep(authority, std::move(*socket));
                co_return std::move(*result.response);
            }
            if (reused && repeatable && !result.answered && result.problem.empty()) continue;
            if (result.problem.empty())
                result.problem = result.error == asio::error::eof ? "it closed the connection without an answer" : result.error.message();
            co_return fail(ErrorKind::Unavailable, "{} http://{}{}: {}", method, authority, url.target, result.problem);
        }
    }
};

HttpClient::HttpClient(asio::any_io_executor) : impl_(std::make_shared<Impl>()) {}
HttpClient::~HttpClient() { impl_->idle.clear(); }

awaitable<Result<Response>> HttpClient::request(std::string method, std::string url, Headers headers, std::string body,
                                                std::chrono::milliseconds timeout) {
    auto parsed = parse_url(url);
    if (!parsed) co_return fail(parsed.error());
    auto impl = impl_;
    auto call = impl->request(impl, method, std::move(*parsed), std::move(headers), std::move(body));
    auto answer = co_await within(timeout, std::move(call));
    if (!answer) co_return fail(ErrorKind::Timeout, "{} {}: no answer within {} ms", method, url, timeout.count());
    co_return std::move(*answer);
}

Result<Response> http_request(std::string method, std::string url, Headers headers, std::string body,
                              std::chrono::milliseconds timeout) {
    asio::io_context io(1);
    HttpClient client(io.get_executor());
    Result<Response> out = fail(ErrorKind::Internal, "the request did not run");
    auto run = [&]() -> awaitable<void> {
        out = co_await client.request(std::move(method), std::move(url), std::move(headers), std::move(body), timeout);
    };
    asio::co_spawn(io, run, [&](std::exception_ptr problem) {
        if (!problem) return;
        try {
            std::rethrow_exception(problem);
        } catch (std::exception const& error) {
            out = fail(ErrorKind::Internal, "{}", error.what());
        }
    });
    io.run();
    return out;
}

} // namespace ocrctl::net
