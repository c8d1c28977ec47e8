#include "cmd/ocr_work.hpp"
#include "cmd/progress.hpp"
#include "tests/unit/cmd/folder.hpp"

#include <fcntl.h>
#include <sys/stat.h>

using namespace ocrctl;

namespace {

class OcrPlanTest : public test::Folder {
protected:
    OcrOptions options(std::vector<std::string> images) {
        OcrOptions o;
        o.images = std::move(images);
        o.out = folder / "out";
        return o;
    }
    std::string refusal(OcrOptions const& o) {
        auto plan = plan_ocr(o);
        EXPECT_FALSE(plan);
        return plan ? "" : plan.error().message();
    }
};

/// Decides with a record that says that everything was done as the plan has it.
class OcrWorkTest : public OcrPlanTest {
protected:
    OcrWorkTest() {
        image = file("a.png", "one image");
        wanted = options({image});
        models["eng"] = "sha256:m";
        std::filesystem::create_directories(folder / "out/.ocrctl/pages/a");
    }
    Result<std::vector<OcrWork>> decide() {
        auto plan = plan_ocr(wanted);
        EXPECT_TRUE(plan);
        auto record = OcrRecord::open(folder / "out/.ocrctl");
        EXPECT_TRUE(record);
        summary = {};
        return decide_work(wanted, *plan, plan->chain_json(), models, *record, summary);
    }
    /// As if the page had been done.
    void finish() {
        auto work = decide();
        ASSERT_TRUE(work) << work.error().message();
        ASSERT_EQ(work->size(), 1u);
        auto done = work->front().record;
        done.digest = "sha256:" + *sha256_of_file(image);
        done.page = "pages/a/p.xml";
        file("out/.ocrctl/pages/a/p.xml", "<PcGts/>");
        for (auto const& format : work->front().formats) {
            done.outputs[format] = "a" + ending_of(format);
            file("out/a" + ending_of(format), "result");
        }
        done.done = true;
        auto record = OcrRecord::open(folder / "out/.ocrctl");
        ASSERT_TRUE(record->put(done));
    }
    OcrWork only() {
        auto work = decide();
        EXPECT_TRUE(work) << work.error().message();
        EXPECT_EQ(work->size(), 1u);
        return work && !work->empty() ? work->front() : OcrWork{};
    }
    std::string image;
    OcrOptions wanted;
    Json models;
    OcrSummary summary;
};

} // namespace

TEST_F(OcrPlanTest, WithoutAnythingElseItRecognisesEnglishAsText) {
    auto plan = plan_ocr(options({file("scan 7.png", "x")}));
    ASSERT_TRUE(plan) << plan.error().message();
    ASSERT_EQ(plan->chain.size(), 1u);
    EXPECT_EQ(plan->chain[0].parameters["model"], "eng");
    EXPECT_EQ(plan->formats, std::vector<std::string>{"text"});
    EXPECT_EQ(plan->pages[0].base, "scan 7");
    EXPECT_EQ(plan->pages[0].id, "scan_207");
}

TEST_F(OcrPlanTest, FormatsAreListedOnceAndUnknownOnesAreNamed) {
    auto o = options({file("a.png", "x")});
    o.formats = {"text,alto", "alto,page"};
    EXPECT_EQ(plan_ocr(o)->formats, (std::vector<std::string>{"text", "alto", "page"}));
    o.formats = {"text,docx"};
    EXPECT_EQ(refusal(o), "there is no format \"docx\": use text, alto, page, hocr");
}

TEST_F(OcrPlanTest, ImagesThatDifferInTheirEndingOnlyKeepIt) {
    auto plan = plan_ocr(options({file("a.png", "x"), file("a.tif", "y"), file("b.png", "z")}));
    ASSERT_TRUE(plan) << plan.error().message();
    EXPECT_EQ(plan->pages[0].base, "a.png");
    EXPECT_EQ(plan->pages[1].base, "a.tif");
    EXPECT_EQ(plan->pages[2].base, "b");
}

TEST_F(OcrPlanTest, ImagesOfTheSameNameAreRefusedAndTheSameImageTwiceIsOne) {
    auto one = file("x/a.png", "x"), two = file("y/a.png", "y");
    auto text = refusal(options({one, two}));
    EXPECT_NE(text.find(one), std::string::npos);
    EXPECT_NE(text.find(two), std::string::npos);
    EXPECT_EQ(plan_ocr(options({one, one}))->pages.size(), 1u);
}

TEST_F(OcrPlanTest, AMissingImageIsAProblemOfThatPageOnly) {
    auto plan = plan_ocr(options({(folder / "none.png").native(), file("a.png", "x")}));
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->pages[0].problem, "there is no such file");
    EXPECT_EQ(plan->pages[1].problem, "");
}

TEST_F(OcrPlanTest, WhatCannotBeOpenedSafelyIsAProblemOfThatPageOnly) {
    auto const pipe = (folder / "pipe.png").native();
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    auto plan = plan_ocr(options({pipe, file("a.png", "x"), file("m\xfcller.png", "y"), "/dev/zero"}));
    ASSERT_TRUE(plan) << plan.error().message();
    EXPECT_EQ(plan->pages[0].problem, "it is not a regular file");
    EXPECT_EQ(plan->pages[1].problem, "");
    EXPECT_EQ(plan->pages[2].problem, "the name is not UTF-8: rename it");
    EXPECT_EQ(plan->pages[3].problem, "it is not a regular file");
}

TEST_F(OcrPlanTest, PagesThatATiffHasLostAreAFailingPage) {
    // One directory of a width and a height, whose successor lies past the end of the file.
    using namespace std::string_view_literals;
    auto const cut = file("cut.tif", "II*\0\x08\0\0\0"
                                     "\x02\0"
                                     "\x00\x01\x03\0\x01\0\0\0\x0a\0\0\0"
                                     "\x01\x01\x03\0\x01\0\0\0\x14\0\0\0"
                                     "\x00\x10\0\0"sv);
    auto plan = plan_ocr(options({cut}));
    ASSERT_TRUE(plan) << plan.error().message();
    ASSERT_EQ(plan->pages.size(), 2u);
    EXPECT_EQ(plan->pages[0].base, "cut.0001");
    EXPECT_EQ(plan->pages[0].problem, "");
    EXPECT_EQ(plan->pages[1].shown, cut + " page 2");
    EXPECT_EQ(plan->pages[1].problem, "the file is truncated or damaged after page 1");
}

TEST_F(OcrPlanTest, TheOutputFolderNeedsAName) {
    auto o = options({file("a.png", "x")});
    o.out = "";
    EXPECT_EQ(refusal(o), "-o needs the name of a folder");
    o.out = folder / "\xe4";
    EXPECT_EQ(refusal(o), "the name of the output folder is not UTF-8: use another");
}

TEST_F(OcrPlanTest, AWorkflowsStepsAreRunAndItsExportsNameTheFormats) {
    auto o = options({file("a.png", "x")});
    o.workflow = file("w.txt", "ocrctl-binarize -I IMG -O BIN\nocrctl-recognize -I BIN -O OCR -P model deu\n"
                               "ocrctl-export -I OCR -O TXT -P format alto\n");
    auto plan = plan_ocr(o);
    ASSERT_TRUE(plan) << plan.error().message();
    ASSERT_EQ(plan->chain.size(), 2u);
    EXPECT_EQ(plan->chain[0].input_groups, std::vector<std::string>{kImageGroup});
    EXPECT_EQ(plan->result_group, "OCR");
    EXPECT_EQ(plan->formats, std::vector<std::string>{"alto"});
    EXPECT_EQ(plan->models(), std::vector<std::string>{"deu"});
    o.lang = "eng";
    EXPECT_NE(refusal(o).find("--lang"), std::string::npos);
}

TEST_F(OcrPlanTest, MistakesInAWorkflowNameTheirLine) {
    auto o = options({file("a.png", "x")});
    o.workflow = file("w.txt", "ocrctl-binarise -I IMG -O BIN\n");
    EXPECT_NE(refusal(o).find("w.txt:1: ocrd-ocrctl-binarise is not one of the built-in Processors (did you mean \"ocrd-ocrctl-binarize\"?)"), std::string::npos)
        << refusal(o);
    o.workflow = file("w.txt", "ocrctl-binarize -I IMG -O BIN\nocrctl-recognize -I OTHER -O OCR\n");
    EXPECT_NE(refusal(o).find("w.txt:2: no step before writes the group OTHER"), std::string::npos) << refusal(o);
    o.workflow = file("w.txt", "ocrctl-binarize -I IMG -O BIN -P no_such 1\n");
    EXPECT_NE(refusal(o).find("w.txt:1: "), std::string::npos) << refusal(o);
}

TEST_F(OcrWorkTest, APageThatWasDoneIsDoneAndAMissingResultIsExportedAgain) {
    finish();
    EXPECT_TRUE(decide()->empty());
    EXPECT_EQ(summary.up_to_date, 1u);
    std::filesystem::remove(folder / "out/a.txt");
    EXPECT_EQ(only().todo, Todo::Export);
}

TEST_F(OcrWorkTest, AFormatAskedForLaterIsOnlyExported) {
    finish();
    wanted.formats = {"text,alto"};
    auto work = only();
    EXPECT_EQ(work.todo, Todo::Export);
    EXPECT_EQ(work.formats, std::vector<std::string>{"alto"});
}

TEST_F(OcrWorkTest, ADifferenceRedoesThePageAndSaysWhy) {
    finish();
    auto const before = models;
    models["eng"] = "sha256:other";
    EXPECT_EQ(only().why, "a model has changed");
    models = before;
    wanted.lang = "deu";
    EXPECT_EQ(only().why, "the steps or their parameters have changed");
    wanted.lang = "";
    std::filesystem::remove(folder / "out/.ocrctl/pages/a/p.xml");
    EXPECT_EQ(only().why, "its PAGE-XML is gone");
    file("out/.ocrctl/pages/a/p.xml", "<PcGts/>");
    file("a.png", "another image");
    auto work = only();
    EXPECT_EQ(work.todo, Todo::Everything);
    EXPECT_EQ(work.why, "the image has changed");
}

TEST_F(OcrWorkTest, ARedoMakesResultsOfAllKindsAnew) {
    wanted.formats = {"text,alto"};
    finish();
    wanted.formats = {"text"};
    file("a.png", "another image");
    EXPECT_EQ(only().formats, (std::vector<std::string>{"text", "alto"}));
}

TEST_F(OcrWorkTest, ATouchedImageIsTheSame) {
    finish();
    timespec const times[2] = {{0, UTIME_NOW}, {1000, 0}};
    ASSERT_EQ(::utimensat(AT_FDCWD, image.c_str(), times, 0), 0);
    EXPECT_TRUE(decide()->empty());
    EXPECT_EQ(summary.up_to_date, 1u);
}

TEST_F(OcrWorkTest, FilesThatAreNotOursAreNotReplaced) {
    file("out/a.txt", "somebody's transcription");
    auto work = decide();
    ASSERT_FALSE(work);
    EXPECT_NE(work.error().message().find("out/a.txt exists and was not made by this command"), std::string::npos);
    wanted.force = true;
    EXPECT_EQ(only().todo, Todo::Everything);
}

TEST_F(OcrWorkTest, APageThatWasBegunIsNotTakenForDone) {
    auto work = decide();
    auto begun = work->front().record;
    begun.digest = "sha256:" + *sha256_of_file(image);
    {
        auto record = OcrRecord::open(folder / "out/.ocrctl");
        ASSERT_TRUE(record->put(begun));
    }
    file("out/a.txt", "ours, but not vouched for");
    auto again = only();
    EXPECT_EQ(again.todo, Todo::Everything);
    EXPECT_TRUE(again.resume);
}

TEST(Progress, PrintsTimes) {
    EXPECT_EQ(clock_text(std::chrono::seconds(7)), "0:07");
    EXPECT_EQ(clock_text(std::chrono::seconds(750)), "12:30");
    EXPECT_EQ(clock_text(std::chrono::seconds(10931)), "3:02:11");
}
