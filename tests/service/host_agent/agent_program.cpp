// agent_program HOSTDIR [SILENCE_MS]: the agent.   agent_program worker SLOT [MODE]: a stand-in for a managed Worker's shell.
#include "host_agent/agent.hpp"
#include "lib/hostops/control_client.hpp"
#include "lib/ledger/paths.hpp"

#include <cstdlib>
#include <fmt/format.h>
#include <poll.h>
#include <string>
#include <unistd.h>

namespace {

using namespace ocrctl;

// Says hello, is busy when told by the file "busy" in its folder, ends on drain. Mode "mute" never says hello,
// "beats" promises signs of life and gives them.
int worker(std::string const& slot, std::string const& mode) {
    if (mode == "mute")
        for (;;) ::pause();
    std::filesystem::path socket = std::getenv("OCRCTL_AGENT_SOCKET");
    for (;;) {
        auto client = hostops::ControlClient::connect(socket.parent_path());
        if (!client) {
            ::poll(nullptr, 0, 20);
            continue;
        }
        (void)client->send(Json{{"op", "hello"}, {"slot", slot}, {"pid", ::getpid()}, {"beats", mode == "beats"}});
        for (;;) {
            auto message = client->receive(mode == "beats" ? std::chrono::milliseconds(100) : std::chrono::hours(1));
            if (!message && message.error().kind() == ErrorKind::Timeout) {
                (void)client->send(Json{{"op", "beat"}});
                continue;
            }
            if (!message) break;
            auto op = message->value("op", std::string());
            if (op == "assign") {
                auto job = message->at("assignment").value("busy_with", std::string());
                (void)client->send(Json{{"op", "state"}, {"state", job.empty() ? "ready" : "busy"}, {"job", job}, {"pages_done", 1}, {"pages", 3}});
                if (mode == "broken") (void)client->send(Json{{"op", "state"}, {"state", "broken"}, {"detail", "no language model frk"}});
            }
            if (op == "cancel") (void)client->send(Json{{"op", "state"}, {"state", "ready"}, {"job", ""}});
            if (op == "drain" && mode != "stubborn") {
                fmt::print("drained\n");
                return 0;
            }
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    if (argc > 2 && std::string(argv[1]) == "worker") return worker(argv[2], argc > 3 ? argv[3] : "");
    if (argc < 2) return 2;
    host_agent::AgentOptions options{argv[1], "test-build"};
    if (argc > 2) options.silence = std::chrono::milliseconds(std::atoi(argv[2]));
    host_agent::Agent agent(options);
    auto ended = agent.run();
    if (!ended) fmt::print(stderr, "{}\n", ended.error().message());
    return ended ? 0 : ended.error().exit_code();
}
