#include "deployer/ports.hpp"

#include "lib/base/files.hpp"

#include <arpa/inet.h>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <netdb.h>
#include <netinet/in.h>
#include <random>
#include <sstream>
#include <sys/socket.h>
#include <unistd.h>

namespace ocrctl::deployer {

namespace fs = std::filesystem;

bool port_free(std::string const& address, int port) {
    addrinfo hints{};
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    auto node = address.empty() || address == "*" ? "0.0.0.0" : address == "localhost" ? "127.0.0.1" : address;
    if (::getaddrinfo(node.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return true; // said elsewhere
    Fd fd(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    int on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    bool free = ::bind(fd.get(), found->ai_addr, found->ai_addrlen) == 0 && ::listen(fd.get(), 1) == 0;
    // An address that is not of this machine is another problem than a port in use.
    if (!free && errno != EADDRINUSE) free = true;
    ::freeaddrinfo(found);
    return free;
}

int choose_port(std::set<int> const& taken, std::string const& address) {
    constexpr int first = 20000, last = 32000;
    static thread_local std::mt19937 random{std::random_device{}()};
    int outgoing_low = 0, outgoing_high = -1;
    std::ifstream("/proc/sys/net/ipv4/ip_local_port_range") >> outgoing_low >> outgoing_high;
    int start = std::uniform_int_distribution<int>(first, last)(random);
    for (bool shared : {false, true}) // a machine may use the whole range for outgoing connections
        for (int i = 0; i <= last - first; ++i) {
            int port = first + (start - first + i) % (last - first + 1);
            bool outgoing = port >= outgoing_low && port <= outgoing_high;
            if (outgoing == shared && !taken.contains(port) && port_free(address, port)) return port;
        }
    return 0;
}

std::optional<std::string> port_holder(int port) {
    std::set<std::string> inodes;
    for (char const* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
        std::ifstream in(table);
        std::string line;
        std::getline(in, line);
        while (std::getline(in, line)) {
            std::istringstream fields(line);
            std::string slot, local, remote, state, queues, timer, retransmit, uid, timeout, inode;
            fields >> slot >> local >> remote >> state >> queues >> timer >> retransmit >> uid >> timeout >> inode;
            auto colon = local.rfind(':');
            if (state == "0A" && colon != std::string::npos && std::stoi(local.substr(colon + 1), nullptr, 16) == port) inodes.insert("socket:[" + inode + "]");
        }
    }
    if (inodes.empty()) return std::nullopt;
    std::error_code error;
    for (auto const& process : fs::directory_iterator("/proc", error)) {
        auto pid = process.path().filename().string();
        if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
        for (auto const& fd : fs::directory_iterator(process.path() / "fd", fs::directory_options::skip_permission_denied, error)) {
            std::error_code ignored;
            if (!inodes.contains(fs::read_symlink(fd.path(), ignored).string())) continue;
            std::ifstream comm(process.path() / "comm");
            std::string name;
            std::getline(comm, name);
            return fmt::format("pid {} ({})", pid, name);
        }
    }
    return "a process of another user";
}

} // namespace ocrctl::deployer
