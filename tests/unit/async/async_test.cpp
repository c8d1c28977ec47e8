#include "lib/async/event.hpp"
#include "lib/async/on_thread.hpp"
#include "lib/async/task_group.hpp"
#include "lib/async/within.hpp"

#include <gtest/gtest.h>
#include <stdexcept>
#include <thread>

namespace ocrctl {
namespace {

using namespace std::chrono_literals;

class AsyncTest : public testing::Test {
protected:
    void run(awaitable<void> work) {
        std::exception_ptr problem;
        bool done = false;
        asio::co_spawn(io_, std::move(work), [&](std::exception_ptr p) {
            problem = p;
            done = true;
        });
        io_.run_for(20s);
        io_.restart();
        ASSERT_TRUE(done) << "the coroutine did not end";
        if (problem) std::rethrow_exception(problem);
    }
    asio::io_context io_;
    asio::thread_pool pool_{2};
};

TEST_F(AsyncTest, WorkOnAThreadGivesItsValueBackOnTheAwaitingThread) {
    auto test = [](asio::thread_pool& pool) -> awaitable<void> {
        auto here = std::this_thread::get_id();
        auto there = co_await on_thread(pool, [] { return std::this_thread::get_id(); });
        EXPECT_NE(here, there);
        EXPECT_EQ(here, std::this_thread::get_id());
    };
    run(test(pool_));
}

TEST_F(AsyncTest, AnExceptionOnAThreadReachesTheAwaiter) {
    auto test = [](asio::thread_pool& pool) -> awaitable<void> {
        bool caught = false;
        try {
            co_await on_thread(pool, [] { throw std::runtime_error("no"); });
        } catch (std::runtime_error const&) {
            caught = true;
        }
        EXPECT_TRUE(caught);
    };
    run(test(pool_));
}

TEST_F(AsyncTest, WithinGivesUpAfterItsLimitAndKeepsWhatCameInTime) {
    auto slow = [](std::chrono::milliseconds time) -> awaitable<int> {
        (void)co_await pause(time);
        co_return 7;
    };
    auto test = [](auto work) -> awaitable<void> {
        auto late = co_await within(20ms, work(10s));
        EXPECT_FALSE(late);
        auto early = co_await within(10s, work(1ms));
        EXPECT_EQ(early.value_or(0), 7);
    };
    run(test(slow));
}

TEST_F(AsyncTest, AWaiterIsWokenByAnEvent) {
    Event event(io_.get_executor());
    bool flag = false;
    auto waiter = [](Event& e, bool& f) -> awaitable<void> {
        while (!f) co_await e.wait();
    };
    asio::post(io_, [&] {
        flag = true;
        event.notify_all();
    });
    run(waiter(event, flag));
}

TEST_F(AsyncTest, AGroupOutlivesAMemberThatThrowsAndEndsTheOthersWhenCancelled) {
    TaskGroup group(io_.get_executor());
    bool cancelled = false;
    auto thrower = []() -> awaitable<void> {
        throw std::runtime_error("escaped");
        co_return;
    };
    auto sleeper = [](bool& flag) -> awaitable<void> {
        bool slept = co_await pause(1h);
        flag = !slept;
    };
    group.spawn("thrower", thrower());
    group.spawn("sleeper", sleeper(cancelled));
    auto test = [](TaskGroup& g) -> awaitable<void> {
        (void)co_await pause(5ms);
        EXPECT_EQ(g.size(), 1u);
        g.cancel();
        co_await g.join();
    };
    run(test(group));
    EXPECT_TRUE(cancelled);
    EXPECT_EQ(group.size(), 0u);
}

} // namespace
} // namespace ocrctl
