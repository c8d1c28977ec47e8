#include "lib/store/mongo.hpp"

#include "lib/log/fields.hpp"
#include "lib/log/log.hpp"
#include "lib/store/journaled_store.hpp"
#include "lib/store/mongo_store.hpp"

#include <atomic>
#include <mongoc/mongoc.h>

namespace ocrctl::store {
namespace {

std::atomic<bool> started = false;

// What matters comes back as an error of a call; the rest is for us.
void log_line(mongoc_log_level_t level, char const* domain, char const* message, void*) {
    static log::Logger const log("mongoc");
    if (level != MONGOC_LOG_LEVEL_TRACE) log.debug("driver", log::kv("domain", domain), log::kv("text", message));
}

} // namespace

MongoLibrary::MongoLibrary() {
    OCRCTL_CHECK(!started.exchange(true));
    mongoc_log_set_handler(log_line, nullptr);
    mongoc_init();
}

MongoLibrary::~MongoLibrary() { mongoc_cleanup(); }

Result<MongoStores> open_mongo(MongoOptions options) {
    OCRCTL_CHECK(started);
    auto connection = MongoConnection::open(options.url, options.patience);
    if (!connection) return std::unexpected(connection.error());
    auto store = make_mongo_store(*connection, options.deployment, options.readers, options.patience);
    if (!store) return fail(store.error().during("open the store"));
    auto documents = make_ocrd_documents(*connection);
    if (!documents) return fail(documents.error().during("open the store"));
    if (!options.journal.empty()) {
        store = open_journaled(std::move(*store), {.folder = options.journal});
        if (!store) return fail(store.error().during("open the store"));
    }
    return MongoStores{std::move(*store), std::move(*documents)};
}

} // namespace ocrctl::store
