#include "lib/ocr/processors.hpp"

#include "lib/ocr/engine.hpp"
#include "lib/ocr/image.hpp"
#include "lib/ocr/page.hpp"
#include "tests/support/scratch_folder.hpp"
#include "tests/unit/ocr/make_images.hpp"

#include <cstdio>
#include <cstdlib>
#include <gtest/gtest.h>
#include <regex>
#include <sys/wait.h>
#include <unistd.h>

namespace ocrctl::ocr {
namespace {

namespace fs = std::filesystem;

class ProcessorsTest : public ::testing::Test {
protected:
    void SetUp() override {
        auto const* source = std::getenv("OCRCTL_SOURCE_DIR");
        samples_ = fs::path(source ? source : ".") / "samples";
        fs::create_directories(folder_.path() / "IMG");
    }
    void use_sample(std::string const& name) {
        fs::copy_file(samples_ / "workspace/OCR-D-IMG" / name, folder_.path() / "IMG" / name,
                      fs::copy_options::overwrite_existing);
    }
    PageOutcome run(std::string const& processor, std::string const& input, std::string const& group,
                    Json parameters = Json::object(), std::string const& mimetype = {}) {
        PageJob job;
        job.processor = "ocrd-ocrctl-" + processor;
        job.parameters = std::move(parameters);
        job.workspace = job.staging = folder_.path();
        job.input_groups = {"IN"};
        job.output_groups = {group};
        FileRef file;
        file.path = input;
        file.mimetype = mimetype.empty() && input.ends_with(".xml") ? "application/vnd.prima.page+xml" : mimetype;
        job.page = {"PHYS_0001", {file}, {group + "_0001"}};
        log_.clear();
        return processors_.page(job, log_);
    }
    Page page(std::string const& group) {
        return std::move(*Page::parse(slurp(folder_.path() / group / (group + "_0001.xml"))));
    }

    static bool has_model(std::string const& model) { return find_model(model).has_value(); }

    // Text agrees level by level, segments lie in the image and children in their parents' boxes.
    static void expect_sound(Page const& page) {
        std::function<void(pugi::xml_node, cv::Rect2d)> inside = [&](pugi::xml_node segment, cv::Rect2d parent) {
            auto polygon = coords_of(segment);
            ASSERT_GE(polygon.size(), 3u) << segment.attribute("id").value();
            auto box = bounds(polygon);
            EXPECT_GE(box.x, parent.x - 1) << segment.attribute("id").value();
            EXPECT_GE(box.y, parent.y - 1) << segment.attribute("id").value();
            EXPECT_LE(box.x + box.width, parent.x + parent.width + 1) << segment.attribute("id").value();
            EXPECT_LE(box.y + box.height, parent.y + parent.height + 1) << segment.attribute("id").value();
            for (auto child : segment.children())
                if (is_region(child) || local_name(child) == "TextLine" || local_name(child) == "Word" ||
                    local_name(child) == "Glyph")
                    inside(child, box);
        };
        for (auto region : regions_of(page.node())) inside(region, {0, 0, page.width() - 1.0, page.height() - 1.0});
        for (auto region : page.text_regions()) {
            std::string lines;
            for (auto line : children_of(region, "TextLine")) {
                lines += (lines.empty() ? "" : "\n") + text_of(line);
                std::string words;
                for (auto word : children_of(line, "Word")) {
                    words += (words.empty() ? "" : " ") + text_of(word);
                    EXPECT_TRUE(confidence_of(word));
                }
                if (!words.empty()) EXPECT_EQ(words, text_of(line));
            }
            if (!lines.empty()) EXPECT_EQ(lines, text_of(region));
        }
    }
    void expect_valid(std::string const& schema, fs::path const& file) {
        auto const* schemas = std::getenv("OCRCTL_SCHEMAS");
        if (!schemas) {
            std::printf("SKIPPED: %s against %s: OCRCTL_SCHEMAS is not set (scripts/schemas makes that folder)\n",
                        file.filename().c_str(), schema.c_str());
            return;
        }
        auto command = "xmllint --nonet --noout --schema '" + std::string(schemas) + "/" + schema + "' '" +
                       file.string() + "' 2>&1";
        FILE* pipe = ::popen(command.c_str(), "r");
        std::string said;
        char buffer[500];
        while (std::fgets(buffer, sizeof buffer, pipe)) said += buffer;
        EXPECT_EQ(::pclose(pipe), 0) << said;
    }

    test::ScratchFolder folder_;
    fs::path samples_;
    Processors processors_;
    std::string log_;
};

TEST_F(ProcessorsTest, AGroupThatIsNoPlainNameFailsThePage) {
    use_sample("page_0004.png");
    for (auto const* group : {"../x", "/abs", ".", ".hidden", "A/B", ""})
        for (auto const* processor : {"dummy", "binarize"}) {
            auto done = run(processor, "IMG/page_0004.png", group, Json::object(), "image/png");
            EXPECT_FALSE(done.ok) << group;
            EXPECT_NE(done.error.find("cannot be the name of an output group"), std::string::npos) << done.error;
        }
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1);
}

TEST_F(ProcessorsTest, RecognizesARawPageInOnePass) {
    if (!has_model("eng")) GTEST_SKIP() << "tesseract-ocr-eng is not installed";
    use_sample("page_0004.png");
    auto done = run("recognize", "IMG/page_0004.png", "OCR", {{"model", "eng"}}, "image/png");
    ASSERT_TRUE(done.ok) << done.error;
    ASSERT_EQ(done.files.size(), 1u);
    EXPECT_EQ(done.files[0].path, "OCR/OCR_0001.xml");
    EXPECT_GT(done.files[0].size, 1000u);
    EXPECT_TRUE(done.files[0].digest.starts_with("sha256:"));
    auto result = page("OCR");
    EXPECT_EQ(result.image(), "IMG/page_0004.png");
    EXPECT_NEAR(result.dpi(), 300, 1);
    expect_sound(result);
    expect_valid("page.xsd", folder_.path() / done.files[0].path);
    auto text = slurp(folder_.path() / done.files[0].path);
    EXPECT_NE(text.find("How to Pack a Small Museum"), std::string::npos);
    EXPECT_TRUE(std::regex_search(
        text, std::regex(R"(externalId="model">\s*<pc:Label value="sha256:[0-9a-f]{64}" type="eng")")));

    for (auto [format, file, schema] :
         {std::tuple{"text", "X_0001.txt", ""}, {"alto", "X_0001.xml", "alto.xsd"}, {"hocr", "X_0001.hocr", ""}}) {
        auto exported = run("export", "OCR/OCR_0001.xml", "X", {{"format", format}});
        ASSERT_TRUE(exported.ok) << exported.error;
        EXPECT_EQ(exported.files[0].path, std::string("X/") + file);
        EXPECT_NE(slurp(folder_.path() / exported.files[0].path).find("pencil"), std::string::npos);
        if (*schema) expect_valid(schema, folder_.path() / exported.files[0].path);
    }
    auto wrong = run("export", "OCR/OCR_0001.xml", "X", {{"format", "pdf"}});
    EXPECT_EQ(wrong.error, "there is no format \"pdf\": text, alto, hocr and page are known");
}

TEST_F(ProcessorsTest, TheChainRefersToThePixelsOfTheOriginal) {
    if (!has_model("eng")) GTEST_SKIP() << "tesseract-ocr-eng is not installed";
    use_sample("page_0001.png");
    std::string input = "IMG/page_0001.png";
    for (auto [processor, group] :
         {std::pair{"binarize", "BIN"}, {"deskew", "DESK"}, {"segment", "SEG"}, {"recognize", "OCR"}}) {
        auto done = run(processor, input, group);
        ASSERT_TRUE(done.ok) << processor << ": " << done.error;
        input = std::string(group) + "/" + group + "_0001.xml";
        expect_valid("page.xsd", folder_.path() / input);
    }
    auto result = page("OCR");
    expect_sound(result);
    EXPECT_NEAR(result.orientation(), -1.3, 0.1);
    auto images = children_of(result.node(), "AlternativeImage");
    ASSERT_EQ(images.size(), 2u);
    EXPECT_STREQ(images[0].attribute("comments").value(), "binarized");
    EXPECT_STREQ(images[1].attribute("comments").value(), "binarized,deskewed");
    EXPECT_EQ(children_of(child_of(result.node().parent(), "Metadata"), "MetadataItem").size(), 4u);
    EXPECT_TRUE(child_of(result.node(), "ReadingOrder"));
    // The lines of a skewed page are skewed boxes in the original.
    auto line = child_of(result.text_regions().back(), "TextLine");
    auto outline = coords_of(line);
    ASSERT_EQ(outline.size(), 4u);
    EXPECT_GT(outline[1].y, outline[0].y + 5);
}

TEST_F(ProcessorsTest, UsesSegmentsThatAreThereUnlessToldToOverwrite) {
    if (!has_model("eng")) GTEST_SKIP() << "tesseract-ocr-eng is not installed";
    use_sample("page_0004.png");
    auto made = Page::blank("IMG/page_0004.png", 1240, 1748);
    auto region = add_child(made.node(), "TextRegion");
    set(region, "id", "mine");
    set_coords(region, rectangle({100, 90, 1000, 110}));
    spill(folder_.path() / "IN/IN_0001.xml", made.text("IN_0001"));
    ASSERT_TRUE(run("recognize", "IN/IN_0001.xml", "OCR", {{"textequiv_level", "glyph"}}).ok);
    auto kept = page("OCR");
    ASSERT_EQ(kept.text_regions().size(), 1u);
    EXPECT_STREQ(kept.text_regions()[0].attribute("id").value(), "mine");
    EXPECT_NE(text_of(kept.text_regions()[0]).find("Museum"), std::string::npos);
    EXPECT_TRUE(child_of(child_of(child_of(kept.text_regions()[0], "TextLine"), "Word"), "Glyph"));
    expect_valid("page.xsd", folder_.path() / "OCR/OCR_0001.xml");
    ASSERT_TRUE(run("recognize", "OCR/OCR_0001.xml", "AGAIN").ok); // by words
    EXPECT_EQ(text_of(page("AGAIN").text_regions()[0]), text_of(kept.text_regions()[0]));
    ASSERT_TRUE(run("recognize", "IN/IN_0001.xml", "NEW", {{"overwrite_segments", true}}).ok);
    EXPECT_GT(page("NEW").text_regions().size(), 1u);
}

TEST_F(ProcessorsTest, ABlankPageIsAWarning) {
    if (!has_model("eng")) GTEST_SKIP() << "tesseract-ocr-eng is not installed";
    ASSERT_TRUE(write_png(folder_.path() / "IMG/blank.png", cv::Mat(600, 400, CV_8UC1, cv::Scalar(255)), false, 300));
    for (auto processor : {"binarize", "deskew", "segment", "recognize"}) {
        auto done = run(processor, "IMG/blank.png", "OUT", Json::object(), "image/png");
        EXPECT_TRUE(done.ok) << processor << ": " << done.error;
    }
    EXPECT_EQ(run("recognize", "IMG/blank.png", "OUT").warnings,
              std::vector<std::string>{"no text was found on the page"});
}

TEST_F(ProcessorsTest, SaysWhatIsWrongWithItsInput) {
    spill(folder_.path() / "IMG/empty.png", "");
    EXPECT_EQ(run("binarize", "IMG/empty.png", "OUT").error, "image empty.png is empty (0 bytes)");
    spill(folder_.path() / "IN/text.xml", "hello");
    EXPECT_EQ(run("binarize", "IN/text.xml", "OUT").error, "IN/text.xml is declared to be PAGE-XML, but is no XML");
    spill(folder_.path() / "IN/alto.xml", "<alto/>");
    EXPECT_EQ(run("export", "IN/alto.xml", "OUT").error, "IN/alto.xml: is no PAGE-XML: its root is <alto>");
    EXPECT_NE(run("binarize", "IMG/none.png", "OUT").error.find("there is no file IMG/none.png in the workspace"),
              std::string::npos);
    EXPECT_EQ(run("sharpen", "IMG/none.png", "OUT").error, "ocrd-ocrctl-sharpen is no built-in processor");
    EXPECT_FALSE(fs::exists(folder_.path() / "OUT"));
}

TEST_F(ProcessorsTest, AMissingModelSaysHowToGetIt) {
    auto missing = processors_.load("ocrd-ocrctl-recognize", {{"model", "Fraktur"}, {"dpi", 300}});
    if (missing) GTEST_SKIP() << "the model Fraktur is installed";
    EXPECT_EQ(missing.error().kind(), ErrorKind::NotFound);
    EXPECT_NE(missing.error().message().find("install the package tesseract-ocr-script-frak"), std::string::npos);
    EXPECT_NE(processors_.load("ocrd-ocrctl-recognize", {{"model", "chi_sim"}})
                  .error()
                  .message()
                  .find("tesseract-ocr-chi-sim"),
              std::string::npos);
}

TEST_F(ProcessorsTest, PartsOfAModelMayLieInDifferentFolders) {
    auto parts = find_model("eng+deu");
    if (!parts) GTEST_SKIP() << parts.error().message();
    fs::create_directories(folder_.path() / "models");
    fs::copy_file((*parts)[0].file, folder_.path() / "models/mine.traineddata");
    ::setenv("OCRCTL_MODELS", (folder_.path() / "models").c_str(), 1);
    auto loaded = processors_.load("ocrd-ocrctl-recognize", {{"model", "mine+deu"}});
    ::unsetenv("OCRCTL_MODELS");
    EXPECT_TRUE(loaded) << loaded.error().message();
}

TEST_F(ProcessorsTest, TheDummyCopiesAndFailsAsAsked) {
    make_tiff(folder_.path() / "IMG/a.tif", pattern(100, 80, 1), {.orientation = 6, .pages = 2});
    auto done = run("dummy", "IMG/a.tif", "OUT", Json::object(), "image/tiff");
    ASSERT_TRUE(done.ok) << done.error;
    EXPECT_EQ(page("OUT").width(), 100);
    EXPECT_EQ(page("OUT").orientation(), 90);
    EXPECT_EQ(done.warnings.size(), 1u);
    ASSERT_TRUE(run("dummy", "IMG/a.tif?frame=1", "OUT", Json::object(), "image/tiff").ok);
    EXPECT_EQ(page("OUT").height(), 72);
    EXPECT_EQ(page("OUT").image(), "IMG/a.tif");
    EXPECT_EQ(page("OUT").frame(), 1);
    ASSERT_TRUE(run("binarize", "OUT/OUT_0001.xml", "BIN").ok);
    EXPECT_EQ(read_image(folder_.path() / "BIN/BIN_0001.IMG-BIN.png")->width, 72); // turned upright

    EXPECT_EQ(run("dummy", "IMG/a.tif", "OUT", {{"fail", true}}).error,
              "page PHYS_0001 fails, as the parameter `fail` asks");
    EXPECT_FALSE(run("dummy", "IMG/a.tif", "OUT", {{"fail", true}}).retry);
    EXPECT_TRUE(run("dummy", "IMG/a.tif", "OUT", {{"fail", true}, {"transient", true}}).retry);
    EXPECT_TRUE(run("dummy", "IMG/a.tif", "OUT", {{"fail", true}, {"pages", "PHYS_0002"}}).ok);
    EXPECT_FALSE(run("dummy", "IMG/a.tif", "OUT", {{"fail", true}, {"pages", "PHYS_000."}}).ok);
}

TEST_F(ProcessorsTest, AnEngineAnswersWhateverItIsAsked) {
    EXPECT_EQ(answer(processors_, Json::array())["ok"], false);
    EXPECT_EQ(answer(processors_, {{"op", "load"}, {"processor", "ocrd-x"}})["kind"], "not-found");
    EXPECT_EQ(answer(processors_, {{"op", "page"}, {"page", 7}})["outcome"]["ok"], false);
    make_tiff(folder_.path() / "IMG/a.tif", pattern(100, 80, 1), {.pages = 3});
    EXPECT_EQ(answer(processors_, {{"op", "frames"}, {"path", (folder_.path() / "IMG/a.tif").string()}})["frames"], 3);
    auto wrong = answer(
        processors_, {{"op", "load"}, {"processor", "ocrd-ocrctl-recognize"}, {"parameters", {{"padding", "much"}}}});
    EXPECT_EQ(wrong["ok"], false);
}

} // namespace
} // namespace ocrctl::ocr
