// Command-line Processors: little programs that behave as OCR-D's do, well and badly.
#include "lib/engine/engine.hpp"
#include "tests/support/coroutines.hpp"
#include "tests/support/scratch_folder.hpp"

#include <algorithm>
#include <gtest/gtest.h>

namespace ocrctl::engine {
namespace {

using namespace std::chrono_literals;
using test::run;
using test::run_until;

constexpr char kMets[] = R"(<?xml version="1.0" encoding="UTF-8"?>
<mets:mets xmlns:mets="http://www.loc.gov/METS/" xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mods="http://www.loc.gov/mods/v3">
  <mets:metsHdr CREATEDATE="2020-01-01T00:00:00"/>
  <mets:dmdSec ID="DMD"><mets:mdWrap MDTYPE="MODS"><mets:xmlData><mods:mods><mods:title>Ein Buch</mods:title></mods:mods></mets:xmlData></mets:mdWrap></mets:dmdSec>
  <mets:fileSec>
    <mets:fileGrp USE="IMG">
      <mets:file ID="IMG_1" MIMETYPE="image/png"><mets:FLocat LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xlink:href="IMG/1.png"/></mets:file>
      <mets:file ID="IMG_2" MIMETYPE="image/png"><mets:FLocat LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xlink:href="IMG/2.png"/></mets:file>
    </mets:fileGrp>
    <mets:fileGrp USE="SEG">
      <mets:file ID="SEG_1" MIMETYPE="application/vnd.prima.page+xml"><mets:FLocat LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xlink:href="SEG/1.xml"/></mets:file>
    </mets:fileGrp>
  </mets:fileSec>
  <mets:structMap TYPE="PHYSICAL"><mets:div TYPE="physSequence">
    <mets:div TYPE="page" ID="P1"><mets:fptr FILEID="IMG_1"/><mets:fptr FILEID="SEG_1"/></mets:div>
    <mets:div TYPE="page" ID="P2"><mets:fptr FILEID="IMG_2"/></mets:div>
  </mets:div></mets:structMap>
</mets:mets>
)";

constexpr char kPage[] = R"(<?xml version="1.0"?>
<pc:PcGts xmlns:pc="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">
  <!-- <pc:Page imageFilename="commented/out.png"/> -->
  <pc:Page imageFilename="IMG/1.png"><pc:AlternativeImage comments="binarized" filename='BIN/1 &amp; a.png'/>
  <pc:TextRegion id="r"><pc:AlternativeImage filename="BIN/r.png"/></pc:TextRegion></pc:Page>
</pc:PcGts>
)";

// Adds to the METS with sed what OCR-D's core would add; $1.. are OCR-D's options.
constexpr char kProgram[] = R"sh(#!/bin/bash
if [ "$1" = --dump-json ]; then echo "INFO a line before"; echo '{"executable":"ocrd-try","steps":["layout/analysis"],"parameters":{}}'; exit 0; fi
while [ $# -gt 0 ]; do case "$1" in -m) mets=$2;; -w) ws=$2;; -I) in=$2;; -O) out=$2;; -p) par=$2;; -g) pages=$2;; esac; shift; done
cd "$ws"
echo "works on $pages with $(cat "$par")"
find . -type f -o -type l | sort > /dev/shm/ocrctl-test-seen-$PPID
cp -L mets.xml /dev/shm/ocrctl-test-mets-$PPID
mkdir -p "$out"
BEHAVIOUR
added='' pointers=''
for p in ${pages//,/ }; do
  PER_PAGE
  echo "result of $p" > "$out/${out}_$p.xml"
  added="$added<mets:file ID=\"${out}_$p\" MIMETYPE=\"application/vnd.prima.page+xml\"><mets:FLocat LOCTYPE=\"OTHER\" OTHERLOCTYPE=\"FILE\" xlink:href=\"$out/${out}_$p.xml\"/></mets:file>"
  sed -i "s|\(ID=\"$p\">\)|\1<mets:fptr FILEID=\"${out}_$p\"/>|" mets.xml
done
sed -i "s|</mets:fileSec>|<mets:fileGrp USE=\"$out\">$added</mets:fileGrp></mets:fileSec>|; s|<mets:metsHdr \(.*\)/>|<mets:metsHdr \1><mets:agent TYPE=\"OTHER\" OTHERTYPE=\"SOFTWARE\" ROLE=\"OTHER\" OTHERROLE=\"layout/analysis\"><mets:name>ocrd-try v1.2</mets:name></mets:agent></mets:metsHdr>|" mets.xml
EXIT
)sh";

class CliRunnerTest : public ::testing::Test {
protected:
    CliRunnerTest() {
        folder.put("ws/mets.xml", kMets);
        folder.put("ws/IMG/1.png", "one");
        folder.put("ws/IMG/2.png", "two");
        folder.put("ws/SEG/1.xml", kPage);
        folder.put("ws/BIN/1 & a.png", "bin");
        folder.put("ws/BIN/r.png", "region");
        folder.put("ws/OTHER/secret.txt", "x");
    }
    ~CliRunnerTest() override {
        std::filesystem::remove(seen());
        std::filesystem::remove(seen_mets());
    }
    std::string seen() const { return "/dev/shm/ocrctl-test-seen-" + std::to_string(::getpid()); }
    std::string seen_mets() const { return "/dev/shm/ocrctl-test-mets-" + std::to_string(::getpid()); }
    std::unique_ptr<TaskRunner> program(std::string behaviour = "", std::string per_page = "", std::string exit = "exit 0", Json parameters = Json::object()) {
        std::string text = kProgram;
        auto replace = [&](std::string const& what, std::string const& with) { text.replace(text.find(what), what.size(), with); };
        replace("BEHAVIOUR", behaviour);
        replace("PER_PAGE", per_page.empty() ? ":" : per_page);
        replace("EXIT", exit);
        auto file = folder.put("bin/ocrd-try", text, 0755);
        return cli_runner(io.get_executor(), file, std::move(parameters), folder.path() / "scratch");
    }
    Task task(std::vector<std::string> ids, std::string group = "IMG") {
        Task made;
        made.job = JobId("job-1");
        made.workspace = folder.path() / "ws";
        made.input_groups = {group};
        made.output_groups = {"OUT"};
        for (auto const& id : ids) {
            PageInput page;
            page.page_id = id;
            auto number = id.substr(1);
            if (group == "SEG") page.files = {FileRef{.group = "SEG", .id = "SEG_" + number, .page_id = id, .mimetype = "application/vnd.prima.page+xml", .path = "SEG/" + number + ".xml"}};
            else page.files = {FileRef{.group = "IMG", .id = "IMG_" + number, .page_id = id, .mimetype = "image/png", .path = "IMG/" + number + ".png"}};
            page.output_ids = {"OUT_" + id};
            made.pages.push_back(page);
        }
        return made;
    }
    Place place() { return {.workspace = folder.path() / "ws", .staging = folder.path() / "ws/.ocrctl/job-1/run"}; }
    bool scratch_is_empty() {
        std::error_code error;
        return std::filesystem::is_empty(folder.path() / "scratch", error);
    }

    test::ScratchFolder folder;
    asio::io_context io;
};

TEST_F(CliRunnerTest, CollectsFilesAndAgentAndLeavesNoScratch) {
    auto runner = program("", "", "exit 0", {{"level", 3}});
    auto loaded = run(io, runner->load());
    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(loaded->step, "layout/analysis");
    auto result = run(io, runner->run(task({"P1", "P2"}), place()));
    EXPECT_EQ(result.error, "") << result.log;
    ASSERT_EQ(result.pages.size(), 2u);
    EXPECT_TRUE(result.pages[0].ok && result.pages[1].ok) << result.pages[0].error;
    ASSERT_EQ(result.pages[1].files.size(), 1u);
    auto const& file = result.pages[1].files[0];
    EXPECT_EQ(file.path, "OUT/OUT_P2.xml");
    EXPECT_EQ(file.id, "OUT_P2");
    EXPECT_EQ(file.page_id, "P2");
    EXPECT_EQ(file.digest, "sha256:" + sha256_hex("result of P2\n"));
    EXPECT_EQ(read_file(place().staging / "OUT/OUT_P2.xml").value(), "result of P2\n");
    EXPECT_EQ(result.provenance.name, "ocrd-try v1.2");
    EXPECT_EQ(result.provenance.step, "layout/analysis");
    EXPECT_NE(result.log.find("works on P1,P2 with {\"level\":3}"), std::string::npos) << result.log;
    EXPECT_TRUE(scratch_is_empty());
    EXPECT_EQ(read_file(folder.path() / "ws/mets.xml").value(), kMets) << "the workspace's METS is the server's";
}

TEST_F(CliRunnerTest, GivesItWhatItsPageRefersToAndNothingElse) {
    auto runner = program();
    auto result = run(io, runner->run(task({"P1"}, "SEG"), place()));
    EXPECT_TRUE(result.pages.at(0).ok) << result.pages[0].error;
    auto files = read_file(seen()).value();
    EXPECT_NE(files.find("./SEG/1.xml"), std::string::npos) << files;
    EXPECT_NE(files.find("./IMG/1.png"), std::string::npos);
    EXPECT_NE(files.find("./BIN/1 & a.png"), std::string::npos);
    EXPECT_NE(files.find("./BIN/r.png"), std::string::npos);
    EXPECT_EQ(files.find("IMG/2.png"), std::string::npos);
    EXPECT_EQ(files.find("secret"), std::string::npos);
    auto mets = read_file(seen_mets()).value();
    EXPECT_NE(mets.find("Ein Buch"), std::string::npos) << "descriptive metadata";
    EXPECT_NE(mets.find("SEG_1"), std::string::npos);
    EXPECT_EQ(mets.find("IMG_2"), std::string::npos);
}

TEST_F(CliRunnerTest, KnowsFilesThatTheMetsOnDiskDoesNotHaveYet) {
    folder.put("ws/NEW/2.png", "new");
    auto fresh = task({"P2"});
    fresh.input_groups = {"NEW"};
    fresh.pages[0].files[0] = FileRef{.group = "NEW", .id = "NEW_2", .page_id = "P2", .mimetype = "image/png", .path = "NEW/2.png"};
    auto runner = program();
    auto result = run(io, runner->run(fresh, place()));
    EXPECT_TRUE(result.pages.at(0).ok) << result.pages[0].error;
    EXPECT_NE(read_file(seen_mets()).value().find("NEW_2"), std::string::npos);
}

TEST_F(CliRunnerTest, FailsThePageThatHasNoOutput) {
    auto runner = program("", "if [ $p = P1 ]; then echo 'P1 is too dark'; continue; fi");
    auto result = run(io, runner->run(task({"P1", "P2"}), place()));
    EXPECT_EQ(result.error, "");
    EXPECT_FALSE(result.pages.at(0).ok);
    EXPECT_EQ(result.pages[0].error, "no output in OUT: P1 is too dark");
    EXPECT_TRUE(result.pages.at(1).ok) << result.pages[1].error;
}

TEST_F(CliRunnerTest, TriesPagesAloneWhenOneTookTheOthersWithIt) {
    auto runner = program("case $pages in *P1*) echo 'Traceback: P1 is bad'; exit 1;; esac");
    auto result = run(io, runner->run(task({"P1", "P2"}), place()));
    EXPECT_EQ(result.error, "");
    EXPECT_FALSE(result.pages.at(0).ok);
    EXPECT_NE(result.pages[0].error.find("ended with code 1: Traceback: P1 is bad"), std::string::npos) << result.pages[0].error;
    EXPECT_TRUE(result.pages.at(1).ok) << result.pages[1].error;
}

TEST_F(CliRunnerTest, APageWithoutItsFileFailsAloneBeforeTheCall) {
    std::filesystem::remove(folder.path() / "ws/IMG/1.png");
    auto runner = program();
    auto result = run(io, runner->run(task({"P1", "P2"}), place()));
    EXPECT_NE(result.pages.at(0).error.find("there is no file IMG/1.png"), std::string::npos) << result.pages[0].error;
    EXPECT_TRUE(result.pages.at(1).ok) << result.pages[1].error;
}

TEST_F(CliRunnerTest, RefusesPathsThatLeaveTheWorkspace) {
    auto bad = task({"P1"});
    bad.pages[0].files[0].path = "../outside.png";
    auto runner = program();
    auto result = run(io, runner->run(bad, place()));
    EXPECT_EQ(result.pages.at(0).error, "../outside.png leaves the workspace");
}

TEST_F(CliRunnerTest, ACrashIsAnEngineDeath) {
    auto runner = program("kill -SEGV $$");
    auto result = run(io, runner->run(task({"P1"}), place()));
    EXPECT_TRUE(result.engine_died);
    EXPECT_NE(result.error.find("was killed by signal 11"), std::string::npos) << result.error;
    EXPECT_EQ(result.pages.size(), 1u);
}

TEST_F(CliRunnerTest, EndsAtTheDeadlineWithEverythingItStarted) {
    auto runner = program("sleep 1000 & echo $! > /dev/shm/ocrctl-test-seen-$PPID; wait");
    auto late = task({"P1"});
    late.deadline = now_millis() + 700;
    auto result = run(io, runner->run(late, place()));
    EXPECT_EQ(result.error, "the deadline passed");
    EXPECT_FALSE(result.engine_died);
    auto sleeper = std::stoi(read_file(seen()).value());
    EXPECT_TRUE(run_until(io, [&] {
        auto stat = read_file("/proc/" + std::to_string(sleeper) + "/stat");
        return !stat || stat->find(") Z") != std::string::npos;
    }, 5s));
    EXPECT_TRUE(scratch_is_empty());
}

TEST_F(CliRunnerTest, CanBeStopped) {
    auto runner = program("sleep 1000");
    std::optional<TaskResult> result;
    asio::co_spawn(io, runner->run(task({"P1"}), place()), [&](std::exception_ptr, TaskResult r) { result = std::move(r); });
    run_until(io, [&] { return result.has_value(); }, 1s);
    runner->stop("cancelled", true);
    ASSERT_TRUE(run_until(io, [&] { return result.has_value(); }, 5s));
    EXPECT_TRUE(result->cancelled);
}

TEST_F(CliRunnerTest, SaysThatTheProgramIsNotThere) {
    auto runner = cli_runner(io.get_executor(), "ocrd-not-installed", Json::object(), folder.path() / "scratch");
    auto loaded = run(io, runner->load());
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().kind(), ErrorKind::NotFound);
    EXPECT_NE(loaded.error().message().find("no program ocrd-not-installed in PATH"), std::string::npos) << loaded.error().message();
}

} // namespace
} // namespace ocrctl::engine
