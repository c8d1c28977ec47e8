#include "host_agent/worker_channel.hpp"

#include "lib/async/within.hpp"

#include <algorithm>
#include <sys/socket.h>
#include <unistd.h>

namespace ocrctl::host_agent {

namespace field = log::field;
using log::kv;

void WorkerChannel::hello(SessionPtr const& session, Json const& request) {
    auto slot = request.value("slot", std::string());
    ucred peer{};
    socklen_t size = sizeof peer;
    ::getsockopt(session->socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size);
    auto unit = supervisor_.find(slot);
    bool ours = unit && unit->running && unit->identity && !unit->exit &&
                (unit->identity->pid == peer.pid || ::getsid(peer.pid) == unit->identity->pid);
    if (!ours) { // of an earlier life of this slot, or of nobody: it is to end
        agent_.log.warn("worker.refused", kv(field::kSlot, slot), kv(field::kPid, peer.pid));
        session->send(Json{{"op", "drain"}});
        return;
    }
    session->slot = slot;
    unit->hello = true;
    unit->beats = request.value("beats", false); // one of an older build does not
    unit->silent = 0;
    std::weak_ptr<Session> weak = session;
    unit->to_worker = [weak](Json const& message) {
        auto alive = weak.lock();
        if (!alive || !alive->open) return false;
        alive->send(message);
        return true;
    };
    session->send(Json{{"op", "assign"}, {"assignment", unit->spec.assignment}});
    agent_.log.debug("worker.connected", kv(field::kSlot, slot), kv(field::kPid, peer.pid));
    agent_.notify();
}

void WorkerChannel::state(SessionPtr const& session, Json const& request) {
    auto place = session->slot.empty() ? nullptr : supervisor_.find(session->slot);
    if (!place) return;
    auto& unit = *place;
    if (!unit.running || unit.exit) return;
    unit.silent = 0;
    auto text = [&](char const* key) {
        auto value = request.find(key);
        return value != request.end() && value->is_string() ? value->get<std::string>() : std::string();
    };
    auto number = [&](char const* key) {
        auto value = request.find(key);
        return value != request.end() && value->is_number_integer() ? value->get<std::int64_t>() : std::int64_t{-1};
    };
    auto state = text("state");
    auto job = text("job");
    if (auto done = number("jobs_done"); done >= 0)
        unit.jobs_done = done;
    else if (!unit.job.empty() && unit.job != job)
        ++unit.jobs_done;
    bool moved = unit.job != job;
    unit.job = job;
    auto detail = text("detail");
    if (auto pages = number("pages"); detail.empty() && state == "busy" && pages > 0)
        detail = fmt::format("page {} of {}", std::max<std::int64_t>(0, number("pages_done")), pages);
    if (state == "ready" || state == "busy") {
        supervisor_.mark_ready(unit);
        if (unit.detail != detail && unit.state == UnitState::Ready) {
            unit.detail = detail;
            moved = true;
        }
    } else if (unit.state == UnitState::Stopping) {
        // keeps saying so
    } else if (state == "broken") {
        supervisor_.set_state(unit, UnitState::Failed, detail.empty() ? "is broken" : detail);
    } else if (state == "starting") {
        supervisor_.set_state(unit, UnitState::Starting, detail);
    }
    if (moved) agent_.notify();
}

void WorkerChannel::beat(SessionPtr const& session) {
    if (auto unit = session->slot.empty() ? nullptr : supervisor_.find(session->slot)) unit->silent = 0;
}

awaitable<void> WorkerChannel::watch_silence() {
    constexpr int kTicks = 10;
    auto tick = agent_.options.silence / kTicks;
    while (co_await pause(tick)) {
        for (auto const& [slot, unit] : supervisor_.units()) {
            if (!unit->beats || !unit->running || unit->exit || unit->hung) continue;
            if (++unit->silent <= kTicks) continue;
            agent_.log.warn("worker.silent", kv(field::kSlot, slot),
                            kv(field::kPid, unit->identity ? unit->identity->pid : 0), kv(field::kJob, unit->job));
            unit->hung = true;
            agent_.notify();
        }
    }
}

bool WorkerChannel::cancel(std::string const& slot, std::string const& job) {
    auto unit = supervisor_.find(slot);
    if (!unit || !unit->to_worker) return false;
    return unit->to_worker(Json{{"op", "cancel"}, {"job", job}});
}

} // namespace ocrctl::host_agent
