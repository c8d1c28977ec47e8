// What an SshSession holds. Internal to lib/remote: for those who go on with the bare libssh session.
#pragma once

#include "lib/remote/ssh_session.hpp"

#include <libssh/libssh.h>
#include <type_traits>

namespace ocrctl::remote {

struct SshFree {
    void operator()(ssh_session session) const noexcept {
        ssh_disconnect(session);
        ssh_free(session);
    }
    void operator()(ssh_channel channel) const noexcept { ssh_channel_free(channel); }
    void operator()(ssh_key key) const noexcept { ssh_key_free(key); }
    void operator()(ssh_event event) const noexcept { ssh_event_free(event); }
};
template <class T> using SshPtr = std::unique_ptr<std::remove_pointer_t<T>, SshFree>;

/// libssh's last error of a session, without a full stop; never empty.
std::string text_of(ssh_session session);

struct SshSession::Impl {
    SshTarget target;
    SshPtr<ssh_session> session;

    /// `next` gives the next piece of stdin, empty at its end.
    Result<ExecResult> run(std::string const& command, std::function<Result<std::string_view>()> next,
                           std::chrono::milliseconds limit);
    std::unexpected<Error> too_slow(std::string const& command, std::chrono::milliseconds limit) const;
};

} // namespace ocrctl::remote
