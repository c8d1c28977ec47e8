// ocrctl job run|status|list|cancel|log
#include "cmd/client.hpp"
#include "cmd/commands.hpp"
#include "lib/base/clock.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/net/url.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/ranges.h>
#include <functional>
#include <memory>

namespace ocrctl {

namespace {

struct JobOptions {
    Where where;
    std::string id, processor, mets, pages, existing, only;
    std::string inputs, outputs, depends; // joined by commas
    std::vector<std::string> parameter_files;
    std::vector<std::pair<std::string, std::string>> pairs; // -P KEY VALUE
    int priority = 0, limit = 100, timeout = 0;
    bool wait = false, json = false;
};

std::string target_of(std::string const& id) { return "/v1/jobs/" + net::percent_encode(id); }

void print_job(Json const& job) {
    fmt::print("{}  {}  {}\n", job.value("job_id", ""), job.value("processor_name", ""), job.value("state", ""));
    auto line = [&](char const* label, std::string const& text) {
        if (!text.empty()) fmt::print("  {:<10}{}\n", label, text);
    };
    line("mets", job.value("path_to_mets", ""));
    line("groups", fmt::format("{} -> {}", fmt::join(job.value("input_file_grps", std::vector<std::string>()), ","),
                               fmt::join(job.value("output_file_grps", std::vector<std::string>()), ",")));
    auto pages = job.value("page_id", "");
    line("pages", pages.empty() ? fmt::format("{}", job.value("pages", 0)) : fmt::format("{} ({})", job.value("pages", 0), pages));
    line("worker", job.value("slot", ""));
    if (job.value("attempt", 0) > 1) line("attempt", fmt::format("{}", job.value("attempt", 0)));
    auto started = job.value("started", Millis(0)), ended = job.value("ended", Millis(0));
    line("created", format_time(job.value("created", Millis(0))));
    if (started > 0 && ended > 0) line("took", fmt::format("{:.1f} s", static_cast<double>(ended - started) / 1000));
    line("workflow", job.value("workflow_id", ""));
    line("reason", job.value("reason", ""));
    for (auto const& [page, why] : job.value("pages_failed", Json::object()).items())
        line("failed", fmt::format("{}: {}", page, why.is_string() ? why.get<std::string>() : dump(why)));
    line("log", job.value("log_file_path", ""));
}

int ended_code(Json const& job) { return job.value("state", "") == "SUCCESS" ? 0 : 1; }

int run_job(JobOptions const& options, Api const& api) {
    auto parameters = parameters_from(options.parameter_files, options.pairs);
    if (!parameters) return complain("job run", parameters.error());
    Json body;
    body["path_to_mets"] = path_for_server(options.mets);
    body["input_file_grps"] = split(options.inputs, ',');
    body["output_file_grps"] = split(options.outputs, ',');
    body["parameters"] = *parameters;
    if (!options.pages.empty()) body["page_id"] = options.pages;
    if (!options.existing.empty()) body["existing_output"] = options.existing;
    if (!options.depends.empty()) body["depends_on"] = split(options.depends, ',');
    if (options.priority != 0) body["priority"] = options.priority;
    auto job = api.post("/processor/run/" + net::percent_encode(options.processor), body);
    if (!job) return complain("job run", job.error());
    if (!options.wait) {
        if (options.json) fmt::print("{}\n", dump(*job));
        else fmt::print("{}\n", job->value("job_id", ""));
        return 0;
    }
    auto limit = options.timeout > 0 ? std::optional(std::chrono::seconds(options.timeout)) : std::nullopt;
    auto ended = follow_job(api, job->value("job_id", ""), limit);
    if (!ended) return complain("job run", ended.error());
    if (options.json) fmt::print("{}\n", dump(*ended));
    else print_job(*ended);
    return ended_code(*ended);
}

int list_jobs(JobOptions const& options, Api const& api) {
    auto target = fmt::format("/v1/jobs?limit={}", options.limit);
    if (!options.only.empty()) target += "&state=" + net::percent_encode(options.only);
    auto jobs = api.get(target);
    if (!jobs) return complain("job list", jobs.error());
    auto const& list = (*jobs)["jobs"];
    if (options.json) {
        fmt::print("{}\n", dump(list));
        return 0;
    }
    std::vector<std::vector<std::string>> rows{{"JOB", "PROCESSOR", "STATE", "PAGES", "AGE", "GROUPS", "REASON"}};
    for (auto const& job : list) {
        auto pages = job.value("page_id", "");
        rows.push_back({job.value("job_id", ""), job.value("processor_name", ""), job.value("state", ""),
                        pages.empty() || pages.size() > 24 ? fmt::format("{}", job.value("pages", 0)) : pages, ago(job.value("created", Millis(0))),
                        fmt::format("{} -> {}", fmt::join(job.value("input_file_grps", std::vector<std::string>()), ","),
                                    fmt::join(job.value("output_file_grps", std::vector<std::string>()), ",")),
                        job.value("reason", "")});
    }
    if (rows.size() == 1) fmt::print("no Jobs\n");
    else fmt::print("{}", table(rows));
    return 0;
}

} // namespace

void add_job(CLI::App& app, int& exit_code) {
    auto* group = app.add_subcommand("job", "Jobs of a processing server: run, look, cancel");
    group->require_subcommand(1);
    group->footer("example: ocrctl job run ocrd-ocrctl-binarize -m mets.xml -I OCR-D-IMG -O OCR-D-BIN --wait");
    auto options = std::make_shared<JobOptions>();
    auto with_api = [options, &exit_code](std::string command, std::function<int(Api const&)> work) {
        return [options, &exit_code, command = std::move(command), work = std::move(work)] {
            auto url = find_server(options->where);
            exit_code = url ? work(Api(*url)) : complain(command, url.error());
        };
    };
    auto subcommand = [&](char const* name, char const* about) {
        auto* command = group->add_subcommand(name, about);
        add_where(*command, options->where);
        return command;
    };

    auto* run = subcommand("run", "Submits a Job and prints its id");
    run->add_option("processor", options->processor, "Name of the Processor")->required();
    run->add_option("-m,--mets", options->mets, "METS file, as the server reaches it")->required();
    run->add_option("-I,--input-file-grp", options->inputs, "Groups to read, joined by commas")->required()->type_name("GROUPS");
    run->add_option("-O,--output-file-grp", options->outputs, "Groups to write, joined by commas")->required()->type_name("GROUPS");
    run->add_option("-g,--page-id", options->pages, "Pages: ids and ranges, joined by commas [all]");
    run->add_option("-p,--parameter", options->parameter_files, "Parameters: a JSON object or a file with one")->expected(1)->take_all()->type_name("JSON|FILE");
    run->add_option("-P,--param-override", options->pairs, "One parameter: KEY VALUE; may be given several times")->expected(1)->take_all()->type_name("KEY VALUE");
    run->add_option("--existing-output", options->existing, "What to do with pages that are there already")->check(CLI::IsMember({"skip", "overwrite", "abort"}));
    run->add_option("--depends-on", options->depends, "Jobs to wait for, joined by commas")->type_name("IDS");
    run->add_option("--priority", options->priority, "Higher goes first [0]");
    run->add_flag("--wait", options->wait, "Until it has ended; exit code 1 if it failed");
    run->add_option("--timeout", options->timeout, "With --wait: give up after so many seconds; the Job goes on")->type_name("SECONDS");
    run->add_flag("--json", options->json, "Print the Job as JSON");
    run->footer("example: ocrctl job run ocrd-ocrctl-recognize -m /data/w/mets.xml -I OCR-D-SEG -O OCR-D-OCR -P model deu --wait");
    run->callback(with_api("job run", [options](Api const& api) { return run_job(*options, api); }));

    auto* status = subcommand("status", "Shows a Job");
    status->add_option("id", options->id, "The Job's id")->required();
    status->add_flag("--json", options->json, "Print it as JSON");
    status->footer("example: ocrctl job status 0190f3c2-...");
    status->callback(with_api("job status", [options](Api const& api) {
        auto job = api.get(target_of(options->id));
        if (!job) return complain("job status", job.error());
        if (options->json) fmt::print("{}\n", dump(*job));
        else print_job(*job);
        return 0;
    }));

    auto* list = subcommand("list", "Lists Jobs: open ones first, then the last that ended");
    list->add_option("--only", options->only, "Only Jobs of this state: CACHED, QUEUED, RUNNING, SUCCESS, FAILED, CANCELLED")->type_name("STATE");
    list->add_option("-n,--limit", options->limit, "At most so many [100]");
    list->add_flag("--json", options->json, "Print them as JSON");
    list->footer("example: ocrctl job list --only FAILED");
    list->callback(with_api("job list", [options](Api const& api) { return list_jobs(*options, api); }));

    auto* cancel = subcommand("cancel", "Cancels a Job, waiting or running, and those that depend on it");
    cancel->add_option("id", options->id, "The Job's id")->required();
    cancel->add_flag("--json", options->json, "Print the Job as JSON");
    cancel->footer("example: ocrctl job cancel 0190f3c2-...");
    cancel->callback(with_api("job cancel", [options](Api const& api) {
        auto job = api.post(target_of(options->id) + "/cancel", Json::object());
        if (!job) return complain("job cancel", job.error());
        if (options->json) fmt::print("{}\n", dump(*job));
        else fmt::print("{} {}\n", options->id, job->value("state", ""));
        return 0;
    }));

    auto* log = subcommand("log", "Prints what a Job's runs wrote");
    log->add_option("id", options->id, "The Job's id")->required();
    log->footer("example: ocrctl job log 0190f3c2-...");
    log->callback(with_api("job log", [options](Api const& api) {
        auto text = api.text("/processor/log/" + net::percent_encode(options->id));
        if (!text) return complain("job log", text.error());
        fmt::print("{}{}", *text, text->ends_with('\n') || text->empty() ? "" : "\n");
        return 0;
    }));
}

} // namespace ocrctl
