// Whether somebody listens at a port.
#include "lib/hostops/unit_process.hpp"

#include "lib/base/files.hpp"

#include <arpa/inet.h>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <fstream>
#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

namespace ocrctl {
namespace {

constexpr int kPort = 29110;

sockaddr_in loopback() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(kPort);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/// A network of this process alone, in which every connection goes out from kPort.
bool enter_network_of_one_port() {
    if (::unshare(CLONE_NEWNET) != 0) return false;
    Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq loopback_device{};
    std::char_traits<char>::copy(loopback_device.ifr_name, "lo", 3);
    loopback_device.ifr_flags = IFF_UP | IFF_RUNNING;
    if (::ioctl(fd.get(), SIOCSIFFLAGS, &loopback_device) != 0) return false;
    std::ofstream range("/proc/sys/net/ipv4/ip_local_port_range");
    range << kPort << " " << kPort << std::endl;
    return range.good();
}

bool connects_to_itself() {
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    auto address = loopback();
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return false;
    linger reset{1, 0}; // leaves no TIME_WAIT, for which the port would not be given again
    ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    return true;
}

bool answers() {
    UnitSpec spec;
    spec.ready.kind = "tcp";
    spec.ready.address = "127.0.0.1:" + std::to_string(kPort);
    boost::asio::io_context io;
    bool answer = false;
    boost::asio::co_spawn(io, hostops::unit_answers({}, spec, {}), [&](std::exception_ptr, bool value) { answer = value; });
    io.run();
    return answer;
}

TEST(Readiness, APortThatIsConnectedToItselfHasNobodyWhoListens) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root makes networks";
    auto in_network = [] {
        if (!enter_network_of_one_port()) std::_Exit(2);
        if (!connects_to_itself()) std::_Exit(3);
        if (answers()) std::_Exit(4);
        std::ofstream("/proc/sys/net/ipv4/ip_local_port_range") << "40000 50000" << std::endl;
        Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        auto address = loopback();
        int on = 1;
        ::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) std::_Exit(5);
        if (::listen(listener.get(), 5) != 0) std::_Exit(6);
        std::_Exit(answers() ? 0 : 7);
    };
    EXPECT_EXIT(in_network(), testing::ExitedWithCode(0), "");
}

} // namespace
} // namespace ocrctl
