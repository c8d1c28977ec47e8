#include "tests/support/processes.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <arpa/inet.h>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace ocrctl::test {
namespace {

using Steady = std::chrono::steady_clock;

[[noreturn]] void give_up(std::string const& what) {
    std::fprintf(stderr, "test fixture: %s\n", what.c_str());
    std::abort();
}

} // namespace

bool required(std::string const& name) {
    auto* list = std::getenv("OCRCTL_REQUIRE");
    if (!list) return false;
    auto names = split(list, ',');
    return std::ranges::find(names, name) != names.end();
}

int spare_port() {
    Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size) ||
        ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size))
        give_up("no free port");
    return ntohs(address.sin_port);
}

pid_t launch(std::vector<std::string> const& argv, std::vector<std::string> const& env, std::filesystem::path const& folder, std::string const& log) {
    std::vector<char*> args, vars;
    for (auto const& a : argv) args.push_back(const_cast<char*>(a.c_str()));
    for (auto const& e : env) vars.push_back(const_cast<char*>(e.c_str()));
    args.push_back(nullptr);
    vars.push_back(nullptr);
    auto out = (folder / log).string();
    pid_t pid = ::fork();
    if (pid < 0) give_up("fork");
    if (pid) return pid;
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    int fd = ::open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, 0);
    ::dup2(fd, 1);
    ::dup2(fd, 2);
    ::close_range(3, ~0U, 0);
    if (::chdir(folder.c_str()) == 0) ::execve(args[0], args.data(), vars.data());
    ::_exit(127);
}

void end(pid_t& pid, int signal) {
    ::kill(signal == SIGKILL ? -pid : pid, signal);
    ::kill(pid, SIGCONT);
    auto limit = Steady::now() + std::chrono::seconds(60);
    while (::waitpid(pid, nullptr, WNOHANG) == 0) {
        if (Steady::now() > limit) ::kill(-pid, SIGKILL);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    pid = 0;
}

} // namespace ocrctl::test
