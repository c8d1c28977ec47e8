// The thread of a connection: connects, serves, reconnects. Publisher and Consumer are what they do with it.
#pragma once

#include "lib/base/files.hpp"
#include "lib/log/log.hpp"
#include "lib/queue/connection.hpp"

#include <atomic>
#include <future>
#include <mutex>
#include <thread>

namespace ocrctl::queue {

/// Owns the thread. Derived classes call start() last in their constructor and stop() first in their destructor. The
/// virtual functions are called on the thread only.
class Link {
public:
    Link(asio::any_io_executor executor, BrokerUrl url, LinkOptions options, std::string_view area);
    virtual ~Link();

    void start();
    void stop();
    /// From any thread: work() is called soon.
    void wake();
    bool up() const noexcept { return up_; }

protected:
    static constexpr amqp_channel_t kChannel = 1;

    /// After on_connected, with channel kChannel open.
    virtual Result<void> set_up(Connection& connection) = 0;
    /// After each wake and each round of frames: send what waits.
    virtual Result<void> work(Connection& connection) = 0;
    /// stop() was called: what should still go out before the connection is closed.
    virtual void before_close(Connection&) {}
    /// A method frame on kChannel.
    virtual Result<void> on_frame(Connection& connection, amqp_frame_t& frame) = 0;
    /// Also called when a connection could not be made.
    virtual void on_lost(Error const& error) = 0;
    /// While there is no connection: what waits may have waited too long.
    virtual void on_idle() {}
    /// How long the thread may sleep, at most.
    virtual std::chrono::milliseconds patience() { return std::chrono::seconds(3600); }

    std::uint64_t generation() const noexcept { return generation_; }
    bool blocked() const noexcept { return blocked_; }
    bool stopping() const noexcept { return stopping_; }
    asio::any_io_executor const& executor() const noexcept { return executor_; }
    Session& session() { return *session_; }
    log::Logger log_;

private:
    void run();
    Result<void> serve(Connection& connection);
    Result<void> frames(Connection& connection);
    Result<void> frame(Connection& connection, amqp_frame_t& frame);
    bool sleep(int socket, std::chrono::milliseconds limit); // false: stopping
    void tell(bool up, Error error);

    asio::any_io_executor executor_;
    BrokerUrl url_;
    LinkOptions options_;
    Fd wake_;
    std::atomic<bool> stopping_{false}, up_{false};
    std::atomic<bool> wake_pending_{false};
    std::atomic<bool> ended_{false};
    std::atomic<int> socket_{-1};
    bool blocked_ = false;
    std::uint64_t generation_ = 0;
    std::optional<Session> session_;
    std::optional<Result<void>> borrowed_problem_;
    bool told_ = false, told_up_ = false;
    std::string told_error_;
    std::chrono::steady_clock::time_point lost_at_{};
    std::shared_ptr<std::atomic<bool>> alive_ = std::make_shared<std::atomic<bool>>(true);
    std::promise<void> end_;
    std::future<void> end_future_ = end_.get_future();
    std::mutex stop_mutex_;
    std::jthread thread_;
};

} // namespace ocrctl::queue
