// Jobs for foreign Workers: published as OCR-D's server does, ended by what the Worker wrote into its row, served to
// clients by us.
#include "tests/service/processing_server/foreign_harness.hpp"

namespace ocrctl::server::test {
namespace {

using End = PlayedOcrdWorker::End;

class ForeignJobsTest : public ForeignTest {
protected:
    std::string start_workflow(std::string const& script, bool page_wise = true) {
        auto answer = server_->run_workflow(
            fmt::format("page_wise={}&mets_path={}", page_wise, (workspace_ / "mets.xml").native()), script);
        EXPECT_EQ(answer.status, 200) << answer.body;
        auto json = parse_json(answer.body);
        return json && json->is_object() ? json->value("job_id", "") : "";
    }
    bool workflow_reaches(std::string const& id, std::string const& state, std::chrono::seconds limit = 60s) {
        auto done = eventually([&] { return workflow_state(id) == state; }, limit);
        if (!done) ADD_FAILURE() << server_->get("/workflow/job/" + id).body << server_->get("/v1/status").body;
        return done;
    }
    /// Holds every Job between RUNNING and its end until go.
    PlayedOcrdWorker::Play held(std::atomic<bool>& go) {
        return [&go](Json const&) {
            hold_until([&] { return go.load(); });
            return End::Success;
        };
    }
    net::Response call_back(Json const& body) { return server_->post("/result_callback", body); }
};

TEST_F(ForeignJobsTest, AWorkerOfTheCommonVhostIsFoundAndDoesAJob) {
    start();
    EXPECT_EQ(server_->run("ocrd-dummy", job_body()).status, 422) << "nobody runs it";
    auto played = ocrd_worker();
    EXPECT_EQ(*parse_json(server_->get("/processor").body),
              (Json{"ocrd-dummy", "ocrd-ocrctl-binarize", "ocrd-ocrctl-dummy"}));
    auto job = dummy("OUT", Json{{"parameters", {{"copy_files", true}}}, {"page_id", "PHYS_0002..PHYS_0003"}});
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 2u);
    auto message = played->messages().at(0);
    EXPECT_EQ(message["internal_callback_url"], fmt::format("http://127.0.0.1:{}/result_callback", port_));
    EXPECT_EQ(message["page_id"], "PHYS_0002..PHYS_0003");
    EXPECT_EQ(message["parameters"], (Json{{"copy_files", true}}));
    EXPECT_EQ(message["path_to_mets"], (workspace_ / "mets.xml").native());
    std::set<std::string> keys;
    for (auto const& [key, value] : message.items()) {
        keys.insert(key);
        EXPECT_FALSE(value.is_null()) << key;
    }
    EXPECT_EQ(keys,
              (std::set<std::string>{"created_time", "input_file_grps", "internal_callback_url", "job_id",
                                     "output_file_grps", "page_id", "parameters", "path_to_mets", "processor_name"}));
    auto stored = row(job);
    EXPECT_EQ(stored["state"], "SUCCESS");
    EXPECT_EQ(stored["exec_time"], "14 ms");
    auto shown = *parse_json(server_->get("/processor/job/" + job).body);
    EXPECT_EQ(shown["log_file_path"], (folder_ / "ocrdlogs" / (job + ".log")).native());
    auto log = server_->get("/processor/log/" + job);
    EXPECT_EQ(log.status, 200);
    EXPECT_NE(log.body.find("ocrd-dummy begins"), std::string::npos) << log.body;
}

TEST_F(ForeignJobsTest, RunningIsSeenAndTheLogIsReadWhileAWorkerHasTheJob) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto job = dummy();
    EXPECT_TRUE(reaches(job, "RUNNING"));
    EXPECT_EQ(server_->get("/processor/log/" + job).status, 200);
    EXPECT_EQ(server_->post("/v1/jobs/" + job + "/cancel", Json::object()).status, 409);
    EXPECT_NE(server_->post("/v1/jobs/" + job + "/cancel", Json::object()).body.find("NOT_SUPPORTED"),
              std::string::npos);
    go = true;
    EXPECT_TRUE(reaches(job, "SUCCESS"));
}

TEST_F(ForeignJobsTest, ALogOnAnotherMachineIsSaidAndStrangeLogPathsAreNotRead) {
    start();
    auto played = ocrd_worker();
    played->after_running = [&](Json const& message) {
        auto id = message["job_id"].get<std::string>();
        std::filesystem::remove(folder_ / "ocrdlogs" / (id + ".log"));
        return End::Success;
    };
    auto job = dummy();
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    auto log = server_->get("/processor/log/" + job);
    EXPECT_EQ(log.status, 404);
    EXPECT_NE(log.body.find("cannot be read on this machine"), std::string::npos) << log.body;
    played->after_running = [&](Json const& message) {
        OcrdDatabase database(mongo_url_);
        auto document = database.find("DBProcessorJob", Json{{"job_id", message["job_id"]}});
        document["log_file_path"] = "/etc/passwd";
        database.replace("DBProcessorJob", document);
        return End::Success;
    };
    auto other = dummy("OTHER");
    ASSERT_TRUE(reaches(other, "SUCCESS"));
    EXPECT_NE(server_->get("/processor/log/" + other).body.find("log"), std::string::npos);
    EXPECT_EQ(server_->get("/processor/log/" + other).body.find("root:"), std::string::npos);
}

TEST_F(ForeignJobsTest, AFailureSaysWhatTheLogSaysAndCancelsWhatDependsOnIt) {
    start();
    auto played = ocrd_worker("ocrd-dummy", [](Json const&) { return End::Failed; });
    auto failing = start_workflow("dummy -I OCR-D-IMG -O A\ndummy -I A -O B\n", false);
    ASSERT_TRUE(workflow_reaches(failing, "FAILED"));
    ASSERT_TRUE(eventually([&] { return *parse_json(server_->get("/v1/status").body)->find("open") == 0; }));
    auto status = *parse_json(server_->get("/workflow/job/" + failing).body);
    EXPECT_EQ(status["ocrd-dummy"], (Json{{"FAILED", 1}, {"CANCELLED", 1}}));
    auto id = status["failed-processor-tasks"]["ocrd-dummy"][0]["job_id"].get<std::string>();
    EXPECT_NE(parse_json(server_->get("/processor/job/" + id).body)->value("reason", "").find("no such model"),
              std::string::npos)
        << server_->get("/processor/job/" + id).body;
    EXPECT_EQ(played->runs(), 1);
    // What depends on a Job that has failed already is cancelled at once; in OCR-D it stays CACHED for ever.
    auto late = job_body("LATE");
    late["depends_on"] = Json{id};
    auto answer = server_->run("ocrd-dummy", late);
    EXPECT_EQ(parse_json(answer.body)->value("state", ""), "CANCELLED") << answer.body;
}

TEST_F(ForeignJobsTest, AWorkflowMixesManagedAndForeignSteps) {
    start();
    auto ours = managed_worker();
    auto theirs = ocrd_worker();
    auto workflow =
        start_workflow("ocrctl-dummy -I OCR-D-IMG -O A\ndummy -I A -O B\nocrctl-dummy -I B -O C\ndummy -I C -O D\n");
    ASSERT_TRUE(workflow_reaches(workflow, "SUCCESS"));
    for (auto const* group : {"A", "B", "C", "D"}) EXPECT_EQ(files_in(group), 5u) << group;
    EXPECT_EQ(theirs->runs(), 10);
    EXPECT_EQ(ours->runs(), 10);
}

TEST_F(ForeignJobsTest, AClientThatCannotBeReachedIsNoBusinessOfTheWorker) {
    start();
    auto played = ocrd_worker();
    auto job =
        dummy("OUT", Json{{"callback_url", "http://127.0.0.1:1/none"}, {"result_queue_name", "client-" + name_}});
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_FALSE(played->exited());
    EXPECT_FALSE(played->messages().at(0).contains("callback_url"));
    auto session = queue::Session::open(*queue::parse_broker_url(amqp_), "client");
    ASSERT_TRUE(session);
    std::optional<queue::Delivery> result;
    ASSERT_TRUE(eventually([&] {
        auto got = session->get_one("client-" + name_);
        if (got && *got) result = **got;
        return result.has_value();
    })) << "the server makes the queue as a Worker does, and publishes there";
    EXPECT_EQ(*parse_json(result->body), (Json{{"job_id", job},
                                               {"state", "SUCCESS"},
                                               {"path_to_mets", (workspace_ / "mets.xml").native()},
                                               {"workspace_id", ""}}));
    EXPECT_EQ(server_
                  ->run("ocrd-dummy",
                        [&] {
                            auto body = job_body("S");
                            body["callback_url"] = "https://127.0.0.1/x";
                            return body;
                        }())
                  .status,
              422);
}

TEST_F(ForeignJobsTest, CallbacksAreAnsweredAndOnlyTheRowIsBelieved) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto job = dummy();
    ASSERT_TRUE(reaches(job, "RUNNING"));
    auto body = Json{{"job_id", job},
                     {"state", "SUCCESS"},
                     {"path_to_mets", (workspace_ / "mets.xml").native()},
                     {"workspace_id", ""}};
    auto early = call_back(body); // somebody else's
    EXPECT_EQ(early.status, 200);
    EXPECT_EQ(early.body, "null");
    EXPECT_EQ(server_->state_of(job), "RUNNING");
    go = true;
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(call_back(body).status, 200) << "once more";
    EXPECT_EQ(server_->state_of(job), "SUCCESS");
    body["state"] = "FAILED";
    EXPECT_EQ(call_back(body).status, 200) << "late";
    EXPECT_EQ(server_->state_of(job), "SUCCESS");

    body["state"] = "success";
    EXPECT_EQ(call_back(body).status, 422) << "case-sensitive";
    EXPECT_EQ(parse_json(call_back(body).body)->value("status_code", 0), 10422);
    body["state"] = "SUCCESS";
    auto unknown = body;
    unknown["job_id"] = "nobody";
    EXPECT_EQ(call_back(unknown).status, 404);
    EXPECT_TRUE(parse_json(call_back(unknown).body)->contains("detail"));
    auto nowhere = body;
    nowhere["path_to_mets"] = "";
    EXPECT_EQ(call_back(nowhere).status, 404);
    body.erase("job_id");
    EXPECT_EQ(call_back(body).status, 422);
    EXPECT_EQ(server_->request("POST", "/result_callback", "no json", {{"Content-Type", "application/json"}}).status,
              422);
}

TEST_F(ForeignJobsTest, JobsThatWaitForAWorkerCanBeCancelled) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto running = dummy("A"), published = dummy("B"), waiting = dummy("C");
    ASSERT_TRUE(reaches(running, "RUNNING"));
    // One waits in the queue, one in the Store.
    auto session = queue::Session::open(*queue::parse_broker_url(amqp_), "look");
    ASSERT_TRUE(session);
    ASSERT_TRUE(eventually([&] { return session->count("ocrd-dummy").value_or(0) == 1; }));
    EXPECT_EQ(server_->post("/v1/jobs/" + published + "/cancel", Json::object()).status, 200);
    EXPECT_EQ(server_->post("/v1/jobs/" + waiting + "/cancel", Json::object()).status, 200);
    EXPECT_EQ(server_->state_of(published), "CANCELLED");
    EXPECT_EQ(server_->state_of(waiting), "CANCELLED");
    EXPECT_EQ(session->count("ocrd-dummy").value_or(9), 0u);
    EXPECT_TRUE(eventually([&] { return row(published).value("state", "") == "CANCELLED"; }));
    go = true;
    ASSERT_TRUE(reaches(running, "SUCCESS"));
    EXPECT_EQ(played->runs(), 1);
}

TEST_F(ForeignJobsTest, JobsForAllPagesAndForOnePageMeet) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto one = dummy("OUT", Json{{"page_id", "PHYS_0001"}});
    auto all = dummy("OUT");
    auto again = dummy("OUT", Json{{"page_id", "PHYS_0002"}});
    ASSERT_TRUE(reaches(one, "RUNNING"));
    EXPECT_EQ(server_->state_of(all), "CACHED") << "in OCR-D it would overtake";
    EXPECT_EQ(server_->state_of(again), "CACHED");
    go = true;
    ASSERT_TRUE(reaches(again, "SUCCESS"));
    EXPECT_EQ(server_->state_of(all), "SUCCESS");
    EXPECT_EQ(files_in("OUT"), 5u);
    EXPECT_EQ(played->runs(), 2) << "the last one found its page done";
    EXPECT_EQ(played->messages().at(1).value("page_id", ""), "PHYS_0002,PHYS_0003,PHYS_0004,PHYS_0005")
        << "what is done is not done again";
}

TEST_F(ForeignJobsTest, AWorkspaceIdLeadsToItsPath) {
    start();
    auto played = ocrd_worker();
    ASSERT_TRUE(reaches(dummy("A"), "SUCCESS"));
    auto workspace =
        OcrdDatabase(mongo_url_).find("workspace", Json{{"workspace_mets_path", (workspace_ / "mets.xml").native()}});
    ASSERT_FALSE(workspace.is_null());
    EXPECT_EQ(workspace["mets_server_url"], fmt::format("http://127.0.0.1:{}/tcp_mets", port_));
    auto body = job_body("B");
    body.erase("path_to_mets");
    body["workspace_id"] = workspace["workspace_id"];
    auto job = submit(body, "ocrd-dummy");
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_FALSE(played->exited()) << "its message has the path only";
    body["workspace_id"] = "unknown";
    EXPECT_EQ(server_->run("ocrd-dummy", body).status, 404);
}

TEST_F(ForeignJobsTest, APathThroughALinkIsTheSameWorkspace) {
    start();
    auto played = ocrd_worker();
    std::filesystem::create_directory_symlink(workspace_, folder_ / "data" / "link");
    auto body = job_body();
    body["path_to_mets"] = (folder_ / "data" / "link" / "mets.xml").native();
    ASSERT_TRUE(reaches(submit(body, "ocrd-dummy"), "SUCCESS"));
    EXPECT_EQ(played->messages().at(0)["path_to_mets"], (workspace_ / "mets.xml").native());
    EXPECT_EQ(files_in("OUT"), 5u);
}

TEST_F(ForeignJobsTest, WhatAWorkerWouldNotDoIsRefused) {
    start();
    auto played = ocrd_worker();
    auto body = job_body();
    body["existing_output"] = "overwrite";
    auto overwrite = server_->run("ocrd-dummy", body);
    EXPECT_EQ(overwrite.status, 422);
    EXPECT_NE(overwrite.body.find("NOT_SUPPORTED"), std::string::npos);
    std::filesystem::copy_file(workspace_ / "mets.xml", workspace_ / "other.xml");
    body = job_body();
    body["path_to_mets"] = (workspace_ / "other.xml").native();
    EXPECT_EQ(server_->run("ocrd-dummy", body).status, 422);
    ASSERT_TRUE(reaches(dummy(), "SUCCESS"));
    body = job_body();
    body["existing_output"] = "abort";
    EXPECT_EQ(server_->run("ocrd-dummy", body).status, 409);
    ASSERT_TRUE(reaches(dummy(), "SUCCESS"));
    EXPECT_EQ(played->runs(), 1) << "what is there already needs no Worker";
}

TEST_F(ForeignJobsTest, WorkflowsAndScriptsAreMirrored) {
    start();
    auto played = ocrd_worker();
    auto workflow = start_workflow("dummy -I OCR-D-IMG -O A\n");
    ASSERT_TRUE(workflow_reaches(workflow, "SUCCESS"));
    auto mirrored = OcrdDatabase(mongo_url_).find("DBWorkflowJob", Json{{"job_id", workflow}});
    ASSERT_FALSE(mirrored.is_null());
    EXPECT_EQ(mirrored["processing_job_ids"].size(), 5u);
    EXPECT_EQ(mirrored["page_wise"], true);
    auto body = "--b\r\nContent-Disposition: form-data; name=\"workflow\"; filename=\"w.txt\"\r\n\r\ndummy -I "
                "OCR-D-IMG -O A\r\n--b--\r\n";
    auto answer = server_->request("POST", "/workflow", body, {{"Content-Type", "multipart/form-data; boundary=b"}});
    ASSERT_EQ(answer.status, 201) << answer.body;
    auto id = parse_json(answer.body)->value("workflow_id", "");
    EXPECT_TRUE(eventually(
        [&] { return !OcrdDatabase(mongo_url_).find("DBWorkflowScript", Json{{"workflow_id", id}}).is_null(); }));
}

TEST_F(ForeignJobsTest, SeveralWorkersOfTheCommonVhostWorkAtOnce) {
    start();
    std::atomic<bool> go = false;
    auto one = ocrd_worker(), two = ocrd_worker();
    one->after_running = held(go);
    two->after_running = held(go);
    auto workflow = start_workflow("dummy -I OCR-D-IMG -O A\n");
    EXPECT_TRUE(eventually([&] { return one->runs() == 1 && two->runs() == 1; }));
    go = true;
    ASSERT_TRUE(workflow_reaches(workflow, "SUCCESS"));
    EXPECT_EQ(one->runs() + two->runs(), 5);
}

TEST_F(ForeignJobsTest, JobsWaitWhileTheirQueueHasNoWorker) {
    start();
    {
        auto gone = ocrd_worker();
    }
    ASSERT_TRUE(eventually([&] {
        auto session = queue::Session::open(*queue::parse_broker_url(amqp_), "look");
        return session && session->consumers("ocrd-dummy").value_or(9) == 0;
    }));
    auto job = dummy(); // its queue is there: accepted, as by OCR-D
    EXPECT_EQ(server_->state_of(job), "QUEUED");
    auto played = ocrd_worker();
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(played->runs(), 1);
}

TEST_F(ForeignJobsTest, WhatIsRefusedLeavesNothingInTheDatabase) {
    start();
    auto played = ocrd_worker();
    auto refused = [&](char const* key, Json value) {
        auto body = job_body();
        body[key] = std::move(value);
        return server_->run("ocrd-dummy", body).status;
    };
    EXPECT_EQ(refused("page_id", "PHYS_0001..FOO_0003"), 422);
    EXPECT_EQ(refused("page_id", "A..B"), 422);
    EXPECT_EQ(refused("output_file_grps", nullptr), 422);
    EXPECT_EQ(refused("input_file_grps", Json::array()), 422);
    EXPECT_EQ(refused("parameters", Json{{"no_such", 1}}), 400);
    OcrdDatabase database(mongo_url_);
    for (auto const* collection : {"DBProcessorJob", "workspace"})
        EXPECT_TRUE(database.find(collection, Json::object()).is_null()) << collection;
    EXPECT_EQ(parse_json(server_->run("ocrd-dummy", job_body()).body)->value("state", ""), "QUEUED")
        << "and holds no pages";
}

TEST_F(ForeignJobsTest, AFailedJobReleasesThoseWhoWaitForItsPages) {
    start();
    std::atomic<bool> go = false;
    std::atomic<int> runs = 0;
    auto played = ocrd_worker();
    played->after_running = [&](Json const&) {
        hold_until([&] { return go.load(); });
        return runs++ == 0 ? End::Failed : End::Success;
    };
    auto first = dummy(), second = dummy(), other = dummy("OTHER");
    EXPECT_EQ(server_->state_of(second), "CACHED") << "without depends_on";
    go = true;
    ASSERT_TRUE(reaches(first, "FAILED"));
    EXPECT_EQ(call_back(Json{{"job_id", first},
                             {"state", "FAILED"},
                             {"path_to_mets", (workspace_ / "mets.xml").native()},
                             {"workspace_id", ""}})
                  .status,
              200);
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    ASSERT_TRUE(reaches(other, "SUCCESS"));
}

TEST_F(ForeignJobsTest, InSocketModeTheLastCallbackIsAnsweredAndTheSocketGoes) {
    settings_["use_tcp_mets"] = false;
    start();
    auto played = ocrd_worker();
    auto job = dummy();
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 5u);
    auto workspace =
        OcrdDatabase(mongo_url_).find("workspace", Json{{"workspace_mets_path", (workspace_ / "mets.xml").native()}});
    auto socket = workspace["mets_server_url"].get<std::string>();
    EXPECT_TRUE(socket.ends_with(".sock")) << socket;
    EXPECT_EQ(call_back(Json{{"job_id", job},
                             {"state", "SUCCESS"},
                             {"path_to_mets", (workspace_ / "mets.xml").native()},
                             {"workspace_id", ""}})
                  .status,
              200);
    EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(socket); })) << "nobody needs it any more";
}

TEST_F(ForeignJobsTest, CallbacksAreQuickHoweverManyJobsWait) {
    std::filesystem::remove_all(workspace_);
    make_workspace(workspace_, 300);
    start();
    auto played = ocrd_worker();
    auto workflow = start_workflow("dummy -I OCR-D-IMG -O A\ndummy -I A -O B\ndummy -I B -O C\ndummy -I C -O D\n");
    ASSERT_TRUE(eventually([&] { return played->runs() >= 5; }));
    auto messages = played->messages();
    std::chrono::steady_clock::duration slowest{};
    for (int i = 0; i < 20; ++i) {
        auto began = std::chrono::steady_clock::now();
        EXPECT_EQ(call_back(Json{{"job_id", messages[0]["job_id"]},
                                 {"state", "SUCCESS"},
                                 {"path_to_mets", (workspace_ / "mets.xml").native()},
                                 {"workspace_id", ""}})
                      .status,
                  200);
        slowest = std::max(slowest, std::chrono::steady_clock::now() - began);
    }
    EXPECT_LT(slowest, 500ms) << "in OCR-D each asks the database about every one of the 900 Jobs that wait";
    EXPECT_NE(workflow_state(workflow), "FAILED");
}

TEST_F(ForeignJobsTest, SubmissionsOpenNoConnectionsToTheBroker) {
    start();
    auto played = ocrd_worker();
    ASSERT_TRUE(reaches(dummy("FIRST"), "SUCCESS"));
    // What the log says comes a moment late: a connection of one's own marks the place.
    auto seen = [&, last = std::size_t(0)]() mutable {
        auto before = broker().connections_seen();
        EXPECT_TRUE(queue::Session::open(*queue::parse_broker_url(amqp_), "mark"));
        EXPECT_TRUE(eventually([&] { return broker().connections_seen() > std::max(before, last); }));
        return last = broker().connections_seen();
    };
    auto before = seen();
    for (int i = 0; i < 50; ++i) dummy(fmt::format("G{}", i));
    EXPECT_LE(seen(), before + 5) << "in OCR-D one for each, to look whether there is a Worker";
}

TEST_F(ForeignJobsTest, ARequiredParameterStaysRequired) {
    auto tools = *parse_json(*read_file(state_ / "tools.json"));
    tools["ocrd-other"]["parameters"]["model"] = {{"type", "string"}, {"description", "m"}, {"required", true}};
    std::ofstream(state_ / "tools.json") << tools.dump();
    start();
    auto played = ocrd_worker("ocrd-other");
    auto with = job_body();
    with["parameters"] = {{"model", "x"}};
    for (int i = 0; i < 2; ++i) {
        auto without = server_->run("ocrd-other", job_body());
        EXPECT_EQ(without.status, 400) << without.body;
        EXPECT_NE(without.body.find("model"), std::string::npos);
        EXPECT_EQ(server_->run("ocrd-other", with).status, 200);
        EXPECT_EQ(*parse_json(server_->get("/processor/info/ocrd-other").body), tools["ocrd-other"]);
    }
}

TEST_F(ForeignJobsTest, AMetsEditedByHandWhileAWorkerWorksKeepsBoth) {
    start();
    std::atomic<bool> go = false;
    auto played = ocrd_worker();
    played->after_running = held(go);
    auto job = dummy();
    ASSERT_TRUE(reaches(job, "RUNNING"));
    auto text = *read_file(workspace_ / "mets.xml");
    text.insert(text.find("</mets:mets>"), "<!-- by hand -->");
    std::ofstream(workspace_ / "mets.xml") << text;
    go = true;
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("OUT"), 5u);
    EXPECT_NE(read_file(workspace_ / "mets.xml")->find("by hand"), std::string::npos);
}

} // namespace
} // namespace ocrctl::server::test
