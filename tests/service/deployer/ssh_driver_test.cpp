#include "deployer/host_driver.hpp"
#include "deployer/host_setup.hpp"

#include "lib/base/files.hpp"
#include "tests/support/ssh_host.hpp"

#include <csignal>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace ocrctl::deployer {
namespace {

class SshDriverTest : public testing::Test {
protected:
    void SetUp() override {
        if (auto reason = test::SshHost::missing(); !reason.empty()) GTEST_SKIP() << reason;
        host_ = std::make_unique<test::SshHost>();
        record_.connection = "ssh";
        record_.address = "127.0.0.1";
        record_.port = host_->port();
        record_.username = host_->user();
        record_.private_key = host_->key().string();
        record_.host_key = host_->fingerprint();
        auto driver = driver_for("ocr1", record_);
        ASSERT_TRUE(driver) << driver.error().message();
        driver_ = std::move(*driver);
    }

    std::unique_ptr<test::SshHost> host_;
    HostRecord record_;
    std::unique_ptr<HostDriver> driver_;
};

TEST_F(SshDriverTest, TellsWhereStateBelongsAndWhatMachineItIs) {
    auto look = driver_->look();
    ASSERT_TRUE(look) << look.error().message();
    EXPECT_EQ(look->boot, process::boot_id());
    EXPECT_EQ(look->state_root.front(), '/');
    EXPECT_FALSE(look->machine.empty());
}

TEST_F(SshDriverTest, LaunchReportsTheIdentityAndTheProgramOutlivesTheConnection) {
    Launch launch;
    launch.argv = {"/bin/sleep", "60"};
    launch.env = {{"OCRCTL_DEPLOYMENT", "ssh test"}, {"OCRCTL_HOST", "ocr1"}};
    launch.log = (host_->folder() / "deep" / "x.log").string();
    auto identity = driver_->launch(launch);
    ASSERT_TRUE(identity) << identity.error().message();
    EXPECT_TRUE(*alive_on(*driver_, *identity));
    driver_.reset();
    EXPECT_TRUE(process::alive(*identity));
    EXPECT_EQ(process::marks_of(identity->pid).deployment, "ssh test");
    (void)process::signal_one(*identity, SIGKILL);
    auto again = driver_for("ocr1", record_);
    ASSERT_TRUE(again);
    for (int i = 0; i < 500 && *alive_on(**again, *identity); ++i) ::usleep(10000);
    EXPECT_FALSE(*alive_on(**again, *identity));
}

TEST_F(SshDriverTest, AnotherProcessUnderTheSamePidIsNotAlive) {
    auto self = process::own_identity();
    EXPECT_TRUE(*alive_on(*driver_, self));
    auto stranger = self;
    stranger.start += 1;
    EXPECT_FALSE(*alive_on(*driver_, stranger));
    stranger = self;
    stranger.boot = "00000000-0000-0000-0000-000000000000";
    EXPECT_FALSE(*alive_on(*driver_, stranger));
}

TEST_F(SshDriverTest, PutsSecretsWhereOnlyTheUserReadsThem) {
    auto file = host_->folder() / "secrets" / "amqp-url";
    auto put = driver_->put(file.string(), "amqp://u:it's@h/", 0600);
    ASSERT_TRUE(put) << put.error().message();
    EXPECT_EQ(*read_file(file), "amqp://u:it's@h/");
    EXPECT_EQ(std::filesystem::status(file).permissions() & std::filesystem::perms::all, std::filesystem::perms(0600));
    EXPECT_EQ(std::filesystem::status(file.parent_path()).permissions() & std::filesystem::perms::all, std::filesystem::perms(0700));
}

TEST_F(SshDriverTest, AMissingSharedLibraryIsNamedWithItsPackage) {
    // What the loader says when ocrctl is started on a host that lacks a library.
    auto fake = host_->folder() / "ocrctl";
    std::ofstream(fake) << "#!/bin/sh\necho 'ocrctl: error while loading shared libraries: libssh.so.4: cannot open shared object file: No such file or directory' >&2\nexit 127\n";
    std::filesystem::permissions(fake, std::filesystem::perms(0755));
    HostPlan plan;
    plan.name = "ocr1";
    auto missing = missing_on(*driver_, plan, fake.string(), {});
    ASSERT_EQ(missing.size(), 1u);
    EXPECT_EQ(missing[0], "ocr1: the shared library libssh.so.4 is not installed: apt-get install libssh-4");
}

TEST_F(SshDriverTest, AMissingLanguageModelIsNamedWithItsPackageAndThoseInTheConfigsFoldersAreFound) {
    HostPlan plan;
    plan.name = "ocr1";
    plan.models = {"xyz_old", "mine"};
    auto folder = host_->folder() / "my models";
    std::filesystem::create_directory(folder);
    std::ofstream(folder / "mine.traineddata") << "x";
    auto missing = missing_on(*driver_, plan, "/bin/true", {folder});
    ASSERT_EQ(missing.size(), 1u);
    EXPECT_NE(missing[0].find("ocr1: the language model xyz_old is not installed: apt-get install tesseract-ocr-xyz-old"), std::string::npos) << missing[0];
}

} // namespace
} // namespace ocrctl::deployer
