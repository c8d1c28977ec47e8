// The Store in MongoDB (mongo-c-driver), for foreign Workers and big installations.
#pragma once

#include "lib/base/secret.hpp"
#include "lib/store/ocrd_documents.hpp"
#include "lib/store/store.hpp"

#include <memory>

namespace ocrctl::store {

struct MongoOptions {
    Secret url;             // "mongodb://user:password@host:port/database"; no database: "ocrd", as OCR-D has it
    int readers = 2;        // threads, each with a client of its own
};

struct MongoStores {
    std::unique_ptr<Store> store;             // collections ocrctl_*
    std::unique_ptr<OcrdDocuments> documents; // OCR-D's collections; uses the Store's connections: destroyed before it
};

/// Connects, and makes the indexes that are missing. Works with what MongoDB-compatible servers have too: no transactions, no
/// change streams, no update pipelines. Reconnects by itself. Errors: Unavailable (does not answer), Denied, Invalid (the URL).
Result<MongoStores> open_mongo(MongoOptions options);

} // namespace ocrctl::store
