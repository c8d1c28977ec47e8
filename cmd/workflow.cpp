// ocrctl workflow run|status
#include "cmd/client.hpp"
#include "cmd/commands.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/net/url.hpp"
#include "processing_server/workflow_script.hpp"

#include <CLI/CLI.hpp>
#include <memory>

namespace ocrctl {

namespace {

struct WorkflowOptions {
    Where where;
    std::string id, file, mets, pages, existing;
    int priority = 0, timeout = 0;
    bool page_wise = false, wait = false, json = false, quiet = false;
};

void print_workflow(Json const& workflow) {
    std::size_t jobs = 0;
    auto const ids = workflow.value("processing_job_ids", Json::object());
    for (auto const& [page, list] : ids.items()) jobs += list.size();
    fmt::print("{}  {}  {}{}\n", workflow.value("job_id", ""), workflow.value("state", ""), counted(jobs, "Job"),
               workflow.value("page_wise", false) ? " over " + counted(ids.size(), "page") : "");
    fmt::print("  {}\n", workflow.value("path_to_mets", ""));
    std::vector<std::vector<std::string>> rows;
    for (auto const& [processor, states] : workflow.value("processors", Json::object()).items()) {
        std::vector<std::string> parts;
        for (auto const& [state, count] : states.items()) parts.push_back(fmt::format("{} {}", count.get<int>(), state));
        rows.push_back({"  " + processor, join(parts, ", ")});
    }
    fmt::print("{}", table(rows));
}

int ended(WorkflowOptions const& options, Api const& api, Json const& workflow) {
    if (options.json) fmt::print("{}\n", dump(workflow));
    else print_workflow(workflow);
    if (workflow.value("state", "") == "SUCCESS") return 0;
    print_failures(api, workflow);
    return 1;
}

int run_workflow(WorkflowOptions const& options, Api const& api) {
    auto script = read_file(options.file);
    if (!script) return complain("workflow run", script.error());
    if (auto tasks = server::parse_workflow(*script); !tasks)
        return complain("workflow run", Error(ErrorKind::Usage, fmt::format("{}: {}", options.file, tasks.error().message())));
    auto target = fmt::format("/workflow/run?mets_path={}&page_wise={}", net::percent_encode(path_for_server(options.mets)), options.page_wise);
    if (!options.pages.empty()) target += "&page_id=" + net::percent_encode(options.pages);
    if (!options.existing.empty()) target += "&existing_output=" + options.existing;
    if (options.priority != 0) target += fmt::format("&priority={}", options.priority);
    auto started = api.upload(target, std::filesystem::path(options.file).filename().native(), *script);
    if (!started) return complain("workflow run", started.error());
    auto const id = started->value("job_id", "");
    if (!options.wait) {
        if (options.json) fmt::print("{}\n", dump(*started));
        else fmt::print("{}\n", id);
        return 0;
    }
    if (!options.quiet) fmt::print(stderr, "workflow {}\n", id);
    auto limit = options.timeout > 0 ? std::optional(std::chrono::seconds(options.timeout)) : std::nullopt;
    auto workflow = follow_workflow(api, id, limit, options.quiet);
    if (!workflow) return complain("workflow run", workflow.error());
    return ended(options, api, *workflow);
}

} // namespace

void add_workflow(CLI::App& app, int& exit_code) {
    auto* group = app.add_subcommand("workflow", "Workflows on a processing server: run, look");
    group->require_subcommand(1);
    group->footer("example: ocrctl workflow run --mets /data/w/mets.xml --page-wise --wait steps.txt");
    auto options = std::make_shared<WorkflowOptions>();

    auto* run = group->add_subcommand("run", "Submits a workflow script (OCR-D's syntax) over a workspace and prints its id");
    add_where(*run, options->where);
    run->add_option("file", options->file, "The script")->required()->check(CLI::ExistingFile);
    run->add_option("-m,--mets", options->mets, "METS file, as the server reaches it")->required();
    run->add_option("-g,--page-id", options->pages, "Pages: ids and ranges, joined by commas [all]");
    run->add_flag("--page-wise", options->page_wise, "One Job per page and step: pages run in parallel and fail alone");
    run->add_option("--existing-output", options->existing, "What to do with pages that are there already")->check(CLI::IsMember({"skip", "overwrite", "abort"}));
    run->add_option("--priority", options->priority, "Higher goes first [0]");
    run->add_flag("--wait", options->wait, "Until it has ended; exit code 1 if it failed");
    run->add_option("--timeout", options->timeout, "With --wait: give up after so many seconds; the workflow goes on")->type_name("SECONDS");
    run->add_flag("-q,--quiet", options->quiet, "No progress");
    run->add_flag("--json", options->json, "Print it as JSON");
    run->footer("example: ocrctl workflow run --mets /data/w/mets.xml --page-wise --wait steps.txt");
    run->callback([options, &exit_code] {
        auto url = find_server(options->where);
        exit_code = url ? run_workflow(*options, Api(*url)) : complain("workflow run", url.error());
    });

    auto* status = group->add_subcommand("status", "Shows a workflow: Jobs by Processor and state, and what failed");
    add_where(*status, options->where);
    status->add_option("id", options->id, "The workflow's id, as `workflow run` printed it")->required();
    status->add_flag("--json", options->json, "Print it as JSON");
    status->footer("example: ocrctl workflow status 0190f3c2-...");
    status->callback([options, &exit_code] {
        auto url = find_server(options->where);
        if (!url) {
            exit_code = complain("workflow status", url.error());
            return;
        }
        Api api(*url);
        auto workflow = api.get("/v1/workflows/" + net::percent_encode(options->id));
        if (!workflow) {
            exit_code = complain("workflow status", workflow.error());
            return;
        }
        if (options->json) fmt::print("{}\n", dump(*workflow));
        else print_workflow(*workflow);
        print_failures(api, *workflow);
        exit_code = 0;
    });
}

} // namespace ocrctl
