#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/ledger/paths.hpp"

#include "lib/base/ids.hpp"

#include <csignal>
#include <fstream>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <thread>

namespace ocrctl::ledger {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

class LedgerTest : public testing::Test {
protected:
    void SetUp() override { ASSERT_TRUE(make_folder(folder).has_value()); }
    void TearDown() override { remove_tree(folder); }
    fs::path folder = fs::temp_directory_path() / ("ocrctl-test-" + random_hex(6));
    fs::path file = folder / "ledger.jsonl";
};

TEST_F(LedgerTest, ReplaysTheLifeOfAnEntry) {
    auto ledger = Ledger::open(file);
    ASSERT_TRUE(ledger.has_value());
    ASSERT_TRUE(ledger->append(host("h1", {{"address", "10.0.0.1"}})).has_value());
    ASSERT_TRUE(ledger->append(intent("h1/w/shard-0/rep-0", "worker", "h1", {{"argv", {"ocrctl", "worker"}}})).has_value());
    auto state = ledger->replay();
    ASSERT_TRUE(state.has_value());
    auto const* entry = state->find("h1/w/shard-0/rep-0");
    ASSERT_NE(entry, nullptr);
    EXPECT_TRUE(entry->open());
    EXPECT_FALSE(entry->identity.has_value());
    EXPECT_EQ(entry->spec["argv"][1], "worker");

    process::Identity who{"boot", 4711, 99};
    ASSERT_TRUE(ledger->append({identity(entry->entry, who), ready(entry->entry), path(entry->entry, "/tmp/x.sock")}).has_value());
    state = ledger->replay();
    entry = state->find("h1/w/shard-0/rep-0");
    EXPECT_EQ(entry->identity, who);
    EXPECT_TRUE(entry->ready);
    EXPECT_EQ(entry->paths, std::vector<std::string>{"/tmp/x.sock"});

    ASSERT_TRUE(ledger->append(exited(entry->entry, "ended with code 1")).has_value());
    ASSERT_TRUE(ledger->append(stopped(entry->entry)).has_value());
    ASSERT_TRUE(ledger->append(closing()).has_value());
    state = ledger->replay();
    entry = state->find("h1/w/shard-0/rep-0");
    EXPECT_FALSE(entry->open());
    EXPECT_EQ(entry->status, "ended with code 1");
    EXPECT_TRUE(state->closing);
    EXPECT_EQ(state->hosts.at("h1")["address"], "10.0.0.1");

    ASSERT_TRUE(ledger->append(intent(entry->entry, "worker", "h1", {})).has_value()); // started again
    state = ledger->replay();
    EXPECT_TRUE(state->find("h1/w/shard-0/rep-0")->open());
    EXPECT_FALSE(state->find("h1/w/shard-0/rep-0")->identity.has_value());
    EXPECT_EQ(state->order.size(), 1U);
}

TEST_F(LedgerTest, IsPrivate) {
    ASSERT_TRUE(Ledger::open(file).has_value());
    struct stat info {};
    ASSERT_EQ(::stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600U);
}

TEST_F(LedgerTest, SkipsATornLastLineAndWritesOnBehindIt) {
    {
        auto ledger = Ledger::open(file);
        ASSERT_TRUE(ledger->append(intent("a", "worker", "h", {})).has_value());
    }
    std::ofstream(file, std::ios::app) << R"({"t":1,"op":"intent","entry":"b","ki)";
    auto state = replay(file);
    ASSERT_TRUE(state.has_value());
    EXPECT_EQ(state->entries.size(), 1U);
    EXPECT_EQ(state->unreadable, 1U);
    auto ledger = Ledger::open(file);
    ASSERT_TRUE(ledger->append(intent("c", "worker", "h", {})).has_value());
    state = replay(file);
    EXPECT_EQ(state->order, (std::vector<std::string>{"a", "c"}));
}

TEST_F(LedgerTest, OfNothingIsEmpty) {
    auto state = replay(folder / "none.jsonl");
    ASSERT_TRUE(state.has_value());
    EXPECT_TRUE(state->entries.empty());
}

TEST_F(LedgerTest, TakesLinesFromManyAtOnceWhole) {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([this, i] {
            auto ledger = Ledger::open(file);
            for (int k = 0; k < 25; ++k) EXPECT_TRUE(ledger->append(intent(fmt::format("{}-{}", i, k), "worker", "h", {})).has_value());
        });
    threads.clear();
    auto state = replay(file);
    EXPECT_EQ(state->entries.size(), 100U);
    EXPECT_EQ(state->unreadable, 0U);
}

TEST_F(LedgerTest, OnAFullDiskIsAsItWasBefore) {
    auto full = Ledger::open("/dev/full");
    if (!full) GTEST_SKIP() << full.error().message();
    auto written = full->append(intent("a", "worker", "h", {}));
    ASSERT_FALSE(written.has_value());
    EXPECT_EQ(written.error().kind(), ErrorKind::Unavailable);
}

TEST_F(LedgerTest, LockNamesItsHolderToASecondTaker) {
    auto lock_file = folder / "deploy.lock";
    {
        auto lock = LockFile::take(lock_file, "deploy config.yml");
        ASSERT_TRUE(lock.has_value());
        auto second = LockFile::take(lock_file, "deploy other.yml");
        ASSERT_FALSE(second.has_value());
        EXPECT_EQ(second.error().kind(), ErrorKind::Conflict);
        EXPECT_NE(second.error().message().find(fmt::format("held by pid {} (deploy config.yml)", ::getpid())), std::string::npos)
            << second.error().message();
        EXPECT_EQ(lock_holder(lock_file)->command, "deploy config.yml");
    }
    EXPECT_FALSE(lock_holder(lock_file).has_value());
    EXPECT_TRUE(LockFile::take(lock_file, "deploy other.yml").has_value());
}

TEST_F(LedgerTest, LockIsTakenOverByEndingItsHolder) {
    auto lock_file = folder / "deploy.lock";
    // The holder: a shell that got the lock's descriptor and wrote its own identity. It ignores TERM.
    process::SpawnOptions options;
    options.argv = {"/bin/sh", "-c", "exec 9>>\"$1\"; flock -x 9; trap '' TERM; echo locked; while :; do sleep 0.1 9>&-; done", "sh", lock_file.string()};
    options.pipe_output = true;
    auto holder = process::spawn(options);
    ASSERT_TRUE(holder.has_value());
    char buffer[16];
    ASSERT_GT(::read(holder->output.get(), buffer, sizeof buffer), 0);
    Json json = holder->identity;
    json["command"] = "deploy x.yml";
    std::ofstream(lock_file) << json.dump();
    auto taken = LockFile::take_over(lock_file, "kill-all", 200ms);
    EXPECT_TRUE(taken.has_value()) << taken.error().message();
    EXPECT_FALSE(process::alive(holder->identity));
    (void)process::wait_for(holder->pidfd.get(), 5s);
    (void)process::stop_processes(std::vector{holder->identity}, 0ms);
    EXPECT_EQ(lock_holder(lock_file)->command, "kill-all");
}

TEST_F(LedgerTest, FindsLiveDeployments) {
    for (auto const* name : {"beta", "alpha", "old"}) {
        StatePaths paths{folder / name};
        ASSERT_TRUE(make_folder(paths.root).has_value());
        ASSERT_TRUE(write_file_atomically(paths.deployment(), fmt::format(R"({{"id":"id-{}","name":"{}","config":"/c.yml"}})", name, name)).has_value());
    }
    ASSERT_TRUE(make_folder(folder / "no-deployment").has_value());
    ASSERT_TRUE(Ledger::open(StatePaths{folder / "beta"}.ledger())->append(intent("agent:h", "agent", "h", {})).has_value());
    ASSERT_TRUE(Ledger::open(HostPaths{StatePaths{folder / "alpha"}.host("h")}.ledger())->append(intent("w", "worker", "h", {})).has_value());
    auto live = find_deployments(false, folder);
    ASSERT_EQ(live.size(), 2U);
    EXPECT_EQ(live[0].name, "alpha");
    EXPECT_EQ(live[1].id, "id-beta");
    EXPECT_EQ(find_deployments(true, folder).size(), 3U);
}

TEST(Paths, KeepASocketsNameShort) {
    EXPECT_EQ(host_socket_path("/var/lib/ocrctl/demo/hosts/local"), "/var/lib/ocrctl/demo/hosts/local/agent.sock");
    auto deep = "/var/" + std::string(120, 'x');
    auto socket = host_socket_path(deep);
    EXPECT_TRUE(socket.string().starts_with("/tmp/ocrctl-"));
    EXPECT_EQ(socket, host_socket_path(deep + "/./"));
    EXPECT_EQ(entry_file_name("h/g/shard-0/rep-1"), "h_g_shard-0_rep-1");
}

} // namespace
} // namespace ocrctl::ledger
