#include "deployer/found_tools.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"

#include <gtest/gtest.h>

namespace ocrctl::deployer {
namespace {

namespace fs = std::filesystem;

class FoundToolsTest : public testing::Test {
protected:
    void SetUp() override { fs::create_directories(folder_ / "bin"); }
    void TearDown() override { remove_tree(folder_); }
    /// A program that notes each time it is asked.
    void program(std::string const& name, std::string const& answer) {
        auto text = fmt::format("#!/bin/sh\necho {0} >>{1}/asked\n[ \"$1\" = --dump-json ] || exit 1\n{2}\n", name,
                                folder_.string(), answer);
        ASSERT_TRUE(write_file_atomically(folder_ / "bin" / name, text, 0755));
    }
    UnitSpec unit(std::string const& processor, std::string const& executable = {}) const {
        UnitSpec spec;
        spec.kind = UnitKind::ForeignWorker;
        spec.argv = {executable.empty() ? processor : executable, "worker"};
        spec.env = {
            {"PATH", (folder_ / "bin").string() + ":/usr/bin:/bin"}, {"COLOUR", "it's blue"}, {"bad-name", "x"}};
        spec.assignment = {{"processor", processor}};
        return spec;
    }
    std::vector<std::string> ask(std::vector<UnitSpec> const& units) {
        auto driver = local_driver("far");
        auto silent = ask_programs(*driver, units, folder_ / "found-tools.json");
        EXPECT_TRUE(silent) << silent.error().message();
        return silent.value_or(std::vector<std::string>{});
    }
    Json tools() const {
        return parse_json(read_file(folder_ / "found-tools.json").value_or("{}"))->value("tools", Json::object());
    }
    std::string asked() const { return read_file(folder_ / "asked").value_or(""); }

    fs::path folder_ = fs::temp_directory_path() / ("found-" + random_hex(4));
};

TEST_F(FoundToolsTest, AsksEachProgramOnceAndAgainWhenItHasChanged) {
    program("ocrd-a", R"(echo "{\"executable\": \"ocrd-a\", \"colour\": \"$COLOUR\"}")");
    program("other-name", R"(echo '{"executable": "ocrd-b"}')");
    std::vector<UnitSpec> units{unit("ocrd-a"), unit("ocrd-a"), unit("ocrd-b", (folder_ / "bin/other-name").string())};
    units.push_back(unit("ocrd-ocrctl-dummy"));
    units.back().kind = UnitKind::Worker; // ours is known
    EXPECT_TRUE(ask(units).empty());
    EXPECT_EQ(tools(), (Json{{"ocrd-a", {{"executable", "ocrd-a"}, {"colour", "it's blue"}}},
                             {"ocrd-b", {{"executable", "ocrd-b"}}}}));
    EXPECT_EQ(asked().size(), std::string("ocrd-a\nother-name\n").size());
    EXPECT_TRUE(ask(units).empty());
    EXPECT_EQ(asked().size(), std::string("ocrd-a\nother-name\n").size()) << "they are the same";
    program("ocrd-a", R"(echo '{"executable": "ocrd-a", "version": 2}')");
    EXPECT_TRUE(ask(units).empty());
    EXPECT_EQ(tools()["ocrd-a"]["version"], 2);
    EXPECT_EQ(tools().size(), 2u);
}

TEST_F(FoundToolsTest, NamesThoseThatDoNotTell) {
    program("ocrd-fails", "echo trouble >&2; exit 1");
    program("ocrd-talks", "echo nonsense");
    program("ocrd-good", R"(echo '{"executable": "ocrd-good"}')");
    EXPECT_EQ(ask({unit("ocrd-fails"), unit("ocrd-talks"), unit("ocrd-good"), unit("ocrd-none")}),
              (std::vector<std::string>{"ocrd-fails", "ocrd-talks"}))
        << "one that is not there is named elsewhere";
    EXPECT_EQ(tools().size(), 1u);
}

} // namespace
} // namespace ocrctl::deployer
