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
                         testing::Values("server.after-accept", "server.after-journal", "server.after-commit", "server.after-rename", "server.after-save"), [](auto const& info) {
                             std::string name = info.param;
                             std::erase_if(name, [](char c) { return c == '.' || c == '-'; });
                             return name;
                         });

TEST_F(MongoServerTest, WithoutMongoJobsAreTakenWorkGoesOnAndNothingIsLost) {
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
    auto meanwhile = submit(job_body("MEANWHILE"));
    EXPECT_EQ(server_->state_of(under_way), "QUEUED") << "what is in memory is answered";
    go = true; // its result goes into the journal
    ASSERT_TRUE(eventually([&] { return files_in("WORK") == 5u && files_in("MEANWHILE") == 5u; }, 30s));
    auto unread = server_->get("/processor/job/00000000-0000-7000-8000-000000000000");
    EXPECT_EQ(unread.status, 503) << unread.body;
    EXPECT_NE(unread.body.find("MongoDB at "), std::string::npos) << unread.body;
    auto status = *parse_json(server_->get("/v1/status").body);
    EXPECT_NE(status["database"].value("problem", "").find("MongoDB at "), std::string::npos) << status;
    server_->kill(); // what is in the journal alone outlives the server too
    mongo().start();
    start();
    ASSERT_TRUE(reaches(under_way, "SUCCESS"));
    ASSERT_TRUE(reaches(meanwhile, "SUCCESS"));
    EXPECT_EQ(slow->runs(), 1) << "not computed again";
    ASSERT_TRUE(reaches(submit(job_body("LAST")), "SUCCESS"));
    EXPECT_EQ(mongo().documents(database_, "ocrctl_jobs").size(), 4u);
}

TEST_F(MongoServerTest, AJobIsTakenUpAfterThoseItDependsOnWhateverTheirOrderInTheStore) {
    start();
    auto held = worker("ocrd-ocrctl-binarize", [](Task const&, TaskResult) -> std::optional<TaskResult> { return std::nullopt; });
    auto first = submit(job_body("FIRST"), "ocrd-ocrctl-binarize");
    auto body = job_body("SECOND");
    body["depends_on"] = Json::array({first});
    auto second = submit(body, "ocrd-ocrctl-binarize");
    ASSERT_TRUE(eventually([&] { return mongo().documents(database_, "ocrctl_jobs").size() == 2; }));
    server_->kill();
    mongo().command(database_, fmt::format(R"({{"update":"ocrctl_jobs","updates":[{{"q":{{"_id":"{}"}},"u":{{"$set":{{"seq":99}}}}}}]}})", first));
    start();
    EXPECT_EQ(server_->state_of(second), "CACHED");
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
