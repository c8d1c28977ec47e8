// Foreign Workers that die, a server that is killed, a broker and a MongoDB that go away: no Job is lost, done twice at
// once, or kills one Worker after the other.
#include "tests/service/processing_server/foreign_harness.hpp"

namespace ocrctl::server::test {
namespace {

using End = PlayedOcrdWorker::End;

class ForeignRecoveryTest : public ForeignTest {
protected:
    PlayedOcrdWorker::Play held(std::atomic<bool>& go) {
        return [&go](Json const&) {
            hold_until([&] { return go.load(); });
            return End::Success;
        };
    }
    static End dies(Json const&) { return End::Die; }
    Json shown(std::string const& job) {
        return parse_json(server_->get("/v1/jobs/" + job).body).value_or(Json::object());
    }
};

TEST_F(ForeignRecoveryTest, AJobThatEndedWhileTheServerWasAwayIsSuccess) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = [&](Json const&) {
        hold_until([&] { return go.load(); });
        return End::Die;
    };
    auto job = dummy("OUT");
    ASSERT_TRUE(reaches(job, "RUNNING"));
    // The server goes before the Worker tells that it has done it all, and saved it.
    server_->kill();
    go = true;
    ASSERT_TRUE(eventually([&] { return played->exited(); }));
    {
        auto mets = std::move(*mets::Mets::load(workspace_ / "mets.xml"));
        std::filesystem::create_directories(workspace_ / "OUT");
        for (int i = 1; i <= 5; ++i) {
            auto name = fmt::format("OUT_PHYS_{:04}", i);
            std::ofstream(workspace_ / "OUT" / (name + ".xml")) << "<page/>";
            ASSERT_TRUE(mets.add_file(FileRef{"OUT", name, fmt::format("PHYS_{:04}", i),
                                              "application/vnd.prima.page+xml", "OUT/" + name + ".xml", 0, ""}));
        }
        ASSERT_TRUE(mets.save());
        OcrdDatabase database(mongo_url_);
        auto document = database.find("DBProcessorJob", Json{{"job_id", job}});
        document["state"] = "SUCCESS";
        document["end_time"] = date_now();
        database.replace("DBProcessorJob", document);
    }
    played.reset();
    start();
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 5u);
}

TEST_F(ForeignRecoveryTest, AJobThatFailedForWantOfTheServerIsDoneAgain) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto job = dummy();
    ASSERT_TRUE(reaches(job, "RUNNING"));
    server_->kill();
    go = true; // its METS server is away: FAILED; nobody takes its callback: it exits
    ASSERT_TRUE(eventually([&] { return played->exited(); }));
    EXPECT_EQ(row(job)["state"], "FAILED");
    played.reset();
    start();
    ASSERT_TRUE(eventually([&] { return shown(job).value("attempt", 0) == 2; }));
    played = ocrd_worker("ocrd-dummy", {}, {}, [](Json const&) { return End::Failed; });
    ASSERT_TRUE(reaches(job, "FAILED")) << "for a reason of its own";
    EXPECT_EQ(played->runs(), 1);
}

TEST_F(ForeignRecoveryTest, AServerThatIsKilledAndStartedWhileAWorkerWorksGoesOn) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto job = dummy();
    auto next = dummy("NEXT");
    ASSERT_TRUE(reaches(job, "RUNNING"));
    server_->kill();
    start();
    EXPECT_TRUE(reaches(job, "RUNNING"));
    go = true;
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    ASSERT_TRUE(reaches(next, "SUCCESS"));
    EXPECT_EQ(played->runs(), 2);
    EXPECT_EQ(files_in("NEXT"), 5u);
}

class ForeignCrashPoint : public ForeignRecoveryTest, public testing::WithParamInterface<char const*> {};

TEST_P(ForeignCrashPoint, LosesNothingWhenKilledThere) {
    start(GetParam());
    auto played = ocrd_worker();
    (void)server_->run("ocrd-dummy", job_body());
    ASSERT_TRUE(eventually([&] { return server_->gone(); })) << "the point was not reached";
    played.reset(); // if it had the Job, its callback was refused and it exited
    start();
    played = ocrd_worker();
    ASSERT_TRUE(eventually(
        [&] {
            auto status = parse_json(server_->get("/v1/status").body);
            return status && (*status)["jobs"] == Json{{"SUCCESS", 1}};
        },
        60s))
        << server_->get("/v1/status").body << server_->get("/v1/jobs").body;
    EXPECT_EQ(files_in("OUT"), 5u);
}

INSTANTIATE_TEST_SUITE_P(Points, ForeignCrashPoint,
                         testing::Values("server.after-accept", "server.after-journal", "server.foreign-after-store",
                                         "server.foreign-after-mirror", "server.foreign-after-publish"),
                         [](auto const& info) {
                             std::string name = info.param;
                             std::erase_if(name, [](char c) { return c == '.' || c == '-'; });
                             return name;
                         });

TEST_F(ForeignRecoveryTest, ALostCallbackDoesNotHoldAJob) {
    start();
    auto played = ocrd_worker("ocrd-dummy", [](Json const&) { return End::Success; });
    played->after_running = [](Json const&) { return End::NoCallback; };
    ASSERT_TRUE(reaches(dummy(), "SUCCESS"));
}

TEST_F(ForeignRecoveryTest, EachSupervisedWorkerHasOneJobAtATime) {
    supervise("ocrd-dummy", 2);
    start();
    std::atomic<bool> go = false;
    auto one = supervised(0), two = supervised(1);
    one->after_running = two->after_running = held(go);
    std::vector<std::string> jobs;
    for (auto const* group : {"A", "B", "C", "D"}) jobs.push_back(dummy(group));
    ASSERT_TRUE(eventually([&] { return one->runs() == 1 && two->runs() == 1; }));
    for (int i = 0; i < 2; ++i) {
        auto session =
            queue::Session::open(*queue::parse_broker_url(vhost_url(fmt::format("{}-w{}", name_, i))), "look");
        ASSERT_TRUE(session);
        EXPECT_EQ(session->count("ocrd-dummy").value_or(9), 0u) << "nothing waits behind it";
    }
    // What is not given yet can be cancelled.
    EXPECT_EQ(server_->post("/v1/jobs/" + jobs[3] + "/cancel", Json::object()).status, 200);
    go = true;
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(reaches(jobs[static_cast<std::size_t>(i)], "SUCCESS"));
    EXPECT_EQ(one->runs() + two->runs(), 3);
    EXPECT_EQ(server_->state_of(jobs[3]), "CANCELLED");
    auto places = parse_json(server_->get("/v1/status").body)->at("foreign_workers");
    EXPECT_EQ(places.size(), 2u) << places;
    EXPECT_EQ(places[0]["slot"], "h/g/shard-0/rep-0");
}

TEST_F(ForeignRecoveryTest, AJobWhoseWorkerDiedIsGivenToAnother) {
    supervise("ocrd-dummy", 1);
    start();
    auto first = supervised(0, {}, dies);
    auto job = dummy();
    ASSERT_TRUE(eventually([&] { return first->exited(); }));
    first.reset();
    ASSERT_TRUE(eventually([&] { return shown(job).value("attempt", 0) == 2; }))
        << server_->get("/v1/jobs/" + job).body;
    auto second = supervised(0);
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(second->runs(), 1);
}

TEST_F(ForeignRecoveryTest, AJobThatKilledTwoWorkersIsQuarantinedAndTheThirdLives) {
    supervise("ocrd-dummy", 1);
    start();
    auto poison = dummy("POISON");
    for (int i = 0; i < 2; ++i) {
        auto played = supervised(0, {}, dies);
        ASSERT_TRUE(eventually([&] { return played->exited(); })) << i;
        played.reset();
        if (i == 0) ASSERT_TRUE(eventually([&] { return shown(poison).value("attempt", 0) == 2; }));
    }
    // An OCR-D Worker needs seconds to start.
    ASSERT_TRUE(reaches(poison, "FAILED"));
    auto third = supervised(0);
    EXPECT_EQ(shown(poison).value("quarantined", false), true);
    EXPECT_NE(shown(poison).value("reason", "").find("2 Workers ended"), std::string::npos) << shown(poison);
    EXPECT_EQ(row(poison)["state"], "FAILED");
    auto good = dummy("GOOD");
    ASSERT_TRUE(reaches(good, "SUCCESS"));
    EXPECT_EQ(third->runs(), 1) << "it never saw the other";
}

TEST_F(ForeignRecoveryTest, WhatAnAgentTellsCountsAtOnceAndAPlannedStopIsNoDeath) {
    supervise("ocrd-dummy", 1);
    settings_["token_file"] = "secrets/join-token";
    start();
    PlayedAgent agent(port_);
    ASSERT_TRUE(eventually([&] { return agent.connected(); }));
    auto const* slot = "h/g/shard-0/rep-0";
    auto job = dummy();
    int restarts = 0;
    for (auto const& ending : {UnitState::Stopped, UnitState::BackOff, UnitState::BackOff}) {
        auto played = supervised(0, {}, dies);
        auto attempt = shown(job).value("attempt", 0);
        agent.report(slot, UnitState::Ready, 100 + restarts, restarts);
        ASSERT_TRUE(eventually([&] { return played->exited(); }));
        EXPECT_EQ(shown(job).value("attempt", 0), attempt);
        played.reset();
        if (ending == UnitState::BackOff) ++restarts;
        agent.report(slot, ending, 0, restarts);
        ASSERT_TRUE(eventually([&] {
            return shown(job).value("attempt", 0) == attempt + 1 || shown(job).value("state", "") == "FAILED";
        })) << shown(job);
        auto session = queue::Session::open(*queue::parse_broker_url(vhost_url(name_ + "-w0")), "look");
        ASSERT_TRUE(session);
        EXPECT_EQ(session->count("ocrd-dummy").value_or(9), 0u) << "what the dead one held is not left for the next";
    }
    EXPECT_EQ(shown(job).value("quarantined", false), true) << shown(job);
    EXPECT_EQ(shown(job).value("attempt", 0), 3);
    EXPECT_EQ(parse_json(server_->get("/v1/status").body)->at("processors"),
              (Json{"ocrd-dummy", "ocrd-ocrctl-binarize", "ocrd-ocrctl-dummy"}));
}

/// What deploy leaves of a host without an agent.
void agentless_host(std::filesystem::path const& state, int pid) {
    auto folder = state / "hosts" / "h";
    std::filesystem::create_directories(folder);
    DesiredState desired;
    desired.deployment = "d";
    desired.host = "h";
    desired.agent = false;
    HostReport report;
    report.deployment = "d";
    report.host = "h";
    report.boot_id = "another-boot";
    UnitReport unit;
    unit.entry = "h/g/shard-0/rep-0";
    unit.kind = UnitKind::ForeignWorker;
    unit.state = UnitState::Ready;
    unit.pid = pid;
    report.units.push_back(unit);
    ASSERT_TRUE(write_file_atomically(folder / "report.json", dump(Json(report))));
    ASSERT_TRUE(write_file_atomically(folder / "desired.json", dump(Json(desired))));
}

TEST_F(ForeignRecoveryTest, WithoutAnAgentTheBrokerAloneSaysWhetherAWorkerIsThere) {
    supervise("ocrd-dummy", 1);
    settings_["foreign_workers"][0]["agent"] = false;
    settings_["token_file"] = "secrets/join-token";
    agentless_host(state_, 111);
    start();
    auto unit = [&] {
        auto status = parse_json(server_->get("/v1/status").body);
        if (!status || status->at("hosts").empty() || status->at("hosts")[0]["units"].empty())
            return Json(Json::object());
        return status->at("hosts")[0]["units"][0];
    };
    ASSERT_TRUE(eventually([&] { return unit().value("state", "") == "failed"; }, 20s)) << unit();
    EXPECT_EQ(unit()["detail"], "does not consume its queue: ocrctl deploy starts it again, if it has ended");
    auto played = supervised(0);
    ASSERT_TRUE(eventually([&] { return unit().value("state", "") == "ready"; }, 20s)) << unit();
    EXPECT_EQ(unit()["pid"], 111);
    auto status = parse_json(server_->get("/v1/status").body);
    EXPECT_EQ(status->at("hosts")[0]["agent"], false);
    EXPECT_EQ(status->at("hosts")[0]["connected"], false);
    // An agent that dials in for it is refused.
    asio::io_context io;
    std::string refusal = "none";
    auto dial = [&]() -> awaitable<void> {
        net::Headers headers{{"Authorization", "Bearer secret-token"}};
        auto url = fmt::format("http://127.0.0.1:{}/v1/agents/connect?host=h", port_);
        auto socket = co_await net::websocket_connect(url, std::move(headers), 5s);
        if (!socket) refusal = socket.error().message();
    };
    asio::co_spawn(io, dial(), asio::detached);
    io.run();
    EXPECT_NE(refusal.find("refused with 409"), std::string::npos) << refusal;
    EXPECT_NE(refusal.find("the host h has no agent in the configuration"), std::string::npos) << refusal;
}

TEST_F(ForeignRecoveryTest, AWorkerThatDeployStartedAgainIsNotTakenForTheDeadOne) {
    supervise("ocrd-dummy", 1);
    settings_["foreign_workers"][0]["agent"] = false;
    agentless_host(state_, 111);
    start();
    auto first = supervised(0, {}, dies);
    auto job = dummy();
    ASSERT_TRUE(eventually([&] { return first->exited(); }));
    // Both at once, before the server looks.
    first.reset();
    auto second = supervised(0);
    agentless_host(state_, 222);
    ASSERT_TRUE(reaches(job, "SUCCESS")) << shown(job);
    EXPECT_GE(second->runs(), 1);
}

TEST_F(ForeignRecoveryTest, OnTheCommonVhostAJobThatKilledTwoWorkersIsTakenOutOfTheQueue) {
    start();
    auto poison = std::string();
    for (int i = 0; i < 2; ++i) {
        auto played = ocrd_worker("ocrd-dummy", {}, {}, dies);
        if (i == 0) poison = dummy("POISON");
        ASSERT_TRUE(eventually([&] { return played->exited(); })) << i;
        played.reset();
        if (i == 0)
            ASSERT_TRUE(eventually([&] { return server_->log_text().find("worker.died") != std::string::npos; }));
    }
    ASSERT_TRUE(reaches(poison, "FAILED"));
    EXPECT_EQ(shown(poison).value("quarantined", false), true);
    auto third = ocrd_worker();
    ASSERT_TRUE(reaches(dummy("GOOD"), "SUCCESS"));
    EXPECT_EQ(third->runs(), 1);
}

TEST_F(ForeignRecoveryTest, AMessageThatAWorkerRefusesBeforeItBeginsIsPoisonToo) {
    supervise("ocrd-dummy", 1);
    start();
    auto poison = dummy("POISON");
    for (int i = 0; i < 2; ++i) {
        auto played = supervised(0, [](Json const&) { return End::RefuseEarly; });
        ASSERT_TRUE(eventually([&] { return played->exited(); }, 60s)) << i;
        played.reset();
        if (i == 0)
            ASSERT_TRUE(eventually([&] { return shown(poison).value("attempt", 0) == 2; }, 60s)) << shown(poison);
    }
    ASSERT_TRUE(reaches(poison, "FAILED", 60s));
    EXPECT_EQ(shown(poison).value("quarantined", false), true);
}

TEST_F(ForeignRecoveryTest, AMalformedMessageOfSomebodyElseCostsAWorkerAndNoJob) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto first = dummy("A");
    ASSERT_TRUE(reaches(first, "RUNNING"));
    auto second = dummy("B");
    auto session = queue::Session::open(*queue::parse_broker_url(amqp_), "somebody");
    ASSERT_TRUE(session);
    ASSERT_TRUE(eventually([&] { return session->count("ocrd-dummy").value_or(0) == 1; }));
    ASSERT_TRUE(session->publish({.queue = "ocrd-dummy", .body = "{not: [yaml", .message_id = ""}));
    go = true;
    ASSERT_TRUE(reaches(first, "SUCCESS"));
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    ASSERT_TRUE(eventually([&] { return played->exited(); })) << "as OCR-D's does";
    auto third = dummy("C");
    auto another = ocrd_worker();
    ASSERT_TRUE(reaches(third, "SUCCESS"));
}

TEST_F(ForeignRecoveryTest, ABrokerThatIsKilledLosesItsTransientQueuesAndNoJob) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    std::vector<std::string> jobs;
    for (auto const* group : {"A", "B", "C"}) jobs.push_back(dummy(group));
    ASSERT_TRUE(reaches(jobs[0], "RUNNING"));
    broker().kill();
    jobs.push_back(dummy("D")); // in OCR-D: 500, for ever
    broker().start();
    go = true; // it ends its Job, tells, and cannot acknowledge
    ASSERT_TRUE(reaches(jobs[0], "SUCCESS"));
    played.reset();
    played = ocrd_worker();
    for (auto const& job : jobs) ASSERT_TRUE(reaches(job, "SUCCESS", 60s));
    EXPECT_EQ(played->runs(), 3);
}

TEST_F(ForeignRecoveryTest, AQueueThatSomebodyDeletesLosesNoJob) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto first = dummy("A");
    ASSERT_TRUE(reaches(first, "RUNNING"));
    auto second = dummy("B");
    auto session = queue::Session::open(*queue::parse_broker_url(amqp_), "somebody");
    ASSERT_TRUE(session);
    ASSERT_TRUE(eventually([&] { return session->count("ocrd-dummy").value_or(0) == 1; }));
    ASSERT_TRUE(session->delete_queue("ocrd-dummy")); // and the message in it
    go = true;
    ASSERT_TRUE(reaches(first, "SUCCESS"));
    ASSERT_TRUE(reaches(second, "SUCCESS", 120s)) << "its Worker made its queue again";
    // Without a queue nothing is taken that nobody would do: OCR-D takes it and it hangs for ever.
    played.reset();
    ASSERT_TRUE(session->delete_queue("ocrd-dummy"));
    ASSERT_TRUE(eventually([&] { return server_->run("ocrd-dummy", job_body("C")).status == 422; }));
}

TEST_F(ForeignRecoveryTest, ASupervisedWorkerThatEndedWithItsBrokerIsNotBlamed) {
    supervise("ocrd-dummy", 1);
    start();
    std::atomic<bool> go = false;
    auto played = supervised(0);
    played->after_running = [&](Json const&) {
        hold_until([&] { return go.load(); });
        return End::Die;
    };
    auto job = dummy();
    ASSERT_TRUE(reaches(job, "RUNNING"));
    broker().kill();
    broker().start();
    go = true;
    ASSERT_TRUE(eventually([&] { return played->exited(); }));
    played.reset();
    played = supervised(0);
    ASSERT_TRUE(reaches(job, "SUCCESS", 60s));
    EXPECT_EQ(played->runs(), 1);
}

TEST_F(ForeignRecoveryTest, LocksOfForeignJobsHoldOverARestart) {
    start();
    {
        auto gone = ocrd_worker();
    } // its queue stays
    auto first = dummy(), second = dummy(), other = dummy("OTHER");
    EXPECT_EQ(server_->state_of(second), "CACHED");
    server_->kill();
    start();
    EXPECT_EQ(server_->state_of(first), "QUEUED");
    EXPECT_EQ(server_->state_of(second), "CACHED");
    auto played = ocrd_worker();
    for (auto const& job : {first, second, other}) ASSERT_TRUE(reaches(job, "SUCCESS"));
}

TEST_F(ForeignRecoveryTest, AMongoThatIsAwayForAWhileStopsNothingForGood) {
    if (!mongo().ours()) GTEST_SKIP() << "the MongoDB is not ours to stop";
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto job = dummy(), next = dummy("NEXT");
    ASSERT_TRUE(reaches(job, "RUNNING"));
    mongo().stop();
    mongo().start();
    go = true;
    ASSERT_TRUE(reaches(job, "SUCCESS", 60s));
    ASSERT_TRUE(reaches(next, "SUCCESS", 60s));
}

} // namespace
} // namespace ocrctl::server::test
