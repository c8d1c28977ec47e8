// Errors as values: what a caller can meet in a healthy program. Broken promises inside our own code abort instead
// (OCRCTL_CHECK); exceptions come only from libraries and stop at the wrapper.
#pragma once

#include <expected>
#include <fmt/format.h>
#include <string>
#include <string_view>

namespace ocrctl {

enum class ErrorKind { None, Usage, Invalid, NotFound, Conflict, Denied, TooLarge, TooMany, Unavailable, Timeout, Partly, Internal };

std::string_view name(ErrorKind kind) noexcept;

/// One sentence without a full stop that says what, where and what to do. Cheap to move, safe to copy.
class Error {
public:
    Error() = default;
    Error(ErrorKind kind, std::string message);

    /// The same error seen from one layer further up: "start worker ocrd-x on ocr1: connection refused".
    Error during(std::string_view action) const;

    ErrorKind kind() const noexcept { return kind_; }
    std::string const& message() const noexcept { return message_; }

    /// The status of an HTTP answer that reports this error; OCR-D's own routes may demand another one.
    int http_status() const noexcept;
    /// The exit code of a command that ends with this error (docs/commands.md).
    int exit_code() const noexcept;

private:
    ErrorKind kind_ = ErrorKind::None;
    std::string message_;
};

template <class T>
using Result = std::expected<T, Error>;

/// `return fail(ErrorKind::NotFound, "no METS at {}", path);`
template <class... Args>
std::unexpected<Error> fail(ErrorKind kind, fmt::format_string<Args...> text, Args&&... args) {
    return std::unexpected<Error>(Error(kind, fmt::format(text, std::forward<Args>(args)...)));
}
inline std::unexpected<Error> fail(Error error) { return std::unexpected<Error>(std::move(error)); }

/// What errno says, after an action: "open /x: No such file or directory". Maps errno to the nearest kind.
Error errno_error(int error_number, std::string_view action);

[[noreturn]] void check_failed(char const* condition, char const* file, int line);

} // namespace ocrctl

/// A promise that our own code keeps; broken, it ends the process with the place.
#define OCRCTL_CHECK(condition)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) ::ocrctl::check_failed(#condition, __FILE__, __LINE__);                                      \
    } while (false)
