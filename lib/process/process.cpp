#include "lib/process/process.hpp"

#include "lib/base/text.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <mutex>
#include <poll.h>
#include <set>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ; // NOLINT

namespace ocrctl::process {
namespace {

namespace fs = std::filesystem;

// Linux 6.9; older kernels answer EINVAL.
constexpr unsigned kSignalGroup = 1U << 2;

int pidfd_open(int pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }
int pidfd_signal(int fd, int signal, unsigned flags) {
    return static_cast<int>(::syscall(SYS_pidfd_send_signal, fd, signal, nullptr, flags));
}

// /proc files have no size and change while they are read: one buffer, read until the end; empty if not readable.
std::string read_proc(char const* file) {
    Fd fd(::open(file, O_RDONLY | O_CLOEXEC));
    std::string content;
    if (!fd) return content;
    std::array<char, 8192> buffer;
    for (;;) {
        auto got = ::read(fd.get(), buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return content;
        content.append(buffer.data(), static_cast<std::size_t>(got));
    }
}

// The children that spawn() made and nobody reaped yet: strays are all the others.
struct OwnChildren {
    std::mutex mutex;
    std::set<int> pids;
};
OwnChildren& own_children() {
    static OwnChildren children;
    return children;
}

struct FileActions {
    posix_spawn_file_actions_t value;
    FileActions() { posix_spawn_file_actions_init(&value); }
    ~FileActions() { posix_spawn_file_actions_destroy(&value); }
    FileActions(FileActions const&) = delete;
    FileActions& operator=(FileActions const&) = delete;
};
struct Attributes {
    posix_spawnattr_t value;
    Attributes() { posix_spawnattr_init(&value); }
    ~Attributes() { posix_spawnattr_destroy(&value); }
    Attributes(Attributes const&) = delete;
    Attributes& operator=(Attributes const&) = delete;
};

Result<std::string> find_program(std::string const& name, std::string const& search) {
    if (name.find('/') != std::string::npos) return name;
    bool denied = false;
    for (auto const& folder : split(search.empty() ? "/usr/local/bin:/usr/bin:/bin" : search, ':')) {
        auto candidate = (folder.empty() ? std::string(".") : folder) + "/" + name;
        struct stat info {};
        if (::stat(candidate.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
        if (::access(candidate.c_str(), X_OK) == 0) return candidate;
        denied = true;
    }
    if (denied) return fail(ErrorKind::Denied, "{} is not executable", name);
    return fail(ErrorKind::NotFound, "no program {} in PATH", name);
}

ExitStatus reap(int pidfd) {
    ExitStatus status;
    siginfo_t info{};
    auto& own = own_children();
    std::lock_guard lock(own.mutex);
    while (::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG) != 0) {
        if (errno != EINTR) return status; // ECHILD: not ours
    }
    if (info.si_pid == 0) return status;
    own.pids.erase(info.si_pid);
    status.known = true;
    if (info.si_code == CLD_EXITED)
        status.code = info.si_status;
    else
        status.signal = info.si_status;
    return status;
}

} // namespace

void to_json(Json& json, Identity const& identity) {
    json = Json{{"pid", identity.pid}, {"start", identity.start}, {"boot", identity.boot}};
}
void from_json(Json const& json, Identity& identity) {
    identity.pid = json.value("pid", 0);
    identity.start = json.value("start", std::uint64_t{0});
    identity.boot = json.value("boot", std::string());
}

void to_json(Json& json, Found const& found) {
    json = Json{{"identity", found.identity}, {"host", found.host}, {"entry", found.entry}, {"command", found.command}};
}
void from_json(Json const& json, Found& found) {
    found.identity = json.value("identity", Identity{});
    found.host = json.value("host", std::string());
    found.entry = json.value("entry", std::string());
    found.command = json.value("command", std::string());
}

std::string const& boot_id() {
    static std::string const id(trim(read_proc("/proc/sys/kernel/random/boot_id")));
    return id;
}

std::optional<Row> row_of(int pid) {
    auto text = read_proc(fmt::format("/proc/{}/stat", pid).c_str());
    auto open = text.find('(');
    auto close = text.rfind(')'); // the name may hold anything, ") (" too
    if (open == std::string::npos || close == std::string::npos || close + 2 >= text.size()) return std::nullopt;
    auto fields = split(std::string_view(text).substr(close + 2), ' ');
    if (fields.size() < 20) return std::nullopt;
    Row row;
    auto number = [](std::string const& field, auto& value) {
        std::from_chars(field.data(), field.data() + field.size(), value);
    };
    row.identity.boot = boot_id();
    row.identity.pid = pid;
    row.command = text.substr(open + 1, close - open - 1);
    row.state = fields[0].empty() ? '?' : fields[0][0];
    number(fields[1], row.parent);
    number(fields[2], row.group);
    number(fields[3], row.session);
    number(fields[19], row.identity.start);
    return row;
}

std::vector<Row> table() {
    std::vector<Row> rows;
    std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc"), &::closedir);
    if (!folder) return rows;
    while (auto* item = ::readdir(folder.get())) {
        int pid = 0;
        auto* end = item->d_name + std::strlen(item->d_name);
        auto [rest, problem] = std::from_chars(item->d_name, end, pid);
        if (problem != std::errc{} || rest != end) continue;
        if (auto row = row_of(pid)) rows.push_back(std::move(*row));
    }
    return rows;
}

std::optional<Identity> identity_of(int pid) {
    if (pid <= 0) return std::nullopt;
    auto row = row_of(pid);
    if (!row || row->state == 'Z' || row->state == 'X') return std::nullopt;
    return row->identity;
}

Identity own_identity() {
    auto identity = identity_of(::getpid());
    OCRCTL_CHECK(identity.has_value());
    return *identity;
}

bool alive(Identity const& identity) {
    auto now = identity_of(identity.pid);
    return now && *now == identity;
}

namespace {

// In the middle of an exec a process has its new memory, and no environment in it yet.
bool in_exec(int pid) {
    constexpr int kEnvEnd = 51; // in /proc/PID/stat; also 0 for threads of the kernel, which have no program
    auto stat = read_proc(fmt::format("/proc/{}/stat", pid).c_str());
    auto after = stat.rfind(") ");
    if (after == std::string::npos) return false;
    auto fields = split(trim(std::string_view(stat).substr(after + 2)), ' ');
    constexpr std::size_t kAt = kEnvEnd - 3;
    char program;
    return fields.size() > kAt && fields[kAt] == "0" && ::readlink(fmt::format("/proc/{}/exe", pid).c_str(), &program, 1) > 0;
}

} // namespace

Marks marks_of(int pid) {
    Marks marks;
    auto const file = fmt::format("/proc/{}/environ", pid);
    auto text = read_proc(file.c_str());
    // Also between the opening and the reading of that file an exec takes the old memory away: so once more at least.
    for (int tries = 0, settled = 0; text.empty() && tries < 100 && settled < 3; ++tries) {
        if (in_exec(pid)) ::poll(nullptr, 0, 1);
        else ++settled;
        text = read_proc(file.c_str());
    }
    for (std::string_view rest = text; !rest.empty();) {
        auto end = rest.find('\0');
        auto item = rest.substr(0, end);
        auto take = [&](std::string_view name, std::string& value) {
            if (item.size() > name.size() && item.starts_with(name) && item[name.size()] == '=' && value.empty())
                value = item.substr(name.size() + 1);
        };
        if (item.starts_with("OCRCTL_")) {
            take(kDeploymentMark, marks.deployment);
            take(kHostMark, marks.host);
            take(kEntryMark, marks.entry);
        }
        if (end == std::string_view::npos) break;
        rest.remove_prefix(end + 1);
    }
    return marks;
}

std::vector<std::string> deployments_below(std::filesystem::path const& folder) {
    std::vector<std::string> ids;
    auto const below = folder.string() + "/";
    for (auto const& row : table()) {
        if (row.identity.pid == ::getpid()) continue;
        auto id = marks_of(row.identity.pid).deployment;
        if (id.empty() || std::ranges::find(ids, id) != ids.end()) continue;
        std::error_code error;
        auto program = std::filesystem::read_symlink(fmt::format("/proc/{}/exe", row.identity.pid), error).string();
        auto command = '\0' + read_proc(fmt::format("/proc/{}/cmdline", row.identity.pid).c_str());
        auto environment = '\0' + read_proc(fmt::format("/proc/{}/environ", row.identity.pid).c_str());
        using namespace std::string_literals;
        if (program.starts_with(below) || command.find("\0--state\0"s + below) != std::string::npos || environment.find("\0OCRCTL_AGENT_SOCKET="s + below) != std::string::npos)
            ids.push_back(id);
    }
    return ids;
}

std::string ExitStatus::text() const {
    if (!known) return "ended (exit code unknown)";
    if (signal == 0) return fmt::format("ended with code {}", code);
    auto const* abbreviation = ::sigabbrev_np(signal);
    return fmt::format("was killed by {}{} ({})", abbreviation ? "SIG" : "signal", abbreviation ? abbreviation : "", signal);
}

namespace {

/// The program that a script's first line names; empty if it names none.
std::string interpreter_of(std::string const& file) {
    Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    char start[256];
    auto size = fd ? ::read(fd.get(), start, sizeof start) : -1;
    std::string_view line(start, size > 0 ? static_cast<std::size_t>(size) : 0);
    if (!line.starts_with("#!")) return {};
    line = trim(line.substr(2, line.find('\n') == std::string_view::npos ? line.npos : line.find('\n') - 2));
    return std::string(line.substr(0, line.find(' ')));
}

} // namespace

Result<Child> spawn(SpawnOptions const& options) {
    if (options.argv.empty()) return fail(ErrorKind::Invalid, "no program named");
    auto action = fmt::format("start {}", options.argv[0]);

    std::map<std::string, std::string> variables;
    if (options.inherit_env)
        for (char** item = environ; item != nullptr && *item != nullptr; ++item) {
            std::string_view text(*item);
            if (auto at = text.find('='); at != std::string_view::npos) variables.emplace(text.substr(0, at), text.substr(at + 1));
        }
    for (auto const& [name, value] : options.env) variables[name] = value;

    std::string file = options.executable.string();
    if (file.empty()) {
        auto found = find_program(options.argv[0], variables["PATH"]);
        if (!found) return fail(found.error().during(action));
        file = *found;
    }
    if (variables["PATH"].empty()) variables.erase("PATH");
    if (!options.cwd.empty()) {
        struct stat info {};
        if (::stat(options.cwd.c_str(), &info) != 0) return fail(errno_error(errno, fmt::format("{}: folder {}", action, options.cwd.string())));
    }

    std::vector<std::string> pairs;
    pairs.reserve(variables.size());
    for (auto const& [name, value] : variables) pairs.push_back(name + "=" + value);
    std::vector<char*> envp, argv;
    for (auto& pair : pairs) envp.push_back(pair.data());
    envp.push_back(nullptr);
    for (auto const& argument : options.argv) argv.push_back(const_cast<char*>(argument.c_str())); // NOLINT: the interface is C
    argv.push_back(nullptr);

    int highest = 2;
    for (auto const& [target, source] : options.fds) {
        if (target < 3) return fail(ErrorKind::Invalid, "{}: descriptor {} cannot be handed over", action, target);
        highest = std::max(highest, target);
    }
    // Sources above every target, so that no dup2 overwrites one that is still needed.
    std::vector<Fd> sources;
    auto lifted = [&](int fd) {
        sources.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, highest + 1));
        return sources.back().get();
    };

    Child child;
    Fd input, output, errors, output_end, errors_end;
    if (options.input) {
        input = Fd(static_cast<int>(::memfd_create("input", MFD_CLOEXEC)));
        if (!input) return fail(errno_error(errno, action));
        std::string_view rest = *options.input;
        while (!rest.empty()) {
            auto put = ::write(input.get(), rest.data(), rest.size());
            if (put < 0) return fail(errno_error(errno, action));
            rest.remove_prefix(static_cast<std::size_t>(put));
        }
        ::lseek(input.get(), 0, SEEK_SET);
    } else {
        input = Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    }
    if (options.log.empty())
        output = Fd(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    else
        output = Fd(::open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640));
    if (!output) return fail(errno_error(errno, fmt::format("{}: log {}", action, options.log.string())));
    errors = Fd(::fcntl(output.get(), F_DUPFD_CLOEXEC, 3));
    auto pipe_to = [](Fd& write_end, Fd& read_end) {
        std::array<int, 2> ends{};
        if (::pipe2(ends.data(), O_CLOEXEC) != 0) return false;
        read_end = Fd(ends[0]);
        write_end = Fd(ends[1]);
        return true;
    };
    if (options.pipe_output && !pipe_to(output, output_end)) return fail(errno_error(errno, action));
    if (options.pipe_errors && !pipe_to(errors, errors_end)) return fail(errno_error(errno, action));

    FileActions actions;
    auto duplicate = [&](int source, int target) {
        auto fd = lifted(source);
        return fd >= 0 && posix_spawn_file_actions_adddup2(&actions.value, fd, target) == 0;
    };
    if (!duplicate(input.get(), 0) || !duplicate(output.get(), 1) || !duplicate(errors.get(), 2)) return fail(errno_error(errno, action));
    for (auto const& [target, source] : options.fds)
        if (!duplicate(source, target)) return fail(errno_error(errno, fmt::format("{}: descriptor {}", action, source)));
    for (int fd = 3; fd <= highest; ++fd)
        if (!options.fds.contains(fd)) posix_spawn_file_actions_addclose(&actions.value, fd);
    posix_spawn_file_actions_addclosefrom_np(&actions.value, highest + 1);
    if (!options.cwd.empty()) posix_spawn_file_actions_addchdir_np(&actions.value, options.cwd.c_str());

    Attributes attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    flags = static_cast<short>(flags | (options.new_session ? POSIX_SPAWN_SETSID : POSIX_SPAWN_SETPGROUP));
    posix_spawnattr_setsigmask(&attributes.value, &none);
    posix_spawnattr_setsigdefault(&attributes.value, &all);
    posix_spawnattr_setpgroup(&attributes.value, 0);
    posix_spawnattr_setflags(&attributes.value, flags);

    pid_t pid = 0;
    auto& own = own_children();
    {
        std::lock_guard lock(own.mutex); // reap_strays() must not see the child before it is in the set
        auto problem = ::posix_spawn(&pid, file.c_str(), &actions.value, &attributes.value, argv.data(), envp.data());
        if (problem != 0) {
            // "No such file" of a script that is there is about its interpreter: a virtual environment that was moved, say.
            if (auto interpreter = problem == ENOENT ? interpreter_of(file) : std::string(); !interpreter.empty())
                return fail(ErrorKind::NotFound, "{}: {} begins with #!{}, which is not there", action, file, interpreter);
            return fail(errno_error(problem, action));
        }
        own.pids.insert(pid);
        child.pidfd = Fd(pidfd_open(pid));
    }
    // Not reaped yet, so the row is its own even if it has ended already.
    auto row = row_of(pid);
    OCRCTL_CHECK(row.has_value());
    child.identity = row->identity;
    child.output = std::move(output_end);
    child.errors = std::move(errors_end);
    if (!child.pidfd) {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
        return fail(ErrorKind::Unavailable, "{}: no descriptor for the process", action);
    }
    return child;
}

Result<Fd> open_pidfd(Identity const& identity) {
    Fd fd(identity.boot == boot_id() && identity.pid > 0 ? pidfd_open(identity.pid) : -1);
    // Opened first, checked after: from here on the descriptor means this process and no later one.
    if (!fd || !alive(identity)) return fail(ErrorKind::NotFound, "process {} has ended", identity.pid);
    return fd;
}

awaitable<ExitStatus> wait(int pidfd) {
    asio::posix::stream_descriptor descriptor(co_await asio::this_coro::executor, ::fcntl(pidfd, F_DUPFD_CLOEXEC, 3));
    co_await descriptor.async_wait(asio::posix::stream_descriptor::wait_read, use_awaitable);
    co_return reap(pidfd);
}

std::optional<ExitStatus> wait_for(int pidfd, std::chrono::milliseconds limit) {
    auto end = std::chrono::steady_clock::now() + limit;
    for (;;) {
        auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
        pollfd item{pidfd, POLLIN, 0};
        auto ready = ::poll(&item, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
        if (ready > 0) return reap(pidfd);
        if (ready == 0) return std::nullopt;
        if (errno != EINTR) return ExitStatus{};
    }
}

void reap_strays() {
    auto& own = own_children();
    std::lock_guard lock(own.mutex);
    std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/task"), &::closedir);
    if (!folder) return;
    while (auto* item = ::readdir(folder.get())) {
        if (item->d_name[0] == '.') continue;
        auto text = read_proc(fmt::format("/proc/self/task/{}/children", item->d_name).c_str());
        for (auto const& word : split(trim(text), ' ')) {
            int pid = 0;
            std::from_chars(word.data(), word.data() + word.size(), pid);
            if (pid > 0 && !own.pids.contains(pid)) ::waitpid(pid, nullptr, WNOHANG);
        }
    }
}

Result<void> signal_one(Identity const& identity, int signal) {
    auto fd = open_pidfd(identity);
    if (!fd) return std::unexpected(fd.error());
    if (pidfd_signal(fd->get(), signal, 0) == 0) return {};
    if (errno == ESRCH) return fail(ErrorKind::NotFound, "process {} has ended", identity.pid);
    return fail(errno_error(errno, fmt::format("signal process {}", identity.pid)));
}

Result<void> signal_group(Identity const& identity, int signal) {
    auto fd = open_pidfd(identity);
    if (!fd) return std::unexpected(fd.error());
    auto row = row_of(identity.pid);
    if (!row || row->group != identity.pid) return signal_one(identity, signal);
    if (pidfd_signal(fd->get(), signal, kSignalGroup) == 0) return {};
    // Older kernels: the leader was just seen alive, and its number is not given away while its group exists.
    if ((errno == EINVAL || errno == ENOSYS) && ::kill(-identity.pid, signal) == 0) return {};
    if (errno == ESRCH) return fail(ErrorKind::NotFound, "process {} has ended", identity.pid);
    return fail(errno_error(errno, fmt::format("signal process group {}", identity.pid)));
}

std::optional<std::string> missing_library(std::string_view output) {
    static constexpr std::string_view kSign = "error while loading shared libraries: ";
    auto at = output.find(kSign);
    if (at == std::string_view::npos) return std::nullopt;
    auto rest = output.substr(at + kSign.size());
    auto library = std::string(rest.substr(0, rest.find_first_of(": \n")));
    // Debian names a library's package after its soname, but for these.
    static std::map<std::string, std::string, std::less<>> const exceptions{
        {"libcrypto.so.3", "libssl3"},      {"libssl.so.3", "libssl3"},         {"libssh.so.4", "libssh-4"},
        {"libpugixml.so.1", "libpugixml1v5"}, {"libxml2.so.2", "libxml2"},      {"libstdc++.so.6", "libstdc++6"},
        {"libc.so.6", "libc6"},             {"libm.so.6", "libc6"},             {"libpng16.so.16", "libpng16-16"},
        {"libmongoc-1.0.so.0", "libmongoc-1.0-0"}, {"libbson-1.0.so.0", "libbson-1.0-0"},
    };
    std::string package;
    if (auto known = exceptions.find(library); known != exceptions.end()) {
        package = known->second;
    } else if (auto so = library.find(".so."); so != std::string::npos) {
        package = library.substr(0, so);
        std::ranges::replace(package, '_', '-');
        if (!package.empty() && package.back() >= '0' && package.back() <= '9') package += '-';
        package += library.substr(so + 4);
    }
    if (package.empty()) return fmt::format("the shared library {} is not installed", library);
    return fmt::format("the shared library {} is not installed: apt-get install {}", library, package);
}

} // namespace ocrctl::process
