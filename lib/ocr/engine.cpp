#include "lib/ocr/engine.hpp"

#include "lib/ocr/image.hpp"

#include <array>
#include <cerrno>
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

namespace ocrctl::ocr {

namespace {

constexpr std::uint32_t kLargestFrame = 64u << 20;

bool read_all(int fd, char* to, std::size_t size) {
    while (size > 0) {
        auto got = ::read(fd, to, size);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        to += got;
        size -= static_cast<std::size_t>(got);
    }
    return true;
}

bool write_all(int fd, char const* from, std::size_t size) {
    while (size > 0) {
        auto put = ::send(fd, from, size, MSG_NOSIGNAL);
        if (put < 0 && errno == ENOTSOCK) put = ::write(fd, from, size);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        from += put;
        size -= static_cast<std::size_t>(put);
    }
    return true;
}

std::string kind_text(ErrorKind kind) {
    switch (kind) {
    case ErrorKind::NotFound:
        return "not-found";
    case ErrorKind::Invalid:
    case ErrorKind::Usage:
        return "invalid";
    case ErrorKind::Denied:
        return "denied";
    case ErrorKind::TooLarge:
        return "too-large";
    default:
        return "internal";
    }
}

Json refusal(Error const& error) {
    return {{"ok", false}, {"error", error.message()}, {"kind", kind_text(error.kind())}};
}

PageJob page_job(Json const& request) {
    PageJob job;
    job.processor = request.value("processor", "");
    job.parameters = request.value("parameters", Json::object());
    job.workspace = request.value("workspace", "");
    job.staging = request.value("staging", "");
    job.input_groups = request.value("input_groups", std::vector<std::string>{});
    job.output_groups = request.value("output_groups", std::vector<std::string>{});
    job.page = request.at("page").get<PageInput>();
    return job;
}

Json answer_page(Processors& processors, Json const& request) {
    std::string log;
    auto outcome = processors.page(page_job(request), log);
    return {{"outcome", outcome}, {"log", log}};
}

} // namespace

Json answer(Processors& processors, Json const& request) {
    auto op = request.is_object() ? request.value("op", "") : std::string();
    try {
        if (op == "load") {
            auto loaded = processors.load(request.value("processor", ""), request.value("parameters", Json::object()));
            if (!loaded) return refusal(loaded.error());
            return {{"ok", true}, {"provenance", *loaded}};
        }
        if (op == "page") return answer_page(processors, request);
        if (op == "frames") {
            auto frames = count_frames(request.value("path", ""));
            if (!frames) return refusal(frames.error());
            return {{"ok", true}, {"frames", *frames}};
        }
    } catch (std::exception const& problem) {
        Error error(ErrorKind::Invalid, fmt::format("request {}: {}", op, problem.what()));
        if (op != "page") return refusal(error);
        PageOutcome outcome;
        outcome.error = error.message();
        return {{"outcome", outcome}, {"log", ""}};
    }
    return refusal(Error(ErrorKind::Invalid, fmt::format("there is no request \"{}\"", op)));
}

int serve(int socket) {
    Processors processors;
    std::string body;
    for (;;) {
        std::array<unsigned char, 4> length{};
        if (!read_all(socket, reinterpret_cast<char*>(length.data()), length.size())) return 0;
        std::uint32_t size =
            std::uint32_t{length[0]} << 24 | std::uint32_t{length[1]} << 16 | std::uint32_t{length[2]} << 8 | length[3];
        if (size > kLargestFrame) return 1;
        body.resize(size);
        if (!read_all(socket, body.data(), size)) return 1;
        auto request = parse_json(body);
        Json reply = request ? Json() : refusal(request.error());
        if (request && request->is_object() && request->value("op", "") == "quit") return 0;
        if (request) reply = answer(processors, *request);
        auto text = dump(reply);
        auto n = static_cast<std::uint32_t>(text.size());
        std::string frame = {static_cast<char>(n >> 24), static_cast<char>(n >> 16), static_cast<char>(n >> 8),
                             static_cast<char>(n)};
        frame += text;
        if (!write_all(socket, frame.data(), frame.size())) return 0;
    }
}

} // namespace ocrctl::ocr
