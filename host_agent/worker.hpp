// The Worker's shell (docs/contracts.md, "Worker and engine"): takes Tasks from its queue, has them done by an engine, publishes the result,
// acknowledges. It holds no OCR code; cancel, deadline and crash end the engine, never the shell.
#pragma once

#include "lib/async/event.hpp"
#include "lib/async/task_group.hpp"
#include "lib/base/ids.hpp"
#include "lib/engine/engine.hpp"
#include "lib/model/task.hpp"
#include "lib/queue/broker.hpp"

#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

namespace ocrctl::host_agent {

/// What a Worker is to do; given by its agent, and again when it changes.
struct Assignment {
    Target target;
    std::string queue, processor;
    Json parameters = Json::object();
    std::string amqp_file;                        // 0600, holds the broker's URL
    std::map<std::string, std::string> path_map;  // workspace folders as the server knows them -> here
    std::vector<std::string> models;              // folders
    std::string engine = "builtin";               // builtin | cli
    std::string executable;                       // of a cli engine
    int page_timeout_s = 0;                       // 0: none
};
void to_json(Json& json, Assignment const& assignment);
void from_json(Json const& json, Assignment& assignment);

/// One Worker. Lives on one executor (one thread); all functions are called there.
///
/// Owns its engine, its broker connections and its connection to the agent. Ends by drain(): what it holds is finished,
/// published and acknowledged first. Destroyed early, the engine is killed and the message goes back to its queue.
class Worker {
public:
    struct Options {
        Slot slot;
        std::string host;                        // for messages
        std::filesystem::path agent_socket;      // empty: by hand, with `assignment`
        std::optional<Assignment> assignment;
        std::filesystem::path scratch = "/tmp";  // where command-line Processors work
    };

    Worker(asio::any_io_executor executor, Options options);
    ~Worker();

    /// Until drained or ended.
    awaitable<void> run();

    /// Finishes the Task it holds, takes no other, then run() returns.
    void drain();
    /// Ends the engine and returns at once; the Task goes back to its queue.
    void end();

private:
    struct Current {
        JobId job;
        std::size_t pages = 0, pages_done = 0;
        bool computing = false;
    };

    awaitable<void> serve(Json assignment);
    awaitable<bool> load(Assignment const& assignment);
    bool connect(Assignment const& assignment);
    awaitable<void> handle(queue::Delivery delivery, Assignment const& assignment);
    awaitable<TaskResult> run_task(Task task, Assignment const& assignment);
    awaitable<bool> publish(std::string reply_to, TaskResult result);
    awaitable<void> wait_for_news(std::chrono::milliseconds limit);
    bool leaving() const;
    void answered(std::string key);

    awaitable<void> agent_link();
    void heard(std::string const& line);
    void report(std::string state, std::string detail = {});
    void report_work();

    asio::any_io_executor executor_;
    Options options_;
    log::Logger log_;
    TaskGroup tasks_;
    Event changed_;
    Event report_changed_;

    Json wanted_, serving_;       // assignments: the last heard, the one at work
    bool draining_ = false, ended_ = false, loading_ = false;
    std::set<std::string> cancelled_; // Jobs of the message at work

    std::unique_ptr<engine::TaskRunner> runner_;
    std::unique_ptr<queue::Publisher> publisher_;
    std::unique_ptr<queue::Consumer> consumer_;
    std::string broker_problem_;
    bool was_consuming_ = false;
    std::deque<queue::Delivery> inbox_;
    Current current_;
    std::int64_t jobs_done_ = 0;
    std::set<std::string> answered_;       // (job, shard, attempt) whose result is with the broker
    std::deque<std::string> answered_order_;

    Json report_;
    bool report_due_ = false;
};

} // namespace ocrctl::host_agent
