#include "lib/hostops/control_client.hpp"

#include "lib/ledger/paths.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace ocrctl::hostops {

Result<ControlClient> ControlClient::connect(std::filesystem::path const& host_dir) {
    auto file = ledger::host_socket_path(host_dir).string();
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (file.size() >= sizeof address.sun_path) return fail(ErrorKind::Invalid, "{} is too long for a socket", file);
    std::memcpy(address.sun_path, file.c_str(), file.size());
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return fail(errno_error(errno, "open a socket"));
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
        return fail(ErrorKind::Unavailable, "no agent listens on {}: {}", file, std::strerror(errno));
    return ControlClient(std::move(fd));
}

Result<void> ControlClient::send(Json const& request) {
    auto line = dump(request) + "\n";
    std::string_view rest = line;
    while (!rest.empty()) {
        auto put = ::send(fd_.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return fail(ErrorKind::Unavailable, "the agent has gone: {}", std::strerror(errno));
        rest.remove_prefix(static_cast<std::size_t>(put));
    }
    return {};
}

Result<Json> ControlClient::receive(std::chrono::milliseconds limit) {
    auto end = std::chrono::steady_clock::now() + limit;
    for (;;) {
        if (auto at = buffer_.find('\n'); at != std::string::npos) {
            auto json = parse_json(std::string_view(buffer_).substr(0, at));
            buffer_.erase(0, at + 1);
            return json;
        }
        auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
        pollfd item{fd_.get(), POLLIN, 0};
        auto ready = ::poll(&item, 1, static_cast<int>(std::max<std::int64_t>(0, left)));
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) return fail(ErrorKind::Timeout, "the agent does not answer");
        std::array<char, 65536> chunk;
        auto got = ::read(fd_.get(), chunk.data(), chunk.size());
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return fail(ErrorKind::Unavailable, "the agent has gone");
        buffer_.append(chunk.data(), static_cast<std::size_t>(got));
    }
}

Result<Json> ControlClient::ask(Json const& request, std::chrono::milliseconds limit) {
    if (auto sent = send(request); !sent) return std::unexpected(sent.error());
    auto reply = receive(limit);
    if (!reply) return reply;
    if (!reply->is_object() || !reply->value("ok", false)) {
        auto kind = ErrorKind::Unavailable;
        auto text = reply->is_object() ? reply->value("kind", std::string()) : std::string();
        for (auto known : {ErrorKind::Invalid, ErrorKind::NotFound, ErrorKind::Conflict, ErrorKind::Denied, ErrorKind::Internal})
            if (name(known) == text) kind = known;
        return fail(kind, "{}", reply->is_object() ? reply->value("error", std::string("the agent refuses")) : dump(*reply));
    }
    return reply;
}

} // namespace ocrctl::hostops
