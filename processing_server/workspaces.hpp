// The one METS writer: every open METS in memory, one piece of work at a time on each, never on the io thread.
#pragma once

#include "lib/async/on_thread.hpp"
#include "lib/log/log.hpp"
#include "lib/mets/mets.hpp"

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

namespace ocrctl::server {

/// A METS file and its turn-taking: with() runs work on a pool thread, in the order of the calls, alone. What waits is
/// run together, one hop to the pool and one back. The METS is loaded before the first piece of work, and again before
/// any work when somebody else wrote it and nothing of ours is unsaved. All functions are called on the io thread, but
/// for those "for work", which belong into the work that is being run; destroyed only when idle.
///
/// What is changed in memory goes through apply() and add(): it is kept in mind until it is saved, and put in again
/// whenever the METS must be read anew because somebody else wrote it. So whoever saves saves everybody's changes, and
/// whoever reads again loses nobody's.
class Workspace : public std::enable_shared_from_this<Workspace> {
public:
    Workspace(asio::any_io_executor io, asio::thread_pool& pool, std::filesystem::path folder,
              std::string mets_basename);

    /// `work(mets::Mets&)` gives a Result<T>. Errors besides its own: those of mets::Mets::load.
    template <class Work, class R = std::invoke_result_t<Work&, mets::Mets&>> awaitable<R> with(Work work) {
        auto self = shared_from_this();
        auto executor = co_await asio::this_coro::executor;
        auto start = [self, executor](auto handler, Work job) {
            struct Shared {
                decltype(handler) call;
                Work job;
                R result;
            };
            auto shared =
                std::make_shared<Shared>(Shared{std::move(handler), std::move(job), R(std::unexpect, Error())});
            Piece piece;
            piece.work = [shared](mets::Mets* mets, Error const& problem) {
                if (mets == nullptr)
                    shared->result = std::unexpected(problem);
                else
                    shared->result = guarded<R>(shared->job, *mets);
            };
            piece.done = [shared] {
                auto call = std::move(shared->call);
                call(std::move(shared->result));
            };
            self->enqueue(std::move(piece));
        };
        co_return co_await asio::async_initiate<decltype(use_awaitable) const, void(R)>(std::move(start), use_awaitable,
                                                                                        std::move(work));
    }

    /// The same for work of a few microseconds that touches no disk: done here and now, on the io thread, if the METS
    /// is in memory, nobody works on it, the file was looked at a moment ago and `cheap(mets)` agrees; else by with().
    template <class Work, class Cheap, class R = std::invoke_result_t<Work&, mets::Mets&>>
    awaitable<R> at_once(Work work, Cheap cheap) {
        if (!at_hand() || !cheap(std::as_const(*mets_))) {
            auto turn = with(std::move(work));
            co_return co_await std::move(turn);
        }
        last_used_ = std::chrono::steady_clock::now();
        auto result = guarded<R>(work, *mets_);
        look();
        co_return result;
    }

    /// What is in memory is forgotten before the next piece of work: it could not be saved and was given up.
    void forget() noexcept { forget_ = true; }

    /// What was once found in it and stays true while generation() is the same (pages and groups only ever come):
    /// spares a submission the wait for its turn.
    struct Facts {
        std::uint64_t generation = 0;
        std::vector<std::string> pages; // in order
        std::unordered_set<std::string> page_ids, groups;
    };
    Facts facts;
    /// Another one after each reading from disk. Any thread.
    std::uint64_t generation() const noexcept { return generation_; }

    /// For work: puts a run in, with everything of apply of lib/mets; the ticket asks later what became of it.
    Result<std::uint64_t> apply(mets::Mets& mets, mets::RunFiles const& run);
    /// For work: adds a file, and the folder that it will lie in; an agent. Errors as of lib/mets; Denied, Unavailable.
    Result<void> add(mets::Mets& mets, mets::Addition addition);
    Result<void> add(mets::Mets& mets, mets::Agent const& agent);
    /// For the `cheap` of at_once: add() would not touch the disk.
    bool folder_known(std::string const& path) const;

    /// For work: writes all that is in memory. If somebody else wrote the METS meanwhile, it is read, our changes are
    /// put in again and it is tried again; a change that does not go with theirs is given up: settled() and lost()
    /// tell. Errors: those of mets::Mets::save, and NotFound or Invalid when what somebody else wrote cannot be read;
    /// then nothing of ours is forgotten.
    Result<void> save(mets::Mets& mets);
    /// For work: reads the METS again, without losing what is not saved. On an error everything stays as it was.
    Result<void> reload(mets::Mets& mets);

    /// What became of a run: saved, or given up for a reason.
    struct Settled {
        std::optional<Error> problem;
        std::vector<std::string> obsolete; // paths that no entry names any more: to be removed
    };
    /// For work: nothing while it is not decided; told once.
    std::optional<Settled> settled(std::uint64_t ticket);
    /// For work: the run is given up, and not put in again; what is in memory must be forgotten then.
    void withdraw(std::uint64_t ticket);
    /// For work: additions that were given up, each a sentence; told once.
    std::vector<std::string> lost() { return std::exchange(lost_, {}); }

    /// Something in memory is not saved.
    bool unsaved() const noexcept { return unsaved_; }

    std::filesystem::path const& folder() const noexcept { return folder_; }
    std::filesystem::path file() const { return folder_ / basename_; }
    bool idle() const noexcept { return !busy_ && waiting_.empty(); }
    std::chrono::steady_clock::time_point last_used() const noexcept { return last_used_; }

private:
    struct Piece {
        std::move_only_function<void(mets::Mets*, Error const&)> work;
        std::move_only_function<void()> done;
    };
    struct Change { // in memory, not on disk
        std::uint64_t ticket = 0;
        std::variant<mets::RunFiles, mets::Addition, mets::Agent> what;
        std::vector<std::string> obsolete;
    };

    template <class R, class Work> static R guarded(Work& work, mets::Mets& mets) {
        try {
            return work(mets);
        } catch (std::exception const& thrown) {
            return fail(ErrorKind::Internal, "{}", thrown.what());
        }
    }
    void enqueue(Piece piece);
    void hand_over();
    void run(std::vector<Piece>& pieces); // on the pool
    bool at_hand() const noexcept;
    void look() noexcept { unsaved_ = (mets_ && mets_->changed()) || !changes_.empty(); }
    void read_anew(mets::Mets& mets); // it was read from disk: restore and replay
    void replay(mets::Mets& mets);
    void restore(mets::Mets& mets) const;
    void remember(mets::RunFiles run);

    asio::any_io_executor io_;
    asio::thread_pool& pool_;
    std::filesystem::path folder_;
    std::string basename_;
    std::vector<Piece> waiting_;
    bool busy_ = false;
    std::chrono::steady_clock::time_point last_used_;
    std::atomic<bool> forget_ = false;
    std::atomic<std::uint64_t> generation_ = 0;
    std::atomic<bool> unsaved_ = false;
    // From here on: touched by the work that is being run, and by nobody else.
    std::optional<mets::Mets> mets_;
    std::chrono::steady_clock::time_point looked_at_{}; // when the file on disk was compared with what was read
    std::vector<Change> changes_;                       // in the order in which they were made
    std::uint64_t next_ticket_ = 1;
    std::unordered_map<std::uint64_t, Settled> settled_;
    std::vector<std::string> lost_;
    std::vector<mets::RunFiles>
        remembered_;                       // saved: put back when somebody else overwrites the METS with an older copy
    std::unordered_set<std::string> made_; // folders of the workspace that are there
};

/// The open ones, by canonical folder and METS name. Lives on the io thread.
class Workspaces {
public:
    Workspaces(asio::any_io_executor io, asio::thread_pool& pool) : io_(std::move(io)), pool_(pool) {}

    std::shared_ptr<Workspace> open(std::string const& folder, std::string const& mets_basename);
    /// Forgets those that nobody holds and nobody has used for that long, and that hold nothing unsaved.
    void close_idle(std::chrono::seconds unused);
    /// Those that hold something unsaved.
    std::vector<std::shared_ptr<Workspace>> unsaved() const;
    std::size_t size() const noexcept { return open_.size(); }

private:
    asio::any_io_executor io_;
    asio::thread_pool& pool_;
    std::unordered_map<std::string, std::shared_ptr<Workspace>> open_;
};

/// A path, made absolute and normal, is below one of the configured roots, as they are spelled or as they really are.
bool below_roots(std::vector<std::filesystem::path> const& roots, std::filesystem::path const& path);

/// Moves a run's files from its staging folder to their final places and flushes the folders; a file that is already in
/// place is fine. Errors: NotFound (neither there nor in place, or not of the stated size), Invalid (a path that leaves
/// the workspace), Denied, Unavailable. Blocks.
Result<void> move_into_place(std::filesystem::path const& workspace, std::string const& staging,
                             std::vector<FileRef> const& files);

} // namespace ocrctl::server
