// What page selectors look at, indexed: the values of pages' and logical divs' attributes. Private to lib/mets.
#pragma once

#include <pugixml.hpp>

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace ocrctl::mets {

struct PageAttribute {
    bool logical;
    char const* name;
    bool ranges; // "1..5" makes sense for it
};

/// In the order in which a token without a prefix is tried.
inline constexpr std::array kPageAttributes{
    PageAttribute{false, "ID", true},         PageAttribute{false, "ORDER", true},
    PageAttribute{false, "ORDERLABEL", true}, PageAttribute{false, "LABEL", true},
    PageAttribute{false, "CONTENTIDS", true}, PageAttribute{true, "ID", true},
    PageAttribute{true, "DMDID", true},       PageAttribute{true, "TYPE", false},
    PageAttribute{true, "LABEL", false},
};

/// For each attribute: value -> pages. Read from the tree when an attribute is first asked for, and kept: a search does
/// not look through the pages again. Belongs to one Mets and refers to its tree.
class PageValues {
public:
    using Pages = std::vector<std::size_t>; // indexes, in page order
    using Map = std::map<std::string, Pages, std::less<>>;

    PageValues(pugi::xml_node root, std::vector<pugi::xml_node> pages,
               std::unordered_map<std::string, std::size_t> const& page_index)
        : root_(root), pages_(std::move(pages)), page_index_(page_index) {}

    /// An attribute of kPageAttributes.
    Map const& of(std::size_t attribute);
    /// A page was added behind the others, which has an ID and nothing else.
    void append(std::string const& id, pugi::xml_node page);

private:
    Map physical(char const* name) const;
    Map logical(char const* name);

    pugi::xml_node root_;
    std::vector<pugi::xml_node> pages_;
    std::unordered_map<std::string, std::size_t> const& page_index_;
    std::optional<std::unordered_map<std::string, Pages>> links_; // logical ID -> pages
    std::unordered_set<std::string> dangling_;                    // ids that links name and no page has
    std::array<std::optional<Map>, kPageAttributes.size()> maps_;
};

} // namespace ocrctl::mets
