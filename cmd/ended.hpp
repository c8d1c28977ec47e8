// A command that a signal ends says what that means: kill-all ends a deploy or another kill-all that holds the deployment's lock
// by SIGTERM; a deploy that the user interrupts has started things which go on.
#pragma once

#include <csignal>
#include <unistd.h>

namespace ocrctl {

namespace detail {
inline void say_at(int signal, void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESETHAND; // the process ends as it would have: by the signal
    ::sigaction(signal, &action, nullptr);
}
} // namespace detail

inline void say_when_ended() {
    detail::say_at(SIGTERM, [](int signal) {
        constexpr char kSentence[] = "ended by another kill-all or by SIGTERM\n";
        (void)!::write(2, kSentence, sizeof kSentence - 1);
        ::raise(signal);
    });
}

inline void say_what_goes_on_when_interrupted() {
    detail::say_at(SIGINT, [](int signal) {
        constexpr char kSentence[] = "\ninterrupted: what was started goes on; ocrctl deploy completes it, ocrctl kill-all ends it\n";
        (void)!::write(2, kSentence, sizeof kSentence - 1);
        ::raise(signal);
    });
}

} // namespace ocrctl
