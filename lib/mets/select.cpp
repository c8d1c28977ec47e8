// Page selectors (OCR-D protocol 5.7): "PHYS_0001..PHYS_0005", "~//.*_title", "logical:label:Chapter 2", "1,3,7".
#include "lib/mets/document.hpp"
#include "lib/mets/pattern.hpp"

#include "lib/base/text.hpp"

#include <algorithm>
#include <cctype>
#include <numeric>

namespace ocrctl::mets {

namespace {

struct Token {
    std::string_view raw, text;
    std::vector<std::size_t> attributes; // indexes of kPageAttributes
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
    for (std::size_t i = 0; i < kPageAttributes.size(); ++i)
        if ((physical && !kPageAttributes[i].logical) || (logical && kPageAttributes[i].logical) ||
            (!physical && !logical))
            token.attributes.push_back(i);
    if (physical || logical)
        for (auto i : token.attributes) {
            std::string prefix = std::string(kPageAttributes[i].name) + ":";
            std::transform(prefix.begin(), prefix.end(), prefix.begin(),
                           [](unsigned char c) { return std::tolower(c); });
            if (take(prefix)) {
                token.attributes = {i};
                break;
            }
        }
    token.negated = take("~") || token.negated;
    if (token.text.empty() || token.text == "//")
        return fail(ErrorKind::Invalid, "page selector has an empty token{}",
                    trim(raw).empty() ? "" : fmt::format(": '{}'", raw));
    return token;
}

/// The pages of one token, by the first attribute that has any.
Result<PageValues::Pages> pages_of(Token const& token, PageValues& values) {
    auto add = [](PageValues::Pages& pages, bool logical, PageValues::Pages const& some) {
        if (logical)
            pages.insert(pages.end(), some.begin(), some.end());
        else if (!some.empty())
            pages.push_back(some.front()); // a literal means one page: the first found
    };
    PageValues::Pages pages;

    if (token.text.starts_with("//")) {
        auto pattern = Pattern::compile(token.text.substr(2));
        if (!pattern) return fail(ErrorKind::Invalid, "page selector '{}': {}", token.raw, pattern.error().message());
        for (auto attribute : token.attributes) {
            auto const& map = values.of(attribute);
            for (auto it = map.lower_bound(pattern->prefix());
                 it != map.end() && it->first.starts_with(pattern->prefix()); ++it)
                if (pattern->matches(it->first)) pages.insert(pages.end(), it->second.begin(), it->second.end());
            if (!pages.empty()) return pages;
        }
    } else if (auto const dots = token.text.find(".."); dots != std::string_view::npos) {
        auto const start = token.text.substr(0, dots);
        auto members = expand_range(start, token.text.substr(dots + 2));
        if (!members) return fail(ErrorKind::Invalid, "page selector '{}': {}", token.raw, members.error().message());
        for (auto attribute : token.attributes) {
            if (!kPageAttributes[attribute].ranges) continue;
            auto const& map = values.of(attribute);
            for (auto const& member : *members)
                if (auto it = map.find(member); it != map.end())
                    add(pages, kPageAttributes[attribute].logical, it->second);
            if (pages.empty()) continue;
            if (!map.contains(start))
                return fail(ErrorKind::Invalid, "page selector '{}': the start of the range, '{}', is not in the METS",
                            token.raw, start);
            return pages;
        }
    } else {
        for (auto attribute : token.attributes) {
            auto const& map = values.of(attribute);
            if (auto it = map.find(token.text); it != map.end())
                add(pages, kPageAttributes[attribute].logical, it->second);
            if (!pages.empty()) return pages;
        }
    }
    return fail(ErrorKind::Invalid, "page selector '{}' matches no page", token.raw);
}

} // namespace

PageValues::Map const& PageValues::of(std::size_t attribute) {
    auto& slot = maps_[attribute];
    if (!slot)
        slot = kPageAttributes[attribute].logical ? logical(kPageAttributes[attribute].name)
                                                  : physical(kPageAttributes[attribute].name);
    return *slot;
}

void PageValues::append(std::string const& id, pugi::xml_node page) {
    static_assert(!kPageAttributes[0].logical && std::string_view(kPageAttributes[0].name) == "ID");
    if (maps_[0]) (*maps_[0])[id].push_back(pages_.size());
    pages_.push_back(page);
    if (!dangling_.contains(id)) return;
    links_.reset();
    dangling_.clear();
    for (std::size_t i = 0; i < maps_.size(); ++i)
        if (kPageAttributes[i].logical) maps_[i].reset();
}

PageValues::Map PageValues::physical(char const* name) const {
    Map map;
    for (std::size_t i = 0; i < pages_.size(); ++i)
        if (std::string_view const value = pages_[i].attribute(name).value(); !value.empty())
            map[std::string(value)].push_back(i);
    return map;
}

PageValues::Map PageValues::logical(char const* name) {
    if (!links_) {
        links_.emplace();
        for (auto section : root_.children()) {
            if (!xml::is_mets(section, "structLink")) continue;
            for (auto link : section.children()) {
                if (!xml::is_mets(link, "smLink")) continue;
                std::string const to = xml::attribute(link, kXlinkNamespace, "to").value();
                if (auto const page = page_index_.find(to); page != page_index_.end())
                    (*links_)[xml::attribute(link, kXlinkNamespace, "from").value()].push_back(page->second);
                else
                    dangling_.insert(to);
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
        if (xml::is_mets(map_node, "structMap") && std::string_view(map_node.attribute("TYPE").value()) == "LOGICAL")
            visit(visit, map_node, 0);
    return map;
}

PageValues& Mets::Impl::page_values() {
    if (!values) {
        std::vector<pugi::xml_node> divs;
        divs.reserve(page_list.size());
        for (auto const& page : page_list) divs.push_back(page.node);
        values.emplace(root, std::move(divs), page_index);
    }
    return *values;
}

Result<PageValues::Pages> Mets::Impl::select(std::string_view selector) {
    auto all = [&] {
        PageValues::Pages pages(page_list.size());
        std::iota(pages.begin(), pages.end(), std::size_t{0});
        return pages;
    };
    if (selector.empty()) return all();
    if (auto const known = page_index.find(std::string(selector)); known != page_index.end())
        return PageValues::Pages{known->second};

    std::vector<Token> tokens;
    for (std::size_t at = 0; at <= selector.size();) {
        auto const comma = std::min(selector.find(',', at), selector.size());
        auto token = read_token(selector.substr(at, comma - at));
        if (!token) return std::unexpected(token.error());
        tokens.push_back(std::move(*token));
        at = comma + 1;
    }
    PageValues::Pages wanted, unwanted;
    if (std::ranges::all_of(tokens, &Token::negated)) wanted = all();
    for (bool negated : {false, true}) {
        auto& list = negated ? unwanted : wanted;
        for (auto const& token : tokens) {
            if (token.negated != negated) continue;
            auto pages = pages_of(token, page_values());
            if (!pages) return std::unexpected(pages.error());
            list.insert(list.end(), pages->begin(), pages->end());
        }
        std::ranges::sort(list);
        list.erase(std::unique(list.begin(), list.end()), list.end());
    }
    PageValues::Pages selected;
    std::ranges::set_difference(wanted, unwanted, std::back_inserter(selected));
    return selected;
}

Result<std::vector<std::string>> Mets::select_pages(std::string_view selector) const {
    auto pages = impl_->select(selector);
    if (!pages) return std::unexpected(pages.error());
    std::vector<std::string> ids;
    ids.reserve(pages->size());
    for (auto page : *pages) ids.push_back(impl_->page_ids[page]);
    return ids;
}

} // namespace ocrctl::mets
