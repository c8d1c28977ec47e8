#include "lib/ocr/export.hpp"
#include "lib/ocr/page.hpp"
#include "lib/ocr/view.hpp"
#include "tests/support/scratch_folder.hpp"
#include "tests/unit/ocr/make_images.hpp"

#include <gtest/gtest.h>

namespace ocrctl::ocr {
namespace {

// Two regions against document order, a hyphenated word, a line without words, a separator; an older version, default
// namespace.
constexpr char const* kOld = R"(<?xml version="1.0" encoding="UTF-8"?>
<!-- from elsewhere -->
<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2013-07-15" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" pcGtsId="old">
  <Metadata><Creator>x</Creator><Created>2020-01-01T00:00:00</Created><LastChange>2020-01-01T00:00:00</LastChange></Metadata>
  <Page imageFilename="IMG/a.png" imageWidth="200" imageHeight="150" type="content">
    <ReadingOrder><OrderedGroup id="ro"><RegionRefIndexed index="1" regionRef="b"/><RegionRefIndexed index="0" regionRef="a"/></OrderedGroup></ReadingOrder>
    <TextRegion id="b" custom="kept"><Coords points="10,80 190,80 190,120 10,120"/>
      <TextLine id="b1"><Coords points="10,80 110,80 110,100 10,100"/><TextEquiv><Unicode>two words</Unicode></TextEquiv></TextLine>
      <TextEquiv><Unicode>two words</Unicode></TextEquiv></TextRegion>
    <TextRegion id="a"><Coords points="10,10 190,10 190,60 10,60"/>
      <TextLine id="a1"><Coords points="10,10 190,10 190,30 10,30"/><Baseline points="10,28 190,28"/>
        <Word id="w1"><Coords points="10,10 60,10 60,30 10,30"/><TextEquiv conf="0.9"><Unicode>Wa&#x17F;</Unicode></TextEquiv></Word>
        <Word id="w2"><Coords points="70,10 190,10 190,30 70,30"/><TextEquiv conf="0.8"><Unicode>Auf⸗</Unicode></TextEquiv></Word>
        <TextEquiv><Unicode>Wa&#x17F; Auf⸗</Unicode></TextEquiv></TextLine>
      <TextLine id="a2"><Coords points="10,35 190,35 190,55 10,55"/>
        <Word id="w3"><Coords points="10,35 90,35 90,55 10,55"/><TextEquiv conf="0.7"><Unicode>klärung &amp;</Unicode></TextEquiv></Word>
        <TextEquiv><Unicode>klärung &amp;</Unicode></TextEquiv></TextLine></TextRegion>
    <SeparatorRegion id="s"><Coords points="0,140 199,140 199,142 0,142"/></SeparatorRegion>
  </Page>
</PcGts>)";

TEST(Page, ReadsOlderVersionsAndKeepsWhatItDoesNotKnow) {
    auto page = Page::parse(kOld);
    ASSERT_TRUE(page) << page.error().message();
    auto text = page->text("new_id");
    EXPECT_NE(text.find("pagecontent/2019-07-15"), std::string::npos);
    EXPECT_EQ(text.find("2013-07-15"), std::string::npos);
    EXPECT_NE(text.find("pcGtsId=\"new_id\""), std::string::npos);
    EXPECT_NE(text.find("custom=\"kept\""), std::string::npos);
    EXPECT_NE(text.find("<!-- from elsewhere -->"), std::string::npos);
    EXPECT_EQ(text.find("<LastChange>2020-01-01"), std::string::npos);
    EXPECT_NE(text.find("<Created>2020-01-01"), std::string::npos);
}

TEST(Page, RefusesWhatIsNoPage) {
    EXPECT_NE(Page::parse("<PcGts>").error().message().find("is not well-formed XML"), std::string::npos);
    EXPECT_EQ(Page::parse("<alto/>").error().message(), "is no PAGE-XML: its root is <alto>");
    EXPECT_EQ(Page::parse("<PcGts><Page/></PcGts>").error().message(),
              "names no image with its size (imageFilename, imageWidth, imageHeight)");
}

TEST(Page, PutsNewElementsWhereTheSchemaHasThem) {
    auto page = Page::parse(kOld);
    page->add_alternative_image("BIN/a.png", "binarized");
    add_child(page->node(), "Border");
    auto region = page->text_regions().front();
    add_child(region, "TextLine");
    std::vector<std::string> order;
    for (auto node : page->node().children()) order.emplace_back(local_name(node));
    EXPECT_EQ(order, (std::vector<std::string>{"AlternativeImage", "Border", "ReadingOrder", "TextRegion", "TextRegion",
                                               "SeparatorRegion"}));
    order.clear();
    for (auto node : region.children()) order.emplace_back(local_name(node));
    EXPECT_EQ(order, (std::vector<std::string>{"Coords", "TextLine", "TextLine", "TextLine"}));
}

TEST(Export, TextFollowsTheReadingOrder) {
    auto page = Page::parse(kOld);
    EXPECT_EQ(to_text(*page), "Waſ Auf⸗\nklärung &\n\ntwo words\n");
    EXPECT_EQ(composed("a\xcc\x88"), "ä");
}

TEST(Export, AltoHasBoxesConfidencesAndHyphens) {
    auto page = Page::parse(kOld);
    auto alto = to_alto(*page, {"ALTO_1", "PHYS_1"});
    for (
        auto piece :
        {"<fileName>IMG/a.png</fileName>",
         R"(HPOS="70" VPOS="10" WIDTH="120" HEIGHT="20" WC="0.8" CONTENT="Auf" SUBS_TYPE="HypPart1" SUBS_CONTENT="Aufklärung &amp;")",
         R"(<HYP CONTENT="⸗" />)", R"(SUBS_TYPE="HypPart2")", R"(CONTENT="two")", R"(<GraphicalElement ID="s")",
         R"(ID="PHYS_1")"})
        EXPECT_NE(alto.find(piece), std::string::npos) << piece << "\n" << alto;
    EXPECT_LT(alto.find("ID=\"a\""), alto.find("ID=\"b\""));
    EXPECT_EQ(alto.find("STYLE"), std::string::npos);
}

TEST(Export, HocrHasWordsWithConfidenceAndBaseline) {
    auto page = Page::parse(kOld);
    auto hocr = to_hocr(*page, {"HOCR_1", "PHYS_1"});
    for (auto piece : {"class=\"ocrx_word\"", "bbox 10 10 60 30; x_wconf 90", "baseline 0.000 -2",
                       "class=\"ocr_separator\"", "bbox 0 0 200 150", ">klärung &amp;<"})
        EXPECT_NE(hocr.find(piece), std::string::npos) << piece << "\n" << hocr;
}

TEST(Geometry, PolygonsStayInsideThePage) {
    auto cut = on_page({{-10, -10}, {50.4, -10}, {300, 300}, {-10, 300}}, 100, 80);
    ASSERT_GE(cut.size(), 3u);
    for (auto p : cut) {
        EXPECT_GE(p.x, 0);
        EXPECT_LE(p.x, 99);
        EXPECT_GE(p.y, 0);
        EXPECT_LE(p.y, 79);
    }
    EXPECT_TRUE(on_page({{200, 200}, {210, 200}, {210, 210}}, 100, 80).empty());
    EXPECT_GE(on_page({{10, 10}, {10.2, 10}, {10.2, 30}, {10, 30}}, 100, 80).size(), 3u); // thinner than a pixel
    EXPECT_TRUE(parse_points("1,2 x,3").empty());
    EXPECT_EQ(format_points(parse_points(" 1,2 3.6,4 ")), "1,2 4,4");
}

class ViewTest : public ::testing::Test {
protected:
    void SetUp() override {
        std::filesystem::create_directories(folder_.path() / "IMG");
        ASSERT_TRUE(write_png(folder_.path() / "IMG/a.png", pattern(200, 150, 1), false, 300));
    }
    test::ScratchFolder folder_;
    Files files_{folder_.path(), folder_.path() / "staging"};
};

TEST_F(ViewTest, TurnsBackWhatItTurned) {
    auto page = Page::blank("IMG/a.png", 200, 150);
    page.set_orientation(-91.5); // a quarter and a skew
    auto view = view_of(page, files_);
    ASSERT_TRUE(view) << view.error().message();
    EXPECT_EQ(view->features, "rotated-90,deskewed");
    EXPECT_NEAR(view->pixels.cols, 150, 7);
    for (cv::Point2d p : {cv::Point2d(20, 30), cv::Point2d(180, 140)}) {
        auto there = transformed(view->from_page, p);
        EXPECT_TRUE(there.x >= 0 && there.x <= view->pixels.cols && there.y >= 0 && there.y <= view->pixels.rows);
        auto back = transformed(view->from_page.inv(), there);
        EXPECT_NEAR(back.x, p.x, 1e-6);
        EXPECT_NEAR(back.y, p.y, 1e-6);
    }
    auto unturned = view_of(page, files_, "", "deskewed,rotated-90");
    ASSERT_TRUE(unturned);
    EXPECT_EQ(unturned->pixels.cols, 200);
}

TEST_F(ViewTest, CropsToTheBorder) {
    auto page = Page::blank("IMG/a.png", 200, 150);
    set_coords(add_child(page.node(), "Border"), rectangle({20, 10, 100, 50}));
    auto view = view_of(page, files_);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->pixels.size(), cv::Size(100, 50));
    EXPECT_EQ(format_points(view->to_page(rectangle({0, 0, 10, 10}))), "20,10 30,10 30,20 20,20");
}

TEST_F(ViewTest, PicksTheRichestImageAndChecksItsSize) {
    auto page = Page::blank("IMG/a.png", 200, 150);
    ASSERT_TRUE(write_png(folder_.path() / "IMG/bin.png", cv::Mat(150, 200, CV_8UC1, cv::Scalar(255)), true, 300));
    page.add_alternative_image("IMG/bin.png", "binarized");
    EXPECT_TRUE(view_of(page, files_)->bilevel);
    EXPECT_FALSE(view_of(page, files_, "", "binarized")->bilevel);
    EXPECT_EQ(view_of(page, files_, "despeckled").error().message(),
              "the page has no image with the feature despeckled");
    ASSERT_TRUE(write_png(folder_.path() / "IMG/bin.png", cv::Mat(100, 200, CV_8UC1, cv::Scalar(255)), true, 300));
    EXPECT_EQ(view_of(page, files_).error().message(),
              "image IMG/bin.png has 200 x 100 pixels, but PAGE-XML says it should have 200 x 150");
}

TEST_F(ViewTest, RefusesPathsThatLeadOutOfTheWorkspace) {
    EXPECT_EQ(files_.find("../secret.tif").error().kind(), ErrorKind::Denied);
    EXPECT_EQ(files_.find("/etc/passwd").error().kind(), ErrorKind::Denied);
    EXPECT_EQ(files_.find("http://example.org/a.tif").error().kind(), ErrorKind::NotFound);
    EXPECT_TRUE(files_.find("IMG/../IMG/a.png"));
}

} // namespace
} // namespace ocrctl::ocr
