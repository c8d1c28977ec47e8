// The real engine program, started from memory as the ocrctl binary starts it.
#include "lib/async/within.hpp"
#include "lib/engine/blob.hpp"
#include "lib/engine/engine.hpp"
#include "lib/process/process.hpp"
#include "tests/support/coroutines.hpp"
#include "tests/support/scratch_folder.hpp"

#include <csignal>
#include <gtest/gtest.h>

namespace ocrctl::engine {
namespace {

using namespace std::chrono_literals;
using test::run;
using test::run_until;

constexpr char kDummy[] = "ocrd-ocrctl-dummy";

class EngineTest : public ::testing::Test {
protected:
    EngineTest() { ::unsetenv("OCRCTL_ENGINE"); }
    ~EngineTest() override {
        // Engines end with what owned them: nothing of ours is left.
        run_until(io, [] { return false; }, 0s);
    }
    PageRequest page(std::string id, Json parameters = {{"copy_files", true}}) {
        folder.put("IMG/" + id + ".png", "not really a picture");
        PageRequest request;
        request.processor = kDummy;
        request.parameters = std::move(parameters);
        request.workspace = folder.path();
        request.staging = folder.path() / "staging";
        request.input_groups = {"IMG"};
        request.output_groups = {"OUT"};
        request.page.page_id = id;
        request.page.files = {FileRef{.group = "IMG", .id = "IMG_" + id, .page_id = id, .mimetype = "image/png", .path = "IMG/" + id + ".png"}};
        request.page.output_ids = {"OUT_" + id};
        return request;
    }
    Task task(std::vector<std::string> ids, Json parameters = {{"copy_files", true}}) {
        Task made;
        made.job = JobId("job-1");
        made.workspace = folder.path();
        made.processor = kDummy;
        made.input_groups = {"IMG"};
        made.output_groups = {"OUT"};
        made.parameters = std::move(parameters);
        for (auto const& id : ids) made.pages.push_back(page(id).page);
        return made;
    }
    Place place() { return {.workspace = folder.path(), .staging = folder.path() / "staging"}; }
    std::unique_ptr<Engine> start() {
        auto started = Engine::start(io.get_executor());
        if (!started) throw std::runtime_error(started.error().message());
        return std::move(*started);
    }

    test::ScratchFolder folder;
    asio::io_context io;
};

TEST_F(EngineTest, IsStartedFromMemoryAndDoesAPage) {
    auto program = engine_program();
    ASSERT_TRUE(program) << program.error().message();
    EXPECT_TRUE(program->string().starts_with("/proc/"));
    auto engine = start();
    auto loaded = run(io, engine->load(kDummy, Json::object()));
    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(loaded->step, "preprocessing/optimization");
    EXPECT_TRUE(loaded->parameters.contains("delay_ms")) << "defaults are filled in";
    auto done = run(io, engine->page(page("P1")));
    ASSERT_TRUE(done) << done.error().message();
    EXPECT_TRUE(done->outcome.ok) << done->outcome.error;
    ASSERT_EQ(done->outcome.files.size(), 1u);
    EXPECT_EQ(done->outcome.files[0].path, "OUT/OUT_P1.png");
    EXPECT_TRUE(std::filesystem::exists(folder.path() / "staging/OUT/OUT_P1.png"));
}

TEST_F(EngineTest, LeadsAProcessGroupAndEndsWithItsOwner) {
    auto engine = start();
    ASSERT_TRUE(run(io, engine->load(kDummy, Json::object())));
    auto pid = engine->pid();
    auto row = process::row_of(pid);
    ASSERT_TRUE(row);
    EXPECT_EQ(row->group, pid);
    engine.reset();
    EXPECT_TRUE(run_until(io, [&] { return !process::row_of(pid); }, 5s)) << "ended and reaped";
}

TEST_F(EngineTest, RefusesAnUnknownProcessorAndGoesOn) {
    auto engine = start();
    auto loaded = run(io, engine->load("ocrd-nothing", Json::object()));
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().kind(), ErrorKind::NotFound) << loaded.error().message();
    EXPECT_TRUE(engine->alive());
    EXPECT_TRUE(run(io, engine->load(kDummy, Json::object())));
}

TEST_F(EngineTest, SaysWhichModelIsMissing) {
    auto engine = start();
    auto loaded = run(io, engine->load("ocrd-ocrctl-recognize", Json{{"model", "klingon"}}));
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().kind(), ErrorKind::NotFound);
    EXPECT_NE(loaded.error().message().find("klingon"), std::string::npos) << loaded.error().message();
}

TEST_F(EngineTest, ReportsTheSignalThatKilledIt) {
    auto engine = start();
    auto done = run(io, engine->page(page("P1", {{"crash", true}})));
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().kind(), ErrorKind::Unavailable);
    EXPECT_EQ(done.error().message(), "the engine was killed by signal 11 (Segmentation fault)");
    EXPECT_TRUE(engine->died());
    EXPECT_FALSE(engine->alive());
    EXPECT_EQ(run(io, engine->page(page("P1"))).error().kind(), ErrorKind::Unavailable);
}

TEST_F(EngineTest, ACancelledPageEndsTheEngine) {
    auto engine = start();
    auto reply = run(io, within(300ms, engine->page(page("P1", {{"hang", true}}))));
    EXPECT_FALSE(reply);
    EXPECT_FALSE(engine->alive());
    EXPECT_FALSE(engine->died()) << "our doing, not its own";
    auto pid = engine->pid();
    EXPECT_TRUE(run_until(io, [&] { return !process::row_of(pid); }, 5s));
}

TEST_F(EngineTest, TellsAHostWithoutALibraryFromABrokenEngine) {
    auto script = folder.put("engine", "#!/bin/sh\necho \"$0: error while loading shared libraries: libtesseract.so.5: cannot open shared "
                                       "object file: No such file or directory\" >&2\nexit 127\n", 0755);
    auto started = Engine::start(io.get_executor(), {.program = script});
    ASSERT_TRUE(started);
    auto loaded = run(io, (*started)->load(kDummy, Json::object()));
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().kind(), ErrorKind::Unavailable);
    EXPECT_EQ(loaded.error().message(),
              "the engine cannot start on this host: the shared library libtesseract.so.5 is not installed: apt-get install libtesseract5");
    EXPECT_TRUE((*started)->host_lacks_library());
    auto runner = builtin_runner(io.get_executor(), kDummy, Json::object(), {.program = script});
    auto result = run(io, runner->run(task({"P1"}), place()));
    EXPECT_FALSE(result.engine_died) << "not the Job's fault";
    EXPECT_NE(result.error.find("libtesseract5"), std::string::npos) << result.error;
}

TEST_F(EngineTest, KeepsTheEndOfWhatItWroteOnStderr) {
    auto script = folder.put("engine", "#!/bin/sh\nfor i in 1 2 3; do echo line $i >&2; done\nexit 3\n", 0755);
    auto started = Engine::start(io.get_executor(), {.program = script});
    ASSERT_TRUE(started);
    auto loaded = run(io, (*started)->load(kDummy, Json::object()));
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().message(), "the engine ended with code 3");
    EXPECT_EQ((*started)->stderr_tail(), "line 1\nline 2\nline 3\n");
}

TEST_F(EngineTest, APoolRunsPagesAtOnceInAsManyEnginesAsItMay) {
    EnginePool pool(io.get_executor(), 2);
    int done = 0;
    auto begun = std::chrono::steady_clock::now();
    for (int i = 0; i < 4; ++i) {
        auto request = page("P" + std::to_string(i), {{"copy_files", true}, {"delay_ms", 400}});
        asio::co_spawn(io, pool.page(std::move(request)), [&](std::exception_ptr, Result<EngineReply> reply) { done += reply && reply->outcome.ok; });
    }
    EXPECT_TRUE(run_until(io, [&] { return done == 4; }, 30s));
    EXPECT_GE(std::chrono::steady_clock::now() - begun, 800ms) << "two at a time";
}

TEST_F(EngineTest, APoolReplacesAnEngineThatDied) {
    EnginePool pool(io.get_executor(), 1);
    auto crash = run(io, pool.page(page("P1", {{"crash", true}})));
    ASSERT_FALSE(crash);
    EXPECT_EQ(crash.error().message(), "the engine was killed by signal 11 (Segmentation fault)");
    auto late = run(io, pool.page(page("P2", {{"hang", true}}), 300ms));
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().kind(), ErrorKind::Timeout);
    EXPECT_EQ(late.error().message(), "page P2 took longer than 0.3 s");
    auto good = run(io, pool.page(page("P3")));
    ASSERT_TRUE(good) << good.error().message();
    EXPECT_TRUE(good->outcome.ok);
}

TEST_F(EngineTest, ATaskHasAnOutcomeForEachPageAndOneBadPageFailsAlone) {
    auto runner = builtin_runner(io.get_executor(), kDummy, Json::object());
    ASSERT_TRUE(run(io, runner->load()));
    auto result = run(io, runner->run(task({"P1", "P2", "P3"}, {{"copy_files", true}, {"fail", true}, {"pages", "P2"}}), place()));
    EXPECT_EQ(result.error, "");
    ASSERT_EQ(result.pages.size(), 3u);
    EXPECT_TRUE(result.pages[0].ok && result.pages[2].ok);
    EXPECT_FALSE(result.pages[1].ok);
    EXPECT_EQ(result.pages[1].error, "page P2 fails, as the parameter `fail` asks");
    ASSERT_EQ(result.pages[0].files.size(), 1u);
    EXPECT_EQ(result.pages[0].files[0].size, 20u);
    EXPECT_EQ(result.pages[0].files[0].digest, "sha256:" + sha256_hex("not really a picture"));
    EXPECT_NE(result.log.find("P2"), std::string::npos);
    EXPECT_FALSE(result.provenance.name.empty());
}

TEST_F(EngineTest, ATaskWhoseEngineDiesSaysSoOnceAndTheNextOneWorks) {
    auto runner = builtin_runner(io.get_executor(), kDummy, Json::object());
    auto result = run(io, runner->run(task({"P1", "P2"}, {{"copy_files", true}, {"crash", true}, {"pages", "P1"}}), place()));
    EXPECT_TRUE(result.engine_died);
    EXPECT_EQ(result.error, "the engine was killed by signal 11 (Segmentation fault) while it worked on page P1");
    ASSERT_EQ(result.pages.size(), 2u);
    auto next = run(io, runner->run(task({"P3"}), place()));
    EXPECT_FALSE(next.engine_died);
    EXPECT_TRUE(next.pages.at(0).ok);
}

TEST_F(EngineTest, ATaskEndsAtItsDeadline) {
    auto runner = builtin_runner(io.get_executor(), kDummy, Json::object());
    ASSERT_TRUE(run(io, runner->load()));
    auto late = task({"P1", "P2"}, {{"hang", true}});
    late.deadline = now_millis() + 500;
    auto result = run(io, runner->run(late, place()));
    EXPECT_EQ(result.error, "the deadline passed while page P1 was worked on");
    EXPECT_FALSE(result.engine_died);
    EXPECT_EQ(result.pages.size(), 2u);
    auto over = run(io, runner->run(late, place()));
    EXPECT_EQ(over.error, "the deadline had passed before the work began");
}

TEST_F(EngineTest, APagePastItsOwnLimitFailsAlone) {
    auto runner = builtin_runner(io.get_executor(), kDummy, Json::object());
    ASSERT_TRUE(run(io, runner->load()));
    auto here = place();
    here.page_limit = 2000ms;
    auto result = run(io, runner->run(task({"P1", "P2"}, {{"copy_files", true}, {"hang", true}, {"pages", "P1"}}), here));
    EXPECT_EQ(result.error, "");
    ASSERT_EQ(result.pages.size(), 2u);
    EXPECT_EQ(result.pages[0].error, "took longer than 2 s");
    EXPECT_TRUE(result.pages[1].ok) << result.pages[1].error;
}

TEST_F(EngineTest, AStoppedTaskSaysWhy) {
    auto runner = builtin_runner(io.get_executor(), kDummy, Json::object());
    ASSERT_TRUE(run(io, runner->load()));
    std::optional<TaskResult> result;
    asio::co_spawn(io, runner->run(task({"P1"}, {{"hang", true}}), place()), [&](std::exception_ptr, TaskResult r) { result = std::move(r); });
    run_until(io, [&] { return result.has_value(); }, 1s);
    ASSERT_FALSE(result);
    runner->stop("cancelled", true);
    ASSERT_TRUE(run_until(io, [&] { return result.has_value(); }, 5s));
    EXPECT_TRUE(result->cancelled);
    EXPECT_EQ(result->error, "cancelled");
    EXPECT_FALSE(result->engine_died);
}

} // namespace
} // namespace ocrctl::engine
