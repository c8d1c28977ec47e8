#include "lib/ledger/lock.hpp"

#include "lib/model/json.hpp"

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <sys/file.h>
#include <unistd.h>

namespace ocrctl::ledger {
namespace {

std::string user_name() {
    passwd entry{};
    passwd* found = nullptr;
    std::string buffer(4096, '\0');
    if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) return entry.pw_name;
    return std::to_string(::geteuid());
}

std::optional<LockHolder> read_holder(std::filesystem::path const& file) {
    auto text = read_file(file);
    if (!text) return std::nullopt;
    auto json = parse_json(*text);
    if (!json || !json->is_object()) return std::nullopt;
    auto identity = json_to<process::Identity>(*json);
    if (!identity || identity->pid == 0) return std::nullopt;
    LockHolder holder;
    holder.identity = *identity;
    try {
        holder.user = json->value("user", std::string());
        holder.command = json->value("command", std::string());
        holder.since = json->value("since", Millis{0});
    } catch (Json::exception const&) {
        return std::nullopt;
    }
    return holder;
}

} // namespace

LockFile::~LockFile() {
    if (fd_) (void)!::ftruncate(fd_.get(), 0); // nobody is named from here on
}

Result<LockFile> LockFile::take(std::filesystem::path const& file, std::string command) {
    if (auto made = make_folder(file.parent_path()); !made) return std::unexpected(made.error());
    for (;;) {
        Fd fd(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        if (!fd) return fail(errno_error(errno, fmt::format("lock {}", file.string())));
        if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno == EINTR) continue;
            if (errno != EWOULDBLOCK) return fail(errno_error(errno, fmt::format("lock {}", file.string())));
            // A holder writes its name right after it got the lock.
            auto holder = read_holder(file);
            for (int i = 0; i < 20 && !holder; ++i) {
                ::poll(nullptr, 0, 5);
                holder = read_holder(file);
            }
            if (!holder) return fail(ErrorKind::Conflict, "{} is locked by a process that has not said its name", file.string());
            return fail(ErrorKind::Conflict, "{} is held by pid {} ({}) of user {} since {}", file.string(), holder->identity.pid,
                        holder->command, holder->user, format_time(holder->since));
        }
        // Somebody may have removed the file between open and flock: then the lock is on a file without a name.
        std::error_code error;
        auto linked = std::filesystem::hard_link_count(fmt::format("/proc/self/fd/{}", fd.get()), error);
        if (!error && linked == 0) continue;
        auto self = process::own_identity();
        Json json = self;
        json["user"] = user_name();
        json["command"] = command;
        json["since"] = now_millis();
        auto text = dump(json);
        if (::ftruncate(fd.get(), 0) != 0 || ::pwrite(fd.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
            return fail(errno_error(errno, fmt::format("write {}", file.string())));
        return LockFile(std::move(fd));
    }
}

Result<LockFile> LockFile::take_over(std::filesystem::path const& file, std::string command, std::chrono::milliseconds grace) {
    auto taken = take(file, command);
    if (taken || taken.error().kind() != ErrorKind::Conflict) return taken;
    auto holder = read_holder(file);
    if (holder && holder->identity != process::own_identity()) {
        if (auto pidfd = process::open_pidfd(holder->identity)) {
            // It alone, not its group: that may be a shell's.
            if (auto asked = process::signal_one(holder->identity, SIGTERM); !asked && asked.error().kind() != ErrorKind::NotFound)
                return fail(asked.error().during(fmt::format("end the holder of {}", file.string())));
            if (!process::wait_for(pidfd->get(), grace)) {
                (void)process::signal_one(holder->identity, SIGKILL);
                (void)process::wait_for(pidfd->get(), std::chrono::seconds(5));
            }
        }
    }
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    for (;;) { // the kernel lets go when the last of the holder's descriptors is closed, a moment after it ended
        taken = take(file, command);
        if (taken || taken.error().kind() != ErrorKind::Conflict || std::chrono::steady_clock::now() > end) return taken;
        ::poll(nullptr, 0, 5);
    }
}

std::optional<LockHolder> lock_holder(std::filesystem::path const& file) {
    // Without touching the lock, so that a take() at this moment does not meet ours: who released it is not named any
    // more, and who was killed is not alive.
    auto holder = read_holder(file);
    if (!holder || !process::alive(holder->identity)) return std::nullopt;
    return holder;
}

} // namespace ocrctl::ledger
