// Jobs for foreign Workers: unmodified OCR-D programs (contracts sections 5 and 6; network protocol 3 and 4).
#pragma once

#include "lib/model/unit.hpp"
#include "lib/queue/broker.hpp"
#include "lib/store/ocrd_documents.hpp"
#include "processing_server/job_book.hpp"
#include "processing_server/mets_api.hpp"
#include "processing_server/settings.hpp"
#include "processing_server/workspaces.hpp"

#include <set>
#include <unordered_map>

namespace ocrctl::server {

/// Gives foreign Workers their Jobs and learns what became of them.
///
/// A supervised Worker is a **place**: a vhost of its own into which one Job at a time is published, so it is known who
/// holds which. Workers that somebody started by hand share the common vhost: a **lane** per Processor, with as many
/// Jobs as its queue has consumers and one more.
///
/// The Worker writes its Job's state into its row of DBProcessorJob. That row is read when the Worker posts its
/// callback, soon after publishing, every 5 s while Jobs are out, when a Worker or a connection is lost, and at start.
/// The callback itself is not believed.
///
/// Lives on the io thread; refers to what it is given, all of which outlives it. stop() before the io_context ends;
/// what is published stays so, and is found again by start().
class ForeignWorkers {
public:
    ForeignWorkers(asio::any_io_executor io, asio::thread_pool& pool, Settings const& settings, store::Store& store,
                   JobBook& book, Workspaces& workspaces, MetsApi& mets_api, store::OcrdDocuments& documents,
                   queue::BrokerUrl common);
    ~ForeignWorkers();

    /// Once the open Jobs are in the book. Invalid: the address of a vhost cannot be read.
    Result<void> start(std::string const& own_url);
    awaitable<void> stop();

    /// A configured group runs it, or its queue is on the common vhost.
    awaitable<bool> knows(std::string processor);
    /// The same without asking: true only if it is known, or was a moment ago.
    bool knows_already(std::string const& processor) const;
    /// Those of `candidates` that knows() knows, and the configured ones.
    awaitable<std::vector<std::string>> processors(std::vector<std::string> candidates);
    std::vector<std::string> configured() const;
    /// The configured ones, and those that had Workers on the common vhost when it was looked at last.
    std::vector<std::string> present() const;

    /// A Worker says that this Job has ended.
    void called_back(JobId const& id);
    void reported(HostReport const& report);
    /// What a start on a host without an agent told: which machine that is, which processes it started.
    void started(HostReport const& report);
    /// Its agent does not report any more.
    void away(std::string const& host);
    /// Takes a published Job out of the queue again; false: a Worker has it.
    awaitable<bool> take_back(JobId id);
    /// For JobBook::on_end.
    void ended(Job const& job);

    /// OCR-D's documents beside ours; a failure is only logged.
    void mirror(Workflow workflow);
    void mirror(WorkflowScript script);
    awaitable<Result<std::optional<std::string>>> path_of_workspace(std::string workspace_id) {
        return documents_.path_of_workspace(std::move(workspace_id));
    }

    /// Who consumes the queue of this slot's Worker, as the broker said when it was asked last: at most a few seconds
    /// ago for those without an agent. Nothing: it has not said.
    struct Consumption {
        std::size_t consumers = 0, workers = 1; // those configured for this queue: one, or all that share it
    };
    std::optional<Consumption> consumption(std::string_view slot) const;
    /// For /v1/status: the places.
    Json status() const;
    /// What keeps a METS from being saved: workspace -> sentence. Its Jobs are tried again.
    std::map<std::string, std::string> const& problems() const noexcept { return problems_; }

private:
    struct Place;
    struct Lane;
    std::string const& url_for(Place const* place) const;
    using Clock = std::chrono::steady_clock;
    struct Out {
        Place* place = nullptr;    // null: the common vhost
        int pid = 0, restarts = 0; // of its Worker when it was given
        bool mirrored = false;     // the Worker's row is of this attempt
        bool over_restart = false; // it was given before this server started
        bool lost_link = false;    // the broker was away since: what it held is gone
        bool innocent = false;     // the broker or MongoDB was away since: a Worker that ended did so for that
        bool requeued = false;     // the common vhost: its Worker died, it waits in the queue again
        Millis begun = 0;          // the common vhost: start_time in its row
        int missing = 0;           // how often it was neither in the queue nor with a Worker
        Clock::time_point since = Clock::now();
    };
    struct Given {
        JobId id;
        Place* place = nullptr;
    };

    awaitable<void> loop();
    bool pick();
    awaitable<void> give(std::shared_ptr<Workspace> workspace, std::vector<Given> given);
    awaitable<void> send(queue::Publisher& publisher, std::vector<JobId> ids, std::vector<queue::Message> messages);
    awaitable<bool> open_address(std::string folder, std::string path_to_mets, JobId user);
    awaitable<void> again_after(JobId id, std::chrono::milliseconds wait);
    void put_off(std::vector<JobId> const& ids, std::string_view what, Error const& problem);

    awaitable<void> look_at(Place& place);
    awaitable<void> look_at(Lane& lane);

    awaitable<void> read_rows();
    awaitable<void> tick();
    awaitable<void> look_soon(std::vector<JobId> ids);
    void seen(store::OcrdJobRow const& row);
    awaitable<void> end_well(JobId id);
    awaitable<void> end_failed(JobId id);
    awaitable<std::optional<store::OcrdJobRow>> row_of(JobId id);

    awaitable<void> doubt(Place& place);
    awaitable<void> doubt(Lane& lane);
    awaitable<void> guard(Lane& lane);
    awaitable<void> died(JobId id, std::string who, bool counts);
    awaitable<void> another_attempt(JobId id, int deaths);
    void linked(Place* place, queue::LinkEvent const& event);

    bool anybody_elsewhere() const;
    Place* place_at(std::string_view slot);
    OpenJob* out(JobId const& id);
    void free(JobId const& id);
    void publish_again(JobId const& id);
    Lane& lane(std::string const& processor);

    asio::any_io_executor io_;
    asio::thread_pool& pool_;
    log::Logger log_;
    Settings const& settings_;
    store::Store& store_;
    JobBook& book_;
    Workspaces& workspaces_;
    MetsApi& mets_api_;
    store::OcrdDocuments& documents_;
    queue::BrokerUrl common_url_;
    queue::OcrdTopology topology_;
    std::string internal_url_;
    TaskGroup tasks_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
    bool stopping_ = false;

    std::unique_ptr<queue::Publisher> common_; // publishes on the common vhost
    std::vector<std::unique_ptr<Place>> places_;
    std::map<std::string, std::unique_ptr<Lane>> lanes_; // by Processor
    std::unordered_map<JobId, Out> out_;                 // the Jobs that Workers were given, or are being given
    std::map<std::string, Clock::time_point> queues_;    // those seen on the common vhost, and when
    std::map<std::string, std::string> boots_;           // host -> boot id
    std::string boot_id_;                                // of this machine
    struct Address {
        std::string url;
        std::set<JobId> users;
    };
    std::unordered_map<std::string, Address> addresses_; // METS servers, by folder
    std::set<JobId> asked_;                              // whose rows are to be read
    Event asked_event_;
    std::map<std::string, std::string> problems_;
    std::string trouble_; // of MongoDB: said once
};

} // namespace ocrctl::server
