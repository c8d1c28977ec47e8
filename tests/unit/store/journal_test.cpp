// The journal before a Store: what was reported is there, whatever becomes of the process, the disk and MongoDB.
#include "lib/store/journal.hpp"
#include "lib/store/journaled_store.hpp"
#include "tests/unit/store/stores.hpp"

#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace ocrctl::store {
namespace {

namespace fs = std::filesystem;

std::string text_with(std::string const& id) {
    Batch batch;
    batch.put(make_job(id));
    return text_of(batch);
}

std::vector<std::uint64_t> recovered(fs::path const& folder) {
    auto journal = Journal::open(folder);
    EXPECT_TRUE(journal) << journal.error().message();
    std::vector<std::uint64_t> numbers;
    for (auto const& record : journal->take_recovered()) numbers.push_back(record.number);
    return numbers;
}

fs::path only_segment(fs::path const& folder) {
    std::vector<fs::path> found; // those with something in them
    for (auto const& entry : fs::directory_iterator(folder))
        if (read_file(entry.path()).value().front() != '\0') found.push_back(entry.path());
    EXPECT_EQ(found.size(), 1u);
    return found.at(0);
}

TEST(JournalText, KeepsEveryChangeOfABatch) {
    Batch batch;
    auto job = make_job("j", JobState::Running);
    job.reason = "für \"später\"\n";
    job.slot = Slot("h/g/shard-0/rep-0");
    batch.put(job);
    batch.update(job);
    Workflow workflow;
    workflow.id = WorkflowId("w");
    workflow.jobs = {{"page", {JobId("j")}}};
    batch.put(workflow);
    batch.put(WorkflowScript{"s", "dummy -I A -O B\n", "hash"});
    TaskResult result;
    result.job = JobId("j");
    result.attempt = 2;
    batch.put_outcome(result);
    batch.drop_outcomes(JobId("j"), 2);
    batch.put_callback(JobId("j"));
    batch.drop_callback(JobId("j"));
    batch.set("epoch", "7");
    auto back = batch_of(text_of(batch));
    ASSERT_TRUE(back) << back.error().message();
    ASSERT_EQ(back->size(), batch.size());
    for (std::size_t i = 0; i < batch.size(); ++i) EXPECT_EQ(back->changes()[i].index(), batch.changes()[i].index());
    EXPECT_EQ(text_of(*back), text_of(batch));
    auto const& put = std::get<Batch::PutJob>(back->changes()[0]).job;
    EXPECT_EQ(Json(put), Json(job));
    EXPECT_EQ(status_json(put), status_json(job));
    EXPECT_EQ(put.state, JobState::Running);
    for (char const* wrong : {"", "{}", "[1]", "[[]]", "[[\"job\"]]", "[[\"job-state\",\"j\",\"BUSY\",\"\"]]", "[[\"other\"]]"}) EXPECT_FALSE(batch_of(wrong)) << wrong;
}

TEST(Journal, FindsWhatWasKeptAndNotYetDone) {
    TempFolder folder;
    {
        auto journal = Journal::open(folder.path()).value();
        std::vector<std::string> three{text_with("a"), text_with("b"), text_with("c")}, one{text_with("d")};
        ASSERT_TRUE(journal.append(journal.next_number(), three, 0));
        ASSERT_TRUE(journal.append(journal.next_number(), one, 2));
    }
    EXPECT_EQ(recovered(folder.path()), (std::vector<std::uint64_t>{3, 4}));
    auto again = Journal::open(folder.path()).value();
    EXPECT_EQ(again.next_number(), 5u);
    auto records = again.take_recovered();
    EXPECT_EQ(records.back().text, text_with("d"));
    again.remove_segments();
    EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Journal, EndsAtALineThatIsTornWhereverItIs) {
    TempFolder folder;
    {
        auto journal = Journal::open(folder.path()).value();
        std::vector<std::string> lines{text_with("a"), text_with("b")};
        ASSERT_TRUE(journal.append(1, lines, 0));
    }
    auto const file = only_segment(folder.path());
    auto whole = read_file(file).value();
    auto const second = whole.find('\n') + 1, end = whole.find('\n', second) + 1;
    whole.resize(end + 100);
    for (std::size_t at = 0; at < end; at += at % 7 + 1) {
        auto torn = whole;
        torn[at] = static_cast<char>(torn[at] ^ 1);
        std::ofstream(file, std::ios::binary) << torn;
        EXPECT_EQ(recovered(folder.path()).size(), at < second ? 0u : 1u) << at;
    }
    for (std::size_t size : {std::size_t(0), second - 1, second, second + 5, end - 1}) {
        std::ofstream(file, std::ios::binary) << whole.substr(0, size);
        EXPECT_EQ(recovered(folder.path()).size(), size < second ? 0u : 1u) << size;
    }
}

TEST(Journal, UsesSegmentsAgainAndNeverReadsWhatWasInThem) {
    TempFolder folder;
    std::uint64_t last = 0;
    {
        auto journal = Journal::open(folder.path()).value();
        std::string const big(1500 << 10, 'x');
        for (int i = 0; i < 40; ++i) {
            std::vector<std::string> lines{"[\"" + big + "\"]"};
            journal.release(last);
            last = journal.next_number();
            ASSERT_TRUE(journal.append(last, lines, last - 1));
        }
        std::vector<std::string> small{text_with("a")};
        ASSERT_TRUE(journal.append(last + 1, small, last));
        ++last;
    }
    auto bytes_there = [&] {
        std::size_t bytes = 0;
        for (auto const& entry : fs::directory_iterator(folder.path())) bytes += entry.file_size();
        return bytes;
    };
    EXPECT_LE(bytes_there(), std::size_t(12) << 20);
    EXPECT_EQ(recovered(folder.path()), std::vector<std::uint64_t>{last});
    // Those of an earlier run are kept until they are applied.
    std::vector<std::string> small{text_with("b")};
    for (auto done : {last - 1, last}) {
        auto again = Journal::open(folder.path()).value();
        again.release(done);
        ASSERT_TRUE(again.append(again.next_number() + 5, small, done));
    }
    EXPECT_EQ(recovered(folder.path()), (std::vector<std::uint64_t>{last + 6, last + 12}));
    EXPECT_LE(bytes_there(), std::size_t(32) << 20);
}

TEST(JournaledStore, SaysWhatItCannotReadInsteadOfLosingIt) {
    TempFolder folder;
    {
        auto journal = Journal::open(folder.path() / "journal").value();
        std::vector<std::string> lines{text_with("a"), "[[\"of-a-later-version\"]]"};
        ASSERT_TRUE(journal.append(1, lines, 0));
    }
    auto behind = open_sqlite({.file = folder.path() / "s.sqlite"});
    ASSERT_TRUE(behind);
    auto opened = open_journaled(std::move(*behind), {.folder = folder.path() / "journal"});
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().kind(), ErrorKind::Invalid);
    EXPECT_NE(opened.error().message().find("another version of ocrctl"), std::string::npos) << opened.error().message();
    EXPECT_EQ(recovered(folder.path() / "journal").size(), 2u);
}

TEST(Journal, NumbersOfAFailedGroupAreNotUsedAgain) {
    TempFolder folder;
    {
        auto journal = Journal::open(folder.path()).value();
        std::vector<std::string> lost{text_with("a"), text_with("b")}, kept{text_with("c")};
        rlimit before{};
        ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
        auto ignored = std::signal(SIGXFSZ, SIG_IGN);
        rlimit none = before;
        none.rlim_cur = 1;
        ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &none), 0);
        auto failed = journal.append(journal.next_number(), lost, 0);
        ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
        std::signal(SIGXFSZ, ignored);
        ASSERT_FALSE(failed);
        EXPECT_EQ(failed.error().kind(), ErrorKind::Unavailable);
        EXPECT_EQ(journal.next_number(), 3u);
        ASSERT_TRUE(journal.append(journal.next_number(), kept, 0));
    }
    EXPECT_EQ(recovered(folder.path()), std::vector<std::uint64_t>{3});
}

/// A real Store whose writes fail when the test says so.
class FailingStore final : public Store {
public:
    using Fails = std::function<std::optional<ErrorKind>(Batch const&)>;
    FailingStore(std::unique_ptr<Store> real, Fails fails) : real_(std::move(real)), fails_(std::move(fails)) {}
    awaitable<Result<void>> write(Batch batch) override {
        if (auto kind = fails_(batch)) co_return fail(*kind, "the database failed");
        co_return co_await real_->write(std::move(batch));
    }
    void post(Batch batch) override { real_->post(std::move(batch)); }
    awaitable<Result<std::optional<Job>>> job(JobId id) override { return real_->job(id); }
    awaitable<Result<std::vector<Job>>> jobs(std::vector<JobId> ids) override { return real_->jobs(std::move(ids)); }
    awaitable<Result<std::vector<Job>>> open_jobs() override { return real_->open_jobs(); }
    awaitable<Result<std::vector<Job>>> jobs_in(std::optional<JobState> state, std::size_t limit) override { return real_->jobs_in(state, limit); }
    awaitable<Result<std::map<JobState, std::size_t>>> counts() override { return real_->counts(); }
    awaitable<Result<std::vector<TaskResult>>> outcomes() override { return real_->outcomes(); }
    awaitable<Result<std::vector<Job>>> callbacks() override { return real_->callbacks(); }
    awaitable<Result<std::optional<Workflow>>> workflow(WorkflowId id) override { return real_->workflow(id); }
    awaitable<Result<std::vector<StateCount>>> workflow_counts(WorkflowId id) override { return real_->workflow_counts(id); }
    awaitable<Result<std::vector<Job>>> workflow_failures(WorkflowId id) override { return real_->workflow_failures(id); }
    awaitable<Result<std::optional<WorkflowScript>>> script(std::string id) override { return real_->script(std::move(id)); }
    awaitable<Result<std::optional<std::string>>> value(std::string key) override { return real_->value(std::move(key)); }
    void close() override { real_->close(); }

private:
    std::unique_ptr<Store> real_;
    Fails fails_; // called on the applier's thread
};

class JournaledFailing : public testing::Test {
protected:
    void open(FailingStore::Fails fails, std::size_t limit = 64 << 20) {
        auto real = open_sqlite({.file = folder_.path() / "s.sqlite"});
        ASSERT_TRUE(real);
        auto opened = open_journaled(std::make_unique<FailingStore>(std::move(*real), std::move(fails)), {.folder = folder_.path() / "journal", .limit = limit});
        ASSERT_TRUE(opened) << opened.error().message();
        store_ = std::move(*opened);
    }
    void TearDown() override {
        if (store_) store_->close();
    }
    /// All at once, in this order; what became of each.
    std::vector<Result<void>> write_all(std::vector<Batch> batches) {
        std::vector<Result<void>> results(batches.size());
        for (std::size_t i = 0; i < batches.size(); ++i)
            asio::co_spawn(io_, store_->write(std::move(batches[i])), [&results, i](std::exception_ptr, Result<void> done) { results[i] = std::move(done); });
        io_.restart();
        io_.run();
        return results;
    }
    static Batch with_job(std::string id) {
        Batch batch;
        batch.put(make_job(std::move(id)));
        return batch;
    }
    static bool is_job(Batch const& batch, std::string_view id) {
        auto const* put = std::get_if<Batch::PutJob>(&batch.changes().front());
        return put != nullptr && put->job.id.str() == id;
    }
    std::vector<std::string> open_ids() {
        for (int i = 0; i < 400; ++i) {
            if (auto found = run(io_, store_->open_jobs())) {
                std::vector<std::string> ids;
                for (auto const& job : *found) ids.push_back(job.id.str());
                return ids;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
        return {"never"};
    }
    bool refused_something() const { return fs::exists(folder_.path() / "journal" / "refused.jsonl"); }

    TempFolder folder_;
    asio::io_context io_;
    std::unique_ptr<Store> store_;
};

TEST_F(JournaledFailing, WhatADatabaseFailsAtByItselfIsTriedAgain) {
    int failures = 5;
    open([&](Batch const&) { return failures-- > 0 ? std::optional(ErrorKind::Internal) : std::nullopt; });
    std::vector<Batch> batches;
    for (auto const* id : {"a", "b", "c"}) batches.push_back(with_job(id));
    for (auto const& result : write_all(std::move(batches))) EXPECT_TRUE(result);
    EXPECT_EQ(open_ids(), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_FALSE(refused_something());
}

TEST_F(JournaledFailing, WhatItAlwaysFailsAtIsKeptAsideAndHoldsNobodyUpForEver) {
    open([](Batch const& batch) { return is_job(batch, "poison") ? std::optional(ErrorKind::Internal) : std::nullopt; });
    std::vector<Batch> batches;
    for (auto const* id : {"before", "poison", "after"}) batches.push_back(with_job(id));
    (void)write_all(std::move(batches));
    EXPECT_EQ(open_ids(), (std::vector<std::string>{"before", "after"}));
    EXPECT_NE(read_file(folder_.path() / "journal" / "refused.jsonl").value().find("poison"), std::string::npos);
}

TEST_F(JournaledFailing, AnAnswerThatWasGivenIsNotLostByAFailureBeforeIt) {
    int failures = 1;
    open([&](Batch const& batch) { return is_job(batch, "a") && failures-- > 0 ? std::optional(ErrorKind::Unavailable) : std::nullopt; });
    std::vector<Batch> batches;
    batches.push_back(with_job("a"));
    batches.emplace_back().add(WorkflowScript{"s", "content", "hash"});
    auto results = write_all(std::move(batches));
    EXPECT_TRUE(results[1]) << results[1].error().message();
    EXPECT_EQ(open_ids(), std::vector<std::string>{"a"});
    EXPECT_TRUE(run(io_, store_->script("s")).value().has_value());
}

TEST_F(JournaledFailing, NobodyOvertakesThoseWhoWaitForRoom) {
    open([](Batch const&) { return std::nullopt; }, 2'000);
    std::vector<Batch> batches;
    std::vector<std::string> ids;
    for (int i = 0; i < 200; ++i) batches.push_back(with_job(ids.emplace_back(fmt::format("j{:03}", i))));
    for (auto const& result : write_all(std::move(batches))) EXPECT_TRUE(result);
    EXPECT_EQ(open_ids(), ids);
}

class JournaledMongo : public testing::Test {
protected:
    void SetUp() override {
        OCRCTL_NEEDS_MONGO();
        if (!mongo().ours()) GTEST_SKIP() << "the named MongoDB is not ours to stop";
        database_ = mongo().fresh_database();
        open();
    }
    void TearDown() override {
        if (store_) store_->close();
    }
    void open(std::size_t limit = 64 << 20) {
        if (store_) store_->close();
        store_.reset();
        auto behind = open_mongo_store(mongo().url(database_) + "?socketTimeoutMS=400");
        ASSERT_TRUE(behind) << behind.error().message();
        auto opened = open_journaled(std::move(*behind), {.folder = folder_.path() / "journal", .limit = limit});
        ASSERT_TRUE(opened) << opened.error().message();
        store_ = std::move(*opened);
    }
    Result<void> put(Job const& job) {
        Batch batch;
        batch.put(job);
        return run(io_, store_->write(std::move(batch)));
    }
    Result<void> change(Job const& job) {
        Batch batch;
        batch.update(job);
        return run(io_, store_->write(std::move(batch)));
    }
    /// Once MongoDB is back.
    std::vector<Job> everything() {
        for (int i = 0; i < 200; ++i) {
            if (auto found = run(io_, store_->jobs_in(std::nullopt, 10'000))) return *found;
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
        ADD_FAILURE() << "MongoDB is still away";
        return {};
    }

    TempFolder folder_;
    std::string database_;
    asio::io_context io_;
    std::unique_ptr<Store> store_;
};

TEST_F(JournaledMongo, TakesWritesWhileMongoIsAwayAndMakesThemInTheirOrder) {
    auto job = make_job("early");
    ASSERT_TRUE(put(job));
    mongo().kill();
    job.state = JobState::Running;
    EXPECT_TRUE(change(job));
    auto later = make_job("later");
    EXPECT_TRUE(put(later));
    later.state = JobState::Success;
    EXPECT_TRUE(change(later));
    auto unread = run(io_, store_->job(JobId("early")));
    ASSERT_FALSE(unread);
    EXPECT_EQ(unread.error().kind(), ErrorKind::Unavailable) << unread.error().message();
    // What needs an answer is not taken: nobody could tell whether the script is there already.
    Batch script;
    script.add(WorkflowScript{"s", "content", "hash"});
    auto refused = run(io_, store_->write(std::move(script)));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::Unavailable);
    mongo().start();
    std::map<std::string, JobState> states;
    for (auto const& one : everything()) states[one.id.str()] = one.state;
    EXPECT_EQ(states, (std::map<std::string, JobState>{{"early", JobState::Running}, {"later", JobState::Success}}));
    EXPECT_FALSE(run(io_, store_->script("s")).value().has_value());
}

TEST_F(JournaledMongo, WhatWasReportedIsThereAfterTheProcessWasKilled) {
    store_->close();
    store_.reset();
    int ready[2], go[2];
    ASSERT_EQ(::pipe(ready) + ::pipe(go), 0);
    auto child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        // Opens, waits until MongoDB stands still, reports its writes and dies with none of them in MongoDB.
        open();
        char byte = 'o';
        (void)!::write(ready[1], &byte, 1);
        (void)!::read(go[0], &byte, 1);
        int good = 0;
        for (int i = 0; i < 20; ++i) {
            auto job = make_job(fmt::format("j{:02}", i));
            good += put(job).has_value();
            job.state = JobState::Running;
            good += change(job).has_value();
        }
        byte = good == 40 ? 'y' : 'n';
        (void)!::write(ready[1], &byte, 1);
        ::kill(::getpid(), SIGKILL);
    }
    char byte = 0;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    mongo().freeze();
    ASSERT_EQ(::write(go[1], "g", 1), 1);
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    EXPECT_EQ(byte, 'y');
    int status = 0;
    ::waitpid(child, &status, 0);
    mongo().thaw();
    for (int fd : {ready[0], ready[1], go[0], go[1]}) ::close(fd);
    open();
    auto open = run(io_, store_->open_jobs()).value();
    ASSERT_EQ(open.size(), 20u);
    for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(open[static_cast<std::size_t>(i)].id.str(), fmt::format("j{:02}", i));
        EXPECT_EQ(open[static_cast<std::size_t>(i)].state, JobState::Running);
    }
}

TEST_F(JournaledMongo, IsFullAtItsLimitAndSaysSo) {
    open(4'000);
    mongo().kill();
    Result<void> last;
    int taken = 0;
    for (; taken < 100 && (last = put(make_job(fmt::format("j{:03}", taken)))); ++taken) {}
    EXPECT_GT(taken, 1);
    ASSERT_LT(taken, 100);
    EXPECT_EQ(last.error().kind(), ErrorKind::Unavailable);
    EXPECT_NE(last.error().message().find("MongoDB at 127.0.0.1:"), std::string::npos) << last.error().message();
    mongo().start();
    EXPECT_EQ(everything().size(), static_cast<std::size_t>(taken));
    EXPECT_TRUE(put(make_job("again")));
}

TEST_F(JournaledMongo, WhatIsLeftAtTheEndIsWrittenAtTheNextStart) {
    ASSERT_TRUE(put(make_job("a")));
    mongo().kill();
    ASSERT_TRUE(put(make_job("b")));
    store_->close();
    store_.reset();
    mongo().start();
    open();
    EXPECT_EQ(everything().size(), 2u);
    store_->close();
    store_.reset();
    EXPECT_TRUE(fs::is_empty(folder_.path() / "journal"));
}

TEST_F(JournaledMongo, WaitsForTheAnswerWhereOneIsNeeded) {
    Batch first, second;
    first.add(WorkflowScript{"s1", "content", "hash"});
    second.add(WorkflowScript{"s2", "content", "hash"});
    EXPECT_TRUE(run(io_, store_->write(std::move(first))));
    auto refused = run(io_, store_->write(std::move(second)));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::Conflict) << refused.error().message();
    auto huge = make_job("huge");
    huge.parameters = Json{{"text", std::string(20'000'000, 'x')}};
    auto too_big = put(huge);
    ASSERT_FALSE(too_big);
    EXPECT_EQ(too_big.error().kind(), ErrorKind::Invalid) << too_big.error().message();
    EXPECT_TRUE(put(make_job("small")));
    EXPECT_EQ(everything().size(), 1u);
}

} // namespace
} // namespace ocrctl::store
