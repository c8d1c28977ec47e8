#include "lib/remote/forwards.hpp"
#include "lib/remote/tunnel.hpp"

#include "lib/base/files.hpp"
#include "tests/support/ssh_host.hpp"

#include <algorithm>
#include <arpa/inet.h>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <mutex>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

namespace ocrctl::remote {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

#define EXPECT_CONTAINS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << text

sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

Fd connect_to(int port) {
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    auto address = loopback(port);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
    timeval limit{20, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

bool send_all(int fd, std::string_view bytes) {
    while (!bytes.empty()) {
        auto put = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (put <= 0) return false;
        bytes.remove_prefix(static_cast<std::size_t>(put));
    }
    return true;
}

/// Until the other side ends, or `size` bytes.
std::string receive(int fd, std::size_t size = std::string::npos) {
    std::string all;
    char buffer[65536];
    while (all.size() < size) {
        auto got = ::recv(fd, buffer, std::min(sizeof buffer, size - all.size()), 0);
        if (got <= 0) break;
        all.append(buffer, static_cast<std::size_t>(got));
    }
    return all;
}

std::string pattern(std::size_t size, unsigned seed) {
    std::string bytes(size, '\0');
    std::uint32_t state = seed * 2654435761U + 1;
    for (auto& c : bytes) {
        state = state * 1664525U + 1013904223U;
        c = static_cast<char>(state >> 24);
    }
    return bytes;
}

/// A target: `serve` gets each connection on a thread of its own.
class Listening {
public:
    explicit Listening(std::function<void(int)> serve, int port = 0) : serve_(std::move(serve)) {
        fd_ = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        int on = 1;
        ::setsockopt(fd_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        auto address = loopback(port);
        socklen_t size = sizeof address;
        if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(fd_.get(), 128) != 0 ||
            ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
            throw std::runtime_error("cannot listen");
        port_ = ntohs(address.sin_port);
        thread_ = std::thread([this] {
            for (;;) {
                int client = ::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC);
                if (client < 0) return;
                std::lock_guard lock(mutex_);
                clients_.emplace_back(client);
                threads_.emplace_back([this, client] {
                    serve_(client);
                    ::shutdown(client, SHUT_RDWR);
                });
            }
        });
    }
    ~Listening() {
        ::shutdown(fd_.get(), SHUT_RDWR);
        thread_.join();
        for (auto const& client : clients_) ::shutdown(client.get(), SHUT_RDWR);
        for (auto& thread : threads_) thread.join();
    }
    int port() const { return port_; }

private:
    std::function<void(int)> serve_;
    Fd fd_;
    int port_ = 0;
    std::mutex mutex_;
    std::vector<Fd> clients_;
    std::vector<std::thread> threads_;
    std::thread thread_;
};

void echo(int fd) {
    char buffer[65536];
    for (;;) {
        auto got = ::recv(fd, buffer, sizeof buffer, 0);
        if (got <= 0 || !send_all(fd, {buffer, static_cast<std::size_t>(got)})) return;
    }
}

/// pump() on a thread of its own.
class Pumping {
public:
    Pumping(Forwards forwards, Patience patience = {})
        : forwards_(std::move(forwards)), wake_(::eventfd(0, EFD_CLOEXEC)) {
        thread_ = std::thread([this, patience] { result_ = forwards_.pump(wake_.get(), patience); });
    }
    ~Pumping() { end(); }
    Result<void> end() {
        std::uint64_t one = 1;
        (void)!::write(wake_.get(), &one, sizeof one);
        return join();
    }
    Result<void> join() {
        if (thread_.joinable()) thread_.join();
        return result_;
    }
    Forwards const& forwards() const { return forwards_; } // to be asked after the end

private:
    Forwards forwards_;
    Fd wake_;
    Result<void> result_;
    std::thread thread_;
};

class ForwardsTest : public testing::Test {
protected:
    void SetUp() override {
        if (auto reason = test::SshHost::missing(); !reason.empty()) GTEST_SKIP() << reason;
    }
    test::SshHost& host(std::string const& more = "") {
        host_ = std::make_unique<test::SshHost>(more);
        return *host_;
    }
    SshTarget target() const {
        SshTarget target;
        target.name = "ocr1";
        target.address = "127.0.0.1";
        target.port = host_->port();
        target.username = host_->user();
        target.private_key = host_->key();
        target.known_hosts = host_->known_hosts();
        return target;
    }
    Result<Forwards> listen(std::vector<Forward> forwards) const {
        auto session = SshSession::connect(target());
        if (!session) return std::unexpected(session.error());
        return Forwards::listen(std::move(*session), std::move(forwards));
    }
    static Forward forward(Listening const& to, int port = 0) {
        return {"queue", port ? port : test::free_port(), "127.0.0.1", to.port()};
    }

    std::unique_ptr<test::SshHost> host_;
};

TEST_F(ForwardsTest, CarriesBytesBothWaysAndTheEndOfEither) {
    host();
    Listening server(echo);
    auto wanted = forward(server);
    auto forwards = listen({wanted});
    ASSERT_TRUE(forwards) << forwards.error().message();
    Pumping pumping(std::move(*forwards));
    auto client = connect_to(wanted.port);
    ASSERT_TRUE(client);
    ASSERT_TRUE(send_all(client.get(), "hello"));
    EXPECT_EQ(receive(client.get(), 5), "hello");
    ASSERT_TRUE(send_all(client.get(), "and good-bye"));
    ::shutdown(client.get(), SHUT_WR);
    EXPECT_EQ(receive(client.get()), "and good-bye"); // the target saw the end, answered all, and ended, too
    EXPECT_TRUE(pumping.end());
    EXPECT_EQ(pumping.forwards().counts().accepted, 1u);
    EXPECT_EQ(pumping.forwards().counts().open, 0u);
}

TEST_F(ForwardsTest, LeadsEachPortToItsOwnTarget) {
    host();
    Listening one([](int fd) { send_all(fd, "one"); }), two([](int fd) { send_all(fd, "two"); });
    auto first = forward(one), second = forward(two);
    second.address = "localhost"; // a name with several addresses, of which one answers
    auto forwards = listen({first, second});
    ASSERT_TRUE(forwards) << forwards.error().message();
    Pumping pumping(std::move(*forwards));
    EXPECT_EQ(receive(connect_to(second.port).get()), "two");
    EXPECT_EQ(receive(connect_to(first.port).get()), "one");
}

TEST_F(ForwardsTest, CarriesManyConnectionsAtOnce) {
    host("MaxSessions 2\n"); // which does not count forwards
    Listening server(echo);
    auto wanted = forward(server);
    auto forwards = listen({wanted});
    ASSERT_TRUE(forwards) << forwards.error().message();
    Pumping pumping(std::move(*forwards));
    std::atomic<int> good = 0;
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 40; ++i)
        threads.emplace_back([&, i] {
            auto client = connect_to(wanted.port);
            auto bytes = pattern(300000, i);
            std::thread sender([&] {
                send_all(client.get(), bytes);
                ::shutdown(client.get(), SHUT_WR);
            });
            if (receive(client.get()) == bytes) ++good;
            sender.join();
        });
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(good, 40);
    EXPECT_TRUE(pumping.end());
    EXPECT_EQ(pumping.forwards().counts().accepted, 40u);
}

TEST_F(ForwardsTest, GoesOnOverChangesOfTheKeys) {
    host("RekeyLimit 1M\n");
    Listening server(echo);
    auto wanted = forward(server);
    auto forwards = listen({wanted});
    ASSERT_TRUE(forwards) << forwards.error().message();
    Pumping pumping(std::move(*forwards));
    auto bytes = pattern(24 << 20, 7);
    auto client = connect_to(wanted.port);
    std::thread sender([&] {
        send_all(client.get(), bytes);
        ::shutdown(client.get(), SHUT_WR);
    });
    auto back = receive(client.get());
    sender.join();
    EXPECT_TRUE(back == bytes) << back.size() << " of " << bytes.size() << " bytes";
    EXPECT_TRUE(pumping.end());
}

TEST_F(ForwardsTest, ASideThatDoesNotReadHoldsUpNoOtherAndFillsNoMemory) {
    host();
    std::atomic<std::size_t> sent = 0;
    std::atomic<bool> end = false;
    Listening flood([&](int fd) { // sends what nobody reads
        auto bytes = pattern(1 << 20, 1);
        timeval limit{0, 200000};
        ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        while (!end) {
            auto put = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (put > 0)
                sent += static_cast<std::size_t>(put);
            else if (errno != EAGAIN)
                return;
        }
    });
    Listening deaf([&](int) { // reads nothing of what is sent
        while (!end) ::poll(nullptr, 0, 20);
    });
    Listening server(echo);
    auto to_flood = forward(flood), to_deaf = forward(deaf), to_echo = forward(server);
    auto forwards = listen({to_flood, to_deaf, to_echo});
    ASSERT_TRUE(forwards) << forwards.error().message();
    Pumping pumping(std::move(*forwards));
    auto flooded = connect_to(to_flood.port);
    std::size_t pushed = 0;
    auto pusher = connect_to(to_deaf.port);
    auto bytes = pattern(1 << 20, 2);
    timeval limit{1, 0};
    ::setsockopt(pusher.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    for (;;) {
        auto put = ::send(pusher.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (put <= 0) break;
        pushed += static_cast<std::size_t>(put);
        ASSERT_LT(pushed, std::size_t(64) << 20) << "somebody keeps what the target does not read";
    }
    auto began = Clock::now();
    auto client = connect_to(to_echo.port);
    for (int i = 0; i < 50; ++i) {
        ASSERT_TRUE(send_all(client.get(), "ping"));
        ASSERT_EQ(receive(client.get(), 4), "ping");
    }
    EXPECT_LT(Clock::now() - began, 5s);
    EXPECT_LT(sent, std::size_t(64) << 20) << "somebody keeps what the client does not read";
    end = true;
    // What was held back is delivered once it is read.
    EXPECT_GE(receive(flooded.get(), 2 << 20).size(), std::size_t(2) << 20);
}

TEST_F(ForwardsTest, ATargetThatIsAwayEndsTheConnectionAndIsFoundWhenItIsBack) {
    host();
    auto away = test::free_port();
    Forward wanted{"server", test::free_port(), "127.0.0.1", away};
    auto forwards = listen({wanted});
    ASSERT_TRUE(forwards) << forwards.error().message();
    Pumping pumping(std::move(*forwards));
    auto client = connect_to(wanted.port);
    ASSERT_TRUE(client);
    EXPECT_EQ(receive(client.get()), "");
    Listening server(echo, away);
    auto again = connect_to(wanted.port);
    ASSERT_TRUE(send_all(again.get(), "back"));
    EXPECT_EQ(receive(again.get(), 4), "back");
    EXPECT_TRUE(pumping.end());
    EXPECT_EQ(pumping.forwards().counts().refused, 1u);
}

TEST_F(ForwardsTest, SaysThatAPortIsInUseThere) {
    host();
    Listening holder(echo), server(echo);
    auto forwards = listen({forward(server, holder.port())});
    ASSERT_FALSE(forwards);
    EXPECT_EQ(forwards.error().kind(), ErrorKind::Conflict);
    EXPECT_CONTAINS(forwards.error().message(), std::to_string(holder.port()));
    EXPECT_CONTAINS(forwards.error().message(), "in use");
}

TEST_F(ForwardsTest, SaysThatTheHostDoesNotForward) {
    host("AllowTcpForwarding no\n");
    Listening server(echo);
    auto forwards = listen({forward(server)});
    ASSERT_FALSE(forwards);
    EXPECT_EQ(forwards.error().kind(), ErrorKind::Denied);
    EXPECT_CONTAINS(forwards.error().message(), "AllowTcpForwarding");
}

TEST_F(ForwardsTest, RefusesAHostThatWouldListenForEverybody) {
    host("GatewayPorts yes\n");
    Listening server(echo);
    auto wanted = forward(server);
    auto forwards = listen({wanted});
    ASSERT_FALSE(forwards);
    EXPECT_EQ(forwards.error().kind(), ErrorKind::Denied);
    EXPECT_CONTAINS(forwards.error().message(), "GatewayPorts");
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session);
    auto end = Clock::now() + 5s; // the refused session is gone, and its ports
    auto open = [&] {
        auto there = listeners_on(*session);
        return there && std::ranges::any_of(*there, [&](auto const& item) { return item.port == wanted.port; });
    };
    while (open() && Clock::now() < end) ::poll(nullptr, 0, 20);
    EXPECT_FALSE(open());
}

TEST_F(ForwardsTest, NoticesThatTheConnectionIsCut) {
    host();
    Listening server(echo);
    auto wanted = forward(server);
    auto forwards = listen({wanted});
    ASSERT_TRUE(forwards) << forwards.error().message();
    Pumping pumping(std::move(*forwards));
    auto client = connect_to(wanted.port);
    ASSERT_TRUE(send_all(client.get(), "x"));
    EXPECT_EQ(receive(client.get(), 1), "x");
    host_->stop();
    auto ended = pumping.join();
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().kind(), ErrorKind::Unavailable);
}

TEST_F(ForwardsTest, NoticesThatTheHostIsSilent) {
    host();
    Listening server(echo);
    auto forwards = listen({forward(server)});
    ASSERT_TRUE(forwards) << forwards.error().message();
    auto began = Clock::now();
    Pumping pumping(std::move(*forwards), Patience{100ms, 1500ms});
    ::poll(nullptr, 0, 2500);
    host_->freeze(true); // until here the Host gave signs of life though nothing was carried
    auto ended = pumping.join();
    EXPECT_GT(Clock::now() - began, 3500ms);
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().kind(), ErrorKind::Timeout);
    EXPECT_CONTAINS(ended.error().message(), "no sign of life");
    host_->freeze(false);
}

/// Runs a Tunnel and keeps what it tells.
class Running {
public:
    explicit Running(TunnelOptions options)
        : tunnel_([&] {
              options.told = [this](TunnelState const& state) {
                  std::lock_guard lock(mutex_);
                  states_.push_back(state);
                  changed_.notify_all();
              };
              return std::move(options);
          }()) {
        thread_ = std::thread([this] { tunnel_.run(); });
    }
    ~Running() { end(); }
    void end() {
        tunnel_.stop();
        if (thread_.joinable()) thread_.join();
    }
    /// The latest state, once `wanted` holds for it.
    TunnelState until(std::function<bool(TunnelState const&)> wanted, std::chrono::seconds limit = 20s) {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, limit, [&] { return !states_.empty() && wanted(states_.back()); });
        return states_.empty() ? TunnelState{} : states_.back();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<TunnelState> states_;
    Tunnel tunnel_;
    std::thread thread_;
};

TEST_F(ForwardsTest, ATunnelIsBackOnTheSamePortsAfterTheHostWasAway) {
    host();
    Listening server(echo);
    auto wanted = forward(server);
    TunnelOptions options;
    options.target = [&] { return Result<SshTarget>(target()); };
    options.forwards = {wanted};
    options.memory = host_->folder() / "memory";
    Running tunnel(std::move(options));
    ASSERT_TRUE(tunnel.until([](auto const& state) { return state.listening; }).listening);
    for (int round = 0; round < 2; ++round) {
        host_->stop();
        auto state = tunnel.until(
            [](auto const& s) { return !s.listening && s.detail.find("cannot be reached") != std::string::npos; });
        EXPECT_CONTAINS(state.detail, "cannot be reached");
        host_->start();
        ASSERT_TRUE(tunnel.until([](auto const& s) { return s.listening; }).listening);
        auto client = connect_to(wanted.port);
        ASSERT_TRUE(send_all(client.get(), "again"));
        EXPECT_EQ(receive(client.get(), 5), "again");
    }
    auto began = Clock::now();
    tunnel.end();
    EXPECT_LT(Clock::now() - began, 2s);
}

TEST_F(ForwardsTest, ATunnelEndsItsOwnForgottenSessionThatStillHoldsThePort) {
    host();
    Listening server(echo);
    auto wanted = forward(server);
    // As after a cut cable and a dead tunnel: the Host's sshd still listens for nobody.
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session);
    auto served = server_of(*session);
    ASSERT_TRUE(served && *served);
    std::ofstream(host_->folder() / "memory")
        << (*served)->boot << " " << (*served)->pid << " " << (*served)->start << "\n";
    auto forgotten = Forwards::listen(std::move(*session), {wanted});
    ASSERT_TRUE(forgotten) << forgotten.error().message();
    TunnelOptions options;
    options.target = [&] { return Result<SshTarget>(target()); };
    options.forwards = {wanted};
    options.memory = host_->folder() / "memory";
    Running tunnel(std::move(options));
    ASSERT_TRUE(tunnel.until([](auto const& state) { return state.listening; }).listening);
    auto client = connect_to(wanted.port);
    ASSERT_TRUE(send_all(client.get(), "mine"));
    EXPECT_EQ(receive(client.get(), 4), "mine");
}

TEST_F(ForwardsTest, ATunnelSaysThatAStrangerHoldsThePortAndTakesItOnceItIsFree) {
    host();
    auto holder = std::make_unique<Listening>(echo);
    Listening server(echo);
    auto wanted = forward(server, holder->port());
    TunnelOptions options;
    options.target = [&] { return Result<SshTarget>(target()); };
    options.forwards = {wanted};
    options.memory = host_->folder() / "memory";
    Running tunnel(std::move(options));
    auto state = tunnel.until([](auto const& s) { return s.detail.find("in use") != std::string::npos; });
    EXPECT_CONTAINS(state.detail, std::to_string(wanted.port));
    holder.reset();
    EXPECT_TRUE(tunnel.until([](auto const& s) { return s.listening; }).listening);
}

TEST(Listeners, AreReadFromTheKernelsTables) {
    auto found =
        listeners("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
                  "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
                  "   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2\n"
                  "   2: 0100007F:1F91 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 3\n"
                  "   0: 00000000000000000000000001000000:1F92 00000000000000000000000000000000:0000 0A "
                  "00000000:00000000 00:00000000 00000000 0 0 4\n"
                  "   1: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A "
                  "00000000:00000000 00:00000000 00000000 0 0 5\n"
                  "   2: 0000000000000000FFFF00000100007F:1F93 00000000000000000000000000000000:0000 0A "
                  "00000000:00000000 00:00000000 00000000 0 0 6\n");
    std::vector<std::pair<int, bool>> seen;
    for (auto const& listener : found) seen.emplace_back(listener.port, listener.loopback);
    EXPECT_EQ(seen,
              (std::vector<std::pair<int, bool>>{{8080, true}, {22, false}, {8082, true}, {22, false}, {8083, true}}));
}

} // namespace
} // namespace ocrctl::remote
