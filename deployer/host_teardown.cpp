#include "deployer/host_teardown.hpp"

#include "deployer/deployment_file.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/remote/tunnel.hpp"

#include <algorithm>
#include <poll.h>

namespace ocrctl::deployer {

using std::chrono::milliseconds;
using std::chrono::seconds;

HostTeardown::HostTeardown(std::string host, HostRecord record, std::string deployment, std::unique_ptr<HostDriver> driver)
    : host_(std::move(host)), record_(std::move(record)), deployment_(std::move(deployment)), driver_(std::move(driver)) {}

Result<std::unique_ptr<HostTeardown>> HostTeardown::open(std::string const& host, HostRecord const& record, std::string deployment) {
    auto driver = driver_for(host, record);
    if (!driver) return std::unexpected(driver.error());
    auto known = record;
    if (!(*driver)->local()) {
        // A deploy that was killed may not have brought it yet; with what was brought last, nothing is copied.
        auto there = (*driver)->exists(known.binary);
        if (!there) return std::unexpected(there.error());
        if (!*there) {
            auto build = own_build();
            if (!build) return std::unexpected(build.error());
            known.binary = ledger::HostPaths{record.state}.bin(*build).string();
            auto brought = (*driver)->bring("/proc/self/exe", known.binary);
            if (!brought) return std::unexpected(brought.error());
        }
    }
    return std::unique_ptr<HostTeardown>(new HostTeardown(host, std::move(known), std::move(deployment), std::move(*driver)));
}

Result<Output> HostTeardown::host_command(std::vector<std::string> arguments, milliseconds limit) {
    std::vector<std::string> argv{record_.binary, "host"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    auto output = driver_->run(argv, {}, limit);
    if (!output) return output;
    constexpr int kSomeLeft = 3; // of `host stop`: its report says which
    if (output->exit_code != 0 && output->exit_code != kSomeLeft) {
        auto library = process::missing_library(output->err);
        return fail(ErrorKind::Unavailable, "{}: {}", host_, library ? *library : fmt::format("host {}: {} (exit code {})", arguments[0], trim(output->err), output->exit_code));
    }
    return output;
}

Result<void> HostTeardown::close() {
    if (driver_->local()) return hostops::close(record_.state);
    auto output = host_command({"close", "--state", record_.state}, seconds(30));
    if (!output) return std::unexpected(output.error());
    return {};
}

Result<hostops::StopReport> HostTeardown::stop(std::vector<std::string> const& kinds, seconds grace) {
    if (driver_->local()) {
        auto parsed = hostops::parse_kinds(join(kinds, ","));
        if (!parsed) return std::unexpected(parsed.error());
        return hostops::stop(record_.state, *parsed, grace);
    }
    auto output = host_command({"stop", "--state", record_.state, "--kinds", join(kinds, ","), "--grace", std::to_string(grace.count()), "--json"}, 3 * grace + seconds(40));
    if (!output) return std::unexpected(output.error());
    return json_to<hostops::StopReport>(std::string_view(output->out));
}

Result<hostops::ScanReport> HostTeardown::scan() {
    if (driver_->local()) return hostops::scan(record_.state, deployment_, host_);
    auto output = host_command({"scan", "--state", record_.state, "--deployment", deployment_, "--host", host_, "--json"}, seconds(30));
    if (!output) return std::unexpected(output.error());
    return json_to<hostops::ScanReport>(std::string_view(output->out));
}

Result<std::vector<std::string>> HostTeardown::close_tunnel(std::filesystem::path const& memory) {
    std::vector<std::string> left;
    if (driver_->local() || record_.tunnel.empty()) return left;
    auto target = target_of(host_, record_);
    if (!target) return std::unexpected(target.error());
    auto session = remote::SshSession::connect(std::move(*target));
    if (!session) return std::unexpected(session.error());
    if (auto earlier = remote::remembered_server(memory))
        if (auto ended = remote::end_server(*session, *earlier); !ended) return std::unexpected(ended.error());
    auto deadline = std::chrono::steady_clock::now() + seconds(5);
    for (;;) {
        auto there = remote::listeners_on(*session);
        if (!there) return std::unexpected(there.error());
        left.clear();
        for (auto const& [name, port] : record_.tunnel)
            if (std::ranges::any_of(*there, [port](auto const& listener) { return listener.port == port; }))
                left.push_back(fmt::format("{}: port {} of its tunnel ({}) is still open there", host_, port, name));
        if (left.empty() || std::chrono::steady_clock::now() > deadline) return left;
        ::poll(nullptr, 0, 20);
    }
}

Result<std::vector<std::string>> HostTeardown::sweep(seconds grace) {
    auto found = scan();
    if (!found) return std::unexpected(found.error());
    if (!found->processes.empty()) {
        if (driver_->local()) {
            std::vector<process::Identity> identities;
            for (auto const& process : found->processes) identities.push_back(process.identity);
            (void)process::stop_processes(identities, std::min<milliseconds>(grace, seconds(5)));
        } else {
            // The start time is compared right before each signal: a bare pid may be a stranger's by now.
            std::string list;
            for (auto const& process : found->processes) list += fmt::format(" {}:{}", process.identity.pid, process.identity.start);
            auto script = fmt::format("same() {{ s=$(cat /proc/$1/stat 2>/dev/null) || return 1; s=${{s##*) }}; set -- $2 $s; t=$1; shift; [ \"$1\" != Z ] && [ \"${{20}}\" = \"$t\" ]; }}\n"
                                      "each() {{ for e in{}; do p=${{e%:*}}; same $p ${{e#*:}} && {{ left=1; kill -$1 $p 2>/dev/null; }}; done; }}\n"
                                      "each TERM; n=0; while [ $n -lt {} ]; do left=; each 0; [ -z \"$left\" ] && exit 0; sleep 0.1; n=$((n+1)); done; each KILL; sleep 0.1; true",
                                      list, std::clamp<long long>(grace.count() * 10, 1, 50));
            auto output = driver_->run({"/bin/sh", "-c", script}, {}, seconds(30));
            if (!output) return std::unexpected(output.error());
        }
        found = scan();
        if (!found) return std::unexpected(found.error());
    }
    std::vector<std::string> left;
    for (auto const& process : found->processes)
        left.push_back(fmt::format("{}: pid {} ({}{}{})", host_, process.identity.pid, process.command, process.entry.empty() ? "" : ", ", process.entry));
    // Sockets are no matter here: nobody listens on them any more, and clean() removes the files.
    return left;
}

Result<void> HostTeardown::clean(bool purge) {
    if (driver_->local()) {
        auto cleaned = hostops::clean(record_.state, deployment_, host_);
        if (cleaned && purge) remove_tree(record_.state);
        return cleaned;
    }
    auto output = host_command({"clean", "--state", record_.state, "--deployment", deployment_, "--host", host_}, seconds(60));
    if (!output) return std::unexpected(output.error());
    if (purge) {
        // With the folders made around it (NAME/hosts), unless another Host has its state there.
        constexpr char kScript[] = "rm -rf -- \"$1\"; h=${1%/*}; [ \"${h##*/}\" = hosts ] || exit 0; rmdir -- \"$h\" 2>/dev/null && rmdir -- \"${h%/*}\" 2>/dev/null; true";
        auto removed = driver_->run({"/bin/sh", "-c", kScript, "sh", record_.state});
        if (!removed) return std::unexpected(removed.error());
    }
    return {};
}

} // namespace ocrctl::deployer
