// The Worker with a real broker and the real engine: nothing is lost, nothing is done twice, the shell does not die.
#include "host_agent/worker.hpp"
#include "lib/async/within.hpp"
#include "lib/process/process.hpp"
#include "tests/support/coroutines.hpp"
#include "tests/support/rabbitmq_server.hpp"
#include "tests/support/scratch_folder.hpp"

#include <algorithm>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <csignal>
#include <gtest/gtest.h>
#include <set>

namespace ocrctl::host_agent {
namespace {

using namespace std::chrono_literals;
using test::RabbitMqServer;
using test::run_until;
using Steady = std::chrono::steady_clock;

constexpr char kDummy[] = "ocrd-ocrctl-dummy";

/// The agent's side of the socket: gives the assignment, keeps the states, sends what the test wants.
class FakeAgent {
public:
    FakeAgent(asio::io_context& io, std::filesystem::path path, Json assignment)
        : io_(io), path_(std::move(path)), assignment_(std::move(assignment)), acceptor_(io), socket_(io) {}

    void listen() {
        ::unlink(path_.c_str());
        acceptor_ = asio::local::stream_protocol::acceptor(io_, asio::local::stream_protocol::endpoint(path_.string()));
        asio::co_spawn(io_, serve(), [](std::exception_ptr) {});
    }
    void go_away() {
        boost::system::error_code ignored;
        acceptor_.close(ignored);
        socket_.close(ignored);
    }
    void send(Json const& json) {
        auto line = json.dump() + "\n";
        asio::write(socket_, asio::buffer(line));
    }
    void assign(Json assignment) {
        assignment_ = std::move(assignment);
        send({{"op", "assign"}, {"assignment", assignment_}});
    }
    std::string state() const { return states.empty() ? "" : states.back().value("state", ""); }
    std::string detail() const { return states.empty() ? "" : states.back().value("detail", ""); }

    std::vector<Json> states;
    int hellos = 0;

private:
    awaitable<void> serve() {
        for (;;) {
            auto [error] = co_await acceptor_.async_accept(socket_, as_tuple);
            if (error) co_return;
            std::string buffer;
            for (;;) {
                auto [failed, size] = co_await asio::async_read_until(socket_, asio::dynamic_buffer(buffer), '\n', as_tuple);
                if (failed) break;
                auto json = Json::parse(buffer.substr(0, size));
                buffer.erase(0, size);
                if (json["op"] == "hello") {
                    ++hellos;
                    send({{"op", "assign"}, {"assignment", assignment_}});
                } else if (json["op"] == "state") {
                    states.push_back(json);
                }
            }
            boost::system::error_code ignored;
            socket_.close(ignored);
        }
    }
    asio::io_context& io_;
    std::filesystem::path path_;
    Json assignment_;
    asio::local::stream_protocol::acceptor acceptor_;
    asio::local::stream_protocol::socket socket_;
};

class WorkerTest : public ::testing::Test {
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
        url = queue::parse_broker_url(server_->url()).value();
        work = "ocrctl.test." + random_hex(4);
        results = work + ".results";
        folder.put("amqp", server_->url(), 0600);
        folder.put("ws/IMG/1.png", "picture");
        auto session = queue::Session::open(url, "test");
        ASSERT_TRUE(session) << session.error().message();
        ASSERT_TRUE(session->declare_quorum(results));
        ASSERT_TRUE(queue::declare_work_queue(*session, work));
        queue::LinkOptions options;
        options.name = "test server";
        publisher = std::make_unique<queue::Publisher>(io.get_executor(), url, options);
        queue::Consumer::Options consume;
        consume.name = "test server";
        consume.queues = {results};
        consume.prefetch = 100;
        consumer = std::make_unique<queue::Consumer>(io.get_executor(), url, consume, [this](queue::Delivery delivery) {
            consumer->ack(delivery.tag);
            answers.push_back(json_to<TaskResult>(std::string_view(delivery.body)).value());
        });
    }
    void TearDown() override {
        if (worker) worker->end();
        run_until(io, [&] { return ended || !worker; }, 10s);
        consumer.reset();
        publisher.reset();
        if (agent) agent->go_away();
        run_until(io, [] { return false; }, 0s);
        worker.reset();
    }

    Json assignment(Json parameters = Json::object()) {
        return Json(Assignment{.target = {}, .queue = work, .processor = kDummy, .parameters = std::move(parameters), .amqp_file = folder.path() / "amqp",
                               .path_map = {{"/server/workspaces", (folder.path()).string()}}, .models = {}});
    }
    /// A Worker with an agent; READY when this returns.
    void start(Json given) {
        agent = std::make_unique<FakeAgent>(io, folder.path() / "agent.sock", std::move(given));
        agent->listen();
        worker = std::make_unique<Worker>(io.get_executor(), Worker::Options{.slot = Slot("h/g/shard-0/rep-0"), .host = "testhost",
                                                                             .agent_socket = folder.path() / "agent.sock", .scratch = folder.path()});
        asio::co_spawn(io, worker->run(), [this](std::exception_ptr problem) {
            EXPECT_FALSE(problem);
            ended = true;
        });
    }
    void start() {
        start(assignment());
        ASSERT_TRUE(run_until(io, [&] { return agent->state() == "ready"; })) << agent->detail();
    }
    Task task(std::string job, Json parameters = {{"copy_files", true}}, int attempt = 1) {
        Task made;
        made.job = JobId(std::move(job));
        made.attempt = attempt;
        made.workspace = "/server/workspaces/ws";
        made.processor = kDummy;
        made.input_groups = {"IMG"};
        made.output_groups = {"OUT"};
        made.parameters = std::move(parameters);
        PageInput page;
        page.page_id = "P1";
        page.files = {FileRef{.group = "IMG", .id = "IMG_1", .page_id = "P1", .mimetype = "image/png", .path = "IMG/1.png"}};
        page.output_ids = {"OUT_1"};
        made.pages = {page};
        return made;
    }
    void send(std::vector<Task> tasks) {
        TaskMessage message;
        message.reply_to = results;
        message.tasks = std::move(tasks);
        send_text(dump(Json(message)));
    }
    void send_text(std::string body) {
        asio::co_spawn(io, publisher->publish({work, std::move(body), ""}, 90s), [](std::exception_ptr, Result<void> sent) { EXPECT_TRUE(sent); });
    }
    bool answered(std::size_t count, std::chrono::seconds limit = 60s) {
        return run_until(io, [&] { return answers.size() >= count; }, limit);
    }
    bool busy_with(std::string const& job) {
        return run_until(io, [&] { return agent->state() == "busy" && agent->states.back()["job"] == job; }, 20s);
    }
    /// The engine: our only child that is not a broker.
    int engine_pid() {
        for (auto const& row : process::table())
            if (row.parent == ::getpid() && row.state != 'Z' && process::marks_of(row.identity.pid).entry.empty() && is_engine(row.identity.pid)) return row.identity.pid;
        return 0;
    }
    static bool is_engine(int pid) {
        auto command = read_file("/proc/" + std::to_string(pid) + "/cmdline");
        return command && command->starts_with("ocrctl-engine");
    }
    std::uint32_t waiting(std::string const& queue) {
        auto session = queue::Session::open(url, "test");
        return session ? session->count(queue).value_or(99) : 99;
    }
    /// Ready or given out: the queue is empty only once nobody holds a message.
    bool nothing_left() {
        worker->drain(); // acknowledges what it has just answered
        run_until(io, [&] { return ended; }, 10s);
        return run_until(io, [&] { return waiting(work) == 0; }, 5s);
    }

    static RabbitMqServer* server_;
    test::ScratchFolder folder;
    asio::io_context io;
    queue::BrokerUrl url;
    std::string work, results;
    std::unique_ptr<queue::Publisher> publisher;
    std::unique_ptr<queue::Consumer> consumer;
    std::unique_ptr<FakeAgent> agent;
    std::unique_ptr<Worker> worker;
    std::vector<TaskResult> answers;
    bool ended = false;
};

RabbitMqServer* WorkerTest::server_ = nullptr;

TEST_F(WorkerTest, DoesATaskIntoItsStagingFolderAndAnswers) {
    start();
    send({task("job-1")});
    ASSERT_TRUE(answered(1));
    auto const& result = answers[0];
    EXPECT_EQ(result.job.str(), "job-1");
    EXPECT_EQ(result.error, "");
    EXPECT_EQ(result.slot.str(), "h/g/shard-0/rep-0");
    EXPECT_EQ(result.staging, ".ocrctl/job-1/" + result.run.str());
    ASSERT_EQ(result.pages.size(), 1u);
    ASSERT_EQ(result.pages[0].files.size(), 1u) << result.pages[0].error;
    EXPECT_EQ(result.pages[0].files[0].path, "OUT/OUT_1.png");
    EXPECT_EQ(result.pages[0].files[0].size, 7u);
    EXPECT_EQ(read_file(folder.path() / "ws" / result.staging / "OUT/OUT_1.png").value(), "picture");
    EXPECT_EQ(result.provenance.step, "preprocessing/optimization");
    EXPECT_TRUE(nothing_left()) << "acknowledged";
}

TEST_F(WorkerTest, AnswersEachTaskOfAChunkAlone) {
    start();
    send({task("a"), task("b", {{"fail", true}}), task("c")});
    ASSERT_TRUE(answered(3));
    EXPECT_EQ(answers[0].job.str(), "a");
    EXPECT_FALSE(answers[1].pages.at(0).ok);
    EXPECT_TRUE(answers[2].pages.at(0).ok);
    EXPECT_FALSE(std::filesystem::exists(folder.path() / "ws/.ocrctl/b")) << "a run that made nothing leaves nothing";
}

TEST_F(WorkerTest, AnEngineThatIsKilledEndsTheTaskNotTheWorker) {
    start();
    send({task("job-1", {{"hang", true}})});
    ASSERT_TRUE(busy_with("job-1"));
    auto engine = engine_pid();
    ASSERT_NE(engine, 0);
    ::kill(engine, SIGKILL);
    ASSERT_TRUE(answered(1));
    EXPECT_TRUE(answers[0].engine_died);
    EXPECT_EQ(answers[0].error, "the engine was killed by signal 9 (Killed) while it worked on page P1");
    send({task("job-2")});
    ASSERT_TRUE(answered(2));
    EXPECT_TRUE(answers[1].pages.at(0).ok) << answers[1].error;
    EXPECT_EQ(answers.size(), 2u) << "one result for the death";
}

TEST_F(WorkerTest, ACrashingTaskIsAnsweredOnceWithTheSignal) {
    start();
    send({task("job-1", {{"crash", true}})});
    ASSERT_TRUE(answered(1));
    EXPECT_TRUE(answers[0].engine_died);
    EXPECT_NE(answers[0].error.find("signal 11"), std::string::npos) << answers[0].error;
    EXPECT_TRUE(nothing_left());
}

TEST_F(WorkerTest, KeepsItsResultWhileTheBrokerIsAwayAndDoesNotComputeAgain) {
    start();
    run_until(io, [] { return false; }, 2s); // see broker_test: the broker registers new queues every half second
    send({task("job-1", {{"copy_files", true}, {"delay_ms", 1500}})});
    ASSERT_TRUE(busy_with("job-1"));
    server_->kill();
    // Done long before the broker is back.
    run_until(io, [] { return false; }, 3s);
    server_->start();
    ASSERT_TRUE(answered(1));
    EXPECT_EQ(answers[0].error, "");
    EXPECT_TRUE(answers[0].pages.at(0).ok);
    // The message comes again; it is acknowledged without another answer.
    run_until(io, [&] { return answers.size() > 1; }, 3s);
    EXPECT_EQ(answers.size(), 1u);
    send({task("job-2")});
    ASSERT_TRUE(answered(2));
    EXPECT_EQ(answers[1].job.str(), "job-2");
    EXPECT_TRUE(nothing_left());
}

TEST_F(WorkerTest, AnotherAttemptOfTheSameJobIsComputed) {
    start();
    send({task("job-1")});
    send({task("job-1")});
    send({task("job-1", {{"copy_files", true}}, 2)});
    ASSERT_TRUE(answered(2));
    run_until(io, [&] { return answers.size() > 2; }, 1s);
    ASSERT_EQ(answers.size(), 2u) << "the same attempt twice is answered once";
    EXPECT_EQ(answers[0].attempt, 1);
    EXPECT_EQ(answers[1].attempt, 2);
    EXPECT_NE(answers[0].run, answers[1].run);
}

TEST_F(WorkerTest, ACancelEndsTheTaskAndTheNextOneRuns) {
    start();
    send({task("job-1", {{"hang", true}})});
    ASSERT_TRUE(busy_with("job-1"));
    agent->send({{"op", "cancel"}, {"job", "other"}});
    agent->send({{"op", "cancel"}, {"job", "job-1"}});
    ASSERT_TRUE(answered(1, 10s));
    EXPECT_TRUE(answers[0].cancelled);
    EXPECT_FALSE(answers[0].engine_died);
    EXPECT_EQ(answers[0].error, "cancelled");
    send({task("job-2")});
    ASSERT_TRUE(answered(2));
    EXPECT_TRUE(answers[1].pages.at(0).ok);
}

TEST_F(WorkerTest, ATaskEndsAtItsDeadline) {
    start();
    auto late = task("job-1", {{"hang", true}});
    late.deadline = now_millis() + 800;
    send({late});
    ASSERT_TRUE(answered(1, 10s));
    EXPECT_EQ(answers[0].error, "the deadline passed while page P1 was worked on");
    EXPECT_FALSE(answers[0].engine_died);
}

TEST_F(WorkerTest, DrainsWhatItHoldsAndTakesNoMore) {
    start();
    send({task("job-1", {{"copy_files", true}, {"delay_ms", 1000}})});
    ASSERT_TRUE(busy_with("job-1"));
    send({task("job-2")});
    agent->send({{"op", "drain"}});
    ASSERT_TRUE(run_until(io, [&] { return ended; }, 20s));
    ASSERT_TRUE(answered(1));
    EXPECT_EQ(answers[0].job.str(), "job-1");
    EXPECT_TRUE(answers[0].pages.at(0).ok);
    EXPECT_TRUE(run_until(io, [&] { return waiting(work) == 1; }, 5s)) << "the second one is for somebody else";
    EXPECT_EQ(engine_pid(), 0);
}

TEST_F(WorkerTest, AnEndedWorkerGivesItsTaskBack) {
    start();
    send({task("job-1", {{"hang", true}})});
    ASSERT_TRUE(busy_with("job-1"));
    worker->drain();
    EXPECT_FALSE(run_until(io, [&] { return ended; }, 1s)) << "it waits for the Task";
    worker->end();
    ASSERT_TRUE(run_until(io, [&] { return ended; }, 10s));
    EXPECT_TRUE(run_until(io, [&] { return waiting(work) == 1; }, 5s));
    EXPECT_TRUE(answers.empty());
}

TEST_F(WorkerTest, SaysThatTheWorkspaceIsNotThereAndWhere) {
    start();
    auto lost = task("job-1");
    lost.workspace = "/server/workspaces/gone";
    send({lost});
    ASSERT_TRUE(answered(1));
    EXPECT_EQ(answers[0].error, "workspace " + (folder.path() / "gone").string() + " (/server/workspaces/gone on the server) does not exist on host testhost");
    ASSERT_EQ(answers[0].pages.size(), 1u);
    EXPECT_EQ(answers[0].pages[0].error, answers[0].error);
    EXPECT_FALSE(answers[0].engine_died);
}

TEST_F(WorkerTest, SurvivesMessagesThatMakeNoSense) {
    start();
    send_text("{\"v\": 1, \"tasks\": \"none\"}");
    send_text("not json");
    send_text("{}");
    send_text("{\"v\": 9, \"tasks\": [{}]}");
    send({task("job-1")});
    ASSERT_TRUE(answered(1));
    auto dead = work.substr(0, work.rfind('.')) + ".dead";
    EXPECT_TRUE(run_until(io, [&] { return waiting(dead) >= 4; }, 10s)) << "kept for whoever looks into it";
    EXPECT_TRUE(nothing_left());
}

TEST_F(WorkerTest, AMissingModelIsAStateNotACrashLoop) {
    auto wanted = assignment({{"model", "klingon"}});
    wanted["processor"] = "ocrd-ocrctl-recognize";
    start(wanted);
    ASSERT_TRUE(run_until(io, [&] { return agent->state() == "broken"; }, 20s));
    EXPECT_NE(agent->detail().find("klingon"), std::string::npos) << agent->detail();
    EXPECT_FALSE(ended);
    // Another assignment mends it.
    agent->assign(assignment());
    ASSERT_TRUE(run_until(io, [&] { return agent->state() == "ready"; }, 20s)) << agent->detail();
    send({task("job-1")});
    EXPECT_TRUE(answered(1));
}

TEST_F(WorkerTest, GoesOnWithoutItsAgentAndTellsItWhenItIsBack) {
    start();
    agent->go_away();
    send({task("job-1")});
    ASSERT_TRUE(answered(1));
    agent->states.clear();
    agent->listen();
    ASSERT_TRUE(run_until(io, [&] { return agent->state() == "ready"; }, 10s));
    EXPECT_EQ(agent->hellos, 2);
    EXPECT_EQ(agent->states.back()["jobs_done"], 1);
    send({task("job-2")});
    EXPECT_TRUE(answered(2));
}

TEST_F(WorkerTest, MakesTheResultQueueAgainWhenTheBrokerLostItsData) {
    start();
    send({task("job-1", {{"copy_files", true}, {"delay_ms", 1500}})});
    ASSERT_TRUE(busy_with("job-1"));
    consumer.reset();
    server_->stop();
    server_->wipe();
    server_->start();
    std::vector<std::string> bodies;
    ASSERT_TRUE(run_until(io, [&] { return agent->state() == "ready" && agent->detail().empty(); }));
    auto session = queue::Session::open(url, "test");
    ASSERT_TRUE(session);
    std::optional<queue::Delivery> got;
    ASSERT_TRUE(run_until(io, [&] {
        auto taken = session->get_one(results);
        if (taken && *taken) got = *taken;
        return got.has_value();
    }, 20s));
    EXPECT_EQ(json_to<TaskResult>(std::string_view(got->body))->job.str(), "job-1");
}

TEST_F(WorkerTest, DoesManyShortTasksQuickly) {
    start();
    constexpr int kCount = 200;
    auto begun = Steady::now();
    for (int i = 0; i < kCount; ++i) send({task("job-" + std::to_string(i))});
    ASSERT_TRUE(answered(kCount));
    auto ms = std::chrono::duration<double, std::milli>(Steady::now() - begun).count();
    std::printf("%.2f ms a Job\n", ms / kCount);
    EXPECT_LT(ms / kCount, 50.0);
    std::set<std::string> jobs;
    for (auto const& answer : answers) jobs.insert(answer.job.str());
    EXPECT_EQ(jobs.size(), static_cast<std::size_t>(kCount));
}

} // namespace
} // namespace ocrctl::host_agent
