// A processing server as a process, a broker, a Workspace, and a Worker played by the test over lib/queue.
#pragma once

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/mets/mets.hpp"
#include "lib/net/client.hpp"
#include "lib/queue/broker.hpp"
#include "processing_server/names.hpp"
#include "tests/support/mongo_server.hpp"
#include "tests/support/rabbitmq_server.hpp"

#include <atomic>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <fcntl.h>
#include <fstream>
#include <gtest/gtest.h>
#include <mutex>
#include <netinet/in.h>
#include <set>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

extern char** environ;

namespace ocrctl::server::test {

using namespace std::chrono_literals;

inline bool eventually(std::function<bool()> const& condition, std::chrono::seconds limit = 30s) {
    auto end = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(5ms);
    }
    return true;
}

inline int free_port() {
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
    socklen_t size = sizeof address;
    ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size);
    return ntohs(address.sin_port);
}

/// What somebody sends to this port of loopback, as far as `until`; nothing is answered. Empty: nobody came within 20 s.
inline std::string request_on(int port, std::string const& until) {
    Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    int one = 1;
    ::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    timeval limit{20, 0};
    ::setsockopt(listener.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(listener.get(), 5) != 0)
        return {};
    Fd peer(::accept(listener.get(), nullptr, nullptr));
    if (!peer) return {};
    ::setsockopt(peer.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    std::string text;
    char buffer[4096];
    while (text.find(until) == std::string::npos) {
        auto got = ::recv(peer.get(), buffer, sizeof buffer, 0);
        if (got <= 0) break;
        text.append(buffer, static_cast<std::size_t>(got));
    }
    return text;
}

/// mets.xml with `pages` pages PHYS_0001... in OCR-D-IMG, and their (fake) images.
inline void make_workspace(std::filesystem::path const& folder, int pages) {
    std::filesystem::create_directories(folder / "OCR-D-IMG");
    std::string files, divs;
    for (int i = 1; i <= pages; ++i) {
        files += fmt::format("<mets:file ID=\"OCR-D-IMG_{0:04}\" MIMETYPE=\"image/png\"><mets:FLocat LOCTYPE=\"OTHER\" OTHERLOCTYPE=\"FILE\" "
                             "xlink:href=\"OCR-D-IMG/{0:04}.png\"/></mets:file>\n", i);
        divs += fmt::format("<mets:div TYPE=\"page\" ID=\"PHYS_{0:04}\" ORDER=\"{0}\"><mets:fptr FILEID=\"OCR-D-IMG_{0:04}\"/></mets:div>\n", i);
        std::ofstream(folder / fmt::format("OCR-D-IMG/{:04}.png", i)) << "image " << i;
    }
    std::ofstream(folder / "mets.xml") << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<mets:mets xmlns:mets=\"http://www.loc.gov/METS/\" "
                                          "xmlns:xlink=\"http://www.w3.org/1999/xlink\">\n<mets:metsHdr/>\n<mets:fileSec>\n<mets:fileGrp USE=\"OCR-D-IMG\">\n"
                                       << files << "</mets:fileGrp>\n</mets:fileSec>\n<mets:structMap TYPE=\"PHYSICAL\"><mets:div TYPE=\"physSequence\">\n" << divs
                                       << "</mets:div></mets:structMap>\n</mets:mets>\n";
}

/// The server's process; ended with SIGKILL if the test leaves it running.
class ServerProcess {
public:
    ServerProcess(std::filesystem::path state, int port) : state_(std::move(state)), port_(port) {}
    ~ServerProcess() { kill(); }

    void start(std::string const& crash_at = {}, bool wait_ready = true) {
        std::vector<std::string> environment;
        for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
        if (!crash_at.empty()) environment.push_back("OCRCTL_CRASH_AT=" + crash_at);
        std::vector<char*> envp;
        for (auto& entry : environment) envp.push_back(entry.data());
        envp.push_back(nullptr);
        std::string program = OCRCTL_SERVER_UNDER_TEST, state = state_.native(), log = (state_ / "server.log").native();
        char* argv[] = {program.data(), state.data(), nullptr};
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
        posix_spawn_file_actions_adddup2(&actions, 1, 2);
        ASSERT_EQ(posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv, envp.data()), 0);
        posix_spawn_file_actions_destroy(&actions);
        if (wait_ready) ASSERT_TRUE(eventually([&] { return get("/readyz").status == 200; }, 60s)) << log_text();
    }
    void kill() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }
    /// SIGTERM; its exit status.
    int stop() {
        ::kill(pid_, SIGTERM);
        int status = 0;
        EXPECT_TRUE(eventually([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; }, 40s)) << log_text();
        pid_ = 0;
        return status;
    }
    /// True once it has ended by itself.
    bool gone() {
        int status = 0;
        if (pid_ > 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) pid_ = 0;
        return pid_ == 0;
    }
    std::string log_text() const { return read_file(state_ / "server.log").value_or(""); }

    net::Response request(std::string method, std::string path, std::string body = {}, net::Headers headers = {}) const {
        auto answer = net::http_request(std::move(method), fmt::format("http://127.0.0.1:{}{}", port_, path), std::move(headers), std::move(body));
        if (answer) return *answer;
        net::Response none;
        none.status = 0;
        none.body = answer.error().message();
        return none;
    }
    net::Response get(std::string path) const { return request("GET", std::move(path)); }
    net::Response post(std::string path, Json const& body) const { return request("POST", std::move(path), dump(body), {{"Content-Type", "application/json"}}); }
    net::Response run(std::string const& processor, Json const& body) const { return post("/processor/run/" + processor, body); }
    /// POST /workflow/run with an uploaded script.
    net::Response run_workflow(std::string const& query, std::string const& script) const {
        std::string body = "--b\r\nContent-Disposition: form-data; name=\"workflow\"; filename=\"w.txt\"\r\n\r\n" + script + "\r\n--b--\r\n";
        return request("POST", "/workflow/run?" + query, body, {{"Content-Type", "multipart/form-data; boundary=b"}});
    }
    std::string state_of(std::string const& job) const {
        auto answer = get("/processor/job/" + job);
        auto json = parse_json(answer.body);
        return json && json->is_object() ? json->value("state", "") : "";
    }

private:
    std::filesystem::path state_;
    int port_;
    pid_t pid_ = 0;
};

/// For a Play that waits for its test: ends also when the test failed early and never says go, so that the failure is
/// seen instead of a hang while the PlayedWorker is joined.
inline void hold_until(std::function<bool()> const& go) { (void)eventually(go, 60s); }

/// Plays Workers of one Processor: takes tasks, writes outputs into staging, answers.
class PlayedWorker {
public:
    /// What to do with a task; the default does it well. Called on the worker's thread.
    using Play = std::function<std::optional<TaskResult>(Task const&, TaskResult)>;

    PlayedWorker(std::string url, std::string deployment, std::string processor, Play play = {})
        : url_(*queue::parse_broker_url(url)), queue_(work_queue(deployment, processor)), play_(std::move(play)),
          guard_(asio::make_work_guard(io_)) {
        publisher_ = std::make_unique<queue::Publisher>(io_.get_executor(), url_);
        queue::Consumer::Options options;
        options.queues = {queue_};
        options.prefetch = 1;
        consumer_ = std::make_unique<queue::Consumer>(io_.get_executor(), url_, options, [this](queue::Delivery delivery) {
            asio::co_spawn(io_, work(std::move(delivery)), [](std::exception_ptr problem) {
                if (problem) std::rethrow_exception(problem);
            });
        });
        thread_ = std::jthread([this] { io_.run(); });
    }
    ~PlayedWorker() {
        consumer_->stop();
        publisher_->stop();
        guard_.reset();
        io_.stop();
    }

    int runs() const { return runs_; }
    std::vector<std::string> jobs() const {
        std::lock_guard lock(mutex_);
        return jobs_;
    }

    /// A run that did everything well, with its files in staging.
    static TaskResult well(Task const& task) {
        TaskResult result;
        result.job = task.job;
        result.attempt = task.attempt;
        result.run = RunId(new_ulid());
        result.slot = Slot("h/g/shard-0/rep-0");
        result.staging = staging_folder(task.job, result.run);
        result.provenance = Provenance{task.processor + " v0", "test/step", task.parameters};
        result.log = "did " + task.job.str();
        result.started = now_millis();
        for (auto const& page : task.pages) {
            PageOutcome outcome{page.page_id, true, "", false, {}, {}};
            for (std::size_t i = 0; i < task.output_groups.size(); ++i) {
                FileRef file{task.output_groups[i], page.output_ids.at(i), page.page_id, "application/vnd.prima.page+xml",
                             task.output_groups[i] + "/" + page.output_ids[i] + ".xml", 0, ""};
                auto content = "<page of='" + page.files.at(0).id + "'/>";
                file.size = content.size();
                auto path = std::filesystem::path(task.workspace) / result.staging / file.path;
                // As Workers do: the server may remove an empty folder at the same moment.
                if (auto made = make_folder(path.parent_path()); !made) throw std::runtime_error(made.error().message());
                std::ofstream(path) << content;
                outcome.files.push_back(file);
            }
            result.pages.push_back(outcome);
        }
        result.ended = now_millis();
        return result;
    }

private:
    awaitable<void> work(queue::Delivery delivery) {
        auto message = json_to<TaskMessage>(std::string_view(delivery.body));
        if (!message) co_return;
        for (auto const& task : message->tasks) {
            ++runs_;
            {
                std::lock_guard lock(mutex_);
                jobs_.push_back(task.job.str());
            }
            auto result = std::optional(well(task));
            if (play_) result = play_(task, *result);
            if (!result) co_return; // dies with it: never acknowledged
            (void)co_await publisher_->publish(queue::Message{.queue = message->reply_to, .body = dump(Json(*result))});
        }
        consumer_->ack(delivery.tag);
    }

    asio::io_context io_;
    queue::BrokerUrl url_;
    std::string queue_;
    Play play_;
    asio::executor_work_guard<asio::io_context::executor_type> guard_;
    std::unique_ptr<queue::Publisher> publisher_;
    std::unique_ptr<queue::Consumer> consumer_;
    std::atomic<int> runs_ = 0;
    mutable std::mutex mutex_;
    std::vector<std::string> jobs_;
    std::jthread thread_;
};

/// One broker for all suites of the program; each test has a deployment of its own.
class ServerTest : public testing::Test {
protected:
    static ocrctl::test::RabbitMqServer& broker() {
        static auto server = std::make_unique<ocrctl::test::RabbitMqServer>();
        return *server;
    }

    static ocrctl::test::MongoServer& mongo() {
        static auto server = std::make_unique<ocrctl::test::MongoServer>();
        return *server;
    }

    void SetUp() override {
        OCRCTL_NEEDS_RABBITMQ();
        std::string pattern = (std::filesystem::temp_directory_path() / "ocrctl-server-XXXXXX").native();
        folder_ = ::mkdtemp(pattern.data());
        folder_ = std::filesystem::canonical(folder_);
        name_ = "t" + random_hex(4);
        state_ = folder_ / "state";
        workspace_ = folder_ / "data" / "ws";
        make_workspace(workspace_, 5);
        std::filesystem::create_directories(state_ / "secrets");
        std::ofstream(state_ / "secrets" / "amqp") << broker().url() << "\n";
        std::ofstream(state_ / "secrets" / "join-token") << "secret-token\n";
        port_ = free_port();
        settings_ = Json{{"name", name_}, {"deployment", "d-1"}, {"listen", {{"address", "127.0.0.1"}, {"port", port_}}},
                         {"amqp_file", "secrets/amqp"}, {"workspaces", {(folder_ / "data").native()}}, {"log_level", "debug"},
                         {"processors", {{"ocrd-ocrctl-dummy", {{"kind", "managed"}, {"count", 2}}}, {"ocrd-ocrctl-binarize", {{"kind", "managed"}, {"count", 1}}}}}};
        server_ = std::make_unique<ServerProcess>(state_, port_);
    }
    void TearDown() override {
        if (server_ && HasFailure()) std::fprintf(stderr, "--- server log\n%s\n", server_->log_text().substr(0, 20000).c_str());
        server_.reset();
        if (!folder_.empty()) remove_tree(folder_);
    }
    /// The Store is in MongoDB, in a database of this test's own. Before start().
    void use_mongo() {
        OCRCTL_NEEDS_MONGO();
        database_ = mongo().fresh_database();
        std::ofstream(state_ / "secrets" / "mongo") << mongo().url(database_) << "?serverSelectionTimeoutMS=1500\n";
        settings_["mongo_file"] = "secrets/mongo";
    }
    void start(std::string const& crash_at = {}, bool wait_ready = true) {
        std::ofstream(state_ / "server.json") << settings_.dump();
        server_->start(crash_at, wait_ready);
    }
    std::unique_ptr<PlayedWorker> worker(std::string processor = "ocrd-ocrctl-dummy", PlayedWorker::Play play = {}) {
        return std::make_unique<PlayedWorker>(broker().url(), name_, std::move(processor), std::move(play));
    }
    Json job_body(std::string output = "OUT") const {
        return Json{{"path_to_mets", (workspace_ / "mets.xml").native()}, {"input_file_grps", {"OCR-D-IMG"}}, {"output_file_grps", {output}}};
    }
    /// Submits and gives the id.
    std::string submit(Json const& body, std::string const& processor = "ocrd-ocrctl-dummy") {
        auto answer = server_->run(processor, body);
        EXPECT_EQ(answer.status, 200) << answer.body;
        return answer.status == 200 ? parse_json(answer.body)->value("job_id", "") : "";
    }
    bool reaches(std::string const& job, std::string const& state, std::chrono::seconds limit = 30s) {
        auto done = eventually([&] { return server_->state_of(job) == state; }, limit);
        if (!done) ADD_FAILURE() << "Job is " << server_->get("/v1/jobs/" + job).body;
        return done;
    }
    mets::Mets mets() const { return std::move(*mets::Mets::load(workspace_ / "mets.xml")); }
    std::size_t files_in(std::string const& group) const {
        for (auto const& one : mets().groups())
            if (one.name == group) return one.files;
        return 0;
    }

    std::filesystem::path folder_, state_, workspace_;
    std::string name_, database_;
    int port_ = 0;
    Json settings_;
    std::unique_ptr<ServerProcess> server_;
};

} // namespace ocrctl::server::test
