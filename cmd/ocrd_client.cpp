// ocrctl client discovery|processing|workflow: what `ocrd network client` does, with its options, by OCR-D's routes
// alone: it works with OCR-D's processing server as with ours.
#include "cmd/client.hpp"
#include "cmd/commands.hpp"
#include "cmd/progress.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/net/url.hpp"
#include "processing_server/workflow_script.hpp"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdlib>
#include <functional>
#include <memory>

namespace ocrctl {

namespace {

using net::percent_encode;

constexpr char kAddress[] = "OCRD_NETWORK_SERVER_ADDR_PROCESSING";

struct ClientOptions {
    std::string address, processor, id;
    std::string mets = "mets.xml", inputs = "OCR-D-INPUT", outputs = "OCR-D-OUTPUT", pages;
    std::vector<std::string> parameter_files;
    std::vector<std::pair<std::string, std::string>> pairs; // -P KEY VALUE
    std::string result_queue, callback, workflow;
    std::vector<std::string> tasks;
    bool block = false, print_state = false, page_wise = false, verbose = false;
};

/// --address, else OCR-D's variable, else as the other commands find it.
Result<std::string> server_for(ClientOptions const& options) {
    auto address = options.address;
    if (auto const* set = std::getenv(kAddress); address.empty() && set != nullptr) address = set;
    if (address.empty()) {
        auto found = find_server({});
        if (found || found.error().kind() == ErrorKind::Usage) return found;
        return fail(ErrorKind::Usage, "which processing server? Name it by --address URL or by {}", kAddress);
    }
    if (!address.starts_with("http://"))
        return fail(ErrorKind::Usage, "{}: expected an address that begins with http://", address);
    return find_server({.server = address, .name = "", .state = {}});
}

int complain_of(std::string_view command, Api const& api, Error const& error) {
    return complain(command, Error(error.kind(), fmt::format("{} ({})", error.message(), api.url())));
}

/// A whole number of seconds from the environment.
std::optional<std::chrono::seconds> seconds_of(char const* variable) {
    auto const* text = std::getenv(variable);
    if (text == nullptr) return std::nullopt;
    std::string_view digits(text);
    long value = 0;
    auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (problem != std::errc() || end != digits.data() + digits.size() || value <= 0) return std::nullopt;
    return std::chrono::seconds(value);
}

/// OCR-D's variables: how long to wait, and how often to ask at the least. Unlike there, the first question comes at
/// once.
std::chrono::seconds polling_limit() {
    return seconds_of("OCRD_NETWORK_CLIENT_POLLING_TIMEOUT").value_or(std::chrono::seconds(3600));
}
std::chrono::milliseconds polling_pause() {
    return std::min(seconds_of("OCRD_NETWORK_CLIENT_POLLING_SLEEP").value_or(std::chrono::seconds(1)),
                    std::chrono::seconds(10));
}

void print_text(std::string const& text) {
    fmt::print("{}{}", text, text.empty() || text.ends_with('\n') ? "" : "\n");
}

int run_processing(ClientOptions const& options, Api const& api) {
    auto parameters = parameters_from(options.parameter_files, options.pairs);
    if (!parameters) return complain("client processing run", parameters.error());
    Json body{{"path_to_mets", path_for_server(options.mets)},
              {"description", "ocrctl client request"},
              {"input_file_grps", split(options.inputs, ',')},
              {"parameters", *parameters}};
    if (!options.outputs.empty()) body["output_file_grps"] = split(options.outputs, ',');
    if (!options.pages.empty()) body["page_id"] = options.pages;
    if (!options.result_queue.empty()) body["result_queue_name"] = options.result_queue;
    if (!options.callback.empty()) body["callback_url"] = options.callback;
    auto job = api.post("/processor/run/" + percent_encode(options.processor), body);
    if (!job) return complain_of("client processing run", api, job.error());
    auto const id = job->value("job_id", "");
    fmt::print("Processing job id: {}\n", id);
    std::fflush(stdout);
    if (!options.block) return 0;
    std::string shown;
    auto ended = [&](Json const& document) {
        auto const state = document.value("state", "");
        if (options.print_state && state != shown)
            fmt::print(stderr, "State of the processing job {}: {}\n", id, state);
        shown = state;
        return is_final_state(state);
    };
    auto final =
        follow(api, "/processor/job/" + percent_encode(id), "Job " + id, polling_limit(), ended, polling_pause());
    if (!final) return complain_of("client processing run", api, final.error());
    auto const state = final->value("state", "");
    fmt::print("Processing job status: {}\n", state);
    if (state == "SUCCESS") return 0;
    auto reason = final->value("reason", "");
    fmt::print(stderr, "ocrctl client processing run: Job {} ended as {}{}{}\n", id, state,
               reason.empty() ? "; its log: ocrctl client processing check-log -j " + id : ": ", reason);
    return 1;
}

/// Jobs of GET /workflow/job/ID by what is still to come of them.
struct WorkflowJobs {
    std::size_t all = 0, final = 0, moving = 0, bad = 0; // moving: QUEUED or RUNNING
};

WorkflowJobs jobs_of(Json const& document) {
    WorkflowJobs jobs;
    for (auto const& [processor, states] : document.items()) {
        if (processor == "failed-processor-tasks" || !states.is_object()) continue;
        for (auto const& [state, count] : states.items()) {
            if (!count.is_number_unsigned()) continue;
            auto const n = count.get<std::size_t>();
            jobs.all += n;
            if (is_final_state(state)) jobs.final += n;
            if (state == "QUEUED" || state == "RUNNING") jobs.moving += n;
            if (state == "FAILED" || state == "CANCELLED") jobs.bad += n;
        }
    }
    return jobs;
}

int run_client_workflow(ClientOptions const& options, Api const& api) {
    constexpr std::string_view kCommand = "client workflow run";
    if (options.workflow.empty() == options.tasks.empty())
        return complain(kCommand, Error(ErrorKind::Usage, "either -w FILE or tasks are needed, and not both"));
    auto target = fmt::format("/workflow/run?mets_path={}&page_wise={}", percent_encode(path_for_server(options.mets)),
                              options.page_wise ? "True" : "False");
    if (!options.pages.empty()) target += "&page_id=" + percent_encode(options.pages);

    Result<Json> started = fail(ErrorKind::Internal, "nothing was sent");
    std::error_code ignored;
    if (options.workflow.empty() || std::filesystem::exists(options.workflow, ignored)) {
        auto script = options.workflow.empty() ? Result<std::string>(join(options.tasks, "\n") + "\n")
                                               : read_file(options.workflow);
        if (!script) return complain(kCommand, script.error());
        if (auto tasks = server::parse_workflow(*script); !tasks)
            return complain(kCommand, Error(ErrorKind::Usage, options.workflow.empty()
                                                                  ? tasks.error().message()
                                                                  : options.workflow + ": " + tasks.error().message()));
        started = api.upload(target,
                             options.workflow.empty() ? "tasks.txt"
                                                      : std::filesystem::path(options.workflow).filename().native(),
                             *script);
    } else {
        started = api.upload_path(target, options.workflow);
    }
    if (!started) return complain_of(kCommand, api, started.error());
    auto const id = started->value("job_id", "");
    fmt::print("Workflow job id: {}\n", id);
    std::fflush(stdout);
    if (!options.block) return 0;

    std::optional<Progress> progress;
    bool const terminal = stderr_is_terminal();
    std::size_t shown = 0;
    auto ended = [&](Json const& document) {
        auto const jobs = jobs_of(document);
        if (!progress) progress.emplace(jobs.all, terminal && !options.print_state, !terminal || options.print_state);
        progress->set(jobs.final);
        if ((!terminal || options.print_state) && jobs.final != shown)
            fmt::print(stderr, "{} of {} Jobs done\n", jobs.final, jobs.all);
        shown = jobs.final;
        // Where something failed and nothing moves any more, what is left waits for ever.
        return jobs.final == jobs.all || (jobs.bad > 0 && jobs.moving == 0);
    };
    auto final =
        follow(api, "/workflow/job/" + percent_encode(id), "workflow " + id, polling_limit(), ended, polling_pause());
    progress.reset();
    if (!final) return complain_of(kCommand, api, final.error());
    if (jobs_of(*final).bad == 0) {
        fmt::print("Workflow job status: SUCCESS\n");
        return 0;
    }
    fmt::print("Workflow job status: FAILED\n");
    for (auto const& [processor, failures] : final->value("failed-processor-tasks", Json::object()).items())
        for (auto const& one : failures) {
            auto text = [&](char const* key) {
                return one.contains(key) && one[key].is_string() ? one[key].get<std::string>() : std::string();
            };
            fmt::print(stderr, "  {}{}{} ({}){}\n", processor, text("page_id").empty() ? "" : " ", text("page_id"),
                       text("job_id"), text("reason").empty() ? "" : ": " + text("reason"));
        }
    return 1;
}

int check_workflow(ClientOptions const& options, Api const& api) {
    auto state = api.get("/workflow/job-simple/" + percent_encode(options.id));
    if (!state) return complain_of("client workflow check-status", api, state.error());
    fmt::print("Workflow job status: {}\n", state->value("state", ""));
    if (!options.verbose) return 0;
    auto content = api.get("/workflow/job/" + percent_encode(options.id));
    if (!content) return complain_of("client workflow check-status", api, content.error());
    fmt::print("{}\n", content->dump(4));
    return 0;
}

} // namespace

void add_ocrd_client(CLI::App& app, int& exit_code) {
    auto* client = app.add_subcommand("client", "What `ocrd network client` does, for this server and for OCR-D's");
    client->require_subcommand(1);
    client->footer(fmt::format(
        "examples:\n  ocrctl client discovery processors --address http://localhost:8080\n"
        "  ocrctl client workflow run -m /data/w/mets.xml --page-wise -b \"dummy -I OCR-D-IMG -O OCR-D-OUT\"\n"
        "Without --address: {}, then OCRCTL_SERVER, then the deployment on this machine.",
        kAddress));
    auto options = std::make_shared<ClientOptions>();
    auto group = [&](char const* name, char const* about, std::string const& example) {
        auto* made = client->add_subcommand(name, about);
        made->require_subcommand(1);
        made->footer("example: " + example);
        return made;
    };
    auto command = [&](CLI::App* parent, char const* name, char const* about, std::string const& example,
                       std::function<int(Api const&)> work) {
        auto* made = parent->add_subcommand(name, about);
        made->add_option("--address", options->address, fmt::format("The processing server [${}]", kAddress))
            ->type_name("URL");
        made->footer("example: " + example);
        auto full = fmt::format("client {} {}", parent->get_name(), name);
        made->callback([options, &exit_code, full, work = std::move(work)] {
            auto url = server_for(*options);
            exit_code = url ? work(Api(*url)) : complain(full, url.error());
        });
        return made;
    };
    auto job_id = [&](CLI::App* to, char const* name) {
        to->add_option(name, options->id, "Its id, as `run` printed it")->required()->type_name("ID");
    };
    auto print_json = [](char const* full, Api const& api, Result<Json> const& json) {
        if (!json) return complain_of(full, api, json.error());
        fmt::print("{}\n", json->dump(4));
        return 0;
    };

    auto* discovery = group("discovery", "Which Processors there are", "ocrctl client discovery processors");
    command(
        discovery, "processors", "Lists the Processors that have Workers", "ocrctl client discovery processors",
        [print_json](Api const& api) { return print_json("client discovery processors", api, api.get("/processor")); });
    command(discovery, "processor", "Prints the tool description of a Processor",
            "ocrctl client discovery processor ocrd-dummy",
            [options, print_json](Api const& api) {
                return print_json("client discovery processor", api,
                                  api.get("/processor/info/" + percent_encode(options->processor)));
            })
        ->add_option("processor_name", options->processor, "Name of the Processor")
        ->required();

    auto* processing =
        group("processing", "Jobs: run, look",
              "ocrctl client processing run ocrd-dummy -m /data/w/mets.xml -I OCR-D-IMG -O OCR-D-OUT -b");
    auto* run = command(processing, "run", "Submits a Job and prints its id",
                        "ocrctl client processing run ocrd-dummy -m /data/w/mets.xml -I OCR-D-IMG -O OCR-D-OUT -b",
                        [options](Api const& api) { return run_processing(*options, api); });
    run->add_option("processor_name", options->processor, "Name of the Processor")->required();
    run->add_option("-m,--mets", options->mets, "METS file, as the server reaches it [mets.xml]");
    run->add_option("-I,--input-file-grp", options->inputs, "Groups to read, joined by commas [OCR-D-INPUT]")
        ->type_name("GROUPS");
    run->add_option("-O,--output-file-grp", options->outputs, "Groups to write, joined by commas [OCR-D-OUTPUT]")
        ->type_name("GROUPS");
    run->add_option("-g,--page-id", options->pages, "Pages: ids and ranges, joined by commas [all]");
    run->add_option("-p,--parameter", options->parameter_files, "Parameters: a JSON object or a file with one")
        ->expected(1)
        ->take_all()
        ->type_name("JSON|FILE");
    run->add_option("-P,--param-override", options->pairs, "One parameter: KEY VALUE; may be given several times")
        ->expected(1)
        ->take_all()
        ->type_name("KEY VALUE");
    run->add_option("--result-queue-name", options->result_queue, "Queue that gets the result message")
        ->type_name("NAME");
    run->add_option("--callback-url", options->callback, "http:// address that is told when the Job has ended")
        ->type_name("URL");
    run->add_flag("-b,--block", options->block, "Until it has ended; exit code 1 if it did not succeed");
    run->add_flag("--print-state", options->print_state, "With -b: say each change of state");
    job_id(command(processing, "check-status", "Prints the state of a Job",
                   "ocrctl client processing check-status -j 0190f3c2-...",
                   [options](Api const& api) {
                       auto job = api.get("/processor/job/" + percent_encode(options->id));
                       if (!job) return complain_of("client processing check-status", api, job.error());
                       fmt::print("Processing job status: {}\n", job->value("state", ""));
                       return 0;
                   }),
           "-j,--processing-job-id");
    job_id(command(processing, "check-log", "Prints the log of a Job",
                   "ocrctl client processing check-log -j 0190f3c2-...",
                   [options](Api const& api) {
                       auto text = api.text("/processor/log/" + percent_encode(options->id));
                       if (!text) return complain_of("client processing check-log", api, text.error());
                       print_text(*text);
                       return 0;
                   }),
           "-j,--processing-job-id");

    auto* workflow = group("workflow", "Workflows: run, look",
                           "ocrctl client workflow run -m /data/w/mets.xml -w steps.txt --page-wise -b");
    auto* start =
        command(workflow, "run", "Submits a workflow and prints its id",
                "ocrctl client workflow run -m /data/w/mets.xml --page-wise -b \"dummy -I OCR-D-IMG -O OCR-D-OUT\"",
                [options](Api const& api) { return run_client_workflow(*options, api); });
    start->add_option("-m,--path-to-mets", options->mets, "METS file, as the server reaches it")->required();
    start->add_option("-w,--path-to-workflow", options->workflow, "The script: a file here, else one on the server")
        ->type_name("FILE");
    start->add_option("-g,--page-id", options->pages, "Pages: ids and ranges, joined by commas [all]");
    start->add_flag("--page-wise", options->page_wise, "One Job per page and step");
    start->add_flag("-b,--block", options->block, "Until it has ended; exit code 1 if it did not succeed");
    start->add_flag("-p,--print-state", options->print_state, "With -b: lines instead of a bar");
    start->add_option("tasks", options->tasks, "Steps, each one argument, as `ocrd process` takes them");
    auto* check = command(workflow, "check-status", "Prints the state of a workflow",
                          "ocrctl client workflow check-status -v -j 0190f3c2-...",
                          [options](Api const& api) { return check_workflow(*options, api); });
    job_id(check, "-j,--workflow-job-id");
    check->add_flag("-v,--verbose", options->verbose, "Jobs by Processor and state, and what failed");
}

} // namespace ocrctl
