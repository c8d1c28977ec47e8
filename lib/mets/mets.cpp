#include "lib/mets/document.hpp"
#include "lib/mets/pattern.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>
#include <unordered_set>

namespace ocrctl::mets {

namespace fs = std::filesystem;

namespace {

constexpr int kMaxDepth = 200; // of nested file groups and divs

bool blank(std::string_view text) noexcept {
    return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

/// The line break and indentation in front of an element, "" if there is none.
std::string indent_of(pugi::xml_node node) {
    auto const before = node.previous_sibling();
    if (before.type() != pugi::node_pcdata || !blank(before.value())) return {};
    std::string_view const text = before.value();
    auto const line = text.rfind('\n');
    return line == std::string_view::npos ? std::string{} : std::string(text.substr(line));
}

pugi::xml_node last_element(pugi::xml_node parent) {
    auto node = parent.last_child();
    while (node && node.type() != pugi::node_element) node = node.previous_sibling();
    return node;
}

pugi::xml_node first_element(pugi::xml_node parent) {
    auto node = parent.first_child();
    while (node && node.type() != pugi::node_element) node = node.next_sibling();
    return node;
}

std::string_view prefix_of(std::string_view qualified) noexcept {
    auto const colon = qualified.find(':');
    return colon == std::string_view::npos ? std::string_view{} : qualified.substr(0, colon);
}

/// "http:", "https:", "ark:": what a URI starts with.
std::string_view scheme_of(std::string_view href) noexcept {
    auto const colon = href.find(':');
    if (colon == std::string_view::npos || colon < 2) return {};
    auto const scheme = href.substr(0, colon);
    auto fits = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '+' || c == '-' || c == '.'; };
    return std::isalpha(static_cast<unsigned char>(scheme.front())) && std::all_of(scheme.begin(), scheme.end(), fits)
               ? scheme
               : std::string_view{};
}

/// An xs:ID as OCR-D checks it: letter or underscore, then word characters, dots, hyphens. Bytes past ASCII count as
/// letters.
bool valid_id(std::string_view id) noexcept {
    auto letter = [](char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; };
    auto rest = [&](char c) {
        return letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '-' || static_cast<unsigned char>(c) >= 0x80;
    };
    return !id.empty() && letter(id.front()) && std::all_of(id.begin(), id.end(), rest);
}

std::size_t line_at(std::string_view content, std::ptrdiff_t offset) {
    auto const end =
        std::min<std::size_t>(content.size(), static_cast<std::size_t>(std::max<std::ptrdiff_t>(offset, 0)));
    return 1 + static_cast<std::size_t>(
                   std::count(content.begin(), content.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
}

/// The first mets:mptr below a node.
pugi::xml_node find_mptr(pugi::xml_node node, int depth = 0) {
    if (depth > kMaxDepth) return {};
    for (auto child : node.children()) {
        if (xml::is_mets(child, "mptr")) return child;
        if (auto found = find_mptr(child, depth + 1)) return found;
    }
    return {};
}

/// "PHYS_0012..PHYS_0031": ends of the same length that differ in their last two digits.
bool short_range(std::string_view token) noexcept {
    auto const dots = token.find("..");
    if (dots == std::string_view::npos || dots < 3 || token.size() != 2 * dots + 2) return false;
    auto const start = token.substr(0, dots), end = token.substr(dots + 2);
    auto digit = [](char c) { return c >= '0' && c <= '9'; };
    return start.substr(0, dots - 2) == end.substr(0, dots - 2) && digit(start[dots - 1]) && digit(start[dots - 2]) &&
           digit(end[dots - 1]) && digit(end[dots - 2]) && !token.starts_with("//");
}

bool matches(std::optional<std::string> const& wanted, std::optional<Pattern> const& pattern,
             std::string const& value) {
    if (!wanted) return true;
    return pattern ? pattern->matches(value) : *wanted == value;
}

} // namespace

namespace xml {

std::string_view local_name(std::string_view qualified) noexcept {
    auto const colon = qualified.find(':');
    return colon == std::string_view::npos ? qualified : qualified.substr(colon + 1);
}

std::string_view namespace_of(pugi::xml_node node, std::string_view prefix) noexcept {
    for (; node; node = node.parent()) {
        for (auto a : node.attributes()) {
            std::string_view const name = a.name();
            if (!name.starts_with("xmlns")) continue;
            if (prefix.empty() ? name == "xmlns"
                               : name.size() == prefix.size() + 6 && name[5] == ':' && name.substr(6) == prefix)
                return a.value();
        }
    }
    return {};
}

bool is(pugi::xml_node node, std::string_view ns, std::string_view local) noexcept {
    std::string_view const name = node.name();
    return local_name(name) == local && node.type() == pugi::node_element && namespace_of(node, prefix_of(name)) == ns;
}

pugi::xml_attribute attribute(pugi::xml_node node, std::string_view ns, std::string_view local) noexcept {
    for (auto a : node.attributes()) {
        std::string_view const name = a.name();
        auto const prefix = prefix_of(name);
        if (!prefix.empty() && prefix != "xmlns" && local_name(name) == local && namespace_of(node, prefix) == ns)
            return a;
    }
    return {};
}

std::optional<std::string> prefix_for(pugi::xml_node node, std::string_view ns) {
    for (auto at = node; at; at = at.parent())
        for (auto a : at.attributes()) {
            std::string_view const name = a.name();
            if (!name.starts_with("xmlns:") || ns != a.value()) continue;
            auto const prefix = name.substr(6);
            if (namespace_of(node, prefix) == ns) return std::string(prefix) + ":"; // not declared anew in between
        }
    return std::nullopt;
}

pugi::xml_node child(pugi::xml_node parent, std::string_view local) noexcept {
    for (auto c : parent.children())
        if (is_mets(c, local)) return c;
    return {};
}

pugi::xml_node add_element(pugi::xml_node parent, std::string_view local, pugi::xml_node before) {
    auto const prefix = prefix_of(parent.name());
    auto const name = prefix.empty() ? std::string(local) : std::string(prefix) + ":" + std::string(local);
    auto text = [](pugi::xml_node node, std::string const& value) { node.set_value(value.c_str()); };

    if (before) {
        auto const indent = indent_of(before);
        auto node = parent.insert_child_before(name.c_str(), before);
        if (!indent.empty()) text(parent.insert_child_before(pugi::node_pcdata, before), indent);
        return node;
    }
    if (auto last = last_element(parent)) {
        auto indent = indent_of(last);
        if (indent.empty()) indent = indent_of(first_element(parent));
        auto const end = parent.last_child();
        bool const closing = end.type() == pugi::node_pcdata && blank(end.value());
        auto node = closing ? parent.insert_child_before(name.c_str(), end) : parent.append_child(name.c_str());
        if (!indent.empty()) text(parent.insert_child_before(pugi::node_pcdata, node), indent);
        return node;
    }
    auto own = indent_of(parent);
    if (own.empty() && parent.parent().type() == pugi::node_document) own = "\n";
    if (!own.empty())
        while (parent.first_child().type() == pugi::node_pcdata && blank(parent.first_child().value()))
            parent.remove_child(parent.first_child());
    if (!own.empty()) text(parent.append_child(pugi::node_pcdata), own + "  ");
    auto node = parent.append_child(name.c_str());
    if (!own.empty()) text(parent.append_child(pugi::node_pcdata), own);
    return node;
}

void remove_element(pugi::xml_node node) {
    auto parent = node.parent();
    auto const before = node.previous_sibling();
    if (before.type() == pugi::node_pcdata && blank(before.value())) parent.remove_child(before);
    parent.remove_child(node);
}

void set_attribute(pugi::xml_node node, std::string const& name, std::string const& value) {
    auto a = node.attribute(name.c_str());
    if (!a) a = node.append_attribute(name.c_str());
    a.set_value(value.c_str());
}

void set_attribute(pugi::xml_node node, std::string_view ns, std::string_view local, std::string const& value,
                   std::string_view fallback_prefix) {
    if (auto a = attribute(node, ns, local)) {
        a.set_value(value.c_str());
        return;
    }
    auto prefix = prefix_for(node, ns);
    if (!prefix) {
        prefix = std::string(fallback_prefix) + ":";
        set_attribute(node, "xmlns:" + std::string(fallback_prefix), std::string(ns));
    }
    set_attribute(node, *prefix + std::string(local), value);
}

} // namespace xml

Stamp stamp_of(struct stat const& status) noexcept {
    return {status.st_dev, status.st_ino, status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

// ---------------------------------------------------------------------------------------------- reading

Result<void> Mets::Impl::read() {
    std::error_code error;
    target = fs::canonical(file, error);
    if (error) {
        if (error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory)
            return fail(ErrorKind::NotFound, "there is no METS at {}", file.native());
        return fail(errno_error(error.value(), "read METS " + file.native()));
    }
    std::string content;
    for (int attempt = 0;; ++attempt) {
        Fd fd(::open(target.c_str(), O_RDONLY | O_CLOEXEC));
        if (!fd) return fail(errno_error(errno, "read METS " + file.native()));
        struct stat before{}, after{};
        if (::fstat(fd.get(), &before) != 0) return fail(errno_error(errno, "read METS " + file.native()));
        if (!S_ISREG(before.st_mode)) return fail(ErrorKind::Invalid, "{} is not a file", file.native());
        content.resize(static_cast<std::size_t>(before.st_size));
        std::size_t got = 0;
        while (got < content.size()) {
            auto const n = ::read(fd.get(), content.data() + got, content.size() - got);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return fail(errno_error(errno, "read METS " + file.native()));
            if (n == 0) break;
            got += static_cast<std::size_t>(n);
        }
        content.resize(got);
        if (::fstat(fd.get(), &after) != 0) return fail(errno_error(errno, "read METS " + file.native()));
        stamp = stamp_of(before);
        if (stamp == stamp_of(after)) break;
        if (attempt == 5)
            return fail(ErrorKind::Conflict, "{} is being written by somebody else all the time", file.native());
    }
    if (auto parsed = parse(content); !parsed) return parsed;
    index();
    if (by_id.empty()) {
        for (auto map : root.children()) {
            if (!xml::is_mets(map, "structMap")) continue;
            auto const pointer = find_mptr(map);
            if (!pointer) continue;
            std::string const to = xml::attribute(pointer, kXlinkNamespace, "href").value();
            return fail(ErrorKind::Invalid,
                        "{} has no pages of its own, it only points to other METS (a newspaper year or a multi-volume "
                        "work): use one of "
                        "those{}",
                        file.native(), to.empty() ? "" : ", for example " + to);
        }
    }
    return {};
}

Result<void> Mets::Impl::parse(std::string const& content) {
    // White space stays as it is and goes back as it was: the difference to the file is our additions only.
    auto const result = document.load_buffer(content.data(), content.size(), pugi::parse_full | pugi::parse_ws_pcdata);
    if (result.status == pugi::status_no_document_element || content.empty())
        return fail(ErrorKind::Invalid, "{} is not XML: {}", file.native(),
                    blank(content) ? "it is empty" : "it has no root element");
    if (!result)
        return fail(ErrorKind::Invalid, "{} is not XML: line {}: {}", file.native(), line_at(content, result.offset),
                    result.description());
    root = document.document_element();
    if (!xml::is_mets(root, "mets"))
        return fail(ErrorKind::Invalid, "{} is not a METS: its root element is <{}>{}", file.native(), root.name(),
                    xml::local_name(root.name()) == "mets" ? " outside the namespace http://www.loc.gov/METS/" : "");
    for (auto node : document.children()) {
        if (node.type() == pugi::node_declaration) {
            had_declaration = true;
            std::string encoding = node.attribute("encoding").value();
            std::transform(encoding.begin(), encoding.end(), encoding.begin(),
                           [](unsigned char c) { return std::tolower(c); });
            bool const latin1 = encoding == "iso-8859-1" || encoding == "latin1" || encoding == "latin-1";
            bool const known = encoding.empty() || encoding.starts_with("utf") || encoding == "us-ascii" || latin1;
            if (!known)
                return fail(ErrorKind::Invalid, "{} is encoded in {}: convert it to UTF-8 first", file.native(),
                            encoding);
        }
        if (node.type() == pugi::node_doctype &&
            std::string_view(node.value()).find("<!ENTITY") != std::string_view::npos)
            return fail(
                ErrorKind::Invalid,
                "{} declares entities in its DOCTYPE, which is not supported: expand them with `xmllint --noent`",
                file.native());
    }
    return {};
}

void Mets::Impl::index() {
    for (auto section : root.children())
        if (xml::is_mets(section, "fileSec"))
            for (auto node : section.children())
                if (xml::is_mets(node, "fileGrp")) index_group(node, 0);
    index_pages();
}

void Mets::Impl::index_group(pugi::xml_node node, int depth) {
    if (depth > kMaxDepth) return;
    std::string const name = node.attribute("USE").value();
    auto const [known, is_new] = group_index.try_emplace(name, groups.size());
    if (is_new) {
        groups.emplace_back();
        groups.back().name = name;
        groups.back().node = node;
    }
    auto const at = known->second;
    for (auto child : node.children()) {
        if (xml::is_mets(child, "file")) index_file(child, at);
        if (xml::is_mets(child, "fileGrp")) index_group(child, depth + 1);
    }
}

std::optional<std::string> Mets::Impl::relative(std::string_view text) const {
    if (text.empty() || text.find('\0') != std::string_view::npos) return std::nullopt;
    fs::path path{std::string(text)};
    if (path.is_absolute()) {
        auto below = [&](fs::path const& folder) {
            return path.lexically_normal().lexically_relative(folder.lexically_normal());
        };
        auto inside = below(workspace);
        if (inside.empty() || *inside.begin() == "..") {
            std::error_code error;
            auto const real = fs::canonical(workspace, error);
            if (!error) inside = below(real);
        }
        path = inside;
    }
    path = path.lexically_normal();
    if (path.empty() || path == "." || path.is_absolute() || *path.begin() == "..") return std::nullopt;
    return path.native();
}

std::string Mets::Impl::local_path(std::string_view href) const {
    if (href.starts_with("file://"))
        href.remove_prefix(7);
    else if (href.starts_with("file:"))
        href.remove_prefix(5);
    if (href.find('%') == std::string_view::npos) return std::string(href);
    // OCR-D writes names as they are, others percent-encoded: a file of the literal name decides.
    std::error_code error;
    if (fs::exists(workspace / fs::path(std::string(href)), error)) return std::string(href);
    return decode_href(href);
}

void Mets::Impl::use_path(std::string const& path, int by) {
    if (path.empty()) return;
    if (by > 0)
        ++path_uses[path];
    else if (auto it = path_uses.find(path); it != path_uses.end() && --it->second == 0)
        path_uses.erase(it);
}

void Mets::Impl::place(Entry& entry, bool in) {
    if (!by_place) return;
    auto const& f = entry.file;
    for (auto const* location : {&f.path, &f.href, &f.url}) {
        if (location->empty() || (location != &f.path && *location == f.path) ||
            (location == &f.url && f.url == f.href))
            continue;
        if (in) {
            (*by_place)[*location].push_back(&entry);
        } else if (auto it = by_place->find(*location); it != by_place->end()) {
            std::erase(it->second, &entry);
            if (it->second.empty()) by_place->erase(it);
        }
    }
}

std::vector<Mets::Impl::Entry*> const& Mets::Impl::at_place(std::string const& location) {
    if (!by_place) {
        by_place.emplace();
        for (auto const& g : groups)
            for (auto const& e : g.entries) place(*e, true);
    }
    static std::vector<Entry*> const nobody;
    auto const found = by_place->find(location);
    return found == by_place->end() ? nobody : found->second;
}

std::set<std::string, std::less<>> const& Mets::Impl::ids_in_order() {
    if (!sorted_ids) {
        sorted_ids.emplace();
        for (auto const& [id, entries] : by_id) sorted_ids->insert(id);
    }
    return *sorted_ids;
}

void Mets::Impl::index_file(pugi::xml_node node, std::size_t at) {
    auto made = std::make_unique<Entry>();
    made->node = node;
    made->group = at;
    made->sequence = next_sequence++;
    auto& f = made->file;
    f.group = groups[at].name;
    f.id = node.attribute("ID").value();
    f.mimetype = node.attribute("MIMETYPE").value();
    std::string local, url_as_local;
    for (auto location : node.children()) {
        if (!xml::is_mets(location, "FLocat")) continue;
        std::string_view const type = location.attribute("LOCTYPE").value();
        std::string const href = xml::attribute(location, kXlinkNamespace, "href").value();
        if (href.empty()) continue;
        if (type == "OTHER" && std::string_view(location.attribute("OTHERLOCTYPE").value()) == "FILE") {
            if (local.empty()) local = href;
        } else if (type == "URL") {
            // A URL without a scheme, or file:, is how older workspaces write a local file.
            auto const scheme = scheme_of(href);
            if (scheme.empty() || scheme == "file") {
                if (url_as_local.empty()) url_as_local = href;
            } else if (f.url.empty()) {
                f.url = href;
            }
        }
    }
    if (local.empty()) local = url_as_local;
    if (!local.empty()) {
        f.href = local;
        if (auto path = relative(local_path(local)))
            f.path = *path;
        else
            f.escapes = true;
    }
    use_path(f.path, 1);
    by_id[f.id].push_back(made.get());
    groups[at].entries.push_back(std::move(made));
}

void Mets::Impl::index_pages() {
    for (auto map : root.children()) {
        if (!xml::is_mets(map, "structMap") || std::string_view(map.attribute("TYPE").value()) != "PHYSICAL") continue;
        for (auto sequence : map.children()) {
            if (!xml::is_mets(sequence, "div") ||
                std::string_view(sequence.attribute("TYPE").value()) != "physSequence")
                continue;
            for (auto div : sequence.children()) {
                if (!xml::is_mets(div, "div") || std::string_view(div.attribute("TYPE").value()) != "page") continue;
                std::string const id = div.attribute("ID").value();
                if (id.empty()) continue; // nothing can be said about it
                auto const [known, is_new] = page_index.try_emplace(id, page_list.size());
                if (is_new) {
                    page_list.push_back({id, div, {}});
                    page_ids.push_back(id);
                }
                auto const at = known->second; // the same page in a second structMap: one page, all its files
                for (auto pointer : div.children()) {
                    if (!xml::is_mets(pointer, "fptr")) continue;
                    std::string const file_id = pointer.attribute("FILEID").value();
                    page_list[at].pointers.push_back({file_id, pointer});
                    auto& of = pages_of_file[file_id];
                    if (std::find(of.begin(), of.end(), at) == of.end()) of.push_back(at);
                }
            }
        }
    }
    for (auto& [id, of] : pages_of_file) {
        std::sort(of.begin(), of.end());
        if (auto it = by_id.find(id); it != by_id.end())
            for (auto* e : it->second) e->file.page_id = page_ids[of.front()];
    }
}

// ---------------------------------------------------------------------------------------------- indexes

Mets::Impl::GroupEntries* Mets::Impl::group(std::string_view name) {
    auto it = group_index.find(std::string(name));
    return it == group_index.end() ? nullptr : &groups[it->second];
}
Mets::Impl::GroupEntries const* Mets::Impl::group(std::string_view name) const {
    auto it = group_index.find(std::string(name));
    return it == group_index.end() ? nullptr : &groups[it->second];
}

Mets::Impl::Entry* Mets::Impl::entry(std::string_view id, std::string_view in_group) const {
    auto it = by_id.find(std::string(id));
    if (it == by_id.end() || it->second.empty()) return nullptr;
    if (in_group.empty()) return it->second.back();
    for (auto* e : it->second)
        if (e->file.group == in_group) return e;
    return nullptr;
}

Mets::Impl::GroupEntries& Mets::Impl::group_or_new(std::string const& name) {
    if (auto* known = group(name)) return *known;
    auto section = xml::child(root, "fileSec");
    if (!section) {
        pugi::xml_node before; // the schema's order: fileSec, structMap, structLink, behaviorSec
        for (auto c : root.children())
            if (xml::is_mets(c, "structMap") || xml::is_mets(c, "structLink") || xml::is_mets(c, "behaviorSec")) {
                before = c;
                break;
            }
        section = xml::add_element(root, "fileSec", before);
    }
    auto node = xml::add_element(section, "fileGrp");
    xml::set_attribute(node, "USE", name);
    group_index.emplace(name, groups.size());
    groups.emplace_back();
    groups.back().name = name;
    groups.back().node = node;
    return groups.back();
}

Mets::Impl::Page& Mets::Impl::page_or_new(std::string const& id) {
    if (auto it = page_index.find(id); it != page_index.end()) return page_list[it->second];
    pugi::xml_node map, sequence;
    for (auto c : root.children()) {
        if (!xml::is_mets(c, "structMap") || std::string_view(c.attribute("TYPE").value()) != "PHYSICAL") continue;
        if (!map) map = c;
        for (auto d : c.children())
            if (!sequence && xml::is_mets(d, "div") && std::string_view(d.attribute("TYPE").value()) == "physSequence")
                sequence = d;
        if (sequence) break;
    }
    if (!sequence) {
        if (!map) {
            pugi::xml_node before;
            for (auto c : root.children())
                if (xml::is_mets(c, "structLink") || xml::is_mets(c, "behaviorSec")) {
                    before = c;
                    break;
                }
            map = xml::add_element(root, "structMap", before);
            xml::set_attribute(map, "TYPE", "PHYSICAL");
        }
        sequence = xml::add_element(map, "div");
        xml::set_attribute(sequence, "TYPE", "physSequence");
    }
    auto div = xml::add_element(sequence, "div");
    xml::set_attribute(div, "TYPE", "page");
    xml::set_attribute(div, "ID", id);
    page_index.emplace(id, page_list.size());
    page_ids.push_back(id);
    page_list.push_back({id, div, {}});
    if (values) values->append(id, div);
    return page_list.back();
}

void Mets::Impl::unpoint(std::string const& file_id) {
    if (auto it = pages_of_file.find(file_id); it != pages_of_file.end()) {
        for (auto at : it->second) {
            auto& pointers = page_list[at].pointers;
            for (auto const& p : pointers)
                if (p.file_id == file_id) xml::remove_element(p.node);
            std::erase_if(pointers, [&](auto const& p) { return p.file_id == file_id; });
        }
        pages_of_file.erase(it);
    }
    if (auto it = by_id.find(file_id); it != by_id.end())
        for (auto* e : it->second) e->file.page_id.clear();
}

void Mets::Impl::point(std::string const& file_id, std::string const& page_id) {
    unpoint(file_id);
    if (page_id.empty()) return;
    auto& page = page_or_new(page_id);
    auto node = xml::add_element(page.node, "fptr");
    xml::set_attribute(node, "FILEID", file_id);
    page.pointers.push_back({file_id, node});
    pages_of_file[file_id] = {page_index.at(page_id)};
    if (auto it = by_id.find(file_id); it != by_id.end())
        for (auto* e : it->second) e->file.page_id = page_id;
}

void Mets::Impl::set_locations(Entry& e, std::optional<std::string> path, std::optional<std::string> url) {
    auto set = [&](bool local, std::string const& href) {
        pugi::xml_node node;
        for (auto c : e.node.children()) {
            if (!xml::is_mets(c, "FLocat")) continue;
            std::string_view const type = c.attribute("LOCTYPE").value();
            bool const is_local = type == "OTHER" && std::string_view(c.attribute("OTHERLOCTYPE").value()) == "FILE";
            if (local ? is_local : type == "URL") {
                node = c;
                break;
            }
        }
        if (!node) {
            node = xml::add_element(e.node, "FLocat");
            xml::set_attribute(node, "LOCTYPE", local ? "OTHER" : "URL");
            if (local) xml::set_attribute(node, "OTHERLOCTYPE", "FILE");
        }
        xml::set_attribute(node, kXlinkNamespace, "href", href, "xlink");
    };
    place(e, false);
    if (url && !url->empty()) {
        set(false, *url);
        e.file.url = *url;
    }
    if (path && !path->empty()) {
        use_path(e.file.path, -1);
        e.file.path = *path;
        e.file.href = encode_href(*path);
        e.file.escapes = false;
        set(true, e.file.href);
        use_path(e.file.path, 1);
    }
    place(e, true);
}

// ---------------------------------------------------------------------------------------------- the public face

Mets::Mets(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Mets::Mets(Mets&&) noexcept = default;
Mets& Mets::operator=(Mets&&) noexcept = default;
Mets::~Mets() = default;

Result<Mets> Mets::load(fs::path const& mets_file) {
    auto impl = std::make_unique<Impl>();
    std::error_code error;
    impl->file = fs::absolute(mets_file, error).lexically_normal();
    impl->workspace = impl->file.parent_path();
    if (auto read = impl->read(); !read) return std::unexpected(read.error());
    return Mets(std::move(impl));
}

Result<void> Mets::reload() {
    auto fresh = Mets::load(impl_->file);
    if (!fresh) return std::unexpected(fresh.error());
    impl_ = std::move(fresh->impl_);
    return {};
}

fs::path const& Mets::file() const noexcept {
    return impl_->file;
}
fs::path const& Mets::workspace() const noexcept {
    return impl_->workspace;
}
std::vector<std::string> const& Mets::pages() const noexcept {
    return impl_->page_ids;
}
bool Mets::changed() const noexcept {
    return impl_->changed;
}

std::vector<Group> Mets::groups() const {
    std::vector<Group> list;
    for (auto const& g : impl_->groups) list.push_back({g.name, g.entries.size()});
    return list;
}

bool Mets::has_group(std::string_view name) const noexcept {
    return impl_->group(name) != nullptr;
}

bool Mets::names_path(std::string const& path) const noexcept {
    return impl_->path_uses.contains(path);
}

std::string Mets::groups_text() const {
    std::vector<std::string> texts;
    for (auto const& g : impl_->groups)
        texts.push_back(fmt::format("{} ({})", g.name, counted(g.entries.size(), "file")));
    return texts.empty() ? "none" : join(texts, ", ");
}

File const* Mets::find(std::string_view id, std::string_view group) const noexcept {
    auto const* e = impl_->entry(id, group);
    return e ? &e->file : nullptr;
}

std::vector<File const*> Mets::files_of(std::string_view page, std::string_view group) const {
    std::vector<File const*> files;
    auto const at = impl_->page_index.find(std::string(page));
    if (at == impl_->page_index.end()) return files;
    for (auto const& pointer : impl_->page_list[at->second].pointers)
        if (auto const* e = impl_->entry(pointer.file_id, group);
            e && std::find(files.begin(), files.end(), &e->file) == files.end())
            files.push_back(&e->file);
    return files;
}

Result<std::vector<File const*>> Mets::find_files(Query const& query) const {
    std::vector<File const*> found;
    auto compile = [](std::optional<std::string> const& value) -> Result<std::optional<Pattern>> {
        if (!value || !value->starts_with("//")) return std::optional<Pattern>{};
        auto pattern = Pattern::compile(std::string_view(*value).substr(2));
        if (!pattern) return std::unexpected(pattern.error());
        return std::optional<Pattern>(std::move(*pattern));
    };
    auto id = compile(query.id), group = compile(query.group), mimetype = compile(query.mimetype),
         url = compile(query.url), path = compile(query.path);
    for (auto const* each : {&id, &group, &mimetype, &url, &path})
        if (!*each) return std::unexpected(each->error());

    std::optional<std::unordered_set<std::string_view>> on_pages; // file ids that the selected pages point to
    if (query.page) {
        if (query.page->empty()) return found;
        auto pages = impl_->select(*query.page);
        if (!pages) return std::unexpected(pages.error());
        on_pages.emplace();
        for (auto page : *pages)
            for (auto const& pointer : impl_->page_list[page].pointers) on_pages->insert(pointer.file_id);
    }
    std::vector<char> in_group(impl_->groups.size());
    std::size_t in_groups = 0; // files
    for (std::size_t i = 0; i < in_group.size(); ++i) {
        in_group[i] = matches(query.group, *group, impl_->groups[i].name);
        if (in_group[i]) in_groups += impl_->groups[i].entries.size();
    }
    std::vector<Impl::Entry const*> candidates;
    auto consider = [&](Impl::Entry const* e) {
        auto const& f = e->file;
        if (in_group[e->group] && matches(query.id, *id, f.id) && (!on_pages || on_pages->contains(f.id)) &&
            matches(query.mimetype, *mimetype, f.mimetype) &&
            (matches(query.path, *path, f.path) || (!*path && *query.path == f.href)) &&
            matches(query.url, *url, f.url))
            candidates.push_back(e);
    };
    auto consider_id = [&](std::string const& wanted) {
        if (auto it = impl_->by_id.find(wanted); it != impl_->by_id.end())
            for (auto const* e : it->second) consider(e);
    };

    // The narrowest index first, then document order.
    if (query.id && !*id) {
        consider_id(*query.id);
    } else if (query.path && !*path && !query.path->empty()) {
        for (auto const* e : impl_->at_place(*query.path)) consider(e);
    } else if (query.url && !*url && !query.url->empty()) {
        for (auto const* e : impl_->at_place(*query.url)) consider(e);
    } else if (on_pages && on_pages->size() < in_groups) {
        for (auto const& wanted : *on_pages) consider_id(std::string(wanted));
    } else if (query.id && !(*id)->prefix().empty()) {
        auto const prefix = (*id)->prefix();
        auto const& ids = impl_->ids_in_order();
        for (auto it = ids.lower_bound(prefix); it != ids.end() && it->starts_with(prefix); ++it) consider_id(*it);
    } else {
        for (std::size_t i = 0; i < in_group.size(); ++i)
            if (in_group[i])
                for (auto const& e : impl_->groups[i].entries) consider(e.get());
    }
    std::ranges::sort(candidates, {}, [](Impl::Entry const* e) { return std::pair(e->group, e->sequence); });
    found.reserve(candidates.size());
    for (auto const* e : candidates) found.push_back(&e->file);
    return found;
}

bool Mets::is_quick(Query const& query) const noexcept {
    auto literal = [](std::optional<std::string> const& value) {
        return value && !value->empty() && !value->starts_with("//");
    };
    if (query.page) {
        constexpr std::size_t kFew = 1000; // bytes
        if (query.page->size() > kFew) return false;
        for (std::size_t at = 0; at < query.page->size();) {
            auto const comma = std::min(query.page->find(',', at), query.page->size());
            auto const token = std::string_view(*query.page).substr(at, comma - at);
            if (!impl_->page_index.contains(std::string(token)) && !(impl_->values && short_range(token))) return false;
            at = comma + 1;
        }
        return true;
    }
    return literal(query.id) || (impl_->by_place && (literal(query.path) || literal(query.url)));
}

std::string Mets::unique_identifier() const {
    std::map<std::string, std::string> by_type;
    auto visit = [&](auto&& self, pugi::xml_node node, int depth) -> void {
        if (depth > kMaxDepth) return;
        for (auto child : node.children()) {
            if (child.type() != pugi::node_element) continue;
            if (xml::is(child, kModsNamespace, "identifier"))
                by_type.try_emplace(child.attribute("type").value(), trim(child.text().get()));
            else
                self(self, child, depth + 1);
        }
    };
    for (auto section : impl_->root.children())
        if (!xml::is_mets(section, "fileSec") && !xml::is_mets(section, "structMap")) visit(visit, section, 0);
    for (auto const* type : {"purl", "urn", "doi", "url"})
        if (auto it = by_type.find(type); it != by_type.end() && !it->second.empty()) return it->second;
    return {};
}

std::vector<Agent> Mets::agents() const {
    std::vector<Agent> list;
    for (auto header : impl_->root.children()) {
        if (!xml::is_mets(header, "metsHdr")) continue;
        for (auto node : header.children()) {
            if (!xml::is_mets(node, "agent")) continue;
            Agent agent;
            agent.type = node.attribute("TYPE").value();
            agent.role = node.attribute("ROLE").value();
            if (auto a = node.attribute("OTHERTYPE")) agent.othertype = a.value();
            if (auto a = node.attribute("OTHERROLE")) agent.otherrole = a.value();
            for (auto child : node.children()) {
                if (xml::is_mets(child, "name")) agent.name = child.text().get();
                if (!xml::is_mets(child, "note")) continue;
                std::map<std::string, std::string> attributes;
                for (auto a : child.attributes()) {
                    std::string_view const name = a.name();
                    auto const prefix = prefix_of(name);
                    if (name == "xmlns" || prefix == "xmlns") continue;
                    auto const ns = prefix.empty() ? std::string_view{} : xml::namespace_of(child, prefix);
                    attributes[ns.empty() ? std::string(name) : fmt::format("{{{}}}{}", ns, xml::local_name(name))] =
                        a.value();
                }
                agent.notes.emplace_back(std::move(attributes), child.text().get());
            }
            list.push_back(std::move(agent));
        }
    }
    return list;
}

void Mets::add_agent(Agent const& agent) {
    auto header = xml::child(impl_->root, "metsHdr");
    if (!header) header = xml::add_element(impl_->root, "metsHdr", first_element(impl_->root));
    pugi::xml_node before, last; // the element after the last agent; from the end, where it is
    for (auto c = header.last_child(); c && !last; c = c.previous_sibling()) {
        if (c.type() != pugi::node_element) continue;
        if (xml::is_mets(c, "agent"))
            last = c;
        else
            before = c;
    }
    if (!last) before = first_element(header);
    auto node = xml::add_element(header, "agent", before);
    xml::set_attribute(node, "TYPE", agent.othertype ? "OTHER" : agent.type);
    if (agent.othertype) xml::set_attribute(node, "OTHERTYPE", *agent.othertype);
    xml::set_attribute(node, "ROLE", agent.otherrole ? "OTHER" : agent.role);
    if (agent.otherrole) xml::set_attribute(node, "OTHERROLE", *agent.otherrole);
    xml::add_element(node, "name").text().set(agent.name.c_str());
    for (auto const& [attributes, text] : agent.notes) {
        auto note = xml::add_element(node, "note");
        for (auto const& [name, value] : attributes) {
            // "{https://ocr-d.de}option"; what the METS API takes unqualified is OCR-D's too.
            auto const close = name.starts_with('{') ? name.find('}') : std::string::npos;
            auto const ns = close == std::string::npos ? std::string(kOcrdNamespace) : name.substr(1, close - 1);
            auto const local = close == std::string::npos ? name : name.substr(close + 1);
            xml::set_attribute(note, ns, local, value, ns == kOcrdNamespace ? "ocrd" : "ns1");
        }
        note.text().set(text.c_str());
    }
    impl_->changed = true;
}

Result<void> check_group_name(std::string_view name) {
    if (name.size() > kLongestGroupName) {
        auto cut = std::size_t{60};
        while (cut > 0 && (static_cast<unsigned char>(name[cut]) & 0xC0) == 0x80) --cut; // not inside a character
        return fail(ErrorKind::Invalid, "the group name {}... has {} bytes; at most {} are allowed",
                    name.substr(0, cut), name.size(), kLongestGroupName);
    }
    if (name.empty()) return fail(ErrorKind::Invalid, "the name of an output group is empty");
    if (!valid_id(name))
        return fail(ErrorKind::Invalid, "Invalid syntax for mets:fileGrp/@USE {} (not an xs:ID)", name);
    return {};
}

Result<void> check_output_groups(std::vector<std::string> const& groups) {
    if (groups.size() > kMostOutputGroups)
        return fail(ErrorKind::Invalid, "{} output groups are named; at most {} are allowed", groups.size(),
                    kMostOutputGroups);
    for (auto group = groups.begin(); group != groups.end(); ++group) {
        if (auto fits = check_group_name(*group); !fits) return fits;
        if (std::find(groups.begin(), group, *group) != group)
            return fail(ErrorKind::Invalid, "output group {} is named more than once", *group);
    }
    return {};
}

bool is_xml_text(std::string_view text) noexcept {
    for (std::size_t i = 0; i < text.size();) {
        auto const lead = static_cast<unsigned char>(text[i]);
        if (lead < 0x80) {
            if (lead < 0x20 && lead != '\t' && lead != '\n' && lead != '\r') return false;
            ++i;
            continue;
        }
        std::size_t const length = lead >= 0xF0 && lead < 0xF5   ? 4
                                   : lead >= 0xE0 && lead < 0xF0 ? 3
                                   : lead >= 0xC2 && lead < 0xE0 ? 2
                                                                 : 0;
        if (length == 0 || i + length > text.size()) return false;
        std::uint32_t code = lead & (0xFFu >> (length + 1));
        for (std::size_t k = 1; k < length; ++k) {
            auto const next = static_cast<unsigned char>(text[i + k]);
            if ((next & 0xC0) != 0x80) return false;
            code = code << 6 | (next & 0x3F);
        }
        constexpr std::array<std::uint32_t, 5> kSmallest{0, 0, 0x80, 0x800, 0x10000};
        if (code < kSmallest[length] || (code >= 0xD800 && code < 0xE000) || code == 0xFFFE || code == 0xFFFF ||
            code > 0x10FFFF)
            return false;
        i += length;
    }
    return true;
}

Result<void> check_agent(Agent const& agent) {
    auto refuse = [](std::string_view what) {
        return fail(ErrorKind::Invalid, "{} of the agent holds characters that XML cannot hold", what);
    };
    for (auto const& [what, text] : {std::pair{"name", &agent.name}, {"type", &agent.type}, {"role", &agent.role}})
        if (!is_xml_text(*text)) return refuse(what);
    if (agent.othertype && !is_xml_text(*agent.othertype)) return refuse("othertype");
    if (agent.otherrole && !is_xml_text(*agent.otherrole)) return refuse("otherrole");
    for (auto const& [attributes, text] : agent.notes) {
        if (!is_xml_text(text)) return refuse("a note");
        for (auto const& [name, value] : attributes) {
            auto const close = name.starts_with('{') ? name.find('}') : std::string::npos;
            auto const local = std::string_view(name).substr(close == std::string::npos ? 0 : close + 1);
            if (!valid_id(local) || !is_xml_text(name))
                return fail(ErrorKind::Invalid, "a note's attribute cannot be called '{}'", name);
            if (!is_xml_text(value)) return refuse("a note's attribute");
        }
    }
    return {};
}

Result<void> check_file(Mets const& mets, FileRef const& file) {
    for (auto const& [what, text] : {std::pair{"page", &file.page_id},
                                     {"MIME type", &file.mimetype},
                                     {"path", &file.path},
                                     {"ID", &file.id},
                                     {"group", &file.group}})
        if (!is_xml_text(*text))
            return fail(ErrorKind::Invalid, "the {} of file {} holds characters that XML cannot hold", what,
                        is_xml_text(file.id) ? file.id : "");
    if (!valid_id(file.id))
        return fail(ErrorKind::Invalid, "Invalid syntax for mets:file/@ID {} (not an xs:ID)", file.id);
    if (!valid_id(file.group))
        return fail(ErrorKind::Invalid, "Invalid syntax for mets:fileGrp/@USE {} (not an xs:ID)", file.group);
    if (!file.path.empty() && !mets.impl_->relative(file.path))
        return fail(ErrorKind::Invalid, "file {} lies outside the workspace: {}", file.id, file.path);
    return {};
}

Result<void> Mets::add_file(FileRef const& file, bool force, std::string const& url) {
    if (auto fits = check_file(*this, file); !fits) return fits;
    if (!is_xml_text(url))
        return fail(ErrorKind::Invalid, "the URL of file {} holds characters that XML cannot hold", file.id);
    auto const path = file.path.empty() ? std::nullopt : impl_->relative(file.path);
    if (auto* known = impl_->entry(file.id, file.group)) {
        if (known->file.page_id != file.page_id || known->file.mimetype != file.mimetype)
            return fail(ErrorKind::Conflict,
                        "A file with ID=={} already exists in {} with page {} and MIME type {}: it is another file",
                        file.id, file.group, known->file.page_id.empty() ? "none" : known->file.page_id,
                        known->file.mimetype);
        if (!force) return fail(ErrorKind::Conflict, "A file with ID=={} already exists in {}", file.id, file.group);
        impl_->set_locations(*known, path, url);
        impl_->changed = true;
        return {};
    }
    auto& group = impl_->group_or_new(file.group);
    auto made = std::make_unique<Impl::Entry>();
    made->group = impl_->group_index.at(file.group);
    made->sequence = impl_->next_sequence++;
    made->file.group = file.group;
    made->file.id = file.id;
    made->file.mimetype = file.mimetype;
    made->node = xml::add_element(group.node, "file");
    xml::set_attribute(made->node, "ID", file.id);
    xml::set_attribute(made->node, "MIMETYPE", file.mimetype);
    impl_->set_locations(*made, path, url);
    impl_->by_id[file.id].push_back(made.get());
    if (impl_->sorted_ids) impl_->sorted_ids->insert(file.id);
    group.entries.push_back(std::move(made));
    impl_->point(file.id, file.page_id);
    impl_->changed = true;
    return {};
}

Result<void> Mets::set_local(std::string_view id, std::string_view group, std::string const& path) {
    auto* known = impl_->entry(id, group);
    if (!known) return fail(ErrorKind::NotFound, "there is no file {} in group {}", id, group);
    auto inside = impl_->relative(path);
    if (!inside) return fail(ErrorKind::Invalid, "file {} lies outside the workspace: {}", id, path);
    impl_->set_locations(*known, inside, std::nullopt);
    impl_->changed = true;
    return {};
}

Result<void> Mets::remove_file(std::string_view id, std::string_view group) {
    auto* known = impl_->entry(id, group);
    if (!known)
        return fail(ErrorKind::NotFound, "there is no file {}{}{}", id, group.empty() ? "" : " in group ", group);
    auto const file_id = known->file.id;
    auto& same_id = impl_->by_id[file_id];
    std::erase(same_id, known);
    if (same_id.empty()) {
        impl_->by_id.erase(file_id);
        if (impl_->sorted_ids) impl_->sorted_ids->erase(file_id);
        impl_->unpoint(file_id);
    }
    impl_->place(*known, false);
    impl_->use_path(known->file.path, -1);
    xml::remove_element(known->node);
    auto& entries = impl_->groups[impl_->group_index.at(known->file.group)].entries;
    std::erase_if(entries, [&](auto const& e) { return e.get() == known; });
    impl_->changed = true;
    return {};
}

} // namespace ocrctl::mets
