#include "deployer/host_driver.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/paths.hpp"

#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <poll.h>
#include <sstream>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace ocrctl::deployer {

namespace fs = std::filesystem;
using remote::shell_quote;

std::string launch_line(Launch const& launch) {
    std::string command;
    for (auto const& word : launch.argv) command += (command.empty() ? "" : " ") + shell_quote(word);
    std::string marks;
    for (auto const& [key, value] : launch.env) marks += " " + shell_quote(key + "=" + value);
    // The inner shell becomes the program, so its own pid and start time are the program's.
    auto inner = "read -r st </proc/self/stat; st=${st##*) }; set -- $st; echo $$ ${20} >&3; exec 3>&-; exec " + command;
    auto folder = fs::path(launch.log).parent_path().string();
    auto outer = fmt::format("mkdir -p {0} && cat /proc/sys/kernel/random/boot_id && {{ setsid sh -c {1} 3>&1 </dev/null >>{2} 2>&1 & }}", shell_quote(folder),
                             shell_quote(inner), shell_quote(launch.log));
    return fmt::format("exec env{} /bin/sh -c {}", marks, shell_quote(outer));
}

Result<process::Identity> launched(std::string_view output) {
    std::istringstream words{std::string(output)};
    process::Identity identity;
    if (words >> identity.boot >> identity.pid >> identity.start && identity.pid > 1 && identity.boot.size() == 36) return identity;
    return fail(ErrorKind::Unavailable, "the start was not reported (\"{}\")", trim(output.substr(0, 100)));
}

namespace {

/// "echo of the problem" for a message: the last line that says something.
std::string last_line(std::string const& text) {
    auto body = trim(text);
    auto at = body.rfind('\n');
    return std::string(at == std::string_view::npos ? body : trim(body.substr(at + 1)));
}

class LocalHost final : public HostDriver {
public:
    explicit LocalHost(std::string name) : name_(std::move(name)) {}
    std::string const& name() const noexcept override { return name_; }
    bool local() const noexcept override { return true; }

    Result<HostLook> look() override {
        utsname uname{};
        ::uname(&uname);
        auto root = ledger::default_state_root();
        if (!root) return std::unexpected(root.error());
        return HostLook{root->string(), process::boot_id(), uname.machine};
    }

    Result<bool> exists(std::string const& path) override { return ::access(path.c_str(), F_OK) == 0; }

    Result<void> bring(fs::path const& file, std::string const& path) override {
        if (::access(path.c_str(), X_OK) == 0) return {};
        fs::path target(path);
        auto made = make_folder(target.parent_path());
        if (!made) return made;
        auto temporary = target.string() + ".part";
        ::unlink(temporary.c_str());
        std::error_code error;
        fs::copy_file(file, temporary, error);
        if (!error) fs::permissions(temporary, fs::perms(0755), error);
        if (!error) fs::rename(temporary, target, error);
        if (!error) return {};
        ::unlink(temporary.c_str());
        return fail(errno_error(error.value(), fmt::format("copy the program to {}", path)));
    }

    Result<void> put(std::string const& path, std::string_view content, int mode) override {
        auto made = make_folder(fs::path(path).parent_path(), mode == 0600 ? 0700 : 0755);
        if (!made) return made;
        return write_file_atomically(path, content, mode);
    }

    Result<Output> run(std::vector<std::string> const& argv, std::string_view input, std::chrono::milliseconds limit) override {
        process::SpawnOptions options;
        options.argv = argv;
        if (!input.empty()) options.input = std::string(input);
        options.pipe_output = options.pipe_errors = true;
        auto child = process::spawn(options);
        if (!child) {
            if (child.error().kind() == ErrorKind::NotFound) return Output{127, "", child.error().message()};
            return std::unexpected(child.error());
        }
        Output output;
        auto deadline = std::chrono::steady_clock::now() + limit;
        auto left = [&] { return std::max<long long>(0, std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count()); };
        pollfd fds[2] = {{child->output.get(), POLLIN, 0}, {child->errors.get(), POLLIN, 0}};
        std::string* texts[2] = {&output.out, &output.err};
        bool late = false;
        while (fds[0].fd >= 0 || fds[1].fd >= 0) {
            if (left() == 0 || ::poll(fds, 2, static_cast<int>(left())) == 0) {
                late = true;
                break;
            }
            for (int i = 0; i < 2; ++i) {
                if (fds[i].fd < 0 || fds[i].revents == 0) continue;
                char buffer[65536];
                auto size = ::read(fds[i].fd, buffer, sizeof buffer);
                if (size > 0) texts[i]->append(buffer, static_cast<std::size_t>(size));
                else if (size == 0 || (errno != EINTR && errno != EAGAIN)) fds[i].fd = -1;
            }
        }
        auto status = late ? std::nullopt : process::wait_for(child->pidfd.get(), std::chrono::milliseconds(left()));
        if (!status) {
            (void)process::signal_group(child->identity, SIGKILL);
            (void)process::wait_for(child->pidfd.get(), std::chrono::seconds(5));
            return fail(ErrorKind::Timeout, "{}: no end after {} s: {}", name_, static_cast<double>(limit.count()) / 1000, argv[0]);
        }
        output.exit_code = status->signal ? 128 + status->signal : status->code;
        return output;
    }

    Result<process::Identity> launch(Launch const& launch) override {
        // By way of a shell that ends at once, so that the program is nobody's child here and leaves us no zombie.
        auto output = run({"/bin/sh", "-c", launch_line(launch)}, {}, std::chrono::seconds(20));
        if (!output) return std::unexpected(output.error());
        if (output->exit_code != 0) return fail(ErrorKind::Unavailable, "{}: start {}: {}", name_, launch.argv[0], last_line(output->err));
        auto identity = launched(output->out);
        if (!identity) return fail(identity.error().during(name_));
        return identity;
    }

private:
    std::string name_;
};

class SshHost final : public HostDriver {
public:
    explicit SshHost(remote::SshSession session) : session_(std::move(session)) {}
    std::string const& name() const noexcept override { return session_.target().name; }
    bool local() const noexcept override { return false; }

    Result<HostLook> look() override {
        // As ledger::default_state_root() there.
        auto output = shell("[ \"$(id -u)\" = 0 ] && r=/var/lib/ocrctl || r=\"${XDG_STATE_HOME:-$HOME/.local/state}/ocrctl\"; "
                            "printf '%s\\n' \"$r\"; cat /proc/sys/kernel/random/boot_id; uname -m");
        if (!output) return std::unexpected(output.error());
        std::istringstream lines(output->out);
        HostLook look;
        std::getline(lines, look.state_root);
        std::getline(lines, look.boot);
        std::getline(lines, look.machine);
        if (output->exit_code != 0 || look.machine.empty()) return fail(ErrorKind::Unavailable, "{}: it is no Linux machine with a shell: {}", name(), last_line(output->err));
        return look;
    }

    Result<bool> exists(std::string const& path) override {
        auto output = shell("test -e " + shell_quote(path));
        if (!output) return std::unexpected(output.error());
        return output->exit_code == 0;
    }

    Result<void> bring(fs::path const& file, std::string const& path) override {
        auto there = shell("test -x " + shell_quote(path));
        if (!there) return std::unexpected(there.error());
        if (there->exit_code == 0) return {};
        return session_.upload(file, path, 0755);
    }

    Result<void> put(std::string const& path, std::string_view content, int mode) override {
        auto folder = shell_quote(fs::path(path).parent_path().string());
        auto temporary = shell_quote(path + ".part");
        auto made = mode == 0600 ? fmt::format("mkdir -p {0} && chmod 700 {0}", folder) : fmt::format("mkdir -p {}", folder);
        // Whoever writes may be killed: `cat` takes the end of the connection for the end of the file.
        auto output = shell(fmt::format("{0} && umask 077 && cat > {1} && chmod {2:o} {1} && [ \"$(wc -c < {1})\" -eq {3} ] && mv -f {1} {4} || {{ rm -f {1}; exit 1; }}", made,
                                        temporary, mode, content.size(), shell_quote(path)),
                            content);
        if (!output) return std::unexpected(output.error());
        if (output->exit_code != 0) return fail(ErrorKind::Unavailable, "{}: write {}: {}", name(), path, last_line(output->err));
        return {};
    }

    Result<Output> run(std::vector<std::string> const& argv, std::string_view input, std::chrono::milliseconds limit) override {
        std::string command = "exec";
        for (auto const& word : argv) command += " " + shell_quote(word);
        return shell(command, input, limit);
    }

    Result<process::Identity> launch(Launch const& launch) override {
        auto output = shell(launch_line(launch));
        if (!output) return std::unexpected(output.error());
        if (output->exit_code != 0) return fail(ErrorKind::Unavailable, "{}: start {}: {}", name(), launch.argv[0], last_line(output->err));
        auto identity = launched(output->out);
        if (!identity) return fail(identity.error().during(name()));
        return identity;
    }

private:
    /// In a plain /bin/sh, whatever the login shell is.
    Result<Output> shell(std::string const& script, std::string_view input = {}, std::chrono::milliseconds limit = std::chrono::seconds(30)) {
        auto result = session_.exec("exec /bin/sh -c " + shell_quote(script), input, limit);
        if (!result) return std::unexpected(result.error());
        return Output{result->exit_code, std::move(result->out), std::move(result->err)};
    }

    remote::SshSession session_;
};

} // namespace

std::unique_ptr<HostDriver> local_driver(std::string name) { return std::make_unique<LocalHost>(std::move(name)); }

Result<std::unique_ptr<HostDriver>> ssh_driver(remote::SshTarget target) {
    auto session = remote::SshSession::connect(std::move(target));
    if (!session) return std::unexpected(session.error());
    return std::make_unique<SshHost>(std::move(*session));
}

} // namespace ocrctl::deployer
