#include "lib/model/job.hpp"

#include <array>
#include <utility>

namespace ocrctl {
namespace {

constexpr std::array<std::pair<JobState, std::string_view>, 7> kStates{{{JobState::Unset, "UNSET"},
                                                                       {JobState::Cached, "CACHED"},
                                                                       {JobState::Queued, "QUEUED"},
                                                                       {JobState::Running, "RUNNING"},
                                                                       {JobState::Success, "SUCCESS"},
                                                                       {JobState::Failed, "FAILED"},
                                                                       {JobState::Cancelled, "CANCELLED"}}};

constexpr std::array<std::pair<ExistingOutput, std::string_view>, 3> kExisting{
    {{ExistingOutput::Skip, "skip"}, {ExistingOutput::Overwrite, "overwrite"}, {ExistingOutput::Abort, "abort"}}};

} // namespace

Result<Json> parse_json(std::string_view text) {
    try {
        return Json::parse(text);
    } catch (Json::exception const& problem) {
        return fail(ErrorKind::Invalid, "not JSON: {}", problem.what());
    }
}

std::string dump(Json const& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string_view wire(JobState state) noexcept {
    for (auto const& [value, text] : kStates)
        if (value == state) return text;
    return "UNSET";
}

std::optional<JobState> job_state(std::string_view text) noexcept {
    for (auto const& [value, name] : kStates)
        if (name == text) return value;
    return std::nullopt;
}

bool is_final(JobState state) noexcept {
    return state == JobState::Success || state == JobState::Failed || state == JobState::Cancelled;
}

OCRCTL_JSON_FIELDS(Target, kind, name, version)

void to_json(Json& json, Job const& job) {
    json = Json{{"id", job.id},
                {"target", job.target},
                {"workspace", job.workspace},
                {"path_to_mets", job.path_to_mets},
                {"mets_basename", job.mets_basename},
                {"input_groups", job.input_groups},
                {"output_groups", job.output_groups},
                {"pages", job.pages},
                {"parameters", job.parameters},
                {"depends_on", job.depends_on},
                {"priority", job.priority},
                {"state", wire(job.state)},
                {"attempt", job.attempt},
                {"engine_deaths", job.engine_deaths},
                {"quarantined", job.quarantined},
                {"committed", job.committed},
                {"published", job.published},
                {"retries", job.retries},
                {"created", job.created},
                {"started", job.started},
                {"ended", job.ended}};
    for (auto const& [value, text] : kExisting)
        if (value == job.existing_output) json["existing_output"] = text;
    if (job.foreign) json["foreign"] = true;
    if (job.worker_pid != 0) json["worker_pid"] = job.worker_pid;
    if (job.page_id) json["page_id"] = *job.page_id;
    if (job.pages_left) json["pages_left"] = *job.pages_left;
    if (!job.pages_failed.empty()) json["pages_failed"] = job.pages_failed;
    auto text = [&](char const* key, std::string const& value) {
        if (!value.empty()) json[key] = value;
    };
    text("description", job.description);
    text("result_queue_name", job.result_queue_name);
    text("callback_url", job.callback_url);
    text("internal_callback_url", job.internal_callback_url);
    text("workflow", job.workflow.str());
    text("reason", job.reason);
    text("log_file", job.log_file);
    text("slot", job.slot.str());
}

void from_json(Json const& json, Job& job) {
    job.id = json.at("id").get<JobId>();
    job.target = json.at("target").get<Target>();
    job.foreign = json.value("foreign", false);
    job.worker_pid = json.value("worker_pid", 0);
    job.workspace = json.value("workspace", "");
    job.path_to_mets = json.value("path_to_mets", "");
    job.mets_basename = json.value("mets_basename", "mets.xml");
    job.input_groups = json.value("input_groups", std::vector<std::string>{});
    job.output_groups = json.value("output_groups", std::vector<std::string>{});
    if (json.contains("page_id") && json["page_id"].is_string()) job.page_id = json["page_id"].get<std::string>();
    job.pages = json.value("pages", std::vector<std::string>{});
    job.parameters = json.value("parameters", Json::object());
    job.depends_on = json.value("depends_on", std::vector<JobId>{});
    job.description = json.value("description", "");
    job.result_queue_name = json.value("result_queue_name", "");
    job.callback_url = json.value("callback_url", "");
    job.internal_callback_url = json.value("internal_callback_url", "");
    auto existing = json.value("existing_output", "skip");
    for (auto const& [value, text] : kExisting)
        if (text == existing) job.existing_output = value;
    job.priority = json.value("priority", 0);
    job.workflow = WorkflowId(json.value("workflow", ""));
    job.state = job_state(json.value("state", "UNSET")).value_or(JobState::Unset);
    job.attempt = json.value("attempt", 0);
    job.engine_deaths = json.value("engine_deaths", 0);
    job.quarantined = json.value("quarantined", false);
    job.committed = json.value("committed", false);
    job.published = json.value("published", false);
    job.retries = json.value("retries", 0);
    if (json.contains("pages_left")) job.pages_left = json["pages_left"].get<std::vector<std::string>>();
    job.pages_failed = json.value("pages_failed", std::map<std::string, std::string>{});
    job.reason = json.value("reason", "");
    job.log_file = json.value("log_file", "");
    job.slot = Slot(json.value("slot", ""));
    job.created = json.value("created", Millis{0});
    job.started = json.value("started", Millis{0});
    job.ended = json.value("ended", Millis{0});
}

OCRCTL_JSON_FIELDS(Workflow, id, path_to_mets, workspace, page_id, page_wise, callback_url,
                                                jobs, created)

} // namespace ocrctl
