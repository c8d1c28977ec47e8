#include "lib/ledger/ledger.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl::ledger {
namespace {

struct FlockGuard {
    int fd;
    explicit FlockGuard(int descriptor) : fd(descriptor) {
        while (::flock(fd, LOCK_EX) != 0 && errno == EINTR) {}
    }
    ~FlockGuard() { ::flock(fd, LOCK_UN); }
    FlockGuard(FlockGuard const&) = delete;
    FlockGuard& operator=(FlockGuard const&) = delete;
};

void apply(LedgerState& state, Record const& record) {
    if (record.op == "closing") {
        state.closing = true;
        return;
    }
    if (record.op == "host") {
        state.hosts[record.host] = record.config;
        return;
    }
    if (record.op == "secret") {
        if (std::ranges::find(state.secrets, record.name) == state.secrets.end()) state.secrets.push_back(record.name);
        return;
    }
    if (record.op == "path" && record.entry.empty()) {
        if (std::ranges::find(state.paths, record.path) == state.paths.end()) state.paths.push_back(record.path);
        return;
    }
    if (record.entry.empty()) return;
    auto [place, fresh] = state.entries.try_emplace(record.entry);
    auto& entry = place->second;
    if (fresh) {
        entry.entry = record.entry;
        state.order.push_back(record.entry);
    }
    entry.since = record.t;
    if (record.op == "intent") {
        entry.kind = record.kind;
        entry.host = record.host;
        entry.spec = record.spec;
        entry.intent = true;
        entry.identity.reset();
        entry.ready = entry.exited = entry.stopped = false;
        entry.status.clear();
    } else if (record.op == "identity") {
        entry.intent = true;
        entry.identity = record.identity;
    } else if (record.op == "ready") {
        entry.ready = true;
    } else if (record.op == "exited") {
        entry.exited = true;
        entry.ready = false;
        entry.status = record.status;
    } else if (record.op == "stopped") {
        entry.stopped = true;
        entry.ready = false;
    } else if (record.op == "path") {
        if (std::ranges::find(entry.paths, record.path) == entry.paths.end()) entry.paths.push_back(record.path);
    }
}

LedgerState replay_text(std::string_view text) {
    LedgerState state;
    while (!text.empty()) {
        auto end = text.find('\n');
        auto line = text.substr(0, end);
        if (!line.empty()) {
            auto record = json_to<Record>(line);
            if (record && !record->op.empty())
                apply(state, *record);
            else
                ++state.unreadable;
        }
        if (end == std::string_view::npos) break;
        text.remove_prefix(end + 1);
    }
    return state;
}

} // namespace

void to_json(Json& json, Record const& record) {
    json = Json{{"t", record.t}, {"op", record.op}};
    auto put = [&](char const* key, std::string const& value) {
        if (!value.empty()) json[key] = value;
    };
    put("entry", record.entry);
    put("kind", record.kind);
    put("host", record.host);
    put("status", record.status);
    put("path", record.path);
    put("name", record.name);
    if (!record.spec.is_null()) json["spec"] = record.spec;
    if (!record.config.is_null()) json["config"] = record.config;
    if (record.identity.pid != 0) {
        json["pid"] = record.identity.pid;
        json["start"] = record.identity.start;
        json["boot"] = record.identity.boot;
    }
}

void from_json(Json const& json, Record& record) {
    record.t = json.value("t", Millis{0});
    record.op = json.value("op", std::string());
    record.entry = json.value("entry", std::string());
    record.kind = json.value("kind", std::string());
    record.host = json.value("host", std::string());
    record.status = json.value("status", std::string());
    record.path = json.value("path", std::string());
    record.name = json.value("name", std::string());
    record.spec = json.value("spec", Json());
    record.config = json.value("config", Json());
    if (json.contains("pid")) record.identity = json.get<process::Identity>();
}

Record intent(std::string entry, std::string kind, std::string host, Json spec) {
    Record record;
    record.op = "intent";
    record.entry = std::move(entry);
    record.kind = std::move(kind);
    record.host = std::move(host);
    record.spec = std::move(spec);
    return record;
}
Record identity(std::string entry, process::Identity identity) {
    Record record;
    record.op = "identity";
    record.entry = std::move(entry);
    record.identity = std::move(identity);
    return record;
}
Record ready(std::string entry) {
    Record record;
    record.op = "ready";
    record.entry = std::move(entry);
    return record;
}
Record exited(std::string entry, std::string status) {
    Record record;
    record.op = "exited";
    record.entry = std::move(entry);
    record.status = std::move(status);
    return record;
}
Record stopped(std::string entry) {
    Record record;
    record.op = "stopped";
    record.entry = std::move(entry);
    return record;
}
Record closing() {
    Record record;
    record.op = "closing";
    return record;
}
Record host(std::string host, Json config) {
    Record record;
    record.op = "host";
    record.host = std::move(host);
    record.config = std::move(config);
    return record;
}
Record path(std::string entry, std::string path) {
    Record record;
    record.op = "path";
    record.entry = std::move(entry);
    record.path = std::move(path);
    return record;
}
Record secret(std::string name) {
    Record record;
    record.op = "secret";
    record.name = std::move(name);
    return record;
}

Entry const* LedgerState::find(std::string_view entry) const {
    auto place = entries.find(std::string(entry));
    return place == entries.end() ? nullptr : &place->second;
}

Ledger::Ledger(std::filesystem::path file, Fd fd) : file_(std::move(file)), fd_(std::move(fd)), mutex_(std::make_unique<std::mutex>()) {}

Result<Ledger> Ledger::open(std::filesystem::path file) {
    if (auto made = make_folder(file.parent_path()); !made) return std::unexpected(made.error());
    bool fresh = !std::filesystem::exists(file);
    Fd fd(::open(file.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!fd) return fail(errno_error(errno, fmt::format("open ledger {}", file.string())));
    if (fresh)
        if (auto flushed = flush_folder(file.parent_path()); !flushed) return std::unexpected(flushed.error());
    return Ledger(std::move(file), std::move(fd));
}

Result<void> Ledger::append(Record record) {
    std::vector<Record> records;
    records.push_back(std::move(record));
    return append(std::move(records));
}

Result<void> Ledger::append(std::vector<Record> records) {
    std::string text;
    for (auto& record : records) {
        record.t = now_millis();
        text += dump(record);
        text += '\n';
    }
    auto action = fmt::format("write ledger {}", file_.string());
    std::lock_guard lock(*mutex_);
    FlockGuard flock(fd_.get());
    struct stat info {};
    if (::fstat(fd_.get(), &info) != 0) return fail(errno_error(errno, action));
    auto size = info.st_size;
    char last = '\n';
    if (size > 0 && ::pread(fd_.get(), &last, 1, size - 1) == 1 && last != '\n') text.insert(0, "\n"); // somebody died in the middle
    ssize_t put = 0;
    do put = ::write(fd_.get(), text.data(), text.size());
    while (put < 0 && errno == EINTR);
    if (put != static_cast<ssize_t>(text.size()) || ::fdatasync(fd_.get()) != 0) {
        auto problem = put >= 0 && put != static_cast<ssize_t>(text.size()) ? ENOSPC : errno;
        (void)!::ftruncate(fd_.get(), size);
        return fail(errno_error(problem, action));
    }
    return {};
}

Result<LedgerState> Ledger::replay() const { return ledger::replay(file_); }

Result<LedgerState> replay(std::filesystem::path const& file) {
    auto text = read_file(file);
    if (!text && text.error().kind() == ErrorKind::NotFound) return LedgerState{};
    if (!text) return std::unexpected(text.error());
    return replay_text(*text);
}

} // namespace ocrctl::ledger
