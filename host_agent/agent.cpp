#include "host_agent/agent.hpp"

#include "host_agent/control_socket.hpp"
#include "host_agent/lease.hpp"
#include "host_agent/server_link.hpp"
#include "lib/async/within.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"
#include "lib/hostops/start.hpp"
#include "lib/ledger/lock.hpp"

#include <algorithm>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>
#include <set>
#include <sys/prctl.h>
#include <unistd.h>

namespace ocrctl::host_agent {

namespace fs = std::filesystem;
namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;

namespace {

Result<void> check(DesiredState const& wanted) {
    std::set<std::string> seen;
    for (auto const& spec : wanted.units) {
        if (spec.entry.empty() || spec.argv.empty()) return fail(ErrorKind::Invalid, "a unit without entry or argv");
        if (!seen.insert(spec.entry).second) return fail(ErrorKind::Invalid, "two units are called {}", spec.entry);
    }
    if (wanted.deployment.empty() || wanted.host.empty())
        return fail(ErrorKind::Invalid, "a desired state without deployment or host");
    return {};
}

} // namespace

/// Wires the parts together, in the order in which they need one another.
struct Agent::Impl final : AgentCommands {
    explicit Impl(AgentOptions options) : state(std::move(options)) {}

    AgentState state;                                         // the folder, the ledger, what is wanted
    std::optional<ledger::LockFile> lock;                     // one agent a folder
    std::optional<asio::signal_set> signals, children;        // TERM and INT; SIGCHLD of adopted grandchildren
    asio::steady_timer farewell{state.io};                    // how long quitting may take
    Lease lease{state};                                       // ends everything when the server stays silent
    Supervisor supervisor{state};                             // the units
    WorkerChannel workers{state, supervisor};                 // what Workers say
    ControlSocket control{state, supervisor, workers, *this}; // Workers, Deployer, kill-all
    ServerLink server{state, supervisor, workers, *this};     // the processing server

    Result<void> apply(DesiredState wanted) override {
        if (auto checked = check(wanted); !checked) return checked;
        if (state.no_starts())
            return fail(ErrorKind::Conflict, "this deployment is closing: nothing is started any more");
        if (!state.desired.deployment.empty()) {
            if (wanted.deployment != state.desired.deployment || wanted.host != state.desired.host)
                return fail(ErrorKind::Conflict, "this agent serves host {} of deployment {}", state.desired.host,
                            state.desired.deployment);
            if (wanted.generation < state.desired.generation)
                return fail(ErrorKind::Conflict, "generation {} is older than {}, which is in force", wanted.generation,
                            state.desired.generation);
        }
        if (Json(wanted) != Json(state.desired))
            if (auto written = write_file_atomically(state.paths.desired(), dump(Json(wanted)), 0600); !written)
                return written;
        state.desired = std::move(wanted);
        state.log.info("desired.applied", kv("generation", state.desired.generation),
                       kv(field::kCount, state.desired.units.size()));
        supervisor.reconcile();
        lease.renew();
        return {};
    }

    void renew_lease() override { lease.renew(); }

    awaitable<void> watch_lease() {
        co_await lease.ended();
        state.ending = true;
        state.notify();
        std::set<UnitKind> all;
        for (auto const& tier : tiers()) all.insert(tier.begin(), tier.end());
        auto [stopped, left] = co_await supervisor.stop_kinds(std::move(all), std::nullopt);
        if (!left.empty())
            state.log.error("lease.left", kv(field::kCount, left.size()), kv(field::kEntry, join(left, ",")));
        quit();
    }

    awaitable<void> last_task() {
        while (state.tasks.size() > 1) co_await pause(1ms);
        farewell.cancel();
        state.io.stop();
    }

    void quit() override {
        if (state.quitting) return;
        state.quitting = true;
        state.notify();
        boost::system::error_code ignored;
        control.close();
        if (signals) signals->cancel(ignored);
        if (children) children->cancel(ignored);
        state.tasks.cancel();
        // What does not let itself be cancelled (a good-bye to the server) gets no more than this.
        farewell.expires_after(2s);
        farewell.async_wait([this](boost::system::error_code) { state.io.stop(); });
        state.tasks.spawn("farewell", last_task());
    }

    awaitable<void> watch_signals() {
        auto [problem, number] = co_await signals->async_wait(as_tuple);
        if (problem) co_return;
        state.log.info("agent.exit", kv(field::kReason, number == SIGTERM ? "SIGTERM" : "SIGINT"));
        quit();
    }

    awaitable<void> watch_children() {
        while (!state.quitting) {
            auto [problem, number] = co_await children->async_wait(as_tuple);
            if (problem) co_return;
            process::reap_strays();
        }
    }

    Result<void> run() {
        if (auto made = make_folder(state.paths.root, 0700); !made) return made;
        if (auto made = make_folder(state.paths.logs()); !made) return made;
        // A start of when this host had no agent may still wait for its Workers; they are adopted.
        auto holder = ledger::lock_holder(state.paths.lock());
        auto taken = holder && holder->command == hostops::kStartHolder
                         ? ledger::LockFile::take_over(state.paths.lock(), "agent")
                         : ledger::LockFile::take(state.paths.lock(), "agent");
        if (!taken) return fail(taken.error().during("an agent runs here already"));
        lock = std::move(*taken);
        crash_point("agent.after-lock");
        auto opened = ledger::Ledger::open(state.paths.ledger());
        if (!opened) return std::unexpected(opened.error());
        state.book = std::move(*opened);
        if (auto text = read_file(state.paths.desired()); text) {
            auto wanted = json_to<DesiredState>(std::string_view(*text));
            if (!wanted) return fail(wanted.error().during(state.paths.desired().string()));
            if (auto checked = check(*wanted); !checked)
                return fail(checked.error().during(state.paths.desired().string()));
            state.desired = std::move(*wanted);
        } else if (text.error().kind() != ErrorKind::NotFound) {
            return std::unexpected(text.error());
        }
        state.log =
            state.log.with(kv(field::kDeployment, state.desired.deployment), kv(field::kHost, state.desired.host));

        ::signal(SIGPIPE, SIG_IGN);
        ::signal(SIGHUP, SIG_IGN);
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);
        signals.emplace(state.io, SIGTERM, SIGINT);
        children.emplace(state.io, SIGCHLD);

        std::error_code ignored;
        state.closing = fs::exists(state.paths.closing(), ignored);
        lease.load();
        if (auto adopted = supervisor.adopt(); !adopted) return adopted;
        if (state.closing && supervisor.empty()) { // a kill-all passed by before we came up
            state.log.info("agent.exit", kv(field::kReason, "the deployment is closing"));
            return {};
        }
        if (auto listening = control.listen(); !listening) return listening;
        if (auto known = state.book->replay();
            known && std::ranges::find(known->paths, state.paths.socket().string()) == known->paths.end())
            state.record(ledger::path("", state.paths.socket().string()));
        crash_point("agent.after-socket");
        if (!state.desired.host.empty()) supervisor.reconcile();

        state.tasks.spawn("control", control.accept());
        state.tasks.spawn("lease", watch_lease());
        state.tasks.spawn("server", server.dial());
        state.tasks.spawn("silence", workers.watch_silence());
        state.tasks.spawn("signals", watch_signals());
        state.tasks.spawn("children", watch_children());
        state.log.info("agent.started", kv(field::kPid, ::getpid()), kv("build", state.options.build),
                       kv(field::kPath, state.paths.socket().string()));
        state.io.run();
        if (supervisor.blocked()) {
            // In the middle of ending a unit that takes its time. Nothing of ours is unwritten, and the next agent goes
            // on with it; joining the threads could take as long as the unit's grace.
            ::fflush(nullptr);
            ::_exit(0);
        }
        return {};
    }
};

Agent::Agent(AgentOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Agent::~Agent() = default;

Result<void> Agent::run() {
    return impl_->run();
}

} // namespace ocrctl::host_agent
