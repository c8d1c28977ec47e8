// Units of a host without an agent, with real processes: started once, left alone, started again, never looked after.
#include "lib/hostops/start.hpp"

#include "lib/base/crash_point.hpp"
#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/base/text.hpp"
#include "lib/hostops/host_ops.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/ledger/paths.hpp"

#include <algorithm>
#include <csignal>
#include <fstream>
#include <gtest/gtest.h>
#include <poll.h>
#include <set>

namespace ocrctl {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

template <class Condition> bool eventually(Condition condition, std::chrono::milliseconds limit = 15s) {
    auto end = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        ::poll(nullptr, 0, 10);
    }
    return true;
}

class StartTest : public testing::Test {
protected:
    void SetUp() override {
        ASSERT_TRUE(make_folder(folder).has_value());
        desired.deployment = "test-" + random_hex(6);
        desired.host = "h1";
        desired.generation = 1;
        desired.agent = false;
    }
    void TearDown() override {
        (void)hostops::close(folder);
        (void)hostops::stop(folder, *hostops::parse_kinds("all"), 0ms);
        for (auto const& found : process::scan(desired.deployment)) {
            ADD_FAILURE() << "pid " << found.identity.pid << " (" << found.command << ", " << found.entry
                          << ") is left";
            (void)process::signal_one(found.identity, SIGKILL);
        }
        remove_tree(folder);
    }

    /// A Worker that is ready once it has written its pid into the file READY-N.
    UnitSpec worker(int n, std::string const& before = "") {
        UnitSpec spec;
        spec.entry = fmt::format("h1/g/shard-0/rep-{}", n);
        spec.kind = UnitKind::ForeignWorker;
        spec.argv = {"/bin/sh", "-c", fmt::format("{}\necho $$ > {}; exec sleep 600", before, ready_file(n).string())};
        spec.ready.kind = "exec";
        spec.ready.argv = {"/bin/sh", "-c", fmt::format("test -s {}", ready_file(n).string())};
        spec.grace_s = 1;
        return spec;
    }
    fs::path ready_file(int n) const { return folder / fmt::format("ready-{}", n); }

    void want(std::vector<UnitSpec> units) {
        desired.units = std::move(units);
        ++desired.generation;
        ASSERT_TRUE(write_file_atomically(ledger::HostPaths{folder}.desired(), dump(Json(desired))).has_value());
    }

    /// In a process of its own, as SSH starts it: what it started is nobody's child afterwards.
    process::Child begin(std::chrono::milliseconds limit, std::map<std::string, std::string> env = {}) {
        process::SpawnOptions options;
        options.argv = {START_PROGRAM, folder.string(), std::to_string(limit.count())};
        options.env = std::move(env);
        options.log = folder / "start.out";
        auto child = process::spawn(options);
        EXPECT_TRUE(child.has_value()) << child.error().message();
        return std::move(*child);
    }
    HostReport start(std::chrono::milliseconds limit = 20s) {
        std::ofstream(folder / "start.out").close();
        auto child = begin(limit);
        auto status = process::wait_for(child.pidfd.get(), limit + 10s);
        auto text = read_file(folder / "start.out");
        EXPECT_TRUE(status && status->success()) << (text ? *text : "");
        auto report = json_to<HostReport>(std::string_view(text ? *text : "{}"));
        EXPECT_TRUE(report.has_value()) << *text;
        return report.value_or(HostReport{});
    }
    std::string refusal() {
        auto report = hostops::start(folder, 1s);
        EXPECT_FALSE(report.has_value());
        return report ? "" : report.error().message();
    }
    std::map<std::string, int> running() const {
        std::map<std::string, int> pids;
        for (auto const& found : process::scan(desired.deployment, desired.host)) {
            auto row = process::row_of(found.identity.pid);
            if (row && row->session == found.identity.pid)
                EXPECT_TRUE(pids.emplace(found.entry, found.identity.pid).second) << found.entry << " runs twice";
        }
        return pids;
    }

    fs::path folder = fs::temp_directory_path() / ("ocrctl-start-" + random_hex(6));
    DesiredState desired;
};

TEST_F(StartTest, StartsWhatIsMissingOnceAndReportsIt) {
    want({worker(0), worker(1)});
    auto first = start();
    ASSERT_EQ(first.units.size(), 2u);
    EXPECT_EQ(first.boot_id, process::boot_id());
    EXPECT_EQ(first.generation, desired.generation);
    for (auto const& unit : first.units) {
        EXPECT_EQ(unit.state, UnitState::Ready) << unit.detail;
        EXPECT_EQ(running().at(unit.entry), unit.pid);
    }
    auto second = start();
    for (int n : {0, 1}) EXPECT_EQ(second.units[n].pid, first.units[n].pid);
    EXPECT_EQ(second.units[0].state, UnitState::Ready);
    EXPECT_EQ(running().size(), 2u);
}

TEST_F(StartTest, StartsADeadOneAgainWithItsLastWordsAndLeavesTheOtherAlone) {
    want({worker(0, "echo the disk is full"), worker(1)});
    auto first = start();
    auto victim = process::identity_of(first.units[0].pid);
    ASSERT_TRUE(victim && process::signal_one(*victim, SIGKILL));
    ASSERT_TRUE(eventually([&] { return !process::alive(*victim); }));
    remove_tree(ready_file(0));
    auto second = start();
    EXPECT_EQ(second.units[0].state, UnitState::Ready);
    EXPECT_NE(second.units[0].pid, first.units[0].pid);
    EXPECT_EQ(second.units[0].last_exit, "ended while nobody watched it: the disk is full");
    EXPECT_EQ(second.units[1].pid, first.units[1].pid);
}

TEST_F(StartTest, EndsWhatIsNotWantedAndStartsAnewWhatIsToBeOtherwise) {
    want({worker(0), worker(1)});
    auto first = start();
    auto changed = worker(1);
    changed.env["COLOUR"] = "blue";
    want({changed});
    auto second = start();
    ASSERT_EQ(second.units.size(), 1u);
    EXPECT_NE(second.units[0].pid, first.units[1].pid);
    EXPECT_EQ(running(), (std::map<std::string, int>{{changed.entry, second.units[0].pid}}));
}

TEST_F(StartTest, NamesAProgramThatIsNotThere) {
    auto spec = worker(0);
    spec.argv = {"/nowhere/ocrd-x", "worker"};
    want({spec, worker(1)});
    auto report = start();
    EXPECT_EQ(report.units[0].state, UnitState::Failed);
    EXPECT_NE(report.units[0].detail.find("/nowhere/ocrd-x"), std::string::npos) << report.units[0].detail;
    EXPECT_EQ(report.units[1].state, UnitState::Ready);
}

TEST_F(StartTest, AWorkerThatEndsAtItsStartIsToldAndNotStartedAgain) {
    want({worker(0, fmt::format("echo x >> {}/tries; echo no such model >&2; exit 3", folder.string()))});
    auto report = start();
    EXPECT_EQ(report.units[0].state, UnitState::Failed);
    EXPECT_EQ(report.units[0].detail, "ended with code 3: no such model");
    EXPECT_EQ(report.units[0].pid, 0);
    EXPECT_EQ(*read_file(folder / "tries"), "x\n");
}

TEST_F(StartTest, OneThatIsNotReadyInItsTimeIsEnded) {
    auto spec = worker(0, "sleep 600");
    spec.ready.timeout_s = 1;
    want({spec});
    auto report = start();
    EXPECT_EQ(report.units[0].state, UnitState::Failed);
    EXPECT_EQ(report.units[0].detail, "was not ready within 1 s");
    EXPECT_TRUE(running().empty());
}

TEST_F(StartTest, WhatIsNotReadyAtTheLimitGoesOnAndIsTakenOver) {
    want({worker(0, fmt::format("while [ ! -e {}/go ]; do sleep 0.05; done", folder.string()))});
    auto first = start(300ms);
    EXPECT_EQ(first.units[0].state, UnitState::Starting);
    std::ofstream(folder / "go").close();
    auto second = start();
    EXPECT_EQ(second.units[0].state, UnitState::Ready);
    EXPECT_EQ(second.units[0].pid, first.units[0].pid);
}

TEST_F(StartTest, WaitsForWhatAWorkerNeedsElsewhere) {
    auto spec = worker(0);
    spec.needs_tcp = {"127.0.0.1:1"};
    want({spec});
    auto report = start(300ms);
    EXPECT_EQ(report.units[0].state, UnitState::Failed);
    EXPECT_EQ(report.units[0].detail, "waits for 127.0.0.1:1, which does not answer");
    EXPECT_TRUE(running().empty());
}

TEST_F(StartTest, SecretsAreReadFromFilesAndStandNeitherInLedgerNorReport) {
    std::ofstream(folder / "url") << "amqp://u:tops3cret@h/\n";
    auto spec = worker(0);
    spec.argv = {"/bin/sh", "-c", fmt::format("echo \"$1\" > {}; exec sleep 600", ready_file(0).string()), "ocrd-x",
                 file_word((folder / "url").string())};
    want({spec});
    auto report = start();
    EXPECT_EQ(*read_file(ready_file(0)), "amqp://u:tops3cret@h/\n");
    EXPECT_EQ(dump(Json(report)).find("tops3cret"), std::string::npos);
    EXPECT_EQ(read_file(ledger::HostPaths{folder}.ledger())->find("tops3cret"), std::string::npos);
}

TEST_F(StartTest, RefusesAHostThatHasAnAgentOrIsClosing) {
    EXPECT_NE(refusal().find("desired.json"), std::string::npos);
    desired.agent = true;
    want({worker(0)});
    EXPECT_EQ(refusal(), "h1 has an agent, which starts its units");
    desired.agent = false;
    want({worker(0)});
    {
        auto agent = ledger::LockFile::take(ledger::HostPaths{folder}.lock(), "agent");
        ASSERT_TRUE(agent.has_value());
        EXPECT_NE(refusal().find("its agent (pid"), std::string::npos);
    }
    ASSERT_TRUE(hostops::close(folder).has_value());
    EXPECT_EQ(refusal(), "h1: the deployment is closing");
    EXPECT_TRUE(running().empty());
}

TEST_F(StartTest, KilledAtAnyPointTheNextOneGoesOnAndKillAllFindsAll) {
    std::set<std::string> points;
    for (auto point : crash_points())
        if (point.starts_with("host.")) points.emplace(point);
    EXPECT_EQ(points.size(), 5u);
    want({worker(0), worker(1)});
    for (auto const& point : points) {
        SCOPED_TRACE(point);
        auto killed = begin(20s, {{"OCRCTL_CRASH_AT", point}});
        auto status = process::wait_for(killed.pidfd.get(), 20s);
        ASSERT_TRUE(status && status->signal == SIGKILL) << "not reached";
        auto report = start();
        for (auto const& unit : report.units) EXPECT_EQ(running().at(unit.entry), unit.pid) << unit.detail;
        EXPECT_EQ(running().size(), 2u);

        // Once more, and then nobody goes on.
        auto stopped = hostops::stop(folder, *hostops::parse_kinds("all"), 1s);
        ASSERT_TRUE(stopped && stopped->left.empty());
        for (int n : {0, 1}) remove_tree(ready_file(n));
        killed = begin(20s, {{"OCRCTL_CRASH_AT", point}});
        ASSERT_TRUE(process::wait_for(killed.pidfd.get(), 20s));
        stopped = hostops::stop(folder, *hostops::parse_kinds("all"), 1s);
        ASSERT_TRUE(stopped && stopped->left.empty());
        EXPECT_TRUE(process::scan(desired.deployment).empty());
        for (int n : {0, 1}) remove_tree(ready_file(n));
    }
}

TEST_F(StartTest, ASecondCallEndsTheFirstAndTakesOverWhatItStarted) {
    want({worker(0, fmt::format("while [ ! -e {}/go ]; do sleep 0.05; done", folder.string()))});
    auto first = begin(60s);
    ASSERT_TRUE(eventually([&] { return running().size() == 1; }));
    auto pid = running().begin()->second;
    auto second = begin(60s);
    ASSERT_TRUE(process::wait_for(first.pidfd.get(), 10s));
    EXPECT_TRUE(read_file(folder / "start.out")->empty()) << "the first was ended before it could report";
    std::ofstream(folder / "go").close();
    ASSERT_TRUE(process::wait_for(second.pidfd.get(), 10s));
    auto report = json_to<HostReport>(std::string_view(*read_file(folder / "start.out")));
    ASSERT_TRUE(report && report->units.size() == 1u);
    EXPECT_EQ(report->units[0].state, UnitState::Ready);
    EXPECT_EQ(report->units[0].pid, pid);
}

TEST_F(StartTest, ClosingEndsAStartThatIsAtWork) {
    want({worker(0, "sleep 600"), worker(1)});
    auto first = begin(60s);
    ASSERT_TRUE(eventually([&] { return running().size() == 2; }));
    ASSERT_TRUE(hostops::close(folder).has_value());
    auto stopped = hostops::stop(folder, *hostops::parse_kinds("all"), 1s);
    ASSERT_TRUE(stopped.has_value());
    EXPECT_TRUE(stopped->left.empty());
    EXPECT_TRUE(process::scan(desired.deployment).empty()) << "nothing is started after stop()";
    EXPECT_TRUE(process::wait_for(first.pidfd.get(), 5s)) << "it goes away by itself";
    EXPECT_TRUE(process::scan(desired.deployment).empty());
}

} // namespace
} // namespace ocrctl
