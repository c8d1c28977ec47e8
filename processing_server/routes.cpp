#include "processing_server/routes.hpp"

#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/net/form.hpp"
#include "lib/tools/catalogue.hpp"
#include "processing_server/openapi.hpp"

#include <algorithm>
#include <charconv>
#include <ctime>

namespace ocrctl::server {

using net::Request;
using net::Response;
using namespace std::chrono_literals;

namespace {

Response refusal(Refusal const& refused) {
    auto response = Response::json(refused.status, refused.body());
    if (refused.status == 503) response.headers.set("Retry-After", "5");
    return response;
}

Response malformed(std::string detail) { return refusal(Refusal{422, std::move(detail), true}); }

std::optional<bool> boolean(std::string text) {
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
    for (auto const* yes : {"true", "1", "yes", "on", "t", "y"})
        if (text == yes) return true;
    for (auto const* no : {"false", "0", "no", "off", "f", "n"})
        if (text == no) return false;
    return std::nullopt;
}

std::optional<long> number(std::string const& text) {
    long value = 0;
    auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
}

bool valid_utf8(std::string const& text) {
    try {
        (void)Json(text).dump();
        return true;
    } catch (Json::exception const&) {
        return false;
    }
}

// The workflow of a request: an upload's content, or the file on this machine that a plain field names. An upload of one line
// that is such a name counts as the name: OCR-D's client sends it so (1.10).
std::expected<std::string, Response> workflow_of(Request const& request, bool required) {
    std::vector<net::FormPart> parts;
    if (!request.body.empty() || request.headers.has("Content-Type")) {
        auto parsed = net::parse_form(request);
        if (!parsed) {
            if (required || !request.body.empty()) return std::unexpected(malformed("workflow: " + parsed.error().message()));
        } else parts = std::move(*parsed);
    }
    auto const* part = net::find_part(parts, "workflow");
    if (part == nullptr) {
        if (required) return std::unexpected(malformed("workflow: the field is missing"));
        return std::string();
    }
    if (!part->filename) {
        if (part->body.empty()) return std::string();
        auto content = read_file(part->body);
        if (!content) return std::unexpected(Response::error(422, "workflow: " + content.error().message()));
        if (!valid_utf8(*content)) return std::unexpected(Response::error(422, "workflow: the file is not UTF-8"));
        return *content;
    }
    if (!valid_utf8(part->body)) return std::unexpected(Response::error(422, "workflow: the upload is not UTF-8"));
    auto line = std::string(trim(part->body));
    if (line.find('\n') == std::string::npos && line.find(" -I") == std::string::npos && line.starts_with('/'))
        if (auto content = read_file(line); content && valid_utf8(*content)) return *content;
    return part->body;
}

std::string local_minute() {
    auto now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", &local);
    return text;
}

Json with_state(Job const& job) { return job_output(job); }

} // namespace

std::vector<std::string> processors_of(RouteContext const& c) {
    auto names = c.dispatcher.processors();
    if (c.foreign != nullptr)
        for (auto& name : c.foreign->present()) names.push_back(std::move(name));
    std::ranges::sort(names);
    auto [first, last] = std::ranges::unique(names);
    names.erase(first, last);
    return names;
}

namespace {

/// Nobody watches these: what is known is which process was started, and who consumes its queue.
void describe_unwatched(RouteContext const& c, Json& host) {
    for (auto& unit : host["units"]) {
        auto found = c.foreign != nullptr ? c.foreign->consumption(unit.value("entry", std::string())) : std::nullopt;
        if (unit.value("pid", 0) == 0) continue; // its start failed, and told why
        if (found && found->consumers >= found->workers) {
            unit["state"] = wire(UnitState::Ready);
            unit["detail"] = "";
        } else if (found && found->consumers == 0) {
            unit["state"] = wire(UnitState::Failed);
            unit["detail"] = "does not consume its queue: ocrctl deploy starts it again, if it has ended";
        } else {
            unit["state"] = "unknown";
            unit["detail"] = found ? fmt::format("{} of {} Workers consume its queue: ocrctl deploy starts those that have ended", found->consumers, found->workers)
                                   : std::string("was started; the broker has not said whether it consumes its queue");
        }
    }
}

} // namespace

Json status_document(RouteContext const& c) {
    Json hosts = Json::array();
    for (auto const& [name, host] : c.agents.hosts()) {
        Json one(host.report);
        one["connected"] = host.connected;
        one["agent"] = host.agent;
        if (!host.agent) describe_unwatched(c, one);
        hosts.push_back(std::move(one));
    }
    Json jobs = Json::object();
    for (auto const& [state, count] : c.book.counts())
        if (count > 0) jobs[std::string(wire(state))] = count;
    Json document{{"version", c.version + c.book.version()},
                  {"deployment", c.settings.deployment},
                  {"name", c.settings.name},
                  {"address", c.url},
                  {"hosts", std::move(hosts)},
                  {"processors", processors_of(c)},
                  {"jobs", std::move(jobs)},
                  {"open", c.book.size()},
                  {"intake", c.jobs.intake_closed() ? "closed" : "open"},
                  {"broker", {{"connected", c.dispatcher.connected()}, {"ready", c.dispatcher.ready()}}}};
    if (c.dispatcher.problem().kind() != ErrorKind::None) document["broker"]["problem"] = c.dispatcher.problem().message();
    if (auto problem = c.store.problem(); !problem.empty()) document["database"] = Json{{"problem", problem}};
    Json problems = Json::array();
    for (auto const& [workspace, problem] : c.results.problems()) problems.push_back(Json{{"workspace", workspace}, {"problem", problem}});
    if (c.foreign != nullptr) {
        for (auto const& [workspace, problem] : c.foreign->problems())
            problems.push_back(Json{{"workspace", workspace}, {"problem", problem}});
        document["foreign_workers"] = c.foreign->status();
    }
    document["problems"] = std::move(problems);
    if (c.callbacks.waiting() > 0) document["callbacks_waiting"] = c.callbacks.waiting();
    return document;
}

void add_routes(net::Router& router, RouteContext context) {
    auto shared = std::make_shared<RouteContext>(context);
    auto& c = *shared;
    // Handlers are lambdas that call named coroutines or answer at once; `shared` keeps the context for all of them.
    // Until the open Jobs are in memory, only health is told.
    auto add = [&](std::string method, std::string path, net::Handler handler) {
        router.add(std::move(method), std::move(path), [shared, handler = std::move(handler)](Request request) -> awaitable<Response> {
            if (!shared->started) return [](Response response) -> awaitable<Response> { co_return response; }(refusal(Refusal{503, "the server is recovering its Jobs", false}));
            return handler(std::move(request));
        });
    };
    auto simple = [&](std::string method, std::string path, std::function<Response(Request const&)> answer) {
        router.add(std::move(method), std::move(path), [answer = std::move(answer)](Request request) -> awaitable<Response> { co_return answer(request); });
    };

    simple("GET", "/", [shared](Request const&) {
        return Response::json(200, Json{{"message", "The home page of the OCR-D Processing Server (ocrctl, deployment " + shared->settings.name + ")"}, {"time", local_minute()}});
    });
    simple("GET", "/healthz", [](Request const&) { return Response::json(200, Json{{"status", "ok"}}); });
    simple("GET", "/readyz", [shared](Request const&) {
        if (!shared->started) return Response::error(503, "the server is recovering its Jobs");
        if (!shared->dispatcher.connected() || !shared->dispatcher.ready())
            return Response::error(503, "the broker is not reached" + (shared->dispatcher.problem().kind() == ErrorKind::None ? std::string() : ": " + shared->dispatcher.problem().message()));
        return Response::json(200, Json{{"status", "ready"}});
    });
    simple("GET", "/v1", [shared](Request const&) {
        return Response::json(200, Json{{"name", shared->settings.name}, {"deployment", shared->settings.deployment}, {"version", std::string(tools::version())}});
    });
    simple("GET", "/openapi.json", [&router](Request const&) { return Response::json(200, openapi(router)); });
    for (auto const* path : {"/docs", "/redoc"})
        simple("GET", path, [&router](Request const&) { return Response::text(200, docs_page(openapi(router)), "text/html; charset=utf-8"); });
    add("POST", "/stop", [shared](Request request) -> awaitable<Response> {
        // Browsers say where a request comes from; a page of elsewhere must not end a deployment on this machine.
        auto origin = request.headers.get("Origin");
        if (!origin.empty() && origin.substr(std::min(origin.size(), origin.find("://") + 3)) != request.headers.get("Host"))
            co_return Response::error(403, fmt::format("POST /stop from a page of {} is refused", origin));
        if (shared->converger == nullptr) co_return Response::error(409, "this server was not started by a deployment: end it by SIGTERM");
        auto stopping = co_await shared->converger->stop_all();
        if (!stopping) co_return Response::error(stopping.error());
        shared->jobs.close_intake();
        ++shared->version;
        co_return Response::json(200, nullptr);
    });
    simple("DELETE", "/kill_mets_server_zombies", [](Request const& request) {
        if (request.has_query("minutes_ago") && !number(request.query_or("minutes_ago"))) return malformed("minutes_ago: expected a whole number");
        if (request.has_query("dry_run") && !boolean(request.query_or("dry_run"))) return malformed("dry_run: expected true or false");
        return Response::json(200, Json::array()); // the METS lives in this process: there are none
    });
    add("GET", "/processor", [shared](Request) -> awaitable<Response> {
        auto names = co_await shared->jobs.processors();
        co_return Response::json(200, Json(std::move(names)));
    });
    add("GET", "/processor/info/{processor_name}", [shared](Request request) -> awaitable<Response> {
        auto name = request.param("processor_name");
        auto const* tool = co_await shared->tools.find_or_ask(name);
        if (tool == nullptr) co_return Response::error(404, ToolCatalogue::unknown(name));
        co_return Response::json(200, *tool);
    });

    add("POST", "/processor/run/{processor_name}", [shared](Request request) -> awaitable<Response> {
        auto type = request.headers.get("Content-Type");
        if (type.find("json") == std::string_view::npos) co_return malformed("body: expected JSON (Content-Type: application/json)");
        auto body = request.json();
        if (!body) co_return malformed("body: " + body.error().message());
        auto job = co_await shared->jobs.submit(request.param("processor_name"), std::move(*body));
        if (!job) co_return refusal(job.error());
        co_return Response::json(200, job_output(*job));
    });
    add("GET", "/processor/job/{job_id}", [shared](Request request) -> awaitable<Response> {
        auto job = co_await shared->jobs.job(JobId(request.param("job_id")));
        if (!job) co_return refusal(job.error());
        co_return Response::json(200, with_state(*job));
    });
    add("GET", "/processor/log/{job_id}", [shared](Request request) -> awaitable<Response> {
        auto job = co_await shared->jobs.job(JobId(request.param("job_id")));
        if (!job) co_return refusal(job.error());
        auto read = [path = job->log_file] { return path.empty() ? Result<std::string>(fail(ErrorKind::NotFound, "")) : read_file(path); };
        auto text = co_await on_thread(shared->pool, std::move(read));
        // A Job that ended before a Worker saw it (an input is missing, a dependency failed) has no log, but a reason.
        if (!text && is_final(job->state) && !job->reason.empty()) text = job->reason + "\n";
        if (!text && job->foreign && !job->log_file.empty())
            co_return Response::error(404, fmt::format("the log of Job {} cannot be read on this machine: {}",
                                                       job->id.str(), text.error().message()));
        if (!text) co_return Response::error(404, fmt::format("Job {} has no log yet", job->id.str()));
        auto response = Response::text(200, std::move(*text));
        response.headers.set("Content-Disposition", fmt::format("attachment; filename=\"{}.log\"", job->id.str()));
        co_return response;
    });
    add("POST", "/result_callback", [shared](Request request) -> awaitable<Response> {
        auto body = request.json();
        if (!body || !body->is_object()) co_return malformed("the body must be a JSON object");
        auto text = [&](char const* key) {
            return body->contains(key) && (*body)[key].is_string() ? (*body)[key].get<std::string>() : std::string();
        };
        if (text("job_id").empty()) co_return malformed("job_id: expected a string");
        if (!job_state(text("state"))) co_return malformed("state: expected a Job state");
        if (text("path_to_mets").empty() && text("workspace_id").empty())
            co_return Response::error(404, "neither path_to_mets nor workspace_id is given");
        auto job = co_await shared->jobs.job(JobId(text("job_id")));
        if (!job) co_return Response::error(job.error().status == 422 ? 404 : job.error().status, job.error().detail);
        // A late or repeated one is fine; what counts is what the Worker wrote into its row.
        if (job->foreign && shared->foreign != nullptr) shared->foreign->called_back(job->id);
        co_return Response::json(200, Json());
    });

    // --- workflows
    add("POST", "/workflow", [shared](Request request) -> awaitable<Response> {
        auto content = workflow_of(request, true);
        if (!content) co_return content.error();
        auto id = co_await shared->jobs.add_script(std::move(*content));
        if (!id) co_return refusal(id.error());
        co_return Response::json(201, Json{{"workflow_id", *id}});
    });
    add("POST", "/workflow/run", [shared](Request request) -> awaitable<Response> {
        WorkflowRequest wanted;
        if (!request.has_query("mets_path")) co_return malformed("mets_path: the query parameter is missing");
        wanted.mets_path = request.query_or("mets_path");
        auto page_wise = boolean(request.query_or("page_wise", "false"));
        if (!page_wise) co_return malformed("page_wise: expected true or false");
        wanted.page_wise = *page_wise;
        wanted.page_id = request.query_or("page_id");
        wanted.workflow_id = request.query_or("workflow_id");
        wanted.callback_url = request.query_or("workflow_callback_url");
        if (request.has_query("existing_output")) {
            auto text = request.query_or("existing_output");
            if (text == "skip") wanted.existing_output = ExistingOutput::Skip;
            else if (text == "overwrite") wanted.existing_output = ExistingOutput::Overwrite;
            else if (text == "abort") wanted.existing_output = ExistingOutput::Abort;
            else co_return malformed("existing_output: expected skip, overwrite or abort");
        }
        if (request.has_query("priority")) {
            auto priority = number(request.query_or("priority"));
            if (!priority) co_return malformed("priority: expected a whole number");
            wanted.priority = static_cast<int>(*priority);
        }
        if (wanted.workflow_id.empty()) {
            auto content = workflow_of(request, false);
            if (!content) co_return content.error();
            wanted.script = std::move(*content);
        }
        auto workflow = co_await shared->jobs.run(std::move(wanted));
        if (!workflow) co_return refusal(workflow.error());
        co_return Response::json(200, workflow_output(*workflow));
    });
    add("GET", "/workflow/job-simple/{workflow_job_id}", [shared](Request request) -> awaitable<Response> {
        auto state = co_await shared->jobs.workflow_state(WorkflowId(request.param("workflow_job_id")));
        if (!state) co_return refusal(state.error());
        co_return Response::json(200, Json{{"state", wire(*state)}});
    });
    add("GET", "/workflow/job/{workflow_job_id}", [shared](Request request) -> awaitable<Response> {
        auto status = co_await shared->jobs.workflow_status(WorkflowId(request.param("workflow_job_id")));
        if (!status) co_return refusal(status.error());
        co_return Response::json(200, *status);
    });
    add("GET", "/workflow/{workflow_id}", [shared](Request request) -> awaitable<Response> {
        auto content = co_await shared->jobs.script(request.param("workflow_id"));
        if (!content) co_return refusal(content.error());
        co_return Response::text(200, std::move(*content));
    });
    add("PUT", "/workflow/{workflow_id}", [shared](Request request) -> awaitable<Response> {
        auto content = workflow_of(request, true);
        if (!content) co_return content.error();
        auto id = co_await shared->jobs.replace_script(request.param("workflow_id"), std::move(*content));
        if (!id) co_return refusal(id.error());
        co_return Response::json(200, Json{{"workflow_id", *id}});
    });

    // --- ours
    add("GET", "/v1/status", [shared](Request request) -> awaitable<Response> {
        auto after = number(request.query_or("after", "-1"));
        auto timeout = number(request.query_or("timeout", "0"));
        if (!after || !timeout) co_return malformed("after, timeout: expected whole numbers");
        auto until = std::chrono::steady_clock::now() + std::chrono::seconds(std::clamp(*timeout, 0L, 60L));
        auto version = [&] { return static_cast<long>(shared->version + shared->book.version()); };
        while (version() <= *after && std::chrono::steady_clock::now() < until)
            if (!co_await pause(50ms)) break;
        co_return Response::json(200, status_document(*shared));
    });
    add("GET", "/v1/jobs", [shared](Request request) -> awaitable<Response> {
        std::optional<JobState> state;
        if (auto text = request.query_or("state"); !text.empty()) {
            std::ranges::transform(text, text.begin(), [](unsigned char ch) { return std::toupper(ch); });
            state = job_state(text);
            if (!state) co_return malformed("state: expected a Job state");
        }
        auto limit = number(request.query_or("limit", "100"));
        if (!limit || *limit < 0) co_return malformed("limit: expected a whole number");
        auto jobs = co_await shared->jobs.jobs(state, static_cast<std::size_t>(std::min(*limit, 10'000L)));
        if (!jobs) co_return refusal(jobs.error());
        Json list = Json::array();
        for (auto const& job : *jobs) list.push_back(job_output(job));
        co_return Response::json(200, Json{{"jobs", std::move(list)}});
    });
    add("GET", "/v1/jobs/{id}", [shared](Request request) -> awaitable<Response> {
        auto job = co_await shared->jobs.job(JobId(request.param("id")));
        if (!job) co_return refusal(Refusal{job.error().status == 422 ? 404 : job.error().status, job.error().detail, false});
        auto out = job_output(*job);
        out["parameters"] = job->parameters;
        out["depends_on"] = Json::array();
        for (auto const& id : job->depends_on) out["depends_on"].push_back(id.str());
        co_return Response::json(200, out);
    });
    add("POST", "/v1/jobs/{id}/cancel", [shared](Request request) -> awaitable<Response> {
        auto job = co_await shared->jobs.cancel(JobId(request.param("id")));
        if (!job) co_return refusal(job.error());
        co_return Response::json(200, job_output(*job));
    });
    add("GET", "/v1/workflows/{id}", [shared](Request request) -> awaitable<Response> {
        WorkflowId id(request.param("id"));
        auto workflow = co_await shared->jobs.workflow(id);
        if (!workflow) co_return refusal(workflow.error());
        auto state = co_await shared->jobs.workflow_state(id);
        if (!state) co_return refusal(state.error());
        auto status = co_await shared->jobs.workflow_status(id);
        if (!status) co_return refusal(status.error());
        auto out = workflow_output(*workflow);
        out["state"] = wire(*state);
        out["created"] = workflow->created;
        Json failed = Json::object();
        if (auto found = status->find("failed-processor-tasks"); found != status->end()) {
            failed = *found;
            status->erase(found);
        }
        out["processors"] = std::move(*status);
        out["failed"] = std::move(failed);
        co_return Response::json(200, out);
    });
    simple("POST", "/v1/drain", [shared](Request const&) {
        shared->jobs.close_intake();
        ++shared->version;
        return Response::json(200, Json{{"intake", "closed"}, {"open", shared->book.size()}});
    });
    simple("POST", "/v1/undrain", [shared](Request const&) {
        shared->jobs.open_intake();
        ++shared->version;
        return Response::json(200, Json{{"intake", "open"}, {"open", shared->book.size()}});
    });
    c.agents.add_routes(router);
}

} // namespace ocrctl::server
