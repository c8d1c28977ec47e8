// Jobs go out to Workers, and are taken back.
#include "processing_server/foreign_places.hpp"

#include "lib/async/within.hpp"
#include "lib/base/clock.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "processing_server/foreign_message.hpp"
#include "processing_server/names.hpp"
#include "processing_server/outcome.hpp"

#include <algorithm>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;

namespace {

// A message in a Worker's own vhost that nobody has taken by then is gone, and so is one whose Worker died later: the
// next Worker does not get it from the broker, it is given by us or not at all.
constexpr auto kExpires = std::chrono::milliseconds(2000);

} // namespace

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

} // namespace ocrctl::server
