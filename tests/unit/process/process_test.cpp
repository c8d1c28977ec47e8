#include "lib/process/process.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <csignal>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace ocrctl::process {
namespace {

using namespace std::chrono_literals;

template <class Condition>
bool eventually(Condition condition, std::chrono::milliseconds limit = 5s) {
    auto end = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        ::poll(nullptr, 0, 5);
    }
    return true;
}

Child started(SpawnOptions options) {
    auto child = spawn(options);
    EXPECT_TRUE(child.has_value()) << child.error().message();
    return child ? std::move(*child) : Child{};
}

Child shell(std::string script, std::map<std::string, std::string> env = {}) {
    SpawnOptions options;
    options.argv = {"/bin/sh", "-c", std::move(script)};
    options.env = std::move(env);
    return started(std::move(options));
}

std::string read_all(int fd) {
    std::string text;
    char buffer[512];
    for (;;) {
        auto got = ::read(fd, buffer, sizeof buffer);
        if (got <= 0) return text;
        text.append(buffer, static_cast<std::size_t>(got));
    }
}

TEST(Identity, OfThisProcessIsStableAndAlive) {
    auto self = own_identity();
    EXPECT_EQ(self.pid, ::getpid());
    EXPECT_EQ(self, own_identity());
    EXPECT_TRUE(alive(self));
    auto again = Json(self).get<Identity>();
    EXPECT_EQ(again, self);
}

TEST(Identity, AnotherStartTimeOrBootIsAnotherProcess) {
    auto other = own_identity();
    ++other.start;
    EXPECT_FALSE(alive(other));
    other = own_identity();
    other.boot = "another boot";
    EXPECT_FALSE(alive(other));
    EXPECT_FALSE(signal_group(other, SIGTERM).has_value());
}

TEST(Identity, AZombieIsDead) {
    auto child = shell("exit 0");
    ASSERT_TRUE(eventually([&] { return row_of(child.identity.pid)->state == 'Z'; }));
    EXPECT_FALSE(alive(child.identity));
    EXPECT_TRUE(wait_for(child.pidfd.get(), 5s)->success());
    EXPECT_FALSE(row_of(child.identity.pid).has_value());
}

TEST(Identity, IsReadPastANameWithBrackets) {
    auto child = shell("printf ') (x) 1 2' > /proc/$$/comm; echo ok; read line");
    ASSERT_TRUE(eventually([&] { return row_of(child.identity.pid)->command == ") (x) 1 2"; }) || true);
    EXPECT_EQ(row_of(child.identity.pid)->identity, child.identity);
    (void)signal_group(child.identity, SIGKILL);
    (void)wait_for(child.pidfd.get(), 5s);
}

TEST(Spawn, GivesArgumentsInputEnvironmentAndFolder) {
    SpawnOptions options;
    options.argv = {"sh", "-c", "read line; echo \"$1|$line|$COLOUR|$(pwd)|$HOME\"", "x", "an argument"};
    options.input = "hello\n";
    options.env = {{"COLOUR", "blue"}, {"HOME", "/nowhere"}};
    options.cwd = "/usr";
    options.pipe_output = true;
    auto child = started(std::move(options));
    EXPECT_EQ(read_all(child.output.get()), "an argument|hello|blue|/usr|/nowhere\n");
    EXPECT_TRUE(wait_for(child.pidfd.get(), 5s)->success());
}

TEST(Spawn, HandsOverTheNamedDescriptorsAndNoOthers) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0); // inheritable, and yet not inherited
    SpawnOptions options;
    options.argv = {"/bin/sh", "-c", "echo to-seven >&7; ls /proc/self/fd | tr '\\n' ' '"};
    options.fds = {{7, ends[1]}};
    options.pipe_output = true;
    auto child = started(std::move(options));
    ::close(ends[1]);
    EXPECT_EQ(read_all(ends[0]), "to-seven\n");
    ::close(ends[0]);
    EXPECT_EQ(read_all(child.output.get()), "0 1 2 3 7 "); // 3 is the folder that ls reads
    (void)wait_for(child.pidfd.get(), 5s);
}

TEST(Spawn, LeadsItsOwnSession) {
    auto child = shell("sleep 60");
    auto row = row_of(child.identity.pid);
    ASSERT_TRUE(row.has_value());
    EXPECT_EQ(row->session, child.identity.pid);
    EXPECT_EQ(row->group, child.identity.pid);
    EXPECT_TRUE(stop_processes(std::vector{child.identity}, 2s).left.empty());
    EXPECT_EQ(wait_for(child.pidfd.get(), 5s)->text(), "was killed by SIGTERM (15)");
}

TEST(Spawn, SaysThatAProgramOrFolderIsMissing) {
    SpawnOptions options;
    options.argv = {"no-such-program-here"};
    auto child = spawn(options);
    ASSERT_FALSE(child.has_value());
    EXPECT_EQ(child.error().kind(), ErrorKind::NotFound);
    EXPECT_EQ(child.error().message(), "start no-such-program-here: no program no-such-program-here in PATH");
    options.argv = {"/bin/true"};
    options.cwd = "/no/such/folder";
    child = spawn(options);
    ASSERT_FALSE(child.has_value());
    EXPECT_EQ(child.error().kind(), ErrorKind::NotFound);
}

TEST(Spawn, SaysThatTheInterpreterOfAScriptIsMissing) {
    auto script = std::filesystem::temp_directory_path() / ("script-" + random_hex(4));
    ASSERT_TRUE(write_file_atomically(script, "#!/no/such/venv/bin/python -s\nprint(1)\n", 0755).has_value());
    SpawnOptions options;
    options.argv = {script.native()};
    auto child = spawn(options);
    std::filesystem::remove(script);
    ASSERT_FALSE(child.has_value());
    EXPECT_EQ(child.error().message(), fmt::format("start {0}: {0} begins with #!/no/such/venv/bin/python, which is not there", script.native()));
}

TEST(Spawn, AppendsBothOutputsToTheLog) {
    auto folder = std::filesystem::temp_directory_path() / ("ocrctl-test-" + random_hex(6));
    ASSERT_TRUE(make_folder(folder).has_value());
    for (int i = 0; i < 2; ++i) {
        SpawnOptions options;
        options.argv = {"/bin/sh", "-c", "echo out; echo err >&2"};
        options.log = folder / "x.log";
        auto child = started(std::move(options));
        (void)wait_for(child.pidfd.get(), 5s);
    }
    EXPECT_EQ(*read_file(folder / "x.log"), "out\nerr\nout\nerr\n");
    remove_tree(folder);
}

TEST(Wait, OnAsioReapsAndTellsHowItEnded) {
    asio::io_context io;
    auto child = shell("exit 7");
    ExitStatus status;
    asio::co_spawn(
        io, [&]() -> awaitable<void> { status = co_await wait(child.pidfd.get()); },
        [](std::exception_ptr problem) { EXPECT_FALSE(problem); });
    io.run_for(5s);
    EXPECT_EQ(status.text(), "ended with code 7");
    EXPECT_FALSE(row_of(child.identity.pid).has_value());
}

TEST(Wait, OnAStrangersChildKnowsOnlyThatItEnded) {
    // The grandchild belongs to the shell, not to us.
    SpawnOptions options;
    options.argv = {"/bin/sh", "-c", "setsid sleep 0.2 & echo $!; wait"};
    options.pipe_output = true;
    auto child = started(std::move(options));
    char buffer[32]{};
    ASSERT_GT(::read(child.output.get(), buffer, sizeof buffer - 1), 0);
    auto grandchild = identity_of(std::atoi(buffer));
    ASSERT_TRUE(grandchild.has_value());
    auto pidfd = open_pidfd(*grandchild);
    ASSERT_TRUE(pidfd.has_value());
    auto status = wait_for(pidfd->get(), 5s);
    ASSERT_TRUE(status.has_value());
    EXPECT_FALSE(status->known);
    (void)wait_for(child.pidfd.get(), 5s);
}

TEST(Stop, KillsWhatIgnoresTermWithItsWholeSession) {
    auto child = shell("trap '' TERM; sleep 60 & sleep 60 & while :; do sleep 1; done");
    ASSERT_TRUE(eventually([&] {
        auto rows = table();
        return std::ranges::count(rows, child.identity.pid, &Row::session) >= 4;
    }));
    auto begin = std::chrono::steady_clock::now();
    EXPECT_TRUE(stop_processes(std::vector{child.identity}, 200ms).left.empty());
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 3s);
    EXPECT_EQ(wait_for(child.pidfd.get(), 5s)->signal, SIGKILL);
    for (auto const& row : table()) EXPECT_TRUE(row.session != child.identity.pid || row.state == 'Z');
}

TEST(Stop, EndsChildrenThatOutliveAPoliteParent) {
    auto child = shell("(trap '' TERM HUP; while :; do sleep 1; done) & trap 'exit 0' TERM; while :; do sleep 0.1; done");
    ASSERT_TRUE(eventually([&] {
        auto rows = table();
        return std::ranges::count(rows, child.identity.pid, &Row::session) >= 3;
    }));
    EXPECT_TRUE(stop_processes(std::vector{child.identity}, 3s).left.empty());
    for (auto const& row : table()) EXPECT_TRUE(row.session != child.identity.pid || row.state == 'Z');
    (void)wait_for(child.pidfd.get(), 5s);
}

TEST(Stop, FindsByMarksWhatLeftTheSessionAndWhatHasNoIdentity) {
    auto deployment = "test-" + random_hex(6);
    auto child = shell("setsid sleep 61 & exec sleep 62", {{kDeploymentMark, deployment}, {kEntryMark, "e1"}, {kHostMark, "h1"}});
    auto other = shell("exec sleep 63", {{kDeploymentMark, deployment}, {kEntryMark, "e2"}, {kHostMark, "h1"}});
    ASSERT_TRUE(eventually([&] {
        auto found = scan(deployment);
        return found.size() == 3 && std::ranges::all_of(found, [](auto const& one) { return one.command == "sleep"; });
    }));
    EXPECT_EQ(scan(deployment, "h2").size(), 0U);
    StopTarget target;
    target.marks = {deployment, "h1", "e1"};
    EXPECT_TRUE(stop_processes({target}, 1s).left.empty());
    auto rest = scan(deployment);
    ASSERT_EQ(rest.size(), 1U);
    EXPECT_EQ(rest[0].identity, other.identity);
    EXPECT_EQ(rest[0].entry, "e2");
    EXPECT_EQ(rest[0].command, "sleep");
    (void)stop_processes(std::vector{other.identity}, 1s);
    (void)wait_for(child.pidfd.get(), 5s);
    (void)wait_for(other.pidfd.get(), 5s);
    EXPECT_TRUE(scan(deployment).empty());
}

TEST(Scan, SeesAProcessThatIsBecomingAnotherProgram) {
    auto deployment = "test-" + random_hex(6);
    std::string const again = "exec /bin/sh -c \"$AGAIN\"";
    auto child = shell(again, {{"AGAIN", again}, {kDeploymentMark, deployment}, {kEntryMark, "e"}});
    int seen = 0;
    for (int i = 0; i < 2000; ++i) seen += marks_of(child.identity.pid).deployment == deployment;
    EXPECT_EQ(seen, 2000);
    EXPECT_EQ(scan(deployment).size(), 1u);
    (void)signal_one(child.identity, SIGKILL);
    EXPECT_TRUE(wait_for(child.pidfd.get(), 5s));
    EXPECT_TRUE(scan(deployment).empty());
}

TEST(Stop, LeavesAStrangerWithTheSameNumberAlone) {
    auto stranger = shell("sleep 60");
    auto past = stranger.identity;
    --past.start; // as if its number had been ours before
    EXPECT_TRUE(stop_processes(std::vector{past}, 100ms).left.empty());
    EXPECT_TRUE(alive(stranger.identity));
    (void)stop_processes(std::vector{stranger.identity}, 1s);
    (void)wait_for(stranger.pidfd.get(), 5s);
}

TEST(Strays, AreReapedAndOwnChildrenAreNot) {
    ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    auto own = shell("exit 3");
    auto parent = shell("(exec sleep 0.05) & exit 0");
    EXPECT_TRUE(wait_for(parent.pidfd.get(), 5s)->success());
    EXPECT_TRUE(eventually([&] {
        reap_strays();
        auto rows = table();
        return std::ranges::none_of(rows, [&](Row const& row) { return row.parent == ::getpid() && row.identity != own.identity; });
    }));
    EXPECT_EQ(wait_for(own.pidfd.get(), 5s)->code, 3);
    ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

TEST(MissingLibrary, NamesTheDebianPackage) {
    EXPECT_EQ(missing_library("x: error while loading shared libraries: libtesseract.so.5: cannot open shared object file"),
              "the shared library libtesseract.so.5 is not installed: apt-get install libtesseract5");
    EXPECT_EQ(missing_library("x: error while loading shared libraries: libopencv_core.so.406: cannot open"),
              "the shared library libopencv_core.so.406 is not installed: apt-get install libopencv-core406");
    EXPECT_EQ(missing_library("error while loading shared libraries: libsqlite3.so.0: c"),
              "the shared library libsqlite3.so.0 is not installed: apt-get install libsqlite3-0");
    EXPECT_EQ(missing_library("all is well"), std::nullopt);
}

} // namespace
} // namespace ocrctl::process
