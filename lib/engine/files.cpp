#include "lib/engine/files.hpp"

#include "lib/base/files.hpp"

#include <algorithm>
#include <fcntl.h>
#include <unistd.h>

namespace ocrctl::engine {

void settle(PageOutcome& outcome, std::filesystem::path const& staging, bool flushed) {
    for (auto& file : outcome.files) {
        auto path = staging / file.path;
        std::error_code error;
        if (!flushed) {
            Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
            if (!fd || ::fsync(fd.get())) error = std::error_code(errno, std::generic_category());
        }
        auto size = error ? 0 : std::filesystem::file_size(path, error);
        if (!error && file.digest.empty()) {
            auto digest = sha256_of_file(path);
            if (digest) file.digest = "sha256:" + *digest;
            else error = std::make_error_code(std::errc::io_error);
        }
        if (error) {
            outcome.ok = false;
            outcome.retry = true;
            outcome.error = fmt::format("output file {}: {}", file.path, error.message());
            return;
        }
        file.size = size;
    }
}

void append_log(std::string& log, std::string_view more) {
    constexpr std::size_t kLimit = 64 * 1024;
    if (more.empty()) return;
    log.append(more);
    if (log.back() != '\n') log += '\n';
    if (log.size() <= kLimit) return;
    auto from = log.find('\n', log.size() - kLimit);
    log.erase(0, from == std::string::npos ? log.size() - kLimit : from + 1);
}

std::chrono::milliseconds until_deadline(Task const& task) {
    if (task.deadline <= 0) return std::chrono::milliseconds::max();
    return std::chrono::milliseconds(std::max<Millis>(0, task.deadline - now_millis()));
}

void fail_rest(TaskResult& result, Task const& task, std::string const& reason) {
    for (auto i = result.pages.size(); i < task.pages.size(); ++i) {
        PageOutcome page;
        page.page_id = task.pages[i].page_id;
        page.error = reason;
        result.pages.push_back(std::move(page));
    }
}

} // namespace ocrctl::engine
