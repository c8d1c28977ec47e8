// Batches on the local disk until a database has them: one line each, in segments that are used again. Internal to lib/store.
#pragma once

#include "lib/base/files.hpp"
#include "lib/store/store.hpp"

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace ocrctl::store {

/// A Batch as one line of JSON, and back. Invalid: not one of ours. `biggest`: bytes of its biggest change.
std::string text_of(Batch const& batch, std::size_t* biggest = nullptr);
Result<Batch> batch_of(std::string_view text);

/// Not thread-safe; blocks.
///
/// A line is "<crc32> <number> <done> <batch>\n": `number` grows from line to line, all up to `done` were applied when it was
/// written. What counts is every line up to the first one of a segment that is torn, or older than the one before it, with a
/// number above the greatest `done`. Applying such lines once more, in their order and to the last one, ends in the same state.
class Journal {
public:
    struct Record {
        std::uint64_t number;
        std::string text; // of the Batch
    };

    /// Makes the folder if it is missing, reads what an earlier run left. Errors: Denied, Unavailable.
    static Result<Journal> open(std::filesystem::path folder);

    /// What was kept and perhaps not applied, in its order. Once.
    std::vector<Record> take_recovered() { return std::move(recovered_); }
    std::uint64_t next_number() const noexcept { return next_; }

    /// On disk when it returns; numbered from `first`, which is next_number() or more. Errors: Unavailable (the disk is full, ...):
    /// nothing of it will be read.
    Result<void> append(std::uint64_t first, std::span<std::string const> texts, std::uint64_t done);
    /// All up to this number were applied: segments that hold nothing else may be used again.
    void release(std::uint64_t done) { done_ = done; }
    /// Everything was applied, and nothing follows.
    void remove_segments() noexcept;

    std::filesystem::path const& folder() const noexcept { return folder_; }

private:
    struct Segment {
        std::filesystem::path file;
        Fd fd;
        std::uint64_t last = 0; // the greatest number in it
        std::uint64_t end = 0;  // bytes
    };
    explicit Journal(std::filesystem::path folder) : folder_(std::move(folder)) {}
    Result<void> read(std::filesystem::path const& file);
    Result<Segment*> current(std::size_t bytes);
    Result<void> make_segment();

    std::filesystem::path folder_;
    std::deque<Segment> segments_; // those of an earlier run have no descriptor; the last one is written to
    bool writing_ = false;         // the last one is written to
    int made_ = 0;                 // segments in this run
    std::uint64_t next_ = 1, done_ = 0;
    std::vector<Record> recovered_;
};

} // namespace ocrctl::store
