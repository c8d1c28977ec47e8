#include "processing_server/foreign_places.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "processing_server/foreign_message.hpp"
#include "processing_server/names.hpp"

#include <algorithm>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;

namespace {

constexpr auto kQueueKnown = 5s; // how long a queue that was seen counts as there

} // namespace

ForeignWorkers::ForeignWorkers(asio::any_io_executor io, asio::thread_pool& pool, Settings const& settings,
                               store::Store& store, JobBook& book, Workspaces& workspaces, MetsApi& mets_api,
                               store::OcrdDocuments& documents, queue::BrokerUrl common)
    : io_(io), pool_(pool), log_("foreign"), settings_(settings), store_(store), book_(book), workspaces_(workspaces),
      mets_api_(mets_api), documents_(documents), common_url_(std::move(common)), topology_(ocrd_topology(settings)),
      tasks_(io, "foreign"), asked_event_(io) {}

ForeignWorkers::~ForeignWorkers() {
    *alive_ = false;
}

std::string const& ForeignWorkers::url_for(Place const* place) const {
    return place == nullptr || place->internal_url.empty() ? internal_url_ : place->internal_url;
}

Result<void> ForeignWorkers::start(std::string const& own_url) {
    internal_url_ = settings_.internal_url.empty() ? own_url : settings_.internal_url;
    while (internal_url_.ends_with('/')) internal_url_.pop_back();
    if (auto boot = read_file("/proc/sys/kernel/random/boot_id")) boot_id_ = trim(*boot);
    auto connect = [this](queue::BrokerUrl const& url, Place* place) {
        queue::LinkOptions options;
        options.name = "ocrctl server " + settings_.name + (place == nullptr ? " foreign" : " for " + place->slot);
        options.on_connected = [topology = topology_](queue::Session& session) {
            return queue::declare_ocrd_exchange(session, topology);
        };
        options.on_link = [this, alive = alive_, place](queue::LinkEvent event) {
            if (*alive) linked(place, event);
        };
        return std::make_unique<queue::Publisher>(io_, url, std::move(options));
    };
    for (auto const& one : settings_.foreign_workers) {
        if (one.amqp_file.empty()) continue; // on the common vhost
        auto text = read_file(one.amqp_file);
        if (!text) return fail(text.error().during("read the broker's address of " + one.slot));
        auto url = queue::parse_broker_url(trim(*text));
        if (!url) return fail(url.error().during(one.amqp_file.native()));
        auto place = std::make_unique<Place>();
        place->slot = one.slot;
        place->processor = one.processor;
        place->host = one.slot.substr(0, one.slot.find('/'));
        place->internal_url = one.internal_url;
        place->agent = one.agent;
        while (place->internal_url.ends_with('/')) place->internal_url.pop_back();
        place->publisher = connect(*url, place.get());
        places_.push_back(std::move(place));
    }
    common_ = connect(common_url_, nullptr);

    // What Workers were given before a restart. What became of it is asked when the connections are there.
    for (auto const& [id, entry] : book_.all()) {
        auto const& job = entry->job;
        if (!job.foreign || entry->phase != Phase::Published) continue;
        auto* place = place_at(job.slot.str());
        if (place != nullptr && !place->job.empty()) place = nullptr;
        Out given;
        given.place = place;
        given.pid = job.worker_pid;
        given.restarts = -1;
        given.mirrored = given.over_restart = true;
        if (place != nullptr)
            place->job = id;
        else
            lane(job.target.name).jobs.insert(id);
        out_.emplace(id, given);
        asked_.insert(id);
        tasks_.spawn("mets address", [](ForeignWorkers& self, Job published) -> awaitable<void> {
            (void)co_await self.open_address(published.workspace, path_of_mets(published), published.id);
        }(*this, job));
    }
    tasks_.spawn("give", loop());
    tasks_.spawn("rows", read_rows());
    tasks_.spawn("compare", tick());
    return {};
}

awaitable<void> ForeignWorkers::stop() {
    stopping_ = true;
    book_.wake().notify_all();
    asked_event_.notify_all();
    for (auto& place : places_) place->publisher->stop();
    if (common_) common_->stop();
    tasks_.cancel();
    co_await tasks_.join();
}

// ---- who there is

ForeignWorkers::Place* ForeignWorkers::place_at(std::string_view slot) {
    for (auto& place : places_)
        if (place->slot == slot) return place.get();
    return nullptr;
}

ForeignWorkers::Lane& ForeignWorkers::lane(std::string const& processor) {
    auto& found = lanes_[processor];
    if (!found) found = std::make_unique<Lane>(processor);
    return *found;
}

std::vector<std::string> ForeignWorkers::configured() const {
    std::set<std::string> names;
    for (auto const& [name, settings] : settings_.processors)
        if (settings.kind == "foreign") names.insert(name);
    for (auto const& one : settings_.foreign_workers) names.insert(one.processor);
    return {names.begin(), names.end()};
}

bool ForeignWorkers::knows_already(std::string const& processor) const {
    if (auto found = settings_.processors.find(processor); found != settings_.processors.end()) return found->second.kind == "foreign";
    auto seen = queues_.find(processor);
    return seen != queues_.end() && Clock::now() - seen->second < kQueueKnown;
}

awaitable<bool> ForeignWorkers::knows(std::string processor) {
    auto known = co_await processors({processor});
    co_return std::ranges::binary_search(known, processor);
}

awaitable<std::vector<std::string>> ForeignWorkers::processors(std::vector<std::string> candidates) {
    auto names = configured();
    std::set<std::string> found(names.begin(), names.end());
    std::vector<std::string> unknown;
    auto now = Clock::now();
    for (auto& name : candidates) {
        if (!name.starts_with("ocrd-") || found.contains(name)) continue;
        if (auto managed = settings_.processors.find(name); managed != settings_.processors.end()) continue;
        if (auto seen = queues_.find(name); seen != queues_.end() && now - seen->second < kQueueKnown)
            found.insert(name);
        else
            unknown.push_back(std::move(name));
    }
    auto asked = false;
    if (!unknown.empty() && common_ && common_->connected()) {
        auto there = std::make_shared<std::vector<std::string>>();
        auto look = [there, unknown, topology = topology_](queue::Session& session) -> Result<void> {
            for (auto const& name : unknown) {
                auto state = queue::look_at_ocrd_queue(session, topology, name);
                if (state)
                    there->push_back(name);
                else if (state.error().kind() != ErrorKind::NotFound)
                    return std::unexpected(state.error());
            }
            return {};
        };
        auto looked = co_await common_->with_session(std::move(look), kBroker);
        if (looked) {
            asked = true;
            for (auto const& name : unknown) queues_.erase(name);
            for (auto const& name : *there) {
                queues_[name] = Clock::now();
                found.insert(name);
            }
        }
    }
    if (!asked) // while the broker is away, what was there counts: Jobs wait for it
        for (auto const& name : unknown)
            if (queues_.contains(name)) found.insert(name);
    co_return std::vector<std::string>(found.begin(), found.end());
}

std::vector<std::string> ForeignWorkers::present() const {
    auto names = configured();
    for (auto const& [processor, lane] : lanes_)
        if (lane->consumers > 0) names.push_back(processor);
    return names;
}

Json ForeignWorkers::status() const {
    Json list = Json::array();
    for (auto const& place : places_) {
        Json one{{"slot", place->slot},
                 {"processor", place->processor},
                 {"broker", place->publisher->connected()},
                 {"consumes", place->usable}};
        if (!place->job.empty()) one["job"] = place->job.str();
        list.push_back(std::move(one));
    }
    for (auto const& [processor, lane] : lanes_)
        if (lane->consumers > 0 || !lane->jobs.empty())
            list.push_back(Json{{"processor", processor}, {"consumers", lane->consumers}, {"jobs", lane->jobs.size()}});
    return list;
}

// A Worker that reaches this machine only over the network: then all are told the TCP address.
bool ForeignWorkers::anybody_elsewhere() const {
    return std::ranges::any_of(settings_.foreign_workers, [&](auto const& one) {
        auto boot = boots_.find(one.slot.substr(0, one.slot.find('/')));
        return boot != boots_.end() && !boot->second.empty() && boot->second != boot_id_;
    });
}

void ForeignWorkers::reported(HostReport const& report) {
    boots_[report.host] = report.boot_id;
    for (auto const& unit : report.units) {
        if (unit.kind != UnitKind::ForeignWorker) continue;
        auto* place = place_at(unit.entry);
        if (place == nullptr) continue;
        auto changed = !place->reported || place->pid != unit.pid || place->state != unit.state;
        place->reported = true;
        place->pid = unit.pid;
        place->restarts = unit.restarts;
        place->state = unit.state;
        if (!changed) continue;
        place->usable = false; // looked at again before it is given a Job
        place->looked = {};
        if (auto held = out_.find(place->job); !place->job.empty() && held != out_.end()) {
            auto& given = held->second;
            auto runs = unit.state == UnitState::Ready || unit.state == UnitState::Starting ||
                        unit.state == UnitState::Stopping;
            if (given.pid == 0 && runs) {
                given.pid = unit.pid;
                given.restarts = unit.restarts;
            } else if (!runs || unit.pid != given.pid) {
                place->gone = true;
                place->blame = unit.state != UnitState::Stopped && (unit.restarts != given.restarts || !runs);
                tasks_.spawn("worker gone", doubt(*place));
            }
        }
        book_.wake().notify_all();
    }
}

void ForeignWorkers::started(HostReport const& report) {
    boots_[report.host] = report.boot_id;
    for (auto const& unit : report.units) {
        auto* place = place_at(unit.entry);
        if (place == nullptr || unit.pid == 0) continue;
        place->pid = unit.pid;
        place->looked = {};
        auto held = out_.find(place->job);
        if (place->job.empty() || held == out_.end()) continue;
        auto& given = held->second.pid;
        if (given == 0) given = unit.pid;
        if (given == unit.pid) continue;
        place->gone = place->blame = true; // the one that was given the Job is not the one that runs now
        tasks_.spawn("worker gone", doubt(*place));
    }
    book_.wake().notify_all();
}

std::optional<ForeignWorkers::Consumption> ForeignWorkers::consumption(std::string_view slot) const {
    for (auto const& place : places_) {
        if (place->slot != slot) continue;
        if (!place->known) return std::nullopt;
        return Consumption{place->usable ? 1u : 0u, 1};
    }
    auto const& all = settings_.foreign_workers;
    auto one = std::ranges::find(all, slot, &ForeignWorkerSettings::slot);
    if (one == all.end()) return std::nullopt;
    auto lane = lanes_.find(one->processor);
    if (lane == lanes_.end() || !lane->second->known) return std::nullopt;
    auto sharing = std::ranges::count_if(
        all, [&](auto const& other) { return other.amqp_file.empty() && other.processor == one->processor; });
    return Consumption{lane->second->consumers, static_cast<std::size_t>(sharing)};
}

void ForeignWorkers::away(std::string const& host) {
    for (auto& place : places_)
        if (place->host == host) place->reported = false;
}

void ForeignWorkers::linked(Place* place, queue::LinkEvent const& event) {
    if (stopping_) return;
    if (!event.up) {
        log_.warn("broker.lost", kv(field::kSlot, place == nullptr ? "" : place->slot),
                  kv(field::kError, event.error.message()));
        for (auto& [id, given] : out_)
            if (given.place == place) given.lost_link = given.innocent = true;
        if (place != nullptr)
            place->usable = place->known = false;
        else
            for (auto& [processor, lane] : lanes_) {
                lane->consumers = 0;
                lane->known = false;
            }
        return;
    }
    // Transient queues do not outlive their broker.
    if (place != nullptr) {
        place->looked = {};
        if (!place->job.empty()) tasks_.spawn("doubt", doubt(*place));
    } else {
        queues_.clear();
        for (auto& [processor, lane] : lanes_) {
            lane->looked = {};
            if (!lane->jobs.empty()) tasks_.spawn("doubt", doubt(*lane));
        }
    }
    book_.wake().notify_all();
}

awaitable<void> ForeignWorkers::look_at(Place& place) {
    place.looking = true;
    auto state = std::make_shared<queue::QueueState>();
    auto look = [state, topology = topology_, name = place.processor](queue::Session& session) -> Result<void> {
        auto found = queue::look_at_ocrd_queue(session, topology, name);
        if (!found) return std::unexpected(found.error());
        *state = *found;
        return {};
    };
    auto looked = co_await place.publisher->with_session(std::move(look), kBroker);
    place.usable = looked && state->consumers > 0;
    place.known = looked || looked.error().kind() == ErrorKind::NotFound;
    place.looking = false;
    place.looked = Clock::now();
    book_.wake().notify_all();
}

awaitable<void> ForeignWorkers::look_at(Lane& lane) {
    lane.looking = true;
    auto state = std::make_shared<queue::QueueState>();
    auto look = [state, topology = topology_, name = lane.processor](queue::Session& session) -> Result<void> {
        auto found = queue::look_at_ocrd_queue(session, topology, name);
        if (!found) return std::unexpected(found.error());
        *state = *found;
        return {};
    };
    auto looked = co_await common_->with_session(std::move(look), kBroker);
    lane.consumers = looked ? state->consumers : 0;
    lane.known = looked || looked.error().kind() == ErrorKind::NotFound;
    if (looked) queues_[lane.processor] = Clock::now();
    lane.looking = false;
    lane.looked = Clock::now();
    book_.wake().notify_all();
}

void ForeignWorkers::ended(Job const& job) {
    if (!job.foreign) return;
    free(job.id);
    asked_.erase(job.id);
    if (auto address = addresses_.find(job.workspace);
        address != addresses_.end() && address->second.users.erase(job.id) > 0) {
        mets_api_.release(job.workspace);
        if (address->second.users.empty()) addresses_.erase(address);
    }
    if (job.state == JobState::Cancelled && job.published)
        tasks_.spawn("cancelled row", [](ForeignWorkers& self, JobId id) -> awaitable<void> {
            if (auto set = co_await self.documents_.set_state(id, JobState::Cancelled); !set)
                self.log_.warn("row.not-set", kv(field::kJob, id.str()), kv(field::kError, set.error().message()));
        }(*this, job.id));
}

// ---- mirrors

void ForeignWorkers::mirror(Workflow workflow) {
    if (stopping_) return;
    tasks_.spawn("mirror", [](ForeignWorkers& self, Workflow document) -> awaitable<void> {
        auto id = document.id;
        if (auto put = co_await self.documents_.put_workflow(std::move(document)); !put)
            self.log_.warn("workflow.not-mirrored", kv(field::kWorkflow, id.str()),
                           kv(field::kError, put.error().message()));
    }(*this, std::move(workflow)));
}

void ForeignWorkers::mirror(WorkflowScript script) {
    if (stopping_) return;
    tasks_.spawn("mirror", [](ForeignWorkers& self, WorkflowScript document) -> awaitable<void> {
        auto id = document.id;
        if (auto put = co_await self.documents_.put_script(std::move(document)); !put)
            self.log_.warn("script.not-mirrored", kv(field::kWorkflow, id), kv(field::kError, put.error().message()));
    }(*this, std::move(script)));
}

} // namespace ocrctl::server
