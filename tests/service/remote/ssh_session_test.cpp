#include "lib/remote/ssh_session.hpp"

#include "lib/base/files.hpp"
#include "tests/support/ssh_host.hpp"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace ocrctl::remote {
namespace {

namespace fs = std::filesystem;
using testing::Test;

class SshSessionTest : public Test {
protected:
    void SetUp() override {
        if (auto reason = test::SshHost::missing(); !reason.empty()) GTEST_SKIP() << reason;
        host_ = std::make_unique<test::SshHost>();
    }

    SshTarget target() const {
        SshTarget target;
        target.name = "ocr1";
        target.address = "127.0.0.1";
        target.port = host_->port();
        target.username = host_->user();
        target.private_key = host_->key();
        target.known_hosts = host_->known_hosts();
        return target;
    }

    std::unique_ptr<test::SshHost> host_;
};

#define EXPECT_CONTAINS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << text

TEST_F(SshSessionTest, RunsACommandAndTellsItsOutputsAndExitCode) {
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session) << session.error().message();
    auto result = session->exec("cat; echo problem >&2; exit 7", "given on stdin");
    ASSERT_TRUE(result) << result.error().message();
    EXPECT_EQ(result->exit_code, 7);
    EXPECT_EQ(result->out, "given on stdin");
    EXPECT_CONTAINS(result->err, "problem\n");
}

TEST_F(SshSessionTest, DrainsMuchOfBothOutputsAtOnce) {
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session) << session.error().message();
    auto result = session->exec("head -c 3000000 /dev/zero >&2 & head -c 3000000 /dev/zero; wait");
    ASSERT_TRUE(result) << result.error().message();
    EXPECT_EQ(result->out.size(), 3000000u);
    EXPECT_GE(result->err.size(), 3000000u);
}

TEST_F(SshSessionTest, EndsACommandThatDoesNotReadItsInput) {
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session) << session.error().message();
    auto result = session->exec("exit 3", std::string(5000000, 'x'), std::chrono::seconds(20));
    ASSERT_TRUE(result) << result.error().message();
    EXPECT_EQ(result->exit_code, 3);
}

TEST_F(SshSessionTest, GivesUpOnACommandAtItsLimit) {
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session) << session.error().message();
    auto result = session->exec("sleep 3", {}, std::chrono::milliseconds(200));
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind(), ErrorKind::Timeout);
}

TEST_F(SshSessionTest, UploadsAFileWithItsModeAndReplacesWhatWasThere) {
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session) << session.error().message();
    auto local = host_->folder() / "local.bin";
    std::string content(3 * 1024 * 1024 + 17, '\0');
    for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 + (i >> 9));
    std::ofstream(local, std::ios::binary) << content;
    auto remote = host_->folder() / "new folder" / "it's.bin";
    for (int round = 0; round < 2; ++round) {
        auto done = session->upload(local, remote.string(), 0755);
        ASSERT_TRUE(done) << done.error().message();
    }
    EXPECT_EQ(*sha256_of_file(remote), *sha256_of_file(local));
    EXPECT_EQ(fs::status(remote).permissions() & fs::perms::all, fs::perms(0755));
    EXPECT_EQ(std::distance(fs::directory_iterator(remote.parent_path()), fs::directory_iterator()), 1) << "a temporary file is left";
}

TEST_F(SshSessionTest, AnUploadThatIsCutOffLeavesNothing) {
    auto local = host_->folder() / "large.bin";
    std::ofstream(local).close();
    fs::resize_file(local, 4ull << 30);
    auto folder = host_->folder() / "cut off";
    auto child = ::fork();
    ASSERT_NE(child, -1);
    if (child == 0) {
        auto session = SshSession::connect(target());
        if (session) (void)session->upload(local, (folder / "large.bin").string(), 0755);
        std::_Exit(0); // is not reached
    }
    auto arrived = [&] {
        std::error_code error;
        for (auto const& file : fs::directory_iterator(folder, error))
            if (file.file_size(error) > 0 && !error) return true;
        return false;
    };
    auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!arrived() && std::chrono::steady_clock::now() < until) ::poll(nullptr, 0, 5);
    EXPECT_TRUE(arrived());
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "it was through before";
    while (!fs::is_empty(folder) && std::chrono::steady_clock::now() < until) {
        ASSERT_FALSE(fs::exists(folder / "large.bin")) << "a part counts as the whole";
        ::poll(nullptr, 0, 5);
    }
    EXPECT_TRUE(fs::is_empty(folder));
}

TEST_F(SshSessionTest, UploadSaysWhyItFailed) {
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session) << session.error().message();
    auto done = session->upload(host_->key(), "/proc/nowhere/file");
    ASSERT_FALSE(done);
    EXPECT_CONTAINS(done.error().message(), "/proc/nowhere");
}

TEST_F(SshSessionTest, RefusesAnUnknownHostKeyAndNamesItsFingerprint) {
    auto wanted = target();
    wanted.known_hosts = host_->empty_known_hosts();
    auto session = SshSession::connect(wanted);
    ASSERT_FALSE(session);
    EXPECT_EQ(session.error().kind(), ErrorKind::Denied);
    EXPECT_CONTAINS(session.error().message(), host_->fingerprint());
    EXPECT_CONTAINS(session.error().message(), "ocrctl trust ocr1");
}

TEST_F(SshSessionTest, ConnectsOnceTheHostKeyIsTrusted) {
    auto wanted = target();
    wanted.known_hosts = host_->empty_known_hosts();
    auto key = host_key_of(wanted);
    ASSERT_TRUE(key) << key.error().message();
    EXPECT_EQ(key->fingerprint, host_->fingerprint());
    EXPECT_FALSE(key->known);
    EXPECT_FALSE(trust_host_key(wanted, "SHA256:another"));
    auto trusted = trust_host_key(wanted, key->fingerprint);
    ASSERT_TRUE(trusted) << trusted.error().message();
    auto session = SshSession::connect(wanted);
    EXPECT_TRUE(session) << session.error().message();
}

TEST_F(SshSessionTest, RefusesAHostKeyThatHasChanged) {
    test::SshHost other;
    auto text = read_file(other.known_hosts());
    auto key = text->substr(text->find(' '));
    std::ofstream(host_->empty_known_hosts()) << "[127.0.0.1]:" << host_->port() << key;
    auto wanted = target();
    wanted.known_hosts = host_->empty_known_hosts();
    auto session = SshSession::connect(wanted);
    ASSERT_FALSE(session);
    EXPECT_EQ(session.error().kind(), ErrorKind::Denied);
    EXPECT_CONTAINS(session.error().message(), "has changed");
}

TEST_F(SshSessionTest, AcceptsThePinnedHostKeyAndNoOther) {
    auto wanted = target();
    wanted.known_hosts = host_->empty_known_hosts();
    wanted.host_key = host_->fingerprint();
    auto session = SshSession::connect(wanted);
    EXPECT_TRUE(session) << session.error().message();
    wanted.host_key = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    auto refused = SshSession::connect(wanted);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::Denied);
    EXPECT_CONTAINS(refused.error().message(), host_->fingerprint());
}

TEST_F(SshSessionTest, SaysWhichKeyTheHostDoesNotAccept) {
    auto wanted = target();
    wanted.private_key = host_->wrong_key();
    auto session = SshSession::connect(wanted);
    ASSERT_FALSE(session);
    EXPECT_EQ(session.error().kind(), ErrorKind::Denied);
    EXPECT_CONTAINS(session.error().message(), "does not accept the key " + host_->wrong_key().string());
}

TEST_F(SshSessionTest, TellsAMissingKeyFromABrokenOne) {
    auto wanted = target();
    wanted.private_key = host_->folder() / "no_such_key";
    auto missing = SshSession::connect(wanted);
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().kind(), ErrorKind::NotFound);
    wanted.private_key = host_->folder() / "sshd_config";
    auto broken = SshSession::connect(wanted);
    ASSERT_FALSE(broken);
    EXPECT_EQ(broken.error().kind(), ErrorKind::Invalid);
}

TEST_F(SshSessionTest, SaysThatThePasswordIsRefused) {
    auto wanted = target();
    wanted.private_key.clear();
    wanted.password = Secret("not the password");
    auto session = SshSession::connect(wanted);
    ASSERT_FALSE(session);
    EXPECT_EQ(session.error().kind(), ErrorKind::Denied);
    EXPECT_CONTAINS(session.error().message(), "does not accept the password");
    EXPECT_EQ(session.error().message().find("not the password\""), std::string::npos);
}

TEST_F(SshSessionTest, SaysThatTheHostCannotBeReached) {
    auto wanted = target();
    host_->stop();
    auto session = SshSession::connect(wanted);
    ASSERT_FALSE(session);
    EXPECT_EQ(session.error().kind(), ErrorKind::Unavailable);
    EXPECT_CONTAINS(session.error().message(), "ocr1");
    EXPECT_CONTAINS(session.error().message(), "cannot be reached");
}

TEST_F(SshSessionTest, NoticesThatTheConnectionWasCut) {
    auto session = SshSession::connect(target());
    ASSERT_TRUE(session) << session.error().message();
    std::thread cutter([&] { host_->stop(); });
    auto result = session->exec("sleep 5; true", {}, std::chrono::seconds(20));
    cutter.join();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind(), ErrorKind::Unavailable);
}

TEST_F(SshSessionTest, TwoHostsAreUsedAtTheSameTime) {
    test::SshHost other;
    auto first = target();
    auto second = first;
    second.port = other.port();
    second.private_key = other.key();
    second.known_hosts = other.known_hosts();
    auto work = [](SshTarget const& wanted, int& good) {
        for (int round = 0; round < 3; ++round) {
            auto session = SshSession::connect(wanted);
            if (!session) return;
            for (int i = 0; i < 10; ++i) {
                auto result = session->exec("echo " + std::to_string(i));
                if (result && result->out == std::to_string(i) + "\n") ++good;
            }
        }
    };
    int one = 0, two = 0;
    std::thread thread([&] { work(first, one); });
    work(second, two);
    thread.join();
    EXPECT_EQ(one, 30);
    EXPECT_EQ(two, 30);
}

TEST(ShellQuote, LeavesPlainWordsAndQuotesTheRest) {
    EXPECT_EQ(shell_quote("/a/b-c_1.txt"), "/a/b-c_1.txt");
    EXPECT_EQ(shell_quote(""), "''");
    EXPECT_EQ(shell_quote("a b"), "'a b'");
    EXPECT_EQ(shell_quote("it's $HOME"), "'it'\\''s $HOME'");
}

} // namespace
} // namespace ocrctl::remote
