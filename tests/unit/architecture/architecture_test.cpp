// Which folder may know which: reads the #include lines of the product and holds the rules of docs/architecture.md.
// The compiler cannot do it, since all targets share the root as their base folder.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace ocrctl {
namespace {

namespace fs = std::filesystem;

struct Include {
    std::string file; // from the root
    int line = 0;
    std::string target;
    bool quoted = false;

    std::string place() const { return fmt::format("{}:{}: #include {}", file, line, target); }
};

fs::path root() {
    auto const* source = std::getenv("OCRCTL_SOURCE_DIR");
    return source ? source : ".";
}

/// "lib/queue/broker.hpp" -> "lib/queue"; "deployer/x/y.hpp" -> "deployer"
std::string folder_of(std::string const& file) {
    auto end = file.find('/');
    if (end == std::string::npos) return "";
    if (file.starts_with("lib/")) end = file.find('/', end + 1);
    return file.substr(0, end);
}

std::optional<Include> parse(std::string line) {
    auto skip = [&line](std::size_t at) { return line.find_first_not_of(" \t", at); };
    auto at = skip(0);
    if (at == std::string::npos || line[at] != '#') return {};
    at = skip(at + 1);
    if (at == std::string::npos || line.compare(at, 7, "include") != 0) return {};
    at = skip(at + 7);
    if (at == std::string::npos || (line[at] != '<' && line[at] != '"')) return {};
    bool quoted = line[at] == '"';
    auto end = line.find(quoted ? '"' : '>', at + 1);
    if (end == std::string::npos) return {};
    return Include{{}, 0, line.substr(at + 1, end - at - 1), quoted};
}

std::vector<Include> const& includes() {
    static std::vector<Include> const all = [] {
        std::vector<Include> found;
        for (auto const* top : {"lib", "deployer", "processing_server", "host_agent", "cmd"}) {
            if (!fs::exists(root() / top)) continue;
            for (auto const& entry : fs::recursive_directory_iterator(root() / top)) {
                auto extension = entry.path().extension();
                if (extension != ".hpp" && extension != ".cpp" && extension != ".h" && extension != ".cc") continue;
                std::ifstream stream(entry.path());
                std::string line;
                for (int number = 1; std::getline(stream, line); ++number) {
                    auto include = parse(line);
                    if (!include) continue;
                    include->file = fs::relative(entry.path(), root()).generic_string();
                    include->line = number;
                    found.push_back(*include);
                }
            }
        }
        return found;
    }();
    return all;
}

bool is_subsystem(std::string const& folder) { return folder == "deployer" || folder == "processing_server" || folder == "host_agent"; }

TEST(Architecture, TheTreeIsRead) { EXPECT_GT(includes().size(), 100u) << "OCRCTL_SOURCE_DIR is " << root(); }

TEST(Architecture, OwnHeadersAreNamedFromTheRootAndExist) {
    for (auto const& include : includes())
        if (include.quoted) {
            EXPECT_TRUE(fs::exists(root() / include.target)) << include.place() << ": no such file below the root";
        }
}

TEST(Architecture, LibKnowsNothingButLib) {
    for (auto const& include : includes())
        if (include.quoted && include.file.starts_with("lib/")) {
            EXPECT_TRUE(include.target.starts_with("lib/")) << include.place();
        }
}

TEST(Architecture, SubsystemsDoNotKnowOneAnother) {
    for (auto const& include : includes()) {
        auto from = folder_of(include.file), to = folder_of(include.target);
        if (!include.quoted || !is_subsystem(from)) continue;
        EXPECT_TRUE(to == from || to.starts_with("lib/")) << include.place() << ": what two subsystems share is a type in lib/model";
    }
}

TEST(Architecture, NobodyKnowsTheCommands) {
    for (auto const& include : includes())
        if (include.quoted && !include.file.starts_with("cmd/")) {
            EXPECT_NE(folder_of(include.target), "cmd") << include.place();
        }
}

TEST(Architecture, BaseLogAsyncAndModelStandBelowTheRest) {
    std::map<std::string, std::set<std::string>> allowed = {{"lib/base", {"lib/base"}},
                                                            {"lib/log", {"lib/log", "lib/base"}},
                                                            {"lib/async", {"lib/async", "lib/log", "lib/base"}},
                                                            {"lib/model", {"lib/model", "lib/base"}}};
    for (auto const& include : includes()) {
        auto rule = allowed.find(folder_of(include.file));
        if (!include.quoted || rule == allowed.end()) continue;
        EXPECT_TRUE(rule->second.contains(folder_of(include.target))) << include.place();
    }
}

TEST(Architecture, ModelDoesNoInputOrOutput) {
    for (auto const& include : includes())
        if (folder_of(include.file) == "lib/model")
            for (auto const* header : {"unistd.h", "fstream", "filesystem", "sys/", "boost/", "lib/base/files.hpp"}) {
                EXPECT_FALSE(include.target.starts_with(header)) << include.place();
            }
}

/// OpenCV and Tesseract stay out of the shell, the agent, the server and the commands: they start fast and run on hosts
/// without them (docs/architecture.md). The engine is a program of its own.
TEST(Architecture, OnlyTheEngineKnowsTheOcrCode) {
    for (auto const& include : includes())
        if (include.quoted && folder_of(include.target) == "lib/ocr") {
            EXPECT_EQ(folder_of(include.file), "lib/ocr") << include.place();
        }
}

TEST(Architecture, LibrariesAreIncludedOnlyByTheFolderThatWrapsThem) {
    std::vector<std::pair<std::string, std::set<std::string>>> owners = {
        {"amqp", {"lib/queue"}},          {"mongoc", {"lib/store"}},        {"bson", {"lib/store"}},           {"sqlite3", {"lib/store"}},
        {"libssh/", {"lib/remote"}},      {"yaml-cpp/", {"lib/config"}},    {"valijson/", {"lib/parameters"}}, {"spdlog/", {"lib/log"}},
        {"opencv", {"lib/ocr"}},          {"tesseract/", {"lib/ocr"}},      {"leptonica/", {"lib/ocr"}},       {"boost/beast", {"lib/net"}},
        {"pugixml", {"lib/mets", "lib/ocr"}}, {"libxml/", {"lib/mets"}},    {"CLI/", {"cmd"}},                 {"nlohmann/", {"lib/model"}},
        {"tiff", {"lib/ocr"}},            {"png.h", {"lib/ocr"}},           {"jpeglib", {"lib/ocr"}},          {"openjpeg", {"lib/ocr"}},
        {"webp/", {"lib/ocr"}},
    };
    for (auto const& include : includes()) {
        if (include.quoted) continue;
        for (auto const& [prefix, folders] : owners)
            if (include.target.starts_with(prefix)) {
                EXPECT_TRUE(folders.contains(folder_of(include.file))) << include.place();
            }
    }
}

/// Folder = target, so a circle of folders is a circle of libraries.
TEST(Architecture, FoldersHaveNoCircles) {
    std::map<std::string, std::set<std::string>> graph;
    for (auto const& include : includes()) {
        auto from = folder_of(include.file), to = folder_of(include.target);
        if (include.quoted && from != to && !to.empty()) graph[from].insert(to);
    }
    std::vector<std::string> way;
    std::set<std::string> done;
    std::function<void(std::string const&)> visit = [&](std::string const& folder) {
        if (auto at = std::ranges::find(way, folder); at != way.end()) {
            std::string circle;
            for (; at != way.end(); ++at) circle += *at + " -> ";
            ADD_FAILURE() << circle << folder;
            return;
        }
        if (done.contains(folder)) return;
        way.push_back(folder);
        for (auto const& next : graph[folder]) visit(next);
        way.pop_back();
        done.insert(folder);
    };
    for (auto const& [folder, _] : std::map(graph)) visit(folder);
}

TEST(Architecture, ReadsIncludeLinesAsTheCompilerDoes) {
    EXPECT_EQ(parse("#include \"lib/a/b.hpp\" // why")->target, "lib/a/b.hpp");
    EXPECT_EQ(parse("  #  include <amqp.h>")->target, "amqp.h");
    EXPECT_FALSE(parse("// #include <amqp.h>"));
    EXPECT_FALSE(parse("#define include <x>"));
    EXPECT_EQ(folder_of("lib/queue/broker.hpp"), "lib/queue");
    EXPECT_EQ(folder_of("deployer/plan.hpp"), "deployer");
    EXPECT_EQ(folder_of("config.hpp"), "");
}

} // namespace
} // namespace ocrctl
