// A password, token or key: prints as ***; only reveal() gives it away, where it goes into a file or descriptor.
#pragma once

#include <fmt/format.h>
#include <string>

namespace ocrctl {

class Secret {
public:
    Secret() = default;
    explicit Secret(std::string value) : value_(std::move(value)) {}
    std::string const& reveal() const noexcept { return value_; }
    bool empty() const noexcept { return value_.empty(); }
    friend bool operator==(Secret const&, Secret const&) = default;

private:
    std::string value_;
};

} // namespace ocrctl

template <>
struct fmt::formatter<ocrctl::Secret> : fmt::formatter<std::string_view> {
    template <class Context>
    auto format(ocrctl::Secret const&, Context& context) const {
        return fmt::formatter<std::string_view>::format("***", context);
    }
};
