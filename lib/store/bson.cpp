#include "lib/store/bson.hpp"

#include "lib/base/text.hpp"

#include <limits>
#include <utility>

namespace ocrctl::store {
namespace {

int size_of(std::string_view text) { return static_cast<int>(text.size()); }

constexpr int kMaxDepth = 90; // MongoDB takes 100 levels; some are around the value

bool put(bson_t* document, std::string_view key, Json const& value, int depth);

bool put_object(bson_t* document, Json const& object, int depth) {
    for (auto const& [key, value] : object.items())
        if (key.find('\0') != std::string::npos || !put(document, key, value, depth)) return false;
    return true;
}

bool put_array(bson_t* document, Json const& values, int depth) {
    for (std::size_t i = 0; i < values.size(); ++i)
        if (!put(document, std::to_string(i), values[i], depth)) return false;
    return true;
}

void put_number(bson_t* document, std::string_view key, std::int64_t value) {
    if (value >= std::numeric_limits<std::int32_t>::min() && value <= std::numeric_limits<std::int32_t>::max())
        bson_append_int32(document, key.data(), size_of(key), static_cast<std::int32_t>(value));
    else
        bson_append_int64(document, key.data(), size_of(key), value);
}

void put_text(bson_t* document, std::string_view key, std::string_view value) {
    if (is_utf8(value)) {
        bson_append_utf8(document, key.data(), size_of(key), value.data(), size_of(value));
        return;
    }
    auto replaced = Json::parse(dump(Json(std::string(value)))).get<std::string>();
    bson_append_utf8(document, key.data(), size_of(key), replaced.data(), size_of(replaced));
}

bool put(bson_t* document, std::string_view key, Json const& value, int depth) {
    if (depth > kMaxDepth) return false;
    switch (value.type()) {
    case Json::value_t::object:
    case Json::value_t::array: {
        bson_t* inner = bson_new();
        auto good = value.is_object() ? put_object(inner, value, depth + 1) : put_array(inner, value, depth + 1);
        good = good && (value.is_object() ? bson_append_document(document, key.data(), size_of(key), inner)
                                          : bson_append_array(document, key.data(), size_of(key), inner));
        bson_destroy(inner);
        return good;
    }
    case Json::value_t::string: put_text(document, key, value.get_ref<std::string const&>()); return true;
    case Json::value_t::boolean: return bson_append_bool(document, key.data(), size_of(key), value.get<bool>());
    case Json::value_t::number_integer: put_number(document, key, value.get<std::int64_t>()); return true;
    case Json::value_t::number_unsigned:
        if (value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
            return bson_append_double(document, key.data(), size_of(key), value.get<double>());
        put_number(document, key, value.get<std::int64_t>());
        return true;
    case Json::value_t::number_float: return bson_append_double(document, key.data(), size_of(key), value.get<double>());
    default: return bson_append_null(document, key.data(), size_of(key));
    }
}

bool find(bson_t const* document, std::string_view key, bson_iter_t& at) {
    return bson_iter_init_find_w_len(&at, document, key.data(), size_of(key));
}

} // namespace

Bson::Bson() : document_(bson_new()) {}
Bson::~Bson() {
    if (document_ != nullptr) bson_destroy(document_);
}
Bson::Bson(Bson&& other) noexcept : document_(std::exchange(other.document_, nullptr)) {}
Bson& Bson::operator=(Bson&& other) noexcept {
    std::swap(document_, other.document_);
    return *this;
}

Bson Bson::copy_of(bson_t const* document) {
    Bson copy;
    bson_destroy(copy.document_);
    copy.document_ = bson_copy(document);
    return copy;
}

Bson& Bson::text(std::string_view key, std::string_view value) {
    put_text(document_, key, value);
    return *this;
}
Bson& Bson::text_or_null(std::string_view key, std::optional<std::string> const& value) {
    return value ? text(key, *value) : null(key);
}
Bson& Bson::number(std::string_view key, std::int64_t value) {
    put_number(document_, key, value);
    return *this;
}
Bson& Bson::long_number(std::string_view key, std::int64_t value) {
    bson_append_int64(document_, key.data(), size_of(key), value);
    return *this;
}
Bson& Bson::flag(std::string_view key, bool value) {
    bson_append_bool(document_, key.data(), size_of(key), value);
    return *this;
}
Bson& Bson::null(std::string_view key) {
    bson_append_null(document_, key.data(), size_of(key));
    return *this;
}
Bson& Bson::object_id(std::string_view key) {
    bson_oid_t id;
    bson_oid_init(&id, nullptr);
    bson_append_oid(document_, key.data(), size_of(key), &id);
    return *this;
}
Bson& Bson::document(std::string_view key, Bson const& value) {
    bson_append_document(document_, key.data(), size_of(key), value.document_);
    return *this;
}
Bson& Bson::array(std::string_view key, Bson const& value) {
    bson_append_array(document_, key.data(), size_of(key), value.document_);
    return *this;
}
Bson& Bson::texts(std::string_view key, std::span<std::string const> values) {
    Bson list;
    for (std::size_t i = 0; i < values.size(); ++i) list.text(std::to_string(i), values[i]);
    return array(key, list);
}
bool Bson::json(std::string_view key, Json const& value) { return put(document_, key, value, 0); }

std::optional<std::string> Bson::text(std::string_view key) const {
    bson_iter_t at;
    if (!find(document_, key, at) || !BSON_ITER_HOLDS_UTF8(&at)) return std::nullopt;
    std::uint32_t size = 0;
    auto const* data = bson_iter_utf8(&at, &size);
    return std::string(data, size);
}
std::optional<std::int64_t> Bson::number(std::string_view key) const {
    bson_iter_t at;
    if (!find(document_, key, at) || !BSON_ITER_HOLDS_NUMBER(&at)) return std::nullopt;
    return bson_iter_as_int64(&at);
}
std::optional<std::int64_t> Bson::date(std::string_view key) const {
    bson_iter_t at;
    if (!find(document_, key, at) || !BSON_ITER_HOLDS_DATE_TIME(&at)) return std::nullopt;
    return bson_iter_date_time(&at);
}
std::optional<Bson> Bson::document(std::string_view key) const {
    bson_iter_t at;
    if (!find(document_, key, at)) return std::nullopt;
    std::uint32_t size = 0;
    std::uint8_t const* data = nullptr;
    if (BSON_ITER_HOLDS_DOCUMENT(&at)) bson_iter_document(&at, &size, &data);
    else if (BSON_ITER_HOLDS_ARRAY(&at)) bson_iter_array(&at, &size, &data);
    else return std::nullopt;
    bson_t view;
    if (!bson_init_static(&view, data, size)) return std::nullopt;
    return copy_of(&view);
}

} // namespace ocrctl::store
