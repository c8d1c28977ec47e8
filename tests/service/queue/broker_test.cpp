// Against a real broker: what is promised of a publish, a delivery and a lost connection.
#include "lib/base/ids.hpp"
#include "lib/queue/broker.hpp"
#include "tests/support/coroutines.hpp"
#include "tests/support/rabbitmq_server.hpp"

#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <set>

namespace ocrctl::queue {
namespace {

using namespace std::chrono_literals;
using test::RabbitMqServer;
using test::run;
using test::run_until;
using Steady = std::chrono::steady_clock;

class BrokerTest : public ::testing::Test {
protected:
    static void SetUpTestSuite() {
        if (!RabbitMqServer::missing()) server_ = new RabbitMqServer;
    }
    static void TearDownTestSuite() {
        delete server_;
        server_ = nullptr;
    }
    void SetUp() override {
        OCRCTL_NEEDS_RABBITMQ();
        server_->start();
        url = parse_broker_url(server_->url()).value();
        queue = "ocrctl.test." + random_hex(4);
    }
    void declare(std::string const& name, QueueOptions options = {}) {
        auto session = Session::open(url, "test");
        ASSERT_TRUE(session) << session.error().message();
        auto declared = session->declare_quorum(name, options);
        ASSERT_TRUE(declared) << declared.error().message();
    }
    std::uint32_t waiting() {
        auto session = Session::open(url, "test");
        return session ? session->count(queue).value_or(0) : 0;
    }
    LinkOptions declaring(std::string name) {
        LinkOptions options;
        options.name = "test publisher";
        options.on_connected = [name](Session& session) -> Result<void> {
            auto declared = session.declare_quorum(name);
            if (!declared) return fail(declared.error());
            return {};
        };
        return options;
    }
    Consumer::Options consuming(std::string name, std::uint16_t prefetch = 1) {
        Consumer::Options options;
        static_cast<LinkOptions&>(options) = declaring(name);
        options.name = "test consumer";
        options.queues = {name};
        options.prefetch = prefetch;
        return options;
    }

    /// RabbitMQ 3.10 writes the registration of a new quorum queue every half second: a kill before that leaves a
    /// queue that exists and never answers.
    void let_the_broker_register() { run_until(io, [] { return false; }, std::chrono::seconds(2)); }

    static RabbitMqServer* server_;
    asio::io_context io;
    BrokerUrl url;
    std::string queue;
};

RabbitMqServer* BrokerTest::server_ = nullptr;

TEST_F(BrokerTest, ConfirmsAPublishThatThenWaitsInTheQueue) {
    declare(queue);
    Publisher publisher(io.get_executor(), url);
    auto done = run(io, publisher.publish({queue, "hello", "id-1"}));
    ASSERT_TRUE(done) << done.error().message();
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    auto seen = session->peek(queue);
    ASSERT_TRUE(seen && *seen);
    EXPECT_EQ((*seen)->body, "hello");
    EXPECT_EQ((*seen)->message_id, "id-1");
    auto again = session->get_one(queue);
    ASSERT_TRUE(again && *again) << "peek must leave it there";
    EXPECT_EQ((*again)->message_id, "id-1");
    EXPECT_FALSE(*session->get_one(queue));
}

TEST_F(BrokerTest, SaysThatThereIsNoSuchQueue) {
    Publisher publisher(io.get_executor(), url);
    auto done = run(io, publisher.publish({"ocrctl.no.such.queue", "x", ""}));
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().kind(), ErrorKind::NotFound);
    EXPECT_EQ(done.error().message(), "publish to ocrctl.no.such.queue: there is no such queue");
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    EXPECT_EQ(session->count("ocrctl.no.such.queue").error().kind(), ErrorKind::NotFound);
    EXPECT_EQ(session->publish({"ocrctl.no.such.queue", "x", ""}).error().kind(), ErrorKind::NotFound);
    declare(queue);
    EXPECT_TRUE(session->publish({queue, "x", ""})) << "the session must go on after an error";
}

TEST_F(BrokerTest, PublishesToOcrdsExchangeAndSaysWhenNoQueueTakesIt) {
    OcrdTopology topology{.exchange = "ocrd-test-" + random_hex(4)};
    LinkOptions options;
    options.on_connected = [topology](Session& session) { return declare_ocrd_exchange(session, topology); };
    Publisher publisher(io.get_executor(), url, options);
    Message message{.queue = queue, .body = "job", .persistent = false, .exchange = topology.exchange};
    auto lost = run(io, publisher.publish(message));
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().kind(), ErrorKind::NotFound);
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    EXPECT_EQ(look_at_ocrd_queue(*session, topology, queue).error().kind(), ErrorKind::NotFound);
    auto declared = declare_ocrd_queue(*session, topology, queue); // as a Worker does
    ASSERT_TRUE(declared) << declared.error().message();
    ASSERT_TRUE(run(io, publisher.publish(message)));
    auto state = look_at_ocrd_queue(*session, topology, queue);
    ASSERT_TRUE(state) << state.error().message();
    EXPECT_EQ(state->messages, 1u);
    EXPECT_EQ(state->consumers, 0u);
    EXPECT_EQ((*session->get_one(queue))->body, "job");
}

TEST_F(BrokerTest, LeavesAnExchangeAndAQueueOfOtherDurabilityAsTheyAre) {
    OcrdTopology durable{.exchange = "ocrd-test-" + random_hex(4), .durable_exchange = true, .durable_queues = true};
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    ASSERT_TRUE(declare_ocrd_queue(*session, durable, queue));
    auto transient = durable;
    transient.durable_exchange = transient.durable_queues = false;
    auto again = declare_ocrd_queue(*session, transient, queue);
    EXPECT_TRUE(again) << again.error().message();
}

TEST_F(BrokerTest, SiftsAQueueAndLeavesTheOthersInTheirPlaces) {
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    ASSERT_TRUE(session->ensure_queue(queue, false));
    for (auto const* body : {"1", "2", "3", "4"}) ASSERT_TRUE(session->publish({queue, body, ""}));
    auto taken =
        session->sift(queue, [](Delivery const& delivery) { return delivery.body == "3" || delivery.body == "1"; });
    ASSERT_TRUE(taken) << taken.error().message();
    ASSERT_EQ(taken->size(), 2u);
    EXPECT_EQ((*session->get_one(queue))->body, "2");
    EXPECT_EQ((*session->get_one(queue))->body, "4");
    EXPECT_FALSE(*session->get_one(queue));
}

TEST_F(BrokerTest, AnExpiredMessageIsNotRedeliveredAfterItsConsumerDied) {
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    ASSERT_TRUE(session->ensure_queue(queue, false));
    Consumer::Options options;
    options.queues = {queue};
    std::vector<Delivery> got;
    auto consumer = std::make_unique<Consumer>(io.get_executor(), url, options,
                                               [&](Delivery delivery) { got.push_back(std::move(delivery)); });
    ASSERT_TRUE(session->publish({.queue = queue, .body = "x", .persistent = false, .expires_after = 50ms}));
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 1; }, 10s));
    auto until = Steady::now() + 60ms;
    run_until(io, [&] { return Steady::now() > until; }, 2s);
    consumer->stop(); // it goes back, and is too old
    ASSERT_TRUE(run_until(io, [&] { return session->consumers(queue).value_or(1) == 0; }, 10s));
    EXPECT_EQ(session->count(queue).value_or(1), 0u);
}

TEST_F(BrokerTest, TellsAConflictingDeclarationFromAMissingBroker) {
    declare(queue, {.delivery_limit = 5});
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    EXPECT_EQ(session->declare_quorum(queue).error().kind(), ErrorKind::Conflict);
    auto wrong = url;
    wrong.password = Secret("wrong");
    auto denied = Session::open(wrong, "test");
    ASSERT_FALSE(denied);
    EXPECT_EQ(denied.error().kind(), ErrorKind::Denied) << denied.error().message();
    auto nobody = url;
    nobody.port = 1;
    auto refused = Session::open(nobody, "test");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().message(), "connect to the broker at amqp://127.0.0.1:1: Connection refused");
}

TEST_F(BrokerTest, DeadLettersWhatIsRefused) {
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session);
    auto declared = declare_work_queue(*session, queue);
    ASSERT_TRUE(declared) << declared.error().message();
    ASSERT_TRUE(declare_work_queue(*session, queue)) << "twice is the same";
    ASSERT_TRUE(session->publish({queue, "bad", "m"}));
    Consumer::Options options;
    options.queues = {queue};
    std::unique_ptr<Consumer> consumer;
    consumer = std::make_unique<Consumer>(io.get_executor(), url, options, [&](Delivery d) { consumer->nack(d.tag, false); });
    auto dead = queue.substr(0, queue.rfind('.')) + ".dead";
    EXPECT_TRUE(run_until(io, [&] { return session->count(dead).value_or(0) > 0; }, 20s));
    session->purge(dead);
}

TEST_F(BrokerTest, PublishesThousandsASecondInOneWindow) {
    declare(queue);
    Publisher publisher(io.get_executor(), url);
    ASSERT_TRUE(run(io, publisher.publish({queue, "warm", ""})));
    std::vector<Message> messages(5000, Message{queue, std::string(300, 'x'), "", true});
    auto begun = Steady::now();
    auto results = run(io, publisher.publish_all(messages));
    auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(Steady::now() - begun).count();
    for (auto const& result : results) ASSERT_TRUE(result);
    RecordProperty("publishes_per_second", static_cast<int>(5000 * 1000 / std::max<long>(ms, 1)));
    std::printf("%ld publishes/s\n", 5000 * 1000 / std::max<long>(ms, 1));
    EXPECT_LT(ms, 5000);
    EXPECT_EQ(waiting(), 5001u);
}

TEST_F(BrokerTest, ManySinglePublishesShareTheWindow) {
    declare(queue);
    Publisher publisher(io.get_executor(), url);
    int done = 0;
    for (int i = 0; i < 500; ++i)
        asio::co_spawn(io, publisher.publish({queue, "x", ""}), [&](std::exception_ptr, Result<void> result) { done += result.has_value(); });
    EXPECT_TRUE(run_until(io, [&] { return done == 500; }, 20s));
}

TEST_F(BrokerTest, AnIdlePublisherDeliversAtOnce) {
    Publisher publisher(io.get_executor(), url, declaring(queue));
    std::optional<Delivery> got;
    std::unique_ptr<Consumer> consumer;
    consumer = std::make_unique<Consumer>(io.get_executor(), url, consuming(queue), [&](Delivery d) {
        consumer->ack(d.tag);
        got = std::move(d);
    });
    ASSERT_TRUE(run_until(io, [&] { return consumer->consuming() && publisher.connected(); }));
    std::vector<double> times;
    for (int i = 0; i < 100; ++i) {
        got.reset();
        auto begun = Steady::now();
        asio::co_spawn(io, publisher.publish({queue, "x", ""}), [](std::exception_ptr, Result<void>) {});
        ASSERT_TRUE(run_until(io, [&] { return got.has_value(); }));
        times.push_back(std::chrono::duration<double, std::milli>(Steady::now() - begun).count());
    }
    std::ranges::sort(times);
    std::printf("publish to deliver: median %.2f ms, p90 %.2f ms\n", times[50], times[90]);
    EXPECT_LT(times[50], 20.0);
    run_until(io, [] { return false; }, 0s);
}

TEST_F(BrokerTest, GivesOneMessageAtATimeAndTheRestAfterEachAck) {
    declare(queue);
    auto session = Session::open(url, "test");
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(session->publish({queue, std::to_string(i), ""}));
    std::vector<Delivery> got;
    Consumer consumer(io.get_executor(), url, consuming(queue), [&](Delivery d) { got.push_back(std::move(d)); });
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 1; }));
    EXPECT_EQ(got[0].queue, queue);
    EXPECT_FALSE(got[0].redelivered);
    consumer.ack(got[0].tag);
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 2; }));
    consumer.nack(got[1].tag, true);
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 3; }));
    consumer.ack(got[2].tag);
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 4; }));
    consumer.ack(got[3].tag);
    std::multiset<std::string> bodies;
    for (auto const& d : got) bodies.insert(d.body);
    EXPECT_EQ(bodies.count("1") + bodies.count("2"), 3u) << "one of them came twice";
    consumer.stop();
    EXPECT_EQ(waiting(), 0u);
}

TEST_F(BrokerTest, APausedConsumerTakesNothingButAcknowledges) {
    declare(queue);
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session->publish({queue, "a", ""}));
    std::vector<Delivery> got;
    Consumer consumer(io.get_executor(), url, consuming(queue), [&](Delivery d) { got.push_back(std::move(d)); });
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 1; }));
    consumer.pause();
    ASSERT_TRUE(run_until(io, [&] { return !consumer.consuming(); }));
    consumer.ack(got[0].tag);
    ASSERT_TRUE(session->publish({queue, "b", ""}));
    EXPECT_FALSE(run_until(io, [&] { return got.size() > 1; }, 1s));
    consumer.resume();
    EXPECT_TRUE(run_until(io, [&] { return got.size() == 2; }));
    EXPECT_EQ(got[1].body, "b");
    EXPECT_FALSE(got[1].redelivered);
}

TEST_F(BrokerTest, GoesOnAfterTheBrokerWasKilled) {
    std::vector<LinkEvent> events;
    auto options = declaring(queue);
    options.on_link = [&](LinkEvent e) { events.push_back(std::move(e)); };
    Publisher publisher(io.get_executor(), url, options);
    std::vector<Delivery> got;
    Consumer consumer(io.get_executor(), url, consuming(queue), [&](Delivery d) { got.push_back(std::move(d)); });
    // A queue that two declare at once is not routable for a moment: one of them is waited for.
    ASSERT_TRUE(run_until(io, [&] { return consumer.consuming() && publisher.connected(); }));
    auto first = run(io, publisher.publish({queue, "first", ""}));
    ASSERT_TRUE(first) << first.error().message();
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 1; }));
    let_the_broker_register();
    server_->kill();
    ASSERT_TRUE(run_until(io, [&] { return !publisher.connected() && !consumer.connected(); }));
    std::optional<Result<void>> result;
    asio::co_spawn(io, publisher.publish({queue, "while away", ""}, 90s), [&](std::exception_ptr, Result<void> r) { result = r; });
    run_until(io, [&] { return result.has_value(); }, 1s);
    EXPECT_FALSE(result) << "it waits for the broker";
    server_->start();
    ASSERT_TRUE(run_until(io, [&] { return result.has_value(); }));
    EXPECT_TRUE(*result) << result->error().message();
    // What was not acknowledged comes again, under another generation.
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 2; }));
    EXPECT_EQ(got[1].body, "first");
    EXPECT_TRUE(got[1].redelivered);
    EXPECT_NE(got[1].tag.generation, got[0].tag.generation);
    consumer.ack(got[0].tag); // of a connection that is gone: ignored, not an error
    consumer.ack(got[1].tag);
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 3; }));
    EXPECT_EQ(got[2].body, "while away");
    consumer.ack(got[2].tag);
    ASSERT_FALSE(events.empty());
    EXPECT_TRUE(events.front().up && events.back().up);
    EXPECT_EQ(std::ranges::count_if(events, [](LinkEvent const& e) { return e.up; }), 2);
    EXPECT_LE(events.size(), 5u) << "a new reason is told, a repeated one is not";
    EXPECT_GT(events.back().generation, events.front().generation);
}

TEST_F(BrokerTest, WhatLacksAConfirmIsSentAgain) {
    Publisher publisher(io.get_executor(), url, declaring(queue));
    ASSERT_TRUE(run(io, publisher.publish({queue, "0", ""})));
    let_the_broker_register();
    int good = 0, bad = 0;
    std::vector<std::string> expected;
    bool killed = false;
    for (int i = 1; i <= 3000; ++i)
        asio::co_spawn(io, publisher.publish({queue, std::to_string(i), ""}, 90s),
                       [&](std::exception_ptr, Result<void> r) { ++(r ? good : bad); });
    run_until(io, [&] { return good > 100; });
    server_->kill();
    killed = true;
    server_->start();
    ASSERT_TRUE(run_until(io, [&] { return good + bad == 3000; }));
    EXPECT_TRUE(killed);
    EXPECT_EQ(good, 3000);
    std::set<std::string> seen;
    std::unique_ptr<Consumer> consumer;
    consumer = std::make_unique<Consumer>(io.get_executor(), url, consuming(queue, 500), [&](Delivery d) {
        seen.insert(d.body);
        consumer->ack(d.tag);
    });
    EXPECT_TRUE(run_until(io, [&] { return seen.size() == 3001; })) << seen.size();
}

TEST_F(BrokerTest, RemakesWhatItNeedsAfterTheBrokerLostItsData) {
    Publisher publisher(io.get_executor(), url, declaring(queue));
    std::vector<Delivery> got;
    std::unique_ptr<Consumer> consumer;
    consumer = std::make_unique<Consumer>(io.get_executor(), url, consuming(queue), [&](Delivery d) {
        consumer->ack(d.tag);
        got.push_back(std::move(d));
    });
    ASSERT_TRUE(run_until(io, [&] { return consumer->consuming() && publisher.connected(); }));
    ASSERT_TRUE(run(io, publisher.publish({queue, "a", ""})));
    ASSERT_TRUE(run_until(io, [&] { return got.size() == 1; }));
    server_->stop();
    server_->wipe();
    server_->start();
    auto again = run(io, publisher.publish({queue, "b", ""}, 60s));
    EXPECT_TRUE(again) << again.error().message();
    EXPECT_TRUE(run_until(io, [&] { return got.size() == 2; }));
}

TEST_F(BrokerTest, NoticesThatItsQueueWasDeletedAndMakesItAgain) {
    std::vector<Delivery> got;
    std::unique_ptr<Consumer> consumer;
    consumer = std::make_unique<Consumer>(io.get_executor(), url, consuming(queue), [&](Delivery d) { got.push_back(std::move(d)); });
    ASSERT_TRUE(run_until(io, [&] { return consumer->consuming(); }));
    auto session = Session::open(url, "test");
    ASSERT_TRUE(session->delete_queue(queue));
    ASSERT_TRUE(run_until(io, [&] { return !consumer->consuming(); }));
    ASSERT_TRUE(run_until(io, [&] { return consumer->consuming(); }));
    ASSERT_TRUE(session->publish({queue, "x", ""}));
    EXPECT_TRUE(run_until(io, [&] { return got.size() == 1; }));
}

TEST_F(BrokerTest, NoticesABrokerThatHangs) {
    auto options = declaring(queue);
    options.heartbeat = 1s;
    Publisher publisher(io.get_executor(), url, options);
    ASSERT_TRUE(run(io, publisher.publish({queue, "a", ""})));
    server_->freeze();
    EXPECT_TRUE(run_until(io, [&] { return !publisher.connected(); }, 10s));
    auto late = run(io, publisher.publish({queue, "b", ""}, 300ms));
    server_->thaw();
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().kind(), ErrorKind::Timeout);
    auto begun = Steady::now();
    publisher.stop();
    EXPECT_LT(Steady::now() - begun, 6s);
}

TEST_F(BrokerTest, AConfirmThatDoesNotComeIsAskedForOnANewConnection) {
    std::vector<LinkEvent> events;
    auto options = declaring(queue);
    options.confirm_limit = 300ms;
    options.on_link = [&](LinkEvent event) { events.push_back(std::move(event)); };
    Publisher publisher(io.get_executor(), url, options);
    ASSERT_TRUE(run(io, publisher.publish({queue, "a", ""})));
    server_->freeze();
    std::optional<Result<void>> result;
    asio::co_spawn(io, publisher.publish({queue, "b", ""}, 0s), [&](std::exception_ptr, Result<void> r) { result = r; });
    EXPECT_TRUE(run_until(io, [&] { return !publisher.connected(); }, 10s));
    server_->thaw();
    ASSERT_TRUE(run_until(io, [&] { return result.has_value(); }, 60s));
    EXPECT_TRUE(*result) << result->error().message();
    ASSERT_TRUE(run_until(io, [&] { return events.size() >= 3; }));
    EXPECT_NE(events[1].error.message().find("no confirm"), std::string::npos) << events[1].error.message();
    EXPECT_GE(waiting(), 2u); // at least once: the frozen broker had taken it already
}

TEST_F(BrokerTest, FailsWhatIsInFlightWhenItStops) {
    url.port = 1;
    Publisher publisher(io.get_executor(), url);
    std::optional<Result<void>> result;
    asio::co_spawn(io, publisher.publish({queue, "x", ""}, 0s), [&](std::exception_ptr, Result<void> r) { result = r; });
    run_until(io, [&] { return false; }, 1s);
    EXPECT_FALSE(result);
    publisher.stop();
    ASSERT_TRUE(run_until(io, [&] { return result.has_value(); }));
    EXPECT_EQ(result->error().kind(), ErrorKind::Unavailable);
    EXPECT_EQ(run(io, publisher.publish({queue, "x", ""})).error().message(), "publish: stopped");
}

TEST_F(BrokerTest, APublishCanBeCancelled) {
    url.port = 1;
    Publisher publisher(io.get_executor(), url);
    auto limited = run(io, within(200ms, publisher.publish({queue, "x", ""}, 0s)));
    EXPECT_FALSE(limited && *limited);
}

TEST_F(BrokerTest, RunsErrandsOnThePublishersConnectionWhilePublishesAreInFlight) {
    Publisher publisher(io.get_executor(), url, declaring(queue));
    int done = 0;
    for (int i = 0; i < 300; ++i)
        asio::co_spawn(io, publisher.publish({queue, "x", ""}), [&](std::exception_ptr, Result<void> r) { done += r.has_value(); });
    auto errand = run(io, publisher.with_session([&](Session& session) -> Result<void> {
        auto declared = session.declare_quorum(queue + ".epoch");
        if (!declared) return fail(declared.error());
        if (auto put = session.publish({queue + ".epoch", "{}", "epoch-1"}); !put) return put;
        auto seen = session.peek(queue + ".epoch");
        if (!seen) return fail(seen.error());
        return *seen && (*seen)->message_id == "epoch-1" ? Result<void>() : fail(ErrorKind::Internal, "not there");
    }));
    EXPECT_TRUE(errand) << errand.error().message();
    EXPECT_TRUE(run_until(io, [&] { return done == 300; }));
}

} // namespace
} // namespace ocrctl::queue
