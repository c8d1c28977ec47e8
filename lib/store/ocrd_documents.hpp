// OCR-D's own collections beside ours in the same MongoDB (network protocol section 4): what foreign Workers read and write.
#pragma once

#include "lib/async/asio.hpp"
#include "lib/base/error.hpp"
#include "lib/model/job.hpp"

#include <optional>
#include <string>
#include <vector>

namespace ocrctl::store {

/// What a foreign Worker has written into its Job's row of DBProcessorJob.
struct OcrdJobRow {
    JobId id;
    JobState state = JobState::Unset;
    std::string log_file;          // log_file_path, on the Worker's host
    Millis started = 0, ended = 0; // as written: the Worker's local wall clock taken for UTC, for order and display only
    std::string exec_time;         // "14 ms"
};

/// The four collections DBProcessorJob, DBWorkflowJob, DBWorkflowScript, workspace, with OCR-D's documents exactly. They mirror
/// the Store for foreign Workers; the truth about a Job stays in the Store. A Worker writes whole rows back, so nothing is
/// changed here while it has the Job. May be awaited from any executor. Errors: Unavailable (try again), Internal.
class OcrdDocuments {
public:
    virtual ~OcrdDocuments() = default;

    /// The row of `workspace` for this METS path, made if it is missing; its mets_server_url is set.
    virtual awaitable<Result<void>> put_workspace(std::string path_to_mets, std::string mets_server_url) = 0;
    /// The METS path of a workspace_id; nothing if there is no such row.
    virtual awaitable<Result<std::optional<std::string>>> path_of_workspace(std::string workspace_id) = 0;
    /// Rows as OCR-D's server inserts them, in state QUEUED; a row of the same job_id (a further attempt) is replaced.
    virtual awaitable<Result<void>> put_jobs(std::vector<Job> jobs) = 0;
    /// Of a row no Worker has: CANCELLED, FAILED by the server. No such row: nothing happens.
    virtual awaitable<Result<void>> set_state(JobId id, JobState state) = 0;
    /// Those that exist.
    virtual awaitable<Result<std::vector<OcrdJobRow>>> jobs(std::vector<JobId> ids) = 0;
    virtual awaitable<Result<void>> put_workflow(Workflow workflow) = 0;
    virtual awaitable<Result<void>> put_script(WorkflowScript script) = 0;
};

} // namespace ocrctl::store
