#include "processing_server/outcome.hpp"

#include "lib/base/text.hpp"

#include <fmt/format.h>
#include <set>

namespace ocrctl::server {

Result<std::vector<std::string>> pages_to_do(mets::Mets const& mets, Job const& job) {
    auto pages = job.pages_left ? *job.pages_left : job.pages;
    if (job.existing_output == ExistingOutput::Overwrite) return pages;
    auto existing = mets::existing_outputs(mets, pages, job.output_groups);
    if (existing.empty()) return pages;
    if (job.existing_output == ExistingOutput::Abort)
        return fail(ErrorKind::Conflict, "output group {} exists already for page {} and {} more",
                    join(job.output_groups, ","), existing.front(), existing.size() - 1);
    std::set<std::string> done(existing.begin(), existing.end());
    std::erase_if(pages, [&](auto const& page) { return done.contains(page); });
    return pages;
}

std::string failure_of(Job const& job) {
    auto failed = job.pages_failed.size();
    if (failed == 0) return {};
    auto total = std::max(job.pages.size(), failed);
    if (static_cast<double>(failed) <= kMaxMissing * static_cast<double>(total)) return {};
    auto const& [page, reason] = *job.pages_failed.begin();
    if (total == 1) return fmt::format("page {} failed: {}", page, reason);
    return fmt::format("{} of {} failed, the first is {}: {}", failed, counted(total, "page"), page, reason);
}

mets::RunFiles run_files(Job const& job, TaskResult const& result) {
    mets::RunFiles run;
    for (auto const& page : result.pages)
        if (page.ok) run.files.insert(run.files.end(), page.files.begin(), page.files.end());
    run.overwrite = job.existing_output == ExistingOutput::Overwrite;
    run.provenance = result.provenance;
    run.input_groups = job.input_groups;
    run.output_groups = job.output_groups;
    return run;
}

Decision decide(Job const& before, TaskResult const& result) {
    Decision d;
    d.job = before;
    auto& job = d.job;
    d.files = run_files(before, result);
    job.slot = result.slot;
    if (job.started == 0) job.started = result.started;

    std::set<std::string> settled; // pages that need no further attempt
    std::vector<PageOutcome const*> transient;
    for (auto const& page : result.pages) {
        if (page.ok) {
            job.pages_failed.erase(page.page_id);
            settled.insert(page.page_id);
        } else if (page.retry && result.error.empty() && job.retries < kMaxRetries) {
            transient.push_back(&page);
        } else if (!page.retry || result.error.empty()) {
            job.pages_failed[page.page_id] = page.error.empty() ? "failed without a reason" : page.error;
            settled.insert(page.page_id);
        }
    }
    auto next_attempt = [&](std::vector<std::string> pages) {
        d.final = false;
        job.published = false;
        job.pages_left = std::move(pages);
        ++job.attempt;
    };
    auto unsettled = [&] {
        std::vector<std::string> left;
        for (auto const& page : before.pages_left ? *before.pages_left : before.pages)
            if (!settled.contains(page)) left.push_back(page);
        return left;
    };

    if (result.engine_died) {
        ++job.engine_deaths;
        if (job.engine_deaths < kMaxEngineDeaths) {
            next_attempt(unsettled());
        } else {
            job.quarantined = true;
            job.reason = fmt::format("quarantined: the engine died {} times while it worked on this Job{}{}", job.engine_deaths,
                                     result.error.empty() ? "" : ", the last time: ", result.error);
        }
    } else if (result.cancelled) {
        next_attempt(unsettled()); // a drain, a lease's end: not the Job's fault
    } else if (!result.error.empty()) {
        job.reason = result.error;
    } else if (!transient.empty()) {
        std::vector<std::string> pages;
        for (auto const* page : transient) pages.push_back(page->page_id);
        d.wait = std::chrono::milliseconds(1000 << job.retries);
        ++job.retries;
        next_attempt(std::move(pages));
    } else {
        job.reason = failure_of(job);
    }
    if (d.final) job.committed = true;
    return d;
}

} // namespace ocrctl::server
