#include "tests/service/net/run.hpp"

#include <boost/asio/ip/tcp.hpp>

using namespace ocrctl;
using namespace ocrctl::net;
using namespace ocrctl::net::test;

namespace {

Router counting(int& requests) {
    Router router;
    router.add("GET", "/n", [&](Request request) -> awaitable<Response> {
        ++requests;
        co_return Response::text(200, request.remote);
    });
    router.add("POST", "/n", [&](Request request) -> awaitable<Response> {
        ++requests;
        co_return Response::text(200, request.remote);
    });
    return router;
}

/// Answers each connection with fixed bytes and closes it.
class Scripted {
public:
    explicit Scripted(std::vector<std::string> answers) : acceptor_(io_, {asio::ip::make_address("127.0.0.1"), 0}) {
        port_ = acceptor_.local_endpoint().port();
        thread_ = std::thread([this, answers] {
            for (auto const& answer : answers) {
                boost::system::error_code error;
                asio::ip::tcp::socket socket(io_);
                acceptor_.accept(socket, error);
                if (error) return;
                char buffer[65536];
                socket.read_some(asio::buffer(buffer), error);
                socket.send(asio::buffer(answer), 0, error);
            }
        });
    }
    ~Scripted() { thread_.join(); }
    std::string url() const { return fmt::format("http://127.0.0.1:{}/", port_); }

private:
    asio::io_context io_;
    asio::ip::tcp::acceptor acceptor_;
    std::uint16_t port_ = 0;
    std::thread thread_;
};

} // namespace

TEST(HttpClient, UsesAConnectionAgain) {
    int requests = 0;
    Served served(counting(requests));
    asio::io_context io;
    HttpClient client(io.get_executor());
    auto first = run(io, client.request("GET", served.url("/n"), {}, {}, 5s));
    auto second = run(io, client.request("POST", served.url("/n"), {}, "x", 5s));
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->body, second->body) << "another port: another connection";
}

TEST(HttpClient, GoesOnWhenTheServerWasRestarted) {
    int requests = 0;
    asio::io_context io;
    HttpClient client(io.get_executor());
    std::uint16_t port = 0;
    {
        Served served(counting(requests));
        port = served.port();
        ASSERT_TRUE(run(io, client.request("POST", served.url("/n"), {}, "x", 5s)));
    }
    Router router = counting(requests);
    asio::io_context other(1);
    HttpServer server(other.get_executor(), router);
    auto bound = server.listen("127.0.0.1", port);
    ASSERT_TRUE(bound) << bound.error().message();
    std::thread thread([&] { other.run(); });
    auto answer = run(io, client.request("POST", bound->url + "/n", {}, "x", 5s));
    EXPECT_TRUE(answer) << answer.error().message();
    EXPECT_EQ(requests, 2);
    asio::co_spawn(other, server.stop(1s), [](std::exception_ptr) {});
    thread.join();
}

TEST(HttpClient, SaysWhatItCouldNotReach) {
    auto refused = http_request("GET", "http://127.0.0.1:1/x");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::Unavailable);
    EXPECT_EQ(refused.error().message(), "connect to 127.0.0.1:1: Connection refused");
    auto socket = http_request("GET", unix_url("/nowhere/x.sock", "/"));
    ASSERT_FALSE(socket);
    EXPECT_NE(socket.error().message().find("/nowhere/x.sock"), std::string::npos);
    EXPECT_EQ(http_request("GET", "gopher://x").error().kind(), ErrorKind::Invalid);
}

TEST(HttpClient, HasALimit) {
    Router router;
    router.add("GET", "/never", [](Request) -> awaitable<Response> {
        co_await pause(1h);
        co_return Response{};
    });
    Served served(std::move(router));
    auto answer = http_request("GET", served.url("/never"), {}, {}, 100ms);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().kind(), ErrorKind::Timeout);
    served.stop(10ms);
}

TEST(HttpClient, ReadsBodiesOfAllKinds) {
    Scripted server({"HTTP/1.1 200 OK\r\n\r\nuntil the end",
                     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n5\r\npedia\r\n0\r\n\r\n",
                     "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 18\r\n\r\n{\"detail\":\"nope\"}\n",
                     "HTTP/1.1 204 No Content\r\n\r\n"});
    EXPECT_EQ(http_request("GET", server.url())->body, "until the end");
    EXPECT_EQ(http_request("GET", server.url())->body, "wikipedia");
    auto missing = http_request("GET", server.url());
    EXPECT_EQ(missing->status, 404);
    EXPECT_EQ(missing->detail(), "nope");
    EXPECT_EQ(http_request("GET", server.url())->status, 204);
}

TEST(HttpClient, AnAnswerThatIsCutOffIsAnError) {
    Scripted server({"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "", "SSH-2.0-OpenSSH\r\n"});
    for (int i = 0; i < 3; ++i) {
        auto answer = http_request("GET", server.url());
        ASSERT_FALSE(answer);
        EXPECT_EQ(answer.error().kind(), ErrorKind::Unavailable) << answer.error().message();
    }
}
