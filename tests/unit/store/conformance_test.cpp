// What every Store promises (lib/store/store.hpp), the same for each back end.
#include "tests/unit/store/stores.hpp"

namespace ocrctl::store {
namespace {

class StoreConformance : public testing::TestWithParam<std::string> {
protected:
    void SetUp() override {
        if (GetParam() != "Sqlite") {
            OCRCTL_NEEDS_MONGO();
            url_ = mongo().url(mongo().fresh_database());
        }
        reopen();
    }
    void TearDown() override {
        if (store_) store_->close();
    }
    void reopen() {
        if (store_) store_->close();
        store_.reset();
        auto opened = GetParam() != "Sqlite" ? open_mongo_store(url_, GetParam() == "JournaledMongo" ? folder_.path() / "journal" : "") : open_sqlite({.file = folder_.path() / "store" / "ocrctl.sqlite"});
        ASSERT_TRUE(opened) << opened.error().message();
        store_ = std::move(*opened);
    }
    void write(Batch batch) {
        auto done = run(io_, store_->write(std::move(batch)));
        ASSERT_TRUE(done) << done.error().message();
    }
    std::optional<Job> job(std::string id) {
        auto found = run(io_, store_->job(JobId(std::move(id))));
        EXPECT_TRUE(found);
        return found ? *found : std::nullopt;
    }

    TempFolder folder_;
    std::string url_;
    asio::io_context io_;
    std::unique_ptr<Store> store_;
};

TEST_P(StoreConformance, KeepsEveryFieldOfAJob) {
    Batch batch;
    auto put = make_job("a");
    put.callback_url = "http://there/";
    put.existing_output = ExistingOutput::Overwrite;
    put.priority = -3;
    put.workflow = WorkflowId("w");
    batch.put(put);
    write(std::move(batch));
    reopen();
    auto got = job("a");
    ASSERT_TRUE(got);
    EXPECT_EQ(Json(*got), Json(put));
}

TEST_P(StoreConformance, UpdatesWhatChangesAndKeepsTheSpecification) {
    auto changing = make_job("a");
    Batch put;
    put.put(changing);
    write(std::move(put));
    changing.state = JobState::Failed;
    changing.attempt = 3;
    changing.published = true;
    changing.quarantined = true;
    changing.engine_deaths = 2;
    changing.pages_left = std::vector<std::string>{"PHYS_0002"};
    changing.pages_failed = {{"PHYS_0002", "no image"}};
    changing.reason = "the engine died twice";
    changing.log_file = "/logs/a.log";
    changing.slot = Slot("h/g/shard-0/rep-0");
    changing.started = 5;
    changing.ended = 6;
    Batch update;
    update.update(changing);
    write(std::move(update));
    reopen();
    EXPECT_EQ(Json(*job("a")), Json(changing));
}

TEST_P(StoreConformance, ABatchWrittenTwiceIsAsIfWrittenOnce) {
    auto batch = [] {
        Batch b;
        b.put(make_job("a"));
        TaskResult result;
        result.job = JobId("a");
        b.put_outcome(result);
        b.put(WorkflowScript{"s", "dummy -I A -O B", "md5"});
        b.set("epoch", "1");
        return b;
    };
    write(batch());
    write(batch());
    EXPECT_EQ(run(io_, store_->open_jobs())->size(), 1u);
    EXPECT_EQ(run(io_, store_->outcomes())->size(), 1u);
}

TEST_P(StoreConformance, ListsOpenJobsInTheOrderTheyCameAndOthersByState) {
    Batch batch;
    int created = 100;
    for (auto [id, state] : {std::pair{"q", JobState::Queued}, {"c", JobState::Cached}, {"r", JobState::Running}, {"s", JobState::Success}, {"f", JobState::Failed}, {"x", JobState::Cancelled}}) {
        auto j = make_job(id, state);
        j.created = created--;
        batch.put(j);
    }
    write(std::move(batch));
    auto open = run(io_, store_->open_jobs());
    ASSERT_TRUE(open);
    std::vector<std::string> ids;
    for (auto const& j : *open) ids.push_back(j.id.str());
    EXPECT_EQ(ids, (std::vector<std::string>{"q", "c", "r"}));
    auto failed = run(io_, store_->jobs_in(JobState::Failed, 10));
    ASSERT_EQ(failed->size(), 1u);
    EXPECT_EQ(failed->front().id.str(), "f");
    EXPECT_EQ(run(io_, store_->jobs_in(std::nullopt, 4))->size(), 4u);
    auto counts = run(io_, store_->counts());
    EXPECT_EQ((*counts)[JobState::Success], 1u);
}

TEST_P(StoreConformance, AnUnknownIdIsNothingAndNoError) {
    EXPECT_FALSE(job("nobody"));
    EXPECT_FALSE(run(io_, store_->workflow(WorkflowId("w"))).value());
    EXPECT_FALSE(run(io_, store_->script("s")).value());
    EXPECT_FALSE(run(io_, store_->value("k")).value());
    EXPECT_TRUE(run(io_, store_->jobs({JobId("a"), JobId("b")})).value().empty());
}

TEST_P(StoreConformance, KeepsOutcomesUntilTheyAreDropped) {
    TaskResult result;
    result.job = JobId("a");
    result.attempt = 2;
    result.staging = ".ocrctl/a/r";
    result.pages.push_back(PageOutcome{"PHYS_0001", true, "", false, {FileRef{"B", "B_1", "PHYS_0001", "text/xml", "B/B_1.xml", 7, ""}}, {"w"}});
    Batch batch;
    batch.put_outcome(result);
    write(std::move(batch));
    reopen();
    auto kept = run(io_, store_->outcomes());
    ASSERT_EQ(kept->size(), 1u);
    EXPECT_EQ(Json(kept->front()), Json(result));
    Batch drop;
    drop.drop_outcomes(JobId("a"), 1);
    write(std::move(drop));
    EXPECT_EQ(run(io_, store_->outcomes())->size(), 1u) << "a later attempt's outcome stays";
    Batch drop_second;
    drop_second.drop_outcomes(JobId("a"), 2);
    write(std::move(drop_second));
    EXPECT_TRUE(run(io_, store_->outcomes())->empty());
}

TEST_P(StoreConformance, RemembersWhoIsStillToBeTold) {
    Batch batch;
    batch.put(make_job("a", JobState::Success));
    batch.put(make_job("b", JobState::Success));
    batch.put_callback(JobId("a"));
    write(std::move(batch));
    reopen();
    auto waiting = run(io_, store_->callbacks());
    ASSERT_EQ(waiting->size(), 1u);
    EXPECT_EQ(waiting->front().id.str(), "a");
    Batch drop;
    drop.drop_callback(JobId("a"));
    write(std::move(drop));
    EXPECT_TRUE(run(io_, store_->callbacks())->empty());
}

TEST_P(StoreConformance, RefusesASecondScriptWithTheSameContentAndNamesTheFirst) {
    Batch first;
    first.add(WorkflowScript{"one", "text", "hash"});
    write(std::move(first));
    Batch second;
    second.add(WorkflowScript{"two", "text", "hash"});
    auto done = run(io_, store_->write(std::move(second)));
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().kind(), ErrorKind::Conflict);
    EXPECT_NE(done.error().message().find("one"), std::string::npos);
    EXPECT_FALSE(run(io_, store_->script("two")).value());
    Batch replace;
    replace.put(WorkflowScript{"one", "other", "hash2"});
    write(std::move(replace));
    EXPECT_EQ(run(io_, store_->script("one")).value()->content, "other");
}

TEST_P(StoreConformance, AFailingBatchDoesNotSpoilThoseWrittenWithIt) {
    Batch first;
    first.add(WorkflowScript{"one", "text", "hash"});
    write(std::move(first));
    int good = 0, bad = 0;
    for (int i = 0; i < 50; ++i) {
        Batch b;
        if (i % 10 == 3) b.add(WorkflowScript{"again" + std::to_string(i), "text", "hash"});
        b.put(make_job("j" + std::to_string(i)));
        asio::co_spawn(io_, store_->write(std::move(b)), [&](std::exception_ptr, Result<void> r) { r ? ++good : ++bad; });
    }
    io_.restart();
    io_.run();
    EXPECT_EQ(good, 45);
    EXPECT_EQ(bad, 5);
    EXPECT_EQ(run(io_, store_->open_jobs())->size(), 45u);
}

TEST_P(StoreConformance, CountsTheJobsOfAWorkflow) {
    Batch batch;
    for (int i = 0; i < 5; ++i) {
        auto j = make_job("j" + std::to_string(i), i < 3 ? JobState::Success : JobState::Failed);
        j.workflow = WorkflowId("w");
        batch.put(j);
    }
    batch.put(make_job("other"));
    Workflow workflow;
    workflow.id = WorkflowId("w");
    workflow.page_wise = true;
    workflow.jobs["PHYS_0001"] = {JobId("j0")};
    batch.put(workflow);
    write(std::move(batch));
    auto counts = run(io_, store_->workflow_counts(WorkflowId("w")));
    ASSERT_EQ(counts->size(), 2u);
    EXPECT_EQ((*counts)[0].count + (*counts)[1].count, 5u);
    EXPECT_EQ(run(io_, store_->workflow_failures(WorkflowId("w")))->size(), 2u);
    EXPECT_EQ(run(io_, store_->workflow(WorkflowId("w"))).value()->jobs.at("PHYS_0001").front().str(), "j0");
}

TEST_P(StoreConformance, WhatIsPostedIsThereAfterClosing) {
    Batch batch;
    batch.set("generation", "7");
    store_->post(std::move(batch));
    reopen();
    EXPECT_EQ(run(io_, store_->value("generation")).value(), "7");
}

INSTANTIATE_TEST_SUITE_P(Backends, StoreConformance, testing::Values("Sqlite", "Mongo", "JournaledMongo"), [](auto const& info) { return info.param; });

} // namespace
} // namespace ocrctl::store
