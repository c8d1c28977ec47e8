// A MongoDB for tests: one that is named, or a private one on a port found free with a folder of its own.
//   OCRCTL_TEST_MONGO_URL   a running one; each fixture uses a database of its own there, and removes it
//   OCRCTL_MONGOD           a mongod binary
//   OCRCTL_FERRETDB         FerretDB as scripts/ferretdb builds it; default: build/ferretdb
#pragma once

#include "lib/model/json.hpp"
#include "tests/support/processes.hpp"

#include <filesystem>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace ocrctl::test {

/// Owns a temporary folder and a process, the leader of its group; the destructor kills it and removes the folder. Not
/// thread-safe. One per test suite, a database() per test. Problems end the test program with the server's log.
class MongoServer {
public:
    /// Why there is none here; nothing if there is one. See OCRCTL_NEEDS_MONGO.
    static std::optional<std::string> missing();

    MongoServer(); // started and answering
    ~MongoServer();
    MongoServer(MongoServer const&) = delete;

    /// A name that nobody used before.
    std::string fresh_database();
    std::string url(std::string const& database) const;
    /// "FerretDB", "mongod" or "external"
    std::string const& kind() const noexcept { return kind_; }
    /// True if it can be stopped and started.
    bool ours() const noexcept { return kind_ != "external"; }
    int port() const noexcept { return port_; }

    void stop();   // SIGTERM, until gone
    void kill();   // SIGKILL
    void freeze(); // SIGSTOP: connections stay open, nothing answers
    void thaw();
    void start();  // again, on the same port and data

    /// What is stored, as canonical extended JSON: {"$date":...}, {"$oid":...}, {"$numberInt":...} show the types.
    std::vector<Json> documents(std::string const& database, std::string const& collection, Json const& filter = Json::object()) const;
    /// Any command (extended JSON), as another program would send it; its answer. Fails the test program if refused.
    Json command(std::string const& database, std::string const& text) const;

private:
    std::string kind_, base_url_;
    std::filesystem::path folder_;
    std::vector<std::string> argv_, databases_;
    int port_ = 0;
    pid_t pid_ = 0;
};

} // namespace ocrctl::test

/// In SetUp() or a test: skips with the reason, or fails if OCRCTL_REQUIRE names mongo.
#define OCRCTL_NEEDS_MONGO()                                                                                           \
    if (auto reason = ::ocrctl::test::MongoServer::missing()) {                                                        \
        if (::ocrctl::test::required("mongo")) FAIL() << *reason;                                                      \
        GTEST_SKIP() << *reason;                                                                                       \
    }
