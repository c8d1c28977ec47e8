#include "lib/remote/tunnel.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <atomic>
#include <optional>
#include <poll.h>
#include <sstream>
#include <sys/eventfd.h>
#include <unistd.h>

namespace ocrctl::remote {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::seconds;

constexpr seconds kHealthy{60};

std::string in_shell(std::string const& script) {
    return fmt::format("exec /bin/sh -c {}", shell_quote(script));
}

/// The start time out of /proc/PID/stat; 0 if it cannot be read or is a zombie's.
std::uint64_t start_in(std::string_view stat) {
    auto after = stat.rfind(") ");
    if (after == std::string_view::npos) return 0;
    std::istringstream fields{std::string(stat.substr(after + 2))};
    std::string field, state;
    std::uint64_t start = 0;
    fields >> state;
    for (int i = 4; i < 22; ++i) fields >> field;
    fields >> start;
    return state == "Z" ? 0 : start;
}

} // namespace

std::optional<SshServer> remembered_server(std::filesystem::path const& memory) {
    if (memory.empty()) return std::nullopt;
    auto text = read_file(memory);
    if (!text) return std::nullopt;
    std::istringstream words(*text);
    SshServer server;
    if (words >> server.boot >> server.pid >> server.start && server.pid > 1 && server.start > 0) return server;
    return std::nullopt;
}

Result<std::optional<SshServer>> server_of(SshSession& session) {
    auto output = session.exec(
        in_shell("cat /proc/sys/kernel/random/boot_id; echo $PPID; cat /proc/$PPID/stat 2>/dev/null; true"));
    if (!output) return std::unexpected(output.error());
    std::istringstream lines(output->out);
    SshServer server;
    std::string pid, stat;
    std::getline(lines, server.boot);
    std::getline(lines, pid);
    std::getline(lines, stat);
    server.pid = std::atoi(pid.c_str());
    server.start = start_in(stat);
    if (server.pid <= 1 || server.start == 0) return std::optional<SshServer>();
    return std::optional(server);
}

Result<void> end_server(SshSession& session, SshServer const& server) {
    auto look =
        in_shell(fmt::format("cat /proc/sys/kernel/random/boot_id; cat /proc/{}/stat 2>/dev/null; true", server.pid));
    auto deadline = Clock::now() + seconds(5);
    for (bool told = false;;) {
        auto output = session.exec(look);
        if (!output) return std::unexpected(output.error());
        std::istringstream lines(output->out);
        std::string boot, stat;
        std::getline(lines, boot);
        std::getline(lines, stat);
        if (boot != server.boot || start_in(stat) != server.start) return {};
        if (!told) {
            auto ended = session.exec(in_shell(fmt::format("kill {}", server.pid)));
            if (!ended) return std::unexpected(ended.error());
            if (ended->exit_code != 0)
                return fail(ErrorKind::Denied, "{}: pid {} there cannot be ended: {}", describe(session.target()),
                            server.pid, trim(ended->err));
            told = true;
        }
        if (Clock::now() > deadline)
            return fail(ErrorKind::Timeout, "{}: pid {} there does not end", describe(session.target()), server.pid);
        ::poll(nullptr, 0, 20);
    }
}

struct Tunnel::Impl {
    TunnelOptions options;
    Fd wake{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    std::atomic<bool> stopping = false;
    std::optional<TunnelState> last;

    void tell(bool listening, std::string detail) {
        if (last && last->listening == listening && last->detail == detail) return;
        last = TunnelState{listening, std::move(detail)};
        if (options.told) options.told(*last);
    }

    /// True if it is to end.
    bool wait(std::chrono::milliseconds limit) {
        pollfd item{wake.get(), POLLIN, 0};
        auto end = Clock::now() + limit;
        while (!stopping) {
            auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
            if (left <= 0) return false;
            if (::poll(&item, 1, static_cast<int>(left)) == 0) return false;
        }
        return true;
    }

    /// Makes room where an sshd of our own, of a connection that was cut, still holds a port.
    Result<void> free_ports(SshSession& session) {
        auto there = listeners_on(session);
        if (!there) return std::unexpected(there.error());
        bool taken = std::ranges::any_of(options.forwards, [&](auto const& forward) {
            return std::ranges::any_of(*there, [&](auto const& listener) { return listener.port == forward.port; });
        });
        if (!taken) return {};
        auto earlier = remembered_server(options.memory);
        return earlier ? end_server(session, *earlier) : Result<void>();
    }

    Result<Forwards> open() {
        auto target = options.target();
        if (!target) return std::unexpected(target.error());
        auto session = SshSession::connect(std::move(*target));
        if (!session) return std::unexpected(session.error());
        if (auto freed = free_ports(*session); !freed) return std::unexpected(freed.error());
        auto server = server_of(*session);
        if (!server) return std::unexpected(server.error());
        if (*server && !options.memory.empty()) {
            auto written = write_file_atomically(
                options.memory, fmt::format("{} {} {}\n", (*server)->boot, (*server)->pid, (*server)->start), 0600);
            if (!written) return std::unexpected(written.error());
        }
        return Forwards::listen(std::move(*session), options.forwards);
    }

    std::string ports() const {
        std::vector<std::string> words;
        for (auto const& forward : options.forwards) words.push_back(fmt::format("{} {}", forward.name, forward.port));
        return fmt::format("ports on its loopback: {}", join(words, ", "));
    }

    void run() {
        int failures = 0;
        std::string reason;
        while (!stopping) {
            tell(false, reason.empty() ? "connects" : reason);
            auto forwards = open();
            if (stopping) return;
            if (forwards) {
                tell(true, ports());
                auto since = Clock::now();
                auto ended = forwards->pump(wake.get(), options.patience);
                if (ended) return;
                reason = ended.error().message();
                if (Clock::now() - since >= kHealthy) failures = 0;
            } else {
                reason = forwards.error().message();
            }
            ++failures;
            auto delay = failures <= 1 ? seconds(0) : seconds(std::min(8, 1 << std::min(failures - 2, 3)));
            tell(false, reason);
            if (wait(delay)) return;
        }
    }
};

Tunnel::Tunnel(TunnelOptions options) : impl_(std::make_unique<Impl>()) {
    impl_->options = std::move(options);
}
Tunnel::~Tunnel() = default;
void Tunnel::run() {
    impl_->run();
}
void Tunnel::stop() {
    impl_->stopping = true;
    std::uint64_t one = 1;
    (void)!::write(impl_->wake.get(), &one, sizeof one);
}

} // namespace ocrctl::remote
