#include "host_agent/agent_unit.hpp"

#include "lib/async/within.hpp"
#include "lib/base/text.hpp"
#include "lib/net/client.hpp"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <csignal>
#include <fcntl.h>
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
