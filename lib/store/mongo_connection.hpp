// One MongoDB as the back end sees it: commands with Results. Inside lib/store only.
#pragma once

#include "lib/base/secret.hpp"
#include "lib/store/bson.hpp"

#include <chrono>
#include <memory>
#include <vector>

struct _mongoc_client_pool_t;

namespace ocrctl::store {

/// What the driver or the server says, as ours: Unavailable (try again), Denied, Conflict (a unique key), Invalid (it refuses
/// the document or the command), Internal.
Error mongo_error(bson_error_t const& problem, std::string_view place);

/// A change of one document (remove: of all that fit).
struct MongoWrite {
    enum class Kind { Insert, Update, UpdateOrInsert, Replace, ReplaceOrInsert, Remove };
    Kind kind = Kind::Insert;
    Bson filter;   // all but Insert
    Bson document; // all but Remove; an Update's has operators
};

struct MongoProblem {
    std::size_t index = 0; // of the write
    Error error;
};

struct MongoQuery {
    Bson filter;
    std::optional<Bson> sort;
    std::optional<Bson> fields;
    std::int64_t limit = 0; // 0: all
};

/// A pool of connections, made when they are needed and made again when they were lost. Thread-safe; calls block, each takes a
/// client for itself. Writes are acknowledged by a majority and in its journals. Lives after MongoLibrary.
class MongoConnection {
public:
    /// Errors: Invalid (the URL). Connects later.
    static Result<std::shared_ptr<MongoConnection>> open(Secret const& url, std::chrono::milliseconds patience);
    ~MongoConnection();
    MongoConnection(MongoConnection const&) = delete;
    MongoConnection& operator=(MongoConnection const&) = delete;

    /// "host:port/database"
    std::string const& place() const noexcept { return place_; }
    std::string const& database() const noexcept { return database_; }

    /// The answer of one command on the database. Not repeated.
    Result<Bson> command(Bson const& command);
    /// Reading is repeated once where the connection was lost.
    Result<std::vector<Bson>> find(std::string_view collection, MongoQuery const& query);
    Result<std::vector<Bson>> aggregate(std::string_view collection, Bson const& pipeline);
    Result<std::int64_t> count(std::string_view collection, Bson const& filter);
    /// As few commands as possible. Those refused are listed; in order: one, and those after it are not done. An Error: which
    /// of them are done is unknown.
    Result<std::vector<MongoProblem>> write(std::string_view collection, std::vector<MongoWrite> const& writes, bool ordered);

private:
    MongoConnection() = default;

    _mongoc_client_pool_t* pool_ = nullptr;
    std::string place_, database_;
};

} // namespace ocrctl::store
