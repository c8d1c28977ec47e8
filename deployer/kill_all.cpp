#include "deployer/kill_all.hpp"

#include "deployer/deployment_file.hpp"
#include "deployer/host_setup.hpp"
#include "deployer/host_teardown.hpp"
#include "deployer/tunnel.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/model/unit.hpp"
#include "lib/net/client.hpp"

#include <algorithm>
#include <mutex>
#include <set>
#include <thread>

namespace ocrctl::deployer {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {

/// One Host on its way to empty. Each is worked on by one thread at a time.
struct Target {
    std::string name;
    HostRecord record;
    std::unique_ptr<HostTeardown> ops;    // nothing while it is unreachable
    std::optional<Error> unreachable;
    std::vector<std::string> left;
    bool verified = false; // empty, by an earlier look: only then is an agent noted as stopped
};

void each(std::vector<Target>& targets, std::function<void(Target&)> const& work) {
    std::vector<std::jthread> threads;
    for (auto& target : targets)
        if (!target.unreachable && !target.verified) threads.emplace_back([&work, &target] { work(target); });
}

void give_up(Target& target, Error const& error) {
    target.unreachable = error.message().find(target.name) == std::string::npos ? error.during(target.name) : error;
    target.ops.reset();
}

/// Of the central state folder, what is neither data nor logs nor a Ledger.
void tidy_central(ledger::StatePaths const& paths) {
    remove_tree(paths.secrets());
    for (char const* name : {"server.json", "server.lock"}) remove_tree(paths.root / name);
    for (char const* name : {"home", "data/pid", "data/config", "inetrc", "enabled_plugins", "rabbitmq.conf", "rabbitmq-env.conf", "definitions.json", "advanced.config"})
        remove_tree(paths.rabbitmq() / name);
    std::error_code error;
    for (auto const& host : fs::directory_iterator(paths.hosts(), error)) {
        ledger::HostPaths here{host.path()};
        for (auto const& path : {here.desired(), here.report(), here.closing(), here.lease(), here.lock(), here.secrets(), here.tmp(), here.root / "bin", here.root / "agent.sock", here.socket()})
            remove_tree(path);
        fs::remove(host.path(), error); // an empty one
    }
}

/// A folder below STATE/hosts that was not tidied.
struct HostFolder {
    std::string name;
    bool here = false; // HOSTDIR itself; else what a Host elsewhere was told
};
std::vector<HostFolder> host_folders(ledger::StatePaths const& paths) {
    std::vector<HostFolder> folders;
    std::error_code error;
    for (fs::directory_iterator item(paths.hosts(), error), end; !error && item != end; item.increment(error)) {
        ledger::HostPaths host{item->path()};
        std::error_code ignored;
        auto there = [&](fs::path const& path) { return fs::exists(path, ignored); };
        bool here = there(host.ledger()) || there(host.lock()) || there(host.secrets()) || there(host.root / "bin");
        if (here || there(host.desired())) folders.push_back({item->path().filename().string(), here});
    }
    std::ranges::sort(folders, {}, &HostFolder::name);
    return folders;
}

/// The deployment's id, or, if deployment.json is gone, those that what lies or runs here names.
std::vector<std::string> ids_of(ledger::StatePaths const& paths, Result<DeploymentFile> const& deployment) {
    if (deployment && !deployment->id.empty()) return {deployment->id};
    std::vector<std::string> ids;
    auto add = [&](std::string const& id) {
        if (!id.empty() && std::ranges::find(ids, id) == ids.end()) ids.push_back(id);
    };
    for (auto const& folder : host_folders(paths)) {
        ledger::HostPaths host{paths.host(folder.name)};
        if (auto text = read_file(host.desired()))
            if (auto desired = json_to<DesiredState>(std::string_view(*text))) add(desired->deployment);
        if (auto state = ledger::replay(host.ledger()))
            for (auto const& [name, entry] : state->entries)
                if (entry.spec.is_object() && entry.spec.contains("deployment") && entry.spec["deployment"].is_string()) add(entry.spec["deployment"]);
    }
    if (ids.empty()) ids = process::deployments_below(paths.root);
    return ids;
}

/// Processes of this machine that carry the mark, but for those of `others`: Hosts that are asked by themselves.
std::vector<process::Found> marked_here(std::vector<std::string> const& ids, std::set<std::string> const& others) {
    std::vector<process::Found> marked;
    for (auto const& id : ids)
        for (auto& found : process::scan(id))
            if (!others.contains(found.host)) marked.push_back(std::move(found));
    return marked;
}

} // namespace

bool still_runs(fs::path const& state) {
    ledger::StatePaths paths{fs::absolute(state).lexically_normal()};
    return !marked_here(ids_of(paths, load_deployment(paths)), {}).empty();
}

Result<KillAllReport> kill_all(KillAllOptions const& options) {
    auto start = Clock::now();
    auto say = [&](std::string const& line) {
        if (options.say) options.say(line);
    };
    ledger::StatePaths paths{fs::absolute(options.state).lexically_normal()};
    if (!paths.root.has_filename()) paths.root = paths.root.parent_path(); // "dir/" and "dir" are the same
    KillAllReport report;
    report.name = paths.root.filename().string();
    std::error_code error;
    if (!fs::is_directory(paths.root, error)) return fail(ErrorKind::NotFound, "no deployment is kept in {}", paths.root.string());
    auto deployment = load_deployment(paths);
    if (!deployment && deployment.error().kind() != ErrorKind::NotFound) return std::unexpected(deployment.error());
    auto folders = host_folders(paths);
    auto ids = ids_of(paths, deployment);
    if (!deployment && !fs::exists(paths.ledger()) && !fs::exists(paths.lock()) && folders.empty() && ids.empty()) return fail(ErrorKind::NotFound, "no deployment is kept in {}", paths.root.string());
    if (deployment) report.name = deployment->name;

    auto before = ledger::replay(paths.ledger());
    if (!before) return std::unexpected(before.error());
    auto open = std::ranges::any_of(before->entries, [](auto const& entry) { return entry.second.open(); });
    if (before->closing && !open && !fs::exists(paths.closing()) && folders.empty() && marked_here(ids, {}).empty()) {
        report.nothing_to_do = true;
        if (options.purge) {
            remove_tree(paths.root);
            report.removed = paths.root;
        }
        return report;
    }

    // Closing: on disk before anything else, so that whoever is starting things stops doing so.
    auto marked = write_file_atomically(paths.closing(), "closing\n", 0600);
    if (!marked) return std::unexpected(marked.error());
    auto ledger = ledger::Ledger::open(paths.ledger());
    if (!ledger) return std::unexpected(ledger.error());
    if (!before->closing) {
        auto written = ledger->append(ledger::closing());
        if (!written) return std::unexpected(written.error());
    }
    auto lock = ledger::LockFile::take_over(paths.lock(), "kill-all");
    if (!lock) return std::unexpected(lock.error());

    // What the one who held the lock still wrote counts, too.
    auto state = ledger->replay();
    if (!state) return std::unexpected(state.error());
    deployment = load_deployment(paths);
    ids = ids_of(paths, deployment);
    auto id = ids.empty() ? std::string() : ids.front();
    std::vector<Target> targets;
    for (auto const& [name, config] : state->hosts) {
        auto record = json_to<HostRecord>(config);
        if (!record) return fail(record.error().during(paths.ledger().string()));
        Target target;
        target.name = name;
        target.record = *record;
        auto const* agent = state->find(agent_entry(name));
        target.verified = agent && agent->stopped && record->connection != "local";
        targets.push_back(std::move(target));
    }
    // So that a Ledger that was lost takes no Host with it: what lies in the folder is asked, too.
    for (auto const& folder : host_folders(paths)) {
        if (state->hosts.contains(folder.name)) continue;
        if (folder.here) {
            Target target;
            target.name = folder.name;
            target.record.state = paths.host(folder.name).string();
            targets.push_back(std::move(target));
            continue;
        }
        std::string there = "DIR";
        if (deployment && deployment->hosts.contains(folder.name)) there = deployment->hosts.at(folder.name).state;
        report.unreachable.push_back(fmt::format("{}: {} does not say how to reach it: run ocrctl host stop --state {} there, then remove {} here", folder.name, paths.ledger().string(),
                                                 there, paths.host(folder.name).string()));
    }
    say(fmt::format("closing \"{}\" on {}", report.name, counted(targets.size(), "host")));

    std::jthread intake([&] {
        if (deployment && !deployment->server.empty()) (void)net::http_request("POST", deployment->server + "/v1/drain", {}, "{}", std::chrono::seconds(1));
    });
    each(targets, [&](Target& target) {
        auto ops = HostTeardown::open(target.name, target.record, id);
        if (!ops) return give_up(target, ops.error());
        target.ops = std::move(*ops);
        auto closed = target.ops->close();
        if (!closed) give_up(target, closed.error());
    });
    intake.join();

    struct Tier {
        char const* what;
        std::vector<std::string> kinds;
    };
    std::vector<Tier> const tiers{
        {"workers", {"worker", "foreign-worker"}}, {"agents", {"agent"}}, {"server", {"server"}}, {"database", {"database"}}, {"queue", {"queue"}}, {"tunnels", {"tunnel"}},
    };
    std::mutex mutex;
    for (auto const& tier : tiers) {
        auto begin = Clock::now();
        std::size_t stopped = 0;
        each(targets, [&](Target& target) {
            auto result = target.ops->stop(tier.kinds, options.grace);
            if (!result) return give_up(target, result.error());
            std::lock_guard guard(mutex);
            stopped += result->stopped.size();
        });
        if (stopped > 0) say(fmt::format("{}: {} stopped ({:.1f} s)", tier.what, stopped, std::chrono::duration<double>(Clock::now() - begin).count()));
    }

    fs::path local_state;
    for (auto const& target : targets)
        if (target.record.connection == "local") local_state = target.record.state;
    each(targets, [&](Target& target) {
        auto open = target.ops->close_tunnel(tunnel_memory(local_state, target.name));
        if (!open) return give_up(target, open.error());
        target.left = *open;
    });

    // What no ledger names but carries the mark is ended as well; then each Host is asked what is left.
    each(targets, [&](Target& target) {
        auto left = target.ops->sweep(options.grace);
        if (!left) return give_up(target, left.error());
        target.left.insert(target.left.end(), left->begin(), left->end());
        if (!target.left.empty()) return;
        auto cleaned = target.ops->clean(options.purge);
        if (!cleaned) {
            target.left.push_back(fmt::format("{}: {}", target.name, cleaned.error().message()));
            return;
        }
        auto entry = agent_entry(target.name);
        if (state->find(entry)) {
            auto written = ledger->append(ledger::stopped(entry));
            if (!written) target.left.push_back(fmt::format("{}: {}", target.name, written.error().message()));
        }
    });
    // This machine once more, whatever any file says. Hosts over SSH are asked by themselves.
    std::set<std::string> others;
    bool local = false;
    for (auto const& target : targets) {
        local = local || target.record.connection == "local";
        if (target.record.connection != "local" && !target.verified) others.insert(target.name);
    }
    if (auto strays = marked_here(ids, others); !strays.empty()) {
        std::vector<process::Identity> identities;
        for (auto const& found : strays) identities.push_back(found.identity);
        (void)process::stop_processes(identities, std::min<std::chrono::milliseconds>(options.grace, std::chrono::seconds(5)));
        say(fmt::format("found by their mark alone: {} stopped", strays.size()));
        for (auto const& found : marked_here(ids, others))
            report.left.push_back(fmt::format("{}: pid {} ({}{}{})", found.host, found.identity.pid, found.command, found.entry.empty() ? "" : ", ", found.entry));
        if (!local) ++report.hosts;
    }
    for (auto const& target : targets) {
        for (auto const& line : target.left) report.left.push_back(line);
        if (target.unreachable) report.unreachable.push_back(target.unreachable->message());
        else if (target.left.empty()) ++report.hosts;
    }
    if (report.clean()) {
        tidy_central(paths);
        remove_tree(paths.closing());
        remove_tree(paths.lock());
        if (options.purge) {
            remove_tree(paths.root);
            report.removed = paths.root;
        }
    }
    report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return report;
}

} // namespace ocrctl::deployer
