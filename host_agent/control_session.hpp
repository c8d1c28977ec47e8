// One connection on the agent's control socket. Internal to the host agent.
#pragma once

#include "lib/async/event.hpp"
#include "lib/model/json.hpp"

#include <boost/asio/local/stream_protocol.hpp>
#include <deque>
#include <memory>
#include <string>

namespace ocrctl::host_agent {

/// Shared by its reader, its writer and the unit of its Worker. Lives on the io thread.
struct Session {
    Session(asio::local::stream_protocol::socket peer, asio::any_io_executor executor)
        : socket(std::move(peer)), wake(std::move(executor)) {}
    asio::local::stream_protocol::socket socket;
    std::deque<std::string> out;
    Event wake; // something to write, everything written, or closed
    bool open = true;
    std::string slot; // of the Worker at the other end

    void send(Json const& json) {
        if (!open) return;
        out.push_back(dump(json) + "\n");
        wake.notify_all();
    }
    void close() {
        open = false;
        boost::system::error_code ignored;
        socket.close(ignored);
        wake.notify_all();
    }
};
using SessionPtr = std::shared_ptr<Session>;

} // namespace ocrctl::host_agent
