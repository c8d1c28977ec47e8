#include "lib/net/url.hpp"

#include <gtest/gtest.h>

using namespace ocrctl;
using namespace ocrctl::net;

TEST(Url, HasHostPortAndTarget) {
    auto url = parse_url("http://ocr1:8080/processor/job/x?y=1#z");
    ASSERT_TRUE(url) << url.error().message();
    EXPECT_EQ(url->host, "ocr1");
    EXPECT_EQ(url->port, 8080);
    EXPECT_EQ(url->target, "/processor/job/x?y=1");
    EXPECT_EQ(url->authority(), "ocr1:8080");
}

TEST(Url, TakesIpv6AddressesInBrackets) {
    auto url = parse_url("http://[::1]:9/");
    ASSERT_TRUE(url);
    EXPECT_EQ(url->host, "::1");
    EXPECT_EQ(url->authority(), "[::1]:9");
}

TEST(Url, NamesAUnixSocketByItsEncodedPath) {
    auto url = parse_url(unix_url("/run/a b/x.sock", "/mets?q=1"));
    ASSERT_TRUE(url);
    EXPECT_EQ(url->socket, "/run/a b/x.sock");
    EXPECT_EQ(url->target, "/mets?q=1");
}

TEST(Url, WithoutAPathMeansTheRoot) {
    EXPECT_EQ(parse_url("http://h")->target, "/");
    EXPECT_EQ(parse_url("http://h?a=b")->target, "/?a=b");
    EXPECT_EQ(parse_url("http://h")->port, 80);
}

TEST(Url, RefusesWhatItCannotUseAndSaysWhy) {
    for (auto text : {"", "h:80", "ftp://h/", "https://h/", "http:///x", "http://h:0/", "http://h:70000/", "http://h:x/", "http://[::1/", "http://h/a b"}) {
        auto url = parse_url(text);
        ASSERT_FALSE(url) << text;
        EXPECT_EQ(url.error().kind(), ErrorKind::Invalid);
    }
    EXPECT_NE(parse_url("https://h/").error().message().find("TLS"), std::string::npos);
}

TEST(Percent, DecodesEscapesAndLeavesBrokenOnes) {
    EXPECT_EQ(percent_decode("a%20b%C3%BC%zz%4"), "a b\xC3\xBC%zz%4");
    EXPECT_EQ(percent_decode("a+b"), "a+b");
    EXPECT_EQ(percent_decode("a+b", true), "a b");
}

TEST(Percent, EncodesWhatItDecodes) {
    std::string all;
    for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
    EXPECT_EQ(percent_decode(percent_encode(all)), all);
}

TEST(Query, GivesDecodedPairsInOrder) {
    auto query = parse_query("a=1&&b=x%26y+z&a=2&c");
    ASSERT_EQ(query.size(), 4u);
    EXPECT_EQ(query[0], std::pair(std::string("a"), std::string("1")));
    EXPECT_EQ(query[1], std::pair(std::string("b"), std::string("x&y z")));
    EXPECT_EQ(query[2].second, "2");
    EXPECT_EQ(query[3], std::pair(std::string("c"), std::string()));
}
