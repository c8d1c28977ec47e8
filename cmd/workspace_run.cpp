#include "cmd/workspace_run.hpp"

#include "lib/async/task_group.hpp"
#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/log.hpp"
#include "lib/mets/mets.hpp"

#include <algorithm>
#include <cstdio>

namespace ocrctl {

namespace fs = std::filesystem;
using log::kv;

namespace {

constexpr int kPageTries = 3;  // of transient trouble
constexpr int kSaveTries = 5;  // against somebody else who writes the METS
constexpr char kDummy[] = "ocrd-ocrctl-dummy";

} // namespace

struct WorkspaceRunner::Impl {
    Impl(asio::any_io_executor e, WorkspaceRun r)
        : executor(e), run(std::move(r)), pool(e, std::max<std::size_t>(run.parallel, 1), run.engine), log("processor") {}

    asio::any_io_executor executor;
    WorkspaceRun run;
    engine::EnginePool pool;
    log::Logger log;

    fs::path workspace, staging;
    std::vector<PageInput> pages;
    std::size_t next = 0;
    std::vector<FileRef> files; // moved into place
    WorkspaceReport report;
    std::string ending; // why it ends early; "" while it does not

    awaitable<Result<WorkspaceReport>> work();
    awaitable<void> take_pages();
    awaitable<void> one_page(PageInput page);
    awaitable<PageOutcome> attempt(std::string processor, Json parameters, PageInput page);
    std::string move_into_place(PageOutcome const& outcome);
    void page_failed(std::string const& page, std::string const& reason);
    Result<void> save(mets::Mets& mets, Provenance const& provenance);
    void clean_up();
};

WorkspaceRunner::WorkspaceRunner(asio::any_io_executor executor, WorkspaceRun run) : impl_(std::make_unique<Impl>(std::move(executor), std::move(run))) {}
WorkspaceRunner::~WorkspaceRunner() = default;

awaitable<Result<WorkspaceReport>> WorkspaceRunner::run() { return impl_->work(); }

void WorkspaceRunner::stop(std::string reason) {
    if (impl_->ending.empty()) impl_->ending = std::move(reason);
    impl_->pool.kill();
}

awaitable<Result<WorkspaceReport>> WorkspaceRunner::Impl::work() {
    auto mets = mets::Mets::load(run.mets_file);
    if (!mets) co_return fail(mets.error());
    workspace = mets->workspace();
    auto selected = mets->select_pages(run.page_selector);
    if (!selected) co_return fail(selected.error());
    for (auto const& group : run.output_groups)
        if (auto fits = mets::check_file(*mets, {group, "x", "", "", "", 0, ""}); !fits) co_return fail(fits.error());

    auto done_before = mets::existing_outputs(*mets, *selected, run.output_groups);
    if (!done_before.empty() && run.existing == ExistingOutput::Abort)
        co_return fail(ErrorKind::Conflict, "output group {} already has files for {} of the selected pages (page {}): use --overwrite, or OCRD_EXISTING_OUTPUT=SKIP to keep them",
                       join(run.output_groups, ","), done_before.size(), done_before.front());
    auto wanted = *selected;
    if (run.existing == ExistingOutput::Skip) {
        std::sort(done_before.begin(), done_before.end());
        std::erase_if(wanted, [&](auto const& page) { return std::binary_search(done_before.begin(), done_before.end(), page); });
        report.existing = done_before.size();
        if (report.existing > 0) log.info("pages.skipped", kv("count", report.existing), kv("reason", "output exists"));
    }
    auto inputs = mets::inputs_for(*mets, wanted, run.input_groups, run.output_groups);
    if (!inputs) co_return fail(inputs.error());
    for (auto const& problem : inputs->left_out) log.warn("page.left_out", kv("page", problem.page_id), kv("reason", problem.reason));
    if (run.abort_on_missing_input && !inputs->left_out.empty()) co_return fail(ErrorKind::NotFound, "{}", inputs->left_out.front().reason);
    report.left_out = inputs->left_out.size();
    report.of = inputs->pages.size() + inputs->failed.size();
    pages = std::move(inputs->pages);
    if (report.of == 0) co_return report;

    Provenance provenance;
    if (!pages.empty()) {
        auto loaded = co_await pool.load(run.processor, run.parameters);
        if (!loaded) co_return fail(ending.empty() ? loaded.error() : Error(ErrorKind::Unavailable, ending));
        provenance = *loaded;
    }
    staging = workspace / ".ocrctl" / ("run-" + new_ulid());
    if (auto made = make_folder(staging); !made) co_return fail(made.error().during("make the staging folder"));

    for (auto const& problem : inputs->failed) page_failed(problem.page_id, problem.reason);
    TaskGroup workers(executor, "processor");
    for (std::size_t i = 0; i < std::min(std::max<std::size_t>(run.parallel, 1), pages.size()); ++i) workers.spawn("pages", take_pages());
    co_await workers.join();
    if (ending.empty() && report.done + report.failed != report.of)
        ending = fmt::format("only {} of {} came to an end, see the log", report.done + report.failed, counted(report.of, "page"));

    auto saved = save(*mets, provenance);
    clean_up();
    report.error = ending;
    if (!saved) report.error = report.error.empty() ? saved.error().message() : report.error + "; and " + saved.error().message();
    co_return report;
}

awaitable<void> WorkspaceRunner::Impl::take_pages() {
    while (ending.empty() && next < pages.size()) {
        auto const at = next++;
        co_await one_page(pages[at]);
    }
}

awaitable<PageOutcome> WorkspaceRunner::Impl::attempt(std::string processor, Json parameters, PageInput page) {
    PageOutcome outcome;
    for (int tried = 1;; ++tried) {
        engine::PageRequest request{processor, parameters, workspace, staging, run.input_groups, run.output_groups, page};
        auto reply = co_await pool.page(std::move(request), run.page_limit);
        if (!reply) {
            outcome = {};
            outcome.page_id = page.page_id;
            outcome.error = reply.error().message();
            co_return outcome;
        }
        if (!reply->log.empty()) fmt::print(stderr, "{}{}", reply->log, reply->log.ends_with('\n') ? "" : "\n");
        outcome = std::move(reply->outcome);
        if (outcome.ok || !outcome.retry || tried == kPageTries || !ending.empty()) co_return outcome;
        log.warn("page.retried", kv("page", page.page_id), kv("reason", outcome.error));
        co_await pause(std::chrono::milliseconds(500 << tried));
        if (!ending.empty()) co_return outcome;
    }
}

awaitable<void> WorkspaceRunner::Impl::one_page(PageInput page) {
    auto const begun = std::chrono::steady_clock::now();
    auto outcome = co_await attempt(run.processor, run.parameters, page);
    auto problem = outcome.ok ? move_into_place(outcome) : outcome.error;
    for (auto const& warning : outcome.warnings) log.warn("page.warning", kv("page", page.page_id), kv("reason", warning));
    if (problem.empty()) {
        ++report.done;
        log.info("page.done", kv("page", page.page_id),
                 kv("after_ms", std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begun).count()));
        co_return;
    }
    if (!ending.empty()) co_return; // stopped: the page did not fail
    page_failed(page.page_id, problem);
    if (!ending.empty() || run.missing != MissingOutput::Copy) co_return;
    // OCR-D passes the input on as if it were the result; our Processor that does nothing but that does it here.
    outcome = co_await attempt(kDummy, Json::object(), page);
    problem = outcome.ok ? move_into_place(outcome) : outcome.error;
    if (!problem.empty()) log.error("page.not_copied", kv("page", page.page_id), kv("reason", problem));
}

void WorkspaceRunner::Impl::page_failed(std::string const& page, std::string const& reason) {
    ++report.failed;
    log.error("page.failed", kv("page", page), kv("reason", reason));
    if (run.missing == MissingOutput::Abort) ending = fmt::format("page {}: {}", page, reason);
    else if (run.max_missing > 0 && static_cast<double>(report.failed) > run.max_missing * static_cast<double>(report.of))
        ending = fmt::format("too many failures ({} of {}); page {}: {}", report.failed, counted(report.of, "page"), page, reason);
}

std::string WorkspaceRunner::Impl::move_into_place(PageOutcome const& outcome) {
    for (auto const& file : outcome.files) {
        auto const target = workspace / file.path;
        std::error_code error;
        fs::create_directories(target.parent_path(), error);
        if (!error) fs::rename(staging / file.path, target, error);
        if (error) return fmt::format("cannot put {} into place: {}", target.native(), error.message());
    }
    files.insert(files.end(), outcome.files.begin(), outcome.files.end());
    return {};
}

Result<void> WorkspaceRunner::Impl::save(mets::Mets& mets, Provenance const& provenance) {
    if (files.empty()) return {};
    for (auto const& group : run.output_groups)
        if (fs::exists(workspace / group)) (void)flush_folder(workspace / group);
    mets::RunFiles const outcome{files, run.existing == ExistingOutput::Overwrite, provenance, run.input_groups, run.output_groups};
    for (int tried = 1;; ++tried) {
        auto dropped = mets::apply(mets, outcome);
        if (!dropped) return fail(dropped.error());
        auto saved = mets.save();
        if (!saved) {
            if (saved.error().kind() != ErrorKind::Conflict || tried == kSaveTries) return saved;
            log.info("mets.reloaded", kv("path", mets.file().native()), kv("reason", "changed by somebody else"));
            if (auto again = mets.reload(); !again) return again;
            continue;
        }
        for (auto const& path : *dropped) { // of an earlier run, no longer made
            std::error_code ignored;
            fs::remove(workspace / path, ignored);
        }
        return {};
    }
}

void WorkspaceRunner::Impl::clean_up() {
    remove_tree(staging);
    std::error_code ignored;
    fs::remove(staging.parent_path(), ignored); // only if nobody else's run is in it
}

} // namespace ocrctl
