// Nothing that a client was told is lost: the server killed at each of its named points and in the middle of a workflow, the
// broker killed, the broker's data gone.
#include "tests/service/processing_server/harness.hpp"

namespace ocrctl::server::test {
namespace {

class RecoveryTest : public ServerTest {
protected:
    std::string start_workflow(std::string const& script) {
        auto answer = server_->run_workflow("page_wise=true&mets_path=" + (workspace_ / "mets.xml").native(), script);
        EXPECT_EQ(answer.status, 200) << answer.body;
        auto json = parse_json(answer.body);
        return json ? json->value("job_id", "") : "";
    }
    bool succeeds(std::string const& workflow, std::chrono::seconds limit = 60s) {
        auto done = eventually(
            [&] {
                auto answer = parse_json(server_->get("/workflow/job-simple/" + workflow).body);
                return answer && answer->value("state", "") == "SUCCESS";
            },
            limit);
        if (!done) ADD_FAILURE() << server_->get("/workflow/job/" + workflow).body << "\n" << broker().ctl("list_queues name messages_ready messages_unacknowledged consumers leader");
        return done;
    }
    static std::string counts(Json const& status) { return status.dump(); }
};

constexpr char kTwoSteps[] = "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-dummy -I A -O B\n";

class CrashPoint : public RecoveryTest, public testing::WithParamInterface<char const*> {};

TEST_P(CrashPoint, LosesNothingWhenKilledThere) {
    start(GetParam());
    auto played = worker();
    auto answer = server_->run_workflow("page_wise=true&mets_path=" + (workspace_ / "mets.xml").native(), kTwoSteps);
    ASSERT_TRUE(eventually([&] { return server_->gone(); })) << "the point was not reached";
    start();
    // A client that got no answer asks what there is; here it is exactly one workflow's Jobs.
    ASSERT_TRUE(eventually([&] {
        auto status = parse_json(server_->get("/v1/status").body);
        return status && (*status)["jobs"] == Json{{"SUCCESS", 10}};
    })) << server_->get("/v1/status").body << server_->get("/v1/jobs").body;
    EXPECT_EQ(files_in("A"), 5u);
    EXPECT_EQ(files_in("B"), 5u);
    EXPECT_EQ(mets().agents().size(), 2u);
    EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(workspace_ / ".ocrctl"); }));
}

INSTANTIATE_TEST_SUITE_P(Points, CrashPoint,
                         testing::Values("server.after-accept", "server.after-publish", "server.after-commit", "server.after-acknowledge",
                                         "server.after-rename", "server.before-save", "server.after-save"),
                         [](auto const& info) {
                             std::string name = info.param;
                             std::erase_if(name, [](char c) { return c == '.' || c == '-'; });
                             return name;
                         });

TEST_F(RecoveryTest, AServerKilledAgainAndAgainInTheMiddleOfAWorkflowEndsItCompletely) {
    std::filesystem::remove_all(workspace_);
    make_workspace(workspace_, 100);
    start();
    auto one = worker(), two = worker();
    auto workflow = start_workflow(kTwoSteps);
    for (int i = 0; i < 3; ++i) {
        // Further ones of the 200, or the last of them: Workers go on while the server is away.
        auto wanted = std::min(one->runs() + two->runs() + 25, 200);
        ASSERT_TRUE(eventually([&] { return one->runs() + two->runs() >= wanted; }));
        server_->kill();
        start();
    }
    ASSERT_TRUE(succeeds(workflow));
    EXPECT_EQ(files_in("A"), 100u);
    EXPECT_EQ(files_in("B"), 100u);
    auto status = *parse_json(server_->get("/workflow/job/" + workflow).body);
    EXPECT_EQ(status, (Json{{"ocrd-ocrctl-dummy", {{"SUCCESS", 200}}}}));
    EXPECT_EQ(mets().agents().size(), 2u);
}

TEST_F(RecoveryTest, WorkersGoOnWhileTheServerIsAwayAndTheirResultsAreTakenLater) {
    start();
    auto body = job_body();
    auto job = submit(body);
    ASSERT_TRUE(eventually([&] {
        auto session = queue::Session::open(*queue::parse_broker_url(broker().url()), "look");
        return session && session->count(work_queue(name_, "ocrd-ocrctl-dummy")).value_or(0) == 1;
    }));
    server_->kill();
    auto played = worker();
    ASSERT_TRUE(eventually([&] { return played->runs() == 1; }));
    start();
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(played->runs(), 1) << "not computed again";
    EXPECT_EQ(files_in("OUT"), 5u);
}

TEST_F(RecoveryTest, ABrokerThatIsKilledLosesNothing) {
    std::filesystem::remove_all(workspace_);
    make_workspace(workspace_, 60);
    start();
    // RabbitMQ 3.10 writes its list of quorum queues half a second after the last change: a queue younger than that does not
    // survive a kill -9 of the node. So the broker is killed later than that, in the middle of the work.
    auto began = std::chrono::steady_clock::now();
    auto played = worker("ocrd-ocrctl-dummy", [](Task const&, TaskResult result) -> std::optional<TaskResult> {
        std::this_thread::sleep_for(50ms); // the work takes a while
        return result;
    });
    auto workflow = start_workflow(kTwoSteps);
    ASSERT_TRUE(eventually([&] { return played->runs() >= 40 && std::chrono::steady_clock::now() > began + 2s; }));
    broker().kill();
    broker().start();
    ASSERT_TRUE(succeeds(workflow, 120s));
    EXPECT_EQ(files_in("B"), 60u);
}

TEST_F(RecoveryTest, ABrokerThatLostItsDataIsGivenEverythingAgain) {
    std::filesystem::remove_all(workspace_);
    make_workspace(workspace_, 60);
    start();
    std::string workflow;
    {
        auto played = worker();
        workflow = start_workflow(kTwoSteps);
        ASSERT_TRUE(eventually([&] { return played->runs() >= 20; }));
    }
    broker().kill();
    broker().wipe();
    broker().start();
    auto played = worker();
    ASSERT_TRUE(succeeds(workflow, 120s));
    EXPECT_EQ(files_in("A"), 60u);
    EXPECT_EQ(files_in("B"), 60u);
    EXPECT_NE(server_->log_text().find("broker.empty"), std::string::npos);
}

TEST_F(RecoveryTest, ABrokerThatLostItsDataWhileTheServerWasAwayIsGivenEverythingAgain) {
    start();
    auto job = submit(job_body());
    ASSERT_TRUE(eventually([&] {
        auto session = queue::Session::open(*queue::parse_broker_url(broker().url()), "look");
        return session && session->count(work_queue(name_, "ocrd-ocrctl-dummy")).value_or(0) == 1;
    }));
    EXPECT_EQ(server_->stop(), 0);
    broker().kill();
    broker().wipe();
    broker().start();
    start();
    auto played = worker();
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(played->runs(), 1);
}

TEST_F(RecoveryTest, LocksHoldOverARestartAndDependantsOfFailedJobsStayCancelled) {
    start();
    auto first = submit(job_body());
    auto second = submit(job_body());
    auto other = submit(job_body("OTHER"));
    EXPECT_EQ(server_->state_of(second), "CACHED");
    server_->kill();
    start();
    EXPECT_EQ(server_->state_of(first), "QUEUED");
    EXPECT_EQ(server_->state_of(second), "CACHED");
    EXPECT_EQ(server_->state_of(other), "QUEUED");
    auto played = worker();
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    ASSERT_TRUE(reaches(first, "SUCCESS"));
    ASSERT_TRUE(reaches(other, "SUCCESS"));
}

TEST_F(RecoveryTest, AnAcceptedResultThatComesAgainKeepsItsFiles) {
    start("server.after-commit"); // not acknowledged: the broker gives it out again
    auto played = worker();
    auto job = submit(job_body());
    ASSERT_TRUE(eventually([&] { return server_->gone(); }));
    // The output group's name is taken by a file: what was accepted waits in its staging folder.
    std::ofstream(workspace_ / "OUT") << "in the way";
    start();
    ASSERT_TRUE(eventually([&] { return server_->log_text().find("result.ignored") != std::string::npos; }));
    ASSERT_TRUE(eventually([&] { return !parse_json(server_->get("/v1/status").body).value_or(Json::object()).value("problems", Json::object()).empty(); }));
    std::filesystem::remove(workspace_ / "OUT");
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 5u);
    EXPECT_EQ(played->runs(), 1);
}

TEST_F(RecoveryTest, AMetsThatCannotBeSavedIsTriedAgainAndNothingIsLost) {
    if (::geteuid() == 0) {
        // root writes everywhere: an immutable state is made by a folder in the place of the METS
        start();
        std::atomic<bool> go = false;
        auto played = worker("ocrd-ocrctl-dummy", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
            hold_until([&] { return go.load(); });
            return result;
        });
        auto job = submit(job_body());
        ASSERT_TRUE(eventually([&] { return played->runs() == 1; }));
        // The output group's name is taken by a file: its folder cannot be made.
        std::ofstream(workspace_ / "OUT") << "in the way";
        go = true;
        ASSERT_TRUE(eventually([&] {
            auto status = parse_json(server_->get("/v1/status").body);
            return status && !(*status)["problems"].empty();
        })) << server_->get("/v1/status").body;
        EXPECT_NE(server_->state_of(job), "SUCCESS");
        server_->kill();
        start();
        EXPECT_NE(server_->state_of(job), "SUCCESS");
        std::filesystem::remove(workspace_ / "OUT");
        ASSERT_TRUE(reaches(job, "SUCCESS"));
        EXPECT_EQ(files_in("OUT"), 5u);
        EXPECT_EQ(played->runs(), 1);
    } else {
        start();
        std::atomic<bool> go = false;
        auto played = worker("ocrd-ocrctl-dummy", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
            hold_until([&] { return go.load(); });
            return result;
        });
        auto job = submit(job_body());
        ASSERT_TRUE(eventually([&] { return played->runs() == 1; }));
        std::filesystem::permissions(workspace_, std::filesystem::perms(0555));
        go = true;
        ASSERT_TRUE(eventually([&] {
            auto status = parse_json(server_->get("/v1/status").body);
            return status && !(*status)["problems"].empty();
        }));
        std::filesystem::permissions(workspace_, std::filesystem::perms(0755));
        ASSERT_TRUE(reaches(job, "SUCCESS"));
    }
}

TEST_F(RecoveryTest, AnOrderlyStopSavesWhatIsAppliedAndEndsWithoutError) {
    start();
    auto played = worker();
    ASSERT_TRUE(reaches(submit(job_body()), "SUCCESS"));
    submit(job_body("MORE"));
    EXPECT_EQ(server_->stop(), 0) << server_->log_text();
    start();
    ASSERT_TRUE(eventually([&] { return files_in("MORE") == 5; }));
}

TEST_F(RecoveryTest, SaysWhyItCannotStart) {
    start();
    // a second one on the same state
    ServerProcess second(state_, port_);
    second.start({}, false);
    ASSERT_TRUE(eventually([&] { return second.gone(); }));
    EXPECT_NE(server_->log_text().find("another processing server runs on"), std::string::npos);
    // the port is taken
    auto other = folder_ / "other";
    std::filesystem::create_directories(other / "secrets");
    std::filesystem::copy_file(state_ / "secrets/amqp", other / "secrets/amqp");
    std::ofstream(other / "server.json") << settings_.dump();
    ServerProcess third(other, port_);
    third.start({}, false);
    ASSERT_TRUE(eventually([&] { return third.gone(); }));
    EXPECT_NE(third.log_text().find(fmt::format("port {}", port_)), std::string::npos) << third.log_text();
}

} // namespace
} // namespace ocrctl::server::test
