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
#include <vector>

namespace ocrctl::server {

/// A METS file and its turn-taking: with() runs work on a pool thread, in the order of the calls, alone. What waits is
/// run together, one hop to the pool and one back. The METS is loaded before the first piece of work, and again before
/// any work when somebody else wrote it and nothing of ours is unsaved. All functions are called on the io thread;
/// destroyed only when idle.
class Workspace : public std::enable_shared_from_this<Workspace> {
public:
    Workspace(asio::any_io_executor io, asio::thread_pool& pool, std::filesystem::path folder, std::string mets_basename);

    /// `work(mets::Mets&)` gives a Result<T>. Errors besides its own: those of mets::Mets::load.
    template <class Work, class R = std::invoke_result_t<Work&, mets::Mets&>>
    awaitable<R> with(Work work) {
        auto self = shared_from_this();
        auto executor = co_await asio::this_coro::executor;
        auto start = [self, executor](auto handler, Work job) {
            struct Shared {
                decltype(handler) call;
                Work job;
                R result;
            };
            auto shared = std::make_shared<Shared>(Shared{std::move(handler), std::move(job), R(std::unexpect, Error())});
            Piece piece;
            piece.work = [shared](mets::Mets* mets, Error const& problem) {
                if (mets == nullptr) {
                    shared->result = std::unexpected(problem);
                    return;
                }
                try {
                    shared->result = shared->job(*mets);
                } catch (std::exception const& thrown) {
                    shared->result = fail(ErrorKind::Internal, "{}", thrown.what());
                }
            };
            piece.done = [shared] {
                auto call = std::move(shared->call);
                call(std::move(shared->result));
            };
            self->enqueue(std::move(piece));
        };
        co_return co_await asio::async_initiate<decltype(use_awaitable) const, void(R)>(std::move(start), use_awaitable, std::move(work));
    }

    /// What is in memory is forgotten before the next piece of work: it could not be saved and was given up.
    void forget() noexcept { forget_ = true; }

    /// What was once found in it and stays true while generation() is the same (pages and groups only ever come): spares
    /// a submission the wait for its turn.
    struct Facts {
        std::uint64_t generation = 0;
        std::vector<std::string> pages; // in order
        std::unordered_set<std::string> page_ids, groups;
    };
    Facts facts;
    /// Another one after each reading from disk. Any thread.
    std::uint64_t generation() const noexcept { return generation_; }
    /// For work that reloads by itself.
    void read_again() noexcept { ++generation_; }

    /// For work: a run whose entries are saved. They are put back when somebody else overwrites the METS with an older copy.
    void remember(mets::RunFiles run);
    /// For work that reloads by itself: adds what was remembered and is not there, if its page is there and its file on
    /// disk. Done by itself after each other reading from disk.
    void restore(mets::Mets& mets) const;

    std::filesystem::path const& folder() const noexcept { return folder_; }
    std::filesystem::path file() const { return folder_ / basename_; }
    bool idle() const noexcept { return !busy_ && waiting_.empty(); }
    std::chrono::steady_clock::time_point last_used() const noexcept { return last_used_; }

private:
    struct Piece {
        std::move_only_function<void(mets::Mets*, Error const&)> work;
        std::move_only_function<void()> done;
    };
    void enqueue(Piece piece);
    void hand_over();
    void run(std::vector<Piece>& pieces); // on the pool

    asio::any_io_executor io_;
    asio::thread_pool& pool_;
    std::filesystem::path folder_;
    std::string basename_;
    std::vector<Piece> waiting_;
    bool busy_ = false;
    std::chrono::steady_clock::time_point last_used_;
    std::atomic<bool> forget_ = false;
    std::atomic<std::uint64_t> generation_ = 0;
    std::optional<mets::Mets> mets_;       // touched only by run()
    std::vector<mets::RunFiles> remembered_; // so is this
};

/// The open ones, by canonical folder and METS name. Lives on the io thread.
class Workspaces {
public:
    Workspaces(asio::any_io_executor io, asio::thread_pool& pool) : io_(std::move(io)), pool_(pool) {}

    std::shared_ptr<Workspace> open(std::string const& folder, std::string const& mets_basename);
    /// Forgets those that nobody holds and nobody has used for that long.
    void close_idle(std::chrono::seconds unused);
    std::size_t size() const noexcept { return open_.size(); }

private:
    asio::any_io_executor io_;
    asio::thread_pool& pool_;
    std::unordered_map<std::string, std::shared_ptr<Workspace>> open_;
};

/// Moves a run's files from its staging folder to their final places and flushes the folders; a file that is already in
/// place is fine. Errors: NotFound (neither there nor in place, or not of the stated size), Invalid (a path that leaves
/// the workspace), Denied, Unavailable. Blocks.
Result<void> move_into_place(std::filesystem::path const& workspace, std::string const& staging, std::vector<FileRef> const& files);

} // namespace ocrctl::server
