#include "lib/base/clock.hpp"
#include "lib/base/error.hpp"
#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/base/secret.hpp"
#include "lib/base/text.hpp"

#include <gtest/gtest.h>
#include <set>
#include <sys/stat.h>

namespace ocrctl {
namespace {

TEST(Error, KeepsItsKindAndTellsTheActionAboveIt) {
    auto error = Error(ErrorKind::Unavailable, "connection refused").during("start worker ocrd-x on ocr1");
    EXPECT_EQ(error.kind(), ErrorKind::Unavailable);
    EXPECT_EQ(error.message(), "start worker ocrd-x on ocr1: connection refused");
    EXPECT_EQ(error.http_status(), 503);
    EXPECT_EQ(error.exit_code(), 1);
}

TEST(Ids, AreTimeOrderedAndDistinct) {
    std::set<std::string> seen;
    std::string last;
    for (int i = 0; i < 10000; ++i) {
        auto id = new_uuid();
        EXPECT_LT(last, id);
        EXPECT_EQ(id.size(), 36u);
        EXPECT_EQ(id[14], '7');
        last = id;
        seen.insert(id);
    }
    EXPECT_EQ(seen.size(), 10000u);
}

TEST(Ids, UlidsSortByTheirMaking) {
    auto last = new_ulid();
    for (int i = 0; i < 5000; ++i) {
        auto next = new_ulid();
        EXPECT_EQ(next.size(), 26u);
        EXPECT_LT(last, next);
        last = next;
    }
}

TEST(Secret, NeverPrintsItsValue) { EXPECT_EQ(fmt::format("{}", Secret("hunter2")), "***"); }

TEST(Text, KnowsUtf8) {
    for (auto const* good : {"", "a", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf"}) EXPECT_TRUE(is_utf8(good)) << good;
    for (auto const* bad : {"\xe4", "a\xff", "\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xe2\x82"})
        EXPECT_FALSE(is_utf8(bad)) << bad;
}

TEST(Text, SuggestsTheNearestWordAndNothingFarAway) {
    EXPECT_EQ(closest("adress", {"address", "port", "username"}), "address");
    EXPECT_EQ(closest("completely", {"address", "port"}), "");
    EXPECT_EQ(split("a,b,,c", ',').size(), 4u);
    EXPECT_TRUE(split("", ',').empty());
}

class FilesTest : public testing::Test {
protected:
    void SetUp() override {
        std::string pattern = testing::TempDir() + "ocrctl-files-XXXXXX";
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        folder_ = pattern;
    }
    void TearDown() override { remove_tree(folder_); }
    std::filesystem::path folder_;
};

TEST_F(FilesTest, WritesAtomicallyWithTheModeAskedForAndLeavesNoTemporaryFile) {
    auto file = folder_ / "secret";
    ASSERT_TRUE(write_file_atomically(file, "one", 0600));
    ASSERT_TRUE(write_file_atomically(file, "two", 0600));
    EXPECT_EQ(*read_file(file), "two");
    struct stat info {};
    ASSERT_EQ(stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

TEST_F(FilesTest, ReportsAFileThatIsNotThere) {
    auto content = read_file(folder_ / "none");
    ASSERT_FALSE(content);
    EXPECT_EQ(content.error().kind(), ErrorKind::NotFound);
}

TEST_F(FilesTest, DigestsTextAndFileAlike) {
    ASSERT_TRUE(write_file_atomically(folder_ / "f", "abc"));
    EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(*sha256_of_file(folder_ / "f"), sha256_hex("abc"));
}

TEST(Clock, PrintsUtcWithMilliseconds) { EXPECT_EQ(format_time(1772356327114), "2026-03-01T09:12:07.114Z"); }

} // namespace
} // namespace ocrctl
