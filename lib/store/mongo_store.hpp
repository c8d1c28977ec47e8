// The Store in MongoDB's ocrctl_* collections. Inside lib/store only; see mongo.hpp.
#pragma once

#include "lib/store/mongo_connection.hpp"
#include "lib/store/ocrd_documents.hpp"
#include "lib/store/store.hpp"

namespace ocrctl::store {

/// Checks whose data is there, makes indexes, reads how far Jobs are numbered. Blocks.
/// Errors: Unavailable, Denied, Invalid (a newer program's), Conflict (another deployment's).
Result<std::unique_ptr<Store>> make_mongo_store(std::shared_ptr<MongoConnection> connection, std::string const& deployment, int readers,
                                                std::chrono::milliseconds patience);

/// Makes OCR-D's collections' indexes. Blocks. Errors: Unavailable, Denied.
Result<std::unique_ptr<OcrdDocuments>> make_ocrd_documents(std::shared_ptr<MongoConnection> connection);

/// An index that is missing is made. Errors: those of the connection; Conflict when it is unique and the data is not.
Result<void> make_index(MongoConnection& connection, std::string_view collection, std::initializer_list<std::pair<std::string_view, int>> keys, bool unique = false);

} // namespace ocrctl::store
