#include "lib/queue/broker.hpp"

#include <gtest/gtest.h>

namespace ocrctl::queue {
namespace {

TEST(BrokerUrl, ReadsAllParts) {
    auto url = parse_broker_url("amqp://li%40b:p%2Fw%3A@mq.example:5673/vh%2F1");
    ASSERT_TRUE(url) << url.error().message();
    EXPECT_EQ(url->user, "li@b");
    EXPECT_EQ(url->password.reveal(), "p/w:");
    EXPECT_EQ(url->host, "mq.example");
    EXPECT_EQ(url->port, 5673);
    EXPECT_EQ(url->vhost, "vh/1");
}

TEST(BrokerUrl, HasRabbitMqsDefaults) {
    auto url = parse_broker_url("amqp://localhost");
    ASSERT_TRUE(url);
    EXPECT_EQ(url->user, "guest");
    EXPECT_EQ(url->port, 5672);
    EXPECT_EQ(url->vhost, "/");
    EXPECT_EQ(parse_broker_url("amqp://u:p@localhost:5672/")->vhost, "/");
    EXPECT_EQ(parse_broker_url("amqp://u:p@localhost:5672/%2F")->vhost, "/");
    EXPECT_EQ(parse_broker_url("amqp://u:p@localhost:5672//")->vhost, "/");
}

TEST(BrokerUrl, ReadsIpv6AndPasswordsWithAtSigns) {
    auto url = parse_broker_url("amqp://u:p@ss@[::1]:5673/v");
    ASSERT_TRUE(url);
    EXPECT_EQ(url->host, "::1");
    EXPECT_EQ(url->port, 5673);
    EXPECT_EQ(url->password.reveal(), "p@ss");
}

TEST(BrokerUrl, SaysWhatIsWrong) {
    EXPECT_EQ(parse_broker_url("http://x").error().message(), "broker address: must begin with amqp://");
    EXPECT_EQ(parse_broker_url("amqp://x:port").error().message(), "broker address: port must be a number from 1 to 65535, got \"port\"");
    EXPECT_EQ(parse_broker_url("amqp://u:p@:5672").error().message(), "broker address: no host");
    EXPECT_EQ(parse_broker_url("amqp://u:%zz@h").error().message(), "broker address: bad % sequence in user or password");
}

TEST(BrokerUrl, NeverShowsThePasswordButWritesItBack) {
    auto url = parse_broker_url("amqp://user:s%40cret@h:1/v%2Fx");
    ASSERT_TRUE(url);
    EXPECT_EQ(url->shown(), "amqp://h:1/v%2Fx");
    EXPECT_EQ(url->full().reveal(), "amqp://user:s%40cret@h:1/v%2Fx");
}

} // namespace
} // namespace ocrctl::queue
