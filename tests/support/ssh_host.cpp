#include "tests/support/ssh_host.hpp"

#include <arpa/inet.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <netinet/in.h>
#include <pwd.h>
#include <signal.h>
#include <spawn.h>
#include <sstream>
#include <stdexcept>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

extern char** environ;

namespace ocrctl::test {

namespace fs = std::filesystem;

namespace {

constexpr char kSshd[] = "/usr/sbin/sshd";

pid_t spawn(std::vector<std::string> args, fs::path const& output) {
    std::vector<char*> argv;
    for (auto& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setpgroup(&attributes, 0);
    pid_t pid = -1;
    int rc = posix_spawnp(&pid, argv[0], &actions, &attributes, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (rc != 0) throw std::runtime_error(args[0] + ": " + std::strerror(rc));
    return pid;
}

void run(std::vector<std::string> args, fs::path const& output) {
    auto name = args[0];
    pid_t pid = spawn(std::move(args), output);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    if (status != 0) throw std::runtime_error(name + " failed, see " + output.string());
}

std::string text_of(fs::path const& file) {
    std::ifstream in(file);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
}

bool answers(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bool ok = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    close(fd);
    return ok;
}

std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> found;
    for (auto const& entry : fs::directory_iterator("/proc")) {
        auto name = entry.path().filename().string();
        if (name.find_first_not_of("0123456789") != std::string::npos) continue;
        auto stat = text_of(entry.path() / "stat");
        auto after = stat.rfind(") ");
        if (after == std::string::npos) continue;
        std::istringstream fields(stat.substr(after + 2));
        char state = 0;
        pid_t ppid = 0;
        fields >> state >> ppid;
        if (ppid == parent) found.push_back(static_cast<pid_t>(std::stol(name)));
    }
    return found;
}

} // namespace

int free_port() {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
        throw std::runtime_error("no free port");
    close(fd);
    return ntohs(address.sin_port);
}

std::string SshHost::missing() {
    if (access(kSshd, X_OK) != 0) return "sshd is not installed (package openssh-server)";
    if (access("/usr/bin/ssh-keygen", X_OK) != 0) return "ssh-keygen is not installed (package openssh-client)";
    return "";
}

SshHost::SshHost(std::string const& more) {
    char pattern[] = "/tmp/ocrctl-ssh-XXXXXX";
    folder_ = mkdtemp(pattern);
    user_ = getpwuid(getuid())->pw_name;
    auto log = folder_ / "keygen.log";
    for (char const* name : {"host_key", "user_key", "wrong_key"})
        run({"/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", (folder_ / name).string()}, log);
    fs::copy_file(folder_ / "user_key.pub", folder_ / "authorized_keys");
    run({"/usr/bin/ssh-keygen", "-l", "-E", "sha256", "-f", (folder_ / "host_key.pub").string()}, folder_ / "fingerprint");
    std::istringstream words(text_of(folder_ / "fingerprint"));
    std::string bits;
    words >> bits >> fingerprint_;
    port_ = free_port();
    std::istringstream public_key(text_of(folder_ / "host_key.pub"));
    std::string type, key;
    public_key >> type >> key;
    std::ofstream(known_hosts()) << "[127.0.0.1]:" << port_ << " " << type << " " << key << "\n";
    std::ofstream(empty_known_hosts()).flush();
    std::ofstream(folder_ / "sshd_config")
        << more << "Port " << port_ << "\nListenAddress 127.0.0.1\nHostKey " << (folder_ / "host_key").string()
        << "\nAuthorizedKeysFile " << (folder_ / "authorized_keys").string() << "\nPidFile "
        << (folder_ / "pid").string()
        << "\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication yes\nMaxAuthTries 20\n"
           "MaxStartups 100:30:200\nPrintMotd no\nPrintLastLog no\n";
    // A root-run sshd insists on its folder; Debian's boot makes it, a container has none.
    if (getuid() == 0) mkdir("/run/sshd", 0755);
    start();
}

void SshHost::start() {
    pid_ = spawn({kSshd, "-D", "-e", "-f", (folder_ / "sshd_config").string()}, folder_ / "sshd.log");
    auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!answers(port_)) {
        if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
            pid_ = -1;
            throw std::runtime_error("sshd ended: " + text_of(folder_ / "sshd.log"));
        }
        if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("sshd does not answer");
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

namespace {

/// The processes of a daemon that serve sessions. One of another user has a second sshd below the privileged one;
/// commands are left alone, as with a cut cable.
std::vector<pid_t> sessions_of(pid_t daemon) {
    auto sessions = children_of(daemon);
    for (pid_t session : std::vector<pid_t>(sessions))
        for (pid_t below : children_of(session))
            if (text_of("/proc/" + std::to_string(below) + "/comm") == "sshd\n") sessions.push_back(below);
    return sessions;
}

} // namespace

void SshHost::freeze(bool frozen) {
    for (pid_t session : sessions_of(pid_)) kill(session, frozen ? SIGSTOP : SIGCONT);
}

void SshHost::stop() {
    if (pid_ < 0) return;
    auto sessions = sessions_of(pid_);
    kill(pid_, SIGKILL);
    for (pid_t session : sessions) kill(session, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {}
    pid_ = -1;
}

SshHost::~SshHost() {
    stop();
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
}

} // namespace ocrctl::test
