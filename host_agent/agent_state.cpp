#include "host_agent/agent_state.hpp"

#include "lib/async/within.hpp"

namespace ocrctl::host_agent {

namespace fs = std::filesystem;
namespace field = log::field;
using log::kv;
using namespace asio::experimental::awaitable_operators;

AgentState::AgentState(AgentOptions given)
    : options(std::move(given)), paths{fs::absolute(options.host_dir).lexically_normal()} {}

void AgentState::notify() {
    ++version;
    changed_event.notify_all();
}

awaitable<void> AgentState::changed(std::optional<SteadyClock::time_point> until) {
    if (!until) {
        co_await changed_event.wait();
        co_return;
    }
    asio::steady_timer timer(io, *until);
    co_await (changed_event.wait() || timer.async_wait(use_awaitable));
}

bool AgentState::record(ledger::Record line) {
    auto written = book->append(std::move(line));
    if (!written) log.error("ledger.failed", kv(field::kError, written.error().message()));
    return written.has_value();
}

bool AgentState::no_starts() {
    std::error_code ignored;
    if (!closing && fs::exists(paths.closing(), ignored)) { // written by a kill-all that did not reach our socket
        closing = true;
        notify();
    }
    return closing || ending || quitting;
}

void AgentState::close_deployment() {
    std::error_code ignored;
    if (!fs::exists(paths.closing(), ignored)) {
        if (auto made = write_file_atomically(paths.closing(), "closing\n", 0600); !made)
            log.error("closing.failed", kv(field::kError, made.error().message()));
    }
    if (closing) return;
    record(ledger::closing());
    closing = true;
    log.info("agent.closing");
    notify();
}

std::vector<std::vector<UnitKind>> const& tiers() {
    static std::vector<std::vector<UnitKind>> const order{{UnitKind::Worker, UnitKind::ForeignWorker},
                                                          {UnitKind::Agent},
                                                          {UnitKind::Server},
                                                          {UnitKind::Database},
                                                          {UnitKind::Queue},
                                                          {UnitKind::Tunnel}};
    return order;
}

} // namespace ocrctl::host_agent
