// The embedded Store: one SQLite file in WAL mode.
#pragma once

#include "lib/store/store.hpp"

#include <filesystem>
#include <memory>

namespace ocrctl::store {

struct SqliteOptions {
    std::filesystem::path file;
    int readers = 2; // threads, each with a connection of its own
};

/// Opens or makes it. One writer thread commits whatever waits together (BEGIN IMMEDIATE, synchronous=FULL), so that
/// many small batches share one flush; reads run on the readers' threads. close() joins them all.
/// Errors: Invalid when the file is damaged, is no database, or was written by a newer program; Denied, Unavailable.
Result<std::unique_ptr<Store>> open_sqlite(SqliteOptions options);

} // namespace ocrctl::store
