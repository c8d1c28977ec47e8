// One Processor over the pages of a workspace, without broker, server or store: what `ocrctl processor` does.
#pragma once

#include "lib/engine/engine.hpp"
#include "lib/model/job.hpp"

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace ocrctl {

/// What becomes of a page that failed (OCRD_MISSING_OUTPUT): it has no output, its input is passed on, or all ends.
enum class MissingOutput { Skip, Copy, Abort };

struct WorkspaceRun {
    std::filesystem::path mets_file;
    std::string processor;
    Json parameters = Json::object(); // checked
    std::vector<std::string> input_groups, output_groups;
    std::string page_selector;        // "": all pages
    ExistingOutput existing = ExistingOutput::Abort;
    bool abort_on_missing_input = false;
    MissingOutput missing = MissingOutput::Skip;
    double max_missing = 0.1;         // share of failed pages above which the run fails; 0: any share will do
    std::chrono::milliseconds page_limit{0}; // 0: none
    std::size_t parallel = 1;         // engines at once
    engine::EngineOptions engine;
};

struct WorkspaceReport {
    std::size_t done = 0, existing = 0, left_out = 0, failed = 0, of = 0;
    std::string error; // the run as a whole failed; what is done is in the METS nevertheless
};

/// Page by page, a failing page alone; outputs appear in a staging folder and are renamed into place; the METS is saved
/// once, at the end, also after a failure: with the pages done until then. A METS that somebody else changes meanwhile
/// is read again before saving. `stop` makes the run end early: set it, then kill what it waits for by cancelling.
/// An error: nothing was begun (no METS, wrong group, output exists, no such model).
class WorkspaceRunner {
public:
    explicit WorkspaceRunner(asio::any_io_executor executor, WorkspaceRun run);
    ~WorkspaceRunner();

    awaitable<Result<WorkspaceReport>> run();
    /// Ends the pages under way; run() then saves and returns with this reason as error.
    void stop(std::string reason);

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace ocrctl
