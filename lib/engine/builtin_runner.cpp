#include "lib/async/within.hpp"
#include "lib/engine/engine.hpp"
#include "lib/engine/files.hpp"

namespace ocrctl::engine {
namespace {

using std::chrono::milliseconds;

class BuiltinRunner final : public TaskRunner {
public:
    BuiltinRunner(asio::any_io_executor executor, std::string processor, Json parameters, EngineOptions options)
        : executor_(std::move(executor)), processor_(std::move(processor)), parameters_(std::move(parameters)), options_(std::move(options)) {}

    awaitable<Result<Provenance>> load() override {
        stopped_ = false;
        co_return co_await prepare(parameters_);
    }

    bool ready() const noexcept override { return engine_ && engine_->alive() && !loaded_.empty(); }

    void stop(std::string reason, bool cancelled) override {
        stopped_ = true;
        stop_reason_ = std::move(reason);
        stop_cancelled_ = cancelled;
        if (engine_) engine_->kill();
    }

    void kill() override {
        if (engine_) engine_->kill();
    }

    awaitable<TaskResult> run(Task task, Place place) override {
        stopped_ = false;
        TaskResult result;
        result.job = task.job;
        result.shard = task.shard;
        result.attempt = task.attempt;
        result.started = now_millis();
        co_await work(task, place, result);
        result.ended = now_millis();
        co_return result;
    }

private:
    awaitable<Result<Provenance>> load_with(Json parameters) {
        auto key = dump(parameters);
        if (auto known = loaded_.find(key); known != loaded_.end()) co_return known->second;
        auto loaded = co_await engine_->load(processor_, parameters);
        if (!loaded) {
            if (engine_->host_lacks_library()) co_return fail(ErrorKind::Unavailable, "{}", engine_->death());
            co_return fail(loaded.error());
        }
        loaded_[key] = *loaded;
        co_return loaded;
    }

    /// The engine ended during the Task: why is in the result, which is complete afterwards.
    void ended(Task const& task, TaskResult& result, std::string const& doing) {
        if (stopped_) {
            result.error = stop_reason_;
            result.cancelled = stop_cancelled_;
        } else {
            result.error = fmt::format("{} {}", engine_->death(), doing);
            result.engine_died = engine_->died() && !engine_->host_lacks_library();
            append_log(result.log, engine_->stderr_tail());
        }
        fail_rest(result, task, result.error);
    }

    awaitable<void> work(Task const& task, Place const& place, TaskResult& result) {
        if (until_deadline(task).count() == 0) {
            result.error = "the deadline had passed before the work began";
            fail_rest(result, task, result.error);
            co_return;
        }
        auto parameters = parameters_;
        if (task.parameters.is_object()) parameters.update(task.parameters);
        for (auto const& page : task.pages) {
            if (!engine_ || !engine_->alive() || !loaded_.contains(dump(parameters))) {
                auto loaded = co_await prepare(parameters);
                if (!loaded) {
                    if (stopped_ || (engine_ && engine_->died() && !engine_->host_lacks_library())) {
                        ended(task, result, "while it loaded " + processor_);
                    } else {
                        result.error = loaded.error().message();
                        fail_rest(result, task, result.error);
                    }
                    co_return;
                }
                result.provenance = *loaded;
            } else if (result.provenance.name.empty()) {
                result.provenance = loaded_[dump(parameters)];
            }
            PageRequest request{.processor = processor_,
                                .parameters = parameters,
                                .workspace = place.workspace,
                                .staging = place.staging,
                                .input_groups = task.input_groups,
                                .output_groups = task.output_groups,
                                .page = page};
            auto deadline = until_deadline(task);
            bool page_decides = place.page_limit.count() > 0 && place.page_limit < deadline;
            auto limit = page_decides ? place.page_limit : deadline;
            std::optional<Result<EngineReply>> reply;
            auto call = engine_->page(std::move(request));
            if (limit == milliseconds::max()) reply = co_await std::move(call);
            else reply = co_await within(limit, std::move(call));
            if (!reply) { // past its time; the engine has been killed
                if (stopped_) {
                    ended(task, result, "");
                    co_return;
                }
                if (!page_decides) {
                    result.error = fmt::format("the deadline passed while page {} was worked on", page.page_id);
                    fail_rest(result, task, result.error);
                    co_return;
                }
                PageOutcome late;
                late.page_id = page.page_id;
                late.error = fmt::format("took longer than {} s", limit.count() / 1000.0);
                result.pages.push_back(std::move(late));
            } else if (!*reply) {
                ended(task, result, fmt::format("while it worked on page {}", page.page_id));
                co_return;
            } else {
                append_log(result.log, (*reply)->log);
                result.pages.push_back(std::move((*reply)->outcome));
                auto& outcome = result.pages.back();
                if (outcome.ok) settle(outcome, place.staging, true);
            }
            if (place.progress) place.progress(result.pages.size(), task.pages.size());
        }
    }

    awaitable<Result<Provenance>> prepare(Json parameters) {
        if (stopped_) co_return fail(ErrorKind::Unavailable, "{}", stop_reason_);
        if (!engine_ || !engine_->alive()) {
            loaded_.clear();
            auto started = Engine::start(executor_, options_);
            if (!started) co_return fail(started.error());
            engine_ = std::move(*started);
        }
        co_return co_await load_with(std::move(parameters));
    }

    asio::any_io_executor executor_;
    std::string processor_;
    Json parameters_;
    EngineOptions options_;
    std::unique_ptr<Engine> engine_;
    std::map<std::string, Provenance> loaded_; // by parameters
    bool stopped_ = false, stop_cancelled_ = false;
    std::string stop_reason_;
};

} // namespace

std::unique_ptr<TaskRunner> builtin_runner(asio::any_io_executor executor, std::string processor, Json parameters, EngineOptions options) {
    return std::make_unique<BuiltinRunner>(std::move(executor), std::move(processor), std::move(parameters), std::move(options));
}

} // namespace ocrctl::engine
