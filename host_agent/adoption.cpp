// Adoption: what an earlier agent of this host started.
#include "host_agent/supervisor.hpp"

#include <algorithm>

namespace ocrctl::host_agent {

namespace fs = std::filesystem;
namespace field = log::field;
using log::kv;

Result<void> Supervisor::adopt() {
    auto state = agent_.book->replay();
    if (!state) return std::unexpected(state.error());
    if (state->closing) agent_.closing = true;
    bool any = std::ranges::any_of(state->entries, [](auto const& e) { return e.second.open(); });
    if (!any) return {};
    for (auto const& [name_, entry] : state->entries)
        if (agent_.desired.deployment.empty() && entry.open() && entry.spec.is_object()) {
            agent_.desired.deployment = entry.spec.value("deployment", std::string());
            agent_.desired.host = entry.host;
        }
    auto found = process::scan(agent_.desired.deployment, agent_.desired.host,
                               process::Ancestors::Included); // a server may have started us
    for (auto const& name_ : state->order) {
        auto const& entry = state->entries.at(name_);
        if (!entry.open()) continue;
        auto spec = json_to<UnitSpec>(entry.spec);
        if (!spec || spec->entry != name_) {
            agent_.log.warn("ledger.spec", kv(field::kEntry, name_));
            continue;
        }
        auto unit = std::make_shared<Unit>();
        unit->spec = *spec;
        unit->recorded = true;
        auto identity = entry.exited ? std::nullopt : entry.identity;
        bool written = identity.has_value();
        if (identity && !process::alive(*identity)) identity.reset();
        if (!identity && !written) identity = hostops::find_unit(found, name_);
        auto pidfd = identity ? process::open_pidfd(*identity) : Result<Fd>(fail(ErrorKind::NotFound, "ended"));
        if (pidfd) {
            if (!written && !agent_.record(ledger::identity(name_, *identity)))
                return fail(ErrorKind::Unavailable, "the host ledger cannot be written");
            unit->identity = identity;
            unit->pidfd = std::move(*pidfd);
            std::error_code ignored;
            auto size = fs::file_size(hostops::unit_log(home(), unit->spec), ignored);
            unit->log_start = ignored ? 0 : size;
            begin(unit);
            bool ready = entry.ready || unit->spec.ready.kind == "started";
            unit->ready = unit->was_ready = ready;
            unit->ready_since = SteadyClock::now();
            set_state(*unit, ready ? UnitState::Ready : UnitState::Starting, "");
            agent_.log.info("unit.adopted", kv(field::kEntry, name_), kv(field::kPid, identity->pid));
        } else {
            if (!entry.exited) agent_.record(ledger::exited(name_, "ended while no agent ran"));
            unit->leftovers = std::ranges::any_of(found, [&](auto const& f) { return f.entry == name_; });
            unit->detail = entry.exited ? entry.status : "ended while no agent ran";
        }
        units_[name_] = unit;
        agent_.tasks.spawn("supervise " + name_, supervise(unit));
    }
    return {};
}

} // namespace ocrctl::host_agent
