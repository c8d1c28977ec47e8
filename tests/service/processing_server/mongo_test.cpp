// The server with its Store in MongoDB: the same promises, and those about MongoDB going away and coming back.
#include "tests/service/processing_server/harness.hpp"

namespace ocrctl::server::test {
namespace {

constexpr char kTwoSteps[] = "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-dummy -I A -O B\n";

class MongoServerTest : public ServerTest {
protected:
    void SetUp() override {
        ServerTest::SetUp();
        if (!IsSkipped() && !HasFatalFailure()) use_mongo();
    }
    net::Response start_workflow() { return server_->run_workflow("page_wise=true&mets_path=" + (workspace_ / "mets.xml").native(), kTwoSteps); }
    bool ends_with(Json const& counts, std::chrono::seconds limit = 60s) {
        auto done = eventually(
            [&] {
                auto status = parse_json(server_->get("/v1/status").body);
                return status && (*status)["jobs"] == counts;
            },
            limit);
        if (!done) ADD_FAILURE() << server_->get("/v1/status").body;
        return done;
    }
};

TEST_F(MongoServerTest, AWorkflowRunsAndIsThereAfterARestart) {
    start();
    auto played = worker();
    auto answer = start_workflow();
    ASSERT_EQ(answer.status, 200) << answer.body;
    ASSERT_TRUE(ends_with(Json{{"SUCCESS", 10}}));
    EXPECT_EQ(files_in("B"), 5u);
    EXPECT_EQ(server_->stop(), 0) << server_->log_text();
    EXPECT_FALSE(std::filesystem::exists(state_ / "store" / "ocrctl.sqlite"));
    start();
    auto id = parse_json(answer.body)->value("job_id", "");
    EXPECT_EQ(*parse_json(server_->get("/workflow/job/" + id).body), (Json{{"ocrd-ocrctl-dummy", {{"SUCCESS", 10}}}}));
    EXPECT_EQ(mongo().documents(database_, "ocrctl_jobs").size(), 10u);
}

class MongoCrashPoint : public MongoServerTest, public testing::WithParamInterface<char const*> {};

TEST_P(MongoCrashPoint, LosesNothingWhenKilledThere) {
    start(GetParam());
    auto played = worker();
    (void)start_workflow();
    ASSERT_TRUE(eventually([&] { return server_->gone(); })) << "the point was not reached";
    start();
    ASSERT_TRUE(ends_with(Json{{"SUCCESS", 10}}));
    EXPECT_EQ(files_in("A"), 5u);
    EXPECT_EQ(files_in("B"), 5u);
}

INSTANTIATE_TEST_SUITE_P(Points, MongoCrashPoint,
                         testing::Values("server.after-accept", "server.after-commit", "server.after-rename", "server.after-save"), [](auto const& info) {
                             std::string name = info.param;
                             std::erase_if(name, [](char c) { return c == '.' || c == '-'; });
                             return name;
                         });

TEST_F(MongoServerTest, WithoutMongoSubmissionsAreRefusedWorkGoesOnAndNothingIsLost) {
    if (!mongo().ours()) GTEST_SKIP() << "the named MongoDB is not ours to stop";
    start();
    auto played = worker();
    ASSERT_TRUE(reaches(submit(job_body("FIRST")), "SUCCESS"));
    std::atomic<bool> go = false;
    auto slow = worker("ocrd-ocrctl-binarize", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
        hold_until([&] { return go.load(); });
        return result;
    });
    auto under_way = submit(job_body("WORK"), "ocrd-ocrctl-binarize");
    ASSERT_TRUE(eventually([&] { return slow->runs() == 1; }));
    mongo().kill();
    auto refused = server_->run("ocrd-ocrctl-dummy", job_body("REFUSED"));
    EXPECT_EQ(refused.status, 503) << refused.body;
    EXPECT_NE(refused.body.find("MongoDB at "), std::string::npos) << refused.body;
    EXPECT_EQ(server_->state_of(under_way), "QUEUED") << "what is in memory is answered";
    go = true; // its result cannot be stored now
    ASSERT_TRUE(eventually([&] { return server_->log_text().find("result.not-stored") != std::string::npos; }));
    mongo().start();
    ASSERT_TRUE(reaches(under_way, "SUCCESS"));
    EXPECT_EQ(slow->runs(), 1) << "not computed again";
    EXPECT_EQ(files_in("WORK"), 5u);
    ASSERT_TRUE(reaches(submit(job_body("LAST")), "SUCCESS"));
    EXPECT_EQ(mongo().documents(database_, "ocrctl_jobs").size(), 3u) << "nothing of the refused one";
    EXPECT_NE(server_->log_text().find("mongo.back"), std::string::npos);
}

TEST_F(MongoServerTest, SaysThatMongoDoesNotAnswerAtStart) {
    std::ofstream(state_ / "secrets" / "mongo") << fmt::format("mongodb://user:hidden@127.0.0.1:{}/?serverSelectionTimeoutMS=500\n", free_port());
    start({}, false);
    ASSERT_TRUE(eventually([&] { return server_->gone(); }));
    auto log = server_->log_text();
    EXPECT_NE(log.find("does not answer"), std::string::npos) << log;
    EXPECT_EQ(log.find("hidden"), std::string::npos) << log;
}

} // namespace
} // namespace ocrctl::server::test
