#include "deployer/host_driver.hpp"

#include "deployer/ports.hpp"
#include "lib/base/files.hpp"

#include <csignal>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace ocrctl::deployer {
namespace {

namespace fs = std::filesystem;

struct Folder {
    fs::path path;
    Folder() {
        char pattern[] = "/tmp/ocrctl-driver-XXXXXX";
        path = mkdtemp(pattern);
    }
    ~Folder() { remove_tree(path); }
};

TEST(LocalDriver, RunsAProgramAndTellsItsOutputsAndExitCode) {
    auto driver = local_driver("here");
    auto output = driver->run({"/bin/sh", "-c", "cat; echo bad >&2; exit 9"}, "in");
    ASSERT_TRUE(output) << output.error().message();
    EXPECT_EQ(output->exit_code, 9);
    EXPECT_EQ(output->out, "in");
    EXPECT_EQ(output->err, "bad\n");
}

TEST(LocalDriver, AMissingProgramIsExitCode127AsInAShell) {
    auto output = local_driver("here")->run({"/no/such/program"});
    ASSERT_TRUE(output);
    EXPECT_EQ(output->exit_code, 127);
}

TEST(LocalDriver, GivesUpAtTheLimit) {
    auto output = local_driver("here")->run({"/bin/sleep", "30"}, {}, std::chrono::milliseconds(100));
    ASSERT_FALSE(output);
    EXPECT_EQ(output.error().kind(), ErrorKind::Timeout);
}

TEST(LocalDriver, LaunchReportsTheIdentityOfWhatRunsAndItCarriesItsMarks) {
    Folder folder;
    auto driver = local_driver("here");
    Launch launch;
    launch.argv = {"/bin/sleep", "60"};
    launch.env = {{"OCRCTL_DEPLOYMENT", "dep it's 1"}, {"OCRCTL_ENTRY", "agent"}};
    launch.log = (folder.path / "logs dir" / "x.log").string();
    auto identity = driver->launch(launch);
    ASSERT_TRUE(identity) << identity.error().message();
    EXPECT_TRUE(process::alive(*identity));
    // The identity is reported by the shell that becomes the program a moment later.
    auto row = process::row_of(identity->pid);
    for (int i = 0; i < 1000 && row && row->command != "sleep"; ++i, row = process::row_of(identity->pid)) ::usleep(5000);
    ASSERT_TRUE(row);
    EXPECT_EQ(row->command, "sleep");
    EXPECT_EQ(row->session, identity->pid);
    EXPECT_EQ(process::marks_of(identity->pid).deployment, "dep it's 1");
    (void)process::signal_one(*identity, SIGKILL);
}

TEST(LocalDriver, BringsAProgramUnderItsNameOnceAndKeepsIt) {
    Folder folder;
    auto driver = local_driver("here");
    auto target = folder.path / "bin" / "x" / "true";
    ASSERT_TRUE(driver->bring("/bin/true", target.string()));
    auto output = driver->run({target.string()});
    ASSERT_TRUE(output);
    EXPECT_EQ(output->exit_code, 0);
    EXPECT_TRUE(driver->bring("/no/such/file", target.string())) << "what is there is kept";
}

TEST(Launched, RefusesWhatIsNoReport) {
    EXPECT_FALSE(launched(""));
    EXPECT_FALSE(launched("bash: setsid: not found"));
    EXPECT_TRUE(launched("0cbb1f46-1a73-4b3c-8b2a-0d4a0b3c9a11\n4711 123456\n"));
}

TEST(Ports, AHeldPortIsNamedWithItsHolder) {
    Fd listener(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    ASSERT_EQ(::listen(listener.get(), 1), 0);
    ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    int port = ntohs(address.sin_port);
    EXPECT_FALSE(port_free("127.0.0.1", port));
    EXPECT_FALSE(port_free("localhost", port));
    auto holder = port_holder(port);
    ASSERT_TRUE(holder);
    EXPECT_EQ(holder->find("pid " + std::to_string(::getpid()) + " ("), 0u) << *holder;
    listener.close();
    EXPECT_TRUE(port_free("127.0.0.1", port));
    int chosen = choose_port();
    EXPECT_GE(chosen, 20000);
    EXPECT_TRUE(port_free("127.0.0.1", chosen));
}

TEST(Ports, OnesChosenBeforeAreNotChosenAgain) {
    std::set<int> taken;
    for (int port = 20000; port <= 32000; ++port) taken.insert(port);
    EXPECT_EQ(choose_port(taken), 0);
    int left = choose_port();
    taken.erase(left);
    EXPECT_EQ(choose_port(taken), left);
}

} // namespace
} // namespace ocrctl::deployer
