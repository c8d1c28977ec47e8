#include "lib/base/error.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ocrctl {

std::string_view name(ErrorKind kind) noexcept {
    switch (kind) {
    case ErrorKind::None: return "none";
    case ErrorKind::Usage: return "usage";
    case ErrorKind::Invalid: return "invalid";
    case ErrorKind::NotFound: return "not-found";
    case ErrorKind::Conflict: return "conflict";
    case ErrorKind::Denied: return "denied";
    case ErrorKind::TooLarge: return "too-large";
    case ErrorKind::TooMany: return "too-many";
    case ErrorKind::Unavailable: return "unavailable";
    case ErrorKind::Timeout: return "timeout";
    case ErrorKind::Partly: return "partly";
    case ErrorKind::Internal: return "internal";
    }
    return "internal";
}

Error::Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

Error Error::during(std::string_view action) const {
    return Error(kind_, fmt::format("{}: {}", action, message_));
}

int Error::http_status() const noexcept {
    switch (kind_) {
    case ErrorKind::None: return 200;
    case ErrorKind::Usage:
    case ErrorKind::Invalid: return 422;
    case ErrorKind::NotFound: return 404;
    case ErrorKind::Conflict: return 409;
    case ErrorKind::Denied: return 403;
    case ErrorKind::TooLarge: return 413;
    case ErrorKind::TooMany: return 429;
    case ErrorKind::Unavailable: return 503;
    case ErrorKind::Timeout: return 504;
    case ErrorKind::Partly:
    case ErrorKind::Internal: return 500;
    }
    return 500;
}

int Error::exit_code() const noexcept {
    switch (kind_) {
    case ErrorKind::None: return 0;
    case ErrorKind::Usage: return 2;
    case ErrorKind::Partly: return 3;
    case ErrorKind::Internal: return 70;
    default: return 1;
    }
}

Error errno_error(int error_number, std::string_view action) {
    auto kind = ErrorKind::Internal;
    switch (error_number) {
    case ENOENT:
    case ENOTDIR: kind = ErrorKind::NotFound; break;
    case EEXIST:
    case EADDRINUSE: kind = ErrorKind::Conflict; break;
    case EACCES:
    case EPERM:
    case EROFS: kind = ErrorKind::Denied; break;
    case ENOSPC:
    case EDQUOT:
    case ECONNREFUSED:
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ESTALE:
    case ENOMEM: kind = ErrorKind::Unavailable; break;
    case ETIMEDOUT: kind = ErrorKind::Timeout; break;
    default: break;
    }
    return Error(kind, fmt::format("{}: {}", action, std::strerror(error_number)));
}

void check_failed(char const* condition, char const* file, int line) {
    std::fprintf(stderr, "ocrctl: internal error: %s does not hold at %s:%d\n", condition, file, line);
    std::abort();
}

} // namespace ocrctl
