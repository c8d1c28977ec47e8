#include "lib/hostops/unit_process.hpp"

#include "lib/async/within.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/text.hpp"
#include "lib/net/client.hpp"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <fstream>
#include <set>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl::hostops {

using namespace std::chrono_literals;

namespace {

/// The argv to start, with the content of files in the place of their words.
Result<std::vector<std::string>> resolved_argv(std::vector<std::string> argv) {
    for (auto& word : argv) {
        auto file = file_of_word(word);
        if (!file) continue;
        auto content = read_file(*file);
        if (!content) return std::unexpected(content.error());
        word = trim(*content);
    }
    return argv;
}

/// Has a process of this session an established TCP connection to the port of "host:port"?
bool has_connection(int session, std::string_view address) {
    auto port = std::atoi(std::string(address.substr(address.rfind(':') + 1)).c_str());
    std::set<std::string> sockets; // as /proc/PID/fd names them
    for (char const* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
        std::ifstream in(table);
        std::string line;
        std::getline(in, line);
        while (std::getline(in, line)) {
            std::istringstream fields(line);
            std::string slot, local, remote, state, queues, timer, retransmit, uid, timeout, inode;
            fields >> slot >> local >> remote >> state >> queues >> timer >> retransmit >> uid >> timeout >> inode;
            auto colon = remote.rfind(':');
            if (state == "01" && colon != std::string::npos &&
                std::strtol(remote.c_str() + colon + 1, nullptr, 16) == port)
                sockets.insert("socket:[" + inode + "]");
        }
    }
    if (sockets.empty()) return false;
    for (auto const& row : process::table()) {
        if (row.session != session) continue;
        std::error_code error;
        auto folder = std::filesystem::path("/proc") / std::to_string(row.identity.pid) / "fd";
        for (std::filesystem::directory_iterator fd(folder, error), end; !error && fd != end; fd.increment(error)) {
            std::error_code ignored;
            if (sockets.contains(std::filesystem::read_symlink(fd->path(), ignored).string())) return true;
        }
    }
    return false;
}

/// Waits for the other side to say something, or to end.
awaitable<bool> hangs_up(asio::ip::tcp::socket& socket) {
    char first = 0;
    auto peek = asio::ip::tcp::socket::message_peek;
    auto [ended, size] = co_await socket.async_receive(asio::buffer(&first, 1), peek, as_tuple);
    co_return bool(ended);
}

/// Connects, and stays so for `hold`: what accepts for somebody else (a tunnel, a proxy) hangs up at once if that one
/// is away.
awaitable<bool> connects(std::string address, std::chrono::milliseconds hold = 0ms) {
    using asio::ip::tcp;
    auto executor = co_await asio::this_coro::executor;
    auto colon = address.rfind(':');
    if (colon == std::string::npos) co_return false;
    auto host = address.substr(0, colon);
    if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
    tcp::resolver resolver(executor);
    auto [problem, endpoints] = co_await resolver.async_resolve(host, address.substr(colon + 1), as_tuple);
    if (problem) co_return false;
    tcp::socket socket(executor);
    auto [refused, endpoint] = co_await asio::async_connect(socket, endpoints, as_tuple);
    if (refused) co_return false;
    // A port of the range for outgoing connections that nobody listens at may be connected to itself. That connection is
    // reset: its TIME_WAIT would keep the service from the port.
    if (boost::system::error_code error; socket.local_endpoint(error) == endpoint) {
        socket.set_option(asio::socket_base::linger(true, 0), error);
        socket.close(error); // the destructor would take the option back
        co_return false;
    }
    if (hold.count() == 0) co_return true;
    auto ended = co_await within(hold, hangs_up(socket));
    co_return !ended.value_or(false);
}

awaitable<bool> exits_well(std::vector<std::string> argv, std::map<std::string, std::string> env, std::string cwd) {
    process::SpawnOptions options;
    options.argv = std::move(argv);
    options.env = std::move(env);
    options.cwd = std::move(cwd);
    auto child = process::spawn(options);
    if (!child) co_return false;
    std::exception_ptr cut;
    try {
        auto status = co_await process::wait(child->pidfd.get());
        co_return status.success();
    } catch (...) {
        cut = std::current_exception();
    }
    // Cancelled: its time is over. KILL cannot be refused, so this wait is short.
    (void)process::signal_group(child->identity, SIGKILL);
    (void)process::wait_for(child->pidfd.get(), 1s);
    std::rethrow_exception(cut);
}

} // namespace

process::Marks unit_marks(UnitHome const& home, UnitSpec const& spec) {
    return {home.deployment, home.host, spec.entry};
}

Result<std::map<std::string, std::string>> unit_environment(UnitHome const& home, UnitSpec const& spec) {
    auto env = spec.env;
    for (auto const& [variable, file] : spec.env_files) {
        auto content = read_file(file);
        if (!content) return fail(content.error().during(variable));
        env[variable] = trim(*content);
    }
    env[process::kDeploymentMark] = home.deployment;
    env[process::kHostMark] = home.host;
    env[process::kEntryMark] = spec.entry;
    if (home.agent) env["OCRCTL_AGENT_SOCKET"] = home.paths.socket().string();
    return env;
}

std::filesystem::path unit_log(UnitHome const& home, UnitSpec const& spec) {
    if (!spec.log.empty()) return spec.log;
    return home.paths.logs() / (ledger::entry_file_name(spec.entry) + ".log");
}

UnitStart start_unit(ledger::Ledger& book, UnitHome const& home, UnitSpec const& spec, std::string_view crash_points) {
    UnitStart start;
    auto failed = [&](Error error) {
        start.error = std::move(error);
        return std::move(start);
    };
    auto env = unit_environment(home, spec);
    if (!env) return failed(env.error());
    auto argv = resolved_argv(spec.argv);
    if (!argv) return failed(argv.error());
    auto log = unit_log(home, spec);
    if (auto made = make_folder(log.parent_path()); !made) return failed(made.error());
    Json noted = spec;
    noted["deployment"] = home.deployment;
    auto written = book.append(ledger::intent(spec.entry, std::string(wire(spec.kind)), home.host, std::move(noted)));
    if (!written) return failed(written.error());
    start.recorded = true;
    crash_point(fmt::format("{}.after-intent", crash_points));

    process::SpawnOptions options;
    options.argv = std::move(*argv);
    options.env = std::move(*env);
    options.cwd = spec.cwd;
    options.log = log;
    std::error_code no_log;
    auto size = std::filesystem::file_size(log, no_log);
    start.log_start = no_log ? 0 : size;
    auto child = process::spawn(options);
    if (!child) {
        (void)book.append(ledger::exited(spec.entry, child.error().message()));
        return failed(child.error());
    }
    crash_point(fmt::format("{}.after-spawn", crash_points));
    start.child = std::move(*child);
    written = book.append(ledger::identity(spec.entry, start.child->identity));
    if (!written) {
        // The search by marks would find it; but what cannot be recorded is better not run.
        (void)process::signal_group(start.child->identity, SIGKILL);
        return failed(written.error());
    }
    crash_point(fmt::format("{}.after-identity", crash_points));
    return start;
}

std::optional<process::Identity> find_unit(std::vector<process::Found> const& found, std::string_view entry) {
    for (auto const& one : found) {
        auto row = one.entry == entry ? process::row_of(one.identity.pid) : std::nullopt;
        if (row && row->session == one.identity.pid) return one.identity;
    }
    return std::nullopt;
}

LogEnd log_end(std::filesystem::path const& log, std::uintmax_t from) {
    LogEnd end;
    Fd fd(::open(log.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info{};
    if (!fd || ::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return end;
    auto size = static_cast<std::uintmax_t>(info.st_size);
    if (from > size) from = 0; // rotated meanwhile
    constexpr std::uintmax_t kMost = 8192;
    auto begin = std::max(from, size > kMost ? size - kMost : 0);
    end.text.resize(size - begin);
    auto got = ::pread(fd.get(), end.text.data(), end.text.size(), static_cast<off_t>(begin));
    end.text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    for (auto const& line : split(end.text, '\n')) {
        auto trimmed = trim(line);
        // What one of our own programs said in passing is no reason.
        if (trimmed.starts_with("ts=") && (trimmed.contains(" level=info ") || trimmed.contains(" level=debug "))) continue;
        if (!trimmed.empty()) end.last_line = trimmed.substr(0, 500);
    }
    return end;
}

std::string exit_detail(process::ExitStatus const& status, LogEnd const& log) {
    if (status.known && status.code == 127)
        if (auto missing = process::missing_library(log.text)) return *missing;
    auto detail = status.text();
    if (status.known && status.success()) return detail;
    if (!log.last_line.empty()) detail += ": " + log.last_line;
    return detail;
}

awaitable<std::string> first_silent(std::vector<std::string> addresses) {
    for (auto const& address : addresses) {
        auto done = co_await within(2s, connects(address, 300ms));
        if (!done.value_or(false)) co_return address;
    }
    co_return std::string();
}

awaitable<bool> unit_answers(UnitHome home, UnitSpec spec, process::Identity identity) {
    auto const& ready = spec.ready;
    if (ready.kind == "connected") co_return has_connection(identity.pid, ready.address);
    if (ready.kind == "tcp") {
        auto done = co_await within(2s, connects(ready.address));
        co_return done.value_or(false);
    }
    if (ready.kind == "http") {
        net::HttpClient client(co_await asio::this_coro::executor);
        auto response = co_await client.request("GET", ready.address, {}, {}, 2s);
        co_return response.has_value() && response->status == 200;
    }
    if (ready.kind == "exec") {
        auto env = unit_environment(home, spec);
        if (!env) co_return false;
        auto done = co_await within(20s, exits_well(ready.argv, std::move(*env), spec.cwd));
        co_return done.value_or(false);
    }
    co_return true;
}

} // namespace ocrctl::hostops
