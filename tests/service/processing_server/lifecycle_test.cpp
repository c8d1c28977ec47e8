// Jobs and workflows from submission to their end, with a Worker played by the test.
#include "tests/service/processing_server/harness.hpp"

namespace ocrctl::server::test {
namespace {

class LifecycleTest : public ServerTest {
protected:
    void SetUp() override {
        ServerTest::SetUp();
        if (!IsSkipped() && !HasFatalFailure()) start();
    }
    std::string run_workflow(std::string const& query, std::string const& script) {
        auto answer = server_->run_workflow("mets_path=" + (workspace_ / "mets.xml").native() + query, script);
        EXPECT_EQ(answer.status, 200) << answer.body;
        last_ = *parse_json(answer.body);
        return last_.value("job_id", "");
    }
    std::string workflow_state(std::string const& id) {
        auto answer = parse_json(server_->get("/workflow/job-simple/" + id).body);
        return answer ? answer->value("state", "") : "";
    }
    Json last_;
};

TEST_F(LifecycleTest, AJobsFilesAreInPlaceAndInTheMetsWhenItIsSuccess) {
    auto played = worker();
    auto job = submit(job_body());
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 5u);
    EXPECT_TRUE(std::filesystem::exists(workspace_ / "OUT" / "OUT_0001.xml"));
    EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(workspace_ / ".ocrctl"); })) << "nothing of the run is left";
    EXPECT_EQ(mets().agents().size(), 1u);
    auto shown = *parse_json(server_->get("/processor/job/" + job).body);
    EXPECT_TRUE(shown.contains("log_file_path"));
    auto log = server_->get("/processor/log/" + job);
    EXPECT_EQ(log.status, 200);
    EXPECT_NE(log.body.find("did " + job), std::string::npos);
    EXPECT_NE(std::string(log.headers.get("Content-Disposition")).find(job + ".log"), std::string::npos);
}

TEST_F(LifecycleTest, PagesWhoseOutputExistsAreLeftOutAndNoneLeftNeedsNoWorker) {
    auto played = worker();
    auto body = job_body();
    body["page_id"] = "PHYS_0001..PHYS_0002";
    ASSERT_TRUE(reaches(submit(body), "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 2u);
    auto runs = played->runs();
    ASSERT_TRUE(reaches(submit(body), "SUCCESS"));
    EXPECT_EQ(played->runs(), runs);
    ASSERT_TRUE(reaches(submit(job_body()), "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 5u);
}

TEST_F(LifecycleTest, OverwriteDoesThemAgain) {
    auto played = worker();
    ASSERT_TRUE(reaches(submit(job_body()), "SUCCESS"));
    auto body = job_body();
    body["existing_output"] = "overwrite";
    ASSERT_TRUE(reaches(submit(body), "SUCCESS"));
    EXPECT_EQ(played->runs(), 2);
    EXPECT_EQ(files_in("OUT"), 5u);
}

TEST_F(LifecycleTest, AJobWaitsForThoseItDependsOnAndIsCancelledWithThem) {
    std::atomic<bool> go = false;
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const& task, TaskResult result) -> std::optional<TaskResult> {
        hold_until([&] { return go.load(); });
        if (task.output_groups[0] == "BAD")
            for (auto& page : result.pages) page = PageOutcome{page.page_id, false, "no good", false, {}, {}};
        return result;
    });
    auto first = submit(job_body("A"));
    auto second_body = job_body("B");
    second_body["input_file_grps"] = {"A"};
    second_body["depends_on"] = {first};
    auto second = submit(second_body);
    EXPECT_EQ(server_->state_of(second), "CACHED");
    auto bad = submit(job_body("BAD"));
    auto after_bad = job_body("C");
    after_bad["depends_on"] = {bad};
    auto third = submit(after_bad);
    auto after_third = job_body("D");
    after_third["depends_on"] = {third};
    auto fourth = submit(after_third);
    go = true;
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    EXPECT_EQ(files_in("B"), 5u);
    ASSERT_TRUE(reaches(bad, "FAILED"));
    ASSERT_TRUE(reaches(third, "CANCELLED"));
    ASSERT_TRUE(reaches(fourth, "CANCELLED"));
    EXPECT_NE(server_->get("/v1/jobs/" + third).body.find(bad), std::string::npos) << "it says because of whom";
    auto late = *parse_json(server_->run("ocrd-ocrctl-dummy", after_bad).body);
    EXPECT_EQ(late["state"], "CANCELLED") << "a dependency that failed already";
}

TEST_F(LifecycleTest, AFailedHolderOfPagesReleasesThoseWhoWaitForThem) {
    std::atomic<int> runs = 0;
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
        if (runs++ == 0) {
            result.pages.clear();
            result.error = "no such model";
        }
        return result;
    });
    auto first = submit(job_body());
    auto second = submit(job_body());
    ASSERT_TRUE(reaches(first, "FAILED"));
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    EXPECT_NE(server_->get("/v1/jobs/" + first).body.find("no such model"), std::string::npos);
}

TEST_F(LifecycleTest, ADependencyInAnotherWorkspaceReleasesAtOnce) {
    make_workspace(folder_ / "data" / "ws2", 2);
    auto first = submit(job_body());
    auto body = job_body();
    body["path_to_mets"] = (folder_ / "data/ws2/mets.xml").native();
    body["depends_on"] = {first};
    auto second = submit(body);
    EXPECT_EQ(server_->state_of(second), "CACHED");
    auto played = worker();
    ASSERT_TRUE(reaches(second, "SUCCESS")) << "nothing else happens in its workspace";
    EXPECT_EQ(server_->state_of(first), "SUCCESS");
}

TEST_F(LifecycleTest, AJobWhoseDependencyEndedStillWaitsForItsPages) {
    std::atomic<bool> go = false;
    auto played = worker("ocrd-ocrctl-dummy");
    auto slow = worker("ocrd-ocrctl-binarize", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
        hold_until([&] { return go.load(); });
        return result;
    });
    auto holder = submit(job_body("OUT"), "ocrd-ocrctl-binarize");
    ASSERT_TRUE(eventually([&] { return slow->runs() == 1; }));
    auto first = submit(job_body("A"));
    auto body = job_body("OUT");
    body["depends_on"] = {first};
    auto second = submit(body);
    auto third = submit(job_body("OUT"));
    ASSERT_TRUE(reaches(first, "SUCCESS"));
    EXPECT_EQ(server_->state_of(second), "CACHED") << "its pages are being written";
    EXPECT_EQ(server_->state_of(third), "CACHED");
    EXPECT_EQ(played->runs(), 1);
    go = true;
    ASSERT_TRUE(reaches(holder, "SUCCESS"));
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    ASSERT_TRUE(reaches(third, "SUCCESS"));
}

TEST_F(LifecycleTest, TransientTroubleIsRetriedAndADataErrorIsNot) {
    std::atomic<int> runs = 0;
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const& task, TaskResult result) -> std::optional<TaskResult> {
        ++runs;
        if (task.attempt == 1 && task.output_groups[0] == "SHAKY") result.pages[1] = PageOutcome{result.pages[1].page_id, false, "stale file handle", true, {}, {}};
        if (task.output_groups[0] == "BROKEN") result.pages[0] = PageOutcome{result.pages[0].page_id, false, "truncated image", false, {}, {}};
        return result;
    });
    auto shaky = submit(job_body("SHAKY"));
    ASSERT_TRUE(reaches(shaky, "SUCCESS"));
    EXPECT_EQ(runs, 2);
    EXPECT_EQ(files_in("SHAKY"), 5u);
    auto broken = submit(job_body("BROKEN"));
    ASSERT_TRUE(reaches(broken, "FAILED")); // one of five is more than a tenth
    EXPECT_EQ(runs, 3);
    EXPECT_TRUE(eventually([&] { return files_in("BROKEN") == 4; })) << "the good pages are kept";
    auto log = server_->get("/processor/log/" + broken).body;
    EXPECT_NE(log.find("truncated image"), std::string::npos);
}

TEST_F(LifecycleTest, AJobThatKillsTwoEnginesIsQuarantinedAndOthersGoOn) {
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const& task, TaskResult result) -> std::optional<TaskResult> {
        if (task.output_groups[0] == "POISON") {
            result.pages.clear();
            result.engine_died = true;
            result.error = "the engine was ended by signal 11";
        }
        return result;
    });
    auto poison = submit(job_body("POISON"));
    auto good = submit(job_body("GOOD"));
    ASSERT_TRUE(reaches(good, "SUCCESS"));
    ASSERT_TRUE(reaches(poison, "FAILED"));
    auto shown = *parse_json(server_->get("/v1/jobs/" + poison).body);
    EXPECT_EQ(shown["quarantined"], true);
    EXPECT_NE(shown["reason"].get<std::string>().find("signal 11"), std::string::npos);
    EXPECT_EQ(played->runs(), 3);
}

TEST_F(LifecycleTest, OnlyOneResultOfAnAttemptCounts) {
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const& task, TaskResult result) -> std::optional<TaskResult> {
        // A second run of the same attempt, as after a redelivery: published first by hand.
        auto twin = PlayedWorker::well(task);
        auto session = queue::Session::open(*queue::parse_broker_url(broker().url()), "twin");
        EXPECT_TRUE(session);
        if (session) EXPECT_TRUE(session->publish({.queue = result_queue(name_, result_index(task.workspace)), .body = dump(Json(twin))}));
        return result;
    });
    auto job = submit(job_body());
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 5u);
    EXPECT_EQ(mets().agents().size(), 1u);
    EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(workspace_ / ".ocrctl"); })) << "the other run's files are gone";
}

TEST_F(LifecycleTest, APageWiseWorkflowMovesEachPageOnByItself) {
    std::atomic<bool> hold = true;
    auto slow = worker("ocrd-ocrctl-dummy", [&](Task const& task, TaskResult result) -> std::optional<TaskResult> {
        if (task.pages[0].page_id == "PHYS_0005") hold_until([&] { return !hold.load(); });
        return result;
    });
    auto second = worker("ocrd-ocrctl-binarize");
    auto id = run_workflow("&page_wise=True", "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-binarize -I A -O B\n");
    EXPECT_EQ(last_["page_wise"], true);
    EXPECT_EQ(last_["processing_job_ids"].size(), 5u);
    EXPECT_EQ(last_["processing_job_ids"]["PHYS_0003"].size(), 2u);
    auto page1 = last_["processing_job_ids"]["PHYS_0001"][1].get<std::string>();
    ASSERT_TRUE(reaches(page1, "SUCCESS"));
    EXPECT_EQ(workflow_state(id), "RUNNING");
    hold = false;
    ASSERT_TRUE(eventually([&] { return workflow_state(id) == "SUCCESS"; }));
    EXPECT_EQ(files_in("A"), 5u);
    EXPECT_EQ(files_in("B"), 5u);
    EXPECT_EQ(*parse_json(server_->get("/workflow/job/" + id).body), (Json{{"ocrd-ocrctl-dummy", {{"SUCCESS", 5}}}, {"ocrd-ocrctl-binarize", {{"SUCCESS", 5}}}}));
    EXPECT_EQ(mets().agents().size(), 2u) << "one agent a step, not one a page";
}

TEST_F(LifecycleTest, AWholeWorkflowHasOneJobATaskAndFailsAsAWhole) {
    auto played = worker();
    auto bad = worker("ocrd-ocrctl-binarize", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
        result.pages.clear();
        result.error = "no";
        return result;
    });
    auto id = run_workflow("", "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-binarize -I A -O B\nocrctl-dummy -I B -O C\n");
    ASSERT_TRUE(last_["processing_job_ids"].contains(""));
    EXPECT_EQ(last_["processing_job_ids"][""].size(), 3u);
    ASSERT_TRUE(eventually([&] { return workflow_state(id) == "FAILED"; }));
    ASSERT_TRUE(reaches(last_["processing_job_ids"][""][2], "CANCELLED"));
    auto status = *parse_json(server_->get("/workflow/job/" + id).body);
    EXPECT_EQ(status["ocrd-ocrctl-dummy"], (Json{{"SUCCESS", 1}, {"CANCELLED", 1}}));
    EXPECT_EQ(status["failed-processor-tasks"]["ocrd-ocrctl-binarize"][0]["job_id"], last_["processing_job_ids"][""][1]);
}

TEST_F(LifecycleTest, ACancelledJobIsNotRunAndItsLateResultIsThrownAway) {
    std::atomic<bool> go = false;
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
        hold_until([&] { return go.load(); });
        return result;
    });
    auto job = submit(job_body());
    ASSERT_TRUE(eventually([&] { return played->runs() == 1; }));
    auto answer = server_->request("POST", "/v1/jobs/" + job + "/cancel");
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(server_->state_of(job), "CANCELLED");
    EXPECT_EQ(server_->request("POST", "/v1/jobs/" + job + "/cancel").status, 409);
    EXPECT_EQ(server_->request("POST", "/v1/jobs/none/cancel").status, 404);
    auto next = submit(job_body());
    go = true;
    ASSERT_TRUE(reaches(next, "SUCCESS")) << "the lock is free";
    EXPECT_EQ(files_in("OUT"), 5u);
    EXPECT_EQ(server_->state_of(job), "CANCELLED");
    EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(workspace_ / ".ocrctl" / job); }));
}

TEST_F(LifecycleTest, AMetsThatSomebodyElseWroteMeanwhileKeepsBothChanges) {
    std::atomic<bool> go = false;
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
        hold_until([&] { return go.load(); });
        return result;
    });
    auto job = submit(job_body());
    ASSERT_TRUE(eventually([&] { return played->runs() == 1; }));
    {
        auto other = mets();
        ASSERT_TRUE(other.add_file(FileRef{"THEIRS", "THEIRS_1", "PHYS_0001", "text/plain", "THEIRS/1.txt", 0, ""}));
        ASSERT_TRUE(other.save());
    }
    go = true;
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("THEIRS"), 1u);
    EXPECT_EQ(files_in("OUT"), 5u);
}

TEST_F(LifecycleTest, EntriesThatSomebodyElseOverwroteComeBack) {
    std::atomic<bool> go = false;
    auto played = worker();
    auto slow = worker("ocrd-ocrctl-binarize", [&](Task const&, TaskResult result) -> std::optional<TaskResult> {
        hold_until([&] { return go.load(); });
        return result;
    });
    auto const old = *read_file(workspace_ / "mets.xml"); // what another program has in memory
    ASSERT_TRUE(reaches(submit(job_body("FIRST")), "SUCCESS"));
    auto second = submit(job_body("SECOND"), "ocrd-ocrctl-binarize");
    ASSERT_TRUE(eventually([&] { return slow->runs() == 1; }));
    ASSERT_EQ(files_in("FIRST"), 5u);
    std::filesystem::remove(workspace_ / "FIRST/FIRST_0002.xml");
    ASSERT_TRUE(write_file_atomically(workspace_ / "mets.xml", old));
    go = true;
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    EXPECT_EQ(files_in("SECOND"), 5u);
    EXPECT_EQ(files_in("FIRST"), 4u) << "only what is on disk";
    EXPECT_EQ(mets().agents().size(), 2u);
}

TEST_F(LifecycleTest, AResultThatTheMetsRefusesLeavesNoFile) {
    auto played = worker("ocrd-ocrctl-dummy", [&](Task const& task, TaskResult result) -> std::optional<TaskResult> {
        if (task.output_groups[0] == "A") result.pages[1].files[0].id = "not an id";
        else if (task.output_groups[0] == "B") std::filesystem::remove(std::filesystem::path(task.workspace) / result.staging / result.pages[4].files[0].path);
        else {
            std::ofstream(std::filesystem::path(task.workspace) / result.staging / "mets.xml") << "<evil/>";
            result.pages[4].files[0].path = "mets.xml";
            result.pages[4].files[0].size = 7;
        }
        return result;
    });
    for (auto const* group : {"A", "C", "B"}) {
        ASSERT_TRUE(reaches(submit(job_body(group)), "FAILED")) << group;
        EXPECT_FALSE(std::filesystem::exists(workspace_ / group)) << group;
        EXPECT_EQ(files_in(group), 0u);
    }
    EXPECT_EQ(files_in("OCR-D-IMG"), 5u);
    EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(workspace_ / ".ocrctl"); }));
}

TEST_F(LifecycleTest, StagingFoldersOfEndedJobsGoAtTheNextStart) {
    auto played = worker();
    auto job = submit(job_body());
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    server_->stop();
    std::filesystem::create_directories(workspace_ / ".ocrctl" / job / "late");
    std::filesystem::create_directories(workspace_ / ".ocrctl/run-1");
    start();
    EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(workspace_ / ".ocrctl" / job); }));
    EXPECT_TRUE(std::filesystem::exists(workspace_ / ".ocrctl/run-1")) << "not a Job's";
}

TEST_F(LifecycleTest, AClientIsCalledBackEvenIfItIsAwayAtFirst) {
    auto played = worker();
    auto port = free_port();
    auto body = job_body();
    body["callback_url"] = fmt::format("http://127.0.0.1:{}/done", port);
    body["result_queue_name"] = "client-" + name_;
    auto url = *queue::parse_broker_url(broker().url());
    auto session = queue::Session::open(url, "client");
    ASSERT_TRUE(session);
    ASSERT_TRUE(session->declare_classic("client-" + name_));
    auto job = submit(body);
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    auto text = request_on(port, "workspace_id");
    EXPECT_NE(text.find("POST /done"), std::string::npos);
    EXPECT_NE(text.find(job), std::string::npos);
    EXPECT_NE(text.find("SUCCESS"), std::string::npos);
    EXPECT_TRUE(eventually([&] { return session->count("client-" + name_).value_or(0) == 1; }));
}

TEST_F(LifecycleTest, AWorkflowsClientIsCalledBackOverARestartToo) {
    auto played = worker();
    auto port = free_port();
    auto callback = fmt::format("&workflow_callback_url=http://127.0.0.1:{}/flow", port);
    auto good = run_workflow("&page_wise=true" + callback, "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-dummy -I A -O B\n");
    auto text = request_on(port, "workspace_id");
    EXPECT_NE(text.find("POST /flow"), std::string::npos) << text;
    EXPECT_NE(text.find(good), std::string::npos) << text;
    EXPECT_NE(text.find("\"SUCCESS\""), std::string::npos) << text;
    EXPECT_EQ(workflow_state(good), "SUCCESS") << "not before its end";
    // One that fails while its client is away, and a server that is killed before the client is back.
    std::filesystem::remove(workspace_ / "OCR-D-IMG" / "0003.png");
    auto bad = run_workflow("&page_wise=true" + callback, "ocrctl-dummy -I OCR-D-IMG -O C\n");
    ASSERT_TRUE(eventually([&] { return workflow_state(bad) == "FAILED" && (*parse_json(server_->get("/v1/status").body))["open"] == 0; }));
    server_->kill();
    start();
    while ((text = request_on(port, "workspace_id")).find(good) != std::string::npos) {
        // nothing was answered to the first call: it is told again
    }
    EXPECT_NE(text.find(bad), std::string::npos) << text;
    EXPECT_NE(text.find("\"FAILED\""), std::string::npos) << text;
    EXPECT_EQ(server_->run_workflow("mets_path=" + (workspace_ / "mets.xml").native() + "&workflow_callback_url=https://x/", "ocrctl-dummy -I OCR-D-IMG -O D\n").status, 422);
}

TEST_F(LifecycleTest, AMissingInputFileFailsItsPageOnly) {
    auto played = worker();
    std::filesystem::remove(workspace_ / "OCR-D-IMG" / "0003.png");
    auto id = run_workflow("&page_wise=true", "ocrctl-dummy -I OCR-D-IMG -O A\n");
    auto bad = last_["processing_job_ids"]["PHYS_0003"][0].get<std::string>();
    ASSERT_TRUE(reaches(bad, "FAILED"));
    EXPECT_NE(server_->get("/v1/jobs/" + bad).body.find("0003.png"), std::string::npos);
    ASSERT_TRUE(eventually([&] { return files_in("A") == 4; }));
}

} // namespace
} // namespace ocrctl::server::test
