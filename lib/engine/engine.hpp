// Engines: child processes that hold the OCR code and its models, in process groups of their own so that a cancel, a
// deadline or a crash ends the engine and nobody else. The Worker's shell and `ocrctl ocr` use them alike.
//
//   Engine       one child, one request at a time over a socketpair
//   EnginePool   several, started when needed, each page to one that has its models loaded already
//   TaskRunner   a whole Task: BuiltinRunner (engine), CliRunner (any OCR-D command-line Processor in a scratch workspace)
#pragma once

#include "lib/async/asio.hpp"
#include "lib/async/event.hpp"
#include "lib/base/error.hpp"
#include "lib/model/task.hpp"

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ocrctl::engine {

struct EngineOptions {
    /// In addition to the inherited environment: OCRCTL_* marks, model folders. OMP_THREAD_LIMIT=1 is always set.
    std::map<std::string, std::string> env;
    /// The engine program; empty: $OCRCTL_ENGINE, else the copy that is linked into this binary.
    std::filesystem::path program;
};

struct PageRequest {
    std::string processor;
    Json parameters = Json::object();
    std::filesystem::path workspace, staging; // absolute; outputs go to staging/<GROUP>/<file>
    std::vector<std::string> input_groups, output_groups;
    PageInput page;
};

struct EngineReply {
    PageOutcome outcome;
    std::string log; // what the Processor wrote about this page
};

/// One engine child. Lives on one executor, all functions are called there; one request at a time (others wait).
///
/// The destructor kills the whole process group; the child is reaped in the background of the executor, or here.
class Engine {
public:
    /// Starts the child: memfd or program, own process group. Unavailable if it cannot be started at all.
    static Result<std::unique_ptr<Engine>> start(asio::any_io_executor executor, EngineOptions options = {});
    ~Engine();

    /// Loads a Processor's models and keeps them. NotFound: no such Processor or model (the message says how to get
    /// it). Invalid: parameters. Unavailable: the engine died; then died() is true and death() says how.
    awaitable<Result<Provenance>> load(std::string processor, Json parameters);

    /// One page. A page that fails is a reply with ok = false; an error means that the engine is gone. Cancelling the
    /// awaiting coroutine kills the engine.
    awaitable<Result<EngineReply>> page(PageRequest request);

    /// How many pages an image file holds (a TIFF may hold several). Errors say what is wrong with the file.
    awaitable<Result<std::size_t>> frames(std::filesystem::path image);

    /// SIGKILL to its process group; what waits for it fails with Unavailable.
    void kill();

    bool alive() const noexcept;
    int pid() const noexcept;
    /// True if it ended by itself or by somebody else's signal, not by kill(): that counts as an engine death.
    bool died() const noexcept;
    /// "engine was killed by signal 11 (Segmentation fault)", with the end of what it wrote on stderr.
    std::string death() const;
    /// Not the engine's fault but the host's: a shared library is missing. death() names the package to install.
    bool host_lacks_library() const noexcept;
    /// The end of its stderr, at most 16 KiB.
    std::string const& stderr_tail() const noexcept;
    /// Until it is gone and reaped.
    awaitable<void> gone();

    struct Impl;
    explicit Engine(std::shared_ptr<Impl> impl);

private:
    std::shared_ptr<Impl> impl_;
};

/// Up to `size` engines; a request takes an idle one that has its Processor loaded, else any idle one, else starts one,
/// else waits. One that died is replaced. Lives on one executor. The destructor kills all; cancel the requests first.
class EnginePool {
public:
    EnginePool(asio::any_io_executor executor, std::size_t size, EngineOptions options = {});
    ~EnginePool();

    /// Errors as Engine::load; models stay loaded in the engine that was used.
    awaitable<Result<Provenance>> load(std::string processor, Json parameters);

    /// Loads what is not loaded, runs the page. `limit` 0: none; past it the engine is killed and the error is Timeout.
    /// Unavailable: the engine died on this page (the pool goes on with another engine).
    awaitable<Result<EngineReply>> page(PageRequest request, std::chrono::milliseconds limit = std::chrono::milliseconds(0));

    /// As Engine::frames, in any engine.
    awaitable<Result<std::size_t>> frames(std::filesystem::path image);

    std::size_t size() const noexcept;
    /// Kills all engines; requests in flight fail.
    void kill();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// Where a Task runs: WorkspaceAccess has turned ids into local folders.
struct Place {
    std::filesystem::path workspace; // local, absolute
    std::filesystem::path staging;   // absolute: outputs under their METS-relative names
    std::chrono::milliseconds page_limit{0}; // 0: none; a page that takes longer fails the rest of the Task
    std::function<void(std::size_t done, std::size_t of)> progress;
};

/// Runs whole Tasks. Lives on one executor, one Task at a time. run() never throws and always gives a result for each
/// page; files are flushed and have size and digest. Staging folders of Tasks that made no file are not created.
/// Cancelling the coroutine of run() is not needed: stop() ends the Task under way, whose result says why.
class TaskRunner {
public:
    virtual ~TaskRunner() = default;

    /// Starts what is needed and loads models. NotFound, Invalid: cannot work as configured. Unavailable: try again.
    virtual awaitable<Result<Provenance>> load() = 0;

    /// One Task. The result has no slot and run id yet: these are the Worker's.
    virtual awaitable<TaskResult> run(Task task, Place place) = 0;

    /// Ends the Task under way at once; `cancelled` goes into its result, `reason` into its error.
    virtual void stop(std::string reason, bool cancelled) = 0;

    /// SIGKILL to everything it started.
    virtual void kill() = 0;

    /// False if the engine is gone and load() has to be called again.
    virtual bool ready() const noexcept = 0;
};

/// A built-in Processor in an engine.
std::unique_ptr<TaskRunner> builtin_runner(asio::any_io_executor executor, std::string processor, Json parameters,
                                           EngineOptions options = {});

/// Any other OCR-D command-line Processor ("ocrd-tesserocr-recognize"), found in PATH or given by path. Each run gets a private
/// scratch workspace with the files its input PAGE refers to; what it adds to the METS is collected. `scratch` is
/// where scratch workspaces are made.
std::unique_ptr<TaskRunner> cli_runner(asio::any_io_executor executor, std::string executable, Json parameters,
                                       std::filesystem::path scratch, EngineOptions options = {});

} // namespace ocrctl::engine
