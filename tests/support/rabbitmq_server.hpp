// A private RabbitMQ node from Debian's package for tests: loopback, ports found free, its own epmd, its own folders; the
// system's service is not touched. One per test suite: starting takes some seconds.
#pragma once

#include "tests/support/processes.hpp"

#include <filesystem>
#include <optional>
#include <string>
#include <sys/types.h>

namespace ocrctl::test {

/// Owns a temporary folder and two processes (node and epmd), each the leader of a process group; the destructor
/// kills both and removes the folder. Not thread-safe. Problems end the test program with the node's log.
class RabbitMqServer {
public:
    /// Why there is none here, e.g. not installed; nothing if there is one. With rabbitmq in $OCRCTL_REQUIRE it is a failure
    /// instead: see OCRCTL_NEEDS_RABBITMQ.
    static std::optional<std::string> missing();

    RabbitMqServer(); // started and answering
    ~RabbitMqServer();
    RabbitMqServer(RabbitMqServer const&) = delete;

    int port() const noexcept { return port_; }
    /// "amqp://ocrctl:<password>@127.0.0.1:<port>/": an administrator.
    std::string url() const;
    std::string user() const { return "ocrctl"; }
    std::string password() const { return password_; }
    /// rabbitmqctl with these arguments (a word each); its output.
    std::string ctl(std::string const& arguments) const;
    /// How many connections its log has seen come, a moment ago.
    std::size_t connections_seen() const;

    void stop();      // SIGTERM, until gone
    void kill();      // SIGKILL
    void freeze();    // SIGSTOP: connections stay open, nothing answers
    void thaw();
    void wipe();      // only while it is down: all its data is gone
    void start();     // again, on the same ports
    bool running() const noexcept { return node_ > 0; }

private:
    std::filesystem::path folder_;
    std::string password_;
    int port_ = 0, dist_port_ = 0, epmd_port_ = 0;
    pid_t node_ = 0, epmd_ = 0;
};

} // namespace ocrctl::test

/// In SetUp() or a test: skips with the reason, or fails if OCRCTL_REQUIRE names rabbitmq.
#define OCRCTL_NEEDS_RABBITMQ()                                                                                        \
    if (auto reason = ::ocrctl::test::RabbitMqServer::missing()) {                                                     \
        if (::ocrctl::test::required("rabbitmq")) FAIL() << *reason;                                                   \
        GTEST_SKIP() << *reason;                                                                                       \
    }
