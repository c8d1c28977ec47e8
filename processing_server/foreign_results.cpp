// What became of the Jobs that Workers were given: their rows, and what the broker says of Workers that are gone.
#include "processing_server/foreign_places.hpp"

#include "lib/async/on_thread.hpp"
#include "lib/async/within.hpp"
#include "lib/base/clock.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "processing_server/outcome.hpp"

#include <algorithm>
#include <fcntl.h>
#include <unistd.h>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;

namespace {

constexpr auto kFirstLook = 500ms; // after publishing: RUNNING is seen soon
constexpr auto kTaken = 10s;       // after which a Job of a place should be RUNNING
constexpr auto kPutBack = 500ms;   // within which a broker notices that a Worker has died

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

} // namespace ocrctl::server
