// A Job: one run of a Processor over pages of a Workspace. The store's ocrctl_jobs document is the truth about it
// (docs/contracts.md, "Store"). Wire strings of JobState are OCR-D's (OCR-D network protocol, section 1.4).
#pragma once

#include "lib/base/clock.hpp"
#include "lib/model/json.hpp"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ocrctl {

enum class JobState { Unset, Cached, Queued, Running, Success, Failed, Cancelled };

std::string_view wire(JobState state) noexcept; // "QUEUED"
std::optional<JobState> job_state(std::string_view wire) noexcept;
/// Success, Failed, Cancelled: nothing follows.
bool is_final(JobState state) noexcept;

/// What a Job is sent to.
struct Target {
    std::string kind = "processor"; // processor | stage
    std::string name;               // "ocrd-ocrctl-binarize"
    std::string version;            // empty: whatever the deployment runs
};

enum class ExistingOutput { Skip, Overwrite, Abort };

struct Job {
    JobId id;
    Target target;
    bool foreign = false;      // for an unmodified OCR-D Worker; decided at submission
    std::string workspace;     // canonical folder: the Workspace's id and key everywhere
    std::string path_to_mets;  // as submitted; shown to clients
    std::string mets_basename = "mets.xml";
    std::vector<std::string> input_groups;
    std::vector<std::string> output_groups;
    std::optional<std::string> page_id;  // the selector as submitted; absent: all pages
    std::vector<std::string> pages;      // what it selects, in page order; resolved at submission
    Json parameters = Json::object();    // as submitted, defaults not filled
    std::vector<JobId> depends_on;
    std::string description, result_queue_name, callback_url, internal_callback_url;
    ExistingOutput existing_output = ExistingOutput::Skip;
    int priority = 0;                    // higher first
    WorkflowId workflow;                 // empty: submitted alone
    JobState state = JobState::Unset;
    int attempt = 0;                     // the current one, counted from 1; stored before it is published
    bool published = false;              // the broker has confirmed the current attempt
    std::optional<std::vector<std::string>> pages_left; // of a later attempt: only these; absent: all
    std::map<std::string, std::string> pages_failed;    // page -> why
    int retries = 0;                     // attempts made because of transient trouble
    int engine_deaths = 0;               // two make it poison: Failed with quarantined = true
    bool quarantined = false;
    bool committed = false;              // outcome is stored, METS not yet saved: applied again at start
    std::string reason;                  // one sentence: why Failed or Cancelled
    std::string log_file;                // on the server, "" before the first result
    Slot slot;          // who worked on it last; a foreign Job: whose vhost it was given to, empty for the common one
    int worker_pid = 0; // a foreign Job: the process that was given it; 0: not known
    Millis created = 0, started = 0, ended = 0;
};

void to_json(Json& json, Target const& target);
void from_json(Json const& json, Target& target);
void to_json(Json& json, Job const& job);
void from_json(Json const& json, Job& job);

/// One start of a workflow script over a Workspace (OCR-D: DBWorkflowJob).
struct Workflow {
    WorkflowId id;
    std::string path_to_mets, workspace;
    std::string page_id;
    bool page_wise = false;
    std::string callback_url;
    std::map<std::string, std::vector<JobId>> jobs; // page id (or the selector) -> Jobs in task order
    Millis created = 0;
};

void to_json(Json& json, Workflow const& workflow);
void from_json(Json const& json, Workflow& workflow);

struct WorkflowScript {
    std::string id, content, content_hash; // hash: hex MD5 of the UTF-8 content, as OCR-D has it
};

} // namespace ocrctl
