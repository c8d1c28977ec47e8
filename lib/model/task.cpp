#include "lib/model/task.hpp"

namespace ocrctl {

OCRCTL_JSON_FIELDS(FileRef, group, id, page_id, mimetype, path, size, digest)
OCRCTL_JSON_FIELDS(PageInput, page_id, files, output_ids)
OCRCTL_JSON_FIELDS(Task, job, shard, attempt, deadline, workspace, mets_basename, processor,
                                                input_groups, output_groups, pages, parameters)
OCRCTL_JSON_FIELDS(TaskMessage, v, target, reply_to, tasks)
OCRCTL_JSON_FIELDS(PageOutcome, page_id, ok, error, retry, files, warnings)
OCRCTL_JSON_FIELDS(Provenance, name, step, parameters)
OCRCTL_JSON_FIELDS(TaskResult, v, job, shard, attempt, run, slot, staging, pages, error,
                                                engine_died, cancelled, provenance, log, started, ended)

std::string staging_folder(JobId const& job, RunId const& run) { return ".ocrctl/" + job.str() + "/" + run.str(); }

std::string output_file_id(FileRef const& input, std::string const& output_group) {
    if (auto at = input.id.find(input.group); !input.group.empty() && at != std::string::npos) {
        auto id = input.id;
        for (auto i = at; i != std::string::npos; i = id.find(input.group, i + output_group.size()))
            id.replace(i, input.group.size(), output_group);
        return id;
    }
    if (!input.page_id.empty() && input.id.find(input.page_id) == std::string::npos) return output_group + "_" + input.page_id;
    return output_group + "_" + input.id;
}

} // namespace ocrctl
