#include "deployer/services.hpp"

#include "lib/base/files.hpp"
#include "lib/queue/broker.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace ocrctl::deployer {

namespace {

using Clock = std::chrono::steady_clock;

/// Until the descriptor is ready for `events`, or the time is over.
bool wait_for(int fd, short events, Clock::time_point deadline) {
    for (;;) {
        auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
        if (left <= 0) return false;
        pollfd entry{fd, events, 0};
        int ready = ::poll(&entry, 1, static_cast<int>(left));
        if (ready > 0) return true;
        if (ready < 0 && errno != EINTR) return false;
    }
}

Result<Fd> connect_to(std::string const& host, int port, Clock::time_point deadline) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    addrinfo* found = nullptr;
    if (int problem = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); problem != 0)
        return fail(ErrorKind::Unavailable, "{}", ::gai_strerror(problem));
    std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, ::freeaddrinfo);
    std::string why = "no address";
    for (auto const* address = found; address; address = address->ai_next) {
        Fd fd(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        if (!fd) continue;
        int error = ::connect(fd.get(), address->ai_addr, address->ai_addrlen) == 0 ? 0 : errno;
        if (error == EINPROGRESS) {
            socklen_t size = sizeof error;
            if (!wait_for(fd.get(), POLLOUT, deadline)) error = ETIMEDOUT;
            else ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        }
        if (error == 0) return fd;
        why = std::strerror(error);
    }
    return fail(ErrorKind::Unavailable, "{}", why);
}

void put_int(std::string& out, std::int32_t value) {
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

/// OP_MSG {hello: 1, $db: "admin"}: what every driver asks first, before it logs in.
std::string hello() {
    using namespace std::string_literals;
    std::string document = "\x10hello\0"s;
    put_int(document, 1);
    document += "\x02$db\0"s;
    put_int(document, 6);
    document += "admin\0"s;
    std::string body;
    put_int(body, 0);     // flags
    body.push_back('\0'); // one document
    put_int(body, static_cast<std::int32_t>(document.size() + 5));
    body += document;
    body.push_back('\0');
    std::string message;
    put_int(message, static_cast<std::int32_t>(body.size() + 16));
    put_int(message, 1); // request
    put_int(message, 0);
    put_int(message, 2013);
    return message + body;
}

} // namespace

Result<void> mongo_answers(std::string const& host, int port, std::chrono::milliseconds limit) {
    auto deadline = Clock::now() + limit;
    auto fd = connect_to(host, port, deadline);
    if (!fd) return std::unexpected(fd.error());
    auto question = hello();
    if (::send(fd->get(), question.data(), question.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(question.size())) return fail(errno_error(errno, "send"));
    std::string answer;
    auto size = [&] {
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < 4; ++i) value |= std::uint32_t{static_cast<unsigned char>(answer[i])} << (8 * i);
        return value;
    };
    while (answer.size() < 16 || answer.size() < size()) {
        if (answer.size() >= 16 && size() > (1u << 20)) break;
        std::array<char, 4096> buffer;
        if (!wait_for(fd->get(), POLLIN, deadline)) return fail(ErrorKind::Unavailable, "it accepts connections, but does not answer as MongoDB does");
        auto got = ::recv(fd->get(), buffer.data(), buffer.size(), 0);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (got <= 0) break;
        answer.append(buffer.data(), static_cast<std::size_t>(got));
    }
    using namespace std::string_literals;
    bool op_msg = answer.size() > 16 && answer.compare(12, 4, "\xdd\x07\0\0"s) == 0;
    if (!op_msg || answer.find("\x01ok\0"s) == std::string::npos) return fail(ErrorKind::Unavailable, "what answers there is no MongoDB");
    return {};
}

std::vector<std::string> services_missing(config::Deployment const& config, Plan const& plan) {
    std::vector<std::string> problems;
    auto const& queue = config.process_queue;
    if (plan.queue_kind == "external") {
        queue::BrokerUrl url;
        url.host = queue.address;
        url.port = config::queue_port(queue);
        url.user = plan.queue_user;
        url.vhost = queue.vhost;
        if (queue.credentials) url.password = queue.credentials->password;
        auto session = queue::Session::open(url, "ocrctl deploy");
        if (!session)
            problems.push_back(fmt::format("process_queue: the broker at {} (not started by ocrctl: skip_deployment) does not answer: {}", config::host_port(url.host, url.port),
                                           session.error().message()));
    }
    auto const& database = config.database;
    if (plan.database_kind == "external" && database.skip_deployment) {
        auto port = config::database_port(database);
        if (auto answers = mongo_answers(database.address, port); !answers)
            problems.push_back(fmt::format("database: the MongoDB at {} (not started by ocrctl: skip_deployment) does not answer: {}", config::host_port(database.address, port),
                                           answers.error().message()));
    }
    return problems;
}

} // namespace ocrctl::deployer
