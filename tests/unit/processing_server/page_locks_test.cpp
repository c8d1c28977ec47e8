#include "processing_server/page_locks.hpp"

#include <gtest/gtest.h>
#include <random>

namespace ocrctl::server {
namespace {

using Pages = std::vector<std::string>;
JobId id(std::string text) { return JobId(std::move(text)); }

TEST(PageLocks, GrantsDifferentPagesOfOneGroup) {
    PageLocks locks;
    EXPECT_TRUE(locks.take(id("a"), "ws", {"BIN"}, {"p1"}));
    EXPECT_TRUE(locks.take(id("b"), "ws", {"BIN"}, {"p2"}));
}

TEST(PageLocks, HoldsAJobWhosePagesAreBeingWritten) {
    PageLocks locks;
    EXPECT_TRUE(locks.take(id("a"), "ws", {"BIN"}, {"p1", "p2"}));
    EXPECT_FALSE(locks.take(id("b"), "ws", {"BIN"}, {"p2", "p3"}));
    EXPECT_EQ(locks.blocker(id("b")), id("a"));
    EXPECT_EQ(locks.release(id("a")), std::vector{id("b")});
    EXPECT_TRUE(locks.granted(id("b")));
}

TEST(PageLocks, OtherGroupsAndOtherWorkspacesDoNotMeet) {
    PageLocks locks;
    EXPECT_TRUE(locks.take(id("a"), "ws", {"BIN"}, {"p1"}));
    EXPECT_TRUE(locks.take(id("b"), "ws", {"SEG"}, {"p1"}));
    EXPECT_TRUE(locks.take(id("c"), "ws2", {"BIN"}, {"p1"}));
}

TEST(PageLocks, AllPagesMeetsEverythingInItsGroup) {
    PageLocks locks;
    EXPECT_TRUE(locks.take(id("a"), "ws", {"BIN"}, {"p1"}));
    EXPECT_TRUE(locks.take(id("b"), "ws", {"BIN"}, {"p2"}));
    EXPECT_FALSE(locks.take(id("all"), "ws", {"BIN"}, {}));
    EXPECT_FALSE(locks.take(id("c"), "ws", {"BIN"}, {"p3"}));
    EXPECT_TRUE(locks.release(id("a")).empty());
    EXPECT_EQ(locks.release(id("b")), std::vector{id("all")});
    EXPECT_EQ(locks.release(id("all")), std::vector{id("c")});
}

TEST(PageLocks, ALaterJobDoesNotOvertakeAWaitingOne) {
    PageLocks locks;
    locks.take(id("a"), "ws", {"BIN"}, {"p1"});
    locks.take(id("b"), "ws", {"BIN"}, {"p1", "p2"});
    EXPECT_FALSE(locks.take(id("c"), "ws", {"BIN"}, {"p2"}));
    EXPECT_EQ(locks.release(id("a")), std::vector{id("b")});
    EXPECT_EQ(locks.release(id("b")), std::vector{id("c")});
}

TEST(PageLocks, AWaiterThatGivesUpLetsThoseBehindItPass) {
    PageLocks locks;
    locks.take(id("a"), "ws", {"BIN"}, {"p1"});
    locks.take(id("b"), "ws", {"BIN"}, {"p1", "p2"});
    locks.take(id("c"), "ws", {"BIN"}, {"p2"});
    EXPECT_EQ(locks.release(id("b")), std::vector{id("c")});
    EXPECT_TRUE(locks.release(id("a")).empty());
}

TEST(PageLocks, SeveralGroupsMustAllBeFree) {
    PageLocks locks;
    locks.take(id("a"), "ws", {"BIN"}, {"p1"});
    locks.take(id("b"), "ws", {"SEG"}, {"p1"});
    EXPECT_FALSE(locks.take(id("c"), "ws", {"BIN", "SEG"}, {"p1"}));
    EXPECT_TRUE(locks.release(id("a")).empty());
    EXPECT_EQ(locks.release(id("b")), std::vector{id("c")});
}

TEST(PageLocks, SeveralAllPagesJobsGoOneAfterTheOther) {
    PageLocks locks;
    EXPECT_TRUE(locks.take(id("a"), "ws", {"BIN"}, {}));
    EXPECT_FALSE(locks.take(id("b"), "ws", {"BIN"}, {}));
    EXPECT_FALSE(locks.take(id("c"), "ws", {"BIN"}, {}));
    EXPECT_TRUE(locks.release(id("b")).empty());
    EXPECT_EQ(locks.release(id("a")), std::vector{id("c")});
}

TEST(PageLocks, KnowsNothingOfAJobThatWasReleasedTwice) {
    PageLocks locks;
    locks.take(id("a"), "ws", {"BIN"}, {"p1"});
    EXPECT_TRUE(locks.release(id("a")).empty());
    EXPECT_TRUE(locks.release(id("a")).empty());
    EXPECT_EQ(locks.size(), 0u);
}

// Against a plain model: granted are exactly those that no earlier ticket meets.
TEST(PageLocks, AgreesWithAPlainModelOverRandomHistories) {
    std::mt19937 random(7);
    struct Ticket {
        JobId job;
        Pages groups, pages;
    };
    auto meets = [](Ticket const& a, Ticket const& b) {
        bool group = false, page = a.pages.empty() || b.pages.empty();
        for (auto const& g : a.groups)
            for (auto const& h : b.groups) group |= g == h;
        for (auto const& p : a.pages)
            for (auto const& q : b.pages) page |= p == q;
        return group && page;
    };
    for (int round = 0; round < 200; ++round) {
        PageLocks locks;
        std::vector<Ticket> model;
        for (int step = 0; step < 60; ++step) {
            if (model.empty() || random() % 3 != 0) {
                Ticket ticket{id(std::to_string(round) + "-" + std::to_string(step)), {}, {}};
                for (auto const* group : {"A", "B"})
                    if (random() % 2) ticket.groups.push_back(group);
                if (ticket.groups.empty()) ticket.groups.push_back("A");
                if (random() % 4)
                    for (auto const* page : {"1", "2", "3", "4"})
                        if (random() % 2) ticket.pages.push_back(page);
                locks.take(ticket.job, "ws", ticket.groups, ticket.pages);
                model.push_back(ticket);
            } else {
                auto at = random() % model.size();
                auto job = model[at].job;
                std::set<JobId> before, expected;
                for (auto const& t : model)
                    if (locks.granted(t.job)) before.insert(t.job);
                model.erase(model.begin() + static_cast<std::ptrdiff_t>(at));
                auto granted = locks.release(job);
                for (auto const& t : granted) EXPECT_FALSE(before.contains(t));
            }
            for (std::size_t i = 0; i < model.size(); ++i) {
                bool free = true;
                for (std::size_t j = 0; j < i; ++j) free &= !meets(model[i], model[j]);
                ASSERT_EQ(locks.granted(model[i].job), free);
                ASSERT_EQ(locks.blocker(model[i].job).empty(), free);
            }
        }
    }
}

} // namespace
} // namespace ocrctl::server
