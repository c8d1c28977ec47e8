// How far a command is: a bar with rate and time left on a terminal, a line per page otherwise. Goes to stderr; stdout is
// the result's.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace ocrctl {

/// One owner, one thread. The destructor ends the bar's line.
class Progress {
public:
    /// `total` pages to do. `terminal`: draw a bar instead of lines; `quiet`: nothing at all.
    Progress(std::size_t total, bool terminal, bool quiet = false);
    ~Progress();

    /// One more is done. `line` is shown where there is no bar.
    void done(std::string const& line);
    /// The same for one that failed: its line stays above the bar.
    void failed(std::string const& line);
    /// For counts that come from elsewhere (a server).
    void set(std::size_t done);
    /// Draws again, at most ten times a second.
    void tick();

    std::size_t count() const noexcept { return done_; }

private:
    void draw(bool force);
    void wipe();
    std::size_t total_, done_ = 0;
    bool terminal_, quiet_, drawn_ = false;
    std::chrono::steady_clock::time_point begun_, last_draw_;
};

/// "0:07", "12:30", "3:02:11"
std::string clock_text(std::chrono::seconds time);

/// stderr is a terminal that understands \r and erasing.
bool stderr_is_terminal();

} // namespace ocrctl
