#include "processing_server/outcome.hpp"

#include <gtest/gtest.h>

namespace ocrctl::server {
namespace {

Job job_of(std::size_t pages) {
    Job job;
    job.id = JobId("j");
    job.attempt = 1;
    for (std::size_t i = 0; i < pages; ++i) job.pages.push_back(fmt::format("p{:02}", i));
    return job;
}

PageOutcome good(std::string page) { return PageOutcome{page, true, "", false, {FileRef{"O", "O_" + page, page, "text/xml", "O/" + page + ".xml", 1, ""}}, {}}; }
PageOutcome bad(std::string page, bool retry = false) { return PageOutcome{page, false, "the image is truncated", retry, {}, {}}; }

TaskResult result_of(std::vector<PageOutcome> pages) {
    TaskResult result;
    result.job = JobId("j");
    result.attempt = 1;
    result.pages = std::move(pages);
    return result;
}

TEST(Outcome, AllPagesWellIsSuccess) {
    auto d = decide(job_of(2), result_of({good("p00"), good("p01")}));
    EXPECT_TRUE(d.final);
    EXPECT_TRUE(d.job.committed);
    EXPECT_EQ(d.job.reason, "");
    EXPECT_EQ(d.files.files.size(), 2u);
}

TEST(Outcome, OnePageOfTenMayFailTwoMayNot) {
    auto job = job_of(10);
    std::vector<PageOutcome> pages;
    for (auto const& page : job.pages) pages.push_back(page == "p03" ? bad(page) : good(page));
    EXPECT_EQ(decide(job, result_of(pages)).job.reason, "");
    pages[4] = bad("p04");
    auto d = decide(job, result_of(pages));
    EXPECT_TRUE(d.final);
    EXPECT_EQ(d.job.reason, "2 of 10 pages failed, the first is p03: the image is truncated");
    EXPECT_EQ(d.files.files.size(), 8u) << "the good pages are kept";
}

TEST(Outcome, ASinglePageThatFailsFailsItsJobAndIsNotRetried) {
    auto d = decide(job_of(1), result_of({bad("p00")}));
    EXPECT_TRUE(d.final);
    EXPECT_EQ(d.job.reason, "page p00 failed: the image is truncated");
}

TEST(Outcome, TransientTroubleIsRetriedForThesePagesThreeTimes) {
    auto job = job_of(2);
    for (int i = 1; i <= kMaxRetries; ++i) {
        auto d = decide(job, result_of({good("p00"), bad("p01", true)}));
        ASSERT_FALSE(d.final);
        EXPECT_EQ(d.job.attempt, i + 1);
        EXPECT_EQ(d.job.pages_left, std::vector<std::string>{"p01"});
        EXPECT_GT(d.wait.count(), 0);
        job = d.job;
    }
    auto d = decide(job, result_of({bad("p01", true)}));
    EXPECT_TRUE(d.final);
    EXPECT_NE(d.job.reason, "");
}

TEST(Outcome, APageThatFailedOnceAndThenWentWellDoesNotCount) {
    auto job = job_of(1);
    job.pages_failed["p00"] = "once";
    EXPECT_EQ(decide(job, result_of({good("p00")})).job.reason, "");
}

TEST(Outcome, TheSecondDeathOfAnEngineIsAQuarantine) {
    auto job = job_of(3);
    auto died = result_of({good("p00")});
    died.engine_died = true;
    died.error = "the engine was ended by signal 11";
    auto d = decide(job, died);
    ASSERT_FALSE(d.final);
    EXPECT_EQ(d.job.attempt, 2);
    EXPECT_EQ(d.job.pages_left, (std::vector<std::string>{"p01", "p02"})) << "what went well is not done again";
    EXPECT_EQ(d.wait.count(), 0);
    died.pages.clear();
    d = decide(d.job, died);
    EXPECT_TRUE(d.final);
    EXPECT_TRUE(d.job.quarantined);
    EXPECT_NE(d.job.reason.find("quarantined"), std::string::npos);
    EXPECT_NE(d.job.reason.find("signal 11"), std::string::npos);
}

TEST(Outcome, ADrainIsNoFaultOfTheJob) {
    auto job = job_of(1);
    for (int i = 0; i < 5; ++i) {
        auto drained = result_of({});
        drained.cancelled = true;
        drained.error = "cancelled";
        auto d = decide(job, drained);
        ASSERT_FALSE(d.final);
        job = d.job;
    }
    EXPECT_EQ(job.engine_deaths, 0);
}

TEST(Outcome, AnErrorOfTheWholeTaskFailsItsJob) {
    auto failed = result_of({});
    failed.error = "no such language model: xyz";
    auto d = decide(job_of(2), failed);
    EXPECT_TRUE(d.final);
    EXPECT_EQ(d.job.reason, "no such language model: xyz");
}

} // namespace
} // namespace ocrctl::server
