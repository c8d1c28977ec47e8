// OCR-D's collections as OCR-D's own programs see them: the raw documents are read back, and written as its Workers write.
#include "tests/unit/store/stores.hpp"

namespace ocrctl::store {
namespace {

Json number(int value) { return Json{{"$numberInt", std::to_string(value)}}; }
Json date(std::string const& millis) { return Json{{"$date", Json{{"$numberLong", millis}}}}; }

class OcrdDocumentsTest : public testing::Test {
protected:
    void SetUp() override {
        OCRCTL_NEEDS_MONGO();
        database_ = mongo().fresh_database();
        open();
    }
    void TearDown() override { close(); }
    void open() {
        auto opened = open_mongo({.url = Secret(mongo().url(database_)), .patience = std::chrono::milliseconds(1500)});
        ASSERT_TRUE(opened) << opened.error().message();
        stores_ = std::move(*opened);
    }
    void close() {
        stores_.documents.reset();
        if (stores_.store) stores_.store->close();
        stores_.store.reset();
    }
    OcrdDocuments& documents() { return *stores_.documents; }
    void good(awaitable<Result<void>> work) {
        auto done = run(io_, std::move(work));
        ASSERT_TRUE(done) << done.error().message();
    }
    void put(Job job) { good(documents().put_jobs({std::move(job)})); }
    Json only(std::string const& collection) {
        auto found = mongo().documents(database_, collection);
        if (found.size() != 1) throw std::runtime_error(fmt::format("{} documents in {}", found.size(), collection));
        return found.front();
    }
    /// As OCR-D's Worker does it: the row is read, some attributes are changed, every field is written back.
    void worker_writes(std::string const& id, Json const& changes) {
        auto row = mongo().documents(database_, "DBProcessorJob", Json{{"job_id", id}}).front();
        auto key = row["_id"];
        row.erase("_id");
        row.update(changes);
        Json rest{{"query", {{"_id", key}}}, {"update", {{"$set", row}}}, {"upsert", true}, {"new", true}};
        // The command's name has to be its first key.
        mongo().command(database_, R"({"findAndModify":"DBProcessorJob",)" + dump(rest).substr(1));
    }

    std::string database_;
    asio::io_context io_;
    MongoStores stores_;
};

Job submitted(std::string id) {
    Job job;
    job.id = JobId(std::move(id));
    job.target.name = "ocrd-dummy";
    job.path_to_mets = "/data/ws/mets.xml";
    job.input_groups = {"OCR-D-IMG"};
    job.internal_callback_url = "http://host:8080/result_callback";
    job.attempt = 1;
    job.state = JobState::Queued;
    return job;
}

TEST_F(OcrdDocumentsTest, AJobsRowHasOcrdsFieldsAndNoOthers) {
    auto job = submitted("j1");
    job.output_groups = {"OUT", "OUT2"};
    job.page_id = "PHYS_0001..PHYS_0003";
    job.parameters = Json{{"level", 3}, {"ratio", 0.5}, {"big", std::int64_t{1} << 40}, {"deep", {{"list", {true, nullptr, "x"}}}}, {"none", nullptr}};
    job.depends_on = {JobId("a"), JobId("b")};
    job.description = "why";
    job.result_queue_name = "results";
    job.callback_url = "http://client/done";
    put(job);
    auto row = only("DBProcessorJob");
    EXPECT_TRUE(row["_id"].contains("$oid")) << row;
    row.erase("_id");
    EXPECT_EQ(row, (Json{{"job_id", "j1"},
                         {"processor_name", "ocrd-dummy"},
                         {"path_to_mets", "/data/ws/mets.xml"},
                         {"workspace_id", nullptr},
                         {"description", "why"},
                         {"state", "QUEUED"},
                         {"input_file_grps", {"OCR-D-IMG"}},
                         {"output_file_grps", {"OUT", "OUT2"}},
                         {"page_id", "PHYS_0001..PHYS_0003"},
                         {"parameters",
                          {{"level", number(3)},
                           {"ratio", {{"$numberDouble", "0.5"}}},
                           {"big", {{"$numberLong", "1099511627776"}}},
                           {"deep", {{"list", {true, nullptr, "x"}}}},
                           {"none", nullptr}}},
                         {"depends_on", {"a", "b"}},
                         {"result_queue_name", "results"},
                         {"callback_url", "http://client/done"},
                         {"internal_callback_url", "http://host:8080/result_callback"},
                         {"start_time", nullptr},
                         {"end_time", nullptr},
                         {"exec_time", nullptr},
                         {"log_file_path", nullptr}}));
}

TEST_F(OcrdDocumentsTest, WhatWasNotGivenIsAnExplicitNull) {
    put(submitted("j1"));
    auto row = only("DBProcessorJob");
    for (auto const* field : {"output_file_grps", "page_id", "depends_on", "description", "result_queue_name", "callback_url", "workspace_id", "start_time",
                              "end_time", "exec_time", "log_file_path"}) {
        ASSERT_TRUE(row.contains(field)) << field;
        EXPECT_TRUE(row[field].is_null()) << field << ": " << row[field];
    }
    EXPECT_EQ(row["parameters"], Json::object());
}

TEST_F(OcrdDocumentsTest, TheFirstTaskOfAWorkflowDependsOnAnEmptyList) {
    auto job = submitted("j1");
    job.workflow = WorkflowId("w");
    put(job);
    EXPECT_EQ(only("DBProcessorJob")["depends_on"], Json::array());
}

TEST_F(OcrdDocumentsTest, WhatAWorkerWroteIsRead) {
    put(submitted("j1"));
    put(submitted("j2"));
    worker_writes("j1", Json{{"state", "RUNNING"}, {"path_to_mets", "/elsewhere/mets.xml"}, {"log_file_path", "/tmp/log"}, {"start_time", date("1700000000123")}});
    auto rows = run(io_, documents().jobs({JobId("j1")})).value();
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows[0].id, JobId("j1"));
    EXPECT_EQ(rows[0].state, JobState::Running);
    EXPECT_EQ(rows[0].started, 1700000000123);
    EXPECT_EQ(rows[0].ended, 0);
    EXPECT_EQ(rows[0].log_file, "/tmp/log");
    worker_writes("j1", Json{{"state", "SUCCESS"}, {"end_time", date("1700000000137")}, {"exec_time", "14 ms"}});
    rows = run(io_, documents().jobs({JobId("j1"), JobId("j2"), JobId("unknown")})).value();
    ASSERT_EQ(rows.size(), 2u);
    auto const& first = rows[0].id == JobId("j1") ? rows[0] : rows[1];
    EXPECT_EQ(first.state, JobState::Success);
    EXPECT_EQ(first.ended, 1700000000137);
    EXPECT_EQ(first.exec_time, "14 ms");
    EXPECT_TRUE(run(io_, documents().jobs({})).value().empty());
}

TEST_F(OcrdDocumentsTest, AFurtherAttemptStartsWithACleanRowUnderTheSameObjectId) {
    auto job = submitted("j1");
    put(job);
    auto before = only("DBProcessorJob");
    worker_writes("j1", Json{{"state", "FAILED"}, {"exec_time", "14 ms"}, {"path_to_mets", "/elsewhere/mets.xml"}, {"start_time", date("1")}});
    job.attempt = 2;
    put(job);
    EXPECT_EQ(only("DBProcessorJob"), before);
}

TEST_F(OcrdDocumentsTest, RowsMayBePutAgain) {
    std::vector<Job> jobs{submitted("j1"), submitted("j2"), submitted("j3")};
    good(documents().put_jobs({jobs[1]}));
    good(documents().put_jobs(jobs));
    good(documents().put_jobs(jobs));
    EXPECT_EQ(mongo().documents(database_, "DBProcessorJob").size(), 3u);
}

TEST_F(OcrdDocumentsTest, TheServersEndOfAJobChangesItsStateAlone) {
    put(submitted("j1"));
    auto row = only("DBProcessorJob");
    good(documents().set_state(JobId("j1"), JobState::Cancelled));
    good(documents().set_state(JobId("unknown"), JobState::Cancelled));
    row["state"] = "CANCELLED";
    EXPECT_EQ(only("DBProcessorJob"), row);
}

TEST_F(OcrdDocumentsTest, AWorkspaceHasWhatAWorkersModelAsksFor) {
    good(documents().put_workspace("/data/ws/../ws/mets.xml", "/run/mets.sock"));
    auto row = only("workspace");
    auto id = row["workspace_id"].get<std::string>();
    EXPECT_EQ(id.size(), 36u);
    row.erase("_id");
    EXPECT_EQ(row, (Json{{"workspace_id", id},
                         {"workspace_mets_path", "/data/ws/../ws/mets.xml"},
                         {"ocrd_identifier", ""},
                         {"bagit_profile_identifier", ""},
                         {"ocrd_base_version_checksum", nullptr},
                         {"ocrd_mets", nullptr},
                         {"bag_info_adds", nullptr},
                         {"mets_server_url", "/run/mets.sock"},
                         {"deleted", false}}));
    EXPECT_EQ(run(io_, documents().path_of_workspace(id)).value(), "/data/ws/../ws/mets.xml");
    EXPECT_EQ(run(io_, documents().path_of_workspace("unknown")).value(), std::nullopt);
}

TEST_F(OcrdDocumentsTest, AWorkspaceKeepsItsIdAndWhatOthersPutThere) {
    good(documents().put_workspace("/data/ws/mets.xml", ""));
    auto row = only("workspace");
    EXPECT_TRUE(row["mets_server_url"].is_null());
    mongo().command(database_, R"({"update":"workspace","updates":[{"q":{},"u":{"$set":{"ocrd_identifier":"kant","foreign":7}}}]})");
    good(documents().put_workspace("/data/ws/mets.xml", "http://host/tcp_mets"));
    good(documents().put_workspace("/data/other/mets.xml", ""));
    auto found = mongo().documents(database_, "workspace", Json{{"workspace_mets_path", "/data/ws/mets.xml"}});
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0]["workspace_id"], row["workspace_id"]);
    EXPECT_EQ(found[0]["ocrd_identifier"], "kant");
    EXPECT_EQ(found[0]["foreign"], number(7));
    EXPECT_EQ(found[0]["mets_server_url"], "http://host/tcp_mets");
}

TEST_F(OcrdDocumentsTest, WorkflowsAndScriptsAreAsOcrdHasThem) {
    Workflow workflow;
    workflow.id = WorkflowId("w1");
    workflow.path_to_mets = "/data/ws/mets.xml";
    workflow.page_id = "PHYS_0001,PHYS_0002";
    workflow.page_wise = true;
    workflow.jobs = {{"PHYS_0001", {JobId("a"), JobId("b")}}, {"PHYS_0002", {JobId("c")}}};
    good(documents().put_workflow(workflow));
    good(documents().put_workflow(workflow));
    auto row = only("DBWorkflowJob");
    row.erase("_id");
    EXPECT_EQ(row, (Json{{"job_id", "w1"},
                         {"page_id", "PHYS_0001,PHYS_0002"},
                         {"page_wise", true},
                         {"processing_job_ids", {{"PHYS_0001", {"a", "b"}}, {"PHYS_0002", {"c"}}}},
                         {"path_to_mets", "/data/ws/mets.xml"},
                         {"workspace_id", nullptr},
                         {"description", nullptr},
                         {"workflow_callback_url", nullptr}}));
    good(documents().put_script({"s1", "dummy -I A -O B", "0123"}));
    auto script = only("DBWorkflowScript");
    script.erase("_id");
    EXPECT_EQ(script, (Json{{"workflow_id", "s1"}, {"content", "dummy -I A -O B"}, {"content_hash", "0123"}}));
}

TEST_F(OcrdDocumentsTest, KeysWithDotsAreKeptWhereTheServerTakesThem) {
    auto job = submitted("j1");
    job.parameters = Json{{"a.b", 1}};
    auto done = run(io_, documents().put_jobs({job}));
    if (mongo().kind() == "FerretDB") { // not all of MongoDB
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().kind(), ErrorKind::Invalid) << done.error().message();
        EXPECT_NE(done.error().message().find("a.b"), std::string::npos) << done.error().message();
    } else {
        ASSERT_TRUE(done) << done.error().message();
        EXPECT_EQ(only("DBProcessorJob")["parameters"], (Json{{"a.b", number(1)}}));
    }
    // Ours hold them everywhere.
    Batch batch;
    batch.put(job);
    ASSERT_TRUE(run(io_, stores_.store->write(std::move(batch))));
    EXPECT_EQ(run(io_, stores_.store->job(JobId("j1"))).value()->parameters, job.parameters);
}

TEST_F(OcrdDocumentsTest, RowsThatWereThereTwiceBeforeUsDoNotStopIt) {
    close();
    database_ = mongo().fresh_database();
    mongo().command(database_, R"({"insert":"DBProcessorJob","documents":[{"job_id":"old","state":"SUCCESS"},{"job_id":"old","state":"SUCCESS"}]})");
    open();
    put(submitted("j1"));
    put(submitted("j1"));
    EXPECT_EQ(mongo().documents(database_, "DBProcessorJob", Json{{"job_id", "j1"}}).size(), 1u);
    auto indexes = mongo().command(database_, R"({"listIndexes":"DBProcessorJob"})");
    EXPECT_NE(dump(indexes).find("\"job_id\""), std::string::npos) << indexes;
}

TEST_F(OcrdDocumentsTest, EveryLookUpHasItsIndex) {
    auto keys = [&](std::string const& collection) {
        std::set<std::string> found;
        auto answer = mongo().command(database_, R"({"listIndexes":")" + collection + R"("})");
        for (auto const& index : answer["cursor"]["firstBatch"]) found.insert(index["key"].items().begin().key());
        return found;
    };
    // OCR-D's programs ask for these, and so do we.
    EXPECT_TRUE(keys("DBProcessorJob").contains("job_id"));
    EXPECT_TRUE(keys("DBWorkflowJob").contains("job_id"));
    EXPECT_TRUE(keys("DBWorkflowScript").contains("workflow_id"));
    EXPECT_TRUE(keys("workspace").contains("workspace_mets_path"));
    EXPECT_TRUE(keys("workspace").contains("workspace_id"));
    for (auto const* collection : {"ocrctl_jobs", "ocrctl_outcomes", "ocrctl_scripts"}) EXPECT_GT(keys(collection).size(), 1u) << collection;
}

TEST_F(OcrdDocumentsTest, GoesOnAfterMongoWasAway) {
    if (!mongo().ours()) GTEST_SKIP() << "the named MongoDB is not ours to stop";
    put(submitted("j1"));
    mongo().kill();
    auto away = run(io_, documents().put_jobs({submitted("j2")}));
    ASSERT_FALSE(away);
    EXPECT_EQ(away.error().kind(), ErrorKind::Unavailable) << away.error().message();
    mongo().start();
    put(submitted("j2"));
    EXPECT_EQ(run(io_, documents().jobs({JobId("j1"), JobId("j2")})).value().size(), 2u);
}

} // namespace
} // namespace ocrctl::store
