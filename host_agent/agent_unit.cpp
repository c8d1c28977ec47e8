#include "host_agent/agent_unit.hpp"

#include "lib/async/within.hpp"
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

namespace ocrctl::host_agent {

using namespace std::chrono_literals;

std::chrono::seconds restart_delay(int failures) {
    if (failures <= 1) return 0s;
    return std::chrono::seconds(std::min(30, 1 << std::min(failures - 2, 5)));
}

LogEnd log_end(std::filesystem::path const& log, std::uintmax_t from) {
    LogEnd end;
    Fd fd(::open(log.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
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
            if (state == "01" && colon != std::string::npos && std::strtol(remote.c_str() + colon + 1, nullptr, 16) == port) sockets.insert("socket:[" + inode + "]");
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

namespace {

awaitable<bool> connects(std::string address) {
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
    co_return !refused;
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

awaitable<std::string> first_silent(std::vector<std::string> addresses) {
    for (auto const& address : addresses) {
        auto done = co_await within(2s, connects(address));
        if (!done.value_or(false)) co_return address;
    }
    co_return std::string();
}

awaitable<bool> answers(Readiness readiness, std::map<std::string, std::string> env, std::string cwd) {
    if (readiness.kind == "tcp") {
        auto done = co_await within(2s, connects(readiness.address));
        co_return done.value_or(false);
    }
    if (readiness.kind == "http") {
        net::HttpClient client(co_await asio::this_coro::executor);
        auto response = co_await client.request("GET", readiness.address, {}, {}, 2s);
        co_return response.has_value() && response->status == 200;
    }
    if (readiness.kind == "exec") {
        auto done = co_await within(20s, exits_well(readiness.argv, std::move(env), std::move(cwd)));
        co_return done.value_or(false);
    }
    co_return true;
}

} // namespace ocrctl::host_agent
