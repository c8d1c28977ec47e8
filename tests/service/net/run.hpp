// A server on loopback, raw sockets to talk to it, and coroutines run to their end.
#pragma once

#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/net/client.hpp"
#include "lib/net/server.hpp"
#include "lib/net/url.hpp"

#include <arpa/inet.h>
#include <cstring>
#include <future>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>

namespace ocrctl::net::test {

using namespace std::chrono_literals;

/// Runs a server in a thread of its own until destroyed.
class Served {
public:
    explicit Served(Router router, ServerOptions options = {}) : router_(std::move(router)), server_(std::make_unique<HttpServer>(io_.get_executor(), router_, options)) {
        auto bound = server_->listen("127.0.0.1", 0);
        EXPECT_TRUE(bound) << bound.error().message();
        bound_ = *bound;
        thread_ = std::thread([this] { io_.run(); });
    }
    ~Served() {
        stop(2s);
        thread_.join();
        server_.reset();
    }
    void stop(std::chrono::milliseconds grace) {
        if (stopped_) return;
        stopped_ = true;
        std::promise<void> done;
        auto work = [&]() -> awaitable<void> { co_await server_->stop(grace); };
        asio::co_spawn(io_, work, [&](std::exception_ptr) { done.set_value(); });
        done.get_future().wait();
    }
    std::string url(std::string const& target) const { return bound_.url + target; }
    std::uint16_t port() const { return bound_.port; }
    HttpServer& server() { return *server_; }
    asio::io_context& io() { return io_; }
    /// Runs something on the server's thread.
    template <class F>
    auto there(F f) {
        std::packaged_task<std::invoke_result_t<F>()> task(std::move(f));
        auto result = task.get_future();
        asio::post(io_, [&] { task(); });
        return result.get();
    }

private:
    Router router_;
    asio::io_context io_{1};
    std::unique_ptr<HttpServer> server_;
    Bound bound_;
    std::thread thread_;
    bool stopped_ = false;
};

/// Runs a coroutine to its end; the context stays behind, as a connection may need it.
template <class T>
T run(asio::io_context& io, awaitable<T> work) {
    std::optional<T> out;
    std::exception_ptr problem;
    bool done = false;
    asio::co_spawn(io, std::move(work), [&](std::exception_ptr p, T value) {
        problem = p;
        out.emplace(std::move(value));
        done = true;
    });
    io.restart();
    while (!done && io.run_one_for(30s) > 0) {}
    if (problem) std::rethrow_exception(problem);
    if (!done) throw std::runtime_error("the coroutine did not end within 30 s");
    return std::move(*out);
}

/// A plain TCP connection.
class Raw {
public:
    explicit Raw(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    }
    void send(std::string_view text) {
        while (!text.empty()) {
            auto n = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
            if (n <= 0) return;
            text.remove_prefix(static_cast<std::size_t>(n));
        }
    }
    /// Until `enough` says so, the peer closes, or 10 s have passed.
    std::string read(std::function<bool(std::string const&)> enough = [](auto const&) { return false; }) {
        std::string all;
        while (!enough(all)) {
            pollfd wait{fd_.get(), POLLIN, 0};
            if (::poll(&wait, 1, 10000) <= 0) return all + "<timeout>";
            char buffer[65536];
            auto n = ::recv(fd_.get(), buffer, sizeof buffer, 0);
            if (n <= 0) return all;
            all.append(buffer, static_cast<std::size_t>(n));
        }
        return all;
    }
    std::string read_until(std::string const& text) {
        return read([&](std::string const& all) { return all.find(text) != std::string::npos; });
    }
    void close() { fd_.close(); }

private:
    Fd fd_;
};

inline std::size_t count(std::string const& text, std::string const& what) {
    std::size_t n = 0;
    for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
}

} // namespace ocrctl::net::test
