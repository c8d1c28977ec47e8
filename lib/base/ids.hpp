// Ids. JobId and WorkflowId are UUIDv7 (time-ordered: random keys halve SQLite's insert rate), runs are ULIDs.
// Distinct types, so that two of them cannot be swapped; OCR-D accepts any text, so a JobId holds any text too.
#pragma once

#include <compare>
#include <functional>
#include <string>

namespace ocrctl {

template <class Tag>
class Id {
public:
    Id() = default;
    explicit Id(std::string text) : text_(std::move(text)) {}
    std::string const& str() const noexcept { return text_; }
    bool empty() const noexcept { return text_.empty(); }
    friend auto operator<=>(Id const&, Id const&) = default;

private:
    std::string text_;
};

using JobId = Id<struct JobTag>;
using WorkflowId = Id<struct WorkflowTag>; // a workflow job: one start of a script
using RunId = Id<struct RunTag>;
using HostName = Id<struct HostTag>;
using Slot = Id<struct SlotTag>; // host/group/shard-s/rep-r, stable over restarts

/// A new UUIDv7, lower-case with hyphens. Thread-safe; later calls in this process sort after earlier ones.
std::string new_uuid();
/// A new ULID, 26 characters of Crockford's base 32. Thread-safe.
std::string new_ulid();
/// `bytes` random bytes from the kernel as lower-case hex: tokens, passwords, cookies.
std::string random_hex(std::size_t bytes);

} // namespace ocrctl

template <class Tag>
struct std::hash<ocrctl::Id<Tag>> {
    std::size_t operator()(ocrctl::Id<Tag> const& id) const noexcept { return std::hash<std::string>{}(id.str()); }
};
