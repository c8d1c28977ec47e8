#include "cmd/ocr_record.hpp"

#include <fcntl.h>
#include <unistd.h>

namespace ocrctl {

OCRCTL_JSON_FIELDS(PageRecord, base, input, frame, size, mtime, digest, chain, models, version, page, outputs, done)

Result<OcrRecord> OcrRecord::open(std::filesystem::path const& folder) {
    OcrRecord record;
    record.file_ = folder / "record.jsonl";
    std::size_t lines = 0;
    std::error_code ignored;
    if (std::filesystem::exists(record.file_, ignored)) {
        auto text = read_file(record.file_);
        if (!text) return fail(text.error());
        std::size_t at = 0;
        for (auto end = text->find('\n'); end != std::string::npos; at = end + 1, end = text->find('\n', at)) {
            ++lines;
            auto page = json_to<PageRecord>(std::string_view(*text).substr(at, end - at));
            if (page && !page->base.empty()) record.pages_[page->base] = std::move(*page);
        }
        // Torn, or many outdated lines: write it anew.
        if (at < text->size() || lines > 2 * record.pages_.size() + 100) {
            std::string all;
            for (auto const& [base, page] : record.pages_) all += dump(Json(page)) + "\n";
            if (auto written = write_file_atomically(record.file_, all); !written) return fail(written.error());
        }
    }
    record.fd_ = Fd(::open(record.file_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
    if (!record.fd_) return fail(errno_error(errno, fmt::format("open {}", record.file_.native())));
    return record;
}

PageRecord const* OcrRecord::find(std::string const& base) const {
    auto found = pages_.find(base);
    return found == pages_.end() ? nullptr : &found->second;
}

Result<void> OcrRecord::put(PageRecord page) {
    auto const line = dump(Json(page)) + "\n";
    if (::write(fd_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
        return fail(errno_error(errno == 0 ? ENOSPC : errno, fmt::format("write {}", file_.native())));
    pages_[page.base] = std::move(page);
    return {};
}

} // namespace ocrctl
