#include "processing_server/workspaces.hpp"

#include "lib/base/files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <set>
#include <sys/stat.h>

namespace ocrctl::server {

namespace {

bool stays_inside(std::filesystem::path const& path) {
    if (path.empty() || path.is_absolute()) return false;
    for (auto const& part : path)
        if (part == "..") return false;
    return true;
}

bool has_size(std::filesystem::path const& path, std::uint64_t size) {
    struct stat st {};
    return ::stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode) && (size == 0 || static_cast<std::uint64_t>(st.st_size) == size);
}

} // namespace

Workspace::Workspace(asio::any_io_executor io, asio::thread_pool& pool, std::filesystem::path folder, std::string mets_basename)
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
    asio::post(pool_, [self = shared_from_this(), pieces, guard = asio::make_work_guard(io_)] {
        self->run(*pieces);
        asio::post(self->io_, [self, pieces] {
            self->busy_ = false;
            if (!self->waiting_.empty()) self->hand_over();
            for (auto& piece : *pieces) piece.done();
        });
    });
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
        if (loaded) mets_.emplace(std::move(*loaded));
        else problem = loaded.error();
    }
    if (mets_ && generation_ != before && !remembered_.empty()) {
        restore(*mets_);
        // Nobody else may come to save it. What fails here is seen, and tried again, with the next result.
        if (mets_->changed()) (void)mets_->save();
    }
    for (auto& piece : pieces) piece.work(mets_ ? &*mets_ : nullptr, problem);
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
            return mets.find(file.id, file.group) == nullptr && (file.page_id.empty() || pages.contains(file.page_id)) &&
                   has_size(folder_ / file.path, file.size);
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
        return entry.second.use_count() == 1 && entry.second->idle() && entry.second->last_used() < limit;
    });
}

Result<void> move_into_place(std::filesystem::path const& workspace, std::string const& staging, std::vector<FileRef> const& files) {
    if (files.empty()) return {};
    if (!stays_inside(staging)) return fail(ErrorKind::Invalid, "the staging folder {} lies outside the workspace", staging);
    std::set<std::filesystem::path> folders;
    std::vector<std::pair<std::filesystem::path, std::filesystem::path>> moves;
    for (auto const& file : files) { // all of them are there, or none is moved
        if (!stays_inside(file.path)) return fail(ErrorKind::Invalid, "the output file {} lies outside the workspace", file.path);
        auto from = workspace / staging / file.path;
        auto to = workspace / file.path;
        if (has_size(from, file.size)) moves.emplace_back(std::move(from), std::move(to));
        else if (!has_size(to, file.size)) // else moved before a crash
            return fail(ErrorKind::NotFound, "the output file {} is not there at its stated size", from.native());
    }
    for (auto const& [from, to] : moves) {
        if (folders.insert(to.parent_path()).second)
            if (auto made = make_folder(to.parent_path()); !made) return made;
        if (std::rename(from.c_str(), to.c_str()) != 0) return fail(errno_error(errno, "move " + from.native() + " into place"));
    }
    for (auto const& folder : folders)
        if (auto flushed = flush_folder(folder); !flushed) return flushed;
    return {};
}

} // namespace ocrctl::server
