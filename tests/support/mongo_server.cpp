#include "tests/support/mongo_server.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/store/mongo.hpp"
#include "tests/support/processes.hpp"

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mongoc/mongoc.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace ocrctl::test {
namespace {

using Steady = std::chrono::steady_clock;

[[noreturn]] void give_up(std::string const& what) {
    std::fprintf(stderr, "MongoServer: %s\n", what.c_str());
    std::abort();
}

std::string variable(char const* name) {
    auto const* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

std::string ferretdb() {
    if (auto named = variable("OCRCTL_FERRETDB"); !named.empty()) return named;
    auto source = variable("OCRCTL_SOURCE_DIR");
    return (std::filesystem::path(source.empty() ? "." : source) / "build/ferretdb").native();
}

bool is_program(std::string const& path) { return ::access(path.c_str(), X_OK) == 0; }

/// A client of its own for one command: the server may have been restarted since.
class Visit {
public:
    explicit Visit(std::string const& url) {
        client_ = mongoc_client_new(url.c_str());
        if (client_ == nullptr) give_up("bad URL");
        mongoc_client_set_error_api(client_, 2);
    }
    ~Visit() { mongoc_client_destroy(client_); }
    Visit(Visit const&) = delete;
    mongoc_client_t* get() const { return client_; }

private:
    mongoc_client_t* client_;
};

bson_t* parsed(std::string const& text) {
    bson_error_t problem;
    auto* document = bson_new_from_json(reinterpret_cast<std::uint8_t const*>(text.data()), static_cast<ssize_t>(text.size()), &problem);
    if (document == nullptr) give_up(text + ": " + problem.message);
    return document;
}

Json shown(bson_t const* document) {
    auto* text = bson_as_canonical_extended_json(document, nullptr);
    auto json = Json::parse(text);
    bson_free(text);
    return json;
}

bool answers(std::string const& url) {
    Visit visit(url + "?serverSelectionTimeoutMS=300&connectTimeoutMS=300");
    auto* ping = parsed(R"({"ping":1})");
    auto good = mongoc_client_command_simple(visit.get(), "admin", ping, nullptr, nullptr, nullptr);
    bson_destroy(ping);
    return good;
}

// The driver, for as long as the program runs: fixtures come and go.
void start_driver() { static store::MongoLibrary library; }

} // namespace

std::optional<std::string> MongoServer::missing() {
    if (!variable("OCRCTL_TEST_MONGO_URL").empty()) return std::nullopt;
    if (auto mongod = variable("OCRCTL_MONGOD"); !mongod.empty()) {
        if (is_program(mongod)) return std::nullopt;
        return "OCRCTL_MONGOD is no program: " + mongod;
    }
    if (is_program(ferretdb())) return std::nullopt;
    return "no MongoDB here: name one in OCRCTL_TEST_MONGO_URL or OCRCTL_MONGOD, or build FerretDB: scripts/ferretdb build/ferretdb";
}

MongoServer::MongoServer() {
    start_driver();
    if (auto named = variable("OCRCTL_TEST_MONGO_URL"); !named.empty()) {
        kind_ = "external";
        base_url_ = named.ends_with('/') ? named : named + '/';
        if (!answers(base_url_)) give_up("OCRCTL_TEST_MONGO_URL does not answer");
        return;
    }
    char name[] = "/tmp/ocrctl-mongo-XXXXXX";
    if (!::mkdtemp(name)) give_up("no temporary folder");
    folder_ = name;
    std::filesystem::create_directory(folder_ / "data");
    port_ = spare_port();
    base_url_ = fmt::format("mongodb://127.0.0.1:{}/", port_);
    if (auto mongod = variable("OCRCTL_MONGOD"); !mongod.empty()) {
        kind_ = "mongod";
        argv_ = {mongod, "--dbpath", (folder_ / "data").string(), "--bind_ip", "127.0.0.1", "--port", std::to_string(port_), "--nounixsocket"};
    } else {
        kind_ = "FerretDB";
        argv_ = {std::filesystem::absolute(ferretdb()).string(), "--listen", fmt::format("127.0.0.1:{}", port_), "--sqlite", (folder_ / "data").string()};
    }
    start();
}

MongoServer::~MongoServer() {
    if (pid_ > 0) end(pid_, SIGKILL);
    if (!ours())
        for (auto const& database : databases_) command(database, R"({"dropDatabase":1})");
    if (!folder_.empty()) remove_tree(folder_);
}

std::string MongoServer::fresh_database() {
    databases_.push_back("t" + random_hex(6));
    return databases_.back();
}

std::string MongoServer::url(std::string const& database) const { return base_url_ + database; }

void MongoServer::start() {
    if (!ours() || pid_ > 0) return;
    pid_ = launch(argv_, {"PATH=/usr/bin:/bin", "HOME=" + folder_.string()}, folder_, "server.log");
    auto limit = Steady::now() + std::chrono::seconds(60);
    while (!answers(base_url_)) {
        int status = 0;
        bool ended = ::waitpid(pid_, &status, WNOHANG) == pid_;
        if (ended || Steady::now() > limit) give_up((ended ? "it ended:\n" : "it does not answer:\n") + read_file(folder_ / "server.log").value_or(""));
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

void MongoServer::stop() { if (pid_ > 0) end(pid_, SIGTERM); }
void MongoServer::kill() { if (pid_ > 0) end(pid_, SIGKILL); }
void MongoServer::freeze() { if (pid_ > 0) ::kill(pid_, SIGSTOP); }
void MongoServer::thaw() { if (pid_ > 0) ::kill(pid_, SIGCONT); }

std::vector<Json> MongoServer::documents(std::string const& database, std::string const& collection, Json const& filter) const {
    Visit visit(base_url_);
    auto* handle = mongoc_client_get_collection(visit.get(), database.c_str(), collection.c_str());
    auto* query = parsed(filter.dump());
    auto* cursor = mongoc_collection_find_with_opts(handle, query, nullptr, nullptr);
    std::vector<Json> found;
    bson_t const* document = nullptr;
    while (mongoc_cursor_next(cursor, &document)) found.push_back(shown(document));
    bson_error_t problem;
    if (mongoc_cursor_error(cursor, &problem)) give_up(problem.message);
    mongoc_cursor_destroy(cursor);
    bson_destroy(query);
    mongoc_collection_destroy(handle);
    return found;
}

Json MongoServer::command(std::string const& database, std::string const& text) const {
    Visit visit(base_url_);
    auto* document = parsed(text);
    bson_t reply;
    bson_error_t problem{};
    auto good = mongoc_client_command_simple(visit.get(), database.c_str(), document, nullptr, &reply, &problem);
    auto answer = shown(&reply);
    bson_destroy(&reply);
    bson_destroy(document);
    if (!good) give_up(text + ": " + problem.message);
    return answer;
}

} // namespace ocrctl::test
