// A Store behind a journal on the local disk: a write is reported when it is in the journal, and soon made in the back end.
// Internal to lib/store. Why: docs/adr/0011-journal.md
#pragma once

#include "lib/store/store.hpp"

#include <filesystem>
#include <memory>

namespace ocrctl::store {

struct JournalOptions {
    std::filesystem::path folder;          // of this Store alone
    std::size_t limit = 64 << 20;          // bytes that may wait for the back end; then writes wait
};

/// What the journal in the folder still holds is written first. While the back end is away, writes go into the journal, up to
/// its limit, and reads are Unavailable. Changes that need the back end's answer (Batch::add) wait for it, in their order.
/// A change that the back end refuses for good (Invalid, or Internal for 5 s) is logged and kept in FOLDER/refused.jsonl; one of more
/// than 12 MiB is Invalid at once. Errors of opening: Denied, Unavailable; Invalid when the journal holds what this version cannot read.
/// close(): what waits is written, unless the back end is away: then it is written at the next start.
Result<std::unique_ptr<Store>> open_journaled(std::unique_ptr<Store> behind, JournalOptions options);

} // namespace ocrctl::store
