// The Store in MongoDB (mongo-c-driver), for foreign Workers and big installations.
#pragma once

#include "lib/base/secret.hpp"
#include "lib/store/ocrd_documents.hpp"
#include "lib/store/store.hpp"

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

namespace ocrctl::store {

/// The driver's start and end, its log routed into ours. One in main, made before any thread that uses a store.
class MongoLibrary {
public:
    MongoLibrary();
    ~MongoLibrary();
    MongoLibrary(MongoLibrary const&) = delete;
    MongoLibrary& operator=(MongoLibrary const&) = delete;
};

struct MongoOptions {
    Secret url;             // "mongodb://user:password@host:port/database"; no database: "ocrd", as OCR-D has it
    std::string deployment; // whose Store it is: a database that holds another deployment's is refused; empty: anybody's
    int readers = 2;        // threads, each with a client of its own
    std::filesystem::path journal; // folder on this machine: writes are reported once they are in it; empty: once MongoDB has them
    std::chrono::milliseconds patience{5'000}; // how long a call looks for the server
};

struct MongoStores {
    std::unique_ptr<Store> store;             // collections ocrctl_*
    std::unique_ptr<OcrdDocuments> documents; // OCR-D's collections, on the Store's connections: destroyed before it
};

/// Connects, and makes the indexes that are missing. Works with what MongoDB-compatible servers have too: no transactions, no
/// change streams, no update pipelines (docs/adr/0006-mongodb.md). Needs a MongoLibrary.
///
/// A lost connection is made again by the next call. A write whose end is unknown is repeated until it is known, at most for
/// `patience` and one call; given up, it is Unavailable, and its new Jobs and Workflows are removed before the next write.
/// Errors: Unavailable (does not answer), Denied, Invalid (the URL; data of a newer program), Conflict (another deployment's).
Result<MongoStores> open_mongo(MongoOptions options);

} // namespace ocrctl::store
