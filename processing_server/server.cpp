#include "processing_server/server.hpp"

#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "lib/net/server.hpp"
#include "lib/store/mongo.hpp"
#include "lib/store/sqlite.hpp"
#include "processing_server/mets_api.hpp"
#include "processing_server/routes.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/file.h>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kSweptJobs = 10'000; // newest Jobs whose workspaces are looked through at start

/// In the given order, but each Job after those it depends on: the order in which the Store met them need not tell, and the book
/// takes a dependency that it does not know for one that has gone wrong.
void put_dependencies_first(std::vector<Job>& jobs) {
    std::map<JobId, std::size_t> place;
    for (std::size_t i = 0; i < jobs.size(); ++i) place[jobs[i].id] = i;
    std::vector<std::size_t> unmet(jobs.size());
    std::vector<std::vector<std::size_t>> waiting(jobs.size());
    std::set<std::size_t> ready;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        for (auto const& id : jobs[i].depends_on)
            if (auto found = place.find(id); found != place.end() && found->second != i) {
                waiting[found->second].push_back(i);
                ++unmet[i];
            }
        if (unmet[i] == 0) ready.insert(i);
    }
    std::vector<Job> ordered;
    while (!ready.empty()) {
        auto const i = *ready.begin();
        ready.erase(ready.begin());
        ordered.push_back(std::move(jobs[i]));
        for (auto next : waiting[i])
            if (--unmet[next] == 0) ready.insert(next);
    }
    for (std::size_t i = 0; i < jobs.size(); ++i) // in a circle, which no submission makes
        if (unmet[i] > 0) ordered.push_back(std::move(jobs[i]));
    jobs = std::move(ordered);
}

// The staging folders of Jobs, then that of the workspace if it is empty. Blocks.
void remove_staging_of(std::filesystem::path const& workspace, std::vector<std::string> const& jobs) {
    for (auto const& job : jobs) remove_tree(workspace / ".ocrctl" / job);
    std::error_code ignored;
    std::filesystem::remove(workspace / ".ocrctl", ignored);
}

} // namespace

// In the order of dependence: destruction runs backwards.
struct ProcessingServer::Parts {
    Parts(asio::io_context& context, Settings s, Converger* c)
        : io(context.get_executor()), settings(std::move(s)), converger(c), pool(4), tasks(io, "server"), tools(settings, io, pool), workspaces(io, pool),
          agents(io, settings, c), status_changed(io) {}
    ~Parts() {
        if (store) store->close();
        pool.join();
    }

    awaitable<Result<void>> start();
    Result<void> open_store();
    awaitable<Result<void>> recover();
    awaitable<void> stop(std::chrono::milliseconds limit);
    awaitable<void> housekeeping();
    awaitable<void> sweep();
    void job_ended(Job const& job);
    void agent_reported(HostReport const& report);

    asio::any_io_executor io;
    log::Logger log{"server"};
    Settings settings;
    Converger* converger;
    Fd lock; // one server on this state
    std::string url;
    int port = 0;
    bool started = false, stopping = false;
    asio::thread_pool pool; // METS, files, catalogues: whatever blocks
    TaskGroup tasks;
    std::unique_ptr<store::Store> store;         // the truth about Jobs
    std::unique_ptr<store::OcrdDocuments> documents; // OCR-D's collections; null unless the Store is in MongoDB
    ToolCatalogue tools;                         // what Processors are
    Workspaces workspaces;                       // METS files in memory
    std::unique_ptr<MetsApi> mets_api;           // what OCR-D's Workers ask of them
    std::unique_ptr<JobBook> book;               // open Jobs
    std::unique_ptr<Dispatcher> dispatcher;      // into the broker
    std::unique_ptr<Results> results;            // out of it
    std::unique_ptr<Callbacks> callbacks;        // to clients
    std::unique_ptr<ForeignWorkers> foreign;     // Jobs for OCR-D's Workers; null without MongoDB
    std::unique_ptr<JobService> jobs;            // what clients ask for
    AgentHub agents;                             // host agents
    Event status_changed;
    std::uint64_t version = 1;
    std::map<std::string, std::set<JobId>> running; // host -> what its last report said
    net::Router router;
    std::unique_ptr<net::HttpServer> http;
};

awaitable<Result<void>> ProcessingServer::Parts::start() {
    auto amqp = read_file(settings.amqp_file);
    if (!amqp) co_return fail(amqp.error().during("read the broker's address"));
    auto broker = queue::parse_broker_url(trim(*amqp));
    if (!broker) co_return fail(broker.error().during(settings.amqp_file.native()));
    if (auto made = make_folder(settings.state / "logs" / "jobs"); !made) co_return std::unexpected(made.error());

    lock = Fd(::open((settings.state / "server.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock) co_return fail(errno_error(errno, "open " + (settings.state / "server.lock").native()));
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
        co_return fail(ErrorKind::Conflict, "another processing server runs on {}", settings.state.native());
    if (auto opened = open_store(); !opened) co_return opened;
    book = std::make_unique<JobBook>(io, *store);
    mets_api = std::make_unique<MetsApi>(io, settings, workspaces, url);
    dispatcher = std::make_unique<Dispatcher>(io, settings, *store, *book, workspaces, *broker);
    results = std::make_unique<Results>(io, pool, settings, *store, *book, workspaces, *dispatcher, *broker);
    callbacks = std::make_unique<Callbacks>(io, *store);
    if (documents)
        foreign = std::make_unique<ForeignWorkers>(io, pool, settings, *store, *book, workspaces, *mets_api, *documents,
                                                   *broker);
    jobs = std::make_unique<JobService>(settings, *store, *book, workspaces, *dispatcher, foreign.get(), tools);
    if (auto loaded = tools.load(); !loaded) co_return loaded;
    if (agents.closing()) jobs->close_intake();

    book->on_end = [this](Job const& job) { job_ended(job); };
    book->on_workflow_end = [this](WorkflowId const& id, WorkflowCallback const& callback, JobState state) {
        callbacks->tell(callback.note, callback.url, result_message(id, state, callback.path_to_mets));
    };
    agents.on_report = [this](HostReport const& report) { agent_reported(report); };
    agents.on_start_report = [this](HostReport const& report) {
        if (foreign) foreign->started(report);
    };
    agents.on_change = [this] {
        ++version;
        dispatcher->set_ready(agents.ready());
        if (foreign)
            for (auto const& [name, host] : agents.hosts())
                if (!host.connected) foreign->away(name);
    };
    agents.wanted = [this](JobId const& id) { return book->known_state(id) != JobState::Cancelled; };

    // The port is taken first: what is in use is said before anything is done. Until the Jobs are in memory it answers 503.
    net::ServerOptions options;
    options.max_body = settings.max_body;
    add_routes(router, RouteContext{settings, *store, *jobs, tools, *book, *dispatcher, *results, foreign.get(), agents, *callbacks,
                                    converger, pool, url, started, status_changed, version});
    mets_api->add_routes(router);
    http = std::make_unique<net::HttpServer>(io, router, options);
    auto bound = http->listen(settings.address, static_cast<std::uint16_t>(settings.port));
    if (!bound) co_return std::unexpected(bound.error());
    url = bound->url;
    port = bound->port;
    if (auto recovered = co_await recover(); !recovered) co_return recovered;
    results->start();
    agents.start();
    tasks.spawn("housekeeping", housekeeping());
    tasks.spawn("sweep", sweep());
    started = true;
    log.info("server.listening", kv(field::kAddress, url), kv("open_jobs", book->size()));
    co_return Result<void>{};
}

// Blocks, before anything else runs. MongoDB that does not answer ends the start; the agent tries again.
Result<void> ProcessingServer::Parts::open_store() {
    if (settings.mongo_file.empty()) {
        auto opened = store::open_sqlite({.file = settings.state / "store" / "ocrctl.sqlite"});
        if (!opened) return std::unexpected(opened.error());
        store = std::move(*opened);
        return {};
    }
    auto address = read_file(settings.mongo_file);
    if (!address) return fail(address.error().during("read the address of MongoDB"));
    auto opened = store::open_mongo({.url = Secret(std::string(trim(*address))), .deployment = settings.name, .journal = settings.state / "store" / "journal"});
    if (!opened) return std::unexpected(opened.error());
    store = std::move(opened->store);
    documents = std::move(opened->documents);
    return {};
}

awaitable<Result<void>> ProcessingServer::Parts::recover() {
    auto open = co_await store->open_jobs();
    if (!open) co_return std::unexpected(open.error());
    auto outcomes = co_await store->outcomes();
    if (!outcomes) co_return std::unexpected(outcomes.error());
    auto counts = co_await store->counts();
    if (!counts) co_return std::unexpected(counts.error());
    auto epoch = co_await store->value("epoch");
    if (!epoch) co_return std::unexpected(epoch.error());
    auto to_tell = co_await store->callbacks();
    if (!to_tell) co_return std::unexpected(to_tell.error());

    // Ended Jobs are counted by the Store, open ones as they are taken in.
    std::erase_if(*counts, [](auto const& entry) { return !is_final(entry.first); });
    book->set_counts(*counts);
    std::set<WorkflowId> workflows;
    std::set<JobId> ids;
    for (auto const& job : *open) {
        ids.insert(job.id);
        if (!job.workflow.empty()) workflows.insert(job.workflow);
    }
    for (auto const& id : workflows) {
        auto states = co_await store->workflow_counts(id);
        if (!states) co_return std::unexpected(states.error());
        WorkflowCounts final;
        for (auto const& one : *states)
            if (is_final(one.state)) final[one.processor][one.state] = one.count;
        book->set_workflow(id, std::move(final));
    }
    for (auto const& job : *to_tell) { // of a workflow's Jobs one stands for the workflow
        if (job.workflow.empty()) continue;
        auto workflow = co_await store->workflow(job.workflow);
        if (!workflow) co_return std::unexpected(workflow.error());
        if (!*workflow) continue;
        if (workflows.contains(job.workflow)) {
            book->tell_at_end(job.workflow, {job.id, (*workflow)->callback_url, (*workflow)->path_to_mets});
            continue;
        }
        auto states = co_await store->workflow_counts(job.workflow);
        if (!states) co_return std::unexpected(states.error());
        WorkflowCounts final;
        for (auto const& one : *states) final[one.processor][one.state] = one.count;
        callbacks->tell(job.id, (*workflow)->callback_url,
                        result_message(job.workflow, final_state(final), (*workflow)->path_to_mets));
    }
    std::set<JobId> asked;
    for (auto const& job : *open)
        for (auto const& dependency : job.depends_on)
            if (!ids.contains(dependency)) asked.insert(dependency);
    std::unordered_map<JobId, JobState> ended;
    if (!asked.empty()) {
        auto found = co_await store->jobs({asked.begin(), asked.end()});
        if (!found) co_return std::unexpected(found.error());
        for (auto const& job : *found) ended[job.id] = job.state;
    }
    put_dependencies_first(*open);
    std::vector<Ending> cancelled;
    for (auto& job : *open) {
        auto id = job.id;
        auto committed = job.committed;
        if (book->recover(std::move(job), ended, committed) == JobState::Cancelled)
            cancelled.push_back(Ending{id, JobState::Cancelled, "a Job that it depends on failed or was cancelled"});
    }
    if (!cancelled.empty()) tasks.spawn("end", book->end(std::move(cancelled), {}));
    results->recover(*outcomes);
    // The note to tell is written before the end: a Job that has not ended yet will be told when it does.
    for (auto const& job : *to_tell)
        if (job.workflow.empty() && is_final(job.state)) callbacks->tell(job);
    dispatcher->start(epoch->value_or(""));
    if (foreign)
        if (auto begun = foreign->start(url); !begun) co_return begun;
    if (book->size() > 0) log.info("server.recovered", kv("open_jobs", book->size()), kv("results", outcomes->size()));
    co_return Result<void>{};
}

void ProcessingServer::Parts::job_ended(Job const& job) {
    log.debug("job.ended", kv(field::kJob, job.id.str()), kv("state", wire(job.state)));
    if (job.state == JobState::Failed) log.info("job.failed", kv(field::kJob, job.id.str()), kv(field::kProcessor, job.target.name), kv(field::kReason, job.reason));
    if (job.state == JobState::Cancelled) agents.cancel(job.id);
    callbacks->tell(job);
    if (foreign) foreign->ended(job);
    if (!job.result_queue_name.empty() && job.state != JobState::Cancelled) dispatcher->post_message(job.result_queue_name, dump(result_message(job)));
    // What its other runs left behind.
    asio::post(pool, [workspace = job.workspace, id = job.id.str()] { remove_staging_of(workspace, {id}); });
}

// RUNNING is what Workers say: a report names the Jobs that its host's Workers hold now.
void ProcessingServer::Parts::agent_reported(HostReport const& report) {
    if (foreign) foreign->reported(report);
    std::set<JobId> now;
    for (auto const& unit : report.units) {
        if (unit.job.empty()) continue;
        JobId id(unit.job);
        now.insert(id);
        if (auto* open = book->find(id)) book->set_running(*open, true, unit.entry);
    }
    auto& before = running[report.host];
    for (auto const& id : before)
        if (!now.contains(id))
            if (auto* open = book->find(id); open != nullptr && open->job.slot.str().starts_with(report.host + "/")) book->set_running(*open, false, "");
    before = std::move(now);
}

awaitable<void> ProcessingServer::Parts::housekeeping() {
    while (!stopping && co_await pause(1000ms)) {
        workspaces.close_idle(60s);
        if (agents.closing()) jobs->close_intake();
    }
}

// Staging folders of Jobs that ended while nobody was there to remove them. Others than Jobs' are left alone.
awaitable<void> ProcessingServer::Parts::sweep() {
    auto recent = co_await store->jobs_in(std::nullopt, kSweptJobs);
    if (!recent) co_return;
    std::set<std::string> workspaces_seen;
    for (auto const& job : *recent) workspaces_seen.insert(job.workspace);
    recent->clear();
    for (auto const& workspace : workspaces_seen) {
        auto found = co_await on_thread(pool, [&workspace] {
            std::vector<JobId> names;
            std::error_code problem;
            for (std::filesystem::directory_iterator entry(std::filesystem::path(workspace) / ".ocrctl", problem), end; !problem && entry != end; entry.increment(problem))
                names.emplace_back(entry->path().filename().native());
            return names;
        });
        if (found.empty() || stopping) continue;
        auto known = co_await store->jobs(std::move(found));
        if (!known) co_return;
        std::vector<std::string> ended;
        for (auto const& job : *known)
            if (is_final(job.state) && job.workspace == workspace && book->find(job.id) == nullptr) ended.push_back(job.id.str());
        co_await on_thread(pool, [&] { remove_staging_of(workspace, ended); });
    }
}

awaitable<void> ProcessingServer::Parts::stop(std::chrono::milliseconds limit) {
    if (stopping) co_return;
    stopping = true;
    log.info("server.stopping");
    if (jobs) jobs->close_intake();
    co_await agents.stop();
    if (http) co_await http->stop(std::min<std::chrono::milliseconds>(limit, 2s));
    if (foreign) co_await foreign->stop();
    if (mets_api) co_await mets_api->stop();
    if (results) co_await results->stop(limit);
    if (book) book->stop();
    if (callbacks) co_await callbacks->stop();
    co_await tools.stop();
    if (dispatcher) co_await dispatcher->stop();
    tasks.cancel();
    co_await tasks.join();
    if (store) store->close();
    log.info("server.stopped");
}

ProcessingServer::ProcessingServer(asio::io_context& io, Settings settings, Converger* converger)
    : parts_(std::make_unique<Parts>(io, std::move(settings), converger)) {}
ProcessingServer::~ProcessingServer() = default;

awaitable<Result<void>> ProcessingServer::start() { return parts_->start(); }
awaitable<void> ProcessingServer::stop(std::chrono::milliseconds limit) { return parts_->stop(limit); }
std::string const& ProcessingServer::url() const noexcept { return parts_->url; }
int ProcessingServer::port() const noexcept { return parts_->port; }

} // namespace ocrctl::server
