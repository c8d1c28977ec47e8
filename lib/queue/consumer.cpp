#include "lib/queue/link.hpp"

#include <unordered_map>

namespace ocrctl::queue {

struct Consumer::Impl : Link {
    Impl(asio::any_io_executor executor, BrokerUrl url, Consumer::Options options, std::function<void(Delivery)> on_delivery)
        : Link(std::move(executor), std::move(url), options, "queue"), queues_(std::move(options.queues)), prefetch_(options.prefetch),
          handler_(std::make_shared<std::function<void(Delivery)>>(std::move(on_delivery))) {}

    enum class Do { Ack, AckMultiple, Nack, Requeue };
    struct Command {
        Do what;
        Tag tag;
    };

    void submit(Command command) {
        {
            std::lock_guard lock(mutex_);
            commands_.push_back(command);
        }
        wake();
    }

    void want(bool consuming) {
        wanted_ = consuming;
        wake();
    }

    bool consuming() const noexcept { return up() && consuming_; }

    void close() {
        *alive_ = false;
        stop();
    }

protected:
    Result<void> set_up(Connection& connection) override {
        {
            std::lock_guard lock(mutex_);
            commands_.clear(); // of an earlier connection
        }
        amqp_basic_qos(connection.raw(), kChannel, 0, prefetch_, 0);
        if (auto set = connection.check(amqp_get_rpc_reply(connection.raw()), "set the prefetch", kChannel); !set) return set;
        consuming_ = false;
        return start_stop(connection);
    }

    Result<void> work(Connection& connection) override {
        if (auto done = start_stop(connection); !done) return done;
        return acknowledge(connection);
    }

    void before_close(Connection& connection) override { (void)acknowledge(connection); }

    Result<void> acknowledge(Connection& connection) {
        std::vector<Command> commands;
        {
            std::lock_guard lock(mutex_);
            commands.swap(commands_);
        }
        for (auto const& command : commands) {
            if (command.tag.generation != generation()) continue;
            int status = 0;
            switch (command.what) {
            case Do::Ack: status = amqp_basic_ack(connection.raw(), kChannel, command.tag.number, 0); break;
            case Do::AckMultiple: status = amqp_basic_ack(connection.raw(), kChannel, command.tag.number, 1); break;
            case Do::Nack: status = amqp_basic_nack(connection.raw(), kChannel, command.tag.number, 0, 0); break;
            case Do::Requeue: status = amqp_basic_nack(connection.raw(), kChannel, command.tag.number, 0, 1); break;
            }
            if (auto sent = connection.check(status, "acknowledge"); !sent) return sent;
        }
        return {};
    }

    Result<void> on_frame(Connection& connection, amqp_frame_t& frame) override {
        auto const& method = frame.payload.method;
        if (method.id == AMQP_BASIC_CANCEL_METHOD)
            return fail(ErrorKind::NotFound, "consume: the queue was deleted or has lost its leader");
        if (method.id != AMQP_BASIC_DELIVER_METHOD) return {};
        auto* deliver = static_cast<amqp_basic_deliver_t*>(method.decoded);
        Tag tag{generation(), deliver->delivery_tag};
        auto queue = text(deliver->routing_key);
        bool redelivered = deliver->redelivered;
        auto consumer = text(deliver->consumer_tag);
        auto delivery = read_content(connection, frame.channel);
        if (!delivery) return fail(delivery.error());
        if (!wanted_) // taken off the queue before the broker heard that we pause
            return connection.check(amqp_basic_nack(connection.raw(), kChannel, tag.number, 0, 1), "give back a message");
        if (auto known = names_.find(consumer); known != names_.end()) queue = known->second;
        delivery->queue = std::move(queue);
        delivery->redelivered = redelivered;
        delivery->tag = tag;
        asio::post(executor(), [alive = alive_, handler = handler_, delivery = std::move(*delivery)]() mutable {
            if (*alive) (*handler)(std::move(delivery));
        });
        return {};
    }

    void on_lost(Error const&) override { consuming_ = false; }

private:
    Result<void> start_stop(Connection& connection) {
        bool wanted = wanted_;
        if (wanted == consuming_) return {};
        for (std::size_t i = 0; i < queues_.size(); ++i) {
            auto name = fmt::format("c{}", i);
            if (wanted) {
                names_[name] = queues_[i];
                amqp_basic_consume(connection.raw(), kChannel, bytes(queues_[i]), bytes(name), 0, 0, 0, amqp_empty_table);
            } else {
                amqp_basic_cancel(connection.raw(), kChannel, bytes(name));
            }
            auto done = connection.check(amqp_get_rpc_reply(connection.raw()), "consume from queue " + queues_[i], kChannel);
            if (!done) return done;
        }
        consuming_ = wanted;
        return {};
    }

    std::vector<std::string> queues_;
    std::uint16_t prefetch_;
    std::shared_ptr<std::function<void(Delivery)>> handler_;
    std::shared_ptr<std::atomic<bool>> alive_ = std::make_shared<std::atomic<bool>>(true);
    std::unordered_map<std::string, std::string> names_; // consumer tag -> queue (a dead-lettered message keeps its routing key)
    std::atomic<bool> wanted_{true}, consuming_{false};
    std::mutex mutex_; // guards commands_
    std::vector<Command> commands_;
};

Consumer::Consumer(asio::any_io_executor executor, BrokerUrl url, Options options, std::function<void(Delivery)> on_delivery)
    : impl_(std::make_unique<Impl>(std::move(executor), std::move(url), std::move(options), std::move(on_delivery))) {
    impl_->start();
}

Consumer::~Consumer() { stop(); }

void Consumer::ack(Tag tag) { impl_->submit({Impl::Do::Ack, tag}); }
void Consumer::ack_multiple(Tag tag) { impl_->submit({Impl::Do::AckMultiple, tag}); }
void Consumer::nack(Tag tag, bool requeue) { impl_->submit({requeue ? Impl::Do::Requeue : Impl::Do::Nack, tag}); }
void Consumer::pause() { impl_->want(false); }
void Consumer::resume() { impl_->want(true); }
bool Consumer::connected() const noexcept { return impl_->up(); }
bool Consumer::consuming() const noexcept { return impl_->consuming(); }
void Consumer::stop() { impl_->close(); }

} // namespace ocrctl::queue
