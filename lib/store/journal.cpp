#include "lib/store/journal.hpp"

#include "lib/base/text.hpp"

#include <algorithm>
#include <boost/crc.hpp>
#include <charconv>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl::store {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kSegment = 4 << 20; // bytes; a bigger Batch has a bigger one to itself
constexpr int kReady = 2;                    // segments made at the start: filling one takes a while on a busy disk
constexpr std::string_view kSuffix = ".journal";

std::uint32_t crc_of(std::string_view text) {
    boost::crc_32_type crc;
    crc.process_bytes(text.data(), text.size());
    return crc.checksum();
}

struct ToJson {
    Json operator()(Batch::PutJob const& c) const { return {"job", Json(c.job), wire(c.job.state), status_json(c.job)}; }
    Json operator()(Batch::UpdateJob const& c) const { return {"job-state", c.id.str(), wire(c.state), c.status}; }
    Json operator()(Workflow const& c) const { return {"workflow", Json(c)}; }
    Json operator()(Batch::PutScript const& c) const { return {"script", c.script.id, c.script.content, c.script.content_hash}; }
    Json operator()(Batch::PutOutcome const& c) const { return {"outcome", Json(c.result)}; }
    Json operator()(Batch::DropOutcomes const& c) const { return {"outcomes-saved", c.job.str(), c.attempt}; }
    Json operator()(Batch::PutCallback const& c) const { return {"callback", c.job.str()}; }
    Json operator()(Batch::DropCallback const& c) const { return {"callback-done", c.job.str()}; }
    Json operator()(Batch::SetValue const& c) const { return {"value", c.key, c.value}; }
};

Batch::Change change_of(Json const& json) {
    auto text = [&](std::size_t at) { return json.at(at).get<std::string>(); };
    auto state = [&](std::size_t at) {
        auto known = job_state(text(at));
        if (!known) throw std::invalid_argument("unknown state " + text(at));
        return *known;
    };
    auto const kind = text(0);
    if (kind == "job") {
        auto job = json.at(1).get<Job>();
        apply_status(json.at(3), job);
        job.state = state(2);
        return Batch::PutJob{std::move(job)};
    }
    if (kind == "job-state") return Batch::UpdateJob{JobId(text(1)), state(2), text(3)};
    if (kind == "workflow") return json.at(1).get<Workflow>();
    if (kind == "script") return Batch::PutScript{{text(1), text(2), text(3)}, false};
    if (kind == "outcome") return Batch::PutOutcome{json.at(1).get<TaskResult>()};
    if (kind == "outcomes-saved") return Batch::DropOutcomes{JobId(text(1)), json.at(2).get<int>()};
    if (kind == "callback") return Batch::PutCallback{JobId(text(1))};
    if (kind == "callback-done") return Batch::DropCallback{JobId(text(1))};
    if (kind == "value") return Batch::SetValue{text(1), text(2)};
    throw std::invalid_argument("unknown change " + kind);
}

/// "<crc32> <rest>\n" at the start of `text`: the rest; nothing if it is torn.
std::optional<std::string_view> first_line(std::string_view text) {
    auto end = text.find('\n');
    if (end == std::string_view::npos || end < 10 || text[8] != ' ') return std::nullopt;
    std::uint32_t crc = 0;
    auto [stop, problem] = std::from_chars(text.data(), text.data() + 8, crc, 16);
    auto rest = text.substr(9, end - 9);
    if (problem != std::errc() || stop != text.data() + 8 || crc != crc_of(rest)) return std::nullopt;
    return rest;
}

std::optional<std::uint64_t> take_number(std::string_view& text) {
    std::uint64_t number = 0;
    auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (problem != std::errc() || stop == text.data() + text.size() || *stop != ' ') return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(stop - text.data()) + 1);
    return number;
}

Result<void> write_at(int fd, std::string_view text, std::uint64_t at) {
    while (!text.empty()) {
        auto n = ::pwrite(fd, text.data(), text.size(), static_cast<off_t>(at));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return fail(errno_error(errno, "write"));
        text.remove_prefix(static_cast<std::size_t>(n));
        at += static_cast<std::uint64_t>(n);
    }
    return {};
}

} // namespace

std::string text_of(Batch const& batch, std::size_t* biggest) {
    std::string text = "[";
    for (auto const& change : batch.changes()) {
        auto one = dump(std::visit(ToJson{}, change));
        if (biggest != nullptr) *biggest = std::max(*biggest, one.size());
        if (text.size() > 1) text += ',';
        text += one;
    }
    return text + "]";
}

Result<Batch> batch_of(std::string_view text) {
    auto json = parse_json(text);
    if (!json || !json->is_array()) return fail(ErrorKind::Invalid, "a line of the journal is no list of changes");
    Batch batch;
    try {
        for (auto const& change : *json) batch.add_change(change_of(change));
    } catch (std::exception const& problem) {
        return fail(ErrorKind::Invalid, "a line of the journal cannot be read: {}", problem.what());
    }
    return batch;
}

Result<Journal> Journal::open(fs::path folder) {
    if (auto made = make_folder(folder, 0700); !made) return fail(made.error().during("open the journal"));
    Journal journal(std::move(folder));
    std::vector<fs::path> files;
    std::error_code problem;
    for (fs::directory_iterator entry(journal.folder_, problem), end; !problem && entry != end; entry.increment(problem))
        if (entry->path().extension() == kSuffix) files.push_back(entry->path());
    if (problem) return fail(ErrorKind::Unavailable, "read the journal in {}: {}", journal.folder_.native(), problem.message());
    for (auto const& file : files)
        if (auto read = journal.read(file); !read) return fail(read.error().during("read the journal"));
    std::ranges::sort(journal.segments_, {}, &Segment::last);
    std::ranges::sort(journal.recovered_, {}, &Record::number);
    std::erase_if(journal.recovered_, [&](Record const& record) { return record.number <= journal.done_; });
    std::erase_if(journal.segments_, [&](Segment const& segment) {
        if (segment.last > journal.done_) return false;
        ::unlink(segment.file.c_str());
        return true;
    });
    for (int i = 0; i < kReady; ++i)
        if (auto made = journal.make_segment(); !made) return fail(ErrorKind::Unavailable, "{}", made.error().during("open the journal").message());
    return journal;
}

Result<void> Journal::read(fs::path const& file) {
    auto content = read_file(file);
    if (!content) return std::unexpected(content.error());
    Segment segment{file, {}, 0, 0};
    std::string_view text(*content);
    while (auto line = first_line(text)) {
        auto rest = *line;
        auto number = take_number(rest);
        auto done = number ? take_number(rest) : std::nullopt;
        if (!done || *number <= segment.last) break; // older: of an earlier use of the segment
        segment.last = *number;
        done_ = std::max(done_, *done);
        next_ = std::max(next_, *number + 1);
        recovered_.push_back(Record{*number, std::string(rest)});
        text.remove_prefix(line->size() + 10);
    }
    segments_.push_back(std::move(segment));
    return {};
}

Result<Journal::Segment*> Journal::current(std::size_t bytes) {
    if (writing_ && (segments_.back().end == 0 || segments_.back().end + bytes <= kSegment)) return &segments_.back();
    // One whose content is applied is overwritten: its blocks are there already, which makes a flush cheap.
    std::size_t const old = segments_.size() - (writing_ ? 1 : 0);
    for (std::size_t i = 0; i < old; ++i)
        if (segments_[i].last <= done_ && segments_[i].fd) {
            auto segment = std::move(segments_[i]);
            segments_.erase(segments_.begin() + static_cast<std::ptrdiff_t>(i));
            segment.end = 0;
            segments_.push_back(std::move(segment));
            writing_ = true;
            return &segments_.back();
        }
    if (auto made = make_segment(); !made) return std::unexpected(made.error());
    writing_ = true;
    return &segments_.back();
}

Result<void> Journal::make_segment() {
    Segment segment;
    do { // never the file of an earlier run, which goes when that is applied
        segment.file = folder_ / fmt::format("{:016}-{}{}", next_, made_++, kSuffix);
        segment.fd = Fd(::open(segment.file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    } while (!segment.fd && errno == EEXIST);
    if (!segment.fd) return fail(errno_error(errno, "open " + segment.file.native()));
    std::string const zeros(1 << 20, '\0');
    for (std::uint64_t at = 0; at < kSegment; at += zeros.size())
        if (auto filled = write_at(segment.fd.get(), zeros, at); !filled) {
            ::unlink(segment.file.c_str());
            return fail(filled.error().during("fill " + segment.file.native()));
        }
    auto flushed = ::fsync(segment.fd.get()) == 0 ? flush_folder(folder_) : Result<void>(fail(errno_error(errno, "flush " + segment.file.native())));
    if (!flushed) {
        ::unlink(segment.file.c_str());
        return flushed;
    }
    segments_.push_back(std::move(segment));
    return {};
}

Result<void> Journal::append(std::uint64_t first, std::span<std::string const> texts, std::uint64_t done) {
    OCRCTL_CHECK(first >= next_);
    if (texts.empty()) return {};
    std::string block;
    auto number = first;
    for (auto const& text : texts) {
        auto line = fmt::format("{} {} {}", number++, done, text);
        fmt::format_to(std::back_inserter(block), "{:08x} {}\n", crc_of(line), line);
    }
    auto segment = current(block.size());
    if (!segment) return fail(ErrorKind::Unavailable, "{}", segment.error().during("write the journal").message());
    auto& to = **segment;
    auto written = write_at(to.fd.get(), block, to.end);
    if (written && ::fdatasync(to.fd.get()) != 0) written = fail(errno_error(errno, "flush"));
    if (!written) {
        // Nobody may find it later: a zero ends what is read of the segment, and its numbers are not used again, so that what is
        // left of it counts as older than what overwrites its start.
        next_ = number;
        (void)write_at(to.fd.get(), std::string_view("\0", 1), to.end);
        (void)::fdatasync(to.fd.get());
        return fail(ErrorKind::Unavailable, "{}", written.error().during("write the journal " + to.file.native()).message());
    }
    to.end += block.size();
    to.last = number - 1;
    next_ = number;
    // Those of an earlier run go once they are applied.
    while (!segments_.front().fd && segments_.front().last <= done_) {
        ::unlink(segments_.front().file.c_str());
        segments_.pop_front();
    }
    return {};
}

void Journal::remove_segments() noexcept {
    for (auto const& segment : segments_) ::unlink(segment.file.c_str());
    segments_.clear();
    writing_ = false;
}

} // namespace ocrctl::store
