#include "deployer/kill_all.hpp"

#include "deployer/deployment_file.hpp"
#include "deployer/deployer.hpp"
#include "deployer/host_driver.hpp"
#include "deployer/host_setup.hpp"
#include "deployer/ports.hpp"
#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"

#include <csignal>
#include <sys/wait.h>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace ocrctl::deployer {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;

/// A state folder as a deploy leaves it, with sleeping processes for units.
class KillAllTest : public testing::Test {
protected:
    void SetUp() override {
        char pattern[] = "/tmp/ocrctl-kill-XXXXXX";
        root_ = fs::path(mkdtemp(pattern)) / "demo";
        paths_.root = root_;
        fs::create_directories(host_dir());
        DeploymentFile deployment;
        deployment.id = id_ = new_uuid();
        deployment.name = "demo";
        deployment.local_host = "here";
        deployment.hosts["here"].state = host_dir().string();
        ASSERT_TRUE(save_deployment(paths_, deployment));
        auto ledger = ledger::Ledger::open(paths_.ledger());
        ASSERT_TRUE(ledger) << ledger.error().message();
        HostRecord record;
        record.state = host_dir().string();
        ASSERT_TRUE(ledger->append(ledger::host("here", Json(record))));
        ASSERT_TRUE(write_secret(paths_.secrets(), "agent-token", "t"));
        ASSERT_TRUE(write_secret(host_dir() / "secrets", "amqp-url", "u"));
    }
    void TearDown() override {
        std::vector<process::Identity> left;
        for (auto const& found : process::scan(id_)) left.push_back(found.identity);
        (void)process::stop_processes(left, seconds(0));
        remove_tree(root_.parent_path());
    }

    fs::path host_dir() const { return root_ / "hosts" / "here"; }

    enum class Recorded { Identity, IntentOnly, Nothing };
    process::Identity start(std::string const& entry, std::string const& kind, Recorded recorded) {
        Launch launch;
        launch.argv = {"/bin/sleep", "600"};
        launch.env = {{process::kDeploymentMark, id_}, {process::kHostMark, "here"}, {process::kEntryMark, entry}};
        launch.log = (host_dir() / "logs" / "x.log").string();
        auto identity = local_driver("here")->launch(launch);
        EXPECT_TRUE(identity) << identity.error().message();
        auto ledger = ledger::Ledger::open(host_dir() / "ledger.jsonl");
        EXPECT_TRUE(ledger);
        if (recorded != Recorded::Nothing) EXPECT_TRUE(ledger->append(ledger::intent(entry, kind, "here", Json{{"deployment", id_}})));
        if (recorded == Recorded::Identity) EXPECT_TRUE(ledger->append(ledger::identity(entry, *identity)));
        return *identity;
    }

    Result<KillAllReport> run(bool purge = false) {
        KillAllOptions options;
        options.state = root_;
        options.grace = seconds(2);
        options.purge = purge;
        return kill_all(options);
    }

    fs::path root_;
    ledger::StatePaths paths_;
    std::string id_;
};

TEST_F(KillAllTest, EndsWhatTheLedgerNamesWhatItNamesHalfAndWhatItDoesNotName) {
    auto known = start("here/dummy/shard-0/rep-0", "worker", Recorded::Identity);
    auto half = start("queue", "queue", Recorded::IntentOnly);
    auto unknown = start("here/dummy/shard-0/rep-1", "worker", Recorded::Nothing);
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->clean());
    EXPECT_EQ(report->hosts, 1u);
    EXPECT_FALSE(report->nothing_to_do);
    for (auto const& identity : {known, half, unknown}) EXPECT_FALSE(process::alive(identity));
}

TEST_F(KillAllTest, KeepsLogsAndLedgerRemovesSecretsAndMarkersAndHasNothingToDoTheSecondTime) {
    start("server", "server", Recorded::Identity);
    auto first = run();
    ASSERT_TRUE(first) << first.error().message();
    EXPECT_TRUE(fs::exists(paths_.ledger()));
    EXPECT_TRUE(fs::exists(host_dir() / "logs" / "x.log"));
    for (auto const& gone : {paths_.secrets(), paths_.closing(), paths_.lock(), host_dir() / "secrets", host_dir() / "closing"})
        EXPECT_FALSE(fs::exists(gone)) << gone;
    auto second = run();
    ASSERT_TRUE(second) << second.error().message();
    EXPECT_TRUE(second->nothing_to_do);
    EXPECT_TRUE(second->clean());
}

TEST_F(KillAllTest, PurgeRemovesEverything) {
    start("server", "server", Recorded::Identity);
    auto report = run(true);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_FALSE(fs::exists(root_));
    EXPECT_FALSE(run());
}

TEST_F(KillAllTest, EndsADeployThatHoldsTheLock) {
    start("server", "server", Recorded::Identity);
    // Somebody else's lock: a child that holds it and does not react to TERM.
    pid_t child = ::fork();
    if (child == 0) {
        ::signal(SIGTERM, SIG_IGN);
        auto lock = ledger::LockFile::take(paths_.lock(), "deploy config.yml");
        for (;;) ::pause();
    }
    for (int i = 0; i < 1000 && !ledger::lock_holder(paths_.lock()); ++i) ::usleep(5000);
    ASSERT_TRUE(ledger::lock_holder(paths_.lock()));
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->clean());
    ::waitpid(child, nullptr, WNOHANG); // reaped already by who waited for its end
    EXPECT_NE(::kill(child, 0), 0) << "the holder still runs";
}

TEST_F(KillAllTest, AnUnreachableHostStaysInTheLedgerAndNoSecretIsRemovedUntilItIsDone) {
    start("server", "server", Recorded::Identity);
    {
        auto ledger = ledger::Ledger::open(paths_.ledger());
        HostRecord away;
        away.connection = "ssh";
        away.address = "127.0.0.1";
        away.port = choose_port();
        away.username = "nobody";
        away.state = "/nowhere/hosts/ocr1";
        ASSERT_TRUE(ledger->append({ledger::host("ocr1", Json(away)), ledger::intent("agent/ocr1", "agent", "ocr1", Json::object())}));
    }
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_FALSE(report->clean());
    EXPECT_EQ(report->hosts, 1u) << "the reachable one is empty";
    ASSERT_EQ(report->unreachable.size(), 1u);
    EXPECT_NE(report->unreachable[0].find("ocr1"), std::string::npos);
    EXPECT_TRUE(fs::exists(paths_.secrets() / "agent-token"));
    EXPECT_TRUE(fs::exists(paths_.closing()));
    auto again = run();
    ASSERT_TRUE(again);
    EXPECT_FALSE(again->nothing_to_do);
    EXPECT_EQ(again->unreachable.size(), 1u);
}

TEST_F(KillAllTest, ALostCentralLedgerHidesNothing) {
    auto known = start("server", "server", Recorded::Identity);
    auto unknown = start("here/dummy/shard-0/rep-1", "worker", Recorded::Nothing);
    fs::resize_file(paths_.ledger(), 0);
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->clean());
    EXPECT_EQ(report->hosts, 1u);
    for (auto const& identity : {known, unknown}) EXPECT_FALSE(process::alive(identity));
    EXPECT_FALSE(fs::exists(paths_.secrets()));
    auto second = run();
    ASSERT_TRUE(second);
    EXPECT_TRUE(second->nothing_to_do);
}

TEST_F(KillAllTest, WithoutAnyLedgerTheMarksOfProcessesSayWhatRuns) {
    auto running = start("server", "server", Recorded::Nothing);
    ASSERT_TRUE(run()); // what is stopped now is noted as stopped: only a process contradicts
    EXPECT_FALSE(process::alive(running));
    auto later = start("server", "server", Recorded::Nothing);
    remove_tree(paths_.hosts());
    EXPECT_TRUE(still_runs(root_));
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_FALSE(report->nothing_to_do);
    EXPECT_TRUE(report->clean());
    EXPECT_FALSE(process::alive(later));
    EXPECT_FALSE(still_runs(root_));
}

TEST_F(KillAllTest, ALostDeploymentFileHidesNothing) {
    auto known = start("server", "server", Recorded::Identity);
    auto unknown = start("here/dummy/shard-0/rep-1", "worker", Recorded::Nothing);
    fs::remove(paths_.deployment());
    auto found = ledger::find_deployments(false, root_.parent_path());
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0].name, "demo");
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->clean());
    for (auto const& identity : {known, unknown}) EXPECT_FALSE(process::alive(identity));
}

TEST_F(KillAllTest, WithNothingButProcessesTheirProgramSaysWhichDeploymentTheyAre) {
    auto program = host_dir() / "bin" / "b" / "ocrctl";
    fs::create_directories(program.parent_path());
    fs::copy_file("/bin/sleep", program);
    Launch launch;
    launch.argv = {program.string(), "600"};
    launch.env = {{process::kDeploymentMark, id_}, {process::kHostMark, "here"}, {process::kEntryMark, "agent"}};
    launch.log = (host_dir() / "logs" / "x.log").string();
    auto agent = local_driver("here")->launch(launch);
    ASSERT_TRUE(agent) << agent.error().message();
    auto other = start("server", "server", Recorded::Nothing);
    for (auto const& path : {paths_.deployment(), paths_.ledger(), paths_.hosts()}) remove_tree(path);
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_EQ(report->hosts, 1u);
    EXPECT_FALSE(process::alive(*agent));
    EXPECT_FALSE(process::alive(other));
}

TEST_F(KillAllTest, AHostThatOnlyItsDesiredStateNamesIsNamedAndNothingIsTidied) {
    fs::create_directories(paths_.host("ocr1"));
    std::ofstream(paths_.host("ocr1") / "desired.json") << "{}\n";
    auto report = run();
    ASSERT_TRUE(report) << report.error().message();
    ASSERT_EQ(report->unreachable.size(), 1u);
    EXPECT_TRUE(report->unreachable[0].starts_with("ocr1: ")) << report->unreachable[0];
    EXPECT_TRUE(fs::exists(paths_.secrets() / "agent-token"));
    EXPECT_TRUE(fs::exists(paths_.closing()));
}

TEST_F(KillAllTest, PurgeOfAStoppedDeploymentSaysWhatItRemoved) {
    ASSERT_TRUE(run());
    auto report = run(true);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->nothing_to_do);
    EXPECT_EQ(report->removed, root_);
    EXPECT_FALSE(fs::exists(root_));
}

TEST_F(KillAllTest, AFolderWithoutADeploymentIsNamed) {
    KillAllOptions options;
    options.state = root_ / "nothing";
    auto report = kill_all(options);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().kind(), ErrorKind::NotFound);
}

class DeployRefusalTest : public testing::Test {
protected:
    void SetUp() override {
        char pattern[] = "/tmp/ocrctl-deploy-XXXXXX";
        folder_ = mkdtemp(pattern);
        port_ = choose_port();
        std::ofstream(folder_ / "config.yml") << "name: demo\nlisten: {address: 127.0.0.1, port: " << port_
                                              << "}\nhosts:\n  - name: here\n    connection: local\n    workers:\n      - {name: ocrd-ocrctl-dummy, number_of_instance: 1}\n";
        options_.config = folder_ / "config.yml";
        options_.state = folder_ / "state";
    }
    void TearDown() override { remove_tree(folder_); }
    fs::path folder_;
    DeployOptions options_;
    int port_ = 0;
};

TEST_F(DeployRefusalTest, ASecondDeployIsToldWhoHoldsTheLock) {
    auto lock = ledger::LockFile::take(options_.state / "deploy.lock", "deploy other.yml");
    ASSERT_TRUE(lock);
    auto report = deploy(options_);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().kind(), ErrorKind::Conflict);
    EXPECT_NE(report.error().message().find(fmt::format("pid {}", ::getpid())), std::string::npos) << report.error().message();
    EXPECT_NE(report.error().message().find("deploy other.yml"), std::string::npos) << report.error().message();
}

TEST_F(DeployRefusalTest, AnUnfinishedKillAllIsToBeFinishedFirst) {
    fs::create_directories(options_.state);
    std::ofstream(options_.state / "closing") << "closing\n";
    auto report = deploy(options_);
    ASSERT_FALSE(report);
    EXPECT_NE(report.error().message().find("ocrctl kill-all"), std::string::npos) << report.error().message();
}

TEST_F(DeployRefusalTest, ABrokenConfigIsAUsageErrorAndLeavesNothing) {
    std::ofstream(options_.config) << "hosts: [\n";
    auto report = deploy(options_);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().exit_code(), 2);
    EXPECT_FALSE(fs::exists(options_.state));
}

} // namespace
} // namespace ocrctl::deployer
