#include "deployer/agent_client.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace ocrctl::deployer {

Result<AgentClient> AgentClient::connect(std::filesystem::path const& socket) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (socket.native().size() >= sizeof address.sun_path) return fail(ErrorKind::Invalid, "{}: too long for a socket", socket.string());
    std::memcpy(address.sun_path, socket.c_str(), socket.native().size());
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return fail(errno_error(errno, "socket"));
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
        return fail(ErrorKind::Unavailable, "no agent answers on {}: {}", socket.string(), std::strerror(errno));
    return AgentClient(std::move(fd));
}

Result<void> AgentClient::send(Json const& request) {
    auto line = dump(request) + "\n";
    std::string_view rest = line;
    while (!rest.empty()) {
        auto size = ::send(fd_.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return fail(ErrorKind::Unavailable, "the agent has gone: {}", std::strerror(errno));
        rest.remove_prefix(static_cast<std::size_t>(size));
    }
    return {};
}

Result<Json> AgentClient::receive(std::chrono::milliseconds limit) {
    auto deadline = std::chrono::steady_clock::now() + limit;
    for (;;) {
        if (auto end = buffer_.find('\n'); end != std::string::npos) {
            auto json = parse_json(std::string_view(buffer_).substr(0, end));
            buffer_.erase(0, end + 1);
            return json;
        }
        auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
        pollfd wait{fd_.get(), POLLIN, 0};
        int ready = left > 0 ? ::poll(&wait, 1, static_cast<int>(left)) : 0;
        if (ready < 0 && errno == EINTR) continue;
        if (ready == 0) return fail(ErrorKind::Timeout, "the agent does not answer");
        char chunk[65536];
        auto size = ::read(fd_.get(), chunk, sizeof chunk);
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return fail(ErrorKind::Unavailable, "the agent has gone");
        buffer_.append(chunk, static_cast<std::size_t>(size));
    }
}

Result<Json> AgentClient::request(Json const& request, std::chrono::milliseconds limit) {
    auto sent = send(request);
    if (!sent) return std::unexpected(sent.error());
    auto reply = receive(limit);
    if (!reply) return reply;
    if (!reply->value("ok", false)) return fail(ErrorKind::Unavailable, "{}", reply->value("error", reply->value("detail", std::string("the agent refuses"))));
    return reply;
}

} // namespace ocrctl::deployer
