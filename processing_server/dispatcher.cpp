#include "processing_server/dispatcher.hpp"

#include "lib/async/within.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "processing_server/names.hpp"
#include "processing_server/outcome.hpp"

#include <algorithm>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;

struct Dispatcher::Resolved {
    JobId id;
    queue::Message message;                          // to be published, unless there is nothing to do or an error
    bool nothing_to_do = false;
    std::map<std::string, std::string> pages_failed; // inputs that cannot be used
    std::optional<Error> error;                      // of the whole Job
};

namespace {

// On a pool thread: what a Worker needs to know, from the METS.
struct Inputs {
    std::vector<PageInput> pages;
    std::map<std::string, std::string> failed;
};

Result<Inputs> inputs_of(mets::Mets const& mets, Job const& job) {
    auto pages = pages_to_do(mets, job);
    if (!pages) return std::unexpected(pages.error());
    Inputs result;
    if (pages->empty()) return result;
    auto found = mets::inputs_for(mets, *pages, job.input_groups, job.output_groups);
    if (!found) return std::unexpected(found.error());
    result.pages = std::move(found->pages);
    for (auto& problem : found->failed) result.failed.emplace(std::move(problem.page_id), std::move(problem.reason));
    return result;
}

} // namespace

Dispatcher::Dispatcher(asio::any_io_executor io, Settings const& settings, store::Store& store, JobBook& book,
                       Workspaces& workspaces, queue::BrokerUrl url)
    : io_(io), log_("dispatcher"), settings_(settings), store_(store), book_(book), workspaces_(workspaces),
      url_(std::move(url)), topology_(ocrd_topology(settings)), tasks_(io, "dispatcher") {}

Dispatcher::~Dispatcher() { *alive_ = false; }

void Dispatcher::start(std::string epoch) {
    epoch_ = std::move(epoch);
    queue::LinkOptions options;
    options.name = "ocrctl server " + settings_.name;
    options.on_connected = [name = settings_.name, processors = processors()](queue::Session& session) -> Result<void> {
        for (auto const& processor : processors)
            if (auto declared = queue::declare_work_queue(session, work_queue(name, processor)); !declared) return std::unexpected(declared.error());
        for (int i = 0; i < kResultQueues; ++i)
            if (auto declared = session.declare_quorum(result_queue(name, i)); !declared) return std::unexpected(declared.error());
        return {};
    };
    options.on_link = [this, alive = alive_](queue::LinkEvent event) {
        if (*alive) on_link(event);
    };
    publisher_ = std::make_unique<queue::Publisher>(io_, url_, std::move(options));
    tasks_.spawn("dispatch", loop());
}

awaitable<void> Dispatcher::stop() {
    stopping_ = true;
    book_.wake().notify_all();
    if (publisher_) publisher_->stop();
    tasks_.cancel();
    co_await tasks_.join();
}

void Dispatcher::on_link(queue::LinkEvent const& event) {
    problem_ = event.up ? Error() : event.error;
    if (!event.up) {
        epoch_known_ = false;
        log_.warn("broker.lost", kv(field::kAddress, url_.shown()), kv(field::kError, event.error.message()));
        return;
    }
    ++link_;
    log_.info("broker.connected", kv(field::kAddress, url_.shown()));
    if (!checking_ && !stopping_) tasks_.spawn("epoch", check_epoch());
}

awaitable<void> Dispatcher::check_epoch() {
    checking_ = true;
    auto wait = std::chrono::milliseconds(100);
    while (!stopping_) {
        auto link = link_;
        auto found = std::make_shared<std::string>();
        auto queue = epoch_queue(settings_.name);
        auto look = [found, queue](queue::Session& session) -> Result<void> {
            auto declared = session.declare_classic(queue); // 3.10: basic.get from a quorum queue can hang after a broker kill
            if (!declared) return std::unexpected(declared.error());
            auto first = session.peek(queue);
            if (!first) return std::unexpected(first.error());
            if (*first) *found = (*first)->body;
            return {};
        };
        auto done = co_await publisher_->with_session(std::move(look));
        if (done && (found->empty() || *found != epoch_)) {
            // The broker has lost its data, or is another one. First the Store, then the new mark: a crash between the two
            // only repeats this.
            auto fresh = new_uuid();
            store::Batch batch;
            std::vector<JobId> lost;
            for (auto const& [id, entry] : book_.all())
                if (entry->phase == Phase::Published && !entry->ending && !entry->deciding) lost.push_back(id);
            std::ranges::sort(lost);
            for (auto const& id : lost) {
                auto job = book_.find(id)->job;
                job.published = false;
                batch.update(job);
            }
            batch.set("epoch", fresh);
            if (!epoch_.empty() || !lost.empty()) log_.warn("broker.empty", kv("published_again", lost.size()));
            auto written = co_await store_.write(std::move(batch));
            if (!written) done = std::unexpected(written.error());
            else {
                auto mark = [queue, fresh](queue::Session& session) -> Result<void> {
                    auto purged = session.purge(queue);
                    if (!purged) return std::unexpected(purged.error());
                    return session.publish(queue::Message{.queue = queue, .body = fresh});
                };
                done = co_await publisher_->with_session(std::move(mark));
                epoch_ = fresh;
                std::ranges::reverse(lost); // each goes before the others of its workspace: the oldest comes out first
                for (auto const& id : lost)
                    if (auto* entry = book_.find(id)) book_.publish_again(*entry);
            }
        }
        if (done && link == link_) break;
        if (!done) {
            log_.warn("epoch.unknown", kv(field::kError, done.error().message()));
            if (!co_await pause(wait)) break;
            wait = std::min(wait * 2, std::chrono::milliseconds(5000));
        }
    }
    checking_ = false;
    epoch_known_ = !stopping_;
    book_.wake().notify_all();
}

std::size_t Dispatcher::window(std::string const& target) const {
    WindowPolicy policy;
    if (auto configured = settings_.processors.find(target); configured != settings_.processors.end())
        policy.configured_slots = static_cast<std::size_t>(std::max(1, configured->second.count));
    if (auto ready = ready_.find(target); ready != ready_.end()) policy.ready_slots = ready->second;
    if (auto measured = seconds_.find(target); measured != seconds_.end()) policy.seconds_per_job = measured->second;
    return policy.size();
}

awaitable<void> Dispatcher::loop() {
    while (!stopping_) {
        std::map<std::pair<std::string, std::string>, std::vector<JobId>> picked;
        if (epoch_known_)
            for (auto const& target : book_.targets())
                for (auto limit = window(target); book_.in_broker(target) < limit;) {
                    auto id = book_.next(target);
                    if (!id) break;
                    auto const& job = book_.find(*id)->job;
                    picked[{job.workspace, job.mets_basename}].push_back(*id);
                }
        if (picked.empty()) {
            co_await book_.wake().wait();
            continue;
        }
        for (auto& [key, ids] : picked) tasks_.spawn("publish", publish(workspaces_.open(key.first, key.second), std::move(ids)));
    }
}

awaitable<void> Dispatcher::try_again_later(JobId id, std::chrono::milliseconds wait) {
    co_await pause(wait);
    if (auto* entry = book_.find(id)) book_.again(*entry);
}

awaitable<void> Dispatcher::publish(std::shared_ptr<Workspace> workspace, std::vector<JobId> ids) {
    std::vector<Job> jobs;
    for (auto const& id : ids)
        if (auto const* entry = book_.find(id); entry != nullptr && entry->phase == Phase::Publishing) jobs.push_back(entry->job);
    auto resolve = [jobs, name = settings_.name](mets::Mets& mets) -> Result<std::vector<Resolved>> {
        std::vector<Resolved> all;
        for (auto const& job : jobs) {
            Resolved one;
            one.id = job.id;
            auto inputs = inputs_of(mets, job);
            if (!inputs) one.error = inputs.error();
            else {
                one.pages_failed = std::move(inputs->failed);
                one.nothing_to_do = inputs->pages.empty();
                if (!one.nothing_to_do) {
                    TaskMessage message;
                    message.target = job.target;
                    message.reply_to = result_queue(name, result_index(job.workspace));
                    Task task;
                    task.job = job.id;
                    task.attempt = job.attempt;
                    task.workspace = job.workspace;
                    task.mets_basename = job.mets_basename;
                    task.processor = job.target.name;
                    task.input_groups = job.input_groups;
                    task.output_groups = job.output_groups;
                    task.pages = std::move(inputs->pages);
                    task.parameters = job.parameters;
                    message.tasks.push_back(std::move(task));
                    one.message.queue = work_queue(name, job.target.name);
                    one.message.message_id = fmt::format("{}/{}", job.id.str(), job.attempt);
                    one.message.body = dump(Json(message));
                }
            }
            all.push_back(std::move(one));
        }
        return all;
    };
    auto resolved = co_await workspace->with(std::move(resolve));
    std::vector<Resolved> all;
    if (resolved) all = std::move(*resolved);
    else
        for (auto const& job : jobs) {
            Resolved one;
            one.id = job.id;
            one.error = resolved.error();
            all.push_back(std::move(one));
        }

    std::vector<Ending> endings;
    std::vector<queue::Message> messages;
    std::vector<JobId> sent;
    for (auto& one : all) {
        auto* entry = book_.find(one.id);
        if (entry == nullptr || entry->ending || entry->phase != Phase::Publishing) continue; // cancelled meanwhile
        if (one.error) {
            auto transient = one.error->kind() == ErrorKind::Unavailable || one.error->kind() == ErrorKind::Timeout;
            if (auto tries = transient ? ++resolve_failures_[one.id] : 0; transient && tries <= 8) {
                log_.warn("inputs.unreadable", kv(field::kJob, one.id.str()), kv(field::kError, one.error->message()));
                book_.backing_off(*entry);
                tasks_.spawn("try again", try_again_later(one.id, std::chrono::milliseconds(100 << tries)));
            } else endings.push_back(Ending{one.id, JobState::Failed, one.error->message()});
            continue;
        }
        resolve_failures_.erase(one.id);
        for (auto& [page, reason] : one.pages_failed) entry->job.pages_failed[page] = std::move(reason);
        if (one.nothing_to_do) {
            auto reason = failure_of(entry->job);
            endings.push_back(Ending{one.id, reason.empty() ? JobState::Success : JobState::Failed, reason});
            continue;
        }
        sent.push_back(one.id);
        messages.push_back(std::move(one.message));
    }
    if (!endings.empty()) tasks_.spawn("end", book_.end(std::move(endings), {}));
    if (messages.empty()) co_return;

    auto results = co_await publisher_->publish_all(std::move(messages), std::chrono::milliseconds(0));
    crash_point("server.after-publish");
    store::Batch batch;
    bool missing_queue = false;
    for (std::size_t i = 0; i < sent.size(); ++i) {
        auto* entry = book_.find(sent[i]);
        if (entry == nullptr || entry->ending) continue;
        if (results[i]) {
            book_.published(*entry);
            if (entry->phase == Phase::Published && !entry->deciding) batch.update(entry->job);
            continue;
        }
        if (stopping_) continue;
        log_.warn("publish.failed", kv(field::kJob, sent[i].str()), kv(field::kError, results[i].error().message()));
        missing_queue |= results[i].error().kind() == ErrorKind::NotFound;
        if (entry->phase == Phase::Publishing) {
            book_.backing_off(*entry);
            tasks_.spawn("try again", try_again_later(sent[i], std::chrono::milliseconds(1000)));
        }
    }
    store_.post(std::move(batch)); // lost in a crash: published once more
    if (missing_queue) {
        auto declare = [name = settings_.name, processors = processors()](queue::Session& session) -> Result<void> {
            for (auto const& processor : processors)
                if (auto declared = queue::declare_work_queue(session, work_queue(name, processor)); !declared) return std::unexpected(declared.error());
            return {};
        };
        (void)co_await publisher_->with_session(std::move(declare));
    }
}

bool Dispatcher::knows_already(std::string const& processor) const {
    if (auto configured = settings_.processors.find(processor); configured != settings_.processors.end())
        return configured->second.kind == "managed";
    return discovered_.contains(processor);
}

awaitable<bool> Dispatcher::knows(std::string processor) {
    if (knows_already(processor)) co_return true;
    if (settings_.processors.contains(processor)) co_return false;
    if (!publisher_ || !publisher_->connected()) co_return false;
    auto ask = [queue = work_queue(settings_.name, processor)](queue::Session& session) -> Result<void> {
        auto count = session.count(queue);
        if (!count) return std::unexpected(count.error());
        return {};
    };
    auto there = co_await publisher_->with_session(std::move(ask), std::chrono::seconds(2));
    if (there) discovered_.insert(processor);
    co_return there.has_value();
}

std::vector<std::string> Dispatcher::processors() const {
    std::set<std::string> names(discovered_);
    for (auto const& [name, settings] : settings_.processors)
        if (settings.kind == "managed") names.insert(name);
    return {names.begin(), names.end()};
}

void Dispatcher::set_ready(std::map<std::string, std::size_t> ready) {
    if (ready == ready_) return;
    ready_ = std::move(ready);
    book_.wake().notify_all();
}

void Dispatcher::measured(std::string const& target, double seconds) {
    auto& average = seconds_[target];
    seconds = std::max(seconds, 0.001);
    average = average == 0 ? seconds : 0.9 * average + 0.1 * seconds;
}

awaitable<void> Dispatcher::send(queue::Message message) {
    auto queue = message.queue;
    auto declare = [topology = topology_, queue](queue::Session& session) {
        return queue::declare_ocrd_queue(session, topology, queue);
    };
    auto sent = co_await publisher_->with_session(std::move(declare));
    if (sent) sent = co_await publisher_->publish(std::move(message));
    if (!sent) log_.info("result-message.failed", kv(field::kQueue, queue), kv(field::kError, sent.error().message()));
}

void Dispatcher::post_message(std::string queue, std::string body) {
    if (!publisher_ || stopping_) return;
    tasks_.spawn(
        "result message",
        send(queue::Message{
            .queue = std::move(queue), .body = std::move(body), .persistent = false, .exchange = topology_.exchange}));
}

} // namespace ocrctl::server
