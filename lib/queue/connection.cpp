#include "lib/queue/connection.hpp"

#include "lib/base/files.hpp"

#include <amqp_tcp_socket.h>
#include <array>
#include <cerrno>
#include <cstring>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

namespace ocrctl::queue {
namespace {

timeval seconds(int count) { return {count, 0}; }

ErrorKind kind_of_code(int code) {
    switch (code) {
    case AMQP_NOT_FOUND: return ErrorKind::NotFound;
    case AMQP_ACCESS_REFUSED:
    case AMQP_NOT_ALLOWED: return ErrorKind::Denied;
    case AMQP_PRECONDITION_FAILED:
    case AMQP_RESOURCE_LOCKED: return ErrorKind::Conflict;
    case AMQP_CONTENT_TOO_LARGE: return ErrorKind::TooLarge;
    default: return ErrorKind::Unavailable;
    }
}

ErrorKind kind_of_status(int status) {
    switch (status) {
    case AMQP_STATUS_TIMEOUT:
    case AMQP_STATUS_HEARTBEAT_TIMEOUT: return ErrorKind::Timeout;
    case AMQP_STATUS_NO_MEMORY:
    case AMQP_STATUS_INVALID_PARAMETER:
    case AMQP_STATUS_UNEXPECTED_STATE: return ErrorKind::Internal;
    default: return ErrorKind::Unavailable;
    }
}

amqp_table_entry_t entry(char const* key, char const* value) {
    amqp_table_entry_t e{};
    e.key = amqp_cstring_bytes(key);
    e.value.kind = AMQP_FIELD_KIND_UTF8;
    e.value.value.bytes = amqp_cstring_bytes(value);
    return e;
}

amqp_table_entry_t entry(char const* key, int value) {
    amqp_table_entry_t e{};
    e.key = amqp_cstring_bytes(key);
    e.value.kind = AMQP_FIELD_KIND_I32;
    e.value.value.i32 = value;
    return e;
}

amqp_table_entry_t enabled(char const* key) {
    amqp_table_entry_t e{};
    e.key = amqp_cstring_bytes(key);
    e.value.kind = AMQP_FIELD_KIND_BOOLEAN;
    e.value.value.boolean = 1;
    return e;
}

/// Our own, because the library does not say why it could not.
Result<Fd> connect_socket(BrokerUrl const& url, std::string const& action) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    if (int problem = ::getaddrinfo(url.host.c_str(), std::to_string(url.port).c_str(), &hints, &list))
        return fail(ErrorKind::Unavailable, "{}: {}", action, ::gai_strerror(problem));
    std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
    int problem = 0;
    for (auto* address = list; address; address = address->ai_next) {
        Fd fd(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        if (!fd) {
            problem = errno;
            continue;
        }
        int on = 1;
        ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        ::setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        problem = ::connect(fd.get(), address->ai_addr, address->ai_addrlen) ? errno : 0;
        if (problem == EINPROGRESS) {
            pollfd item{fd.get(), POLLOUT, 0};
            socklen_t size = sizeof problem;
            if (::poll(&item, 1, 5000) <= 0) problem = ETIMEDOUT;
            else ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &problem, &size);
        }
        if (!problem) return fd;
    }
    return fail(ErrorKind::Unavailable, "{}: {}", action, ::strerror(problem));
}

/// The library's text, where it helps.
char const* explain(int status) {
    switch (status) {
    case AMQP_STATUS_SOCKET_ERROR:
    case AMQP_STATUS_SOCKET_CLOSED:
    case AMQP_STATUS_CONNECTION_CLOSED: return "the broker closed the connection";
    case AMQP_STATUS_HEARTBEAT_TIMEOUT: return "the broker has not been heard of for two heartbeats";
    default: return amqp_error_string2(status);
    }
}

} // namespace

Error close_error(amqp_method_t const& method, std::string const& action) {
    int code = 0;
    std::string said;
    if (method.id == AMQP_CHANNEL_CLOSE_METHOD) {
        auto* close = static_cast<amqp_channel_close_t*>(method.decoded);
        code = close->reply_code, said = text(close->reply_text);
    } else if (method.id == AMQP_CONNECTION_CLOSE_METHOD) {
        auto* close = static_cast<amqp_connection_close_t*>(method.decoded);
        code = close->reply_code, said = text(close->reply_text);
    } else {
        return Error(ErrorKind::Unavailable, fmt::format("{}: the broker answered with method {:#x}", action, method.id));
    }
    return Error(kind_of_code(code), fmt::format("{}: the broker says {}", action, said));
}

Result<std::unique_ptr<Connection>> Connection::open(BrokerUrl const& url, std::string const& name,
                                                     std::chrono::seconds heartbeat) {
    auto action = "connect to the broker at " + url.shown();
    std::unique_ptr<Connection> connection(new Connection(amqp_new_connection()));
    auto* state = connection->raw();
    auto* socket = amqp_tcp_socket_new(state);
    if (!state || !socket) return fail(ErrorKind::Internal, "{}: out of memory", action);
    connection->broken_ = true; // until it is usable there is nobody to say goodbye to
    auto limit = seconds(5), rpc = seconds(10);
    amqp_set_handshake_timeout(state, &limit);
    amqp_set_rpc_timeout(state, &rpc);
    auto connected = connect_socket(url, action);
    if (!connected) return fail(connected.error());
    amqp_tcp_socket_set_sockfd(socket, connected->release());
    std::array<amqp_table_entry_t, 3> capabilities{enabled("consumer_cancel_notify"), enabled("connection.blocked"),
                                                   enabled("authentication_failure_close")};
    amqp_table_entry_t abilities{};
    abilities.key = amqp_cstring_bytes("capabilities");
    abilities.value.kind = AMQP_FIELD_KIND_TABLE;
    abilities.value.value.table = {static_cast<int>(capabilities.size()), capabilities.data()};
    std::array<amqp_table_entry_t, 3> properties{abilities, entry("product", "ocrctl"), entry("connection_name", name.c_str())};
    amqp_table_t table{static_cast<int>(properties.size()), properties.data()};
    auto reply = amqp_login_with_properties(state, url.vhost.c_str(), 0, 131072, static_cast<int>(heartbeat.count()), &table,
                                            AMQP_SASL_METHOD_PLAIN, url.user.c_str(), url.password.reveal().c_str());
    if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION)
        return fail(close_error(reply.reply, action + " as user " + url.user));
    if (reply.reply_type != AMQP_RESPONSE_NORMAL)
        return fail(kind_of_status(reply.library_error), "{}: {}", action, explain(reply.library_error));
    connection->broken_ = false;
    connection->logged_in_ = true;
    return connection;
}

Connection::~Connection() {
    if (!state_) return;
    if (logged_in_ && !broken_) {
        auto limit = seconds(1);
        amqp_set_rpc_timeout(state_, &limit);
        amqp_connection_close(state_, AMQP_REPLY_SUCCESS);
    }
    amqp_destroy_connection(state_);
}

Result<void> Connection::check(int status, std::string const& action) {
    if (status >= 0) return {};
    broken_ = true;
    return fail(kind_of_status(status), "{}: {}", action, explain(status));
}

Result<void> Connection::check(amqp_rpc_reply_t const& reply, std::string const& action, amqp_channel_t channel) {
    switch (reply.reply_type) {
    case AMQP_RESPONSE_NORMAL: return {};
    case AMQP_RESPONSE_SERVER_EXCEPTION: {
        auto error = close_error(reply.reply, action);
        if (reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
            amqp_channel_close_ok_t ok{};
            amqp_send_method(state_, channel, AMQP_CHANNEL_CLOSE_OK_METHOD, &ok);
        } else {
            broken_ = true;
        }
        return fail(std::move(error));
    }
    case AMQP_RESPONSE_NONE: return fail(ErrorKind::Unavailable, "{}: the broker closed the connection", action);
    default:
        broken_ = true;
        return fail(kind_of_status(reply.library_error), "{}: {}", action, explain(reply.library_error));
    }
}

Result<Delivery> read_content(Connection& connection, amqp_channel_t channel, std::string* correlation) {
    amqp_message_t message{};
    auto read = connection.check(amqp_read_message(connection.raw(), channel, &message, 0), "read a message", channel);
    if (!read) return fail(read.error());
    Delivery delivery;
    delivery.body = text(message.body);
    if (message.properties._flags & AMQP_BASIC_MESSAGE_ID_FLAG) delivery.message_id = text(message.properties.message_id);
    if (correlation && message.properties._flags & AMQP_BASIC_CORRELATION_ID_FLAG)
        *correlation = text(message.properties.correlation_id);
    amqp_destroy_message(&message);
    return delivery;
}

Result<void> send(Connection& connection, amqp_channel_t channel, Message const& message, std::string_view correlation) {
    amqp_basic_properties_t properties{};
    properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG;
    properties.content_type = amqp_cstring_bytes("application/json");
    properties.delivery_mode = message.persistent ? 2 : 1;
    if (!message.message_id.empty()) {
        properties._flags |= AMQP_BASIC_MESSAGE_ID_FLAG;
        properties.message_id = bytes(message.message_id);
    }
    if (!correlation.empty()) {
        properties._flags |= AMQP_BASIC_CORRELATION_ID_FLAG;
        properties.correlation_id = bytes(correlation);
    }
    auto expiration = std::to_string(message.expires_after.count());
    if (message.expires_after.count() > 0) {
        properties._flags |= AMQP_BASIC_EXPIRATION_FLAG;
        properties.expiration = bytes(expiration);
    }
    return connection.check(amqp_basic_publish(connection.raw(), channel, bytes(message.exchange), bytes(message.queue),
                                               1, 0, &properties, bytes(message.body)),
                            "publish to " + message.queue);
}

// ---- Session

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<Session> Session::open(BrokerUrl const& url, std::string const& connection_name) {
    auto connection = Connection::open(url, connection_name, std::chrono::seconds(60));
    if (!connection) return fail(connection.error());
    auto impl = std::make_unique<Impl>();
    impl->owned = std::move(*connection);
    impl->connection = impl->owned.get();
    return Session(std::move(impl));
}

Result<void> Session::Impl::ready() {
    if (connection->is_broken()) return fail(ErrorKind::Unavailable, "the connection to the broker is lost");
    if (open) return {};
    channel = channel >= 200 ? 2 : channel + 1;
    amqp_channel_open(connection->raw(), channel);
    auto opened = connection->check(amqp_get_rpc_reply(connection->raw()), "open a channel", channel);
    open = opened.has_value();
    confirming = false;
    return opened;
}

Result<void> Session::Impl::after(std::string const& action) {
    auto done = connection->check(amqp_get_rpc_reply(connection->raw()), action, channel);
    if (!done) open = false;
    amqp_maybe_release_buffers_on_channel(connection->raw(), channel);
    return done;
}

Result<std::uint32_t> Session::declare_quorum(std::string const& queue, QueueOptions const& options) {
    if (auto ready = impl_->ready(); !ready) return fail(ready.error());
    std::vector<amqp_table_entry_t> entries{entry("x-queue-type", "quorum")};
    if (options.delivery_limit) entries.push_back(entry("x-delivery-limit", options.delivery_limit));
    if (!options.dead_letter_to.empty()) {
        entries.push_back(entry("x-dead-letter-exchange", ""));
        entries.push_back(entry("x-dead-letter-routing-key", options.dead_letter_to.c_str()));
        entries.push_back(entry("x-dead-letter-strategy", "at-least-once"));
        entries.push_back(entry("x-overflow", "reject-publish"));
    }
    amqp_table_t table{static_cast<int>(entries.size()), entries.data()};
    auto* ok = amqp_queue_declare(impl_->connection->raw(), impl_->channel, bytes(queue), 0, 1, 0, 0, table);
    std::uint32_t count = ok ? ok->message_count : 0;
    if (auto done = impl_->after("declare queue " + queue); !done) return fail(done.error());
    return count;
}

Result<std::uint32_t> Session::declare_classic(std::string const& queue) {
    if (auto ready = impl_->ready(); !ready) return fail(ready.error());
    auto* ok = amqp_queue_declare(impl_->connection->raw(), impl_->channel, bytes(queue), 0, 1, 0, 0, amqp_empty_table);
    std::uint32_t count = ok ? ok->message_count : 0;
    if (auto done = impl_->after("declare queue " + queue); !done) return fail(done.error());
    return count;
}

Result<QueueState> Session::state(std::string const& queue) {
    if (auto ready = impl_->ready(); !ready) return fail(ready.error());
    auto* ok = amqp_queue_declare(impl_->connection->raw(), impl_->channel, bytes(queue), 1, 0, 0, 0, amqp_empty_table);
    QueueState state;
    if (ok) state = {ok->message_count, ok->consumer_count};
    if (auto done = impl_->after("look at queue " + queue); !done) return fail(done.error());
    return state;
}

Result<std::uint32_t> Session::count(std::string const& queue) {
    auto found = state(queue);
    if (!found) return fail(found.error());
    return found->messages;
}

Result<std::uint32_t> Session::consumers(std::string const& queue) {
    auto found = state(queue);
    if (!found) return fail(found.error());
    return found->consumers;
}

Result<void> Session::ensure_exchange(std::string const& exchange, bool durable) {
    auto declare = [&](bool passive) -> Result<void> {
        if (auto ready = impl_->ready(); !ready) return ready;
        amqp_exchange_declare(impl_->connection->raw(), impl_->channel, bytes(exchange), amqp_cstring_bytes("direct"),
                              passive, durable, 0, 0, amqp_empty_table);
        return impl_->after("declare exchange " + exchange);
    };
    auto there = declare(true);
    if (there || there.error().kind() != ErrorKind::NotFound) return there;
    auto made = declare(false);
    // Somebody else made it between the two, in its own way.
    return made || made.error().kind() != ErrorKind::Conflict ? made : declare(true);
}

Result<void> Session::ensure_queue(std::string const& queue, bool durable) {
    auto there = state(queue);
    if (there) return {};
    if (there.error().kind() != ErrorKind::NotFound) return fail(there.error());
    if (auto ready = impl_->ready(); !ready) return ready;
    amqp_queue_declare(impl_->connection->raw(), impl_->channel, bytes(queue), 0, durable, 0, 0, amqp_empty_table);
    auto made = impl_->after("declare queue " + queue);
    if (made || made.error().kind() != ErrorKind::Conflict) return made;
    auto again = state(queue);
    return again ? Result<void>() : fail(again.error());
}

Result<void> Session::bind(std::string const& queue, std::string const& exchange, std::string const& key) {
    if (auto ready = impl_->ready(); !ready) return ready;
    amqp_queue_bind(impl_->connection->raw(), impl_->channel, bytes(queue), bytes(exchange), bytes(key),
                    amqp_empty_table);
    return impl_->after(fmt::format("bind queue {} to exchange {}", queue, exchange));
}

Result<std::uint32_t> Session::purge(std::string const& queue) {
    if (auto ready = impl_->ready(); !ready) return fail(ready.error());
    auto* ok = amqp_queue_purge(impl_->connection->raw(), impl_->channel, bytes(queue));
    std::uint32_t count = ok ? ok->message_count : 0;
    if (auto done = impl_->after("empty queue " + queue); !done) return fail(done.error());
    return count;
}

Result<void> Session::delete_queue(std::string const& queue) {
    if (auto ready = impl_->ready(); !ready) return ready;
    amqp_queue_delete(impl_->connection->raw(), impl_->channel, bytes(queue), 0, 0);
    return impl_->after("delete queue " + queue);
}

Result<void> Session::publish(Message const& message) {
    if (auto ready = impl_->ready(); !ready) return ready;
    auto& connection = *impl_->connection;
    if (!impl_->confirming) {
        amqp_confirm_select(connection.raw(), impl_->channel);
        if (auto done = impl_->after("ask for confirms"); !done) return done;
        impl_->confirming = true;
    }
    if (auto sent = send(connection, impl_->channel, message, {}); !sent) return sent;
    bool returned = false;
    auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    for (;;) {
        auto left = std::chrono::duration_cast<std::chrono::microseconds>(limit - std::chrono::steady_clock::now()).count();
        if (left <= 0) return fail(ErrorKind::Timeout, "publish to {}: no confirm from the broker", message.queue);
        timeval wait{left / 1000000, left % 1000000};
        amqp_frame_t frame;
        int status = amqp_simple_wait_frame_noblock(connection.raw(), &frame, &wait);
        if (status == AMQP_STATUS_TIMEOUT) continue;
        if (auto read = connection.check(status, "publish to " + message.queue); !read) return read;
        if (status == AMQP_STATUS_OK && frame.channel != impl_->channel && frame.channel != 0) {
            if (impl_->others) impl_->others(frame);
            continue;
        }
        if (frame.frame_type != AMQP_FRAME_METHOD) continue;
        auto const& method = frame.payload.method;
        switch (method.id) {
        case AMQP_BASIC_RETURN_METHOD:
            returned = true;
            if (auto content = read_content(connection, frame.channel); !content) return fail(content.error());
            continue;
        case AMQP_BASIC_NACK_METHOD:
            return fail(ErrorKind::Unavailable, "publish to {}: the broker could not store the message", message.queue);
        case AMQP_BASIC_ACK_METHOD:
            amqp_maybe_release_buffers_on_channel(connection.raw(), impl_->channel);
            if (returned) return fail(ErrorKind::NotFound, "publish to {}: there is no such queue", message.queue);
            return {};
        case AMQP_CHANNEL_CLOSE_METHOD:
        case AMQP_CONNECTION_CLOSE_METHOD:
            impl_->open = false;
            connection.broken();
            return fail(close_error(method, "publish to " + message.queue));
        default: continue;
        }
    }
}

namespace {

Result<std::optional<Delivery>> get(Connection& connection, amqp_channel_t channel, std::string const& queue, bool keep,
                                    Result<void>& state) {
    auto reply = amqp_basic_get(connection.raw(), channel, bytes(queue), keep ? 0 : 1);
    state = connection.check(reply, "get from queue " + queue, channel);
    if (!state) return fail(state.error());
    if (reply.reply.id != AMQP_BASIC_GET_OK_METHOD) return std::nullopt;
    auto* ok = static_cast<amqp_basic_get_ok_t*>(reply.reply.decoded);
    auto tag = ok->delivery_tag;
    bool redelivered = ok->redelivered;
    auto delivery = read_content(connection, channel);
    if (!delivery) {
        state = fail(delivery.error());
        return fail(delivery.error());
    }
    delivery->queue = queue;
    delivery->redelivered = redelivered;
    if (keep) state = connection.check(amqp_basic_nack(connection.raw(), channel, tag, 0, 1), "give back a message of " + queue);
    if (!state) return fail(state.error());
    amqp_maybe_release_buffers_on_channel(connection.raw(), channel);
    return std::optional<Delivery>(std::move(*delivery));
}

} // namespace

Result<std::optional<Delivery>> Session::get_one(std::string const& queue) {
    if (auto ready = impl_->ready(); !ready) return fail(ready.error());
    Result<void> state;
    auto found = get(*impl_->connection, impl_->channel, queue, false, state);
    if (!state) impl_->open = false;
    return found;
}

Result<std::optional<Delivery>> Session::peek(std::string const& queue) {
    if (auto ready = impl_->ready(); !ready) return fail(ready.error());
    Result<void> state;
    auto found = get(*impl_->connection, impl_->channel, queue, true, state);
    if (!state) impl_->open = false;
    return found;
}

Result<std::vector<Delivery>> Session::sift(std::string const& queue, std::function<bool(Delivery const&)> wanted,
                                            std::size_t limit) {
    if (auto ready = impl_->ready(); !ready) return fail(ready.error());
    auto& connection = *impl_->connection;
    std::vector<Delivery> taken;
    std::vector<std::uint64_t> back;
    Result<void> state;
    for (std::size_t i = 0; i < limit && state; ++i) {
        auto reply = amqp_basic_get(connection.raw(), impl_->channel, bytes(queue), 0);
        state = connection.check(reply, "get from queue " + queue, impl_->channel);
        if (!state || reply.reply.id != AMQP_BASIC_GET_OK_METHOD) break;
        auto* ok = static_cast<amqp_basic_get_ok_t*>(reply.reply.decoded);
        auto tag = ok->delivery_tag;
        bool redelivered = ok->redelivered;
        auto delivery = read_content(connection, impl_->channel);
        if (!delivery) {
            state = fail(delivery.error());
            break;
        }
        delivery->queue = queue;
        delivery->redelivered = redelivered;
        if (wanted(*delivery)) {
            state = connection.check(amqp_basic_ack(connection.raw(), impl_->channel, tag, 0),
                                     "take a message of " + queue);
            taken.push_back(std::move(*delivery));
        } else {
            back.push_back(tag);
        }
        amqp_maybe_release_buffers_on_channel(connection.raw(), impl_->channel);
    }
    for (auto tag : back)
        if (state)
            state = connection.check(amqp_basic_nack(connection.raw(), impl_->channel, tag, 0, 1),
                                     "give back a message of " + queue);
    if (!state) {
        impl_->open = false;
        return fail(state.error());
    }
    return taken;
}

Result<void> declare_ocrd_exchange(Session& session, OcrdTopology const& topology) {
    return session.ensure_exchange(topology.exchange, topology.durable_exchange);
}

Result<QueueState> look_at_ocrd_queue(Session& session, OcrdTopology const& topology, std::string const& queue) {
    auto state = session.state(queue);
    if (!state) return state;
    if (auto bound = session.bind(queue, topology.exchange, queue); !bound) return fail(bound.error());
    return state;
}

Result<void> declare_ocrd_queue(Session& session, OcrdTopology const& topology, std::string const& queue) {
    if (auto made = session.ensure_exchange(topology.exchange, topology.durable_exchange); !made) return made;
    if (auto made = session.ensure_queue(queue, topology.durable_queues); !made) return made;
    return session.bind(queue, topology.exchange, queue);
}

Result<std::uint32_t> declare_work_queue(Session& session, std::string const& queue) {
    auto dead = queue.substr(0, queue.rfind('.')) + ".dead";
    if (auto declared = session.declare_quorum(dead); !declared) return declared;
    return session.declare_quorum(queue, {.delivery_limit = 20, .dead_letter_to = dead});
}

} // namespace ocrctl::queue
