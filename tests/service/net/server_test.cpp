#include "tests/service/net/run.hpp"

#include <atomic>
#include <filesystem>
#include <sys/stat.h>

using namespace ocrctl;
using namespace ocrctl::net;
using namespace ocrctl::net::test;

namespace {

awaitable<Response> echo(Request request) {
    Json body;
    body["method"] = request.method;
    body["path"] = request.path;
    body["id"] = request.param("id");
    body["q"] = request.query_or("q");
    body["size"] = request.body.size();
    body["body"] = request.body.substr(0, 100);
    body["x"] = std::string(request.headers.get("x-test"));
    co_return Response::json(200, body);
}

awaitable<Response> breaks(Request) {
    throw std::runtime_error("the roof is on fire");
    co_return Response{};
}

std::atomic<int> slow_requests = 0;

awaitable<Response> slow(Request request) {
    ++slow_requests;
    co_await pause(std::chrono::milliseconds(std::stoi(request.query_or("ms"))));
    co_return Response::text(200, "slow");
}

Router example() {
    Router router;
    router.add("GET", "/echo/{id}", echo);
    router.add("POST", "/echo/{id}", echo);
    router.add("GET", "/breaks", breaks);
    router.add("GET", "/slow", slow);
    router.add("GET", "/big", [](Request request) -> awaitable<Response> {
        co_return Response::text(200, std::string(static_cast<std::size_t>(std::stoul(request.query_or("n"))), 'x'));
    });
    return router;
}

} // namespace

TEST(HttpServer, AnswersWithParametersQueryHeadersAndBody) {
    Served served(example());
    auto answer = http_request("POST", served.url("/echo/a%20b?q=1%2B1"), {{"X-Test", "yes"}}, "hello");
    ASSERT_TRUE(answer) << answer.error().message();
    EXPECT_EQ(answer->status, 200);
    EXPECT_EQ(answer->content_type, "application/json");
    auto body = *parse_json(answer->body);
    EXPECT_EQ(body["id"], "a b");
    EXPECT_EQ(body["q"], "1+1");
    EXPECT_EQ(body["body"], "hello");
    EXPECT_EQ(body["x"], "yes");
}

TEST(HttpServer, AnswersPipelinedRequestsInOrder) {
    Served served(example());
    Raw raw(served.port());
    std::string all;
    for (int i = 0; i < 50; ++i) all += "GET /echo/n" + std::to_string(i) + "n HTTP/1.1\r\nHost: x\r\n\r\n";
    raw.send("GET /slow?ms=30 HTTP/1.1\r\nHost: x\r\n\r\n" + all);
    auto answers = raw.read_until("n49n");
    EXPECT_EQ(count(answers, "HTTP/1.1 200 OK"), 51u);
    std::size_t last = answers.find("slow");
    for (int i = 0; i < 50; ++i) {
        auto at = answers.find("n" + std::to_string(i) + "n");
        ASSERT_NE(at, std::string::npos) << i;
        EXPECT_GT(at, last) << i;
        last = at;
    }
}

TEST(HttpServer, ReadsARequestThatArrivesByteByByte) {
    Served served(example());
    Raw raw(served.port());
    for (char c : std::string("POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")) raw.send(std::string(1, c));
    EXPECT_NE(raw.read_until("abcde").find("200 OK"), std::string::npos);
}

TEST(HttpServer, ReadsChunkedBodies) {
    Served served(example());
    Raw raw(served.port());
    raw.send("POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    raw.send("4\r\ndefg\r\n0\r\n\r\nGET /echo/next HTTP/1.1\r\nHost: x\r\n\r\n");
    auto answers = raw.read_until("next");
    EXPECT_NE(answers.find("abcdefg"), std::string::npos) << answers;
    EXPECT_EQ(count(answers, "200 OK"), 2u);
}

TEST(HttpServer, SendsContinueBeforeTheBodyOfAClientThatWaitsForIt) {
    Served served(example());
    Raw raw(served.port());
    raw.send("POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    EXPECT_EQ(raw.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    raw.send("abc");
    EXPECT_NE(raw.read_until("abc").find("200 OK"), std::string::npos);
}

TEST(HttpServer, ClosesWhenAskedToAndForHttp10) {
    Served served(example());
    Raw one(served.port());
    one.send("GET /echo/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    EXPECT_NE(one.read().find("connection: close"), std::string::npos); // read() returns at the end of the stream
    Raw old(served.port());
    old.send("GET /echo/x HTTP/1.0\r\n\r\n");
    auto answer = old.read();
    EXPECT_NE(answer.find("200 OK"), std::string::npos);
    EXPECT_EQ(answer.find("<timeout>"), std::string::npos);
}

TEST(HttpServer, RefusesABodyThatIsTooLargeAndTheClientGetsToSeeIt) {
    ServerOptions options;
    options.max_body = 1000;
    Served served(example(), options);
    auto answer = http_request("POST", served.url("/echo/x"), {}, std::string(5u << 20, 'x'));
    ASSERT_TRUE(answer) << answer.error().message();
    EXPECT_EQ(answer->status, 413);
    Raw raw(served.port());
    raw.send("POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n" + std::string(0x1000, 'x') + "\r\n");
    EXPECT_NE(raw.read_until("larger").find("413"), std::string::npos);
}

TEST(HttpServer, RefusesAHeaderThatIsTooLarge) {
    Served served(example());
    Raw raw(served.port());
    raw.send("GET /echo/x HTTP/1.1\r\nHost: x\r\nX-Long: " + std::string(100000, 'x') + "\r\n\r\n");
    EXPECT_NE(raw.read().find("431"), std::string::npos);
}

TEST(HttpServer, AnswersRubbishWith400) {
    Served served(example());
    Raw raw(served.port());
    raw.send("\x16\x03\x01\x02 this is not HTTP\r\n\r\n");
    EXPECT_NE(raw.read().find("HTTP/1.1 400 Bad Request"), std::string::npos);
}

TEST(HttpServer, AnExceptionInAHandlerIs500WithDetailAndEndsNothingElse) {
    Served served(example());
    auto answer = http_request("GET", served.url("/breaks"));
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->status, 500);
    EXPECT_EQ(answer->detail(), "internal error: the roof is on fire");
    EXPECT_EQ(http_request("GET", served.url("/echo/x"))->status, 200);
}

TEST(HttpServer, ASlowHandlerHoldsUpNobodyElse) {
    Served served(example());
    Raw slow_one(served.port());
    slow_one.send("GET /slow?ms=1500 HTTP/1.1\r\nHost: x\r\n\r\n");
    auto begun = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) EXPECT_EQ(http_request("GET", served.url("/echo/x"))->status, 200);
    EXPECT_LT(std::chrono::steady_clock::now() - begun, 1400ms);
    EXPECT_NE(slow_one.read_until("\r\nslow").find("200"), std::string::npos);
}

TEST(HttpServer, TooManyConnectionsAreRefusedWith503) {
    ServerOptions options;
    options.max_connections = 2;
    Served served(example(), options);
    Raw one(served.port()), two(served.port());
    one.send("GET /echo/x HTTP/1.1\r\nHost: x\r\n\r\n");
    two.send("GET /echo/x HTTP/1.1\r\nHost: x\r\n\r\n");
    one.read_until("}");
    two.read_until("}");
    Raw three(served.port());
    EXPECT_NE(three.read().find("503"), std::string::npos);
    one.close();
    // The place becomes free as soon as the server has noticed.
    for (auto end = std::chrono::steady_clock::now() + 5s; std::chrono::steady_clock::now() < end;) {
        auto answer = http_request("GET", served.url("/echo/x"));
        if (answer && answer->status == 200) return;
    }
    FAIL() << "the place did not become free";
}

TEST(HttpServer, CutsAClientThatDoesNotFinishItsRequest) {
    ServerOptions options;
    options.read_timeout = 1s;
    Served served(example(), options);
    Raw raw(served.port());
    raw.send("GET /echo/x HT");
    auto begun = std::chrono::steady_clock::now();
    EXPECT_EQ(raw.read(), "");
    EXPECT_LT(std::chrono::steady_clock::now() - begun, 4s);
}

TEST(HttpServer, NamesThePortThatIsInUse) {
    Served served(example());
    auto second = served.there([&] { return served.server().listen("127.0.0.1", served.port()); });
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().kind(), ErrorKind::Conflict);
    EXPECT_EQ(second.error().message(), fmt::format("port {} on 127.0.0.1 is in use", served.port()));
}

TEST(HttpServer, ServesAUnixSocketReplacesAStaleOneAndRemovesIt) {
    auto folder = std::filesystem::temp_directory_path() / ("ocrctl-net-" + random_hex(6));
    std::filesystem::create_directories(folder);
    auto path = folder / "s.sock";
    {
        Fd stale(::socket(AF_UNIX, SOCK_STREAM, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
        ASSERT_EQ(::bind(stale.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    }
    {
        Served served(example());
        auto listening = served.there([&] { return served.server().listen_unix(path, 0660); });
        ASSERT_TRUE(listening) << listening.error().message();
        struct stat info{};
        ASSERT_EQ(::stat(path.c_str(), &info), 0);
        EXPECT_EQ(info.st_mode & 0777, 0660u);
        auto answer = http_request("GET", unix_url(path.native(), "/echo/u"));
        ASSERT_TRUE(answer) << answer.error().message();
        EXPECT_EQ((*parse_json(answer->body))["id"], "u");
        auto second = served.there([&] { return served.server().listen_unix(path); });
        ASSERT_FALSE(second);
        EXPECT_EQ(second.error().kind(), ErrorKind::Conflict);
    }
    EXPECT_FALSE(std::filesystem::exists(path));
    std::filesystem::remove_all(folder);
}

TEST(HttpServer, StoppingLetsTheRequestUnderWayFinish) {
    Served served(example());
    int const before = slow_requests;
    Raw idle(served.port()), raw(served.port());
    raw.send("GET /echo/first HTTP/1.1\r\nHost: x\r\n\r\n");
    raw.read_until("first");
    raw.send("GET /slow?ms=300 HTTP/1.1\r\nHost: x\r\n\r\n");
    while (slow_requests == before) std::this_thread::yield();
    served.stop(5s);
    EXPECT_NE(raw.read().find("\r\nslow"), std::string::npos);
    EXPECT_EQ(idle.read(), "");
    EXPECT_FALSE(http_request("GET", served.url("/echo/x")));
}

TEST(HttpServer, StoppingCancelsWhatOutlastsTheGrace) {
    Served served(example());
    int const before = slow_requests;
    Raw raw(served.port());
    raw.send("GET /slow?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n");
    while (slow_requests == before) std::this_thread::yield();
    auto begun = std::chrono::steady_clock::now();
    served.stop(200ms);
    EXPECT_LT(std::chrono::steady_clock::now() - begun, 3s);
}

TEST(HttpServer, SurvivesClientsThatVanish) {
    Served served(example());
    for (int i = 0; i < 50; ++i) {
        Raw raw(served.port());
        raw.send("GET /big?n=5000000 HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    auto answer = http_request("GET", served.url("/big?n=3000000"));
    ASSERT_TRUE(answer) << answer.error().message();
    EXPECT_EQ(answer->body.size(), 3000000u);
}
