// BSON documents of mongo-c-driver as values. Inside lib/store only.
#pragma once

#include "lib/base/error.hpp"
#include "lib/model/json.hpp"

#include <bson/bson.h>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace ocrctl::store {

/// A document that is being built, or was received. Fields keep their order. Text that is no UTF-8 gets replacement
/// characters, as BSON has no place for it. Not thread-safe, moved but not copied.
class Bson {
public:
    Bson();
    ~Bson();
    Bson(Bson&& other) noexcept;
    Bson& operator=(Bson&& other) noexcept;
    /// A copy of one that somebody else owns.
    static Bson copy_of(bson_t const* document);

    Bson& text(std::string_view key, std::string_view value);
    /// Null where there is nothing: OCR-D has no absent fields.
    Bson& text_or_null(std::string_view key, std::optional<std::string> const& value);
    /// int32 if it fits, else int64, as OCR-D's driver does.
    Bson& number(std::string_view key, std::int64_t value);
    Bson& long_number(std::string_view key, std::int64_t value); // always int64
    Bson& flag(std::string_view key, bool value);
    Bson& null(std::string_view key);
    Bson& object_id(std::string_view key); // a new one
    Bson& document(std::string_view key, Bson const& value);
    Bson& array(std::string_view key, Bson const& value); // its keys are "0", "1", ...
    Bson& texts(std::string_view key, std::span<std::string const> values);
    /// Objects become documents with the same types as OCR-D's driver makes of JSON. False: MongoDB has no place for
    /// it (a NUL in a key, nested too deep).
    bool json(std::string_view key, Json const& value);

    // Reading: what is missing or of another type is nothing.
    std::optional<std::string> text(std::string_view key) const;
    std::optional<std::int64_t> number(std::string_view key) const;
    std::optional<std::int64_t> date(std::string_view key) const; // milliseconds since 1970
    std::optional<Bson> document(std::string_view key) const;     // or array

    bson_t* get() noexcept { return document_; }
    bson_t const* get() const noexcept { return document_; }

private:
    bson_t* document_;
};

} // namespace ocrctl::store
