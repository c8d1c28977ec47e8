#include "lib/hostops/host_ops.hpp"

#include "lib/base/text.hpp"
#include "lib/hostops/control_client.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/log/log.hpp"

#include <algorithm>
#include <array>
#include <csignal>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl::hostops {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

log::Logger const& logger() {
    static log::Logger const logger("hostops");
    return logger;
}

constexpr std::array<UnitKind, 7> kAllKinds{UnitKind::Worker, UnitKind::ForeignWorker, UnitKind::Agent, UnitKind::Server,
                                            UnitKind::Database, UnitKind::Queue, UnitKind::Tunnel};

bool socket_at(fs::path const& file) {
    struct stat info {};
    return ::lstat(file.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
}

// The deployment and host that the ledger's entries belong to, for their marks.
process::Marks marks_of(ledger::Entry const& entry) {
    auto deployment = entry.spec.is_object() ? entry.spec.value("deployment", std::string()) : std::string();
    return {deployment, entry.host, entry.entry};
}

std::vector<std::string> texts(Json const& spec, char const* key) {
    if (!spec.is_object() || !spec.contains(key)) return {};
    auto list = json_to<std::vector<std::string>>(spec[key]);
    return list ? *list : std::vector<std::string>{};
}


// Runs the stop commands of those that have one, all at once, until the unit is gone or the time is over.
void ask_politely(std::vector<ledger::Entry> const& entries, milliseconds grace) {
    std::vector<process::Child> commands;
    std::vector<Fd> units;
    for (auto const& entry : entries) {
        auto argv = texts(entry.spec, "stop_argv");
        if (argv.empty() || !entry.identity) continue;
        auto pidfd = process::open_pidfd(*entry.identity);
        if (!pidfd) continue;
        process::SpawnOptions options;
        options.argv = argv;
        if (auto env = json_to<std::map<std::string, std::string>>(entry.spec.value("env", Json::object()))) options.env = *env;
        auto files = json_to<std::map<std::string, std::string>>(entry.spec.value("env_files", Json::object()));
        if (files)
            for (auto const& [variable, file] : *files)
                if (auto content = read_file(file)) options.env[variable] = trim(*content);
        options.env[process::kDeploymentMark] = marks_of(entry).deployment;
        options.env[process::kHostMark] = entry.host;
        options.env[process::kEntryMark] = entry.entry;
        options.cwd = entry.spec.value("cwd", std::string());
        options.log = entry.spec.value("log", std::string());
        auto child = process::spawn(options);
        if (!child) {
            logger().warn("stop.command", log::kv("entry", entry.entry), log::kv("error", child.error().message()));
            continue;
        }
        commands.push_back(std::move(*child));
        units.push_back(std::move(*pidfd));
    }
    auto end = Clock::now() + grace;
    for (auto const& unit : units) (void)process::wait_for(unit.get(), std::max(0ms, std::chrono::ceil<milliseconds>(end - Clock::now())));
    for (auto const& command : commands)
        if (!process::wait_for(command.pidfd.get(), 0ms)) {
            (void)process::signal_group(command.identity, SIGKILL);
            (void)process::wait_for(command.pidfd.get(), 1s);
        }
}

std::vector<ledger::Entry> open_entries(ledger::LedgerState const& state, std::set<std::string> const& kinds) {
    std::vector<ledger::Entry> entries;
    for (auto const& name_ : state.order) {
        auto const& entry = state.entries.at(name_);
        if (entry.open() && kinds.contains(entry.kind)) entries.push_back(entry);
    }
    return entries;
}

// The agent that holds the lock of this folder: told to go, then made to.
void stop_agent(fs::path const& host_dir, milliseconds grace, StopReport& report) {
    ledger::HostPaths paths{host_dir};
    auto holder = ledger::lock_holder(paths.lock());
    if (!holder) {
        ::unlink(paths.socket().c_str());
        return;
    }
    auto pidfd = process::open_pidfd(holder->identity);
    if (pidfd) {
        if (auto client = ControlClient::connect(host_dir)) (void)client->ask(Json{{"op", "exit"}}, 2s);
        auto polite = std::clamp<milliseconds>(grace, 500ms, 5s);
        if (!process::wait_for(pidfd->get(), polite)) {
            (void)process::signal_one(holder->identity, SIGTERM);
            if (!process::wait_for(pidfd->get(), 1s)) {
                (void)process::signal_one(holder->identity, SIGKILL);
                (void)process::wait_for(pidfd->get(), 5s);
            }
        }
    }
    if (process::alive(holder->identity)) {
        report.left.push_back("agent");
        return;
    }
    ::unlink(paths.socket().c_str());
    report.stopped.push_back("agent");
}

} // namespace

void to_json(Json& json, StopReport const& report) { json = Json{{"stopped", report.stopped}, {"left", report.left}}; }
void from_json(Json const& json, StopReport& report) {
    report.stopped = json.value("stopped", std::vector<std::string>());
    report.left = json.value("left", std::vector<std::string>());
}
void to_json(Json& json, ScanReport const& report) { json = Json{{"processes", report.processes}, {"sockets", report.sockets}}; }
void from_json(Json const& json, ScanReport& report) {
    report.processes = json.value("processes", std::vector<process::Found>());
    report.sockets = json.value("sockets", std::vector<std::string>());
}

Result<std::vector<UnitKind>> parse_kinds(std::string_view text) {
    std::vector<UnitKind> kinds;
    for (auto const& word : split(text, ',')) {
        auto name_ = trim(word);
        if (name_ == "all") return std::vector<UnitKind>(kAllKinds.begin(), kAllKinds.end());
        auto known = std::ranges::find_if(kAllKinds, [&](UnitKind kind) { return wire(kind) == name_; });
        if (known == kAllKinds.end())
            return fail(ErrorKind::Usage, "unknown kind \"{}\": expected worker, foreign-worker, agent, server, database, queue, tunnel or all", name_);
        kinds.push_back(*known);
    }
    return kinds;
}

Result<void> close(fs::path const& host_dir) {
    ledger::HostPaths paths{host_dir};
    if (auto made = make_folder(host_dir, 0700); !made) return made;
    if (auto written = write_file_atomically(paths.closing(), "closing\n", 0600); !written) return written;
    auto book = ledger::Ledger::open(paths.ledger());
    if (!book) return std::unexpected(book.error());
    auto state = book->replay();
    if (!state) return std::unexpected(state.error());
    if (!state->closing)
        if (auto written = book->append(ledger::closing()); !written) return written;
    if (auto client = ControlClient::connect(host_dir)) (void)client->ask(Json{{"op", "close"}}, 5s); // it reads the marker else
    return {};
}

void stop_entries(ledger::Ledger& book, std::vector<ledger::Entry> const& entries, milliseconds grace, StopReport& report) {
    if (entries.empty()) return;
    ask_politely(entries, grace);
    std::vector<process::StopTarget> targets;
    for (auto const& entry : entries) targets.push_back({entry.identity, marks_of(entry), true});
    auto outcome = process::stop_processes(targets, grace);
    for (auto const& entry : entries) {
        bool left = entry.identity && process::alive(*entry.identity);
        for (auto const& row : outcome.left) {
            auto marks = process::marks_of(row.identity.pid);
            if (marks.entry == entry.entry || (entry.identity && row.session == entry.identity->pid)) left = true;
        }
        if (left) {
            report.left.push_back(entry.entry);
            continue;
        }
        for (auto const& path : texts(entry.spec, "remove")) remove_tree(path);
        for (auto const& path : entry.paths) remove_tree(path);
        if (auto written = book.append(ledger::stopped(entry.entry)); !written)
            logger().error("ledger.failed", log::kv("error", written.error().message()));
        report.stopped.push_back(entry.entry);
    }
}

Result<StopReport> stop(fs::path const& host_dir, std::vector<UnitKind> const& kinds, milliseconds grace) {
    StopReport report;
    ledger::HostPaths paths{host_dir};
    std::error_code ignored;
    if (!fs::exists(paths.ledger(), ignored) && !fs::exists(paths.lock(), ignored)) return report; // nothing was ever started here
    auto book = ledger::Ledger::open(paths.ledger());
    if (!book) return std::unexpected(book.error());
    static std::vector<std::vector<UnitKind>> const order{{UnitKind::Worker, UnitKind::ForeignWorker},
                                                          {UnitKind::Agent},
                                                          {UnitKind::Server},
                                                          {UnitKind::Database},
                                                          {UnitKind::Queue},
                                                          {UnitKind::Tunnel}};
    for (auto const& tier : order) {
        std::set<std::string> names;
        for (auto kind : tier)
            if (std::ranges::find(kinds, kind) != kinds.end()) names.insert(std::string(wire(kind)));
        if (names.empty()) continue;
        if (tier.front() == UnitKind::Agent) {
            stop_agent(host_dir, grace, report);
            continue;
        }
        auto state = book->replay();
        if (!state) return std::unexpected(state.error());
        auto before = open_entries(*state, names);
        if (before.empty()) continue;
        if (auto client = ControlClient::connect(host_dir)) {
            // The agent drains its Workers; what it does not manage in time is ended below, behind its back.
            auto limit = grace + std::max<milliseconds>(10s, grace);
            auto reply = client->ask(Json{{"op", "stop"}, {"kinds", names}, {"grace_s", static_cast<double>(grace.count()) / 1000.0}}, limit);
            if (!reply) logger().warn("stop.agent", log::kv("error", reply.error().message()));
            state = book->replay();
            if (!state) return std::unexpected(state.error());
            auto rest = open_entries(*state, names);
            for (auto const& entry : before)
                if (std::ranges::find(rest, entry.entry, &ledger::Entry::entry) == rest.end()) report.stopped.push_back(entry.entry);
            before = std::move(rest);
        }
        stop_entries(*book, before, grace, report);
    }
    return report;
}

ScanReport scan(fs::path const& host_dir, std::string_view deployment, std::string_view host) {
    ScanReport report;
    report.processes = process::scan(deployment, host);
    std::set<std::string> sockets;
    ledger::HostPaths paths{host_dir};
    auto look = [&](fs::path const& file) {
        if (socket_at(file)) sockets.insert(file.string());
    };
    look(paths.socket());
    if (auto state = ledger::replay(paths.ledger())) {
        for (auto const& path : state->paths) look(path);
        for (auto const& [name_, entry] : state->entries) {
            for (auto const& path : entry.paths) look(path);
            for (auto const& path : texts(entry.spec, "remove")) {
                look(path);
                std::error_code ignored;
                for (fs::directory_iterator item(path, ignored), end; !ignored && item != end; item.increment(ignored)) look(item->path());
            }
        }
    }
    std::error_code ignored;
    for (fs::recursive_directory_iterator item(host_dir, fs::directory_options::skip_permission_denied, ignored), end; !ignored && item != end;
         item.increment(ignored))
        look(item->path());
    report.sockets.assign(sockets.begin(), sockets.end());
    return report;
}

Result<void> control(fs::path const& host_dir, std::string_view request, std::function<void(std::string_view)> const& reply) {
    auto json = parse_json(request);
    if (!json) return std::unexpected(json.error());
    if (!json->is_object()) return fail(ErrorKind::Invalid, "expected a JSON object");
    auto client = ControlClient::connect(host_dir);
    if (!client) return std::unexpected(client.error());
    if (auto sent = client->send(*json); !sent) return sent;
    bool watch = json->value("op", std::string()) == "watch";
    do {
        auto line = client->receive(std::chrono::hours(24));
        if (!line && watch && line.error().kind() == ErrorKind::Unavailable) return {};
        if (!line) return std::unexpected(line.error());
        reply(dump(*line));
    } while (watch);
    return {};
}

Result<void> clean(fs::path const& host_dir, std::string_view deployment, std::string_view host) {
    std::error_code ignored;
    if (!fs::exists(host_dir, ignored)) return {};
    ledger::HostPaths paths{host_dir};
    auto state = ledger::replay(paths.ledger());
    if (!state) return std::unexpected(state.error());
    for (auto const& [name_, entry] : state->entries)
        if (entry.open()) return fail(ErrorKind::Conflict, "{} is not noted as stopped", name_);
    auto left = process::scan(deployment, host);
    if (!left.empty())
        return fail(ErrorKind::Conflict, "pid {} ({}, {}) still runs", left.front().identity.pid, left.front().command, left.front().entry);
    for (auto const& path : state->paths) remove_tree(path);
    ::unlink(paths.socket().c_str());
    if (fs::exists(paths.ledger(), ignored)) {
        auto archive = host_dir / fmt::format("ledger-{}.jsonl", now_millis());
        if (::rename(paths.ledger().c_str(), archive.c_str()) != 0) return fail(errno_error(errno, fmt::format("archive {}", paths.ledger().string())));
    }
    // Everything but what is to be kept; the marker goes last, so that nothing starts while we are at it.
    std::vector<fs::path> gone;
    for (fs::directory_iterator item(host_dir, ignored), end; !ignored && item != end; item.increment(ignored)) {
        auto name_ = item->path().filename().string();
        bool kept = name_ == "logs" || name_ == "data" || name_ == "store" || name_ == "rabbitmq" || name_ == "closing" ||
                    (name_.starts_with("ledger-") && name_.ends_with(".jsonl"));
        if (!kept) gone.push_back(item->path());
    }
    for (auto const& path : gone) remove_tree(path);
    ::unlink(paths.closing().c_str());
    ::rmdir(paths.logs().c_str()); // only if empty
    ::rmdir(host_dir.c_str());
    return flush_folder(fs::exists(host_dir, ignored) ? host_dir : host_dir.parent_path());
}

} // namespace ocrctl::hostops
