// A command that SIGTERM ends says so: kill-all ends a deploy or another kill-all that holds the deployment's lock.
#pragma once

#include <csignal>
#include <unistd.h>

namespace ocrctl {

inline void say_when_ended() {
    struct sigaction action {};
    action.sa_handler = [](int signal) { // the process ends as it would have: by the signal
        constexpr char kSentence[] = "ended by another kill-all or by SIGTERM\n";
        (void)!::write(2, kSentence, sizeof kSentence - 1);
        ::raise(signal);
    };
    action.sa_flags = SA_RESETHAND;
    ::sigaction(SIGTERM, &action, nullptr);
}

} // namespace ocrctl
