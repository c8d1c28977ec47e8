// Keeps a window of each target's Jobs in the broker (docs/contracts.md, "Store" and "Broker").
#pragma once

#include "lib/queue/broker.hpp"
#include "processing_server/job_book.hpp"
#include "processing_server/settings.hpp"
#include "processing_server/workspaces.hpp"

namespace ocrctl::server {

/// Takes Ready Jobs from the JobBook, resolves their inputs from the METS in memory, publishes them and notes the confirm. After
/// each connection it looks at the epoch: a broker that lost its data gets everything published and unfinished again.
/// Lives on the io thread; owns the publishing connection. stop() before the io_context ends.
class Dispatcher {
public:
    Dispatcher(asio::any_io_executor io, Settings const& settings, store::Store& store, JobBook& book, Workspaces& workspaces,
               queue::BrokerUrl url);
    ~Dispatcher();

    /// `epoch`: the id that the Store has; empty: none yet.
    void start(std::string epoch);
    awaitable<void> stop();

    /// Is there anybody, now or by configuration, who runs this Processor? Asks the broker about those that are not configured.
    awaitable<bool> knows(std::string processor);
    /// The same without asking: true only if it is known.
    bool knows_already(std::string const& processor) const;
    std::vector<std::string> processors() const;

    /// Slots READY now, by Processor, from the agents' reports.
    void set_ready(std::map<std::string, std::size_t> ready);
    /// A Job of this target took so long.
    void measured(std::string const& target, double seconds);

    bool connected() const noexcept { return publisher_ && publisher_->connected(); }
    /// Connected, and sure that the broker holds what was published.
    bool ready() const noexcept { return epoch_known_; }
    Error const& problem() const noexcept { return problem_; }
    /// A message to result_queue_name as an OCR-D Worker sends it: the queue is made if it is missing. Not waited for
    /// by anybody.
    void post_message(std::string queue, std::string body);

private:
    struct Resolved;
    awaitable<void> loop();
    awaitable<void> check_epoch();
    awaitable<void> publish(std::shared_ptr<Workspace> workspace, std::vector<JobId> ids);
    awaitable<void> try_again_later(JobId id, std::chrono::milliseconds wait);
    awaitable<void> send(queue::Message message);
    void on_link(queue::LinkEvent const& event);
    std::size_t window(std::string const& target) const;

    asio::any_io_executor io_;
    log::Logger log_;
    Settings const& settings_;
    store::Store& store_;
    JobBook& book_;
    Workspaces& workspaces_;
    queue::BrokerUrl url_;
    queue::OcrdTopology topology_;
    TaskGroup tasks_;
    std::unique_ptr<queue::Publisher> publisher_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
    std::string epoch_;
    bool epoch_known_ = false, checking_ = false, stopping_ = false;
    std::uint64_t link_ = 0;
    Error problem_;
    std::set<std::string> discovered_; // Processors whose queue somebody else declared
    std::map<std::string, std::size_t> ready_;
    std::map<std::string, double> seconds_;
    std::unordered_map<JobId, int> resolve_failures_;
};

} // namespace ocrctl::server
