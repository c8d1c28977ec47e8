#include "processing_server/job_service.hpp"

#include "lib/base/crash_point.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "lib/mets/mets.hpp"
#include "lib/parameters/parameters.hpp"

#include <algorithm>
#include <openssl/evp.h>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;

namespace {

std::unexpected<Refusal> refuse(int status, std::string detail) { return std::unexpected(Refusal{status, std::move(detail), false}); }
std::unexpected<Refusal> malformed(std::string detail) { return std::unexpected(Refusal{422, std::move(detail), true}); }
std::unexpected<Refusal> refuse(Error const& error) { return refuse(error.http_status(), error.message()); }

std::string md5_hex(std::string_view text) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_Digest(text.data(), text.size(), digest, &size, EVP_md5(), nullptr);
    std::string hex;
    for (unsigned int i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
    return hex;
}

// --- reading a request's body: the first problem as text
struct Body {
    Json const& json;
    std::string problem;

    void wrong(std::string_view key, std::string_view expected) {
        if (problem.empty()) problem = fmt::format("{}: expected {}", key, expected);
    }
    std::optional<std::string> text(char const* key) {
        auto found = json.find(key);
        if (found == json.end() || found->is_null()) return std::nullopt;
        if (!found->is_string()) return wrong(key, "a string"), std::nullopt;
        return found->get<std::string>();
    }
    std::optional<std::vector<std::string>> list(char const* key, bool required = false) {
        auto found = json.find(key);
        if (found == json.end() || (found->is_null() && !required)) {
            if (required) wrong(key, "a list of strings, it is missing");
            return std::nullopt;
        }
        if (!found->is_array()) return wrong(key, "a list of strings"), std::nullopt;
        std::vector<std::string> values;
        for (auto const& value : *found) {
            if (!value.is_string()) return wrong(key, "a list of strings"), std::nullopt;
            values.push_back(value.get<std::string>());
        }
        return values;
    }
};

std::optional<ExistingOutput> existing_output_of(std::string_view text) {
    if (text == "skip") return ExistingOutput::Skip;
    if (text == "overwrite") return ExistingOutput::Overwrite;
    if (text == "abort") return ExistingOutput::Abort;
    return std::nullopt;
}

bool good_callback(std::string const& url) { return url.empty() || url.starts_with("http://"); }

// --- looking into a METS, on a pool thread
struct Wanted {
    std::string selector;
    std::vector<std::string> inputs;   // groups that must be there
    std::vector<std::string> outputs;  // groups that must not, where `abort`
    bool abort = false;
};
struct Looked {
    std::vector<std::string> pages;
    std::string missing;  // input groups that are not there: a sentence
    std::string existing; // output groups that are there: a sentence
    std::string selector; // why the selector is refused
    std::uint64_t generation = 0;
    std::vector<std::string> all_pages; // where the caller does not know them
};

Result<Looked> look(mets::Mets const& mets, Wanted const& wanted) {
    Looked looked;
    auto pages = mets.select_pages(wanted.selector);
    if (!pages) {
        looked.selector = pages.error().message();
        return looked;
    }
    looked.pages = std::move(*pages);
    std::vector<std::string> missing;
    for (auto const& group : wanted.inputs)
        if (!mets.has_group(group)) missing.push_back(group);
    if (!missing.empty())
        looked.missing = fmt::format("input group {} is not in the METS; it has: {}", join(missing, ", "), mets.groups_text());
    if (wanted.abort) {
        auto existing = mets::existing_outputs(mets, looked.pages, wanted.outputs);
        if (!existing.empty())
            looked.existing = fmt::format("output group {} has files already for {} (the first is {}); existing_output is abort",
                                          join(wanted.outputs, ", "), counted(existing.size(), "page"), existing.front());
    }
    return looked;
}

// From what is known, if it suffices: one page by its id, or all.
std::optional<Looked> from_facts(Workspace const& workspace, Wanted const& wanted) {
    auto const& facts = workspace.facts;
    if (wanted.abort || facts.generation == 0 || facts.generation != workspace.generation()) return std::nullopt;
    for (auto const& group : wanted.inputs)
        if (!facts.groups.contains(group)) return std::nullopt;
    Looked looked;
    if (wanted.selector.empty()) looked.pages = facts.pages;
    else if (facts.page_ids.contains(wanted.selector)) looked.pages = {wanted.selector};
    else return std::nullopt;
    return looked;
}

awaitable<Result<Looked>> look_into(std::shared_ptr<Workspace> workspace, Wanted wanted) {
    if (auto known = from_facts(*workspace, wanted)) co_return std::move(*known);
    auto have = workspace->facts.generation;
    auto work = [workspace, wanted, have](mets::Mets& mets) {
        auto looked = look(mets, wanted);
        if (looked && (looked->generation = workspace->generation()) != have) looked->all_pages = mets.pages();
        return looked;
    };
    auto looked = co_await workspace->with(std::move(work));
    if (looked && looked->selector.empty()) {
        auto& facts = workspace->facts;
        if (looked->generation != have) {
            facts.generation = looked->generation;
            facts.page_ids = {looked->all_pages.begin(), looked->all_pages.end()};
            facts.pages = std::move(looked->all_pages);
            facts.groups.clear();
        }
        if (looked->missing.empty() && facts.generation == looked->generation) facts.groups.insert(wanted.inputs.begin(), wanted.inputs.end());
    }
    co_return looked;
}

std::unexpected<Refusal> refuse_workspace(Error const& error) {
    if (error.kind() == ErrorKind::NotFound) return refuse(404, error.message());
    return refuse(error);
}

// A workflow that can be stored and run: parsed, and no task writes outside the workspace.
Result<std::vector<WorkflowTask>> checked_workflow(std::string const& content) {
    auto tasks = parse_workflow(content);
    if (!tasks) return tasks;
    for (auto const& task : *tasks)
        if (auto fits = mets::check_output_groups(task.output_groups); !fits)
            return fail(ErrorKind::Invalid, "line {} of the workflow: {}", task.line, fits.error().message());
    return tasks;
}

} // namespace

Json Refusal::body() const {
    if (!validation) return Json{{"detail", detail}};
    return Json{{"status_code", 10422}, {"message", "1 validation error: " + detail}, {"data", nullptr}, {"detail", detail}};
}

Json job_output(Job const& job) {
    Json out{{"job_id", job.id.str()},
             {"processor_name", job.target.name},
             {"state", wire(job.state)},
             {"input_file_grps", job.input_groups},
             {"output_file_grps", job.output_groups}};
    if (!job.path_to_mets.empty()) out["path_to_mets"] = job.path_to_mets;
    if (job.page_id) out["page_id"] = *job.page_id;
    if (!job.log_file.empty()) out["log_file_path"] = job.log_file;
    // Ours; OCR-D's clients ignore them.
    if (!job.reason.empty()) out["reason"] = job.reason;
    if (!job.pages_failed.empty()) out["pages_failed"] = job.pages_failed;
    if (!job.workflow.empty()) out["workflow_id"] = job.workflow.str();
    if (!job.slot.empty()) out["slot"] = job.slot.str();
    if (job.quarantined) out["quarantined"] = true;
    out["attempt"] = job.attempt;
    out["pages"] = job.pages.size();
    out["priority"] = job.priority;
    out["created"] = job.created;
    if (job.started != 0) out["started"] = job.started;
    if (job.ended != 0) out["ended"] = job.ended;
    return out;
}

Json workflow_output(Workflow const& workflow) {
    Json ids = Json::object();
    for (auto const& [page, jobs] : workflow.jobs) {
        auto& list = ids[page] = Json::array();
        for (auto const& id : jobs) list.push_back(id.str());
    }
    Json out{{"processing_job_ids", std::move(ids)}, {"page_id", workflow.page_id}, {"job_id", workflow.id.str()}, {"path_to_mets", workflow.path_to_mets}};
    if (workflow.page_wise) out["page_wise"] = true;
    return out;
}

JobService::JobService(Settings const& settings, store::Store& store, JobBook& book, Workspaces& workspaces,
                       Dispatcher& dispatcher, ForeignWorkers* foreign, ToolCatalogue& tools)
    : settings_(settings), store_(store), book_(book), workspaces_(workspaces), dispatcher_(dispatcher),
      foreign_(foreign), log_("jobs"), tools_(tools) {}

awaitable<std::vector<std::string>> JobService::processors() {
    auto names = dispatcher_.processors();
    if (foreign_ == nullptr) co_return names;
    std::set<std::string> all(names.begin(), names.end());
    std::vector<std::string> candidates; // what is in no catalogue cannot be run either
    for (auto const& name : tools_.names())
        if (!all.contains(name)) candidates.push_back(name);
    auto foreign = co_await foreign_->processors(std::move(candidates));
    all.insert(foreign.begin(), foreign.end());
    co_return std::vector<std::string>(all.begin(), all.end());
}

awaitable<JobService::Runs> JobService::who_runs(std::string processor) {
    // What is known already, of either kind, costs the broker no question.
    if (foreign_ != nullptr && !dispatcher_.knows_already(processor) && foreign_->knows_already(processor)) co_return Runs::Foreign;
    auto managed = co_await dispatcher_.knows(processor);
    if (managed) co_return Runs::Managed;
    auto foreign = foreign_ != nullptr && co_await foreign_->knows(std::move(processor));
    co_return foreign ? Runs::Foreign : Runs::Nobody;
}

// What cannot be promised for a foreign Worker is refused.
std::optional<Refusal> JobService::check_foreign(Job const& job) const {
    if (!job.foreign) return std::nullopt;
    if (job.existing_output == ExistingOutput::Overwrite)
        return Refusal{422,
                       fmt::format("NOT_SUPPORTED: {} has an OCR-D Worker, which keeps existing outputs unless it was "
                                   "started with OCRD_EXISTING_OUTPUT=OVERWRITE",
                                   job.target.name),
                       false};
    if (job.mets_basename != "mets.xml")
        return Refusal{
            422,
            fmt::format("NOT_SUPPORTED: {} has an OCR-D Worker, which works on a METS called mets.xml, not {}",
                        job.target.name, job.mets_basename),
            false};
    return std::nullopt;
}

Answer<JobService::Place> JobService::locate(std::string const& path_to_mets) {
    auto now = std::chrono::steady_clock::now();
    if (auto known = places_.find(path_to_mets); known != places_.end() && now - known->second.found < std::chrono::seconds(2)) return known->second;
    if (places_.size() > 10'000) places_.clear();
    std::error_code problem;
    auto absolute = std::filesystem::absolute(path_to_mets, problem).lexically_normal();
    auto allowed = [&](std::filesystem::path const& path) { return below_roots(settings_.workspaces, path); };
    auto forbidden = [&] {
        std::vector<std::string> roots;
        for (auto const& root : settings_.workspaces) roots.push_back(root.native());
        return refuse(403, fmt::format("{} is not below one of the configured workspace roots ({})", path_to_mets, join(roots, ", ")));
    };
    if (!allowed(absolute)) return forbidden();
    auto folder = canonical_path(absolute.parent_path());
    auto nowhere = [&] {
        return refuse(404, fmt::format("no METS file at {}{}", path_to_mets, path_to_mets.starts_with('/') ? "" : ": the server takes relative paths from its own folder, give an absolute one"));
    };
    if (!folder) return nowhere();
    if (!allowed(*folder / "x")) return forbidden();
    if (!std::filesystem::is_regular_file(*folder / absolute.filename(), problem)) return nowhere();
    Place place{folder->native(), absolute.filename().native(), now};
    places_[path_to_mets] = place;
    return place;
}

std::optional<Refusal> JobService::check_parameters(std::string const& processor, Json const& parameters) {
    auto key = processor + '\n' + dump(parameters);
    if (checked_.contains(key)) return std::nullopt;
    auto good = parameters::check_parameters(*tools_.find(processor), parameters);
    if (!good) return Refusal{400, fmt::format("invalid parameters for {}: {}", processor, good.error().message()), false};
    if (checked_.size() > 10'000) checked_.clear();
    checked_.insert(std::move(key));
    return std::nullopt;
}

awaitable<Answer<Job>> JobService::submit(std::string processor, Json body) {
    if (intake_closed_) co_return refuse(503, "the deployment takes no new Jobs: it is draining or closing");
    if (!body.is_object()) co_return malformed("the body must be a JSON object");
    Body fields{body, {}};
    Job job;
    job.target.name = processor;
    auto inputs = fields.list("input_file_grps", true);
    auto outputs = fields.list("output_file_grps");
    auto path_to_mets = fields.text("path_to_mets");
    auto workspace_id = fields.text("workspace_id");
    job.page_id = fields.text("page_id");
    if (auto parameters = body.find("parameters"); parameters != body.end()) {
        if (!parameters->is_object()) fields.wrong("parameters", "an object");
        else job.parameters = *parameters;
    }
    job.description = fields.text("description").value_or("");
    job.result_queue_name = fields.text("result_queue_name").value_or("");
    job.callback_url = fields.text("callback_url").value_or("");
    auto depends_on = fields.list("depends_on");
    auto job_id = fields.text("job_id");
    auto existing = fields.text("existing_output");
    job.existing_output = settings_.existing_output;
    if (existing) {
        if (auto value = existing_output_of(*existing)) job.existing_output = *value;
        else fields.wrong("existing_output", "skip, overwrite or abort");
    }
    if (auto priority = body.find("priority"); priority != body.end() && !priority->is_null()) {
        if (!priority->is_number_integer()) fields.wrong("priority", "a whole number");
        else job.priority = priority->get<int>();
    }
    if (!fields.problem.empty()) co_return malformed(fields.problem);

    auto runs = co_await who_runs(processor);
    if (runs == Runs::Nobody) {
        auto there = co_await processors();
        co_return refuse(
            422, fmt::format("no Worker of this deployment runs {}; there are: {}", processor, join(there, ", ")));
    }
    job.foreign = runs == Runs::Foreign;
    if (job_id && !job_id->empty()) co_return refuse(422, "job_id must not be set by the client");
    auto const* tool = co_await tools_.find_or_ask(processor);
    if (tool == nullptr) co_return refuse(404, ToolCatalogue::unknown(processor));
    if (path_to_mets.has_value() == workspace_id.has_value())
        co_return refuse(422, "exactly one of path_to_mets and workspace_id must be given");
    if (auto refusal = check_parameters(processor, job.parameters)) co_return std::unexpected(std::move(*refusal));
    if (workspace_id) {
        std::optional<std::string> path;
        if (foreign_ != nullptr) {
            auto found = co_await foreign_->path_of_workspace(*workspace_id);
            if (!found) co_return refuse(found.error());
            path = std::move(*found);
        }
        if (!path) co_return refuse(404, fmt::format("no workspace has the id {}", *workspace_id));
        path_to_mets = std::move(path);
    }
    if (!outputs || outputs->empty()) co_return refuse(422, "output_file_grps: at least one output group is needed");
    if (auto fits = mets::check_output_groups(*outputs); !fits) co_return refuse(422, "output_file_grps: " + fits.error().message());
    if (inputs->empty()) co_return refuse(422, "input_file_grps: at least one input group is needed");
    if (!good_callback(job.callback_url)) co_return refuse(422, fmt::format("callback_url {} is no http:// address", job.callback_url));
    for (auto const& output : *outputs)
        if (std::ranges::find(*inputs, output) != inputs->end())
            co_return refuse(422, fmt::format("group {} is both input and output", output));
    auto place = locate(*path_to_mets);
    if (!place) co_return std::unexpected(place.error());
    job.path_to_mets = *path_to_mets;
    job.workspace = place->folder;
    job.mets_basename = place->mets_basename;
    if (auto refusal = check_foreign(job)) co_return std::unexpected(std::move(*refusal));
    job.input_groups = std::move(*inputs);
    job.output_groups = std::move(*outputs);
    if (depends_on)
        for (auto& id : *depends_on) job.depends_on.emplace_back(std::move(id));

    Wanted wanted{job.page_id.value_or(""), {}, job.output_groups, job.existing_output == ExistingOutput::Abort};
    if (job.depends_on.empty()) wanted.inputs = job.input_groups; // else they may still be made
    auto workspace = workspaces_.open(job.workspace, job.mets_basename);
    auto looked = co_await look_into(workspace, wanted);
    if (!looked) co_return refuse_workspace(looked.error());
    if (!looked->selector.empty()) co_return refuse(422, fmt::format("page_id {}: {}", wanted.selector, looked->selector));
    if (!looked->missing.empty()) co_return refuse(422, looked->missing);
    if (!looked->existing.empty()) co_return refuse(409, looked->existing);
    job.pages = std::move(looked->pages);

    std::unordered_map<JobId, JobState> ended;
    std::vector<JobId> to_look_up;
    for (auto const& id : job.depends_on)
        if (!book_.known_state(id)) to_look_up.push_back(id);
    if (!to_look_up.empty()) {
        auto found = co_await store_.jobs(to_look_up);
        if (!found) co_return refuse(found.error());
        for (auto const& dependency : *found) ended[dependency.id] = dependency.state;
        for (auto const& id : to_look_up)
            if (!ended.contains(id) && !book_.known_state(id))
                co_return refuse(422, fmt::format("depends_on: there is no Job {}", id.str()));
    }
    if (intake_closed_) co_return refuse(503, "the deployment takes no new Jobs: it is draining or closing");

    job.id = JobId(new_uuid());
    job.created = now_millis();
    store::Batch batch;
    if (book_.insert(job, ended) == JobState::Cancelled) {
        job.reason = "a Job that it depends on failed or was cancelled";
        job.attempt = 1;
        job.ended = job.created;
        batch.put(job);
        if (auto written = co_await store_.write(std::move(batch)); !written) co_return refuse(written.error());
        co_return job;
    }
    batch.put(job);
    auto written = co_await store_.write(std::move(batch));
    if (!written) {
        book_.forget(job.id);
        co_return refuse(written.error());
    }
    crash_point("server.after-accept");
    log_.debug("job.accepted", kv(field::kJob, job.id.str()), kv(field::kProcessor, processor));
    book_.durable(job.id);
    co_return job;
}

awaitable<Answer<Job>> JobService::job(JobId id) {
    if (auto const* open = book_.find(id)) {
        auto job = open->job;
        job.state = book_.shown_state(*open);
        if (job.state == JobState::Cached) {
            if (auto blocker = book_.locks().blocker(id); !blocker.empty()) job.reason = fmt::format("waits for pages that Job {} writes", blocker.str());
            else if (open->unmet > 0) job.reason = fmt::format("waits for {}", counted(open->unmet, "Job"));
        }
        co_return job;
    }
    auto found = co_await store_.job(id);
    if (!found) co_return refuse(found.error());
    if (!*found) co_return refuse(422, fmt::format("there is no Job {}", id.str()));
    co_return std::move(**found);
}

awaitable<Answer<std::vector<Job>>> JobService::jobs(std::optional<JobState> state, std::size_t limit) {
    std::vector<Job> found;
    if (!state || !is_final(*state)) {
        for (auto const& [id, open] : book_.all()) {
            auto shown = book_.shown_state(*open);
            if (state && shown != *state) continue;
            found.push_back(open->job);
            found.back().state = shown;
        }
        std::ranges::sort(found, {}, &Job::id);
        if (found.size() > limit) found.resize(limit);
        if (state) co_return found;
    }
    auto ended = co_await store_.jobs_in(state, limit);
    if (!ended) co_return refuse(ended.error());
    for (auto& job : *ended)
        if (is_final(job.state) && found.size() < limit) found.push_back(std::move(job));
    co_return found;
}

awaitable<Answer<Job>> JobService::cancel(JobId id) {
    auto const* open = book_.find(id);
    if (open == nullptr) {
        auto found = co_await store_.job(id);
        if (!found) co_return refuse(found.error());
        if (!*found) co_return refuse(404, fmt::format("there is no Job {}", id.str()));
        co_return refuse(409, fmt::format("Job {} has ended already: {}", id.str(), wire((*found)->state)));
    }
    if (open->ending || open->deciding || open->phase == Phase::Committed)
        co_return refuse(409, fmt::format("Job {} has its result already", id.str()));
    auto job = open->job;
    if (job.foreign && (open->phase == Phase::Published || open->phase == Phase::Publishing)) {
        auto taken = foreign_ != nullptr && co_await foreign_->take_back(id);
        if (!taken)
            co_return refuse(
                409,
                fmt::format("NOT_SUPPORTED: Job {} is with an OCR-D Worker, which cannot be told to stop", id.str()));
    }
    std::vector<Ending> endings{Ending{id, JobState::Cancelled, "cancelled by request"}};
    co_await book_.end(std::move(endings), {});
    job.state = JobState::Cancelled;
    job.reason = "cancelled by request";
    co_return job;
}

awaitable<Answer<Workflow>> JobService::run(WorkflowRequest request) {
    if (intake_closed_) co_return refuse(503, "the deployment takes no new Jobs: it is draining or closing");
    auto place = locate(request.mets_path);
    if (!place) co_return std::unexpected(place.error());
    auto content = std::move(request.script);
    if (!request.workflow_id.empty()) {
        auto stored = co_await store_.script(request.workflow_id);
        if (!stored) co_return refuse(stored.error());
        if (!*stored) co_return refuse(404, fmt::format("there is no workflow {}", request.workflow_id));
        content = std::move((*stored)->content);
    }
    if (trim(content).empty()) co_return refuse(422, "neither a workflow script nor the id of one was given");
    auto parsed = checked_workflow(content);
    if (!parsed) co_return refuse(422, parsed.error().message());
    auto const& tasks = *parsed;
    auto const needs = dependencies(tasks);
    if (!good_callback(request.callback_url)) co_return refuse(422, fmt::format("workflow_callback_url {} is no http:// address", request.callback_url));

    // What the METS must hold: groups that no earlier task writes.
    Wanted wanted{request.page_id, {}, {}, request.existing_output.value_or(settings_.existing_output) == ExistingOutput::Abort};
    std::set<std::string> made;
    for (auto const& task : tasks) {
        for (auto const& group : task.input_groups)
            if (!made.contains(group)) wanted.inputs.push_back(group);
        made.insert(task.output_groups.begin(), task.output_groups.end());
        wanted.outputs.insert(wanted.outputs.end(), task.output_groups.begin(), task.output_groups.end());
    }
    auto workspace = workspaces_.open(place->folder, place->mets_basename);
    auto looked = co_await look_into(workspace, wanted);
    if (!looked) co_return refuse_workspace(looked.error());
    if (!looked->missing.empty()) co_return refuse(422, looked->missing);
    std::vector<std::string> unknown;
    std::map<std::string, bool> foreign;
    for (auto const& task : tasks) {
        auto runs = co_await who_runs(task.processor);
        foreign[task.processor] = runs == Runs::Foreign;
        if (runs == Runs::Nobody && std::ranges::find(unknown, task.processor) == unknown.end())
            unknown.push_back(task.processor);
    }
    if (!unknown.empty()) {
        auto twice = std::ranges::any_of(unknown, [](auto const& name) { return name.starts_with("ocrd-ocrd-"); });
        co_return refuse(406, fmt::format("no Worker of this deployment runs {}{}; there are: {}", join(unknown, ", "),
                                          twice ? " (in a workflow names go without \"ocrd-\")" : "", join(co_await processors(), ", ")));
    }
    if (!looked->selector.empty()) co_return refuse(422, fmt::format("page_id {}: {}", request.page_id, looked->selector));
    for (auto const& task : tasks) {
        auto const* tool = co_await tools_.find_or_ask(task.processor);
        if (tool == nullptr) co_return refuse(404, ToolCatalogue::unknown(task.processor));
        if (auto refusal = check_parameters(task.processor, task.parameters)) co_return std::unexpected(std::move(*refusal));
        Job asked;
        asked.target.name = task.processor;
        asked.foreign = foreign[task.processor];
        asked.mets_basename = place->mets_basename;
        asked.existing_output = request.existing_output.value_or(settings_.existing_output);
        if (auto refusal = check_foreign(asked)) co_return std::unexpected(std::move(*refusal));
    }
    if (!looked->existing.empty()) co_return refuse(409, looked->existing);
    if (looked->pages.empty()) co_return refuse(422, "the METS has no pages");
    if (intake_closed_) co_return refuse(503, "the deployment takes no new Jobs: it is draining or closing");

    Workflow workflow;
    workflow.id = WorkflowId(new_uuid());
    workflow.path_to_mets = request.mets_path;
    workflow.workspace = place->folder;
    workflow.page_id = request.page_id;
    workflow.page_wise = request.page_wise;
    workflow.callback_url = request.callback_url;
    workflow.created = now_millis();
    store::Batch puts;
    std::vector<JobId> ids;
    auto instantiate = [&](std::string const& key, std::optional<std::string> page_id, std::vector<std::string> const& pages) {
        auto& listed = workflow.jobs[key];
        for (std::size_t i = 0; i < tasks.size(); ++i) {
            auto const& task = tasks[i];
            Job job;
            job.id = JobId(new_uuid());
            job.target.name = task.processor;
            job.foreign = foreign[task.processor];
            job.workspace = place->folder;
            job.path_to_mets = request.mets_path;
            job.mets_basename = place->mets_basename;
            job.input_groups = task.input_groups;
            job.output_groups = task.output_groups;
            job.page_id = page_id;
            job.pages = pages;
            job.parameters = task.parameters;
            job.existing_output = request.existing_output.value_or(settings_.existing_output);
            job.priority = request.priority;
            job.workflow = workflow.id;
            job.created = workflow.created;
            for (auto earlier : needs[i]) job.depends_on.push_back(listed[earlier]);
            book_.insert(job, {});
            puts.put(job);
            ids.push_back(job.id);
            listed.push_back(job.id);
        }
    };
    if (request.page_wise)
        for (auto const& page : looked->pages) instantiate(page, page, {page});
    else instantiate(request.page_id, request.page_id, looked->pages);
    store::Batch batch;
    batch.put(workflow); // before its Jobs: none of them is without it
    if (!workflow.callback_url.empty()) batch.put_callback(ids.front());
    batch.append(std::move(puts));
    auto written = co_await store_.write(std::move(batch));
    if (!written) {
        std::ranges::reverse(ids);
        for (auto const& id : ids) book_.forget(id);
        co_return refuse(written.error());
    }
    crash_point("server.after-accept");
    log_.info("workflow.accepted", kv(field::kWorkflow, workflow.id.str()), kv(field::kCount, ids.size()), kv(field::kWorkspace, place->folder));
    if (!workflow.callback_url.empty())
        book_.tell_at_end(workflow.id, {ids.front(), workflow.callback_url, workflow.path_to_mets});
    for (auto const& id : ids) book_.durable(id);
    if (foreign_ != nullptr) foreign_->mirror(workflow);
    co_return workflow;
}

awaitable<Answer<Workflow>> JobService::workflow(WorkflowId id) {
    auto found = co_await store_.workflow(id);
    if (!found) co_return refuse(found.error());
    if (!*found) co_return refuse(404, fmt::format("there is no workflow job {}", id.str()));
    co_return std::move(**found);
}

awaitable<Answer<WorkflowCounts>> JobService::counts(WorkflowId id) {
    if (auto const* open = book_.workflow(id)) co_return *open;
    auto found = co_await store_.workflow_counts(id);
    if (!found) co_return refuse(found.error());
    if (found->empty()) {
        auto there = co_await store_.workflow(id);
        if (!there) co_return refuse(there.error());
        if (!*there) co_return refuse(404, fmt::format("there is no workflow job {}", id.str()));
    }
    WorkflowCounts counts;
    for (auto const& one : *found) counts[one.processor][one.state] = one.count;
    co_return counts;
}

awaitable<Answer<JobState>> JobService::workflow_state(WorkflowId id) {
    auto counts = co_await this->counts(std::move(id));
    if (!counts) co_return std::unexpected(counts.error());
    std::map<JobState, std::size_t> sum;
    std::size_t total = 0;
    for (auto const& [processor, states] : *counts)
        for (auto const& [state, count] : states) {
            sum[state] += count;
            total += count;
        }
    if (sum[JobState::Failed] + sum[JobState::Cancelled] > 0) co_return JobState::Failed;
    if (sum[JobState::Success] == total) co_return JobState::Success;
    if (sum[JobState::Running] + sum[JobState::Success] > 0) co_return JobState::Running;
    if (sum[JobState::Queued] > 0) co_return JobState::Queued;
    co_return JobState::Cached;
}

awaitable<Answer<Json>> JobService::workflow_status(WorkflowId id) {
    auto counts = co_await this->counts(id);
    if (!counts) co_return std::unexpected(counts.error());
    Json out = Json::object();
    auto any_failed = false;
    for (auto const& [processor, states] : *counts) {
        auto& entry = out[processor] = Json::object();
        for (auto const& [state, count] : states) {
            if (count == 0) continue;
            entry[std::string(wire(state))] = count;
            any_failed |= state == JobState::Failed;
        }
    }
    if (any_failed) {
        auto failures = co_await store_.workflow_failures(id);
        if (!failures) co_return refuse(failures.error());
        Json failed = Json::object();
        for (auto const& job : *failures)
            failed[job.target.name].push_back(Json{{"job_id", job.id.str()}, {"page_id", job.page_id ? Json(*job.page_id) : Json()}, {"reason", job.reason}});
        if (!failed.empty()) out["failed-processor-tasks"] = std::move(failed);
    }
    co_return out;
}

awaitable<Answer<std::string>> JobService::add_script(std::string content) {
    if (trim(content).empty()) co_return refuse(422, "the workflow script is empty");
    if (auto parsed = checked_workflow(content); !parsed) co_return refuse(422, parsed.error().message());
    WorkflowScript script{new_uuid(), content, md5_hex(content)};
    auto id = script.id;
    store::Batch batch;
    batch.add(script);
    if (auto written = co_await store_.write(std::move(batch)); !written) co_return refuse(written.error());
    if (foreign_ != nullptr) foreign_->mirror(std::move(script));
    co_return id;
}

awaitable<Answer<std::string>> JobService::replace_script(std::string id, std::string content) {
    auto found = co_await store_.script(id);
    if (!found) co_return refuse(found.error());
    if (!*found) co_return refuse(404, fmt::format("there is no workflow {}", id));
    if (trim(content).empty()) co_return refuse(422, "the workflow script is empty");
    if (auto parsed = checked_workflow(content); !parsed) co_return refuse(422, parsed.error().message());
    store::Batch batch;
    WorkflowScript script{id, content, md5_hex(content)};
    batch.put(script);
    if (auto written = co_await store_.write(std::move(batch)); !written) co_return refuse(written.error());
    if (foreign_ != nullptr) foreign_->mirror(std::move(script));
    co_return id;
}

awaitable<Answer<std::string>> JobService::script(std::string id) {
    auto found = co_await store_.script(id);
    if (!found) co_return refuse(found.error());
    if (!*found) co_return refuse(404, fmt::format("there is no workflow {}", id));
    co_return (*found)->content;
}

} // namespace ocrctl::server
