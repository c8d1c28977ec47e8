#include "deployer/agentless.hpp"

#include "lib/base/crash_point.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>

namespace ocrctl::deployer {

using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

Result<void> keep(ledger::StatePaths const& paths, HostReport const& report) {
    ledger::HostPaths here{paths.host(report.host)};
    if (auto made = make_folder(here.root); !made) return made;
    return write_file_atomically(here.report(), dump(Json(report)) + "\n");
}

} // namespace

std::optional<HostReport> agentless_report(ledger::StatePaths const& paths, std::string const& host) {
    auto text = read_file(ledger::HostPaths{paths.host(host)}.report());
    if (!text) return std::nullopt;
    auto report = json_to<HostReport>(std::string_view(*text));
    return report ? std::optional(std::move(*report)) : std::nullopt;
}

Result<void> prepare_agentless(SetupContext& context, HostDriver& driver, HostPlan const& plan,
                               std::string const& boot) {
    auto entry = agent_entry(plan.name);
    auto state = context.ledger->replay();
    if (!state) return std::unexpected(state.error());
    auto const* known = state->find(entry);
    if (known && known->open() && known->identity) {
        auto ended = end_agent(driver, plan, *known->identity);
        if (!ended) return ended;
        if (auto written = context.ledger->append(ledger::stopped(entry)); !written) return written;
        known = nullptr;
    }
    if (!known || !known->open()) {
        auto written =
            context.ledger->append(ledger::intent(entry, "no-agent", plan.name, Json{{"state", plan.state}}));
        if (!written) return written;
    }
    crash_point("deploy.after-agentless-record");
    auto before = context.fresh ? std::nullopt : agentless_report(context.paths, plan.name);
    if (before && before->boot_id == boot) return {};
    HostReport report;
    report.deployment = plan.desired.deployment;
    report.host = plan.name;
    report.boot_id = boot;
    return keep(context.paths, report);
}

Result<AgentlessStart> start_agentless(ledger::StatePaths const& paths, SetupResult const& host, milliseconds limit) {
    auto const& name = host.plan.name;
    auto driver = driver_for(name, host.record);
    if (!driver) return std::unexpected(driver.error());
    crash_point("deploy.before-agentless-start");
    // It carries the marks, so that kill-all finds it, too.
    auto mark = [](char const* variable, std::string const& value) { return fmt::format("{}={}", variable, value); };
    auto output = (*driver)->run({"env", mark(process::kDeploymentMark, host.plan.desired.deployment),
                                  mark(process::kHostMark, name), mark(process::kEntryMark, "host-start"),
                                  host.record.binary, "host", "start", "--state", host.plan.state, "--limit",
                                  fmt::format("{:.1f}", static_cast<double>(limit.count()) / 1000), "--json"},
                                 {}, limit + seconds(40));
    if (!output) return std::unexpected(output.error());
    crash_point("deploy.after-agentless-start");
    constexpr int kSomeNotReady = 3;
    if (output->exit_code != 0 && output->exit_code != kSomeNotReady)
        return fail(ErrorKind::Unavailable, "{}: host start: {} (exit code {})", name, trim(output->err),
                    output->exit_code);
    auto report = json_to<HostReport>(std::string_view(output->out));
    if (!report) return fail(report.error().during(name));
    if (auto kept = keep(paths, *report); !kept) return std::unexpected(kept.error());

    AgentlessStart result;
    for (auto const& unit : report->units) {
        if (unit.state == UnitState::Ready) {
            ++result.ready;
        } else if (!result.error) {
            auto spec = std::ranges::find(host.plan.desired.units, unit.entry, &UnitSpec::entry);
            auto log = spec == host.plan.desired.units.end() ? std::string() : spec->log;
            // It lies on another machine, and nobody there restarts the Worker.
            auto words = log.empty() ? Result<Output>(Output{}) : (*driver)->run({"tail", "-n", "5", "--", log});
            auto end = words ? std::string(trim(words->out)) : std::string();
            result.error = Error(unit.state == UnitState::Starting ? ErrorKind::Timeout : ErrorKind::Unavailable,
                                 fmt::format("{}: {} {}: {} (log: {}){}{}", name, unit.entry,
                                             unit.state == UnitState::Starting ? "is not ready" : "does not start",
                                             unit.detail, log, end.empty() ? "" : "\n", end));
        }
    }
    return result;
}

} // namespace ocrctl::deployer
