#include "tests/support/rabbitmq_server.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"

#include <arpa/inet.h>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <netinet/in.h>
#include <string_view>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace ocrctl::test {
namespace {

using Steady = std::chrono::steady_clock;

[[noreturn]] void give_up(std::string const& what) {
    std::fprintf(stderr, "RabbitMqServer: %s\n", what.c_str());
    std::abort();
}

/// True when somebody who speaks AMQP listens: a wrong header is answered by the right one.
bool answers(int port) {
    Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    timeval limit{1, 0};
    ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address)) return false;
    char answer[8];
    return ::send(socket.get(), "AMQP\0\0\0\0", 8, MSG_NOSIGNAL) == 8 && ::recv(socket.get(), answer, 4, 0) == 4 &&
           std::string_view(answer, 4) == "AMQP";
}

std::filesystem::path rabbitmq_bin() { return "/usr/lib/rabbitmq/bin"; }

} // namespace

std::optional<std::string> RabbitMqServer::missing() {
    if (!std::filesystem::exists(rabbitmq_bin() / "rabbitmq-server"))
        return "no RabbitMQ here: apt install rabbitmq-server";
    return std::nullopt;
}

RabbitMqServer::RabbitMqServer() : password_(random_hex(12)) {
    char name[] = "/tmp/ocrctl-rabbitmq-XXXXXX";
    if (!::mkdtemp(name)) give_up("no temporary folder");
    folder_ = name;
    port_ = spare_port();
    dist_port_ = spare_port();
    epmd_port_ = spare_port();
    auto put = [&](char const* file, std::string const& text, int mode) {
        if (auto written = write_file_atomically(folder_ / file, text, mode); !written) give_up(written.error().message());
    };
    for (auto* folder : {"data", "log", "home"}) std::filesystem::create_directory(folder_ / folder);
    put("home/.erlang.cookie", random_hex(16), 0400);
    put("env.conf", "", 0644);
    put("enabled_plugins", "[].\n", 0644);
    // The node's name ends in localhost: found here, also where /etc/hosts lacks it (a bare Debian).
    put("inetrc", "{host, {127,0,0,1}, [\"localhost\"]}.\n{lookup, [file, native]}.\n", 0644);
    put("definitions.json",
        fmt::format(R"({{"users":[{{"name":"ocrctl","password":"{}","tags":["administrator"]}}],"vhosts":[{{"name":"/"}}],)"
                    R"("permissions":[{{"user":"ocrctl","vhost":"/","configure":".*","write":".*","read":".*"}}]}})",
                    password_),
        0600);
    put("rabbitmq.conf",
        fmt::format("listeners.tcp.1 = 127.0.0.1:{}\nload_definitions = {}/definitions.json\nconsumer_timeout = 86400000\n"
                    "raft.wal_max_size_bytes = 16777216\n",
                    port_, folder_.string()),
        0644);
    start();
}

RabbitMqServer::~RabbitMqServer() {
    if (node_ > 0) end(node_, SIGKILL);
    if (epmd_ > 0) end(epmd_, SIGKILL);
    remove_tree(folder_);
}

std::string RabbitMqServer::url() const { return fmt::format("amqp://ocrctl:{}@127.0.0.1:{}/", password_, port_); }

void RabbitMqServer::start() {
    if (node_ > 0) return;
    std::vector<std::string> env{"PATH=/usr/bin:/bin",
                                 "LANG=C.UTF-8",
                                 "HOME=" + (folder_ / "home").string(),
                                 "RABBITMQ_CONF_ENV_FILE=" + (folder_ / "env.conf").string(),
                                 fmt::format("RABBITMQ_NODENAME=ocrctl-{}@localhost", port_),
                                 "RABBITMQ_MNESIA_BASE=" + (folder_ / "data").string(),
                                 "RABBITMQ_LOG_BASE=" + (folder_ / "log").string(),
                                 "RABBITMQ_CONFIG_FILE=" + (folder_ / "rabbitmq").string(),
                                 "RABBITMQ_ENABLED_PLUGINS_FILE=" + (folder_ / "enabled_plugins").string(),
                                 fmt::format("RABBITMQ_DIST_PORT={}", dist_port_),
                                 fmt::format("ERL_EPMD_PORT={}", epmd_port_),
                                 "ERL_INETRC=" + (folder_ / "inetrc").string(),
                                 "ERL_EPMD_ADDRESS=127.0.0.1",
                                 "RUNNING_UNDER_SYSTEMD=true", // the shell replaces itself by the node: one process to signal
                                 "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false"};
    if (epmd_ <= 0) epmd_ = launch({"/usr/bin/epmd", "-port", std::to_string(epmd_port_), "-address", "127.0.0.1"}, env, folder_, "epmd.log");
    node_ = launch({(rabbitmq_bin() / "rabbitmq-server").string()}, env, folder_, "node.log");
    auto limit = Steady::now() + std::chrono::seconds(90);
    while (!answers(port_)) {
        int status = 0;
        bool ended = ::waitpid(node_, &status, WNOHANG) == node_;
        if (ended || Steady::now() > limit) {
            auto log = read_file(folder_ / "node.log");
            give_up((ended ? "the node ended:\n" : "the node does not answer:\n") + log.value_or(""));
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
}

void RabbitMqServer::stop() { if (node_ > 0) end(node_, SIGTERM); }
void RabbitMqServer::kill() { if (node_ > 0) end(node_, SIGKILL); }
void RabbitMqServer::freeze() { if (node_ > 0) ::kill(node_, SIGSTOP); }
void RabbitMqServer::thaw() { if (node_ > 0) ::kill(node_, SIGCONT); }

void RabbitMqServer::wipe() {
    if (node_ > 0) give_up("wipe while it runs");
    remove_tree(folder_ / "data");
    std::filesystem::create_directory(folder_ / "data");
}

std::string RabbitMqServer::ctl(std::string const& arguments) const {
    auto command = fmt::format("env -i PATH=/usr/bin:/bin LANG=C.UTF-8 HOME={0}/home RABBITMQ_CONF_ENV_FILE={0}/env.conf "
                               "RABBITMQ_NODENAME=ocrctl-{1}@localhost RABBITMQ_MNESIA_BASE={0}/data RABBITMQ_LOG_BASE={0}/log "
                               "ERL_EPMD_PORT={2} ERL_INETRC={0}/inetrc {3}/rabbitmqctl {4} 2>&1",
                               folder_.string(), port_, epmd_port_, rabbitmq_bin().string(), arguments);
    std::string output;
    if (auto* pipe = ::popen(command.c_str(), "re")) {
        char buffer[4096];
        while (auto got = ::fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, got);
        ::pclose(pipe);
    }
    return output;
}

std::size_t RabbitMqServer::connections_seen() const {
    std::ifstream log(folder_ / "log" / fmt::format("ocrctl-{}@localhost.log", port_));
    std::size_t seen = 0;
    for (std::string line; std::getline(log, line);) seen += line.find("accepting AMQP connection") != std::string::npos;
    return seen;
}

} // namespace ocrctl::test
