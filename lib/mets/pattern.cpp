#include "lib/mets/pattern.hpp"

#include "lib/mets/mets.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <charconv>

namespace ocrctl::mets {

namespace {

struct PcreFree {
    void operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const noexcept { pcre2_match_context_free(context); }
};
template <class T> using PcrePtr = std::unique_ptr<T, PcreFree>;

PCRE2_SPTR bytes(std::string_view text) {
    return reinterpret_cast<PCRE2_SPTR>(text.data());
}

constexpr std::uint32_t kMatchLimit = 200'000;
constexpr std::size_t kMaxExpression = 10'000;
constexpr long kMaxRange = 1'000'000;

bool is_digit(char c) noexcept {
    return c >= '0' && c <= '9';
}

std::string_view last_digits(std::string_view text) noexcept {
    auto end = text.size();
    while (end > 0 && !is_digit(text[end - 1])) --end;
    auto start = end;
    while (start > 0 && is_digit(text[start - 1])) --start;
    return text.substr(start, end - start);
}

/// The plain characters that an expression begins with. Only what is beyond doubt.
std::string_view plain_start(std::string_view expression) noexcept {
    auto plain = [](char c) {
        return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-' || c == '/' ||
               c == ':' || c == ' ';
    };
    std::size_t end = 0;
    while (end < expression.size() && plain(expression[end])) ++end;
    auto const rest = expression.substr(end);
    if (end > 0 && rest.find_first_of("?*+{") == 0) --end; // its last character may be missing
    // An alternative to all of it: one outside of parentheses. With classes and escapes they are not worth telling
    // apart.
    if (rest.find('|') != std::string_view::npos) {
        if (rest.find_first_of("[\\#") != std::string_view::npos) return {};
        int depth = 0;
        for (char c : rest) {
            if (c == '(') ++depth;
            if (c == ')') --depth;
            if (c == '|' && depth <= 0) return {};
        }
    }
    return expression.substr(0, end);
}

} // namespace

struct Pattern::Code {
    std::string prefix;
    PcrePtr<pcre2_code> code;
    PcrePtr<pcre2_match_data> data;
    PcrePtr<pcre2_match_context> context;
};

Pattern::Pattern(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

Result<Pattern> Pattern::compile(std::string_view expression) {
    if (expression.size() > kMaxExpression)
        return fail(ErrorKind::Invalid, "regular expression is longer than {} bytes", kMaxExpression);
    int code = 0;
    PCRE2_SIZE place = 0;
    constexpr auto options = PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF;
    PcrePtr<pcre2_code> compiled(pcre2_compile(bytes(expression), expression.size(), options, &code, &place, nullptr));
    if (!compiled) {
        unsigned char text[256] = {};
        pcre2_get_error_message(code, text, sizeof text);
        return fail(ErrorKind::Invalid, "regular expression '{}' is not valid: {} at character {}", expression,
                    reinterpret_cast<char const*>(text), place + 1);
    }
    auto const prefix = plain_start(expression);
    if (prefix.empty()) pcre2_jit_compile(compiled.get(), PCRE2_JIT_COMPLETE); // pays where all is to be compared
    auto made = std::make_unique<Code>();
    made->data.reset(pcre2_match_data_create_from_pattern(compiled.get(), nullptr));
    made->context.reset(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(made->context.get(), kMatchLimit);
    made->code = std::move(compiled);
    made->prefix = prefix;
    return Pattern(std::move(made));
}

bool Pattern::matches(std::string_view text) const {
    return pcre2_match(code_->code.get(), bytes(text), text.size(), 0, 0, code_->data.get(), code_->context.get()) >= 0;
}

std::string_view Pattern::prefix() const noexcept {
    return code_->prefix;
}

Result<std::vector<std::string>> expand_range(std::string_view start, std::string_view end) {
    auto const first = last_digits(start), last = last_digits(end);
    if (first.empty() || last.empty())
        return fail(ErrorKind::Invalid, "range '{}..{}' has an end without a number", start, end);
    // The rest is what remains after cutting as many characters from the end, wherever the digits stood: OCR-D's rule.
    if (start.substr(0, start.size() - first.size()) != end.substr(0, end.size() - last.size()))
        return fail(ErrorKind::Invalid, "the ends of the range '{}..{}' differ in more than their number", start, end);
    long from = 0, to = 0;
    auto read = [](std::string_view digits, long& number) {
        return std::from_chars(digits.data(), digits.data() + digits.size(), number).ec == std::errc{};
    };
    if (!read(first, from) || !read(last, to))
        return fail(ErrorKind::Invalid, "the numbers of the range '{}..{}' are too big", start, end);
    if (to - from >= kMaxRange)
        return fail(ErrorKind::Invalid, "range '{}..{}' has more than {} members", start, end, kMaxRange);
    std::vector<std::string> members;
    for (long number = from; number <= to; ++number) {
        auto const digits = fmt::format("{:0{}}", number, first.size());
        std::string member;
        for (std::size_t at = 0;;) {
            auto const next = start.find(first, at);
            member += start.substr(at, next == std::string_view::npos ? next : next - at);
            if (next == std::string_view::npos) break;
            member += digits;
            at = next + first.size();
        }
        members.push_back(std::move(member));
    }
    return members;
}

} // namespace ocrctl::mets
