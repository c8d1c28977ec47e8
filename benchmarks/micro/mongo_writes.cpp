// mongo_writes URL [JOBS [ROUNDS]]: Jobs written per second by the Store in MongoDB, beside the bare driver on the same
// server, in turns in one run. URL is a mongodb:// address without a database; the databases it makes are dropped. The
// bare driver inserts documents with the same bytes into a collection with the same indexes: in bulks of 1,000 (as fast
// as it goes), and of as many as there are writers (what a group can hold at best).
#include "lib/base/clock.hpp"
#include "lib/base/ids.hpp"
#include "lib/store/mongo.hpp"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <cstdlib>
#include <mongoc/mongoc.h>

namespace {

using namespace ocrctl;
using Steady = std::chrono::steady_clock;

constexpr char kCollection[] = "ocrctl_jobs";

[[noreturn]] void give_up(std::string const& what) {
    std::fprintf(stderr, "mongo_writes: %s\n", what.c_str());
    std::exit(1);
}

double per_second(int count, Steady::time_point start) {
    return count / std::chrono::duration<double>(Steady::now() - start).count();
}

Job make_job(int number) {
    Job job;
    job.id = JobId(new_uuid());
    job.target.name = "ocrd-dummy";
    job.workspace = "/data/workspaces/kant_aufklaerung_1784";
    job.path_to_mets = job.workspace + "/mets.xml";
    job.input_groups = {"OCR-D-IMG"};
    job.output_groups = {fmt::format("OUT-{}", number)};
    job.pages = {"PHYS_0001"};
    job.page_id = "PHYS_0001";
    job.state = JobState::Queued;
    job.attempt = 1;
    job.created = now_millis();
    return job;
}

awaitable<void> writer(store::Store& store, int& next, int jobs) {
    while (next < jobs) {
        store::Batch batch;
        batch.put(make_job(next++));
        if (auto done = co_await store.write(std::move(batch)); !done) give_up(done.error().message());
    }
}

/// In a struct, as templates drop the alignment of a bson_t.
struct Document {
    bson_t* bson;
};

/// A connection of the driver alone, to one database.
class Bare {
public:
    Bare(std::string const& url, std::string const& database)
        : client_(mongoc_client_new(url.c_str())), database_(database) {
        if (client_ == nullptr) give_up("not an address: " + url);
        auto* concern = mongoc_write_concern_new();
        mongoc_write_concern_set_wmajority(concern, 10'000);
        mongoc_write_concern_set_journal(concern, true);
        mongoc_client_set_write_concern(client_, concern);
        mongoc_write_concern_destroy(concern);
        collection_ = mongoc_client_get_collection(client_, database.c_str(), kCollection);
    }
    ~Bare() {
        mongoc_collection_destroy(collection_);
        mongoc_client_destroy(client_);
    }
    Bare(Bare const&) = delete;

    void command(std::string const& text) {
        bson_error_t problem{};
        auto* document = bson_new_from_json(reinterpret_cast<std::uint8_t const*>(text.data()),
                                            static_cast<ssize_t>(text.size()), &problem);
        if (document == nullptr ||
            !mongoc_client_command_simple(client_, database_.c_str(), document, nullptr, nullptr, &problem))
            give_up(text + ": " + problem.message);
        bson_destroy(document);
    }
    std::int64_t count() {
        bson_error_t problem{};
        auto* all = bson_new();
        auto n = mongoc_collection_count_documents(collection_, all, nullptr, nullptr, nullptr, &problem);
        bson_destroy(all);
        if (n < 0) give_up(problem.message);
        return n;
    }
    /// Documents of the Store, to be inserted elsewhere under their ids.
    std::vector<Document> read(int limit) {
        std::vector<Document> found;
        auto* all = bson_new();
        auto* options = BCON_NEW("limit", BCON_INT64(limit));
        auto* cursor = mongoc_collection_find_with_opts(collection_, all, options, nullptr);
        bson_t const* document = nullptr;
        while (mongoc_cursor_next(cursor, &document)) found.push_back({bson_copy(document)});
        mongoc_cursor_destroy(cursor);
        bson_destroy(options);
        bson_destroy(all);
        return found;
    }
    void insert(std::vector<Document> const& documents, std::size_t at_once) {
        bson_error_t problem{};
        static_assert(sizeof(Document) == sizeof(bson_t*));
        auto const** first = reinterpret_cast<bson_t const**>(const_cast<Document*>(documents.data()));
        for (std::size_t at = 0; at < documents.size(); at += at_once)
            if (!mongoc_collection_insert_many(collection_, first + at, std::min(at_once, documents.size() - at),
                                               nullptr, nullptr, &problem))
                give_up(problem.message);
    }

private:
    mongoc_client_t* client_;
    mongoc_collection_t* collection_;
    std::string database_;
};

struct Series {
    std::string name;
    std::vector<double> rates;
};

void add(std::vector<Series>& all, std::string const& name, double rate) {
    auto found = std::ranges::find(all, name, &Series::name);
    if (found == all.end()) found = all.insert(all.end(), Series{name, {}});
    found->rates.push_back(rate);
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 2) give_up("usage: mongo_writes mongodb://HOST:PORT/ [JOBS [ROUNDS]]");
    std::string url = argv[1];
    if (!url.ends_with('/')) url += '/';
    int const jobs = argc > 2 ? std::atoi(argv[2]) : 4000, rounds = argc > 3 ? std::atoi(argv[3]) : 5;
    store::MongoLibrary library;
    std::vector<Series> all;
    for (int round = 0; round < rounds; ++round) {
        std::vector<Document> documents;
        for (int writers : {256, 64, 16}) {
            auto database = "bench" + new_ulid().substr(16);
            auto opened = store::open_mongo({.url = Secret(url + database)});
            if (!opened) give_up(opened.error().message());
            asio::io_context io(1);
            int next = 0;
            auto start = Steady::now();
            for (int i = 0; i < writers; ++i)
                asio::co_spawn(io, writer(*opened->store, next, jobs), [](std::exception_ptr e) {
                    if (e) std::rethrow_exception(e);
                });
            io.run();
            add(all, fmt::format("store, {} writers of one Job each", writers), per_second(jobs, start));
            opened->documents.reset();
            opened->store->close();
            Bare bare(url, database);
            if (bare.count() != jobs) give_up(fmt::format("{} documents instead of {}", bare.count(), jobs));
            if (documents.empty()) documents = bare.read(jobs);
            for (auto at_once : {1000, writers}) {
                if (at_once == 1000 && writers != 256) continue;
                // The Store's own indexes are there; only the documents go.
                bare.command(fmt::format(R"({{"delete":"{}","deletes":[{{"q":{{}},"limit":0}}]}})", kCollection));
                start = Steady::now();
                bare.insert(documents, static_cast<std::size_t>(at_once));
                add(all, fmt::format("driver, bulks of {}", at_once), per_second(jobs, start));
                if (bare.count() != jobs) give_up(fmt::format("{} documents instead of {}", bare.count(), jobs));
            }
            bare.command(R"({"dropDatabase":1})");
        }
        for (auto& document : documents) bson_destroy(document.bson);
    }
    for (auto& [name, rates] : all) {
        std::ranges::sort(rates);
        std::printf("%-36s %8.0f Jobs/s (%.0f to %.0f)\n", name.c_str(), rates[rates.size() / 2], rates.front(),
                    rates.back());
    }
}
