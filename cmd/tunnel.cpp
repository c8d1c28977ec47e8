// ocrctl tunnel: what one Host needs of this machine, carried there through SSH. Started by the agent of the deploying
// machine; a process of its own, so that neither server nor agent cuts Workers off when it is restarted.
#include "cmd/commands.hpp"

#include "deployer/tunnel.hpp"
#include "lib/base/files.hpp"
#include "lib/hostops/control_client.hpp"
#include "lib/log/fields.hpp"
#include "lib/log/log.hpp"

#include <CLI/CLI.hpp>
#include <array>
#include <csignal>
#include <filesystem>
#include <fmt/format.h>
#include <memory>
#include <mutex>
#include <optional>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <thread>
#include <unistd.h>

namespace ocrctl {
namespace {

namespace fs = std::filesystem;
namespace field = log::field;
using hostops::ControlClient;
using log::kv;

void raise_flag(Fd const& fd) {
    std::uint64_t one = 1;
    (void)!::write(fd.get(), &one, sizeof one);
}

/// Tells the agent how the tunnel is, over every restart of it, until one of them or a signal says that it is to end.
class Reporter {
public:
    Reporter(fs::path host_dir, std::string entry) : host_dir_(std::move(host_dir)), entry_(std::move(entry)) {}

    /// From the tunnel's thread.
    void set(remote::TunnelState const& state) {
        std::lock_guard lock(mutex_);
        state_ = state;
        raise_flag(changed_);
    }

    void run(int signals) {
        std::optional<ControlClient> agent;
        int back_off = 50;
        for (;;) {
            if (!agent && !host_dir_.empty()) {
                if (auto connected = ControlClient::connect(host_dir_)) {
                    agent = std::move(*connected);
                    back_off = 50;
                    if (!agent->send(Json{{"op", "hello"}, {"slot", entry_}, {"pid", ::getpid()}}) ||
                        !agent->send(state()))
                        agent.reset();
                }
            }
            std::array<pollfd, 3> polled{
                {{signals, POLLIN, 0}, {changed_.get(), POLLIN, 0}, {agent ? agent->descriptor() : -1, POLLIN, 0}}};
            int limit = agent || host_dir_.empty() ? -1 : back_off;
            if (!agent) back_off = std::min(back_off * 2, 1000);
            if (::poll(polled.data(), polled.size(), limit) < 0) continue;
            if (polled[0].revents) return;
            if (polled[1].revents) {
                std::uint64_t count = 0;
                (void)!::read(changed_.get(), &count, sizeof count);
                if (agent && !agent->send(state())) agent.reset();
            }
            if (agent && polled[2].revents) {
                auto message = agent->receive(std::chrono::milliseconds(0));
                if (!message && message.error().kind() != ErrorKind::Timeout)
                    agent.reset();
                else if (message && message->is_object() && message->value("op", "") == "drain")
                    return;
            }
        }
    }

private:
    Json state() {
        std::lock_guard lock(mutex_);
        return Json{{"op", "state"}, {"state", state_.listening ? "ready" : "starting"}, {"detail", state_.detail}};
    }

    fs::path host_dir_;
    std::string entry_;
    Fd changed_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    std::mutex mutex_;
    remote::TunnelState state_;
};

int run_tunnel(fs::path const& file) {
    auto settings = deployer::load_tunnel(file);
    if (!settings) {
        fmt::print(stderr, "ocrctl tunnel: {}\n", settings.error().message());
        return settings.error().exit_code();
    }
    // Blocked in all threads, read by the reporter.
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &ending, nullptr);
    Fd signals(::signalfd(-1, &ending, SFD_CLOEXEC));

    auto log = log::Logger("tunnel").with(kv(field::kHost, settings->host));
    auto host_dir = fs::absolute(file).parent_path().parent_path();
    bool supervised = std::getenv("OCRCTL_AGENT_SOCKET") != nullptr;
    Reporter reporter(supervised ? host_dir : fs::path(), deployer::tunnel_entry(settings->host));

    remote::TunnelOptions options;
    options.target = [&file]() -> Result<remote::SshTarget> {
        auto now = deployer::load_tunnel(file);
        if (!now) return std::unexpected(now.error());
        return now->target();
    };
    for (auto const& port : settings->ports)
        options.forwards.push_back({port.name, port.port, port.address, port.target_port});
    options.memory = deployer::tunnel_memory(host_dir, settings->host);
    options.told = [&](remote::TunnelState const& state) {
        if (state.listening)
            log.info("tunnel.listening", kv("detail", state.detail));
        else
            log.warn("tunnel.down", kv(field::kReason, state.detail));
        reporter.set(state);
    };
    remote::Tunnel tunnel(std::move(options));
    Fd ended(::eventfd(0, EFD_CLOEXEC));
    std::thread thread([&] {
        tunnel.run();
        raise_flag(ended);
    });
    reporter.run(signals.get());
    tunnel.stop();
    // A good-bye to the Host if that is quick; an attempt to connect is not waited for.
    pollfd item{ended.get(), POLLIN, 0};
    if (::poll(&item, 1, 500) > 0) {
        thread.join();
        return 0;
    }
    std::fflush(nullptr);
    ::_exit(0);
}

} // namespace

void add_tunnel(CLI::App& app, int& exit_code) {
    auto file = std::make_shared<std::string>();
    auto* command =
        app.add_subcommand("tunnel", "Carry broker and server to one host through SSH (started by the agent)");
    command->add_option("--settings", *file, "What to carry and how to reach the host: HOSTDIR/tunnels/HOST.json")
        ->required();
    command->footer("Example:\n  ocrctl tunnel --settings "
                    "/var/lib/ocrctl/demo/hosts/localhost/tunnels/ocr1.json\nSIGTERM ends it.");
    command->callback([file, &exit_code] { exit_code = run_tunnel(*file); });
}

} // namespace ocrctl
