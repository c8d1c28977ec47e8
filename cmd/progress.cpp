#include "cmd/progress.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>

namespace ocrctl {

using Clock = std::chrono::steady_clock;

std::string clock_text(std::chrono::seconds time) {
    auto s = time.count();
    if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
    return fmt::format("{}:{:02}", s / 60, s % 60);
}

bool stderr_is_terminal() {
    auto const* term = std::getenv("TERM");
    return ::isatty(STDERR_FILENO) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

Progress::Progress(std::size_t total, bool terminal, bool quiet)
    : total_(total), terminal_(terminal), quiet_(quiet), begun_(Clock::now()), last_draw_() {
    draw(true);
}

Progress::~Progress() { wipe(); }

void Progress::done(std::string const& line) {
    ++done_;
    if (!terminal_ && !quiet_) fmt::print(stderr, "[{}/{}] {}\n", done_, total_, line);
    draw(done_ == total_);
}

void Progress::set(std::size_t done) {
    done_ = done;
    draw(false);
}

void Progress::failed(std::string const& line) {
    if (terminal_ && !quiet_) {
        wipe();
        fmt::print(stderr, "{}\n", line);
    }
    done(line);
}

void Progress::tick() { draw(false); }

void Progress::wipe() {
    if (!drawn_) return;
    std::fputs("\r\x1b[K", stderr);
    drawn_ = false;
}

void Progress::draw(bool force) {
    if (!terminal_ || quiet_ || total_ == 0) return;
    auto const now = Clock::now();
    if (!force && now - last_draw_ < std::chrono::milliseconds(100)) return;
    last_draw_ = now;
    winsize window{};
    int width = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : 80;
    auto const elapsed = std::chrono::duration<double>(now - begun_).count();
    std::string tail = fmt::format(" {}/{}", done_, total_);
    if (done_ > 0 && elapsed > 0.2) {
        double const rate = static_cast<double>(done_) / elapsed;
        tail += rate >= 0.1 ? fmt::format("  {:.2f} pages/s", rate) : fmt::format("  {:.1f} s/page", 1 / rate);
        auto left = std::chrono::seconds(static_cast<long>(static_cast<double>(total_ - done_) / rate + 0.5));
        tail += done_ < total_ ? fmt::format("  {} left", clock_text(left)) : fmt::format("  {}", clock_text(std::chrono::seconds(static_cast<long>(elapsed))));
    } else {
        tail += fmt::format("  {}", clock_text(std::chrono::seconds(static_cast<long>(elapsed))));
    }
    int const room = std::max(0, std::min(40, width - static_cast<int>(tail.size()) - 4));
    int const full = static_cast<int>(static_cast<std::size_t>(room) * done_ / total_);
    fmt::print(stderr, "\r\x1b[K[{}{}]{}", std::string(static_cast<std::size_t>(full), '#'), std::string(static_cast<std::size_t>(room - full), '.'), tail);
    std::fflush(stderr);
    drawn_ = true;
}

} // namespace ocrctl
