// What a Job reads from a METS, and how its outcome goes back into it.
#include "lib/mets/mets.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <sys/stat.h>
#include <utf8proc.h>

namespace ocrctl::mets {

namespace {

std::string normalised(std::string const& text, utf8proc_option_t form) {
    utf8proc_uint8_t* out = nullptr;
    auto const options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | form);
    auto const size = utf8proc_map(reinterpret_cast<utf8proc_uint8_t const*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()), &out, options);
    std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> const owned(out, &std::free);
    return size < 0 ? text : std::string(reinterpret_cast<char const*>(out), static_cast<std::size_t>(size));
}

/// Fills the size, and the spelling that lies on disk: a METS says ü in one code point where a Mac wrote the file with
/// two, or the other way round. False: there is no such file.
bool find_on_disk(std::filesystem::path const& workspace, FileRef& file) {
    auto there = [&](std::string const& path) {
        struct stat status {};
        if (::stat((workspace / path).c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return false;
        file.path = path;
        file.size = static_cast<std::uint64_t>(status.st_size);
        return true;
    };
    if (there(file.path)) return true;
    auto const as_written = file.path;
    bool const ascii = std::all_of(as_written.begin(), as_written.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
    return !ascii && (there(normalised(as_written, UTF8PROC_COMPOSE)) || there(normalised(as_written, UTF8PROC_DECOMPOSE)));
}

/// OCR-D's choice (zip_input_files): the one PAGE, else the one image. Two that compete are the page's failure.
Result<File const*> the_one_file(std::vector<File const*> const& files, std::string const& page, std::string const& group) {
    auto several = [&](std::string_view what, File const& a, File const& b) {
        return fail(ErrorKind::Invalid, "page {} has several {} in group {}: {} and {}", page, what, group, a.id, b.id);
    };
    std::vector<File const*> pages, images, others;
    for (auto const* f : files) (is_page(f->mimetype) ? pages : is_image(f->mimetype) ? images : others).push_back(f);
    if (pages.size() > 1) return several("PAGE files", *pages[0], *pages[1]);
    if (pages.size() == 1) return pages[0];
    if (images.size() > 1) return several("images", *images[0], *images[1]);
    if (images.size() == 1) return images[0];
    if (others.size() > 1) return several("files", *others[0], *others[1]);
    return others[0];
}

Agent agent_of(RunFiles const& run) {
    auto option = [](std::string const& name) {
        return std::map<std::string, std::string>{{fmt::format("{{{}}}option", kOcrdNamespace), name}};
    };
    Agent agent{run.provenance.name, "OTHER", "OTHER", "SOFTWARE", run.provenance.step, {}};
    agent.notes.emplace_back(option("input-file-grp"), join(run.input_groups, ","));
    agent.notes.emplace_back(option("output-file-grp"), join(run.output_groups, ","));
    agent.notes.emplace_back(option("parameter"), dump(run.provenance.parameters));
    return agent;
}

bool contains(std::vector<std::string> const& list, std::string const& value) {
    return std::find(list.begin(), list.end(), value) != list.end();
}

} // namespace

Result<Inputs> inputs_for(Mets const& mets, std::vector<std::string> const& pages, std::vector<std::string> const& input_groups,
                          std::vector<std::string> const& output_groups, CheckDisk check) {
    if (input_groups.empty()) return fail(ErrorKind::Invalid, "no input group is given; this METS has: {}", mets.groups_text());
    for (auto const& group : input_groups)
        if (!mets.has_group(group))
            return fail(ErrorKind::NotFound, "there is no input group {} in {}; it has: {}", group, mets.file().native(), mets.groups_text());

    Inputs inputs;
    for (auto const& page : pages) {
        PageInput input{page, {}, {}};
        std::string missing, failure;
        for (auto const& group : input_groups) {
            auto const files = mets.files_of(page, group);
            if (files.empty()) {
                missing = fmt::format("page {} has no file in group {}", page, group);
                break;
            }
            auto one = the_one_file(files, page, group);
            if (!one) {
                failure = one.error().message();
                break;
            }
            File const& f = **one;
            FileRef ref{f.group, f.id, page, f.mimetype, f.path, 0, ""};
            if (f.escapes) failure = fmt::format("file {} of page {} lies outside the workspace: {}", f.id, page, f.href);
            else if (f.path.empty() && f.url.empty()) failure = fmt::format("file {} of page {} has no location", f.id, page);
            else if (f.path.empty()) failure = fmt::format("file {} of page {} is remote and not in the workspace: {}", f.id, page, f.url);
            else if (check == CheckDisk::Yes && !find_on_disk(mets.workspace(), ref))
                failure = fmt::format("file {} of page {} is not there: {}{}", f.id, page, (mets.workspace() / f.path).native(),
                                      f.url.empty() ? "" : " (its source is " + f.url + ")");
            if (!failure.empty()) break;
            input.files.push_back(std::move(ref));
        }
        if (!missing.empty()) {
            inputs.left_out.push_back({page, std::move(missing)});
            continue;
        }
        if (!failure.empty()) {
            inputs.failed.push_back({page, std::move(failure)});
            continue;
        }
        auto const& first = input.files.front();
        for (auto const& group : output_groups) input.output_ids.push_back(first.group == group ? first.id : output_file_id(first, group));
        inputs.pages.push_back(std::move(input));
    }
    return inputs;
}

std::vector<std::string> existing_outputs(Mets const& mets, std::vector<std::string> const& pages,
                                          std::vector<std::string> const& output_groups) {
    std::vector<std::string> done;
    for (auto const& page : pages)
        if (std::any_of(output_groups.begin(), output_groups.end(), [&](auto const& g) { return !mets.files_of(page, g).empty(); }))
            done.push_back(page);
    return done;
}

namespace {

struct Removal {
    std::string id, group, path;
};
/// What a run changes, decided before anything is changed: an error must leave the METS as it was.
struct Changes {
    std::vector<Removal> removals;
    std::vector<FileRef const*> additions;
};

Result<Changes> changes_of(Mets const& mets, RunFiles const& run) {
    Changes changes;
    auto& [removals, additions] = changes;
    std::set<std::pair<std::string, std::string>> made, removed; // (group, id)
    std::set<std::string> pages;
    for (auto const& file : run.files) {
        if (!made.emplace(file.group, file.id).second)
            return fail(ErrorKind::Invalid, "the result has two files with the ID {} in group {}", file.id, file.group);
        if (!file.page_id.empty()) pages.insert(file.page_id);
    }
    auto same = [](File const& known, FileRef const& file) {
        return known.page_id == file.page_id && known.mimetype == file.mimetype && known.path == file.path;
    };
    if (run.overwrite) {
        for (auto const& page : pages)
            for (auto const& group : run.output_groups) {
                if (contains(run.input_groups, group)) continue; // what a run reads is not its earlier output
                for (auto const* known : mets.files_of(page, group)) {
                    auto const again = std::find_if(run.files.begin(), run.files.end(), [&](auto const& f) { return f.id == known->id && f.group == group; });
                    if (again != run.files.end() && again->mimetype == known->mimetype) continue; // its location is replaced
                    removals.push_back({known->id, group, known->path});
                    removed.emplace(group, known->id);
                }
            }
    }
    for (auto const& file : run.files) {
        auto const* known = mets.find(file.id, file.group);
        if (!known || removed.contains({file.group, file.id})) {
            additions.push_back(&file);
            continue;
        }
        if (same(*known, file)) continue;
        if (!run.overwrite || known->page_id != file.page_id || known->mimetype != file.mimetype)
            return fail(ErrorKind::Conflict, "A file with ID=={} already exists in {} (page {}, {}, {})", file.id, file.group,
                        known->page_id.empty() ? "none" : known->page_id, known->mimetype, known->path.empty() ? known->url : known->path);
        if (!contains(run.input_groups, file.group)) removals.push_back({"", "", known->path});
        additions.push_back(&file);
    }
    for (auto const* file : additions)
        if (auto fits = check_file(mets, *file); !fits) return std::unexpected(fits.error());
    return changes;
}

} // namespace

Result<void> check_run(Mets const& mets, RunFiles const& run) {
    if (auto changes = changes_of(mets, run); !changes) return std::unexpected(changes.error());
    return {};
}

Result<std::vector<std::string>> apply(Mets& mets, RunFiles const& run) {
    auto changes = changes_of(mets, run);
    if (!changes) return std::unexpected(changes.error());
    std::vector<std::string> dropped;
    for (auto const& removal : changes->removals) {
        if (!removal.id.empty())
            if (auto gone = mets.remove_file(removal.id, removal.group); !gone) return std::unexpected(gone.error());
        if (!removal.path.empty()) dropped.push_back(removal.path);
    }
    for (auto const* file : changes->additions)
        if (auto added = mets.add_file(*file, true); !added) return std::unexpected(added.error());
    std::erase_if(dropped, [&](auto const& path) { return mets.names_path(path); });

    if (!run.provenance.name.empty()) {
        auto const agent = agent_of(run);
        auto const known = mets.agents();
        if (std::find(known.begin(), known.end(), agent) == known.end()) mets.add_agent(agent);
    }
    return dropped;
}

} // namespace ocrctl::mets
