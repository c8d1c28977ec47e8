// The tool catalogue: what is known of each Processor (an entry of OCR-D's ocrd-tool.json). From the built-in ones,
// files (ocrd-all-tool.json, the configuration's `tools`), and from the programs on this machine by their --dump-json;
// of those on other machines the Deployer has asked (STATE/found-tools.json).
#pragma once

#include "lib/async/event.hpp"
#include "lib/async/on_thread.hpp"
#include "lib/async/task_group.hpp"
#include "lib/log/log.hpp"
#include "lib/model/json.hpp"
#include "processing_server/settings.hpp"

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace ocrctl::server {

/// Lives on the io thread; programs run on the pool. What they said is kept in STATE/dumped-tools.json, so that a
/// restart need not ask again; a program that is newer than its answer is asked again.
class ToolCatalogue {
public:
    ToolCatalogue(Settings const& settings, asio::any_io_executor io, asio::thread_pool& pool);

    /// Reads the files and looks for programs. Invalid: a file is broken. Blocks shortly.
    Result<void> load();

    /// What is known now; null if nothing is.
    Json const* find(std::string const& processor) const;
    /// The same, asking the program first if there is one; all who wait get its answer.
    awaitable<Json const*> find_or_ask(std::string processor);

    /// What to tell who asks for a Processor that is not found.
    static std::string unknown(std::string_view processor);

    /// Ends programs that were asked and gives up their answers.
    awaitable<void> stop();

    /// Processors that are described or have a program here: what a queue of that name can be for.
    std::vector<std::string> names();

private:
    struct Program {
        std::filesystem::path path;
        std::map<std::string, std::string> env;
        Millis changed = 0;
    };
    awaitable<void> ask(std::string processor, Program program);
    void look_for_programs();
    void read_found();
    void remember() const;

    Settings const& settings_;
    asio::any_io_executor io_;
    asio::thread_pool& pool_;
    log::Logger log_;
    TaskGroup tasks_;
    std::atomic<bool> stopping_ = false;
    std::map<std::string, Json> tools_;
    std::set<std::string> loose_; // names in tools_ that a later found-tools.json may describe anew
    Millis found_changed_ = 0;    // of found-tools.json as it was read last
    std::map<std::string, Program> programs_;
    std::map<std::string, Millis> said_;                                  // by a program: when that was changed
    std::map<std::string, std::shared_ptr<Event>> asked_;                 // under way
    std::map<std::string, std::chrono::steady_clock::time_point> silent_; // gave no answer
};

} // namespace ocrctl::server
