// RabbitMQ as we use it: durable queues on the default exchange, OCR-D's transient ones on its own, publishing with
// confirms, consuming with acknowledgements. librabbitmq blocks and is not thread safe, so each connection belongs to
// one thread of its own, which sleeps in poll() on the socket and an eventfd: an idle connection sends at once and
// costs nothing.
//
//   Publisher   many publishes in flight, each awaited until the broker has it on disk
//   Consumer    deliveries as calls on an executor; ack, nack
//   Session     blocking, for one-off things: declare, peek, purge
#pragma once

#include "lib/async/asio.hpp"
#include "lib/base/error.hpp"
#include "lib/base/secret.hpp"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::queue {

/// "amqp://user:password@host:5672/vhost", parts percent-encoded; no vhost or "/" means "/", as does "%2F".
struct BrokerUrl {
    std::string host = "127.0.0.1";
    int port = 5672;
    std::string user = "guest";
    Secret password{"guest"};
    std::string vhost = "/";

    /// Without the password: for messages and logs.
    std::string shown() const;
    /// With it: for a file of mode 0600.
    Secret full() const;
};

/// Invalid, naming the part that is wrong. Default user and password are guest, as in OCR-D.
Result<BrokerUrl> parse_broker_url(std::string_view text);

struct Message {
    std::string queue; // routing key
    std::string body;
    std::string message_id;
    bool persistent = true;
    std::string exchange; // empty: the default exchange, on which the key is the queue's name
    /// After this time it is not delivered any more, nor redelivered after its consumer died; 0: never.
    std::chrono::milliseconds expires_after{0};
};

/// A message and the place it has in its connection; tags of a lost connection are ignored by ack and nack.
struct Tag {
    std::uint64_t generation = 0, number = 0;
};
struct Delivery {
    std::string queue, body, message_id;
    bool redelivered = false;
    Tag tag;
};

struct QueueOptions {
    int delivery_limit = 0;        // x-delivery-limit; 0: none
    std::string dead_letter_to;    // a queue name: at-least-once dead-lettering into it over the default exchange
};

/// What OCR-D declares (network protocol 3.1): whoever declares first decides about durability, others must use the
/// same.
struct OcrdTopology {
    std::string exchange = "ocrd-network-default";
    bool durable_exchange = false, durable_queues = false;
};

/// A queue as a passive declaration shows it.
struct QueueState {
    std::uint32_t messages = 0, consumers = 0; // messages: ready ones, not those that a consumer holds
};

/// One connection, used from one thread, blocking; each call has a limit of its own (10 s).
/// Any error that the broker answers closes the channel; the next call opens another one.
class Session {
public:
    static Result<Session> open(BrokerUrl const& url, std::string const& connection_name);
    Session(Session&&) noexcept;
    Session& operator=(Session&&) noexcept;
    ~Session();

    /// A durable quorum queue. Conflict if it exists with other arguments. Says how many messages wait in it.
    Result<std::uint32_t> declare_quorum(std::string const& queue, QueueOptions const& options = {});
    /// A durable classic queue, as OCR-D declares its own (not transient).
    Result<std::uint32_t> declare_classic(std::string const& queue);
    /// Messages that wait (ready) in it, NotFound if there is no such queue.
    Result<std::uint32_t> count(std::string const& queue);
    Result<std::uint32_t> consumers(std::string const& queue);
    Result<QueueState> state(std::string const& queue);
    /// A direct exchange: what exists is left as it is, a missing one is made.
    Result<void> ensure_exchange(std::string const& exchange, bool durable);
    /// A classic queue: what exists is left as it is, a missing one is made.
    Result<void> ensure_queue(std::string const& queue, bool durable);
    /// May be repeated. NotFound: no such queue or exchange.
    Result<void> bind(std::string const& queue, std::string const& exchange, std::string const& key);
    Result<std::uint32_t> purge(std::string const& queue);
    Result<void> delete_queue(std::string const& queue);
    /// Published and confirmed.
    Result<void> publish(Message const& message);
    /// Takes the first message out of the queue (acknowledged), nothing if it is empty.
    Result<std::optional<Delivery>> get_one(std::string const& queue);
    /// Takes those ready messages out (at most `limit` are looked at) for which `wanted` says so; the others go back to
    /// their places. Says what it took. Not for queues with a delivery limit.
    Result<std::vector<Delivery>> sift(std::string const& queue, std::function<bool(Delivery const&)> wanted,
                                       std::size_t limit = 1000);
    /// Looks at the first message and leaves it in its place. Not for queues with a delivery limit: it counts there.
    Result<std::optional<Delivery>> peek(std::string const& queue);

    struct Impl;
    explicit Session(std::unique_ptr<Impl> impl);

private:
    friend class Link;
    std::unique_ptr<Impl> impl_;
};

/// The queue of a target, ocrctl.<deployment>.<target>: quorum, delivery limit 20 as a backstop, at-least-once dead-lettering into
/// <same prefix>.dead, which it declares too. Server and Workers both call it: the arguments are the same everywhere.
Result<std::uint32_t> declare_work_queue(Session& session, std::string const& queue);

/// Makes OCR-D's exchange if it is missing.
Result<void> declare_ocrd_exchange(Session& session, OcrdTopology const& topology);
/// The queue of an OCR-D Worker, bound as the Worker binds it. It is the Worker that makes it: NotFound if it has not.
Result<QueueState> look_at_ocrd_queue(Session& session, OcrdTopology const& topology, std::string const& queue);
/// A queue for results, made as the Worker makes it if it is missing, and bound.
Result<void> declare_ocrd_queue(Session& session, OcrdTopology const& topology, std::string const& queue);

/// A connection came, went, or was refused again; `error` says why it is down. Not repeated while nothing changes.
struct LinkEvent {
    bool up = false;
    bool blocked = false; // the broker takes no publishes for now (memory or disk alarm)
    Error error;
    std::uint64_t generation = 0;
};

struct LinkOptions {
    std::string name = "ocrctl"; // shown by the broker beside the connection
    std::chrono::seconds heartbeat{20};
    std::chrono::milliseconds back_off_min{50}, back_off_max{2000};
    /// Publisher: how long a confirm may take before the connection is made anew and the message sent again; doubled each time until
    /// a confirm comes. A quorum queue that has lost its leader confirms nothing and says nothing.
    std::chrono::milliseconds confirm_limit{10'000};
    /// Called on the connection's thread after each (re)connection before anything else is done with it: declare here
    /// what the connection needs. An error closes the connection and is retried.
    std::function<Result<void>(Session&)> on_connected;
    /// Posted to the executor.
    std::function<void(LinkEvent)> on_link;
};

/// Publishes to queues and waits for the broker's confirm.
///
/// Owns a connection and its thread; reconnects by itself. The functions may be called from any thread. stop() (also the
/// destructor) fails what is in flight with Unavailable and joins the thread.
class Publisher {
public:
    Publisher(asio::any_io_executor executor, BrokerUrl url, LinkOptions options = {}, std::size_t window = 1024);
    ~Publisher();

    /// Returns when the broker has it on disk. What lacks a confirm when the connection is lost is sent again after
    /// the reconnection: a message can arrive twice, effects are recorded once. `limit` 0: as long as it takes.
    /// Errors: NotFound (no queue takes it), Timeout (whether it arrived is unknown), Unavailable (stopped, cancelled).
    awaitable<Result<void>> publish(Message message, std::chrono::milliseconds limit = std::chrono::seconds(30));

    /// The same for many: they share windows; resumed once, when the last one is decided. One Result each.
    awaitable<std::vector<Result<void>>> publish_all(std::vector<Message> messages,
                                                     std::chrono::milliseconds limit = std::chrono::seconds(30));

    /// Work on the connection's thread with its Session (declare a queue, look at the epoch): "what" names it in errors.
    /// Waits for the connection up to `limit`.
    awaitable<Result<void>> with_session(std::function<Result<void>(Session&)> work,
                                         std::chrono::milliseconds limit = std::chrono::seconds(30));

    bool connected() const noexcept;
    void stop();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// Takes deliveries of one or more queues.
///
/// Owns a connection and its thread; reconnects by itself and consumes again; a queue that was deleted is waited for.
/// on_delivery is posted to the executor in order. What is unacknowledged when the connection is lost comes again with
/// `redelivered`, under another generation; acknowledging the old tag does nothing. stop() (also the destructor)
/// closes the connection (unacknowledged messages go back) and joins the thread; no call happens on the executor that
/// was not posted before.
class Consumer {
public:
    struct Options : LinkOptions {
        std::vector<std::string> queues;
        std::uint16_t prefetch = 1; // per queue
    };

    Consumer(asio::any_io_executor executor, BrokerUrl url, Options options, std::function<void(Delivery)> on_delivery);
    ~Consumer();

    void ack(Tag tag);
    /// This one and all before it of the same connection.
    void ack_multiple(Tag tag);
    void nack(Tag tag, bool requeue);

    /// Takes no more deliveries; those that are out can still be acknowledged. resume() undoes it.
    void pause();
    void resume();

    bool connected() const noexcept;
    /// Up and consuming all its queues.
    bool consuming() const noexcept;
    void stop();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace ocrctl::queue
