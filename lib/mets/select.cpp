// Page selectors (OCR-D protocol 5.7): "PHYS_0001..PHYS_0005", "~//.*_title", "logical:label:Chapter 2", "1,3,7".
#include "lib/mets/document.hpp"
#include "lib/mets/pattern.hpp"

#include "lib/base/text.hpp"

#include <algorithm>
#include <array>
#include <cctype>

namespace ocrctl::mets {

namespace {

struct Attribute {
    bool logical;
    char const* name;
    bool ranges; // "1..5" makes sense for it
};

// In the order in which a token without a prefix is tried.
constexpr std::array kAttributes{
    Attribute{false, "ID", true},     Attribute{false, "ORDER", true},      Attribute{false, "ORDERLABEL", true},
    Attribute{false, "LABEL", true},  Attribute{false, "CONTENTIDS", true}, Attribute{true, "ID", true},
    Attribute{true, "DMDID", true},   Attribute{true, "TYPE", false},       Attribute{true, "LABEL", false},
};

struct Token {
    std::string_view raw, text;
    std::vector<std::size_t> attributes; // indexes of kAttributes
    bool negated = false;
};

Result<Token> read_token(std::string_view raw) {
    Token token{raw, trim(raw), {}, false};
    auto take = [&](std::string_view prefix) {
        if (!token.text.starts_with(prefix)) return false;
        token.text.remove_prefix(prefix.size());
        return true;
    };
    token.negated = take("~"); // OCR-D has it behind the prefix; in front of it nothing else can be meant
    bool const physical = take("physical:"), logical = !physical && take("logical:");
    for (std::size_t i = 0; i < kAttributes.size(); ++i)
        if ((physical && !kAttributes[i].logical) || (logical && kAttributes[i].logical) || (!physical && !logical))
            token.attributes.push_back(i);
    if (physical || logical)
        for (auto i : token.attributes) {
            std::string prefix = std::string(kAttributes[i].name) + ":";
            std::transform(prefix.begin(), prefix.end(), prefix.begin(), [](unsigned char c) { return std::tolower(c); });
            if (take(prefix)) {
                token.attributes = {i};
                break;
            }
        }
    token.negated = take("~") || token.negated;
    if (token.text.empty() || token.text == "//")
        return fail(ErrorKind::Invalid, "page selector has an empty token{}", trim(raw).empty() ? "" : fmt::format(": '{}'", raw));
    return token;
}

/// For each attribute: value -> pages (indexes, in page order). Filled when first asked.
class Values {
public:
    using Pages = std::vector<std::size_t>;
    using Map = std::map<std::string, Pages, std::less<>>;

    Values(pugi::xml_node root, std::vector<pugi::xml_node> pages, std::unordered_map<std::string, std::size_t> const& page_index)
        : root_(root), pages_(std::move(pages)), page_index_(page_index) {}

    Map const& of(std::size_t attribute) {
        auto& slot = maps_[attribute];
        if (!slot) slot = kAttributes[attribute].logical ? logical(kAttributes[attribute].name) : physical(kAttributes[attribute].name);
        return *slot;
    }

private:
    Map physical(char const* name) const {
        Map map;
        for (std::size_t i = 0; i < pages_.size(); ++i)
            if (std::string_view const value = pages_[i].attribute(name).value(); !value.empty()) map[std::string(value)].push_back(i);
        return map;
    }

    Map logical(char const* name) {
        if (!links_) {
            links_.emplace();
            for (auto section : root_.children()) {
                if (!xml::is_mets(section, "structLink")) continue;
                for (auto link : section.children()) {
                    if (!xml::is_mets(link, "smLink")) continue;
                    auto const page = page_index_.find(xml::attribute(link, kXlinkNamespace, "to").value());
                    if (page != page_index_.end()) (*links_)[xml::attribute(link, kXlinkNamespace, "from").value()].push_back(page->second);
                }
            }
        }
        Map map;
        auto visit = [&](auto&& self, pugi::xml_node node, int depth) -> void {
            for (auto div : node.children()) {
                if (!xml::is_mets(div, "div")) continue;
                if (std::string_view const value = div.attribute(name).value(); !value.empty()) {
                    auto& pages = map[std::string(value)];
                    if (auto it = links_->find(div.attribute("ID").value()); it != links_->end())
                        pages.insert(pages.end(), it->second.begin(), it->second.end());
                }
                if (depth < 200) self(self, div, depth + 1);
            }
        };
        for (auto map_node : root_.children())
            if (xml::is_mets(map_node, "structMap") && std::string_view(map_node.attribute("TYPE").value()) == "LOGICAL") visit(visit, map_node, 0);
        return map;
    }

    pugi::xml_node root_;
    std::vector<pugi::xml_node> pages_;
    std::unordered_map<std::string, std::size_t> const& page_index_;
    std::optional<std::unordered_map<std::string, Pages>> links_;
    std::array<std::optional<Map>, kAttributes.size()> maps_;
};

/// The pages of one token, by the first attribute that has any.
Result<std::vector<std::size_t>> pages_of(Token const& token, Values& values) {
    auto add = [](std::vector<std::size_t>& pages, bool logical, Values::Pages const& some) {
        if (logical) pages.insert(pages.end(), some.begin(), some.end());
        else if (!some.empty()) pages.push_back(some.front()); // a literal means one page: the first found
    };
    std::vector<std::size_t> pages;

    if (token.text.starts_with("//")) {
        auto pattern = Pattern::compile(token.text.substr(2));
        if (!pattern) return fail(ErrorKind::Invalid, "page selector '{}': {}", token.raw, pattern.error().message());
        for (auto attribute : token.attributes) {
            for (auto const& [value, some] : values.of(attribute))
                if (pattern->matches(value)) pages.insert(pages.end(), some.begin(), some.end());
            if (!pages.empty()) return pages;
        }
    } else if (auto const dots = token.text.find(".."); dots != std::string_view::npos) {
        auto const start = token.text.substr(0, dots);
        auto members = expand_range(start, token.text.substr(dots + 2));
        if (!members) return fail(ErrorKind::Invalid, "page selector '{}': {}", token.raw, members.error().message());
        for (auto attribute : token.attributes) {
            if (!kAttributes[attribute].ranges) continue;
            auto const& map = values.of(attribute);
            for (auto const& member : *members)
                if (auto it = map.find(member); it != map.end()) add(pages, kAttributes[attribute].logical, it->second);
            if (pages.empty()) continue;
            if (!map.contains(start))
                return fail(ErrorKind::Invalid, "page selector '{}': the start of the range, '{}', is not in the METS", token.raw, start);
            return pages;
        }
    } else {
        for (auto attribute : token.attributes) {
            auto const& map = values.of(attribute);
            if (auto it = map.find(token.text); it != map.end()) add(pages, kAttributes[attribute].logical, it->second);
            if (!pages.empty()) return pages;
        }
    }
    return fail(ErrorKind::Invalid, "page selector '{}' matches no page", token.raw);
}

} // namespace

Result<std::vector<std::string>> Mets::select_pages(std::string_view selector) const {
    if (selector.empty()) return impl_->page_ids;
    if (impl_->page_index.contains(std::string(selector))) return std::vector{std::string(selector)};

    std::vector<pugi::xml_node> divs;
    divs.reserve(impl_->page_list.size());
    for (auto const& page : impl_->page_list) divs.push_back(page.node);
    Values values(impl_->root, std::move(divs), impl_->page_index);

    std::vector<signed char> wanted(impl_->page_list.size(), 0);
    std::vector<Token> tokens;
    bool only_negated = true;
    for (std::size_t at = 0; at <= selector.size();) {
        auto const comma = std::min(selector.find(',', at), selector.size());
        auto token = read_token(selector.substr(at, comma - at));
        if (!token) return std::unexpected(token.error());
        only_negated = only_negated && token->negated;
        tokens.push_back(std::move(*token));
        at = comma + 1;
    }
    if (only_negated) std::fill(wanted.begin(), wanted.end(), 1);
    for (bool negated : {false, true})
        for (auto const& token : tokens) {
            if (token.negated != negated) continue;
            auto pages = pages_of(token, values);
            if (!pages) return std::unexpected(pages.error());
            for (auto page : *pages) wanted[page] = !negated;
        }
    std::vector<std::string> selected;
    for (std::size_t i = 0; i < wanted.size(); ++i)
        if (wanted[i]) selected.push_back(impl_->page_ids[i]);
    return selected;
}

} // namespace ocrctl::mets
