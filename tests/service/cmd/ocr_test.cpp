// The built binary, from outside.
#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/model/json.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace ocrctl;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {

struct Ended {
    int code = -1;
    std::string out, err;
};

class OcrCommand : public testing::Test {
protected:
    void SetUp() override {
        auto const* named = std::getenv("OCRCTL_BINARY");
        auto const* source = std::getenv("OCRCTL_SOURCE_DIR");
        if (named == nullptr || source == nullptr || ::access(named, X_OK) != 0) GTEST_SKIP() << "no ocrctl: OCRCTL_BINARY and OCRCTL_SOURCE_DIR name it";
        binary = named;
        page = (fs::path(source) / "samples" / "page_0001.png").native();
        if (!fs::exists(page)) GTEST_SKIP() << "no samples";
        fs::create_directories(folder);
    }
    void TearDown() override { remove_tree(folder); }

    pid_t start(std::vector<std::string> arguments) {
        auto out = (folder / "stdout").native(), err = (folder / "stderr").native();
        auto pid = ::fork();
        if (pid == 0) {
            ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
            ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
            ::setenv("XDG_STATE_HOME", folder.c_str(), 1);
            std::vector<char*> argv{const_cast<char*>(binary.c_str())};
            for (auto& one : arguments) argv.push_back(one.data());
            argv.push_back(nullptr);
            ::execv(binary.c_str(), argv.data());
            ::_exit(127);
        }
        return pid;
    }
    Ended finish(pid_t pid) {
        int status = 0;
        ::waitpid(pid, &status, 0);
        Ended ended;
        ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        ended.out = *read_file(folder / "stdout");
        ended.err = *read_file(folder / "stderr");
        return ended;
    }
    Ended run(std::vector<std::string> arguments) { return finish(start(std::move(arguments))); }
    std::string out() const { return (folder / "out").native(); }

    fs::path const folder = fs::temp_directory_path() / ("ocrctl-cmd-" + random_hex(6));
    std::string binary, page;
};

std::vector<std::string> names_in(fs::path const& folder) {
    std::vector<std::string> names;
    for (auto const& entry : fs::directory_iterator(folder))
        if (entry.path().filename() != ".ocrctl") names.push_back(entry.path().filename().native());
    std::ranges::sort(names);
    return names;
}

} // namespace

TEST_F(OcrCommand, OptionsBeforeTheImagesTakeOneValueEach) {
    auto ended = run({"ocr", "-f", "text", "-f", "alto", "-o", out(), page});
    EXPECT_EQ(ended.code, 0) << ended.err;
    EXPECT_EQ(names_in(out()), (std::vector<std::string>{"page_0001.alto.xml", "page_0001.txt"}));
    EXPECT_NE(ended.out.find("1 page: 1 done"), std::string::npos) << ended.out;
}

TEST_F(OcrCommand, ARunThatWasKilledIsTakenUpAgain) {
    auto pid = start({"ocr", page, "-o", out()});
    // As soon as the page was begun, wherever that finds it.
    auto const record = folder / "out/.ocrctl/record.jsonl";
    for (auto end = Clock::now() + std::chrono::seconds(20); Clock::now() < end;) {
        std::error_code error;
        if (fs::file_size(record, error) > 0 && !error) break;
        std::this_thread::yield();
    }
    ::kill(pid, SIGKILL);
    EXPECT_EQ(finish(pid).code, 128 + SIGKILL);
    auto again = run({"ocr", page, "-o", out()});
    EXPECT_EQ(again.code, 0) << again.err;
    EXPECT_EQ(names_in(out()), std::vector<std::string>{"page_0001.txt"});
    EXPECT_NE(run({"ocr", page, "-o", out()}).out.find("1 up to date"), std::string::npos);
}

TEST_F(OcrCommand, OneBadPageOfTwoIsReportedAsJson) {
    ASSERT_TRUE(write_file_atomically(folder / "bad.tif", "II*"));
    auto ended = run({"ocr", page, (folder / "bad.tif").native(), "-o", out(), "--json", "-q"});
    EXPECT_EQ(ended.code, 1);
    auto json = parse_json(ended.out);
    ASSERT_TRUE(json) << ended.out;
    EXPECT_EQ((*json)["done"], 1);
    EXPECT_EQ((*json)["failed"].size(), 1u);
}

TEST_F(OcrCommand, ASecondRunIntoTheSameFolderIsToldWhoHasIt) {
    auto first = start({"ocr", page, "-o", out()});
    auto const record = folder / "out/.ocrctl/record.jsonl";
    for (auto end = Clock::now() + std::chrono::seconds(20); !fs::exists(record) && Clock::now() < end;) std::this_thread::yield();
    auto const first_folder = folder / "second";
    fs::create_directories(first_folder);
    auto second = ::fork();
    if (second == 0) {
        ::dup2(::open((first_folder / "stderr").c_str(), O_WRONLY | O_CREAT, 0600), 2);
        ::execl(binary.c_str(), binary.c_str(), "ocr", page.c_str(), "-o", out().c_str(), nullptr);
        ::_exit(127);
    }
    int status = 0;
    ::waitpid(second, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), 1);
    EXPECT_NE(read_file(first_folder / "stderr")->find("pid " + std::to_string(first)), std::string::npos) << *read_file(first_folder / "stderr");
    EXPECT_EQ(finish(first).code, 0);
}

TEST_F(OcrCommand, WrongUseIsExitCode2) {
    EXPECT_EQ(run({"ocr", page}).code, 2);
    EXPECT_EQ(run({"ocr", page, "-o", out(), "-f", "docx"}).code, 2);
    auto unknown = run({"statsu"});
    EXPECT_EQ(unknown.code, 2);
    EXPECT_NE(unknown.err.find("did you mean \"status\"?"), std::string::npos) << unknown.err;
}

TEST_F(OcrCommand, EveryCommandHasHelpWithAnExample) {
    for (auto const* command : {"ocr", "status", "logs", "job", "workflow", "wait"}) {
        auto ended = run({command, "--help"});
        EXPECT_EQ(ended.code, 0) << command;
        EXPECT_NE(ended.out.find("example"), std::string::npos) << command;
    }
}

TEST_F(OcrCommand, WithoutServerCommandsSayWhatIsNotReached) {
    auto ended = run({"job", "list", "--server", "http://127.0.0.1:1"});
    EXPECT_EQ(ended.code, 1);
    EXPECT_NE(ended.err.find("connect to 127.0.0.1:1: Connection refused"), std::string::npos) << ended.err;
    EXPECT_EQ(run({"job", "list", "--server", "https://x"}).code, 2);
}
