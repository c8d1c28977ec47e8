// Where the description of a Processor comes from: files, programs, the package of OCR-D.
#include "processing_server/tool_catalogue.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>
#include <cstdlib>
#include <functional>
#include <gtest/gtest.h>

namespace ocrctl::server {
namespace {

namespace fs = std::filesystem;

class ToolCatalogueTest : public testing::Test {
protected:
    void SetUp() override {
        path_before_ = std::getenv("PATH");
        ::setenv("PATH", (folder_ / "venv/bin:/usr/bin:/bin").c_str(), 1);
        settings_.state = folder_ / "state";
        fs::create_directories(settings_.state);
        // As pip lays out a virtual environment with the package `ocrd`.
        program("ocrd", "exit 2");
        file("venv/lib/python3.11/site-packages/ocrd/ocrd-all-tool.json",
             R"({"ocrd-shipped": {"executable": "ocrd-shipped", "from": "package"}, "ocrd-told": {"executable": "ocrd-told", "from": "package"}, "ocrd-named": {"executable": "ocrd-named", "from": "package"}})");
        program("ocrd-told", R"(echo '{"executable": "ocrd-told", "from": "program"}')");
    }
    void TearDown() override {
        ::setenv("PATH", path_before_.c_str(), 1);
        fs::remove_all(folder_);
    }
    void file(fs::path const& name, std::string const& text, mode_t mode = 0644) {
        fs::create_directories((folder_ / name).parent_path());
        ASSERT_TRUE(write_file_atomically(folder_ / name, text, mode).has_value());
    }
    void program(std::string const& name, std::string const& body) { file("venv/bin/" + name, "#!/bin/sh\n" + body + "\n", 0755); }

    /// "from" of the description; "" if there is none.
    std::string source_of(std::string const& processor) {
        asio::io_context io;
        asio::thread_pool pool(1);
        ToolCatalogue catalogue(settings_, io.get_executor(), pool);
        auto loaded = catalogue.load();
        EXPECT_TRUE(loaded.has_value()) << loaded.error().message();
        auto found = asio::co_spawn(io, [&]() -> asio::awaitable<std::string> {
            auto const* tool = co_await catalogue.find_or_ask(processor);
            auto from = tool != nullptr ? tool->value("from", "?") : "";
            co_await catalogue.stop();
            co_return from;
        }, asio::use_future);
        io.run();
        pool.join();
        return found.get();
    }

    /// The same, of a file that came while the catalogue was in use.
    std::string source_after(std::string const& processor, std::function<void()> const& meanwhile) {
        asio::io_context io;
        asio::thread_pool pool(1);
        ToolCatalogue catalogue(settings_, io.get_executor(), pool);
        EXPECT_TRUE(catalogue.load());
        meanwhile();
        auto found = asio::co_spawn(
            io,
            [&]() -> asio::awaitable<std::string> {
                auto const* tool = co_await catalogue.find_or_ask(processor);
                auto from = tool != nullptr ? tool->value("from", "?") : "";
                co_await catalogue.stop();
                co_return from;
            },
            asio::use_future);
        io.run();
        pool.join();
        return found.get();
    }

    fs::path folder_ = fs::temp_directory_path() / ("tc-" + random_hex(4));
    std::string path_before_;
    Settings settings_;
};

TEST_F(ToolCatalogueTest, KnowsWhatProgramsOnOtherMachinesSaidToTheDeployer) {
    auto found = [&] {
        file(
            "state/found-tools.json",
            R"({"which": {}, "tools": {"ocrd-far": {"executable": "ocrd-far", "from": "host"}, "ocrd-shipped": {"executable": "ocrd-shipped", "from": "host"},
             "ocrd-told": {"executable": "ocrd-told", "from": "host"}, "ocrd-named": {"executable": "ocrd-named", "from": "host"}}})");
    };
    file("tools.json", R"({"ocrd-named": {"executable": "ocrd-named", "from": "configuration"}})");
    settings_.tools = {folder_ / "tools.json"};
    EXPECT_EQ(source_after("ocrd-far", [] {}), "");
    EXPECT_EQ(source_after("ocrd-far", found), "host") << "it came while the server was running";
    for (auto const& [name, from] : {std::pair{"ocrd-far", "host"},
                                     {"ocrd-shipped", "host"},
                                     {"ocrd-named", "configuration"},
                                     {"ocrd-told", "program"}}) {
        EXPECT_EQ(source_of(name), from) << name;
        EXPECT_EQ(source_after(name, found), from) << name;
    }
    file("state/found-tools.json", "{");
    EXPECT_EQ(source_of("ocrd-shipped"), "package") << "a broken one is passed over";
}

TEST_F(ToolCatalogueTest, TakesTheCatalogueOfTheOcrdPackageForWhatNobodyElseDescribes) {
    EXPECT_EQ(source_of("ocrd-shipped"), "package");
    EXPECT_EQ(source_of("ocrd-told"), "program");
    EXPECT_EQ(source_of("ocrd-none"), "");
    file("tools.json", R"({"ocrd-named": {"executable": "ocrd-named", "from": "configuration"}})");
    settings_.tools = {folder_ / "tools.json"};
    EXPECT_EQ(source_of("ocrd-named"), "configuration");
    EXPECT_EQ(source_of("ocrd-shipped"), "package");
}

TEST_F(ToolCatalogueTest, APackageBehindALinkIsFound) {
    fs::create_directories(folder_ / "elsewhere");
    fs::create_symlink(folder_ / "venv/bin/ocrd", folder_ / "elsewhere/ocrd");
    ::setenv("PATH", (folder_ / "elsewhere").c_str(), 1);
    EXPECT_EQ(source_of("ocrd-shipped"), "package");
}

TEST_F(ToolCatalogueTest, ABrokenCatalogueOfThePackageIsPassedOver) {
    file("venv/lib/python3.11/site-packages/ocrd/ocrd-all-tool.json", "{");
    EXPECT_EQ(source_of("ocrd-shipped"), "");
    EXPECT_EQ(source_of("ocrd-told"), "program");
}

TEST_F(ToolCatalogueTest, ABrokenCatalogueOfTheConfigurationIsRefusedWithItsName) {
    file("tools.json", "[]");
    settings_.tools = {folder_ / "tools.json"};
    asio::io_context io;
    asio::thread_pool pool(1);
    ToolCatalogue catalogue(settings_, io.get_executor(), pool);
    auto loaded = catalogue.load();
    ASSERT_FALSE(loaded.has_value());
    EXPECT_NE(loaded.error().message().find((folder_ / "tools.json").native()), std::string::npos) << loaded.error().message();
}

} // namespace
} // namespace ocrctl::server
