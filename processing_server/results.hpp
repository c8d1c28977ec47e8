// From a Worker's result to SUCCESS (docs/contracts.md): commit, acknowledge, files into place, METS in memory, dependants,
// METS on disk, end. Each step can be repeated after a crash.
#pragma once

#include "lib/queue/broker.hpp"
#include "processing_server/dispatcher.hpp"
#include "processing_server/outcome.hpp"

#include <unordered_set>

namespace ocrctl::server {

/// Owns the consuming connection, and a keeper for each METS that has results to apply or to save. Lives on the io thread. stop()
/// saves what is applied (bounded) and ends.
class Results {
public:
    Results(asio::any_io_executor io, asio::thread_pool& pool, Settings const& settings, store::Store& store, JobBook& book,
            Workspaces& workspaces, Dispatcher& dispatcher, queue::BrokerUrl url);
    ~Results();

    /// What was committed but not saved before a restart goes on from there. Call before start().
    void recover(std::vector<TaskResult> const& outcomes);
    void start();
    /// Takes no more results; saves every METS that has unsaved ones, within the limit.
    awaitable<void> stop(std::chrono::milliseconds limit);

    /// What keeps a METS from being saved: workspace -> sentence. Jobs stay committed and are tried again.
    std::map<std::string, std::string> problems() const;
    std::filesystem::path log_of(JobId const& job) const;

private:
    struct Item { // an accepted run on its way into the METS
        JobId job;
        int attempt = 0;
        bool final = false;
        mets::RunFiles files;
        std::string staging;
        std::uint64_t ticket = 0; // with its Workspace, once applied
        int missing = 0; // how often its files were not there
    };
    struct Keeper {
        explicit Keeper(asio::any_io_executor io) : wake(std::move(io)) {}
        std::shared_ptr<Workspace> workspace;
        std::vector<Item> to_apply, unsaved;
        Event wake;
        bool running = false;
        std::chrono::steady_clock::time_point first_unsaved;
        std::chrono::milliseconds last_save{0}, wait{0};
        std::string problem;
    };

    void received(queue::Delivery delivery);
    awaitable<void> loop();
    awaitable<void> process(std::vector<queue::Delivery> deliveries);
    awaitable<void> again_after(JobId id, std::chrono::milliseconds wait);
    void enter(std::string const& workspace, std::string const& mets_basename, Item item);
    awaitable<void> keep(std::string key);
    awaitable<bool> apply_some(Keeper& keeper);
    awaitable<bool> save(Keeper& keeper);
    bool failed_for_now(Keeper& keeper, std::string_view what, Error const& problem);
    Ending ending_of(Item const& item) const;

    asio::any_io_executor io_;
    asio::thread_pool& pool_;
    log::Logger log_;
    Settings const& settings_;
    store::Store& store_;
    JobBook& book_;
    Workspaces& workspaces_;
    Dispatcher& dispatcher_;
    queue::BrokerUrl url_;
    TaskGroup tasks_;
    TaskGroup keepers_tasks_;
    std::unique_ptr<queue::Consumer> consumer_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
    std::vector<queue::Delivery> incoming_;
    Event arrived_;
    std::unordered_map<std::string, std::unique_ptr<Keeper>> keepers_;
    std::unordered_set<std::string> in_use_; // staging folders of accepted results whose files are not all in place yet
    bool stopping_ = false, flushing_ = false;
};

} // namespace ocrctl::server
