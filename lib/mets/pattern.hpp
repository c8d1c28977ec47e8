// Regular expressions of queries and selectors: PCRE2, whose dialect is near to Python's re, with a bound on the work
// that one match may do, for they come from clients. Private to lib/mets.
#pragma once

#include "lib/base/error.hpp"

#include <memory>
#include <string_view>

namespace ocrctl::mets {

/// A compiled expression that must match a whole text. Movable, one owner, not thread-safe.
class Pattern {
public:
    /// Invalid: with the place and the library's reason.
    static Result<Pattern> compile(std::string_view expression);
    /// A match that exceeds the bound counts as none.
    bool matches(std::string_view text) const;
    /// What every text that matches starts with; "" where the expression does not say. Narrows a search in an index.
    std::string_view prefix() const noexcept;

    Pattern(Pattern&&) noexcept;
    Pattern& operator=(Pattern&&) noexcept;
    ~Pattern();

private:
    struct Code;
    explicit Pattern(std::unique_ptr<Code> code);
    std::unique_ptr<Code> code_;
};

} // namespace ocrctl::mets
