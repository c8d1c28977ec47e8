#include "lib/log/log.hpp"

#include "lib/base/secret.hpp"

#include <gtest/gtest.h>

namespace ocrctl {
namespace {

TEST(Log, WritesOneLineOfKeyValuesAndQuotesWhatNeedsIt) {
    testing::internal::CaptureStderr();
    log::Logger("deployer").with(log::kv("deployment", "d7")).info("worker.started", log::kv("pid", 4711), log::kv("error", "a \"b\"\nc"));
    auto line = testing::internal::GetCapturedStderr();
    EXPECT_NE(line.find("level=info area=deployer event=worker.started deployment=d7 pid=4711 error=\"a \\\"b\\\"\\nc\"\n"),
              std::string::npos)
        << line;
    EXPECT_EQ(line.rfind("ts=20", 0), 0u) << line;
}

TEST(Log, NeverShowsASecret) {
    testing::internal::CaptureStderr();
    log::Logger("x").info("y", log::kv("password", Secret("hunter2")));
    EXPECT_EQ(testing::internal::GetCapturedStderr().find("hunter2"), std::string::npos);
}

TEST(Log, LeavesOutWhatIsBelowItsLevel) {
    testing::internal::CaptureStderr();
    log::Logger("x").debug("quiet");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
    EXPECT_FALSE(log::set_level("loud"));
}

} // namespace
} // namespace ocrctl
