// What the conformance suite runs against: every back end of the Store, freshly made in a folder of its own.
#pragma once

#include "lib/base/files.hpp"
#include "lib/store/mongo.hpp"
#include "lib/store/sqlite.hpp"
#include "tests/support/mongo_server.hpp"

#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <gtest/gtest.h>

namespace ocrctl::store {

/// A folder that goes away with the test.
class TempFolder {
public:
    TempFolder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "ocrctl-test-XXXXXX").native();
        path_ = ::mkdtemp(pattern.data());
    }
    ~TempFolder() { remove_tree(path_); }
    TempFolder(TempFolder const&) = delete;
    TempFolder& operator=(TempFolder const&) = delete;
    std::filesystem::path const& path() const noexcept { return path_; }

private:
    std::filesystem::path path_;
};

/// One MongoDB for the program; each test uses a database of its own.
inline test::MongoServer& mongo() {
    static test::MongoServer server;
    return server;
}

/// The Store alone; short patience, as tests take servers away.
inline Result<std::unique_ptr<Store>> open_mongo_store(std::string const& url, std::filesystem::path const& journal = {}) {
    auto opened = open_mongo({.url = Secret(url), .journal = journal, .patience = std::chrono::milliseconds(1500)});
    if (!opened) return std::unexpected(opened.error());
    return std::move(opened->store);
}

/// Runs one coroutine to its end on an io thread of its own.
template <class T>
T run(asio::io_context& io, awaitable<T> work) {
    std::optional<T> value;
    std::exception_ptr problem;
    asio::co_spawn(io, std::move(work), [&](std::exception_ptr e, T v) {
        problem = e;
        value.emplace(std::move(v));
    });
    io.restart();
    io.run();
    if (problem) std::rethrow_exception(problem);
    return std::move(*value);
}

inline Job make_job(std::string id, JobState state = JobState::Queued) {
    Job job;
    job.id = JobId(std::move(id));
    job.target.name = "ocrd-ocrctl-dummy";
    job.workspace = "/data/ws";
    job.path_to_mets = "/data/ws/mets.xml";
    job.input_groups = {"OCR-D-IMG"};
    job.output_groups = {"OCR-D-DUMMY"};
    job.pages = {"PHYS_0001", "PHYS_0002"};
    job.page_id = "PHYS_0001..PHYS_0002";
    job.parameters = Json{{"level", 3}};
    job.depends_on = {JobId("earlier")};
    job.state = state;
    job.attempt = 1;
    job.created = 1000;
    return job;
}

} // namespace ocrctl::store
