// A METS file in memory, indexed, and the one way back to disk. Rules: OCR-D protocol 5.5 to 5.7.
#pragma once

#include "lib/mets/page_namespaces.hpp"
#include "lib/model/task.hpp"

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ocrctl::mets {

/// A mets:file. Belongs to its Mets: a pointer to one is good until that file is removed or the Mets reloaded.
struct File {
    std::string group, id, mimetype;
    std::string page_id;  // the first page that points to it; "": of the whole document
    std::string path;     // METS-relative, decoded; "" without a local location
    std::string url;      // remote location as written; "" without one
    bool escapes = false; // its local location lies outside the workspace: path is "" and the file cannot be used
    std::string href;     // the local location as written
};

struct Group {
    std::string name;
    std::size_t files = 0;
};

/// Criteria that must all hold; a value starting with // is a regular expression that matches in full (OCR-D protocol
/// 5.6; OCR-D has none for `path`). `page` is a selector (5.7). An empty optional matches everything; a page of ""
/// matches nothing, as in OCR-D.
struct Query {
    std::optional<std::string> group, id, page, mimetype, path, url;
};

/// mets:agent. Notes: attributes (a name in braces is qualified: "{https://ocr-d.de}option") and text.
struct Agent {
    std::string name, type, role;
    std::optional<std::string> othertype, otherrole;
    std::vector<std::pair<std::map<std::string, std::string>, std::string>> notes;
    friend bool operator==(Agent const&, Agent const&) = default;
};

/// A file that is to be added: what add_file takes, kept together.
struct Addition {
    FileRef file;
    std::string url;
    bool force = false;
};

/// One METS document, read whole, changed in memory, saved whole.
///
/// Movable, one owner, not thread-safe; nothing here suspends, load and save block on the disk. Everything that this
/// program does not know (foreign sections, comments, processing instructions, prefixes, attribute order, white space)
/// comes back from save() as it was read. Page order never changes: new pages go last.
class Mets {
public:
    /// Errors: NotFound; Denied; Invalid: not XML (with the line), not a METS, or one that only points to other METS
    /// (a newspaper year, a multi-volume work). Symlinks are followed; the workspace is the folder of `mets_file` as
    /// given.
    static Result<Mets> load(std::filesystem::path const& mets_file);

    Mets(Mets&&) noexcept;
    Mets& operator=(Mets&&) noexcept;
    ~Mets();

    std::filesystem::path const& file() const noexcept;      // as given, absolute
    std::filesystem::path const& workspace() const noexcept; // its folder: what local paths are relative to

    /// Ids of the physical pages, in page order.
    std::vector<std::string> const& pages() const noexcept;
    /// In document order; a group without files counts 0.
    std::vector<Group> groups() const;
    bool has_group(std::string_view name) const noexcept;
    /// "OCR-D-IMG (20 files), OCR-D-GT (19 files)": for messages about a wrong group.
    std::string groups_text() const;

    /// The file of this id, in this group; without a group the last one added. nullptr: none.
    File const* find(std::string_view id, std::string_view group = {}) const noexcept;
    /// In document order. Answered from indexes, in time that grows with the answer: the first search of a kind makes
    /// them. What has to be compared with everything is a regular expression that does not begin with plain characters,
    /// and a MIME type alone. Invalid: a bad regular expression, a page selector that matches nothing.
    Result<std::vector<File const*>> find_files(Query const& query) const;
    /// find_files of it takes some microseconds: an id, a few pages by their ids, a location once another was asked
    /// for.
    bool is_quick(Query const& query) const noexcept;
    /// True if an entry has this METS-relative path.
    bool names_path(std::string const& path) const noexcept;
    /// Files of one page in one group, in the order of the page's pointers.
    std::vector<File const*> files_of(std::string_view page, std::string_view group) const;

    /// Pages of a selector (OCR-D protocol 5.7), in page order, each once. "" selects all pages. Invalid: a token that
    /// matches nothing or cannot be understood; the message names the token.
    Result<std::vector<std::string>> select_pages(std::string_view selector) const;

    /// The first mods:identifier of type purl, urn, doi, url in this priority; "" if there is none.
    std::string unique_identifier() const;
    std::vector<Agent> agents() const;

    /// Adds a file; `url` in addition to, or instead of, file.path. Its page is made if there is none such; a file
    /// without page_id has no page. Invalid: bad id, bad group name, a path that leaves the workspace. Conflict: the id
    /// is taken in that group ("already exists"); `force` then replaces its locations if page and MIME type are the
    /// same.
    Result<void> add_file(FileRef const& file, bool force = false, std::string const& url = {});

    /// Sets the local location of a file that has only a URL; the URL stays beside it. NotFound.
    Result<void> set_local(std::string_view id, std::string_view group, std::string const& path);

    /// Takes the entry and the pointers to it out; the page stays, the file on disk too. NotFound.
    Result<void> remove_file(std::string_view id, std::string_view group = {});

    /// Appends it after the last agent; makes metsHdr if there is none. What comes from outside has passed check_agent.
    void add_agent(Agent const& agent);

    /// True after a change that is not saved yet.
    bool changed() const noexcept;

    /// Somebody else has written the file since it was read or saved here (identity, size or time differ), or removed
    /// it.
    bool changed_on_disk() const;

    /// Writes beside it, flushes, renames: the file is the old one or the new one, of the same mode and owner; a
    /// symlink stays and its target is replaced. Nothing changed: nothing written. Conflict: changed_on_disk(); nothing
    /// is written: reload(), apply again, save again. Denied, Unavailable (disk full): the old file is untouched.
    Result<void> save();

    /// Reads it again and forgets what was not saved. On an error everything stays as it was.
    Result<void> reload();

private:
    friend Result<void> check_file(Mets const& mets, FileRef const& file);
    struct Impl;
    explicit Mets(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// "a..c" by OCR-D's rule (protocol 2.4): the last run of digits of both ends counts up. Invalid: ends that do not
/// belong together. Descending gives none. More than 1,000,000 is refused.
Result<std::vector<std::string>> expand_range(std::string_view start, std::string_view end);

struct PageProblem {
    std::string page_id, reason;
};

/// What a Job reads.
struct Inputs {
    std::vector<PageInput> pages;      // runnable: one file per input group, output ids set
    std::vector<PageProblem> left_out; // has no file in an input group: not run, not a failure
    std::vector<PageProblem>
        failed; // cannot be run: remote only, missing on disk, several candidates, outside the workspace
};

enum class CheckDisk { No, Yes };

/// The files of `pages` in `input_groups`, one per page and group: PAGE-XML if there is one, else the only image
/// (OCR-D's zip_input_files). With CheckDisk::Yes sizes are filled and a file that is not there fails its page.
/// NotFound: a group that the METS does not have; the message lists those it has, with counts.
Result<Inputs> inputs_for(Mets const& mets, std::vector<std::string> const& pages,
                          std::vector<std::string> const& input_groups, std::vector<std::string> const& output_groups,
                          CheckDisk check = CheckDisk::Yes);

/// Those of `pages` that already have a file in one of the groups, in page order.
std::vector<std::string> existing_outputs(Mets const& mets, std::vector<std::string> const& pages,
                                          std::vector<std::string> const& output_groups);

/// The outcome of a run that goes into a METS.
struct RunFiles {
    std::vector<FileRef> files; // at their final METS-relative paths
    bool overwrite = false;     // other files of these pages in the output groups are taken out
    Provenance provenance;      // empty name: no agent
    std::vector<std::string> input_groups, output_groups;
};

/// What add_file would say about id, group name and path; changes nothing. Invalid too: text that XML cannot hold
/// (control characters, broken UTF-8), which would make the METS unreadable.
Result<void> check_file(Mets const& mets, FileRef const& file);
/// Invalid: text that XML cannot hold, a note's attribute whose name is none.
Result<void> check_agent(Agent const& agent);
/// Well-formed UTF-8 of characters that XML 1.0 allows.
bool is_xml_text(std::string_view text) noexcept;

/// The name of a group that is to be written: it becomes a folder of the workspace. Invalid: not an xs:ID (so no '/',
/// no NUL, no '.' at its start), longer than kLongestGroupName bytes; the message names it.
Result<void> check_group_name(std::string_view name);
inline constexpr std::size_t kLongestGroupName = 200;
/// The output groups of a step: as check_group_name, each once, at most kMostOutputGroups.
Result<void> check_output_groups(std::vector<std::string> const& groups);
inline constexpr std::size_t kMostOutputGroups = 64;

/// What apply would say; changes nothing.
Result<void> check_run(Mets const& mets, RunFiles const& run);

/// Adds the files of a run and one agent per step, version, parameters and groups: an agent that is already there word
/// for word is not repeated, so Jobs of single pages leave one. Applying the same run again changes nothing. All files
/// are checked before the first is added: on an error the METS is as before. Returns the METS-relative paths of files
/// that `overwrite` took out and no entry names any more: the caller removes them after save(). Errors as add_file.
Result<std::vector<std::string>> apply(Mets& mets, RunFiles const& run);

/// The href of a local path: what a URI reference cannot hold is percent-encoded, letters of all scripts stay.
std::string encode_href(std::string_view path);
/// The other way round; what is not a valid escape stays as it is.
std::string decode_href(std::string_view href);

} // namespace ocrctl::mets
