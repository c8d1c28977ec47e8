// What a foreign Worker's side is made of: OCR-D's rows in a MongoDB-compatible server, and a Worker that acts as an
// unmodified `ocrd-x worker` does (network protocol 3.5 and 4.3), played by the test.
#pragma once

#include "lib/model/unit.hpp"
#include "lib/net/url.hpp"
#include "lib/net/websocket.hpp"
#include "tests/service/processing_server/harness.hpp"
#include "tests/support/mongo_server.hpp"

#include <mongoc/mongoc.h>

namespace ocrctl::server::test {

/// A client of its own on the database; JSON in, JSON (extended, relaxed) out. Not thread-safe.
class OcrdDatabase {
public:
    explicit OcrdDatabase(std::string const& url)
        : client_(mongoc_client_new(url.c_str())), name_(url.substr(url.rfind('/') + 1)) {}
    ~OcrdDatabase() { mongoc_client_destroy(client_); }
    OcrdDatabase(OcrdDatabase const&) = delete;

    /// Null: none, or the server is not reached.
    Json find(std::string const& collection, Json const& filter) {
        auto* handle = mongoc_client_get_collection(client_, name_.c_str(), collection.c_str());
        auto* query = bson(filter);
        auto* cursor = mongoc_collection_find_with_opts(handle, query, nullptr, nullptr);
        bson_t const* found = nullptr;
        Json document;
        if (mongoc_cursor_next(cursor, &found)) {
            char* text = bson_as_relaxed_extended_json(found, nullptr);
            document = Json::parse(text);
            bson_free(text);
        }
        mongoc_cursor_destroy(cursor);
        bson_destroy(query);
        mongoc_collection_destroy(handle);
        return document;
    }
    /// As beanie saves a document: every field of it, found by _id.
    bool replace(std::string const& collection, Json document) {
        auto* handle = mongoc_client_get_collection(client_, name_.c_str(), collection.c_str());
        auto* query = bson(Json{{"_id", document["_id"]}});
        document.erase("_id");
        auto* update = bson(Json{{"$set", document}});
        bson_error_t error;
        auto done = mongoc_collection_update_one(handle, query, update, nullptr, nullptr, &error);
        bson_destroy(query);
        bson_destroy(update);
        mongoc_collection_destroy(handle);
        return done;
    }

private:
    static bson_t* bson(Json const& json) {
        bson_error_t error;
        auto text = json.dump();
        return bson_new_from_json(reinterpret_cast<std::uint8_t const*>(text.data()), static_cast<ssize_t>(text.size()),
                                  &error);
    }
    mongoc_client_t* client_;
    std::string name_;
};

inline Json date_now() {
    return Json{{"$date", {{"$numberLong", std::to_string(now_millis())}}}};
}

/// Plays `ocrd-x worker --database ... --queue ...`: makes its queue, takes one message at a time, writes RUNNING into
/// the row, does the pages through the METS server of the workspace's row, writes the end, posts the internal callback,
/// acknowledges.
class PlayedOcrdWorker {
public:
    enum class End {
        Success,
        Failed,      // the processor raised
        Die,         // killed in the middle: its connection ends, the broker has the message again
        NoCallback,  // its callback got lost
        RefuseEarly, // it cannot use the message: rejects it and exits, before RUNNING
    };
    /// How the Job is to end; called between RUNNING and the work, on the Worker's thread.
    using Play = std::function<End(Json const& message)>;

    /// As Play, once RUNNING is in the row. Set while there is no message, or by the constructor.
    Play after_running;

    PlayedOcrdWorker(std::string amqp, std::string mongo, std::string processor, std::filesystem::path logs,
                     Play play = {}, Play running = {})
        : after_running(std::move(running)), url_(*queue::parse_broker_url(amqp)), processor_(std::move(processor)),
          logs_(std::move(logs)), play_(std::move(play)), database_(mongo), guard_(asio::make_work_guard(io_)) {
        std::filesystem::create_directories(logs_);
        queue::Consumer::Options options;
        options.name = processor_;
        options.queues = {processor_};
        options.prefetch = 1;
        options.on_connected = [name = processor_](queue::Session& session) {
            return queue::declare_ocrd_queue(session, {}, name);
        };
        consumer_ = std::make_unique<queue::Consumer>(io_.get_executor(), url_, options,
                                                      [this](queue::Delivery delivery) { work(std::move(delivery)); });
        thread_ = std::jthread([this] { io_.run(); });
    }
    ~PlayedOcrdWorker() {
        consumer_->stop();
        guard_.reset();
        io_.stop();
    }

    bool consuming() const { return consumer_->consuming(); }
    /// Has ended as a program does that got an exception.
    bool exited() const { return exited_; }
    int runs() const { return runs_; }
    std::vector<Json> messages() const {
        std::lock_guard lock(mutex_);
        return messages_;
    }

private:
    void exit() {
        exited_ = true;
        consumer_->stop();
    }

    void work(queue::Delivery delivery) {
        if (exited_) return;
        auto message = parse_json(delivery.body);
        if (!message || !message->is_object() || message->value("processor_name", "") != processor_) {
            consumer_->nack(delivery.tag, false);
            return exit();
        }
        {
            std::lock_guard lock(mutex_);
            messages_.push_back(*message);
        }
        ++runs_;
        auto id = message->at("job_id").get<std::string>();
        auto workspace = database_.find("workspace", Json{{"workspace_mets_path", message->at("path_to_mets")}});
        auto row = database_.find("DBProcessorJob", Json{{"job_id", id}});
        if (workspace.is_null() || row.is_null()) {
            consumer_->nack(delivery.tag, false);
            return exit();
        }
        auto log = logs_ / (id + ".log");
        std::ofstream(log) << "12:00:00.000 INFO ocrd.process - " << processor_ << " begins\n";
        row["state"] = "RUNNING";
        row["start_time"] = date_now();
        row["path_to_mets"] = message->at("path_to_mets");
        row["log_file_path"] = log.native();
        auto wanted = play_ ? play_(*message) : End::Success;
        if (wanted == End::RefuseEarly) {
            consumer_->nack(delivery.tag, false);
            return exit();
        }
        database_.replace("DBProcessorJob", row);
        if (after_running) wanted = after_running(*message);
        if (wanted == End::Die) return exit();
        if (wanted != End::Failed && !process(*message, workspace.value("mets_server_url", ""))) wanted = End::Failed;
        if (wanted == End::Failed)
            std::ofstream(log, std::ios::app)
                << "12:00:01.000 ERROR ocrd.processor.base - Failure in processor: no such model\n";
        auto state = wanted == End::Failed ? "FAILED" : "SUCCESS";
        row = database_.find("DBProcessorJob", Json{{"job_id", id}});
        row["state"] = state;
        row["end_time"] = date_now();
        row["exec_time"] = "14 ms";
        database_.replace("DBProcessorJob", row);
        if (wanted != End::NoCallback) {
            auto body = Json{
                {"job_id", id}, {"state", state}, {"path_to_mets", message->at("path_to_mets")}, {"workspace_id", ""}};
            auto answer = net::http_request("POST", message->at("internal_callback_url").get<std::string>(),
                                            {{"Content-Type", "application/json"}}, dump(body));
            if (!answer) { // connection errors are not caught
                consumer_->nack(delivery.tag, false);
                return exit();
            }
        }
        consumer_->ack(delivery.tag);
    }

    /// One call as OCR-D's METS client makes it: on a socket, or in TCP mode.
    Json mets_call(std::string const& url, std::string const& workspace, char const* method, char const* path,
                   char const* response, Json data) {
        if (url.starts_with('/')) return socket_call(url, method, path, response, data);
        auto body = Json{{"workspace_path", workspace},
                         {"method_type", method},
                         {"response_type", response},
                         {"request_url", path},
                         {"request_data", std::move(data)}};
        auto answer = net::http_request("POST", url, {{"Content-Type", "application/json"}}, dump(body));
        if (!answer || answer->status != 200) return {};
        return parse_json(answer->body).value_or(Json());
    }

    Json socket_call(std::string const& socket, char const* method, char const* path, std::string const& response,
                     Json const& data) {
        std::string fields;
        for (auto const* kind : {"params", "form"})
            for (auto const& [key, value] : data.value(kind, Json::object()).items())
                if (value.is_string())
                    fields += (fields.empty() ? "" : "&") + key + "=" + net::percent_encode(value.get<std::string>());
        auto form = data.contains("form");
        auto target = "/" + std::string(path) + (form || fields.empty() ? "" : "?" + fields);
        auto answer = net::http_request(
            method, net::unix_url(socket, target),
            form ? net::Headers{{"Content-Type", "application/x-www-form-urlencoded"}} : net::Headers{}, form ? fields : "");
        if (!answer || answer->status != 200) return {};
        return response == "text" ? Json{{"text", answer->body}} : parse_json(answer->body).value_or(Json());
    }

    bool process(Json const& message, std::string const& mets_server) {
        auto folder = std::filesystem::path(message["path_to_mets"].get<std::string>()).parent_path();
        auto input = message["input_file_grps"][0].get<std::string>(),
             output = message["output_file_grps"][0].get<std::string>();
        auto params = Json{{"file_grp", input}};
        if (message.contains("page_id")) params["page_id"] = message["page_id"];
        auto found = mets_call(mets_server, folder.native(), "GET", "file", "class", Json{{"params", params}});
        if (!found.is_object() || !found.contains("files")) return false;
        if (found["files"].empty()) return false;
        for (auto const& file : found["files"]) {
            auto page = file["page_id"].is_string() ? file["page_id"].get<std::string>() : "";
            auto file_id = output + "_" + page;
            auto there = mets_call(mets_server, folder.native(), "GET", "file", "class",
                                   Json{{"params", {{"file_id", file_id}, {"file_grp", output}}}});
            if (there.is_object() && there.contains("files") && !there["files"].empty())
                continue; // OCRD_EXISTING_OUTPUT=SKIP
            auto local = output + "/" + file_id + ".xml";
            std::filesystem::create_directories(folder / output);
            std::ofstream(folder / local) << "<page of='" << file.value("file_id", "") << "'/>";
            auto form = Json{{"file_grp", output}, {"file_id", file_id}, {"mimetype", "application/vnd.prima.page+xml"},
                             {"page_id", page},    {"url", nullptr},     {"local_filename", local}};
            auto added = mets_call(mets_server, folder.native(), "POST", "file", "class", Json{{"form", form}});
            if (!added.is_object() || added.contains("error")) return false;
        }
        mets_call(mets_server, folder.native(), "PUT", "", "text", Json::object());
        return true;
    }

    asio::io_context io_;
    queue::BrokerUrl url_;
    std::string processor_;
    std::filesystem::path logs_;
    Play play_;
    OcrdDatabase database_;
    asio::executor_work_guard<asio::io_context::executor_type> guard_;
    std::unique_ptr<queue::Consumer> consumer_;
    std::atomic<bool> exited_ = false;
    std::atomic<int> runs_ = 0;
    mutable std::mutex mutex_;
    std::vector<Json> messages_;
    std::jthread thread_;
};

/// The agent of host "h": reports what it is told to.
class PlayedAgent {
public:
    explicit PlayedAgent(int port) {
        thread_ = std::jthread([this, port] {
            asio::co_spawn(io_, session(port), asio::detached);
            io_.run();
        });
    }
    ~PlayedAgent() {
        asio::post(io_, [this] {
            if (socket_) socket_->close();
        });
        thread_.join();
    }
    bool connected() const { return connected_; }
    void report(std::string const& slot, UnitState state, int pid, int restarts) {
        HostReport report;
        report.deployment = "d-1";
        report.host = "h";
        report.units.push_back(UnitReport{
            .entry = slot, .kind = UnitKind::ForeignWorker, .state = state, .pid = pid, .restarts = restarts});
        asio::post(io_, [this, text = dump(Json{{"op", "report"}, {"report", report}})] { socket_->post(text); });
    }

private:
    awaitable<void> session(int port) {
        net::Headers headers{{"Authorization", "Bearer secret-token"}};
        auto socket = co_await net::websocket_connect(fmt::format("http://127.0.0.1:{}/v1/agents/connect?host=h", port),
                                                      headers, 5s);
        if (!socket) co_return;
        socket_ = *socket;
        connected_ = true;
        while (co_await socket_->read()) {
        }
    }
    asio::io_context io_;
    std::shared_ptr<net::WebSocket> socket_;
    std::atomic<bool> connected_ = false;
    std::jthread thread_;
};

/// A server with MongoDB and the tool catalogue of OCR-D's core.
class ForeignTest : public ServerTest {
protected:
    static ocrctl::test::MongoServer& mongo() {
        static auto server = std::make_unique<ocrctl::test::MongoServer>();
        return *server;
    }

    void SetUp() override {
        OCRCTL_NEEDS_MONGO();
        ServerTest::SetUp();
        if (HasFatalFailure() || IsSkipped()) return;
        // Each test has a vhost for itself: the common one of its deployment.
        vhost_ = name_;
        mongo_url_ = mongo().url(mongo().fresh_database());
        make_vhost(vhost_);
        amqp_ = vhost_url(vhost_);
        std::ofstream(state_ / "secrets" / "amqp") << amqp_ << "\n";
        std::ofstream(state_ / "secrets" / "mongo-url") << mongo_url_ << "\n";
        Json tool{{"executable", "ocrd-dummy"},
                  {"description", "copies"},
                  {"steps", {"test"}},
                  {"categories", {"test"}},
                  {"input_file_grp_cardinality", 1},
                  {"output_file_grp_cardinality", 1},
                  {"parameters", {{"copy_files", {{"type", "boolean"}, {"description", "copy"}, {"default", false}}}}}};
        auto other = tool;
        other["executable"] = "ocrd-other";
        std::ofstream(state_ / "tools.json") << Json{{"ocrd-dummy", tool}, {"ocrd-other", other}}.dump();
        settings_["mongo_file"] = "secrets/mongo-url";
        settings_["use_tcp_mets"] = true;
    }
    void TearDown() override {
        ServerTest::TearDown();
        for (auto const& vhost : vhosts_) broker().ctl("delete_vhost " + vhost);
    }
    void make_vhost(std::string const& vhost) {
        broker().ctl("add_vhost " + vhost);
        broker().ctl(fmt::format("set_permissions -p {} {} .\\* .\\* .\\*", vhost, broker().user()));
        vhosts_.push_back(vhost);
    }
    std::string vhost_url(std::string const& vhost) const { return broker().url() + vhost; }
    /// Supervised Workers of one Processor, each with its vhost.
    void supervise(std::string const& processor, int count) {
        for (int i = 0; i < count; ++i) {
            auto vhost = fmt::format("{}-w{}", name_, i);
            make_vhost(vhost);
            std::ofstream(state_ / "secrets" / ("amqp-" + std::to_string(i))) << vhost_url(vhost) << "\n";
            settings_["foreign_workers"].push_back(Json{{"slot", fmt::format("h/g/shard-0/rep-{}", i)},
                                                        {"processor", processor},
                                                        {"amqp_file", fmt::format("secrets/amqp-{}", i)}});
        }
        settings_["processors"][processor] = Json{{"kind", "foreign"}, {"count", count}};
    }
    std::unique_ptr<PlayedOcrdWorker> ocrd_worker(std::string processor = "ocrd-dummy",
                                                  PlayedOcrdWorker::Play play = {}, std::string url = {},
                                                  PlayedOcrdWorker::Play running = {}) {
        auto played = std::make_unique<PlayedOcrdWorker>(url.empty() ? amqp_ : url, mongo_url_, std::move(processor),
                                                         folder_ / "ocrdlogs", std::move(play), std::move(running));
        EXPECT_TRUE(eventually([&] { return played->consuming(); }));
        return played;
    }
    std::unique_ptr<PlayedOcrdWorker> supervised(int index, PlayedOcrdWorker::Play play = {},
                                                 PlayedOcrdWorker::Play running = {}) {
        return ocrd_worker("ocrd-dummy", std::move(play), vhost_url(fmt::format("{}-w{}", name_, index)),
                           std::move(running));
    }
    std::unique_ptr<PlayedWorker> managed_worker() {
        return std::make_unique<PlayedWorker>(amqp_, name_, "ocrd-ocrctl-dummy");
    }
    std::string dummy(std::string output = "OUT", Json more = Json::object()) {
        auto body = job_body(std::move(output));
        body.update(more);
        return submit(body, "ocrd-dummy");
    }
    Json row(std::string const& job) const {
        return OcrdDatabase(mongo_url_).find("DBProcessorJob", Json{{"job_id", job}});
    }
    std::string workflow_state(std::string const& id) const {
        auto answer = parse_json(server_->get("/workflow/job-simple/" + id).body);
        return answer && answer->is_object() ? answer->value("state", "") : "";
    }

    std::string vhost_, amqp_, mongo_url_;
    std::vector<std::string> vhosts_;
};

} // namespace ocrctl::server::test
