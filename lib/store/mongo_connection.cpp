#include "lib/store/mongo_connection.hpp"

#include <mongoc/mongoc.h>

namespace ocrctl::store {
namespace {

constexpr std::int32_t kConnectTimeout = 5'000, kSocketTimeout = 30'000; // milliseconds
constexpr std::int64_t kMajorityTimeout = 10'000;
constexpr int kReadTries = 2; // a pooled connection may have been lost since its last use

struct MongoFree {
    void operator()(mongoc_uri_t* uri) const noexcept { mongoc_uri_destroy(uri); }
    void operator()(mongoc_write_concern_t* concern) const noexcept { mongoc_write_concern_destroy(concern); }
    void operator()(mongoc_collection_t* collection) const noexcept { mongoc_collection_destroy(collection); }
    void operator()(mongoc_cursor_t* cursor) const noexcept { mongoc_cursor_destroy(cursor); }
    void operator()(mongoc_bulk_operation_t* bulk) const noexcept { mongoc_bulk_operation_destroy(bulk); }
};
template <class T>
using MongoPtr = std::unique_ptr<T, MongoFree>;

/// A client of the pool, given back at the end.
class Client {
public:
    explicit Client(mongoc_client_pool_t* pool) : pool_(pool), client_(mongoc_client_pool_pop(pool)) {}
    ~Client() { mongoc_client_pool_push(pool_, client_); }
    Client(Client const&) = delete;
    Client& operator=(Client const&) = delete;
    mongoc_client_t* get() const noexcept { return client_; }
    MongoPtr<mongoc_collection_t> collection(std::string const& database, std::string_view name) const {
        return MongoPtr<mongoc_collection_t>(mongoc_client_get_collection(client_, database.c_str(), std::string(name).c_str()));
    }

private:
    mongoc_client_pool_t* pool_;
    mongoc_client_t* client_;
};

// Of the server. https://www.mongodb.com/docs/manual/reference/error-codes/
ErrorKind kind_of_server_code(std::uint32_t code) {
    switch (code) {
    case 11000: case 11001: case 12582: return ErrorKind::Conflict; // duplicate key
    case 13: case 18: case 31: case 33: case 8000: return ErrorKind::Denied;
    case 6: case 7: case 50: case 64: case 89: case 91: case 100: case 133: case 189: case 202: case 216: case 262: case 317: case 358: case 384:
    case 9001: case 10058: case 10107: case 11600: case 11601: case 11602: case 13388: case 13435: case 13436: case 14031:
        return ErrorKind::Unavailable; // time-outs, no primary, shutting down, disk full
    case 2: case 9: case 14: case 16: case 17: case 22: case 52: case 55: case 56: case 57: case 121: case 10334: case 17280:
        return ErrorKind::Invalid; // the document or the command is refused
    default: return ErrorKind::Internal;
    }
}

ErrorKind kind_of(bson_error_t const& problem) {
    switch (problem.domain) {
    case MONGOC_ERROR_STREAM:
    case MONGOC_ERROR_SERVER_SELECTION:
    case MONGOC_ERROR_WRITE_CONCERN:
    case MONGOC_ERROR_PROTOCOL: return ErrorKind::Unavailable;
    case MONGOC_ERROR_CLIENT:
        if (problem.code == MONGOC_ERROR_CLIENT_TOO_BIG) return ErrorKind::Invalid;
        return problem.code == MONGOC_ERROR_CLIENT_AUTHENTICATE ? ErrorKind::Denied : ErrorKind::Unavailable;
    case MONGOC_ERROR_SASL:
    case MONGOC_ERROR_SCRAM: return ErrorKind::Denied;
    case MONGOC_ERROR_BSON: return ErrorKind::Invalid;
    case MONGOC_ERROR_COMMAND:
        // Before it is sent: a document larger than the server takes.
        if (problem.code == MONGOC_ERROR_COMMAND_INVALID_ARG) return ErrorKind::Invalid;
        [[fallthrough]];
    case MONGOC_ERROR_SERVER:
    case MONGOC_ERROR_QUERY:
    case MONGOC_ERROR_COLLECTION:
    case MONGOC_ERROR_CURSOR: return kind_of_server_code(problem.code);
    default: return ErrorKind::Internal;
    }
}

void set_default(mongoc_uri_t* uri, char const* option, std::int32_t value) {
    if (!mongoc_uri_has_option(uri, option)) mongoc_uri_set_option_as_int32(uri, option, value);
}

} // namespace

Error mongo_error(bson_error_t const& problem, std::string_view place) {
    auto kind = kind_of(problem);
    return Error(kind, fmt::format("MongoDB at {}{}: {}", place, kind == ErrorKind::Unavailable && problem.domain == MONGOC_ERROR_SERVER_SELECTION ? " does not answer" : "",
                                   problem.message));
}

Result<std::shared_ptr<MongoConnection>> MongoConnection::open(Secret const& url, std::chrono::milliseconds patience) {
    bson_error_t problem{};
    MongoPtr<mongoc_uri_t> uri(mongoc_uri_new_with_error(url.reveal().c_str(), &problem));
    if (!uri) { // the driver's text repeats the address: the password stays out of ours
        std::string text = problem.message;
        return fail(ErrorKind::Invalid, "the address of MongoDB is no mongodb:// URL{}", text.find('@') == std::string::npos && text.find("//") == std::string::npos ? ": " + text : "");
    }
    auto wait = static_cast<std::int32_t>(patience.count());
    set_default(uri.get(), MONGOC_URI_SERVERSELECTIONTIMEOUTMS, wait);
    set_default(uri.get(), MONGOC_URI_CONNECTTIMEOUTMS, std::min(wait, kConnectTimeout));
    set_default(uri.get(), MONGOC_URI_SOCKETTIMEOUTMS, kSocketTimeout);
    // Writes are repeated by us, as they are idempotent; the driver's way needs a replica set.
    mongoc_uri_set_option_as_bool(uri.get(), MONGOC_URI_RETRYWRITES, false);
    MongoPtr<mongoc_write_concern_t> concern(mongoc_write_concern_new());
    mongoc_write_concern_set_wmajority(concern.get(), kMajorityTimeout);
    mongoc_write_concern_set_journal(concern.get(), true);
    mongoc_uri_set_write_concern(uri.get(), concern.get());

    auto connection = std::shared_ptr<MongoConnection>(new MongoConnection);
    auto const* named = mongoc_uri_get_database(uri.get());
    connection->database_ = named != nullptr && *named != '\0' ? named : "ocrd";
    for (auto const* host = mongoc_uri_get_hosts(uri.get()); host != nullptr; host = host->next) {
        if (!connection->place_.empty()) connection->place_ += ',';
        connection->place_ += host->host_and_port;
    }
    if (auto const* service = mongoc_uri_get_srv_hostname(uri.get()); service != nullptr && connection->place_.empty()) connection->place_ = service;
    connection->place_ += '/' + connection->database_;
    connection->pool_ = mongoc_client_pool_new_with_error(uri.get(), &problem);
    if (connection->pool_ == nullptr) return fail(mongo_error(problem, connection->place_));
    mongoc_client_pool_set_error_api(connection->pool_, MONGOC_ERROR_API_VERSION_2);
    mongoc_client_pool_set_appname(connection->pool_, "ocrctl");
    return connection;
}

MongoConnection::~MongoConnection() {
    if (pool_ != nullptr) mongoc_client_pool_destroy(pool_);
}

Result<Bson> MongoConnection::command(Bson const& command) {
    Client client(pool_);
    bson_t reply;
    bson_error_t problem{};
    auto good = mongoc_client_command_simple(client.get(), database_.c_str(), command.get(), nullptr, &reply, &problem);
    auto answer = Bson::copy_of(&reply);
    bson_destroy(&reply);
    if (!good) return fail(mongo_error(problem, place_));
    return answer;
}

namespace {

Result<std::vector<Bson>> drain(mongoc_cursor_t* cursor, std::string_view place) {
    std::vector<Bson> found;
    bson_t const* document = nullptr;
    while (mongoc_cursor_next(cursor, &document)) found.push_back(Bson::copy_of(document));
    bson_error_t problem{};
    if (mongoc_cursor_error(cursor, &problem)) return fail(mongo_error(problem, place));
    return found;
}

template <class Read>
auto repeat(Read const& read) {
    auto result = read();
    for (int tries = 1; tries < kReadTries && !result && result.error().kind() == ErrorKind::Unavailable; ++tries) result = read();
    return result;
}

} // namespace

Result<std::vector<Bson>> MongoConnection::find(std::string_view collection, MongoQuery const& query) {
    Bson options;
    if (query.sort) options.document("sort", *query.sort);
    if (query.fields) options.document("projection", *query.fields);
    if (query.limit > 0) options.long_number("limit", query.limit);
    return repeat([&] {
        Client client(pool_);
        auto handle = client.collection(database_, collection);
        MongoPtr<mongoc_cursor_t> cursor(mongoc_collection_find_with_opts(handle.get(), query.filter.get(), options.get(), nullptr));
        return drain(cursor.get(), place_);
    });
}

Result<std::vector<Bson>> MongoConnection::aggregate(std::string_view collection, Bson const& pipeline) {
    return repeat([&] {
        Client client(pool_);
        auto handle = client.collection(database_, collection);
        MongoPtr<mongoc_cursor_t> cursor(mongoc_collection_aggregate(handle.get(), MONGOC_QUERY_NONE, pipeline.get(), nullptr, nullptr));
        return drain(cursor.get(), place_);
    });
}

Result<std::int64_t> MongoConnection::count(std::string_view collection, Bson const& filter) {
    Bson request;
    request.text("count", collection).document("query", filter);
    auto answer = repeat([&] { return command(request); });
    if (!answer) return std::unexpected(answer.error());
    return answer->number("n").value_or(0);
}

Result<std::vector<MongoProblem>> MongoConnection::write(std::string_view collection, std::vector<MongoWrite> const& writes, bool ordered) {
    using Kind = MongoWrite::Kind;
    if (writes.empty()) return std::vector<MongoProblem>{};
    Client client(pool_);
    auto handle = client.collection(database_, collection);
    Bson options, unchecked, upsert;
    options.flag("ordered", ordered);
    unchecked.flag("validate", false); // the driver's idea of good keys is stricter than MongoDB's and OCR-D's
    upsert.flag("validate", false).flag("upsert", true);
    MongoPtr<mongoc_bulk_operation_t> bulk(mongoc_collection_create_bulk_operation_with_opts(handle.get(), options.get()));
    bson_error_t problem{};
    for (auto const& write : writes) {
        auto good = true;
        auto const* filter = write.filter.get();
        auto const* document = write.document.get();
        switch (write.kind) {
        case Kind::Insert: good = mongoc_bulk_operation_insert_with_opts(bulk.get(), document, unchecked.get(), &problem); break;
        case Kind::Update: good = mongoc_bulk_operation_update_one_with_opts(bulk.get(), filter, document, unchecked.get(), &problem); break;
        case Kind::UpdateOrInsert: good = mongoc_bulk_operation_update_one_with_opts(bulk.get(), filter, document, upsert.get(), &problem); break;
        case Kind::Replace: good = mongoc_bulk_operation_replace_one_with_opts(bulk.get(), filter, document, unchecked.get(), &problem); break;
        case Kind::ReplaceOrInsert: good = mongoc_bulk_operation_replace_one_with_opts(bulk.get(), filter, document, upsert.get(), &problem); break;
        case Kind::Remove: good = mongoc_bulk_operation_remove_many_with_opts(bulk.get(), filter, nullptr, &problem); break;
        }
        if (!good) return fail(mongo_error(problem, place_));
    }
    bson_t reply;
    auto good = mongoc_bulk_operation_execute(bulk.get(), &reply, &problem) != 0;
    auto answer = Bson::copy_of(&reply);
    bson_destroy(&reply);
    std::vector<MongoProblem> refused;
    if (good) return refused;
    // Beside refused writes there may be trouble with the rest: then nothing is known about that.
    if (auto trouble = mongo_error(problem, place_); trouble.kind() == ErrorKind::Unavailable) return fail(std::move(trouble));
    auto listed = answer.document("writeErrors");
    if (listed)
        for (std::size_t i = 0;; ++i) {
            auto one = listed->document(std::to_string(i));
            if (!one) break;
            auto kind = kind_of_server_code(static_cast<std::uint32_t>(one->number("code").value_or(0)));
            refused.push_back(MongoProblem{static_cast<std::size_t>(one->number("index").value_or(0)),
                                           Error(kind, fmt::format("MongoDB at {}: {}", place_, one->text("errmsg").value_or("refused")))});
        }
    auto concern = answer.document("writeConcernErrors");
    if (concern && concern->document("0")) return fail(ErrorKind::Unavailable, "MongoDB at {}: not written by a majority: {}", place_, problem.message);
    if (refused.empty()) return fail(mongo_error(problem, place_));
    for (auto const& one : refused)
        if (one.error.kind() == ErrorKind::Unavailable) return fail(one.error);
    return refused;
}

} // namespace ocrctl::store
