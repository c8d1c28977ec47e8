#include "deployer/rabbitmq.hpp"

#include "lib/model/json.hpp"

#include <gtest/gtest.h>
#include <set>

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

TEST(RabbitMqFiles, TakesNoLongJobAwayFromItsConsumer) {
    auto conf = rabbitmq_conf(node());
    auto at = conf.find("consumer_timeout = ");
    ASSERT_NE(at, std::string::npos);
    EXPECT_GE(std::stoll(conf.substr(at + 19)), 86'400'000)
        << "in milliseconds; RabbitMQ's own 30 minutes end OCR-D's Workers";
}

TEST(RabbitMqFiles, ListensOnLoopbackAloneUnlessAnotherAddressIsWanted) {
    EXPECT_NE(rabbitmq_conf(node()).find("listeners.tcp.1 = 127.0.0.1:25672\n"), std::string::npos);
    EXPECT_EQ(rabbitmq_conf(node()).find("listeners.tcp.2"), std::string::npos);
    auto wide = node();
    wide.address = "192.0.2.1";
    EXPECT_NE(rabbitmq_conf(wide).find("listeners.tcp.1 = 127.0.0.1:25672\nlisteners.tcp.2 = 192.0.2.1:25672\n"), std::string::npos) << rabbitmq_conf(wide);
}

TEST(RabbitMqFiles, HoldNoPasswordInClearText) {
    auto text = rabbitmq_definitions(node(), {"ocrctl", Secret("very-secret"), Secret("worker-key")});
    EXPECT_EQ(text.find("very-secret"), std::string::npos);
    auto definitions = parse_json(text);
    ASSERT_TRUE(definitions);
    // 4 bytes of salt and a SHA-256 in base64.
    EXPECT_EQ((*definitions)["users"][0]["password_hash"].get<std::string>().size(), 48u);
}

TEST(RabbitMqFiles, GiveEachForeignWorkerAVhostThatOnlyItAndTheServerMayEnter) {
    auto wanted = node();
    wanted.worker_vhosts = {worker_vhost("h/g/shard-0/rep-0"), worker_vhost("h/g/shard-0/rep-1")};
    EXPECT_EQ(wanted.worker_vhosts[0], "worker~h~g~shard-0~rep-0");
    Secret key("worker-key");
    auto definitions = parse_json(rabbitmq_definitions(wanted, {"ocrctl", Secret("very-secret"), key}));
    ASSERT_TRUE(definitions);
    EXPECT_EQ((*definitions)["vhosts"].size(), 3u);
    EXPECT_EQ((*definitions)["users"][1]["name"], wanted.worker_vhosts[0]);
    EXPECT_EQ((*definitions)["users"][1]["tags"], "");
    EXPECT_NE((*definitions)["users"][1]["password_hash"], (*definitions)["users"][2]["password_hash"]);
    std::multiset<std::string> may;
    for (auto const& one : (*definitions)["permissions"]) may.insert(one["user"].get<std::string>() + " " + one["vhost"].get<std::string>());
    EXPECT_EQ(may, (std::multiset<std::string>{"ocrctl /", "ocrctl " + wanted.worker_vhosts[0], "ocrctl " + wanted.worker_vhosts[1],
                                               wanted.worker_vhosts[0] + " " + wanted.worker_vhosts[0], wanted.worker_vhosts[1] + " " + wanted.worker_vhosts[1]}));
    EXPECT_NE(worker_password(key, wanted.worker_vhosts[0]).reveal(), worker_password(key, wanted.worker_vhosts[1]).reveal());
    EXPECT_EQ(worker_password(key, wanted.worker_vhosts[0]).reveal().size(), 48u);
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
