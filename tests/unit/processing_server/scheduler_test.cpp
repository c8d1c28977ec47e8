#include "processing_server/scheduler.hpp"

#include <gtest/gtest.h>

namespace ocrctl::server {
namespace {

JobId id(std::string text) { return JobId(std::move(text)); }

std::string order(Scheduler& scheduler, std::string const& target) {
    std::string all;
    while (auto job = scheduler.next(target)) all += job->str() + " ";
    return all;
}

TEST(Scheduler, IsFirstComeFirstServedWithinAWorkspace) {
    Scheduler s;
    for (auto const* job : {"1", "2", "3"}) s.add(id(job), "x", "ws", 0);
    EXPECT_EQ(order(s, "x"), "1 2 3 ");
}

TEST(Scheduler, TakesHigherPrioritiesFirst) {
    Scheduler s;
    s.add(id("low"), "x", "ws", -1);
    s.add(id("normal"), "x", "ws", 0);
    s.add(id("high"), "x", "other", 5);
    EXPECT_EQ(order(s, "x"), "high normal low ");
}

TEST(Scheduler, TakesTurnsBetweenWorkspaces) {
    Scheduler s;
    for (auto const* job : {"a1", "a2", "a3"}) s.add(id(job), "x", "a", 0);
    s.add(id("b1"), "x", "b", 0);
    s.add(id("b2"), "x", "b", 0);
    EXPECT_EQ(order(s, "x"), "a1 b1 a2 b2 a3 ");
}

TEST(Scheduler, KeepsTargetsApart) {
    Scheduler s;
    s.add(id("1"), "x", "ws", 0);
    s.add(id("2"), "y", "ws", 0);
    EXPECT_EQ(s.size("x"), 1u);
    EXPECT_EQ(order(s, "y"), "2 ");
    EXPECT_FALSE(s.next("z"));
}

TEST(Scheduler, AFurtherAttemptGoesBeforeTheOthersOfItsWorkspace) {
    Scheduler s;
    s.add(id("1"), "x", "ws", 0);
    s.add(id("again"), "x", "ws", 0, true);
    EXPECT_EQ(order(s, "x"), "again 1 ");
}

TEST(Scheduler, ForgetsAJobThatWasCancelled) {
    Scheduler s;
    for (auto const* job : {"1", "2", "3"}) s.add(id(job), "x", "ws", 0);
    EXPECT_TRUE(s.remove(id("2")));
    EXPECT_FALSE(s.remove(id("2")));
    EXPECT_EQ(order(s, "x"), "1 3 ");
    EXPECT_EQ(s.size(), 0u);
}

TEST(WindowPolicy, IsTwiceTheSlotsThatAreReadyOrConfigured) {
    EXPECT_EQ((WindowPolicy{.configured_slots = 1, .ready_slots = 0}.size()), 2u);
    EXPECT_EQ((WindowPolicy{.configured_slots = 4, .ready_slots = 1}.size()), 8u);
    EXPECT_EQ((WindowPolicy{.configured_slots = 1, .ready_slots = 12}.size()), 24u);
}

TEST(WindowPolicy, GrowsToTenMinutesOfMeasuredWorkWithinALimit) {
    EXPECT_EQ((WindowPolicy{.configured_slots = 2, .seconds_per_job = 60}.size()), 20u);
    EXPECT_EQ((WindowPolicy{.configured_slots = 2, .seconds_per_job = 0.01}.size()), 128u);
    EXPECT_EQ((WindowPolicy{.configured_slots = 2, .seconds_per_job = 3600}.size()), 4u);
}

} // namespace
} // namespace ocrctl::server
