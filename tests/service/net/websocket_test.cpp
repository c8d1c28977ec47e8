#include "tests/service/net/run.hpp"

using namespace ocrctl;
using namespace ocrctl::net;
using namespace ocrctl::net::test;

namespace {

awaitable<void> echo(std::shared_ptr<WebSocket> socket, Request request) {
    socket->post("hello " + request.query_or("host"));
    for (;;) {
        auto message = co_await socket->read();
        if (!message) co_return;
        if (*message == "bye") co_return;
        if (!co_await socket->write(*message)) co_return;
    }
}

Router example() {
    Router router;
    router.add_websocket("/talk", echo);
    router.add_websocket("/private", echo, [](Request const& request) -> std::optional<Response> {
        if (request.headers.get("authorization") == "Bearer good") return std::nullopt;
        return Response::error(401, "the token is not valid");
    });
    return router;
}

} // namespace

TEST(WebSocket, CarriesMessagesBothWays) {
    Served served(example());
    asio::io_context io;
    auto connected = run(io, websocket_connect(served.url("/talk?host=h1"), {}, 5s));
    ASSERT_TRUE(connected) << connected.error().message();
    auto socket = *connected;
    EXPECT_EQ(*run(io, socket->read()), "hello h1");
    std::string const big(3u << 20, 'x');
    ASSERT_TRUE(run(io, socket->write(big)));
    EXPECT_EQ(*run(io, socket->read()), big);
}

TEST(WebSocket, WritesThatOverlapKeepTheirOrder) {
    Served served(example());
    asio::io_context io;
    auto socket = *run(io, websocket_connect(served.url("/talk"), {}, 5s));
    auto all = [&]() -> awaitable<bool> {
        for (int i = 0; i < 200; ++i) EXPECT_TRUE(socket->post(std::to_string(i)));
        EXPECT_TRUE(co_await socket->write("end"));
        EXPECT_EQ(*co_await socket->read(), "hello ");
        for (int i = 0; i < 200; ++i) EXPECT_EQ(*co_await socket->read(), std::to_string(i));
        EXPECT_EQ(*co_await socket->read(), "end");
        co_return true;
    };
    EXPECT_TRUE(run(io, all()));
}

TEST(WebSocket, RefusalsCarryStatusAndDetail) {
    Served served(example());
    asio::io_context io;
    auto denied = run(io, websocket_connect(served.url("/private"), {{"Authorization", "Bearer bad"}}, 5s));
    ASSERT_FALSE(denied);
    EXPECT_EQ(denied.error().kind(), ErrorKind::Denied);
    EXPECT_NE(denied.error().message().find("the token is not valid"), std::string::npos) << denied.error().message();
    EXPECT_TRUE(run(io, websocket_connect(served.url("/private"), {{"Authorization", "Bearer good"}}, 5s)));
    auto missing = run(io, websocket_connect(served.url("/nothing"), {}, 5s));
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().kind(), ErrorKind::NotFound);
    EXPECT_EQ(run(io, websocket_connect("http://127.0.0.1:1/", {}, 5s)).error().kind(), ErrorKind::Unavailable);
}

TEST(WebSocket, TheEndOfTheHandlerEndsTheConnection) {
    Served served(example());
    asio::io_context io;
    auto socket = *run(io, websocket_connect(served.url("/talk"), {}, 5s));
    EXPECT_EQ(*run(io, socket->read()), "hello ");
    ASSERT_TRUE(run(io, socket->write("bye")));
    auto end = run(io, socket->read());
    ASSERT_FALSE(end);
    EXPECT_EQ(end.error().kind(), ErrorKind::Unavailable);
    EXPECT_FALSE(socket->open());
    EXPECT_FALSE(socket->post("x"));
    EXPECT_FALSE(run(io, socket->write("x")));
}

TEST(WebSocket, AClientThatVanishesEndsTheHandler) {
    Served served(example());
    {
        asio::io_context io;
        auto socket = *run(io, websocket_connect(served.url("/talk"), {}, 5s));
        EXPECT_EQ(*run(io, socket->read()), "hello ");
    }
    for (auto end = std::chrono::steady_clock::now() + 5s; std::chrono::steady_clock::now() < end;)
        if (served.there([&] { return served.server().connections(); }) == 0) return;
    FAIL() << "the server still holds the connection";
}

TEST(WebSocket, APeerThatStopsAnsweringIsNoticed) {
    // The peer upgrades by hand and then never reads or answers a ping.
    Served served(example());
    Raw raw(served.port());
    raw.send("GET /talk HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
    EXPECT_NE(raw.read_until("hello").find("101 Switching"), std::string::npos);
    auto begun = std::chrono::steady_clock::now();
    while (served.there([&] { return served.server().connections(); }) != 0) {
        ASSERT_LT(std::chrono::steady_clock::now() - begun, WebSocket::kIdle + 10s);
        std::this_thread::sleep_for(100ms);
    }
}

TEST(WebSocket, StoppingTheServerClosesIt) {
    Served served(example());
    asio::io_context io;
    auto socket = *run(io, websocket_connect(served.url("/talk"), {}, 5s));
    EXPECT_EQ(*run(io, socket->read()), "hello ");
    auto reader = std::async(std::launch::async, [&] { return run(io, socket->read()); });
    auto begun = std::chrono::steady_clock::now();
    served.stop(5s);
    EXPECT_FALSE(reader.get());
    EXPECT_LT(std::chrono::steady_clock::now() - begun, 3s);
}
