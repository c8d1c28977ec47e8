#include "cmd/ocr_record.hpp"
#include "tests/unit/cmd/folder.hpp"

using namespace ocrctl;

using OcrRecordTest = test::Folder;

namespace {

PageRecord page(std::string base, std::string digest) {
    PageRecord record;
    record.base = std::move(base);
    record.digest = std::move(digest);
    return record;
}

} // namespace

TEST_F(OcrRecordTest, TheLastLineOfAPageCounts) {
    {
        auto record = OcrRecord::open(folder);
        ASSERT_TRUE(record) << record.error().message();
        ASSERT_TRUE(record->put(page("a", "1")));
        ASSERT_TRUE(record->put(page("b", "2")));
        ASSERT_TRUE(record->put(page("a", "3")));
    }
    auto record = OcrRecord::open(folder);
    EXPECT_EQ(record->find("a")->digest, "3");
    EXPECT_EQ(record->find("b")->digest, "2");
    EXPECT_EQ(record->find("c"), nullptr);
}

TEST_F(OcrRecordTest, ATornLastLineIsForgottenAndTheNextOneIsWhole) {
    {
        auto record = OcrRecord::open(folder);
        ASSERT_TRUE(record->put(page("a", "1")));
        ASSERT_TRUE(record->put(page("b", "2")));
    }
    std::filesystem::resize_file(folder / "record.jsonl", std::filesystem::file_size(folder / "record.jsonl") - 7);
    {
        auto record = OcrRecord::open(folder);
        EXPECT_EQ(record->find("b"), nullptr);
        ASSERT_TRUE(record->put(page("c", "3")));
    }
    auto record = OcrRecord::open(folder);
    EXPECT_EQ(record->find("a")->digest, "1");
    EXPECT_EQ(record->find("c")->digest, "3");
}

TEST_F(OcrRecordTest, ManyOutdatedLinesAreDropped) {
    {
        auto record = OcrRecord::open(folder);
        for (int i = 0; i < 500; ++i) ASSERT_TRUE(record->put(page("a", std::to_string(i))));
    }
    { auto record = OcrRecord::open(folder); }
    EXPECT_LT(std::filesystem::file_size(folder / "record.jsonl"), 1000u);
    EXPECT_EQ(OcrRecord::open(folder)->find("a")->digest, "499");
}
