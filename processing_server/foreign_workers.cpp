#include "processing_server/foreign_workers.hpp"

#include "lib/async/on_thread.hpp"
#include "lib/async/within.hpp"
#include "lib/base/clock.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "processing_server/foreign_message.hpp"
#include "processing_server/names.hpp"
#include "processing_server/outcome.hpp"

#include <algorithm>
#include <fcntl.h>
#include <unistd.h>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;

namespace {

constexpr auto kCompare = 5s;      // between looks at all rows of Jobs that are out
constexpr auto kFirstLook = 500ms; // after publishing: RUNNING is seen soon
constexpr auto kTaken = 10s;       // after which a Job of a place should be RUNNING
constexpr auto kQueueKnown = 5s;   // how long a queue that was seen counts as there
constexpr auto kLookAgain = 1s;    // for a Worker, while Jobs wait for one
constexpr auto kPutBack = 500ms;   // within which a broker notices that a Worker has died
constexpr auto kBroker = 5s;       // limit of one question to the broker
// A message in a Worker's own vhost that nobody has taken by then is gone, and so is one whose Worker died later: the
// next Worker does not get it from the broker, it is given by us or not at all.
constexpr auto kExpires = std::chrono::milliseconds(2000);

std::string path_of_mets(Job const& job) {
    return (std::filesystem::path(job.workspace) / job.mets_basename).native();
}

// The last thing that a log says about a failure; "" if nothing. Blocks.
std::string last_error(std::string const& file) {
    Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd) return {};
    auto size = ::lseek(fd.get(), 0, SEEK_END);
    if (size <= 0) return {};
    std::string text(static_cast<std::size_t>(std::min<off_t>(size, 64 << 10)), '\0');
    auto got = ::pread(fd.get(), text.data(), text.size(), size - static_cast<off_t>(text.size()));
    if (got <= 0) return {};
    text.resize(static_cast<std::size_t>(got));
    std::string found;
    for (auto const& line : split(text, '\n')) {
        auto name = line.substr(0, line.find_first_of(": "));
        auto exception = !name.empty() && line.find(": ") != std::string_view::npos &&
                         (name.ends_with("Error") || name.ends_with("Exception") || name.ends_with("Exists"));
        if (exception || line.find(" ERROR ") != std::string_view::npos ||
            line.find(" CRITICAL ") != std::string_view::npos)
            found = line;
    }
    if (found.size() > 500) found.resize(500);
    return found;
}

} // namespace

struct ForeignWorkers::Place {
    std::string slot, processor, host;
    std::string internal_url; // how it reaches the server; empty: as all do
    bool agent = true;        // false: nobody reports of it
    std::unique_ptr<queue::Publisher> publisher;
    JobId job;           // empty: free
    bool usable = false; // a Worker consumes, as far as is known
    bool looking = false, doubting = false, doubted_again = false;
    bool known = false; // the broker answered when it was looked for the last time
    Clock::time_point looked{};
    bool reported = false; // by its host's agent; then the next three say how it is
    int pid = 0, restarts = 0;
    UnitState state = UnitState::Waiting;
    bool gone = false;  // the process that was given the Job has ended, as its agent says
    bool blame = false; // and by itself
};

struct ForeignWorkers::Lane {
    explicit Lane(std::string name) : processor(std::move(name)) {}
    std::string processor;
    std::size_t consumers = 0;
    std::set<JobId> jobs;
    bool looking = false, doubting = false;
    bool known = false; // the broker answered when it was looked at the last time
    Clock::time_point looked{};
    /// As many as are worked on, and one that waits.
    std::size_t capacity() const noexcept { return consumers == 0 ? 0 : consumers + 1; }
};

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

// ---- Jobs go out

OpenJob* ForeignWorkers::out(JobId const& id) {
    if (!out_.contains(id)) return nullptr;
    auto* entry = book_.find(id);
    if (entry == nullptr || entry->ending || entry->deciding) return nullptr;
    return entry->phase == Phase::Publishing || entry->phase == Phase::Published ? entry : nullptr;
}

void ForeignWorkers::free(JobId const& id) {
    auto found = out_.find(id);
    if (found == out_.end()) return;
    if (auto* place = found->second.place; place != nullptr) {
        if (place->job == id) {
            place->job = JobId();
            place->gone = place->blame = false;
        }
    } else {
        for (auto& [processor, lane] : lanes_) lane->jobs.erase(id);
    }
    out_.erase(found);
    book_.wake().notify_all();
}

void ForeignWorkers::publish_again(JobId const& id) {
    auto* entry = out(id);
    free(id);
    if (entry != nullptr) book_.publish_again(*entry);
}

awaitable<void> ForeignWorkers::loop() {
    while (!stopping_) {
        if (pick()) {
            asio::steady_timer timer(io_, kLookAgain);
            using namespace asio::experimental::awaitable_operators;
            co_await (book_.wake().wait() || timer.async_wait(use_awaitable));
        } else {
            co_await book_.wake().wait();
        }
    }
}

// Gives what can be given; true: Jobs wait for a Worker that is not there.
bool ForeignWorkers::pick() {
    if (stopping_) return false;
    auto now = Clock::now();
    auto missing = false;
    std::map<std::pair<std::string, std::string>, std::vector<Given>> picked;
    for (auto const& processor : book_.foreign()) {
        auto const key = foreign_lane(processor);
        auto take = [&](Place* place) {
            auto id = book_.next(key);
            OCRCTL_CHECK(id.has_value());
            Out given;
            given.place = place;
            if (place != nullptr) {
                place->job = *id;
                given.pid = place->reported || !place->agent ? place->pid : 0;
                given.restarts = place->restarts;
            } else {
                lane(processor).jobs.insert(*id);
            }
            out_[*id] = given;
            auto const& job = book_.find(*id)->job;
            picked[{job.workspace, job.mets_basename}].push_back(Given{*id, place});
        };
        auto supervised = false;
        for (auto& place : places_) {
            if (place->processor != processor) continue;
            supervised = true;
            if (book_.ready(key) == 0 || !place->job.empty() || place->doubting) continue;
            // Without an agent nobody tells that a Worker ended: it is looked for each time.
            if (place->usable && (place->reported || now - place->looked < kLookAgain)) {
                take(place.get());
            } else if (!place->looking && now - place->looked >= kLookAgain) {
                tasks_.spawn("look for a Worker", look_at(*place));
            } else {
                missing = true;
            }
            missing |= !place->usable;
        }
        auto& common = lane(processor);
        while (book_.ready(key) > 0 && common.jobs.size() < common.capacity()) take(nullptr);
        if (book_.ready(key) > 0) {
            if (!common.looking && now - common.looked >= (supervised ? kCompare : std::chrono::seconds(kLookAgain)))
                tasks_.spawn("look for Workers", look_at(common));
            missing |= !supervised;
        }
    }
    for (auto& [where, given] : picked)
        tasks_.spawn("give", give(workspaces_.open(where.first, where.second), std::move(given)));
    return missing;
}

awaitable<void> ForeignWorkers::again_after(JobId id, std::chrono::milliseconds wait) {
    co_await pause(wait);
    if (auto* entry = book_.find(id)) book_.again(*entry);
}

void ForeignWorkers::put_off(std::vector<JobId> const& ids, std::string_view what, Error const& problem) {
    log_.warn("job.not-given", kv(field::kCount, ids.size()), kv(field::kReason, what),
              kv(field::kError, problem.message()));
    for (auto const& id : ids) {
        auto* entry = out(id);
        free(id);
        if (entry == nullptr) continue;
        book_.backing_off(*entry);
        tasks_.spawn("again", again_after(id, 1000ms));
    }
}

awaitable<bool> ForeignWorkers::open_address(std::string folder, std::string path_to_mets, JobId user) {
    auto url = co_await mets_api_.address_for(folder, anybody_elsewhere());
    if (!url) {
        log_.error("mets-api.unavailable", kv(field::kWorkspace, folder), kv(field::kError, url.error().message()));
        co_return false;
    }
    auto& address = addresses_[folder];
    if (book_.find(user) == nullptr || !address.users.insert(user).second)
        mets_api_.release(folder); // ended meanwhile, or has it already
    if (address.url != *url) {
        auto put = co_await documents_.put_workspace(std::move(path_to_mets), *url);
        if (!put) {
            log_.warn("workspace.not-mirrored", kv(field::kWorkspace, folder),
                      kv(field::kError, put.error().message()));
            co_return false;
        }
        if (auto found = addresses_.find(folder); found != addresses_.end()) found->second.url = *url;
    }
    co_return true;
}

awaitable<void> ForeignWorkers::give(std::shared_ptr<Workspace> workspace, std::vector<Given> given) {
    struct Work {
        Given given;
        Job job;
        std::string page_id;
    };
    std::vector<Work> all;
    std::vector<JobId> ids;
    for (auto& one : given)
        if (auto* entry = out(one.id)) {
            all.push_back(Work{one, entry->job, {}});
            ids.push_back(one.id);
        } else
            free(one.id);
    // 1. What is left to do. Inputs are the Worker's business: it also fetches remote ones.
    auto look = [&all](mets::Mets& mets) -> Result<std::vector<Result<std::vector<std::string>>>> {
        std::vector<Result<std::vector<std::string>>> pages;
        for (auto const& work : all) pages.push_back(pages_to_do(mets, work.job));
        return pages;
    };
    auto looked = co_await workspace->with(look);
    if (!looked && (looked.error().kind() == ErrorKind::Unavailable || looked.error().kind() == ErrorKind::Timeout)) {
        put_off(ids, "the METS cannot be read", looked.error());
        co_return;
    }
    std::vector<Ending> endings;
    std::vector<Work> left;
    store::Batch batch;
    for (std::size_t i = 0; i < all.size(); ++i) {
        auto& work = all[i];
        auto* entry = out(work.given.id);
        if (entry == nullptr) {
            free(work.given.id); // cancelled
            continue;
        }
        auto pages =
            looked ? std::move((*looked)[i]) : Result<std::vector<std::string>>(std::unexpected(looked.error()));
        if (!pages || pages->empty()) {
            free(work.given.id);
            endings.push_back(pages ? Ending{work.given.id, JobState::Success, ""}
                                    : Ending{work.given.id, JobState::Failed, pages.error().message()});
            continue;
        }
        work.page_id = *pages == work.job.pages ? work.job.page_id.value_or("") : join(*pages, ",");
        auto& job = entry->job;
        job.published = true; // perhaps, from now on
        job.slot = Slot(work.given.place == nullptr ? "" : work.given.place->slot);
        job.worker_pid = out_[work.given.id].pid;
        work.job = job;
        auto row = job;
        row.state = JobState::Queued;
        batch.update(row);
        left.push_back(std::move(work));
    }
    if (!endings.empty()) tasks_.spawn("end", book_.end(std::move(endings), {}));
    if (left.empty()) co_return;
    ids.clear();
    for (auto const& work : left) ids.push_back(work.given.id);

    // 2. Ours, then what the Worker reads.
    if (auto written = co_await store_.write(std::move(batch)); !written) {
        put_off(ids, "the Store cannot be written", written.error());
        co_return;
    }
    crash_point("server.foreign-after-store");
    std::vector<Job> rows;
    for (auto const& work : left) {
        auto path = path_of_mets(work.job);
        if (!co_await open_address(work.job.workspace, path, work.given.id)) {
            put_off(ids, "the workspace cannot be opened for Workers", Error(ErrorKind::Unavailable, "see above"));
            co_return;
        }
        auto row = work.job;
        row.state = JobState::Queued;
        row.path_to_mets = std::move(path);
        row.page_id = work.page_id.empty() ? std::nullopt : std::optional(work.page_id);
        row.internal_callback_url = url_for(work.given.place) + "/result_callback";
        rows.push_back(std::move(row));
    }
    auto put = co_await documents_.put_jobs(rows);
    if (!put && put.error().kind() == ErrorKind::Invalid) { // one of them can never be a row: which?
        put = {};
        std::vector<Ending> refused;
        for (auto& row : rows) {
            auto id = row.id;
            auto alone = co_await documents_.put_jobs({std::move(row)});
            if (alone) continue;
            if (alone.error().kind() != ErrorKind::Invalid) {
                put = alone;
                break;
            }
            free(id);
            refused.push_back(Ending{id, JobState::Failed, alone.error().message()});
        }
        if (!refused.empty()) tasks_.spawn("end", book_.end(std::move(refused), {}));
    }
    if (!put) {
        put_off(ids, "MongoDB cannot be written", put.error());
        co_return;
    }
    crash_point("server.foreign-after-mirror");

    // 3. Out.
    std::vector<JobId> common_ids;
    std::vector<queue::Message> common_messages;
    for (auto const& work : left) {
        auto const& id = work.given.id;
        if (out(id) == nullptr) {
            free(id); // cancelled meanwhile
            continue;
        }
        out_[id].mirrored = true;
        out_[id].since = Clock::now();
        queue::Message message{.queue = work.job.target.name,
                               .body = foreign_message(work.job, path_of_mets(work.job), work.page_id,
                                                       url_for(work.given.place), now_millis()),
                               .persistent = false,
                               .exchange = topology_.exchange};
        if (work.given.place == nullptr) {
            common_ids.push_back(id);
            common_messages.push_back(std::move(message));
        } else {
            message.expires_after = kExpires;
            std::vector<queue::Message> messages;
            messages.push_back(std::move(message));
            tasks_.spawn("publish", send(*work.given.place->publisher, {id}, std::move(messages)));
        }
    }
    if (!common_ids.empty()) tasks_.spawn("publish", send(*common_, std::move(common_ids), std::move(common_messages)));
}

awaitable<void> ForeignWorkers::send(queue::Publisher& publisher, std::vector<JobId> ids,
                                     std::vector<queue::Message> messages) {
    auto sent = co_await publisher.publish_all(std::move(messages), 10s);
    if (stopping_) co_return;
    crash_point("server.foreign-after-publish");
    for (std::size_t i = 0; i < ids.size(); ++i) {
        auto* entry = out(ids[i]); // its callback may have come already
        if (entry == nullptr || entry->phase != Phase::Publishing) continue;
        auto* place = out_[ids[i]].place;
        if (sent[i]) {
            book_.published(*entry);
        } else if (sent[i].error().kind() == ErrorKind::NotFound) { // the queue went
            log_.info("queue.gone", kv(field::kQueue, entry->job.target.name),
                      kv(field::kSlot, place == nullptr ? "" : place->slot));
            if (place != nullptr)
                place->usable = false;
            else
                lane(entry->job.target.name).consumers = 0;
            queues_.erase(entry->job.target.name);
            publish_again(ids[i]);
        } else { // arrived or not: unknown
            log_.warn("publish.unconfirmed", kv(field::kJob, ids[i].str()),
                      kv(field::kError, sent[i].error().message()));
            book_.published(*entry);
            if (place != nullptr)
                tasks_.spawn("doubt", doubt(*place));
            else
                tasks_.spawn("doubt", doubt(lane(entry->job.target.name)));
        }
    }
    tasks_.spawn("look soon", look_soon(std::move(ids)));
}

// ---- Jobs come back

void ForeignWorkers::called_back(JobId const& id) {
    asked_.insert(id);
    asked_event_.notify_all();
}

awaitable<void> ForeignWorkers::look_soon(std::vector<JobId> ids) {
    if (!co_await pause(kFirstLook)) co_return;
    for (auto const& id : ids)
        if (out(id) != nullptr) called_back(id);
}

awaitable<void> ForeignWorkers::tick() {
    for (auto compared = Clock::now(); !stopping_ && co_await pause(kLookAgain);) {
        auto now = Clock::now();
        // Nobody but the broker tells whether a Worker without an agent lives: one that is started again must not be
        // taken for it.
        for (auto const& place : places_) {
            if (!place->job.empty() && !place->reported) tasks_.spawn("doubt", doubt(*place));
            if (!place->agent && !place->looking && now - place->looked >= kCompare)
                tasks_.spawn("look for a Worker", look_at(*place)); // for the status
        }
        for (auto const& one : settings_.foreign_workers) {
            if (one.agent || !one.amqp_file.empty()) continue;
            auto& shared = lane(one.processor);
            if (!shared.looking && now - shared.looked >= kCompare) tasks_.spawn("look for Workers", look_at(shared));
        }
        for (auto& [processor, lane] : lanes_)
            if (!lane->jobs.empty()) tasks_.spawn("guard", guard(*lane));
        if (now - compared < kCompare) continue;
        compared = now;
        std::set<Lane*> doubtful;
        for (auto const& [id, given] : out_) {
            if (!given.mirrored) continue;
            asked_.insert(id);
            auto const* entry = book_.find(id);
            if (entry == nullptr || entry->phase != Phase::Published) continue;
            if (given.place != nullptr) {
                if ((!entry->running && now - given.since > kTaken) || given.lost_link || given.place->gone)
                    tasks_.spawn("doubt", doubt(*given.place));
            } else if (!entry->running && (now - given.since > 3 * kTaken || given.lost_link || given.missing > 0)) {
                doubtful.insert(&lane(entry->job.target.name));
            }
        }
        for (auto* one : doubtful) tasks_.spawn("doubt", doubt(*one));
        if (!asked_.empty()) asked_event_.notify_all();
    }
}

awaitable<void> ForeignWorkers::read_rows() {
    while (!stopping_) {
        if (asked_.empty()) {
            co_await asked_event_.wait();
            continue;
        }
        std::vector<JobId> ids;
        for (auto const& id : asked_)
            if (auto found = out_.find(id); found != out_.end() && found->second.mirrored) ids.push_back(id);
        asked_.clear();
        if (ids.empty()) continue;
        auto rows = co_await documents_.jobs(ids);
        if (!rows) {
            for (auto& [id, given] : out_) given.innocent = true;
            if (trouble_ != rows.error().message())
                log_.warn("rows.unreadable", kv(field::kError, rows.error().message()));
            trouble_ = rows.error().message();
            asked_.insert(ids.begin(), ids.end());
            if (!co_await pause(1000ms)) break;
            continue;
        }
        if (!trouble_.empty()) log_.info("rows.readable");
        trouble_.clear();
        for (auto const& row : *rows) seen(row);
    }
}

// Only forward: RUNNING after QUEUED, an end after both.
void ForeignWorkers::seen(store::OcrdJobRow const& row) {
    auto* entry = out(row.id);
    if (entry == nullptr || !out_[row.id].mirrored) return;
    auto& job = entry->job;
    // A Worker names its own log; anything else is not shown to clients.
    if (!row.log_file.empty() && std::filesystem::path(row.log_file).filename() == row.id.str() + ".log")
        job.log_file = row.log_file;
    if (row.state == JobState::Running) {
        auto& given = out_[row.id];
        // Begun anew: its Worker died, the broker gave it to the next one.
        if (given.place == nullptr && given.begun != 0 && given.begun != row.started) {
            if (!given.requeued && !given.innocent) ++job.engine_deaths;
            given.requeued = false;
        }
        if (given.requeued) return; // what the dead one wrote
        given.begun = row.started;
        if (entry->phase == Phase::Published && !entry->running) book_.set_running(*entry, true, job.slot.str());
        return;
    }
    if (row.state != JobState::Success && row.state != JobState::Failed) return;
    if (row.state == JobState::Failed && out_[row.id].over_restart) {
        // Its METS server was away with us, which a Worker takes for a failure.
        log_.info("job.again", kv(field::kJob, row.id.str()),
                  kv(field::kReason, "it failed over a restart of the server"));
        entry->deciding = true;
        tasks_.spawn("again", another_attempt(row.id, job.engine_deaths));
        return;
    }
    if (job.started == 0) job.started = now_millis() - std::clamp<Millis>(row.ended - row.started, 0, 86'400'000);
    free(row.id);
    if (row.state == JobState::Success) {
        // Its files are in the METS in memory, by the METS API, or on disk: dependants may go.
        book_.committed(*entry);
        book_.applied(row.id);
        tasks_.spawn("done", end_well(row.id));
    } else {
        entry->deciding = true;
        tasks_.spawn("failed", end_failed(row.id));
    }
}

// SUCCESS once the METS is on disk.
awaitable<void> ForeignWorkers::end_well(JobId id) {
    auto const* entry = book_.find(id);
    if (entry == nullptr) co_return;
    auto const folder = entry->job.workspace, basename = entry->job.mets_basename;
    Ending ending{id, JobState::Success, ""};
    for (auto wait = 100ms;; wait = std::min(wait * 2, 10'000ms)) {
        auto saved = co_await mets_api_.save(folder, basename);
        if (saved) break;
        auto kind = saved.error().kind();
        if (kind != ErrorKind::Unavailable && kind != ErrorKind::Timeout && kind != ErrorKind::Denied) {
            ending = Ending{id, JobState::Failed, saved.error().during("record the result").message()};
            break;
        }
        if (auto text = saved.error().during("save the METS").message(); problems_[folder] != text) {
            log_.error("workspace.stuck", kv(field::kWorkspace, folder), kv(field::kError, text));
            problems_[folder] = std::move(text);
        }
        if (stopping_ || !co_await pause(wait)) co_return; // its row says SUCCESS: the next start goes on
    }
    if (problems_.erase(folder) > 0) log_.info("workspace.recovered", kv(field::kWorkspace, folder));
    std::vector<Ending> endings;
    endings.push_back(std::move(ending));
    co_await book_.end(std::move(endings), {});
}

awaitable<void> ForeignWorkers::end_failed(JobId id) {
    auto* entry = book_.find(id);
    if (entry == nullptr) co_return;
    auto file = entry->job.log_file;
    auto processor = entry->job.target.name;
    auto text = co_await on_thread(pool_, [&file] { return file.empty() ? std::string() : last_error(file); });
    auto reason = text.empty()
                      ? fmt::format("{} failed{}", processor, file.empty() ? std::string() : "; its log is " + file)
                      : fmt::format("{} failed, its log says: {}", processor, text);
    std::vector<Ending> endings{Ending{id, JobState::Failed, std::move(reason)}};
    co_await book_.end(std::move(endings), {});
}

awaitable<std::optional<store::OcrdJobRow>> ForeignWorkers::row_of(JobId id) {
    while (!stopping_) {
        auto rows = co_await documents_.jobs({id});
        if (rows) {
            if (rows->empty()) co_return std::nullopt;
            co_return std::move(rows->front());
        }
        for (auto& [given_id, given] : out_) given.innocent = true;
        if (!co_await pause(1000ms)) break;
    }
    co_return std::nullopt;
}

// What became of the Job of this place? Its Worker may be gone, its message lost.
awaitable<void> ForeignWorkers::doubt(Place& place) {
    if (place.doubting) {
        place.doubted_again = true;
        co_return;
    }
    place.doubting = true;
    do {
        place.doubted_again = false;
        auto id = place.job;
        if (id.empty() || out(id) == nullptr || !out_[id].mirrored) break;
        auto state = std::make_shared<queue::QueueState>();
        auto look = [state, name = place.processor](queue::Session& session) -> Result<void> {
            auto found = session.state(name);
            if (found)
                *state = *found;
            else if (found.error().kind() != ErrorKind::NotFound)
                return std::unexpected(found.error());
            return {};
        };
        if (auto looked = co_await place.publisher->with_session(look, kBroker); !looked)
            break; // the next connection asks again
        auto row = co_await row_of(id);
        if (row) seen(*row);
        if (stopping_ || out(id) == nullptr) continue;
        auto lost_link = out_[id].lost_link;
        // After a broker's loss a Worker works on without a connection, and exits in the end: whoever consumes now is
        // another one.
        auto gone = place.gone || (!place.reported && (lost_link ? state->consumers > 0 : state->consumers == 0));
        auto running = row && row->state == JobState::Running;
        if (!gone && (running || (!lost_link && Clock::now() - out_[id].since < kTaken))) break;
        // An agent is quicker than the broker, which puts back what the dead one held when it removes its consumer.
        for (auto until = Clock::now() + kPutBack; place.gone && state->consumers > 0 && Clock::now() < until;)
            if (!co_await pause(20ms) || !co_await place.publisher->with_session(look, kBroker)) break;
        auto purged = std::make_shared<std::uint32_t>(0);
        auto purge = [purged, name = place.processor](queue::Session& session) -> Result<void> {
            auto count = session.purge(name);
            if (count)
                *purged = *count;
            else if (count.error().kind() != ErrorKind::NotFound)
                return std::unexpected(count.error());
            return {};
        };
        if (auto done = co_await place.publisher->with_session(std::move(purge), kBroker); !done) break;
        if (!running) { // it may have been taken between the two
            row = co_await row_of(id);
            if (row) seen(*row);
            running = row && row->state == JobState::Running;
        }
        if (stopping_ || out(id) == nullptr) continue;
        if (running && !gone) break;
        if (state->consumers == 0) place.usable = false;
        if (gone && (running || *purged == 0) && !(lost_link && !running)) {
            co_await died(id, place.slot, (place.blame || !place.reported) && !out_[id].innocent);
        } else {
            log_.info("job.published-again", kv(field::kJob, id.str()), kv(field::kSlot, place.slot));
            publish_again(id);
        }
    } while (place.doubted_again && !stopping_);
    place.doubting = false;
    book_.wake().notify_all();
}

awaitable<void> ForeignWorkers::died(JobId id, std::string who, bool counts) {
    auto* entry = out(id);
    if (entry == nullptr) co_return;
    auto deaths = entry->job.engine_deaths + (counts ? 1 : 0);
    log_.warn("worker.died", kv(field::kJob, id.str()), kv(field::kSlot, who), kv(field::kCount, deaths));
    if (deaths >= kMaxEngineDeaths) {
        entry->job.engine_deaths = deaths;
        entry->job.quarantined = true;
        free(id);
        if (auto set = co_await documents_.set_state(id, JobState::Failed); !set)
            log_.warn("row.not-set", kv(field::kJob, id.str()), kv(field::kError, set.error().message()));
        std::vector<Ending> endings{
            Ending{id, JobState::Failed,
                   fmt::format("quarantined: {} Workers ended while they worked on this Job, the last one was {}",
                               deaths, who)}};
        co_await book_.end(std::move(endings), {});
        co_return;
    }
    entry->deciding = true; // no cancel in between
    co_await another_attempt(id, deaths);
}

// Ready again, with a higher attempt. The Job is `deciding` meanwhile.
awaitable<void> ForeignWorkers::another_attempt(JobId id, int deaths) {
    auto* entry = book_.find(id);
    if (entry == nullptr) co_return;
    auto job = entry->job;
    job.state = JobState::Queued;
    job.engine_deaths = deaths;
    ++job.attempt;
    job.published = false;
    job.worker_pid = 0;
    for (;;) {
        store::Batch batch;
        batch.update(job);
        if (auto written = co_await store_.write(std::move(batch))) break;
        if (stopping_ || !co_await pause(1000ms)) co_return;
    }
    entry = book_.find(id);
    if (entry == nullptr) co_return;
    entry->deciding = false;
    entry->job.engine_deaths = deaths;
    entry->job.attempt = job.attempt;
    entry->job.worker_pid = 0;
    free(id);
    if (entry->ending) co_return;
    book_.backing_off(*entry);
    book_.again(*entry);
}

// Which Jobs of the common vhost are neither in the queue nor with a Worker?
awaitable<void> ForeignWorkers::doubt(Lane& lane) {
    if (lane.doubting) co_return;
    lane.doubting = true;
    auto waiting = std::make_shared<std::set<JobId>>();
    auto look = [waiting, name = lane.processor](queue::Session& session) -> Result<void> {
        auto note = [&](queue::Delivery const& delivery) {
            if (auto message = parse_json(delivery.body); message && message->is_object())
                waiting->insert(JobId(message->value("job_id", "")));
            return false;
        };
        auto seen = session.sift(name, note);
        if (!seen && seen.error().kind() != ErrorKind::NotFound) return std::unexpected(seen.error());
        return {};
    };
    auto looked = co_await common_->with_session(std::move(look), kBroker);
    std::vector<JobId> ids;
    for (auto const& id : lane.jobs)
        if (auto given = out_.find(id); given != out_.end() && given->second.mirrored) ids.push_back(id);
    if (looked && !ids.empty() && !stopping_) {
        auto rows = co_await documents_.jobs(ids);
        if (rows) {
            for (auto const& row : *rows) seen(row);
            for (auto const& id : ids) {
                auto* entry = out(id);
                if (entry == nullptr || entry->running || entry->phase != Phase::Published) continue;
                auto& given = out_[id];
                if (waiting->contains(id)) {
                    given.missing = 0;
                    given.lost_link = false;
                } else if (++given.missing >= 2) { // at the first time a Worker may just have taken it
                    log_.info("job.published-again", kv(field::kJob, id.str()), kv(field::kQueue, lane.processor));
                    publish_again(id);
                }
            }
        }
    }
    lane.doubting = false;
}

// A Job that is in the queue although a Worker began with it: that one has died. The second time the next Worker is
// spared.
awaitable<void> ForeignWorkers::guard(Lane& lane) {
    if (lane.doubting) co_return;
    struct Found {
        std::map<JobId, bool> running; // true: once more is too often
        std::set<JobId> back, poison;
    };
    auto found = std::make_shared<Found>();
    std::size_t waiting = 0;
    for (auto const& id : lane.jobs) {
        auto* entry = out(id);
        if (entry == nullptr || !entry->running) {
            ++waiting;
            continue;
        }
        auto const& given = out_[id];
        found->running[id] = !given.requeued && !given.innocent && entry->job.engine_deaths + 1 >= kMaxEngineDeaths;
    }
    if (found->running.empty()) co_return;
    lane.doubting = true;
    auto look = [found, waiting, name = lane.processor](queue::Session& session) -> Result<void> {
        auto state = session.state(name);
        if (!state) return std::unexpected(state.error());
        if (state->messages == 0 || (state->messages <= waiting && state->consumers > 0)) return {};
        auto note = [&](queue::Delivery const& delivery) {
            if (!delivery.redelivered) return false;
            auto message = parse_json(delivery.body);
            if (!message || !message->is_object()) return false;
            auto one = found->running.find(JobId(message->value("job_id", "")));
            if (one == found->running.end()) return false;
            (one->second ? found->poison : found->back).insert(one->first);
            return one->second;
        };
        auto sifted = session.sift(name, note);
        return sifted ? Result<void>() : fail(sifted.error());
    };
    auto looked = co_await common_->with_session(std::move(look), kBroker);
    lane.doubting = false;
    if (!looked) co_return;
    for (auto const& id : found->back) {
        auto* entry = out(id);
        if (entry == nullptr || out_[id].requeued) continue;
        out_[id].requeued = true;
        if (!out_[id].innocent) ++entry->job.engine_deaths;
        log_.warn("worker.died", kv(field::kJob, id.str()), kv(field::kQueue, lane.processor),
                  kv(field::kCount, entry->job.engine_deaths));
        book_.set_running(*entry, false, "");
    }
    for (auto const& id : found->poison) co_await died(id, lane.processor + " on the common vhost", true);
}

awaitable<bool> ForeignWorkers::take_back(JobId id) {
    auto until = Clock::now() + kBroker;
    auto on_its_way = [&] {
        auto const* entry = book_.find(id);
        return entry != nullptr && entry->phase == Phase::Publishing && out_.contains(id) && out_[id].mirrored;
    };
    while (on_its_way() && Clock::now() < until)
        if (!co_await pause(5ms)) co_return false;
    auto found = out_.find(id);
    if (found == out_.end() || !found->second.mirrored) co_return true; // in no queue; give() sees that it has ended
    auto* place = found->second.place;
    auto lost = place == nullptr && found->second.lost_link; // nobody can tell any more whether its Worker lives
    auto* entry = out(id);
    if (entry == nullptr) co_return false;
    auto processor = entry->job.target.name;
    auto taken = std::make_shared<bool>(false);
    auto take = [taken, processor, id, own = place != nullptr](queue::Session& session) -> Result<void> {
        if (own) {
            auto count = session.purge(processor);
            if (count) *taken = *count > 0;
            return {};
        }
        auto mine = [&](queue::Delivery const& delivery) {
            auto message = parse_json(delivery.body);
            return message && message->is_object() && message->value("job_id", "") == id.str();
        };
        auto sifted = session.sift(processor, mine);
        *taken = sifted && !sifted->empty();
        return {};
    };
    auto& publisher = place != nullptr ? *place->publisher : *common_;
    (void)co_await publisher.with_session(std::move(take), kBroker);
    co_return out(id) != nullptr && (*taken || lost);
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
