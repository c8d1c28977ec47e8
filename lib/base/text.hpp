// Small things with text that several parts need.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ocrctl {

std::string_view trim(std::string_view text) noexcept;
/// "a,b,,c" at ',' gives four pieces; an empty text gives none.
std::vector<std::string> split(std::string_view text, char separator);
std::string join(std::vector<std::string> const& pieces, std::string_view separator);

/// No overlong forms, no surrogates, nothing past U+10FFFF.
bool is_utf8(std::string_view text) noexcept;

/// Changes needed to turn one into the other: insert, delete, replace, swap of neighbours.
std::size_t edit_distance(std::string_view a, std::string_view b);
/// The candidate a misspelt word was probably meant to be, or "" if none is near enough.
std::string closest(std::string_view word, std::vector<std::string> const& candidates);

/// "1 page", "3 pages"
std::string counted(std::size_t count, std::string_view singular);

} // namespace ocrctl
