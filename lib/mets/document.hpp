// The inside of Mets: the pugixml tree and the indexes over it. Private to lib/mets.
#pragma once

#include "lib/mets/mets.hpp"
#include "lib/mets/page_values.hpp"

#include <pugixml.hpp>

#include <cstdint>
#include <set>
#include <span>
#include <sys/stat.h>
#include <unordered_map>

namespace ocrctl::mets {

/// What tells one state of a file on disk from another.
struct Stamp {
    std::uint64_t device = 0, inode = 0;
    std::int64_t size = -1, seconds = 0, nanoseconds = 0;
    friend bool operator==(Stamp const&, Stamp const&) = default;
};
Stamp stamp_of(struct stat const& status) noexcept;

/// Names, resolved in scope: prefixes may be declared anywhere.
namespace xml {
std::string_view local_name(std::string_view qualified) noexcept;
bool is(pugi::xml_node node, std::string_view ns, std::string_view local) noexcept;
inline bool is_mets(pugi::xml_node node, std::string_view local) noexcept {
    return is(node, kMetsNamespace, local);
}
/// The attribute of a namespace, by local name; empty if there is none.
pugi::xml_attribute attribute(pugi::xml_node node, std::string_view ns, std::string_view local) noexcept;
/// The namespace that a prefix is bound to at a node; "" if unbound.
std::string_view namespace_of(pugi::xml_node node, std::string_view prefix) noexcept;
/// A prefix, with its colon, that is bound to `ns` at the node; nothing if there is none.
std::optional<std::string> prefix_for(pugi::xml_node node, std::string_view ns);
pugi::xml_node child(pugi::xml_node parent, std::string_view local) noexcept;

/// New elements in the parent's own METS prefix, indented as their neighbours are. `before`: an element child, or none
/// to append.
pugi::xml_node add_element(pugi::xml_node parent, std::string_view local, pugi::xml_node before = {});
/// With the white space in front of it.
void remove_element(pugi::xml_node node);
void set_attribute(pugi::xml_node node, std::string const& name, std::string const& value);
/// Sets a qualified attribute; declares `fallback_prefix` at the node if the namespace has no prefix there.
void set_attribute(pugi::xml_node node, std::string_view ns, std::string_view local, std::string const& value,
                   std::string_view fallback_prefix);
} // namespace xml

struct Mets::Impl {
    struct Entry {
        File file;
        pugi::xml_node node;
        std::size_t group = 0;      // its place in `groups`
        std::uint64_t sequence = 0; // document order inside its group
    };
    struct GroupEntries {
        std::string name;
        pugi::xml_node node; // the first mets:fileGrp of this USE
        std::vector<std::unique_ptr<Entry>> entries;
    };
    struct Pointer {
        std::string file_id;
        pugi::xml_node node; // mets:fptr
    };
    struct Page {
        std::string id;
        pugi::xml_node node; // mets:div
        std::vector<Pointer> pointers;
    };

    // --- where it is
    std::filesystem::path file, workspace;
    std::filesystem::path target; // what `file` leads to through symlinks: where saving writes
    Stamp stamp;
    bool changed = false;

    // --- the tree
    pugi::xml_document document;
    pugi::xml_node root;
    bool had_declaration = false;

    // --- the indexes
    std::vector<GroupEntries> groups;
    std::unordered_map<std::string, std::size_t> group_index;
    std::unordered_map<std::string, std::vector<Entry*>> by_id;
    std::vector<Page> page_list;
    std::vector<std::string> page_ids;
    std::unordered_map<std::string, std::size_t> page_index;
    std::unordered_map<std::string, std::vector<std::size_t>> pages_of_file; // file id -> pages, in page order
    std::unordered_map<std::string, std::size_t> path_uses;                  // local path -> entries that name it
    std::uint64_t next_sequence = 0;
    // Made when a search first needs them, kept in step from then on.
    std::optional<PageValues> values;
    std::optional<std::set<std::string, std::less<>>> sorted_ids;
    std::optional<std::unordered_map<std::string, std::vector<Entry*>>> by_place; // path, href and URL -> entries

    Result<void> read();
    Result<void> parse(std::string const& content);
    void index();
    void index_group(pugi::xml_node node, int depth);
    void index_file(pugi::xml_node node, std::size_t group);
    void index_pages();

    GroupEntries* group(std::string_view name);
    GroupEntries const* group(std::string_view name) const;
    GroupEntries& group_or_new(std::string const& name);
    Entry* entry(std::string_view id, std::string_view group) const;
    Page& page_or_new(std::string const& id);
    void point(std::string const& file_id, std::string const& page_id);
    void unpoint(std::string const& file_id);
    void set_locations(Entry& entry, std::optional<std::string> path, std::optional<std::string> url);
    void use_path(std::string const& path, int by);
    /// Enters its locations into `by_place`, or takes them out.
    void place(Entry& entry, bool in);
    std::vector<Entry*> const& at_place(std::string const& location);
    std::set<std::string, std::less<>> const& ids_in_order();
    PageValues& page_values();
    /// The pages of a selector, as indexes.
    Result<PageValues::Pages> select(std::string_view selector);
    /// METS-relative, or nothing if it leaves the workspace.
    std::optional<std::string> relative(std::string_view path) const;
    std::string local_path(std::string_view href) const;
};

} // namespace ocrctl::mets
