#include "deployer/rabbitmq.hpp"

#include "lib/model/json.hpp"

#include <gtest/gtest.h>

namespace ocrctl::deployer {
namespace {

RabbitMq node() {
    RabbitMq node;
    node.programs = "/usr/lib/rabbitmq/bin";
    node.folder = "/state/demo/rabbitmq";
    node.logs = "/state/demo/logs";
    node.port = 25672;
    node.dist_port = 25673;
    node.epmd_port = 25674;
    return node;
}

TEST(RabbitMqFiles, ListensOnLoopbackAloneUnlessAnotherAddressIsWanted) {
    EXPECT_NE(rabbitmq_conf(node()).find("listeners.tcp.1 = 127.0.0.1:25672\n"), std::string::npos);
    EXPECT_EQ(rabbitmq_conf(node()).find("listeners.tcp.2"), std::string::npos);
    auto wide = node();
    wide.address = "192.0.2.1";
    EXPECT_NE(rabbitmq_conf(wide).find("listeners.tcp.1 = 127.0.0.1:25672\nlisteners.tcp.2 = 192.0.2.1:25672\n"), std::string::npos) << rabbitmq_conf(wide);
}

TEST(RabbitMqFiles, HoldNoPasswordInClearText) {
    auto text = rabbitmq_definitions(node(), "ocrctl", Secret("very-secret"), "abcd");
    EXPECT_EQ(text.find("very-secret"), std::string::npos);
    auto definitions = parse_json(text);
    ASSERT_TRUE(definitions);
    // base64("abcd" + sha256("abcdvery-secret")) is 48 digits for 36 bytes, and starts with the salt.
    auto hash = (*definitions)["users"][0]["password_hash"].get<std::string>();
    EXPECT_EQ(hash.size(), 48u);
    EXPECT_TRUE(hash.starts_with("YWJjZ")) << hash;
}

TEST(RabbitMqUnit, IsOneForegroundProcessWithoutSecretsThatTakesEpmdAlong) {
    auto unit = rabbitmq_unit(node());
    EXPECT_EQ(unit.argv, std::vector<std::string>{"/usr/lib/rabbitmq/bin/rabbitmq-server"});
    EXPECT_EQ(unit.also, std::vector<std::string>{"epmd"});
    EXPECT_EQ(unit.env.at("ERL_EPMD_ADDRESS"), "127.0.0.1");
    EXPECT_EQ(unit.env.at("RABBITMQ_CONF_ENV_FILE"), "/state/demo/rabbitmq/rabbitmq-env.conf");
    EXPECT_NE(unit.env.at("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS").find("inet_dist_use_interface {127,0,0,1}"), std::string::npos);
    EXPECT_EQ(unit.ready.address, "127.0.0.1:25672");
}

} // namespace
} // namespace ocrctl::deployer
