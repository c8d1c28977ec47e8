#include "host_agent/worker.hpp"

#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <unistd.h>

namespace ocrctl::host_agent {

OCRCTL_JSON_FIELDS(Assignment, target, queue, processor, parameters, amqp_file, path_map, models, engine, executable, page_timeout_s)

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using log::kv;
using AgentSocket = asio::local::stream_protocol::socket;

constexpr auto kRetryBroken = 30s; // a model may have been installed meanwhile
constexpr auto kBeat = 2s; // the agent waits for several of these before it thinks us dead
constexpr std::size_t kRemembered = 4096;

std::string key_of(Task const& task) { return fmt::format("{}/{}/{}", task.job.str(), task.shard, task.attempt); }

/// The longest mapped folder that holds the path decides.
std::string mapped(std::string const& path, std::map<std::string, std::string> const& map) {
    std::string const* best = nullptr;
    std::string result = path;
    for (auto const& [given, to] : map) {
        auto from = given;
        while (from.size() > 1 && from.back() == '/') from.pop_back();
        bool inside = path == from || (path.starts_with(from) && (from.back() == '/' || path[from.size()] == '/'));
        if (!inside || (best && best->size() >= given.size())) continue;
        best = &given;
        result = to + path.substr(from.size());
    }
    return result;
}

void fail_all(TaskResult& result, Task const& task, std::string reason) {
    result.pages.clear();
    for (auto const& page : task.pages) {
        PageOutcome outcome;
        outcome.page_id = page.page_id;
        outcome.error = reason;
        result.pages.push_back(std::move(outcome));
    }
    result.error = std::move(reason);
}

TaskResult blank(Task const& task) {
    TaskResult result;
    result.job = task.job;
    result.shard = task.shard;
    result.attempt = task.attempt;
    result.started = result.ended = now_millis();
    return result;
}

/// Folders of a run that made nothing; parents go only if they are empty.
void remove_staging(fs::path const& workspace, std::string const& staging) {
    remove_tree(workspace / staging);
    for (auto folder = fs::path(staging).parent_path(); !folder.empty(); folder = folder.parent_path())
        if (::rmdir((workspace / folder).c_str())) return;
}

} // namespace

Worker::Worker(asio::any_io_executor executor, Options options)
    : executor_(executor), options_(std::move(options)),
      log_(log::Logger("worker").with(kv(log::field::kHost, options_.host), kv(log::field::kSlot, options_.slot.str()))),
      tasks_(executor, "worker"), changed_(executor), report_changed_(executor) {
    if (options_.assignment) wanted_ = *options_.assignment;
}

Worker::~Worker() = default;

bool Worker::leaving() const { return draining_ || ended_ || wanted_ != serving_; }

void Worker::drain() {
    if (draining_) return;
    log_.info("worker.draining", kv(log::field::kJob, current_.job.str()));
    draining_ = true;
    if (loading_ && runner_) runner_->kill();
    changed_.notify_all();
}

void Worker::end() {
    log_.warn("worker.ending", kv(log::field::kJob, current_.job.str()));
    draining_ = ended_ = true;
    // The connection first: what the engine's end looks like must not be reported.
    consumer_.reset();
    if (publisher_) publisher_->stop();
    if (runner_) runner_->stop("the Worker was ended", false);
    changed_.notify_all();
}

awaitable<void> Worker::wait_for_news(std::chrono::milliseconds limit) {
    (void)co_await within(limit, [](Worker* self) -> awaitable<bool> {
        co_await self->changed_.wait();
        co_return true;
    }(this));
}

awaitable<void> Worker::run() {
    if (!options_.agent_socket.empty()) tasks_.spawn("agent link", agent_link());
    while (!draining_) {
        if (wanted_.is_null()) {
            co_await changed_.wait();
            continue;
        }
        co_await serve(wanted_);
    }
    tasks_.cancel();
    co_await tasks_.join();
    log_.info("worker.ended", kv("jobs_done", jobs_done_));
}

awaitable<void> Worker::serve(Json json) {
    serving_ = json;
    report("starting");
    auto assignment = json_to<Assignment>(json);
    if (!assignment || assignment->queue.empty() || assignment->processor.empty()) {
        report("broken", "the assignment cannot be read" + (assignment ? std::string() : ": " + assignment.error().message()));
        while (!leaving()) co_await changed_.wait();
        co_return;
    }
    auto slot = options_.slot.str();
    std::ranges::replace(slot, '/', '_');
    auto scratch = options_.scratch / ("worker-" + slot);
    engine::EngineOptions engine_options;
    if (!assignment->models.empty()) engine_options.env["OCRCTL_MODELS"] = join(assignment->models, ":");
    bool cli = assignment->engine == "cli";
    if (cli) {
        remove_tree(scratch); // of an earlier life that was killed
        if (auto made = make_folder(scratch, 0700); !made) log_.error("worker.no-scratch", kv(log::field::kError, made.error().message()));
        auto executable = assignment->executable.empty() ? assignment->processor : assignment->executable;
        runner_ = engine::cli_runner(executor_, executable, assignment->parameters, scratch, engine_options);
    } else {
        runner_ = engine::builtin_runner(executor_, assignment->processor, assignment->parameters, engine_options);
    }
    while (!leaving()) {
        if (!runner_->ready()) {
            if (!co_await load(*assignment)) continue;
        }
        if (!consumer_ && !connect(*assignment)) {
            co_await wait_for_news(kRetryBroken);
            continue;
        }
        if (inbox_.empty()) {
            report_work();
            co_await changed_.wait();
            continue;
        }
        auto delivery = std::move(inbox_.front());
        inbox_.pop_front();
        co_await handle(std::move(delivery), *assignment);
    }
    consumer_.reset();
    inbox_.clear();
    publisher_.reset();
    was_consuming_ = false;
    runner_.reset();
    if (cli) remove_tree(scratch);
}

awaitable<bool> Worker::load(Assignment const& assignment) {
    report("starting", "loads " + assignment.processor);
    auto begun = std::chrono::steady_clock::now();
    for (auto back_off = 250ms;; back_off = std::min(back_off * 2, 10000ms)) {
        loading_ = true;
        auto loaded = co_await runner_->load();
        loading_ = false;
        if (loaded) {
            auto took = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begun).count();
            log_.info("worker.loaded", kv(log::field::kProcessor, assignment.processor), kv(log::field::kAfterMs, took));
            co_return true;
        }
        if (leaving()) co_return false;
        auto const& error = loaded.error();
        bool again = error.kind() == ErrorKind::Unavailable && error.message().find("shared librar") == std::string::npos;
        log_.error("worker.not-loaded", kv(log::field::kProcessor, assignment.processor), kv(log::field::kError, error.message()));
        if (again && back_off < 10000ms) {
            report("starting", error.message());
            (void)co_await wait_for_news(back_off);
        } else {
            // Nothing that another start would mend: not taking Tasks, and saying why, is better than a crash loop.
            consumer_.reset();
            inbox_.clear();
            report("broken", error.message());
            co_await wait_for_news(kRetryBroken);
        }
        if (leaving()) co_return false;
    }
}

bool Worker::connect(Assignment const& assignment) {
    auto broken = [&](std::string const& problem) {
        log_.error("worker.no-broker", kv(log::field::kError, problem));
        report("broken", problem);
        return false;
    };
    auto text = read_file(assignment.amqp_file);
    if (!text) return broken(text.error().message());
    auto url = queue::parse_broker_url(trim(*text));
    if (!url) return broken(url.error().message());
    auto name = fmt::format("ocrctl worker {}", options_.slot.str());
    if (!publisher_) {
        queue::LinkOptions options;
        options.name = name + " results";
        publisher_ = std::make_unique<queue::Publisher>(executor_, *url, std::move(options), 64);
    }
    queue::Consumer::Options options;
    options.name = name;
    options.queues = {assignment.queue};
    options.prefetch = 1;
    options.on_connected = [queue = assignment.queue](queue::Session& session) -> Result<void> {
        auto declared = queue::declare_work_queue(session, queue);
        // Declared with other arguments: by somebody else, for instance; it is there, and that is enough.
        if (!declared && declared.error().kind() != ErrorKind::Conflict) return fail(declared.error());
        return {};
    };
    options.on_link = [this](queue::LinkEvent const& event) {
        broker_problem_ = event.up ? std::string() : event.error.message();
        if (event.up) {
            was_consuming_ = true;
            // Given out on the connection before: it comes again.
            std::erase_if(inbox_, [&](queue::Delivery const& held) { return held.tag.generation != event.generation; });
        }
        changed_.notify_all();
    };
    consumer_ = std::make_unique<queue::Consumer>(executor_, *url, std::move(options), [this](queue::Delivery delivery) {
        inbox_.push_back(std::move(delivery));
        changed_.notify_all();
    });
    return true;
}

awaitable<void> Worker::handle(queue::Delivery delivery, Assignment const& assignment) {
    auto message = json_to<TaskMessage>(std::string_view(delivery.body));
    if (!message || message->tasks.empty() || message->v > 1) {
        auto problem = !message ? message.error().message() : message->v > 1 ? fmt::format("version {}", message->v) : "no tasks";
        log_.error("worker.malformed-message", kv(log::field::kQueue, delivery.queue), kv(log::field::kError, problem),
                   kv("bytes", delivery.body.size()));
        if (consumer_) consumer_->nack(delivery.tag, false); // into the dead-letter queue
        co_return;
    }
    cancelled_.clear();
    for (std::size_t i = 0; i < message->tasks.size(); ++i) {
        auto& task = message->tasks[i];
        auto key = key_of(task);
        if (answered_.contains(key)) {
            log_.info("task.answered-before", kv(log::field::kJob, task.job.str()), kv(log::field::kAttempt, task.attempt));
            continue;
        }
        if (i > 0 && draining_) {
            if (consumer_) consumer_->nack(delivery.tag, true); // the rest of the chunk is for somebody else
            co_return;
        }
        current_ = {.job = task.job, .pages = task.pages.size(), .pages_done = 0, .computing = true};
        report_work();
        TaskResult result;
        if (cancelled_.contains(task.job.str())) {
            result = blank(task);
            fail_all(result, task, "cancelled");
            result.cancelled = true;
        } else {
            result = co_await run_task(task, assignment);
        }
        current_.computing = false;
        if (ended_) co_return;
        if (!co_await publish(message->reply_to, std::move(result))) co_return;
        ++jobs_done_;
        answered(std::move(key));
        current_ = {};
    }
    if (consumer_) consumer_->ack(delivery.tag);
}

void Worker::answered(std::string key) {
    answered_order_.push_back(key);
    answered_.insert(std::move(key));
    if (answered_order_.size() <= kRemembered) return;
    answered_.erase(answered_order_.front());
    answered_order_.pop_front();
}

awaitable<TaskResult> Worker::run_task(Task task, Assignment const& assignment) {
    RunId run(new_ulid());
    auto result = blank(task);
    auto local = mapped(task.workspace, assignment.path_map);
    auto staging = staging_folder(task.job, run);
    auto log = log_.with(kv(log::field::kJob, task.job.str()), kv(log::field::kAttempt, task.attempt), kv(log::field::kRun, run.str()));
    std::error_code error;
    auto here = local == task.workspace ? local : fmt::format("{} ({} on the server)", local, task.workspace);
    if (!task.processor.empty() && task.processor != assignment.processor) {
        fail_all(result, task, fmt::format("this Worker runs {}, not {}", assignment.processor, task.processor));
    } else if (!fs::is_directory(local, error)) {
        fail_all(result, task, fmt::format("workspace {} does not exist on host {}", here, options_.host));
    } else if (::access(local.c_str(), W_OK | X_OK)) {
        fail_all(result, task, fmt::format("workspace {} cannot be written to on host {}: {}", here, options_.host, std::strerror(errno)));
    } else {
        engine::Place place;
        place.workspace = local;
        place.staging = fs::path(local) / staging;
        place.page_limit = std::chrono::seconds(assignment.page_timeout_s);
        place.progress = [this](std::size_t done, std::size_t) {
            current_.pages_done = done;
            report_work();
        };
        try {
            result = co_await runner_->run(task, std::move(place));
        } catch (boost::system::system_error const& problem) {
            if (problem.code() == asio::error::operation_aborted) throw; // this Worker is being taken down
            fail_all(result, task, fmt::format("internal error: {}", problem.what()));
        } catch (std::exception const& problem) {
            fail_all(result, task, fmt::format("internal error: {}", problem.what()));
        }
        bool made = std::ranges::any_of(result.pages, [](PageOutcome const& page) { return !page.files.empty() && page.ok; });
        if (!made && !ended_) remove_staging(local, staging);
    }
    result.run = run;
    result.slot = options_.slot;
    result.staging = staging;
    if (result.engine_died) log.error("task.engine-died", kv(log::field::kError, result.error));
    else if (!result.error.empty()) log.warn("task.failed", kv(log::field::kError, result.error));
    else log.debug("task.done", kv(log::field::kAfterMs, result.ended - result.started));
    co_return result;
}

awaitable<bool> Worker::publish(std::string reply_to, TaskResult result) {
    if (reply_to.empty()) {
        log_.warn("task.no-reply-to", kv(log::field::kJob, result.job.str()));
        co_return true;
    }
    queue::Message message{reply_to, dump(Json(result)), fmt::format("{}/{}/{}", result.job.str(), result.shard, result.attempt), true};
    for (;;) {
        // Without a limit: a result is kept until the broker has it, however long it is away.
        auto sent = co_await publisher_->publish(message, 0ms);
        if (sent) co_return true;
        if (ended_) co_return false;
        if (sent.error().kind() == ErrorKind::NotFound) {
            // A broker that lost its data: the queue is made as the server makes it.
            auto declared = co_await publisher_->with_session([reply_to](queue::Session& session) -> Result<void> {
                auto made = session.declare_quorum(reply_to);
                if (!made) return fail(made.error());
                return {};
            });
            if (declared) continue;
        }
        log_.warn("result.not-published", kv(log::field::kJob, result.job.str()), kv(log::field::kError, sent.error().message()));
        co_await pause(500ms);
    }
}

// ---- the agent

void Worker::report(std::string state, std::string detail) {
    Json next{{"op", "state"}, {"state", std::move(state)}, {"job", current_.job.str()}, {"pages_done", current_.pages_done},
              {"pages", current_.pages}, {"jobs_done", jobs_done_}, {"detail", std::move(detail)}};
    if (next == report_) return;
    report_ = std::move(next);
    report_due_ = true;
    report_changed_.notify_all();
}

void Worker::report_work() {
    auto away = broker_problem_.empty() ? std::string() : "the broker is away: " + broker_problem_;
    if (!current_.job.empty()) report("busy", away);
    else if (was_consuming_) report("ready", away);
    else report("starting", away);
}

void Worker::heard(std::string const& line) {
    auto json = parse_json(line);
    if (!json || !json->is_object()) {
        log_.warn("agent.unreadable", kv("line", line.substr(0, 200)));
        return;
    }
    auto op = json->value("op", "");
    if (op == "assign") {
        auto assignment = json->value("assignment", Json());
        if (assignment == wanted_) return;
        wanted_ = std::move(assignment);
        if (loading_ && runner_) runner_->kill();
        changed_.notify_all();
    } else if (op == "cancel") {
        auto job = json->value("job", "");
        if (job.empty()) return;
        cancelled_.insert(job);
        if (current_.computing && current_.job.str() == job && runner_) {
            log_.info("task.cancelled", kv(log::field::kJob, job));
            runner_->stop("cancelled", true);
        }
    } else if (op == "drain") {
        drain();
    }
}

namespace {

awaitable<void> read_lines(AgentSocket& socket, std::function<void(std::string const&)> heard) {
    std::string buffer;
    for (;;) {
        auto [error, size] = co_await asio::async_read_until(socket, asio::dynamic_buffer(buffer, 4 * 1024 * 1024), '\n', as_tuple);
        if (error) co_return;
        auto line = buffer.substr(0, size - 1);
        buffer.erase(0, size);
        heard(line);
    }
}

awaitable<bool> news(Event& changed) {
    co_await changed.wait();
    co_return true;
}

awaitable<void> write_reports(AgentSocket& socket, Json const& report, bool& due, Event& changed) {
    for (;;) {
        if (!due) (void)co_await within(kBeat, news(changed));
        auto line = dump(due ? report : Json{{"op", "beat"}}) + "\n"; // without news a sign of life
        due = false;
        auto [error, size] = co_await asio::async_write(socket, asio::buffer(line), as_tuple);
        if (error) {
            due = true;
            co_return;
        }
        // A thousand short Jobs a second need not be told one by one; the last state always is.
        (void)co_await pause(50ms);
    }
}

} // namespace

awaitable<void> Worker::agent_link() {
    using namespace asio::experimental::awaitable_operators;
    auto back_off = 50ms;
    bool said = false;
    for (;;) {
        AgentSocket socket(executor_);
        auto [error] = co_await socket.async_connect(asio::local::stream_protocol::endpoint(options_.agent_socket.string()), as_tuple);
        if (error) {
            if (!said) log_.warn("agent.away", kv(log::field::kError, error.message()));
            said = true;
            (void)co_await pause(back_off);
            back_off = std::min(back_off * 2, 1000ms);
            continue;
        }
        if (said) log_.info("agent.back");
        said = false;
        back_off = 50ms;
        auto hello = dump(Json{{"op", "hello"}, {"slot", options_.slot}, {"pid", ::getpid()}, {"beats", true}}) + "\n";
        auto [failed, size] = co_await asio::async_write(socket, asio::buffer(hello), as_tuple);
        if (!failed) {
            report_due_ = !report_.is_null();
            auto reading = read_lines(socket, [this](std::string const& line) { heard(line); });
            co_await (std::move(reading) || write_reports(socket, report_, report_due_, report_changed_));
        }
        said = true;
        (void)co_await pause(50ms);
    }
}

} // namespace ocrctl::host_agent
