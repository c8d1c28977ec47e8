#include "processing_server/workspaces.hpp"

#include "lib/base/files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <set>
#include <sys/stat.h>

namespace ocrctl::server {

namespace {

constexpr std::chrono::milliseconds kLookAgain{500}; // how long a METS in memory may be used without a look at the file
constexpr int kSaveTries = 5;

bool below(std::filesystem::path const& path, std::filesystem::path const& root) {
    auto part = path.begin();
    for (auto const& wanted : root) {
        if (wanted.empty()) continue; // a trailing slash
        if (part == path.end() || *part != wanted) return false;
        ++part;
    }
    return true;
}

bool stays_inside(std::filesystem::path const& path) {
    if (path.empty() || path.is_absolute()) return false;
    for (auto const& part : path)
        if (part == "..") return false;
    return true;
}

bool has_size(std::filesystem::path const& path, std::uint64_t size) {
    struct stat st{};
    return ::stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode) &&
           (size == 0 || static_cast<std::uint64_t>(st.st_size) == size);
}

} // namespace

Workspace::Workspace(asio::any_io_executor io, asio::thread_pool& pool, std::filesystem::path folder,
                     std::string mets_basename)
    : io_(std::move(io)), pool_(pool), folder_(std::move(folder)), basename_(std::move(mets_basename)),
      last_used_(std::chrono::steady_clock::now()) {}

void Workspace::enqueue(Piece piece) {
    last_used_ = std::chrono::steady_clock::now();
    waiting_.push_back(std::move(piece));
    if (!busy_) hand_over();
}

void Workspace::hand_over() {
    busy_ = true;
    auto pieces = std::make_shared<std::vector<Piece>>(std::move(waiting_));
    waiting_.clear();
    asio::post(pool_, [self = shared_from_this(), pieces, guard = asio::make_work_guard(io_)]() mutable {
        self->run(*pieces);
        // Handed over entirely: whoever closes idle Workspaces counts those who hold one.
        auto io = self->io_;
        asio::post(io, [self = std::move(self), pieces = std::move(pieces)] {
            self->busy_ = false;
            if (!self->waiting_.empty()) self->hand_over();
            for (auto& piece : *pieces) piece.done();
        });
    });
}

bool Workspace::at_hand() const noexcept {
    return !busy_ && waiting_.empty() && mets_ && !forget_ &&
           std::chrono::steady_clock::now() - looked_at_ < kLookAgain;
}

void Workspace::run(std::vector<Piece>& pieces) {
    Error problem;
    auto const before = generation_.load();
    if (forget_.exchange(false)) mets_.reset();
    if (mets_ && !mets_->changed() && mets_->changed_on_disk()) {
        ++generation_;
        if (auto again = mets_->reload(); !again) mets_.reset();
    }
    if (!mets_) {
        ++generation_;
        auto loaded = mets::Mets::load(folder_ / basename_);
        if (loaded)
            mets_.emplace(std::move(*loaded));
        else
            problem = loaded.error();
    }
    looked_at_ = std::chrono::steady_clock::now();
    made_.clear();
    if (mets_ && generation_ != before) read_anew(*mets_);
    for (auto& piece : pieces) piece.work(mets_ ? &*mets_ : nullptr, problem);
    look();
}

void Workspace::read_anew(mets::Mets& mets) {
    restore(mets);
    auto const restored = mets.changed();
    replay(mets);
    // Nobody else may come to save what was put back. What fails here is seen, and tried again, with the next change.
    if (restored) (void)save(mets);
}

Result<std::uint64_t> Workspace::apply(mets::Mets& mets, mets::RunFiles const& run) {
    auto obsolete = mets::apply(mets, run);
    if (!obsolete) return std::unexpected(obsolete.error());
    auto const ticket = next_ticket_++;
    changes_.push_back(Change{ticket, run, std::move(*obsolete)});
    return ticket;
}

bool Workspace::folder_known(std::string const& path) const {
    auto const slash = path.rfind('/');
    return slash == std::string::npos || made_.contains(path.substr(0, slash));
}

Result<void> Workspace::add(mets::Mets& mets, mets::Addition addition) {
    if (auto fits = mets::check_file(mets, addition.file); !fits) return fits;
    auto const path = std::filesystem::path(addition.file.path).lexically_normal();
    if (path.is_relative() && path.has_parent_path() && !made_.contains(path.parent_path().native())) {
        if (auto made = make_folder(folder_ / path.parent_path()); !made) return made;
        made_.insert(path.parent_path().native());
    }
    if (auto added = mets.add_file(addition.file, addition.force, addition.url); !added) return added;
    changes_.push_back(Change{0, std::move(addition), {}});
    return {};
}

Result<void> Workspace::add(mets::Mets& mets, mets::Agent const& agent) {
    if (auto fits = mets::check_agent(agent); !fits) return fits;
    mets.add_agent(agent);
    changes_.push_back(Change{0, agent, {}});
    return {};
}

void Workspace::replay(mets::Mets& mets) {
    std::erase_if(changes_, [&](Change& change) {
        if (auto const* agent = std::get_if<mets::Agent>(&change.what)) {
            mets.add_agent(*agent);
            return false;
        }
        if (auto const* addition = std::get_if<mets::Addition>(&change.what)) {
            auto const& file = addition->file;
            auto const* known = mets.find(file.id, file.group);
            if (known != nullptr && known->page_id == file.page_id && known->mimetype == file.mimetype &&
                known->path == file.path && known->url == addition->url)
                return false; // they added it too
            auto added = mets.add_file(file, addition->force, addition->url);
            if (!added)
                lost_.push_back(fmt::format("file {} of group {}: {}", file.id, file.group, added.error().message()));
            return !added;
        }
        auto applied = mets::apply(mets, std::get<mets::RunFiles>(change.what));
        if (applied) {
            change.obsolete.insert(change.obsolete.end(), applied->begin(), applied->end());
            return false;
        }
        settled_[change.ticket] =
            Settled{applied.error().during("the METS was changed by somebody else meanwhile"), {}};
        return true;
    });
}

Result<void> Workspace::save(mets::Mets& mets) {
    for (int tries = 0;; ++tries) {
        auto saved = mets.save();
        if (saved) break;
        if (saved.error().kind() != ErrorKind::Conflict || tries == kSaveTries) return saved;
        ++generation_;
        if (auto again = mets.reload(); !again)
            return fail(again.error().during("the METS was changed by somebody else and cannot be read"));
        restore(mets);
        replay(mets);
    }
    mets::RunFiles added;
    for (auto& change : changes_) {
        if (auto* run = std::get_if<mets::RunFiles>(&change.what)) {
            settled_[change.ticket] = Settled{std::nullopt, std::move(change.obsolete)};
            remember(std::move(*run));
        } else if (auto* addition = std::get_if<mets::Addition>(&change.what)) {
            if (addition->url.empty() && !addition->file.path.empty()) added.files.push_back(std::move(addition->file));
        }
    }
    changes_.clear();
    remember(std::move(added));
    return {};
}

Result<void> Workspace::reload(mets::Mets& mets) {
    if (auto again = mets.reload(); !again) return again;
    ++generation_;
    read_anew(mets);
    return {};
}

std::optional<Workspace::Settled> Workspace::settled(std::uint64_t ticket) {
    auto found = settled_.extract(ticket);
    if (found.empty()) return std::nullopt;
    return std::move(found.mapped());
}

void Workspace::withdraw(std::uint64_t ticket) {
    std::erase_if(changes_, [&](auto const& change) { return change.ticket == ticket; });
    settled_.erase(ticket);
}

void Workspace::remember(mets::RunFiles run) {
    if (run.files.empty()) return;
    for (auto& file : run.files) file.digest = {};
    run.overwrite = false; // putting back never takes anything out
    remembered_.push_back(std::move(run));
}

void Workspace::restore(mets::Mets& mets) const {
    if (remembered_.empty()) return;
    std::unordered_set<std::string> const pages(mets.pages().begin(), mets.pages().end());
    for (auto const& run : remembered_) {
        auto lost = [&](FileRef const& file) {
            return mets.find(file.id, file.group) == nullptr &&
                   (file.page_id.empty() || pages.contains(file.page_id)) && has_size(folder_ / file.path, file.size);
        };
        if (std::ranges::none_of(run.files, lost)) continue;
        auto again = run;
        std::erase_if(again.files, [&](auto const& file) { return !lost(file); });
        (void)mets::apply(mets, again); // what the METS refuses now stays out
    }
}

std::shared_ptr<Workspace> Workspaces::open(std::string const& folder, std::string const& mets_basename) {
    auto& slot = open_[folder + '\n' + mets_basename];
    if (!slot) slot = std::make_shared<Workspace>(io_, pool_, folder, mets_basename);
    return slot;
}

void Workspaces::close_idle(std::chrono::seconds unused) {
    auto limit = std::chrono::steady_clock::now() - unused;
    std::erase_if(open_, [&](auto const& entry) {
        return entry.second.use_count() == 1 && entry.second->idle() && !entry.second->unsaved() &&
               entry.second->last_used() < limit;
    });
}

std::vector<std::shared_ptr<Workspace>> Workspaces::unsaved() const {
    std::vector<std::shared_ptr<Workspace>> found;
    for (auto const& [key, workspace] : open_)
        if (workspace->unsaved()) found.push_back(workspace);
    return found;
}

bool below_roots(std::vector<std::filesystem::path> const& roots, std::filesystem::path const& path) {
    return roots.empty() || std::ranges::any_of(roots, [&](auto const& root) {
               if (below(path, root.lexically_normal())) return true;
               auto real = canonical_path(root);
               return real && below(path, *real);
           });
}

Result<void> move_into_place(std::filesystem::path const& workspace, std::string const& staging,
                             std::vector<FileRef> const& files) {
    if (files.empty()) return {};
    if (!stays_inside(staging))
        return fail(ErrorKind::Invalid, "the staging folder {} lies outside the workspace", staging);
    std::set<std::filesystem::path> folders;
    std::vector<std::pair<std::filesystem::path, std::filesystem::path>> moves;
    for (auto const& file : files) { // all of them are there, or none is moved
        if (!stays_inside(file.path))
            return fail(ErrorKind::Invalid, "the output file {} lies outside the workspace", file.path);
        auto from = workspace / staging / file.path;
        auto to = workspace / file.path;
        if (has_size(from, file.size))
            moves.emplace_back(std::move(from), std::move(to));
        else if (!has_size(to, file.size)) // else moved before a crash
            return fail(ErrorKind::NotFound, "the output file {} is not there at its stated size", from.native());
    }
    for (auto const& [from, to] : moves) {
        if (folders.insert(to.parent_path()).second)
            if (auto made = make_folder(to.parent_path()); !made) return made;
        if (std::rename(from.c_str(), to.c_str()) != 0)
            return fail(errno_error(errno, "move " + from.native() + " into place"));
    }
    for (auto const& folder : folders)
        if (auto flushed = flush_folder(folder); !flushed) return flushed;
    return {};
}

} // namespace ocrctl::server
