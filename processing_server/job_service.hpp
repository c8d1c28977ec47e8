// What clients ask for: Jobs and workflows submitted, looked at, cancelled. All refusals come before the first side effect, with
// OCR-D's statuses (network protocol 1.8, 1.10; where that page says "may improve", the better one).
#pragma once

#include "processing_server/dispatcher.hpp"
#include "processing_server/foreign_workers.hpp"
#include "processing_server/job_book.hpp"
#include "processing_server/settings.hpp"
#include "processing_server/tool_catalogue.hpp"
#include "processing_server/workflow_script.hpp"
#include "processing_server/workspaces.hpp"

#include <unordered_set>

namespace ocrctl::server {

/// An answer that is no success. `validation`: the body has OCR-D's shape for malformed requests (1.2).
struct Refusal {
    int status = 422;
    std::string detail;
    bool validation = false;

    Json body() const;
};
template <class T>
using Answer = std::expected<T, Refusal>;

/// POST /workflow/run
struct WorkflowRequest {
    std::string mets_path;
    std::string workflow_id;  // wins over the script
    std::string script;
    std::string page_id;
    bool page_wise = false;
    std::string callback_url;
    std::optional<ExistingOutput> existing_output;
    int priority = 0;
};

/// Lives on the io thread; refers to what it is given, all of which outlives it.
class JobService {
public:
    /// `foreign` may be null: then there are only managed Workers.
    JobService(Settings const& settings, store::Store& store, JobBook& book, Workspaces& workspaces,
               Dispatcher& dispatcher, ForeignWorkers* foreign, ToolCatalogue& tools);

    /// Those that somebody runs, now or by configuration.
    awaitable<std::vector<std::string>> processors();

    awaitable<Answer<Job>> submit(std::string processor, Json body);
    awaitable<Answer<Job>> job(JobId id);
    awaitable<Answer<Job>> cancel(JobId id);
    /// Newest first for ended ones; those that are open come from memory, oldest first.
    awaitable<Answer<std::vector<Job>>> jobs(std::optional<JobState> state, std::size_t limit);

    awaitable<Answer<Workflow>> run(WorkflowRequest request);
    awaitable<Answer<Workflow>> workflow(WorkflowId id);
    awaitable<Answer<Json>> workflow_status(WorkflowId id); // GET /workflow/job/{id}
    awaitable<Answer<JobState>> workflow_state(WorkflowId id); // GET /workflow/job-simple/{id}

    awaitable<Answer<std::string>> add_script(std::string content);
    awaitable<Answer<std::string>> replace_script(std::string id, std::string content);
    awaitable<Answer<std::string>> script(std::string id);

    /// No submissions any more: 503.
    void close_intake() { intake_closed_ = true; }
    void open_intake() { intake_closed_ = false; }
    bool intake_closed() const noexcept { return intake_closed_; }

private:
    struct Place {
        std::string folder, mets_basename;
        std::chrono::steady_clock::time_point found;
    };
    Answer<Place> locate(std::string const& path_to_mets);
    enum class Runs { Nobody, Managed, Foreign };
    awaitable<Runs> who_runs(std::string processor);
    std::optional<Refusal> check_foreign(Job const& job) const;
    std::optional<Refusal> check_parameters(std::string const& processor, Json const& parameters);
    awaitable<Answer<WorkflowCounts>> counts(WorkflowId id);

    Settings const& settings_;
    store::Store& store_;
    JobBook& book_;
    Workspaces& workspaces_;
    Dispatcher& dispatcher_;
    ForeignWorkers* foreign_;
    log::Logger log_;
    ToolCatalogue& tools_;
    std::unordered_map<std::string, Place> places_;          // path as submitted -> where that is; for seconds
    std::unordered_set<std::string> checked_;                // parameters that were found good
    bool intake_closed_ = false;
};

/// What clients see of a Job (1.6). `shown`: its state now.
Json job_output(Job const& job);
/// What clients see of a started workflow (1.7).
Json workflow_output(Workflow const& workflow);

} // namespace ocrctl::server
