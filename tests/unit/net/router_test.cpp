#include "lib/net/router.hpp"

#include <gtest/gtest.h>

using namespace ocrctl;
using namespace ocrctl::net;

namespace {

awaitable<Response> nothing(Request) { co_return Response{}; }
awaitable<void> no_talk(std::shared_ptr<WebSocket>, Request) { co_return; }

Request get(std::string target, std::string method = "GET") {
    Request request;
    request.method = std::move(method);
    request.target = target;
    request.path = target.substr(0, target.find('?'));
    request.headers.add("Host", "server:8080");
    return request;
}

Router example() {
    Router router;
    router.add("GET", "/", nothing);
    router.add("GET", "/processor/job/{id}", nothing);
    router.add("POST", "/workflow/run", nothing);
    router.add("GET", "/workflow/{id}", nothing);
    router.add("PUT", "/workflow/{id}", nothing);
    router.add("GET", "/files/{name*}", nothing);
    router.add_websocket("/talk", no_talk);
    return router;
}

} // namespace

TEST(Router, FindsARouteAndItsDecodedParameters) {
    auto router = example();
    auto match = router.find(get("/processor/job/a%2Fb%20c"), false);
    ASSERT_NE(match.handler, nullptr);
    EXPECT_EQ(match.params["id"], "a/b c");
    EXPECT_NE(router.find(get("/"), false).handler, nullptr);
    EXPECT_EQ(router.find(get("/files/a/b/c%20d"), false).params["name"], "a/b/c d");
}

TEST(Router, MethodsOfOneAddressMayGoToDifferentRoutes) {
    auto router = example();
    EXPECT_EQ(router.find(get("/workflow/run"), false).params["id"], "run");
    EXPECT_TRUE(router.find(get("/workflow/run", "POST"), false).params.empty());
}

TEST(Router, AnUnknownPathIs404AsOcrdSaysIt) {
    for (auto path : {"/nothing", "/processor/job", "/processor/job/", "/processor/job/a/b", "/files"}) {
        auto router = example();
        auto match = router.find(get(path), false);
        ASSERT_TRUE(match.refusal) << path;
        EXPECT_EQ(match.refusal->status, 404) << path;
        EXPECT_EQ(match.refusal->body, R"({"detail":"Not Found"})");
    }
}

TEST(Router, AWrongMethodIs405AndNamesTheRightOnes) {
    auto router = example();
    auto match = router.find(get("/workflow/x", "DELETE"), false);
    ASSERT_TRUE(match.refusal);
    EXPECT_EQ(match.refusal->status, 405);
    EXPECT_EQ(match.refusal->headers.get("Allow"), "GET, PUT");
    EXPECT_EQ(match.refusal->body, R"({"detail":"Method Not Allowed"})");
    EXPECT_EQ(router.find(get("/", "HEAD"), false).refusal->status, 405);
}

TEST(Router, ATrailingSlashLeadsToThePathWithoutIt) {
    auto router = example();
    auto match = router.find(get("/workflow/run/?page_wise=true", "POST"), false);
    ASSERT_TRUE(match.refusal);
    EXPECT_EQ(match.refusal->status, 307);
    EXPECT_EQ(match.refusal->headers.get("location"), "http://server:8080/workflow/run?page_wise=true");
}

TEST(Router, AWebSocketAddressWithoutUpgradeSaysWhatIsMissing) {
    auto router = example();
    EXPECT_EQ(router.find(get("/talk"), false).refusal->status, 426);
    EXPECT_NE(router.find(get("/talk"), true).websocket, nullptr);
}
