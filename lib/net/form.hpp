// Form bodies: multipart/form-data and application/x-www-form-urlencoded.
#pragma once

#include "lib/net/http.hpp"

#include <optional>

namespace ocrctl::net {

struct FormPart {
    std::string name;
    std::optional<std::string> filename; // present: an upload
    std::string content_type;
    std::string body;
};

/// The parts in order. Invalid if the content type is neither of the two, or the body is broken.
Result<std::vector<FormPart>> parse_form(Request const& request);

/// The first part of that name; null if there is none.
FormPart const* find_part(std::vector<FormPart> const& parts, std::string_view name) noexcept;

} // namespace ocrctl::net
