// JSON reading that never throws: what every wire format of ours shares. Unknown fields are ignored everywhere.
#pragma once

#include "lib/base/error.hpp"
#include "lib/base/ids.hpp"

#include <nlohmann/json.hpp>
#include <string>

namespace ocrctl {

using Json = nlohmann::json;

template <class Tag>
void to_json(Json& json, Id<Tag> const& id) { json = id.str(); }
template <class Tag>
void from_json(Json const& json, Id<Tag>& id) { id = Id<Tag>(json.get<std::string>()); }

/// Text to a document; Invalid with the parser's position.
Result<Json> parse_json(std::string_view text);

/// A document to a T by its from_json; Invalid with the library's text ("... type must be string, but is null").
template <class T>
Result<T> json_to(Json const& json) {
    try {
        return json.get<T>();
    } catch (Json::exception const& problem) {
        return fail(ErrorKind::Invalid, "{}", problem.what());
    }
}
template <class T>
Result<T> json_to(std::string_view text) {
    auto json = parse_json(text);
    if (!json) return std::unexpected(json.error());
    return json_to<T>(*json);
}

/// Compact, invalid UTF-8 replaced instead of thrown about.
std::string dump(Json const& json);

} // namespace ocrctl

/// Defines to_json and from_json (declared in the header) over the listed members; a missing key keeps its default.
#define OCRCTL_JSON_FIELDS(Type, ...)                                                                                  \
    void to_json(Json& nlohmann_json_j, Type const& nlohmann_json_t) {                                                 \
        NLOHMANN_JSON_EXPAND(NLOHMANN_JSON_PASTE(NLOHMANN_JSON_TO, __VA_ARGS__))                                       \
    }                                                                                                                  \
    void from_json(Json const& nlohmann_json_j, Type& nlohmann_json_t) {                                               \
        Type const nlohmann_json_default_obj{};                                                                        \
        NLOHMANN_JSON_EXPAND(NLOHMANN_JSON_PASTE(NLOHMANN_JSON_FROM_WITH_DEFAULT, __VA_ARGS__))                        \
    }
