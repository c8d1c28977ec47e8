#include "lib/remote/forwards.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/remote/session_impl.hpp"

#include <libssh/callbacks.h>
#include <libssh/server.h>

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <list>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

namespace ocrctl::remote {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kHeld = 256 * 1024;  // of one connection, for a target that does not read
constexpr std::size_t kPiece = 128 * 1024; // read from a target at once
constexpr seconds kResolveAgain{30};

struct Address {
    sockaddr_storage storage{};
    socklen_t size = 0;
};

std::vector<Address> resolve(std::string const& host, int port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    addrinfo* found = nullptr;
    std::vector<Address> addresses;
    auto problem = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
    // This name means this machine also where no hosts file says so (RFC 6761, 6.3).
    if (problem != 0 && host == "localhost") problem = ::getaddrinfo(nullptr, std::to_string(port).c_str(), &hints, &found);
    if (problem != 0) return addresses;
    for (auto* item = found; item; item = item->ai_next) {
        Address address;
        std::memcpy(&address.storage, item->ai_addr, item->ai_addrlen);
        address.size = item->ai_addrlen;
        addresses.push_back(address);
    }
    ::freeaddrinfo(found);
    return addresses;
}

/// Where a Forward leads. Looked up when the forwards begin, so that no name server holds up the connections there are.
struct Target {
    Forward forward;
    std::vector<Address> addresses;
    Clock::time_point resolved{};

    void look_up() {
        if (auto found = resolve(forward.address, forward.target_port); !found.empty()) addresses = std::move(found);
        resolved = Clock::now();
    }
};

/// Bytes that wait, taken from the front.
class Waiting {
public:
    bool empty() const noexcept { return from_ == bytes_.size(); }
    std::size_t size() const noexcept { return bytes_.size() - from_; }
    std::string_view view() const noexcept { return std::string_view(bytes_).substr(from_); }
    void add(std::string_view more) {
        if (from_ > 0) bytes_.erase(0, std::exchange(from_, 0));
        bytes_.append(more);
    }
    void drop(std::size_t count) {
        from_ += count;
        if (from_ < bytes_.size()) return;
        from_ = 0;
        bytes_.clear();
        if (bytes_.capacity() > kPiece) bytes_.shrink_to_fit();
    }

private:
    std::string bytes_;
    std::size_t from_ = 0;
};

/// One connection: a channel to the Host, a socket to the target. libssh calls into it whenever it handles packets,
/// also while we write to another channel: the callbacks below only note, all else happens in the loop.
struct Link {
    ssh_channel channel = nullptr;
    ssh_channel_callbacks_struct callbacks{};
    Target* target = nullptr;
    std::size_t address = 0; // of the target's, the one being tried
    Fd socket;
    bool connecting = false;

    Waiting to_target, to_host;
    bool more_in_channel = false; // libssh holds bytes that did not fit into to_target
    bool host_ended = false;      // sends no more
    bool host_closed = false;
    bool target_ended = false;
    bool told_host = false, told_target = false; // that the other side sends no more
    bool broken = false;                         // the target's side is gone
    int slot = -1;                               // in the poll list of this turn

    ~Link() {
        if (!channel) return;
        ssh_remove_channel_callbacks(channel, &callbacks); // libssh may keep the channel until the Host has closed it
        ssh_channel_close(channel);
        ssh_channel_free(channel);
    }

    /// As much as the target takes now; false once it is gone.
    std::size_t send(std::string_view bytes) {
        std::size_t sent = 0;
        while (sent < bytes.size()) {
            auto put = ::send(socket.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (put < 0 && errno == EINTR) continue;
            if (put < 0) {
                if (errno != EAGAIN && errno != EWOULDBLOCK) broken = true;
                break;
            }
            sent += static_cast<std::size_t>(put);
        }
        return sent;
    }

    /// What of the Host's bytes is taken now.
    std::size_t take(std::string_view bytes) {
        if (broken) return bytes.size();
        std::size_t taken = 0;
        if (!connecting && to_target.empty()) taken = send(bytes);
        if (broken) return bytes.size();
        auto room = kHeld - std::min(kHeld, to_target.size());
        auto rest = bytes.substr(taken, room);
        if (!rest.empty()) to_target.add(rest);
        return taken + rest.size();
    }
};

int on_data(ssh_session, ssh_channel, void* data, uint32_t size, int is_stderr, void* user) {
    auto& link = *static_cast<Link*>(user);
    if (is_stderr) return static_cast<int>(size);
    auto taken = link.take({static_cast<char const*>(data), size});
    link.more_in_channel = taken < size;
    return static_cast<int>(taken);
}
void on_eof(ssh_session, ssh_channel, void* user) {
    static_cast<Link*>(user)->host_ended = true;
}
void on_close(ssh_session, ssh_channel, void* user) {
    static_cast<Link*>(user)->host_ended = static_cast<Link*>(user)->host_closed = true;
}

bool loopback_v4(std::string_view hex) {
    return hex.substr(6, 2) == "7F";
} // little endian

constexpr char kListenersScript[] = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; true";

} // namespace

std::vector<Listener> listeners(std::string_view proc_net_tcp) {
    std::vector<Listener> found;
    for (auto const& line : split(proc_net_tcp, '\n')) {
        std::vector<std::string> fields;
        for (auto const& field : split(line, ' '))
            if (!field.empty()) fields.push_back(field);
        if (fields.size() < 4 || fields[3] != "0A") continue;
        auto colon = fields[1].find(':');
        if (colon != 8 && colon != 32) continue;
        std::string_view address = std::string_view(fields[1]).substr(0, colon);
        Listener listener;
        listener.port = static_cast<int>(std::strtol(fields[1].c_str() + colon + 1, nullptr, 16));
        if (colon == 8)
            listener.loopback = loopback_v4(address);
        else if (address.starts_with("0000000000000000FFFF0000"))
            listener.loopback = loopback_v4(address.substr(24));
        else
            listener.loopback = address == "00000000000000000000000001000000";
        found.push_back(listener);
    }
    return found;
}

Result<std::vector<Listener>> listeners_on(SshSession& session) {
    auto output = session.exec(fmt::format("exec /bin/sh -c {}", shell_quote(kListenersScript)));
    if (!output) return std::unexpected(output.error());
    return listeners(output->out);
}

struct Forwards::Impl {
    explicit Impl(SshSession given, std::vector<Forward> forwards)
        : session(std::move(given)), s(session.impl_->session.get()) {
        for (auto& forward : forwards) {
            Target target;
            target.forward = std::move(forward);
            target.look_up();
            targets.push_back(std::move(target));
        }
    }
    ~Impl() {
        if (event) ssh_event_remove_session(event.get(), s);
        ssh_set_message_callback(s, nullptr, nullptr);
        links.clear();
        arrived.clear();
    }

    SshSession session;
    ssh_session s;
    SshPtr<ssh_event> event;
    std::vector<Target> targets;
    std::list<std::unique_ptr<Link>> links;
    std::list<std::unique_ptr<Link>> arrived; // by the callback, not yet in the loop
    Counts counts;
    ssh_counter_struct received{}; // libssh counts into it, wherever it handles packets
    std::vector<char> piece = std::vector<char>(kPiece);

    std::string who() const { return describe(session.target()); }

    // --- connections come ---

    static int on_message(ssh_session, ssh_message message, void* user) {
        if (ssh_message_type(message) != SSH_REQUEST_CHANNEL_OPEN ||
            ssh_message_subtype(message) != SSH_CHANNEL_FORWARDED_TCPIP)
            return 1;
        return static_cast<Impl*>(user)->open(message) ? 0 : 1;
    }

    bool open(ssh_message message) {
        auto port = ssh_message_channel_request_open_destination_port(message);
        auto target = std::ranges::find_if(targets, [&](auto const& item) { return item.forward.port == port; });
        if (target == targets.end()) return false;
        auto link = std::make_unique<Link>();
        link->target = &*target;
        link->channel = ssh_message_channel_request_open_reply_accept(message);
        if (!link->channel) return false;
        link->callbacks.userdata = link.get();
        link->callbacks.channel_data_function = on_data;
        link->callbacks.channel_eof_function = on_eof;
        link->callbacks.channel_close_function = on_close;
        ssh_callbacks_init(&link->callbacks);
        ssh_set_channel_callbacks(link->channel, &link->callbacks);
        link->connecting = true;
        ++counts.accepted;
        arrived.push_back(std::move(link));
        return true;
    }

    /// Begins with the next address of the target; broken if there is none.
    void connect(Link& link) {
        auto& target = *link.target;
        while (link.address < target.addresses.size()) {
            auto const& address = target.addresses[link.address];
            Fd socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
            int on = 1;
            if (socket) ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            if (socket &&
                (::connect(socket.get(), reinterpret_cast<sockaddr const*>(&address.storage), address.size) == 0 ||
                 errno == EINPROGRESS)) {
                link.socket = std::move(socket);
                return; // writable says how it went, also where it is through already
            }
            ++link.address;
        }
        link.broken = true;
        ++counts.refused;
        if (Clock::now() - target.resolved > kResolveAgain) target.look_up();
    }

    void connected(Link& link) {
        int problem = 0;
        socklen_t size = sizeof problem;
        ::getsockopt(link.socket.get(), SOL_SOCKET, SO_ERROR, &problem, &size);
        if (problem == 0) {
            link.connecting = false;
            return;
        }
        link.socket.close();
        ++link.address;
        connect(link);
    }

    // --- bytes move ---

    bool ssh_is_full() const { return (ssh_get_poll_flags(s) & SSH_WRITE_PENDING) != 0; }

    /// What waits for the Host, as far as its window and our socket take it.
    void write_to_host(Link& link) {
        while (!link.to_host.empty() && !link.host_closed) {
            auto window = ssh_channel_window_size(link.channel);
            auto bytes = link.to_host.view().substr(0, window);
            if (bytes.empty()) return;
            // Never more than the window: libssh would wait for it to grow.
            int written = ssh_channel_write(link.channel, bytes.data(), static_cast<std::uint32_t>(bytes.size()));
            if (written <= 0) return; // the keys are being changed, or the session is lost, which the loop finds
            link.to_host.drop(static_cast<std::size_t>(written));
        }
    }

    void read_target(Link& link) {
        auto got = ::recv(link.socket.get(), piece.data(), piece.size(), MSG_DONTWAIT);
        if (got > 0) {
            link.to_host.add({piece.data(), static_cast<std::size_t>(got)});
            write_to_host(link);
        } else if (got == 0) {
            link.target_ended = true;
        } else if (errno != EAGAIN && errno != EINTR) {
            link.broken = true;
        }
    }

    void write_to_target(Link& link) {
        for (;;) {
            if (!link.to_target.empty()) link.to_target.drop(link.send(link.to_target.view()));
            if (link.broken || !link.to_target.empty() || !link.more_in_channel) return;
            // There is room again: fetch what libssh held back, which also opens the Host's window.
            int got =
                ssh_channel_read_nonblocking(link.channel, piece.data(), static_cast<std::uint32_t>(piece.size()), 0);
            if (got <= 0) {
                link.more_in_channel = false;
                return;
            }
            link.to_target.add({piece.data(), static_cast<std::size_t>(got)});
        }
    }

    /// Hands on that a side has ended; true once both have and the connection is over.
    bool over(Link& link) {
        if (link.broken) return true;
        bool target_has_all = !link.connecting && link.to_target.empty() && !link.more_in_channel;
        if (link.host_ended && target_has_all && !link.told_target) {
            ::shutdown(link.socket.get(), SHUT_WR);
            link.told_target = true;
        }
        if (link.host_closed && target_has_all) return true;
        if (link.target_ended && link.to_host.empty() && !link.told_host) {
            ssh_channel_send_eof(link.channel);
            link.told_host = true;
        }
        return link.told_host && link.told_target;
    }

    std::unexpected<Error> lost() {
        return fail(ErrorKind::Unavailable, "{}: the connection was lost: {}", who(), text_of(s));
    }

    Result<void> pump(int wake, Patience patience) {
        ssh_set_blocking(s, 0);
        std::vector<pollfd> polled;
        auto heard = Clock::now(), asked = heard;
        std::uint64_t received_before = 0;
        ssh_set_counters(s, nullptr, &received);
        for (;;) {
            // libssh: what has come, what is to be sent, connections that are opened.
            if (ssh_event_dopoll(event.get(), 0) == SSH_ERROR || !ssh_is_connected(s)) return lost();
            for (auto& link : arrived) connect(*link);
            links.splice(links.end(), arrived);
            bool full = ssh_is_full();

            polled.clear();
            polled.push_back({wake, POLLIN, 0});
            polled.push_back({ssh_get_fd(s), static_cast<short>(POLLIN | (full ? POLLOUT : 0)), 0});
            for (auto item = links.begin(); item != links.end();) {
                auto& link = **item;
                if (!full && !link.broken) write_to_host(link);
                if (over(link)) {
                    item = links.erase(item);
                    continue;
                }
                short events = 0;
                if (link.connecting || !link.to_target.empty() || link.more_in_channel) events |= POLLOUT;
                if (!link.connecting && !link.target_ended && !full && link.to_host.empty() &&
                    ssh_channel_window_size(link.channel) > 0)
                    events |= POLLIN;
                link.slot = events ? static_cast<int>(polled.size()) : -1;
                if (events) polled.push_back({link.socket.get(), events, 0});
                ++item;
            }
            counts.open = links.size();

            auto now = Clock::now();
            auto due = std::min(asked + patience.quiet, heard + patience.dead);
            auto limit = arrived.empty() ? std::max(milliseconds(0), std::chrono::ceil<milliseconds>(due - now))
                                         : milliseconds(0);
            if (::poll(polled.data(), polled.size(), static_cast<int>(limit.count())) < 0 && errno != EINTR)
                return fail(errno_error(errno, "wait for the forwards"));
            if (polled[0].revents) return {};
            now = Clock::now();
            if (received.in_bytes != received_before || (polled[1].revents & POLLIN)) heard = asked = now;
            received_before = received.in_bytes;
            if (now - heard >= patience.dead)
                return fail(ErrorKind::Timeout, "{}: no sign of life for {} s", who(), patience.dead.count() / 1000);
            if (now - asked >= patience.quiet) {
                asked = now;
                // libssh keeps one such request in flight; a second call collects the answer to the first.
                ssh_send_keepalive(s);
            }
            for (auto& item : links) {
                auto& link = *item;
                if (link.slot < 0 || polled[static_cast<std::size_t>(link.slot)].revents == 0) continue;
                auto events = polled[static_cast<std::size_t>(link.slot)].revents;
                if (link.connecting) {
                    connected(link);
                    continue;
                }
                if (events & (POLLOUT | POLLERR)) write_to_target(link);
                if (!link.broken && (events & (POLLIN | POLLHUP | POLLERR)) && !ssh_is_full()) read_target(link);
            }
        }
    }
};

Forwards::Forwards(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Forwards::~Forwards() = default;
Forwards::Forwards(Forwards&&) noexcept = default;
Forwards& Forwards::operator=(Forwards&&) noexcept = default;

Result<Forwards> Forwards::listen(SshSession session, std::vector<Forward> forwards) {
    auto impl = std::make_unique<Impl>(std::move(session), std::move(forwards));
    auto* s = impl->s;
    ssh_set_message_callback(s, Impl::on_message, impl.get());
    impl->event.reset(ssh_event_new());
    for (auto const& target : impl->targets) {
        int port = target.forward.port;
        if (ssh_channel_listen_forward(s, "127.0.0.1", port, nullptr) == SSH_OK) continue;
        if (!ssh_is_connected(s)) return impl->lost();
        auto there = listeners_on(impl->session);
        if (!there) return std::unexpected(there.error());
        if (std::ranges::any_of(*there, [&](auto const& listener) { return listener.port == port; }))
            return fail(ErrorKind::Conflict,
                        "{}: port {} there, which was chosen for {}, is in use by another program: end that (ss -ltnp "
                        "shows it), or run ocrctl deploy, which chooses another port",
                        impl->who(), port, target.forward.name);
        return fail(ErrorKind::Denied,
                    "{}: it does not forward ports: set AllowTcpForwarding yes (or remote) in its sshd_config, or "
                    "reach: direct in the config",
                    impl->who());
    }
    auto there = listeners_on(impl->session);
    if (!there) return std::unexpected(there.error());
    for (auto const& target : impl->targets)
        for (auto const& listener : *there)
            if (listener.port == target.forward.port && !listener.loopback)
                return fail(ErrorKind::Denied,
                            "{}: its sshd lets port {} be reached from other machines: set GatewayPorts no (or "
                            "clientspecified) in its sshd_config",
                            impl->who(), target.forward.port);
    if (!impl->event || ssh_event_add_session(impl->event.get(), s) != SSH_OK) return impl->lost();
    return Forwards(std::move(impl));
}

Result<void> Forwards::rehearse(SshSession session, std::vector<Forward> forwards) {
    auto listening = listen(std::move(session), std::move(forwards));
    if (!listening) return std::unexpected(listening.error());
    for (auto const& target : listening->impl_->targets)
        if (ssh_channel_cancel_forward(listening->impl_->s, "127.0.0.1", target.forward.port) != SSH_OK)
            return listening->impl_->lost();
    return {};
}

Result<void> Forwards::pump(int wake, Patience patience) {
    return impl_->pump(wake, patience);
}
Forwards::Counts Forwards::counts() const noexcept {
    return impl_->counts;
}

} // namespace ocrctl::remote
