// The built-in Processors as OCR-D command-line Processors: options, exit codes, environment, and what is left behind.
#include "cmd/commands.hpp"
#include "tests/unit/mets/workspace.hpp"

#include <csignal>
#include <fcntl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace ocrctl {
namespace {

namespace fs = std::filesystem;
using mets::Strings;

/// An 8-bit gray TIFF of 40 x 20 pixels, one strip, no compression.
std::string tiff() {
    std::string out("II*\0", 4);
    auto put = [&](std::uint32_t value, int bytes) {
        for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
    };
    constexpr std::uint32_t kWidth = 40, kHeight = 20, kPixels = 8;
    put(kPixels + kWidth * kHeight, 4);
    out += std::string(kWidth * kHeight, '\xff');
    struct Tag {
        std::uint32_t id, type, value;
    };
    Tag const tags[] = {{256, 3, kWidth}, {257, 3, kHeight}, {258, 3, 8}, {259, 3, 1}, {262, 3, 1}, {273, 4, kPixels}, {277, 3, 1}, {278, 3, kHeight}, {279, 4, kWidth * kHeight}};
    put(static_cast<std::uint32_t>(std::size(tags)), 2);
    for (auto const& tag : tags) {
        put(tag.id, 2);
        put(tag.type, 2);
        put(1, 4);
        put(tag.value, 4);
    }
    put(0, 4);
    return out;
}

struct Ran {
    int code = -1;
    std::string out, err;
};

struct ProcessorTest : testing::Test {
    mets::Workspace ws;
    std::map<std::string, std::string> env;
    std::string processor = "ocrd-ocrctl-dummy";

    ProcessorTest() {
        ::unsetenv("OCRCTL_ENGINE");
        std::string files, pages;
        for (int i = 1; i <= 4; ++i) {
            auto const n = fmt::format("{:04}", i);
            ws.write("IMG/IMG_" + n + ".tif", tiff());
            files += mets::file_xml("IMG_" + n, "IMG/IMG_" + n + ".tif");
            pages += mets::page_xml("PHYS_" + n, {"IMG_" + n});
        }
        ws.write("mets.xml", mets::mets_xml(mets::group_xml("IMG", files), pages));
    }

    pid_t start(Strings const& args) const {
        auto const pid = ::fork();
        if (pid != 0) return pid;
        for (auto const& [name, value] : env) ::setenv(name.c_str(), value.c_str(), 1);
        auto redirect = [](fs::path const& file, int to) { ::dup2(::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), to); };
        redirect(ws.folder / "out.txt", STDOUT_FILENO);
        redirect(ws.folder / "err.txt", STDERR_FILENO);
        ::chdir(ws.folder.c_str());
        auto const code = run_processor(processor, args);
        std::fflush(nullptr);
        ::_exit(code);
    }
    Ran wait(pid_t pid) const {
        int status = 0;
        ::waitpid(pid, &status, 0);
        Ran ran{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), "", ""};
        ran.out = read_file(ws.folder / "out.txt").value_or("");
        ran.err = read_file(ws.folder / "err.txt").value_or("");
        return ran;
    }
    Ran run(Strings const& args) const { return wait(start(args)); }
    Ran run_dummy(std::string const& parameters = "", Strings const& more = {}) const {
        Strings args{"-I", "IMG", "-O", "OUT"};
        if (!parameters.empty()) args.insert(args.end(), {"-p", parameters});
        args.insert(args.end(), more.begin(), more.end());
        return run(args);
    }
    Strings pages_with(std::string const& group) const {
        auto loaded = ws.load();
        return mets::existing_outputs(loaded, loaded.pages(), {group});
    }
    bool tidy() const { return !fs::exists(ws.folder / ".ocrctl"); }
};

TEST_F(ProcessorTest, PrintsItsHelpAndFailsWithoutArguments) {
    auto ran = run({});
    EXPECT_EQ(ran.code, 1);
    EXPECT_NE(ran.out.find("Usage: ocrd-ocrctl-dummy"), std::string::npos);
    ran = run({"--help"});
    EXPECT_EQ(ran.code, 0);
    EXPECT_NE(ran.out.find("\"copy_files\" [boolean - false]"), std::string::npos) << ran.out;
}

TEST_F(ProcessorTest, TellsAboutItself) {
    auto ran = run({"-J"});
    EXPECT_EQ(ran.code, 0);
    EXPECT_EQ(Json::parse(ran.out)["executable"], "ocrd-ocrctl-dummy");
    EXPECT_EQ(run({"--version"}).out.find("Version "), 0u);
    EXPECT_EQ(run({"-D"}).code, 0);
    EXPECT_EQ(run({"-L"}).code, 0);
}

TEST_F(ProcessorTest, RefusesUnknownOptionsWithCode2) {
    auto ran = run({"--overwritte"});
    EXPECT_EQ(ran.code, 2);
    EXPECT_EQ(ran.err, "ocrd-ocrctl-dummy: no such option: --overwritte (did you mean --overwrite?)\ntry 'ocrd-ocrctl-dummy --help'\n");
    EXPECT_EQ(run({"-I"}).code, 2);
    EXPECT_EQ(run({"-l", "LOUD"}).code, 2);
    processor = "ocrd-ocrctl-nothing";
    EXPECT_EQ(run({"-I", "IMG"}).code, 2);
}

TEST_F(ProcessorTest, FailsWithCode1AndOneSentenceOnBadInput) {
    struct Case {
        Strings args;
        std::string says;
    };
    std::vector<Case> const cases{
        {{"-O", "OUT"}, "-I/--input-file-grp is required"},
        {{"-I", "IMG"}, "-O/--output-file-grp is required"},
        {{"-I", "IMG,IMG2", "-O", "OUT"}, "ocrd-ocrctl-dummy takes 1 input group, not 2"},
        {{"-I", "IMG", "-O", "IMG"}, "group IMG cannot be input and output at once"},
        {{"-I", "NO", "-O", "OUT"}, "there is no input group NO in " + ws.mets.native() + "; it has: IMG (4 files)"},
        {{"-I", "IMG", "-O", "1OUT"}, "Invalid syntax for mets:fileGrp/@USE 1OUT (not an xs:ID)"},
        {{"-I", "IMG", "-O", "../../x"}, "Invalid syntax for mets:fileGrp/@USE ../../x (not an xs:ID)"},
        {{"-I", "IMG", "-O", "OUT", "-m", "no.xml"}, "there is no METS at " + (ws.folder / "no.xml").native()},
        {{"-I", "IMG", "-O", "OUT", "-g", "PHYS_0009"}, "page selector 'PHYS_0009' matches no page"},
        {{"-I", "IMG", "-O", "OUT", "-p", "{\"copy_files\": 3}"}, "[copy_files]"},
        {{"-I", "IMG", "-O", "OUT", "-p", "{\"nothing\": 3}"}, "nothing"},
        {{"-I", "IMG", "-O", "OUT", "-p", "{broken"}, "is neither JSON nor the name of a file"},
        {{"-I", "IMG", "-O", "OUT", "-p", "[1]"}, "is not a JSON object"},
        {{"-I", "IMG", "-O", "OUT", "-U", "http://127.0.0.1:1"}, "--mets-server-url is not supported"},
        {{"-I", "IMG", "-O", "OUT", "-m", "/elsewhere/mets.xml", "-w", ws.folder.native()}, "is not in the folder of --working-dir"},
        {{"-I", "IMG", "-O", "OUT", "-m", "https://example.org/mets.xml"}, "is remote"},
    };
    for (auto const& c : cases) {
        auto ran = run(c.args);
        EXPECT_EQ(ran.code, 1) << ran.err;
        EXPECT_NE(ran.err.find(c.says), std::string::npos) << ran.err;
    }
    EXPECT_TRUE(tidy());
    EXPECT_EQ(ws.load().groups_text(), "IMG (4 files)");
}

TEST_F(ProcessorTest, WritesFilesMetsAndOneAgent) {
    auto ran = run_dummy("", {"-m", "mets.xml", "-w", ws.folder.native(), "-P", "delay_ms", "1"});
    ASSERT_EQ(ran.code, 0) << ran.err;
    auto loaded = ws.load();
    EXPECT_EQ(loaded.groups_text(), "IMG (4 files), OUT (4 files)");
    for (auto const& page : loaded.pages()) {
        auto const files = loaded.files_of(page, "OUT");
        ASSERT_EQ(files.size(), 1u);
        EXPECT_EQ(files[0]->mimetype, mets::kPageMimetype);
        EXPECT_TRUE(fs::exists(ws.folder / files[0]->path)) << files[0]->path;
    }
    EXPECT_NE(loaded.find("OUT_0001"), nullptr);
    ASSERT_EQ(loaded.agents().size(), 1u);
    EXPECT_EQ(loaded.agents()[0].othertype, "SOFTWARE");
    EXPECT_TRUE(tidy());
    EXPECT_NE(ran.err.find("ocrd-ocrctl-dummy: 4 pages done, 0 failed"), std::string::npos) << ran.err;
}

TEST_F(ProcessorTest, RunsSelectedPagesOnly) {
    ASSERT_EQ(run_dummy("", {"-g", "PHYS_0002..PHYS_0003"}).code, 0);
    EXPECT_EQ(pages_with("OUT"), (Strings{"PHYS_0002", "PHYS_0003"}));
    EXPECT_EQ(run_dummy("", {"-g", "PHYS_0004"}).code, 0) << "other pages' output is no obstacle";
}

TEST_F(ProcessorTest, TreatsExistingOutputAsToldTo) {
    ASSERT_EQ(run_dummy("", {"-g", "PHYS_0001,PHYS_0002"}).code, 0);
    auto ran = run_dummy();
    EXPECT_EQ(ran.code, 1);
    EXPECT_NE(ran.err.find("output group OUT already has files for 2 of the selected pages (page PHYS_0001)"), std::string::npos) << ran.err;
    EXPECT_EQ(pages_with("OUT").size(), 2u);

    env["OCRD_EXISTING_OUTPUT"] = "SKIP";
    auto const before = fs::last_write_time(ws.folder / "OUT/OUT_0001.xml");
    ran = run_dummy();
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_NE(ran.err.find("2 pages done, 0 failed, 0 without input, 2 skipped"), std::string::npos) << ran.err;
    EXPECT_EQ(fs::last_write_time(ws.folder / "OUT/OUT_0001.xml"), before);
    EXPECT_EQ(pages_with("OUT").size(), 4u);

    ran = run_dummy("{\"copy_files\": true}", {"--overwrite"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    auto loaded = ws.load();
    EXPECT_EQ(loaded.groups_text(), "IMG (4 files), OUT (4 files)");
    EXPECT_EQ(loaded.find("OUT_0001")->mimetype, "image/tiff");
    EXPECT_FALSE(fs::exists(ws.folder / "OUT/OUT_0001.xml")) << "the earlier run's file is gone";
    EXPECT_TRUE(fs::exists(ws.folder / "OUT/OUT_0001.tif"));
    EXPECT_EQ(loaded.pages(), (Strings{"PHYS_0001", "PHYS_0002", "PHYS_0003", "PHYS_0004"}));
}

TEST_F(ProcessorTest, LetsAFailingPageFailAlone) {
    auto const one_fails = R"({"fail": true, "pages": "PHYS_0002"})";
    env["OCRD_MAX_MISSING_OUTPUTS"] = "0.3";
    auto ran = run_dummy(one_fails);
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(pages_with("OUT"), (Strings{"PHYS_0001", "PHYS_0003", "PHYS_0004"}));

    env["OCRD_MAX_MISSING_OUTPUTS"] = "0.1";
    ran = run_dummy(one_fails, {"--overwrite"});
    EXPECT_EQ(ran.code, 1);
    EXPECT_NE(ran.err.find("too many failures (1 of 4 pages)"), std::string::npos) << ran.err;
    EXPECT_TRUE(tidy());
}

TEST_F(ProcessorTest, KeepsThePagesThatWereDoneBeforeTheRunFailed) {
    env["OCRD_MISSING_OUTPUT"] = "ABORT";
    auto ran = run_dummy(R"({"fail": true, "pages": "PHYS_0003"})");
    EXPECT_EQ(ran.code, 1);
    EXPECT_EQ(pages_with("OUT"), (Strings{"PHYS_0001", "PHYS_0002"}));
    EXPECT_TRUE(tidy());
}

TEST_F(ProcessorTest, PassesTheInputOnWhereAPageFailed) {
    env["OCRD_MISSING_OUTPUT"] = "COPY";
    env["OCRD_MAX_MISSING_OUTPUTS"] = "0";
    auto ran = run_dummy(R"({"fail": true, "pages": "PHYS_0002"})");
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(pages_with("OUT").size(), 4u);
}

TEST_F(ProcessorTest, SurvivesAnEngineThatCrashes) {
    env["OCRD_MAX_MISSING_OUTPUTS"] = "0";
    env["OCRD_MAX_PARALLEL_PAGES"] = "2";
    auto ran = run_dummy(R"({"crash": true, "pages": "PHYS_0001"})");
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(pages_with("OUT"), (Strings{"PHYS_0002", "PHYS_0003", "PHYS_0004"}));
    EXPECT_NE(ran.err.find("page.failed page=PHYS_0001"), std::string::npos) << ran.err;
}

TEST_F(ProcessorTest, GivesUpAPageThatTakesTooLong) {
    env["OCRD_MAX_MISSING_OUTPUTS"] = "0";
    env["OCRD_PROCESSING_PAGE_TIMEOUT"] = "1";
    auto ran = run_dummy(R"({"hang": true, "pages": "PHYS_0004"})");
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(pages_with("OUT").size(), 3u);
}

TEST_F(ProcessorTest, RecordsWhatIsDoneWhenItIsTerminated) {
    auto const pid = start({"-I", "IMG", "-O", "OUT", "-p", R"({"hang": true, "pages": "PHYS_0003"})"});
    for (int i = 0; i < 600 && read_file(ws.folder / "err.txt").value_or("").find("page.done page=PHYS_0002") == std::string::npos; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ::kill(pid, SIGTERM);
    auto const ran = wait(pid);
    EXPECT_EQ(ran.code, 128 + SIGTERM) << ran.err;
    EXPECT_EQ(pages_with("OUT"), (Strings{"PHYS_0001", "PHYS_0002"})) << ran.err;
    EXPECT_TRUE(tidy());
}

TEST_F(ProcessorTest, AppliesItsResultsToAMetsThatSomebodyElseChangedMeanwhile) {
    auto const pid = start({"-I", "IMG", "-O", "OUT", "-p", R"({"delay_ms": 700})"});
    for (int i = 0; i < 600 && read_file(ws.folder / "err.txt").value_or("").find("page.done") == std::string::npos; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    auto others = ws.load();
    ASSERT_TRUE(others.add_file(mets::file_ref("THEIRS", "T1", "PHYS_0001")));
    ASSERT_TRUE(others.save());
    EXPECT_EQ(wait(pid).code, 0);
    EXPECT_EQ(ws.load().groups_text(), "IMG (4 files), THEIRS (1 file), OUT (4 files)");
}

TEST_F(ProcessorTest, ReadsParametersFromAFileWithComments) {
    ws.write("parameters.json", "# slow\n{\"delay_ms\": 1,\n  # and copies\n \"copy_files\": true}\n");
    ASSERT_EQ(run_dummy("parameters.json", {"-P", "copy_files", "false"}).code, 0);
    EXPECT_EQ(ws.load().find("OUT_0001")->mimetype, mets::kPageMimetype);
}

TEST_F(ProcessorTest, WritesItsLogWhereItIsToldTo) {
    auto ran = run_dummy("", {"--log-filename", "run.log", "-l", "DEBUG", "-g", "PHYS_0001"});
    EXPECT_EQ(ran.code, 0);
    EXPECT_EQ(ran.err, "");
    EXPECT_NE(read_file(ws.folder / "run.log")->find("page.done page=PHYS_0001"), std::string::npos);
}

TEST_F(ProcessorTest, RunsTheOtherProcessorsToo) {
    processor = "ocrd-ocrctl-binarize";
    auto ran = run_dummy();
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(pages_with("OUT").size(), 4u);
}

} // namespace
} // namespace ocrctl
