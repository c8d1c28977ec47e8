// Page selectors as OCR-D takes them, and ranges.
#include "tests/unit/mets/workspace.hpp"

namespace ocrctl::mets {
namespace {

struct Selector : testing::Test {
    Workspace ws{mets_xml(
        "",
        page_xml("PHYS_0001", {}, " ORDER=\"1\" ORDERLABEL=\"I\" LABEL=\"cover\" CONTENTIDS=\"urn:1\"") +
            page_xml("PHYS_0002", {}, " ORDER=\"2\" ORDERLABEL=\"II\" LABEL=\"page\"") +
            page_xml("PHYS_0005", {}, " ORDER=\"5\" ORDERLABEL=\"1\" LABEL=\"page\""),
        "", R"(  <mets:structMap TYPE="LOGICAL"><mets:div ID="LOG_1" DMDID="DMD_1" TYPE="monograph" LABEL="Book">
      <mets:div ID="LOG_2" TYPE="chapter" LABEL="One"/><mets:div ID="LOG_3" TYPE="chapter" LABEL="Two"/><mets:div ID="LOG_4" TYPE="index"/></mets:div></mets:structMap>
  <mets:structLink><mets:smLink xlink:from="LOG_1" xlink:to="PHYS_0001"/><mets:smLink xlink:from="LOG_2" xlink:to="PHYS_0002"/>
  <mets:smLink xlink:from="LOG_3" xlink:to="PHYS_0005"/><mets:smLink xlink:from="LOG_3" xlink:to="PHYS_0002"/></mets:structLink>)")};
    Mets mets = ws.load();

    Strings pages(std::string_view selector) {
        auto selected = mets.select_pages(selector);
        return selected ? *selected : Strings{"error: " + selected.error().message()};
    }
    Strings const all{"PHYS_0001", "PHYS_0002", "PHYS_0005"};
};

TEST_F(Selector, SelectsTheSameByIdRegexRangeAndOrder) {
    EXPECT_EQ(pages(""), all);
    EXPECT_EQ(pages("PHYS_0001..PHYS_0005"), all);
    EXPECT_EQ(pages("1..5"), all);
    EXPECT_EQ(pages("//PHYS_.*"), all);
    EXPECT_EQ(pages("PHYS_0001,PHYS_0002,PHYS_0005"), all);
}

TEST_F(Selector, AnswersInPageOrderEachOnce) {
    EXPECT_EQ(pages("PHYS_0005,PHYS_0001,1"), (Strings{"PHYS_0001", "PHYS_0005"}));
    EXPECT_EQ(pages("PHYS_0002, PHYS_0001"), (Strings{"PHYS_0001", "PHYS_0002"}));
}

TEST_F(Selector, TriesTheAttributesInOrder) {
    EXPECT_EQ(pages("1"), (Strings{"PHYS_0001"})) << "ORDER before ORDERLABEL";
    EXPECT_EQ(pages("physical:orderlabel:1"), (Strings{"PHYS_0005"}));
    EXPECT_EQ(pages("II"), (Strings{"PHYS_0002"}));
    EXPECT_EQ(pages("urn:1"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("physical:contentids:urn:1"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("page"), (Strings{"PHYS_0002"})) << "a literal means one page";
    EXPECT_EQ(pages("//page"), (Strings{"PHYS_0002", "PHYS_0005"}));
}

TEST_F(Selector, FollowsLogicalLinks) {
    EXPECT_EQ(pages("LOG_3"), (Strings{"PHYS_0002", "PHYS_0005"}));
    EXPECT_EQ(pages("logical:id:LOG_1"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("logical:dmdid:DMD_1"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("chapter"), (Strings{"PHYS_0002", "PHYS_0005"}));
    EXPECT_EQ(pages("logical:label:Two"), (Strings{"PHYS_0002", "PHYS_0005"}));
    EXPECT_EQ(pages("logical:LOG_2..LOG_3"), (Strings{"PHYS_0002", "PHYS_0005"}));
    EXPECT_EQ(pages("logical:type://mono.*"), (Strings{"PHYS_0001"}));
}

TEST_F(Selector, SubtractsWhatIsNegated) {
    EXPECT_EQ(pages("~PHYS_0002"), (Strings{"PHYS_0001", "PHYS_0005"}));
    EXPECT_EQ(pages("~//.*1,~5"), (Strings{"PHYS_0002"}));
    EXPECT_EQ(pages("1..5,~physical:order:2"), (Strings{"PHYS_0001", "PHYS_0005"}));
    EXPECT_EQ(pages("1..5,physical:order:~2"), (Strings{"PHYS_0001", "PHYS_0005"}));
    EXPECT_EQ(pages("~PHYS_0001,PHYS_0001..PHYS_0002"), (Strings{"PHYS_0002"})) << "whatever comes first";
}

TEST_F(Selector, NamesTheTokenThatMatchesNothing) {
    EXPECT_EQ(pages("PHYS_0001,PHYS_0009"), (Strings{"error: page selector 'PHYS_0009' matches no page"}));
    EXPECT_EQ(pages("~PHYS_0009"), (Strings{"error: page selector '~PHYS_0009' matches no page"}));
    EXPECT_EQ(pages("//x.*"), (Strings{"error: page selector '//x.*' matches no page"}));
    EXPECT_EQ(pages("LOG_4"), (Strings{"error: page selector 'LOG_4' matches no page"}));
    EXPECT_EQ(
        pages("PHYS_0003..PHYS_0005"),
        (Strings{
            "error: page selector 'PHYS_0003..PHYS_0005': the start of the range, 'PHYS_0003', is not in the METS"}));
    EXPECT_EQ(pages("PHYS_0005..PHYS_0001"), (Strings{"error: page selector 'PHYS_0005..PHYS_0001' matches no page"}));
    EXPECT_EQ(pages("logical:type:a1..a2"), (Strings{"error: page selector 'logical:type:a1..a2' matches no page"}));
    EXPECT_EQ(pages("physical:id:1"), (Strings{"error: page selector 'physical:id:1' matches no page"}));
}

TEST_F(Selector, RefusesWhatCannotBeUnderstood) {
    EXPECT_EQ(pages("PHYS_0001,"), (Strings{"error: page selector has an empty token"}));
    EXPECT_EQ(pages("physical:"), (Strings{"error: page selector has an empty token: 'physical:'"}));
    EXPECT_EQ(pages("~"), (Strings{"error: page selector has an empty token: '~'"}));
    EXPECT_EQ(pages("//"), (Strings{"error: page selector has an empty token: '//'"}));
    EXPECT_EQ(pages("a..b"), (Strings{"error: page selector 'a..b': range 'a..b' has an end without a number"}));
    EXPECT_EQ(
        pages("a1..b2"),
        (Strings{"error: page selector 'a1..b2': the ends of the range 'a1..b2' differ in more than their number"}));
    EXPECT_NE(pages("//(").front().find("regular expression '(' is not valid"), std::string::npos);
    EXPECT_EQ(mets.select_pages("//(").error().kind(), ErrorKind::Invalid);
}

TEST_F(Selector, IsQuickOnALongListOfPages) {
    std::string xml, selector;
    for (int i = 0; i < 10'000; ++i) {
        xml += page_xml(fmt::format("P_{:05}", i), {}, fmt::format(" ORDER=\"{}\"", i));
        selector += fmt::format("{}P_{:05}", i ? "," : "", i);
    }
    Workspace big(mets_xml("", xml));
    auto many = big.load();
    auto const started = std::chrono::steady_clock::now();
    EXPECT_EQ(many.select_pages(selector)->size(), 10'000u);
    EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(3));
}

TEST_F(Selector, SeesPagesThatWereAddedAfterASearch) {
    EXPECT_EQ(pages("//PHYS_.*"), all);
    EXPECT_EQ(pages("logical:~LOG_3"), (Strings{"PHYS_0001"}));
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "O3", "PHYS_0003")));
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "O9", "LOST_0009")));
    EXPECT_EQ(pages("//PHYS_.*"), (Strings{"PHYS_0001", "PHYS_0002", "PHYS_0005", "PHYS_0003"})) << "the new ones last";
    EXPECT_EQ(pages("PHYS_0001..PHYS_0003"), (Strings{"PHYS_0001", "PHYS_0002", "PHYS_0003"}));
    EXPECT_EQ(pages("~//PHYS_.*"), (Strings{"LOST_0009"}));
    EXPECT_EQ(pages("1..5"), all) << "they have no ORDER";
}

TEST_F(Selector, FollowsALinkToAPageThatCameLater) {
    Workspace later(mets_xml("", page_xml("P1", {}), "",
                             R"(  <mets:structMap TYPE="LOGICAL"><mets:div ID="L1" TYPE="chapter"/></mets:structMap>
  <mets:structLink><mets:smLink xlink:from="L1" xlink:to="P1"/><mets:smLink xlink:from="L1" xlink:to="P2"/></mets:structLink>)"));
    auto growing = later.load();
    EXPECT_EQ(*growing.select_pages("L1"), Strings{"P1"});
    ASSERT_TRUE(growing.add_file(file_ref("OCR", "O2", "P2")));
    EXPECT_EQ(*growing.select_pages("L1"), (Strings{"P1", "P2"}));
    EXPECT_EQ(*growing.select_pages("chapter"), (Strings{"P1", "P2"}));
}

TEST_F(Selector, NarrowsAnExpressionOnlyByWhatAllItsMatchesStartWith) {
    EXPECT_EQ(pages("//PHYS_000[12]"), (Strings{"PHYS_0001", "PHYS_0002"}));
    EXPECT_EQ(pages("//PHYS_0001|cover|PHYS_0005"), (Strings{"PHYS_0001", "PHYS_0005"}));
    EXPECT_EQ(pages("//PHYS_000(1|5)"), (Strings{"PHYS_0001", "PHYS_0005"}));
    EXPECT_EQ(pages("//PHYS_000(1)|PHYS_0005"), (Strings{"PHYS_0001", "PHYS_0005"}));
    EXPECT_EQ(pages("//X[|]|PHYS_0005"), (Strings{"PHYS_0005"}));
    EXPECT_EQ(pages("//PX?HYS_0001"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("//PX*HYS_0001"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("//PX{0}HYS_0001"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("//P+HYS_0001"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("//(?i)phys_0001"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("//\\x50HYS_0001"), (Strings{"PHYS_0001"}));
    EXPECT_EQ(pages("//PHYS_0001.*"), (Strings{"PHYS_0001"}));
}

TEST(Range, CountsAsOcrdDoes) {
    EXPECT_EQ(*expand_range("PHYS_0008", "PHYS_0011"), (Strings{"PHYS_0008", "PHYS_0009", "PHYS_0010", "PHYS_0011"}));
    EXPECT_EQ(*expand_range("p1", "p3"), (Strings{"p1", "p2", "p3"}));
    EXPECT_EQ(*expand_range("p9", "p11"), (Strings{"p9", "p10", "p11"}));
    EXPECT_EQ(*expand_range("1_1", "1_3"), (Strings{"1_1", "2_2", "3_3"}));
    EXPECT_TRUE(expand_range("p3", "p1")->empty());
    EXPECT_FALSE(expand_range("p1", "q2"));
    EXPECT_FALSE(expand_range("p", "p2"));
    EXPECT_FALSE(expand_range("p1", "p99999999")) << "bounded";
    EXPECT_FALSE(expand_range("p1", "p99999999999999999999999"));
}

} // namespace
} // namespace ocrctl::mets
