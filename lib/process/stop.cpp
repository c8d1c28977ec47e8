// Ending processes for certain, and finding what is left of a deployment.
#include "lib/process/process.hpp"

#include <algorithm>
#include <csignal>
#include <poll.h>
#include <set>
#include <unistd.h>

namespace ocrctl::process {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

bool gone(Row const& row) { return row.state == 'Z' || row.state == 'X'; }

// This process and those it came from.
std::set<int> own_line(std::vector<Row> const& rows, bool only_ocrctl) {
    std::set<int> line{::getpid()};
    int pid = ::getppid();
    while (pid > 1 && !line.contains(pid)) {
        auto row = std::ranges::find(rows, pid, [](Row const& r) { return r.identity.pid; });
        if (row == rows.end()) break;
        if (!only_ocrctl || row->command == "ocrctl") line.insert(pid);
        pid = row->parent;
    }
    return line;
}

// What of the targets lives now. A session belongs to a target while its leader lives or was seen alive in this call;
// after that (the leader died before us) members must carry the marks, because the leader's number may have been used
// again meanwhile.
std::vector<Row> members(std::vector<StopTarget> const& targets, std::vector<bool> const& seen) {
    auto rows = table();
    auto line = own_line(rows, false);
    bool any_marks = std::ranges::any_of(targets, [](auto const& t) { return !t.marks.deployment.empty() && !t.marks.entry.empty(); });
    std::vector<Row> found;
    for (auto const& row : rows) {
        if (gone(row) || row.identity.pid == ::getpid()) continue;
        bool ancestor = line.contains(row.identity.pid); // ended only if it is named itself
        std::optional<Marks> marks;
        auto carries = [&](Marks const& wanted) {
            if (!marks) marks = marks_of(row.identity.pid);
            return marks->deployment == wanted.deployment && marks->entry == wanted.entry &&
                   (wanted.host.empty() || marks->host == wanted.host);
        };
        for (std::size_t i = 0; i < targets.size(); ++i) {
            auto const& target = targets[i];
            bool marked = !target.marks.deployment.empty() && !target.marks.entry.empty();
            bool belongs = target.identity && (row.identity == *target.identity ||
                                               (!ancestor && seen[i] && row.session == target.identity->pid && row.identity.start >= target.identity->start));
            if (!belongs && !ancestor && any_marks && marked) belongs = carries(target.marks);
            if (belongs) {
                found.push_back(row);
                break;
            }
        }
    }
    return found;
}

// Until all have ended, or the time is over; true if all have.
bool wait_all(std::vector<Fd>& pidfds, Clock::time_point end) {
    while (!pidfds.empty()) {
        std::vector<pollfd> items;
        for (auto const& fd : pidfds) items.push_back({fd.get(), POLLIN, 0});
        auto left = std::chrono::ceil<milliseconds>(end - Clock::now()).count();
        if (left <= 0) left = 0;
        auto ready = ::poll(items.data(), items.size(), static_cast<int>(left));
        if (ready < 0 && errno != EINTR) return false;
        for (std::size_t i = items.size(); ready > 0 && i-- > 0;)
            if (items[i].revents != 0) pidfds.erase(pidfds.begin() + static_cast<std::ptrdiff_t>(i));
        if (left == 0 && ready <= 0) return pidfds.empty();
    }
    return true;
}

} // namespace

StopOutcome stop_processes(std::vector<StopTarget> const& targets, milliseconds grace) {
    std::vector<bool> seen(targets.size());
    std::vector<Fd> leaders;
    auto end = Clock::now() + grace;
    for (std::size_t i = 0; i < targets.size(); ++i) {
        if (!targets[i].identity) continue;
        auto fd = open_pidfd(*targets[i].identity);
        if (!fd) continue;
        auto row = row_of(targets[i].identity->pid);
        seen[i] = row && row->session == targets[i].identity->pid;
        if (targets[i].ask) (void)signal_group(*targets[i].identity, SIGTERM);
        leaders.push_back(std::move(*fd));
    }
    bool polite = wait_all(leaders, end);

    // What outlived its leader is asked too, briefly; then everything is killed, until nothing is found any more.
    auto round = [&](int signal, milliseconds limit) {
        auto rest = members(targets, seen);
        std::vector<Fd> pidfds;
        for (auto const& row : rest) {
            auto fd = open_pidfd(row.identity);
            if (!fd) continue;
            if (signal_one(row.identity, signal)) pidfds.push_back(std::move(*fd));
        }
        wait_all(pidfds, Clock::now() + limit);
        return rest.empty();
    };
    if (polite && round(SIGTERM, std::min(milliseconds(1000), grace))) return {};
    auto last = Clock::now() + std::chrono::seconds(4);
    while (Clock::now() < last) {
        if (round(SIGKILL, milliseconds(1000))) return {};
        if (Clock::now() < last) {
            auto rest = members(targets, seen);
            if (rest.empty()) return {};
            ::poll(nullptr, 0, 5); // only what cannot be signalled, or has just been born, is here
        }
    }
    return {members(targets, seen)};
}

StopOutcome stop_processes(std::vector<Identity> const& identities, milliseconds grace) {
    std::vector<StopTarget> targets;
    for (auto const& identity : identities) targets.push_back({identity, {}, true});
    return stop_processes(targets, grace);
}

std::vector<Found> scan(std::string_view deployment, std::string_view host, Ancestors ancestors) {
    std::vector<Found> found;
    if (deployment.empty()) return found;
    auto rows = table();
    auto line = ancestors == Ancestors::Included ? std::set<int>{::getpid()} : own_line(rows, true);
    for (auto const& row : rows) {
        if (gone(row) || line.contains(row.identity.pid)) continue;
        auto marks = marks_of(row.identity.pid);
        if (marks.deployment != deployment || (!host.empty() && marks.host != host)) continue;
        found.push_back({row.identity, marks.host, marks.entry, row.command});
    }
    return found;
}

} // namespace ocrctl::process
