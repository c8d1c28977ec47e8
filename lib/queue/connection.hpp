// librabbitmq's connection, owned. Internal to lib/queue: amqp.h appears only in this folder's sources.
#pragma once

#include "lib/queue/broker.hpp"

#include <memory>
#include <amqp.h>

namespace ocrctl::queue {

/// One connection. Not thread-safe: whoever's thread it is. The destructor closes it, waiting at most a second.
class Connection {
public:
    static Result<std::unique_ptr<Connection>> open(BrokerUrl const& url, std::string const& name,
                                                    std::chrono::seconds heartbeat);
    ~Connection();
    Connection(Connection const&) = delete;

    amqp_connection_state_t raw() const noexcept { return state_; }
    int fd() const noexcept { return amqp_get_sockfd(state_); }

    /// What the last RPC answered; `action` is the beginning of the sentence. A channel that the broker closed is
    /// acknowledged as closed (it needs opening again), a closed connection is marked broken.
    Result<void> last_reply(std::string const& action);
    Result<void> check(amqp_rpc_reply_t const& reply, std::string const& action, amqp_channel_t channel);
    Result<void> check(int status, std::string const& action);

    /// The socket is of no more use: the destructor does not say goodbye.
    void broken() noexcept { broken_ = true; }
    bool is_broken() const noexcept { return broken_; }

private:
    explicit Connection(amqp_connection_state_t state) : state_(state) {}
    amqp_connection_state_t state_;
    bool broken_ = false;
    bool logged_in_ = false;
};

/// Borrows a connection; opens channels from number 2 on (channel 1 is the Link's).
struct Session::Impl {
    std::unique_ptr<Connection> owned;
    Connection* connection = nullptr;
    amqp_channel_t channel = 1;
    bool open = false, confirming = false;
    std::function<void(amqp_frame_t&)> others; // takes frames of other channels that come while we wait for ours

    Result<void> ready();
    Result<void> after(std::string const& action);
};

inline amqp_bytes_t bytes(std::string_view text) { return {text.size(), const_cast<char*>(text.data())}; }
inline std::string text(amqp_bytes_t value) { return {static_cast<char const*>(value.bytes), value.len}; }

/// What the broker said in a channel.close or connection.close.
Error close_error(amqp_method_t const& method, std::string const& action);

/// Reads the content that follows a deliver, get-ok or return on this channel.
Result<Delivery> read_content(Connection& connection, amqp_channel_t channel, std::string* correlation = nullptr);

/// Sends; waits for nothing.
Result<void> send(Connection& connection, amqp_channel_t channel, Message const& message, std::string_view correlation);

} // namespace ocrctl::queue
