#include "cmd/tiff_frames.hpp"
#include "tests/unit/cmd/folder.hpp"

using namespace ocrctl;

using TiffFramesTest = test::Folder;

namespace {

struct Directory {
    std::uint32_t width, height, subfile_type;
};

/// A TIFF of directories only: no pixels are needed to count pages.
std::string tiff(std::vector<Directory> const& directories, bool big_endian, bool big) {
    std::string out;
    auto put = [&](std::uint64_t value, int bytes) {
        for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> 8 * (big_endian ? bytes - 1 - i : i) & 0xff);
    };
    out += big_endian ? "MM" : "II";
    put(big ? 43 : 42, 2);
    if (big) {
        put(8, 2);
        put(0, 2);
    }
    int const wide = big ? 8 : 4;
    std::uint64_t at = out.size() + static_cast<std::uint64_t>(wide);
    put(at, wide);
    for (std::size_t i = 0; i < directories.size(); ++i) {
        std::uint64_t const size = (big ? 8u : 2u) + 3 * (big ? 20u : 12u) + static_cast<unsigned>(wide);
        auto entry = [&](int tag, int type, std::uint64_t value) {
            put(static_cast<std::uint64_t>(tag), 2);
            put(static_cast<std::uint64_t>(type), 2);
            put(1, wide);
            int const bytes = type == 3 ? 2 : 4;
            put(value, bytes);
            put(0, wide - bytes);
        };
        put(3, big ? 8 : 2);
        entry(254, 4, directories[i].subfile_type);
        entry(256, 3, directories[i].width);
        entry(257, 4, directories[i].height);
        at += size;
        put(i + 1 < directories.size() ? at : 0, wide);
    }
    return out;
}

} // namespace

TEST_F(TiffFramesTest, CountsPagesInEveryByteOrderAndSize) {
    for (bool big_endian : {false, true})
        for (bool big : {false, true}) {
            auto frames = tiff_frames(file("t.tif", tiff({{10, 20, 2}, {1, 2, 1}, {30, 40, 2}, {30, 40, 4}}, big_endian, big)));
            ASSERT_EQ(frames.pages.size(), 2u) << big_endian << big;
            EXPECT_FALSE(frames.damaged);
            EXPECT_EQ(frames.pages[0].width, 10u);
            EXPECT_EQ(frames.pages[1].height, 40u);
        }
}

TEST_F(TiffFramesTest, IsNotFooledByOtherFilesAndDamage) {
    EXPECT_TRUE(tiff_frames(file("a", "")).pages.empty());
    EXPECT_TRUE(tiff_frames(file("a", "II")).pages.empty());
    EXPECT_TRUE(tiff_frames(file("a", "\x89PNG\r\n\x1a\n")).pages.empty());
    EXPECT_TRUE(tiff_frames(folder / "none").pages.empty());
    auto whole = tiff({{10, 20, 0}, {30, 40, 0}}, false, false);
    for (std::size_t cut = 0; cut + 4 < whole.size(); ++cut) EXPECT_LE(tiff_frames(file("a", whole.substr(0, cut))).pages.size(), 1u) << cut;
    // A directory that is its own successor.
    auto circle = tiff({{10, 20, 0}}, false, false);
    circle[circle.size() - 4] = 8;
    EXPECT_EQ(tiff_frames(file("a", circle)).pages.size(), 1u);
    EXPECT_TRUE(tiff_frames(file("a", circle)).damaged);
}

TEST_F(TiffFramesTest, SaysThatPagesMayBeMissing) {
    for (bool big_endian : {false, true})
        for (bool big : {false, true}) {
            auto const whole = tiff({{10, 20, 0}, {30, 40, 0}, {50, 60, 0}}, big_endian, big);
            auto const head = std::size_t{big ? 16u : 8u}, size = (whole.size() - head) / 3;
            for (std::size_t cut = head; cut < whole.size(); cut += 3) {
                auto const frames = tiff_frames(file("a", whole.substr(0, cut)));
                EXPECT_TRUE(frames.damaged) << cut;
                EXPECT_EQ(frames.pages.size(), (cut - head) / size + ((cut - head) % size >= size - (big ? 12u : 4u) ? 1u : 0u)) << cut;
            }
            EXPECT_FALSE(tiff_frames(file("a", whole)).damaged);
        }
    // A page without a size.
    auto const frames = tiff_frames(file("a", tiff({{10, 20, 0}, {0, 40, 0}, {50, 60, 0}}, false, false)));
    EXPECT_EQ(frames.pages.size(), 1u);
    EXPECT_TRUE(frames.damaged);
    EXPECT_FALSE(tiff_frames(file("a", "no TIFF at all")).damaged);
}
