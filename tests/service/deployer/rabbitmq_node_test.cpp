#include "deployer/rabbitmq.hpp"

#include "deployer/ports.hpp"
#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/queue/broker.hpp"
#include "lib/process/process.hpp"

#include <chrono>
#include <csignal>
#include <fstream>
#include <gtest/gtest.h>
#include <sstream>
#include <thread>

namespace ocrctl::deployer {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;

/// Addresses (hex, as /proc has them) on which something listens at this port.
std::vector<std::string> listeners(int port) {
    std::vector<std::string> found;
    for (char const* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
        std::ifstream in(table);
        std::string line;
        while (std::getline(in, line)) {
            std::istringstream fields(line);
            std::string slot, local, remote, state;
            fields >> slot >> local >> remote >> state;
            auto colon = local.rfind(':');
            if (state == "0A" && colon != std::string::npos && std::stoi(local.substr(colon + 1), nullptr, 16) == port) found.push_back(local.substr(0, colon));
        }
    }
    return found;
}

class RabbitMqNodeTest : public testing::Test {
protected:
    void SetUp() override {
        auto programs = find_rabbitmq();
        if (!programs) GTEST_SKIP() << rabbitmq_missing();
        char pattern[] = "/tmp/ocrctl-rabbit-XXXXXX";
        folder_ = mkdtemp(pattern);
        node_.programs = *programs;
        node_.folder = folder_ / "rabbitmq";
        node_.logs = folder_ / "logs";
        node_.port = choose_port();
        node_.dist_port = choose_port();
        node_.epmd_port = choose_port();
        deployment_ = new_uuid();
        write();
    }
    void TearDown() override {
        if (deployment_.empty()) return;
        std::vector<process::Identity> left;
        for (auto const& found : process::scan(deployment_)) left.push_back(found.identity);
        (void)process::stop_processes(left, seconds(1));
        remove_tree(folder_);
    }

    void write() {
        auto written = write_rabbitmq_files(node_, {"ocrctl", Secret("pw"), Secret("key")}, Secret("cookiecookie"));
        ASSERT_TRUE(written) << written.error().message();
    }
    /// Does the node let this user into this vhost?
    bool enters(std::string const& user, Secret const& password, std::string const& vhost) {
        queue::BrokerUrl url;
        url.port = node_.port;
        url.user = user;
        url.password = password;
        url.vhost = vhost;
        return queue::Session::open(url, "test").has_value();
    }

    void start() {
        auto unit = rabbitmq_unit(node_);
        process::SpawnOptions options;
        options.argv = unit.argv;
        options.env = unit.env;
        options.env[process::kDeploymentMark] = deployment_;
        options.env[process::kEntryMark] = unit.entry;
        options.cwd = unit.cwd;
        options.log = unit.log;
        auto child = process::spawn(options);
        ASSERT_TRUE(child) << child.error().message();
        child_ = std::move(*child);
        auto deadline = std::chrono::steady_clock::now() + seconds(90);
        while (listeners(node_.port).empty()) {
            ASSERT_TRUE(process::alive(child_.identity)) << *read_file(unit.log);
            ASSERT_LT(std::chrono::steady_clock::now(), deadline) << *read_file(unit.log);
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
    }
    void stop() {
        (void)process::signal_one(child_.identity, SIGTERM);
        auto status = process::wait_for(child_.pidfd.get(), seconds(60));
        ASSERT_TRUE(status) << "SIGTERM does not end it";
        EXPECT_TRUE(status->success()) << status->text();
    }

    fs::path folder_;
    RabbitMq node_;
    std::string deployment_;
    process::Child child_;
};

TEST_F(RabbitMqNodeTest, IsOneProcessThatListensOnLoopbackAloneAndStopsOnTermAndComesBackEmptiedToo) {
    start();
    auto row = process::row_of(child_.identity.pid);
    ASSERT_TRUE(row);
    EXPECT_EQ(row->command, "beam.smp") << "the script became the Erlang machine";
    for (int port : {node_.port, node_.dist_port, node_.epmd_port}) {
        auto addresses = listeners(port);
        EXPECT_FALSE(addresses.empty()) << port;
        for (auto const& address : addresses) EXPECT_TRUE(address == "0100007F" || address == "00000000000000000000000001000000") << port << " listens on " << address;
    }
    stop();
    // Its data goes while it is down; user and vhost come back from the definitions.
    remove_tree(node_.folder / "data");
    start();
    auto log = read_file(node_.logs / "rabbitmq.log");
    ASSERT_TRUE(log) << log.error().message();
    stop();
    auto left = process::scan(deployment_);
    ASSERT_LE(left.size(), 1u);
    if (!left.empty()) {
        EXPECT_EQ(left[0].command, "epmd") << "what survives a stop is named in the unit";
    }
}

TEST_F(RabbitMqNodeTest, ForeignWorkersHaveVhostsOfTheirOwnThatComeAndGoWhileItRuns) {
    auto vhost = [](int n) { return worker_vhost(fmt::format("h/ocrd-dummy-1/shard-0/rep-{}", n)); };
    auto own = [&](int n) { return worker_password(Secret("key"), vhost(n)); };
    node_.worker_vhosts = {vhost(0)};
    write();
    start();
    ASSERT_TRUE(apply_rabbitmq_definitions(node_, false)); // it has loaded them
    EXPECT_TRUE(enters(vhost(0), own(0), vhost(0)));
    EXPECT_TRUE(enters("ocrctl", Secret("pw"), vhost(0)));
    EXPECT_TRUE(enters("ocrctl", Secret("pw"), "/"));
    EXPECT_FALSE(enters(vhost(0), own(0), "/"));
    EXPECT_FALSE(enters(vhost(0), own(1), vhost(0)));

    node_.worker_vhosts = {vhost(1), vhost(2)};
    write();
    auto begin = std::chrono::steady_clock::now();
    auto applied = apply_rabbitmq_definitions(node_, true);
    ASSERT_TRUE(applied) << applied.error().message();
    fmt::print("applied in {} ms\n", std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begin).count());
    EXPECT_TRUE(enters(vhost(1), own(1), vhost(1)));
    EXPECT_TRUE(enters("ocrctl", Secret("pw"), vhost(2)));
    EXPECT_FALSE(enters(vhost(1), own(1), vhost(2)));
    EXPECT_FALSE(enters("ocrctl", Secret("pw"), vhost(0)));
    EXPECT_FALSE(enters(vhost(0), own(0), vhost(1)));
    begin = std::chrono::steady_clock::now();
    EXPECT_TRUE(apply_rabbitmq_definitions(node_, true));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(100)) << "what it has is not told again";
    stop();
}

} // namespace
} // namespace ocrctl::deployer
