// What only the Store in MongoDB has: a server that goes away, a database that belongs to somebody.
#include "tests/unit/store/stores.hpp"

#include <thread>

namespace ocrctl::store {
namespace {

class MongoStore : public testing::Test {
protected:
    void SetUp() override {
        OCRCTL_NEEDS_MONGO();
        database_ = mongo().fresh_database();
        open();
    }
    void TearDown() override {
        if (store_) store_->close();
    }
    void open(std::string const& options = "") {
        auto opened = open_mongo_store(mongo().url(database_) + options);
        ASSERT_TRUE(opened) << opened.error().message();
        store_ = std::move(*opened);
    }
    Result<void> put(std::vector<std::string> const& ids) {
        Batch batch;
        for (auto const& id : ids) batch.put(make_job(id));
        return run(io_, store_->write(std::move(batch)));
    }
    bool has(std::string const& id) { return run(io_, store_->job(JobId(id))).value().has_value(); }
    Error refusal(MongoOptions options) {
        auto opened = open_mongo(std::move(options));
        return opened ? Error() : opened.error();
    }

    std::string database_;
    asio::io_context io_;
    std::unique_ptr<Store> store_;
};

TEST_F(MongoStore, ManyWritesAtOnceAreAllThereInTheirOrder) {
    constexpr int kWrites = 500;
    int good = 0;
    for (int i = 0; i < kWrites; ++i) {
        Batch batch;
        batch.put(make_job(fmt::format("j{:03}", i)));
        asio::co_spawn(io_, store_->write(std::move(batch)), [&good](std::exception_ptr, Result<void> done) { good += done.has_value(); });
    }
    io_.restart();
    io_.run();
    EXPECT_EQ(good, kWrites);
    auto open = run(io_, store_->open_jobs()).value();
    ASSERT_EQ(open.size(), static_cast<std::size_t>(kWrites));
    for (int i = 0; i < kWrites; ++i) EXPECT_EQ(open[static_cast<std::size_t>(i)].id.str(), fmt::format("j{:03}", i));
}

TEST_F(MongoStore, AWriteThatFailedLeavesNothingAndTheNextGoesThrough) {
    if (!mongo().ours()) GTEST_SKIP() << "the named MongoDB is not ours to stop";
    ASSERT_TRUE(put({"before"}));
    mongo().kill();
    auto away = put({"lost", "lost2"});
    ASSERT_FALSE(away);
    EXPECT_EQ(away.error().kind(), ErrorKind::Unavailable);
    EXPECT_NE(away.error().message().find("MongoDB at 127.0.0.1:"), std::string::npos) << away.error().message();
    auto unread = run(io_, store_->job(JobId("before")));
    ASSERT_FALSE(unread);
    EXPECT_EQ(unread.error().kind(), ErrorKind::Unavailable);
    mongo().start();
    auto back = put({"after"});
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_TRUE(has("before"));
    EXPECT_TRUE(has("after"));
    EXPECT_FALSE(has("lost"));
    EXPECT_EQ(mongo().documents(database_, "ocrctl_jobs").size(), 2u);
}

TEST_F(MongoStore, AWriteWhoseEndIsUnknownIsRepeatedAndThereOnce) {
    if (!mongo().ours()) GTEST_SKIP() << "the named MongoDB is not ours to stop";
    store_->close();
    open("?socketTimeoutMS=400");
    ASSERT_TRUE(put({"before"}));
    mongo().freeze();
    std::jthread later([] {
        std::this_thread::sleep_for(std::chrono::milliseconds(700)); // longer than the driver waits for an answer
        mongo().thaw();
    });
    auto done = put({"j1", "j2"});
    later.join();
    ASSERT_TRUE(done) << done.error().message();
    EXPECT_EQ(mongo().documents(database_, "ocrctl_jobs").size(), 3u);
}

TEST_F(MongoStore, ADatabaseBelongsToOneDeployment) {
    auto url = mongo().url(mongo().fresh_database());
    ASSERT_TRUE(open_mongo({.url = Secret(url), .deployment = "library"}));
    ASSERT_TRUE(open_mongo({.url = Secret(url), .deployment = "library"}));
    auto other = refusal({.url = Secret(url), .deployment = "archive"});
    EXPECT_EQ(other.kind(), ErrorKind::Conflict);
    EXPECT_NE(other.message().find("holds the store of the deployment \"library\"; give \"archive\" a database of its own"), std::string::npos) << other.message();
}

TEST_F(MongoStore, DataOfANewerProgramIsRefused) {
    mongo().command(database_, R"({"update":"ocrctl_meta","updates":[{"q":{"_id":"store"},"u":{"$set":{"format":99}}}]})");
    auto newer = refusal({.url = Secret(mongo().url(database_))});
    EXPECT_EQ(newer.kind(), ErrorKind::Invalid);
    EXPECT_NE(newer.message().find("was written by a newer ocrctl"), std::string::npos) << newer.message();
}

TEST_F(MongoStore, SaysWhatIsWrongWithAnAddressWithoutItsPassword) {
    for (auto const* url : {"mongo://user:hidden@host/", "mongodb://user:hidden@host:notaport/", "mongodb://user:hidden@/", ""}) {
        auto problem = refusal({.url = Secret(url), .patience = std::chrono::milliseconds(200)});
        EXPECT_EQ(problem.kind(), ErrorKind::Invalid) << url << ": " << problem.message();
        EXPECT_EQ(problem.message().find("hidden"), std::string::npos) << problem.message();
    }
    auto nobody = refusal({.url = Secret("mongodb://user:hidden@127.0.0.1:1/"), .patience = std::chrono::milliseconds(200)});
    EXPECT_EQ(nobody.kind(), ErrorKind::Unavailable) << nobody.message();
    EXPECT_NE(nobody.message().find("127.0.0.1:1/ocrd does not answer"), std::string::npos) << nobody.message();
    EXPECT_EQ(nobody.message().find("hidden"), std::string::npos) << nobody.message();
}

TEST_F(MongoStore, WhatMongoCannotHoldSpoilsOnlyItsOwnBatch) {
    auto huge = make_job("huge");
    huge.parameters = Json{{"text", std::string(20'000'000, 'x')}};
    Batch one, two;
    one.put(huge);
    two.put(make_job("small"));
    Result<void> first, second;
    asio::co_spawn(io_, store_->write(std::move(one)), [&](std::exception_ptr, Result<void> done) { first = done; });
    asio::co_spawn(io_, store_->write(std::move(two)), [&](std::exception_ptr, Result<void> done) { second = done; });
    io_.restart();
    io_.run();
    ASSERT_FALSE(first);
    EXPECT_EQ(first.error().kind(), ErrorKind::Invalid) << first.error().message();
    EXPECT_TRUE(second) << second.error().message();
    EXPECT_TRUE(has("small"));
    EXPECT_FALSE(has("huge"));
}

TEST_F(MongoStore, NumbersJobsOnAfterAReopen) {
    ASSERT_TRUE(put({"a", "b"}));
    store_->close();
    open();
    ASSERT_TRUE(put({"c"}));
    auto newest = run(io_, store_->jobs_in(std::nullopt, 1)).value();
    ASSERT_EQ(newest.size(), 1u);
    EXPECT_EQ(newest[0].id, JobId("c"));
}

} // namespace
} // namespace ocrctl::store
