#include "lib/queue/link.hpp"

#include <algorithm>
#include <csignal>
#include <poll.h>
#include <pthread.h>
#include <random>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace ocrctl::queue {

using std::chrono::milliseconds;
using Steady = std::chrono::steady_clock;

Link::Link(asio::any_io_executor executor, BrokerUrl url, LinkOptions options, std::string_view area)
    : log_(area), executor_(std::move(executor)), url_(std::move(url)), options_(std::move(options)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    OCRCTL_CHECK(wake_);
    log_ = log_.with(log::kv("address", url_.shown()), log::kv("connection", options_.name));
}

Link::~Link() { OCRCTL_CHECK(!thread_.joinable()); }

void Link::start() {
    thread_ = std::jthread([this] {
        // Signals belong to the io thread.
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
        run();
        ended_ = true;
        end_.set_value();
    });
}

void Link::stop() {
    std::lock_guard lock(stop_mutex_);
    *alive_ = false;
    stopping_ = true;
    if (!thread_.joinable()) return;
    wake_pending_ = false;
    wake();
    // A broker that neither reads nor answers can hold the thread inside the library: then its socket ends.
    if (end_future_.wait_for(std::chrono::seconds(3)) != std::future_status::ready)
        if (int socket = socket_; socket >= 0) ::shutdown(socket, SHUT_RDWR);
    thread_.join();
}

void Link::wake() {
    if (wake_pending_.exchange(true)) return;
    std::uint64_t one = 1;
    [[maybe_unused]] auto written = ::write(wake_.get(), &one, sizeof one);
}

bool Link::sleep(int socket, milliseconds limit) {
    pollfd fds[2] = {{wake_.get(), POLLIN, 0}, {socket, POLLIN, 0}};
    auto capped = std::clamp<std::int64_t>(limit.count(), 0, 3600 * 1000);
    ::poll(fds, socket >= 0 ? 2 : 1, static_cast<int>(capped));
    if (fds[0].revents) {
        std::uint64_t count;
        [[maybe_unused]] auto got = ::read(wake_.get(), &count, sizeof count);
        wake_pending_ = false;
    }
    return !stopping_;
}

void Link::tell(bool up, Error error) {
    up_ = up;
    bool news = !told_ || told_up_ != up || (!up && told_error_ != error.message());
    if (!news) return;
    if (up) {
        if (told_ && lost_at_ != Steady::time_point{})
            log_.info("broker.back", log::kv("after_ms", std::chrono::duration_cast<milliseconds>(Steady::now() - lost_at_).count()));
        lost_at_ = {};
    } else {
        if (lost_at_ == Steady::time_point{}) lost_at_ = Steady::now();
        if (!told_ || told_up_) log_.warn("broker.lost", log::kv("error", error.message()));
        else log_.debug("broker.still-lost", log::kv("error", error.message()));
    }
    told_ = true;
    told_up_ = up;
    told_error_ = error.message();
    if (!options_.on_link) return;
    LinkEvent event{.up = up, .blocked = blocked_, .error = std::move(error), .generation = generation_};
    asio::post(executor_, [alive = alive_, handler = options_.on_link, event = std::move(event)] {
        if (*alive) handler(event);
    });
}

void Link::run() {
    std::minstd_rand random(std::random_device{}());
    auto back_off = options_.back_off_min;
    while (!stopping_) {
        Error error;
        auto connection = Connection::open(url_, options_.name, options_.heartbeat);
        if (!connection) {
            error = connection.error();
        } else {
            ++generation_;
            blocked_ = false;
            socket_ = (*connection)->fd();
            auto impl = std::make_unique<Session::Impl>();
            impl->connection = connection->get();
            impl->others = [this, &connection](amqp_frame_t& other) {
                if (auto handled = frame(**connection, other); !handled) borrowed_problem_ = handled;
            };
            session_.emplace(std::move(impl));
            auto begun = Steady::now();
            auto served = serve(**connection);
            if (!served) error = served.error();
            if (Steady::now() - begun > std::chrono::seconds(5)) back_off = options_.back_off_min;
            session_.reset();
            borrowed_problem_.reset();
            // A connection whose state is unknown is dropped without ceremony; so is a stopped one on a dead socket.
            if (!served && !stopping_) (*connection)->broken();
            up_ = false;
            socket_ = -1;
            connection->reset();
        }
        on_lost(error);
        if (stopping_) break;
        tell(false, error);
        auto until = Steady::now() + back_off + milliseconds(random() % 20);
        while (Steady::now() < until && sleep(-1, std::chrono::ceil<milliseconds>(until - Steady::now()))) on_idle();
        back_off = std::min(back_off * 2, options_.back_off_max);
    }
    on_lost(Error(ErrorKind::Unavailable, "stopped"));
}

Result<void> Link::serve(Connection& connection) {
    amqp_channel_open(connection.raw(), kChannel);
    if (auto opened = connection.check(amqp_get_rpc_reply(connection.raw()), "open a channel", kChannel); !opened) return opened;
    if (options_.on_connected)
        if (auto prepared = options_.on_connected(*session_); !prepared) return prepared;
    if (auto set = set_up(connection); !set) return set;
    tell(true, {});
    auto heartbeat = std::chrono::duration_cast<milliseconds>(options_.heartbeat) / 2;
    while (!stopping_) {
        if (auto worked = work(connection); !worked) return worked;
        if (auto read = frames(connection); !read) return read;
        if (borrowed_problem_) return *borrowed_problem_;
        // Frames may have made work (a window that opened), and RPCs inside work() may have left frames behind.
        if (amqp_frames_enqueued(connection.raw()) || amqp_data_in_buffer(connection.raw())) continue;
        auto limit = std::min(heartbeat, patience());
        if (!sleep(connection.fd(), limit)) break;
    }
    before_close(connection);
    return {};
}

Result<void> Link::frames(Connection& connection) {
    // Bounded, so that acknowledgements and stop() are served between bursts.
    for (int i = 0; i < 256; ++i) {
        amqp_frame_t next;
        timeval now{0, 0};
        int status = amqp_simple_wait_frame_noblock(connection.raw(), &next, &now);
        if (status == AMQP_STATUS_TIMEOUT) break;
        if (auto read = connection.check(status, "read from the broker"); !read) return read;
        if (auto handled = frame(connection, next); !handled) return handled;
    }
    amqp_maybe_release_buffers(connection.raw());
    return {};
}

Result<void> Link::frame(Connection& connection, amqp_frame_t& frame) {
    if (frame.frame_type != AMQP_FRAME_METHOD) return {};
    auto const& method = frame.payload.method;
    switch (method.id) {
    case AMQP_CONNECTION_CLOSE_METHOD: {
        auto error = close_error(method, "connection closed");
        amqp_connection_close_ok_t ok{};
        amqp_send_method(connection.raw(), 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &ok);
        connection.broken();
        return fail(std::move(error));
    }
    case AMQP_CHANNEL_CLOSE_METHOD: return fail(close_error(method, "channel closed"));
    case AMQP_CONNECTION_BLOCKED_METHOD:
        blocked_ = true;
        log_.warn("broker.blocked", log::kv("reason", text(static_cast<amqp_connection_blocked_t*>(method.decoded)->reason)));
        told_ = false;
        tell(true, {});
        return {};
    case AMQP_CONNECTION_UNBLOCKED_METHOD:
        blocked_ = false;
        log_.info("broker.unblocked");
        told_ = false;
        tell(true, {});
        return {};
    default: return on_frame(connection, frame);
    }
}

} // namespace ocrctl::queue
