// Reading, changing and saving: every METS case of the rules for pages.
#include "tests/unit/mets/workspace.hpp"

#include <csignal>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace ocrctl::mets {
namespace {

namespace fs = std::filesystem;
using testing::Test;

/// The differences of two METS in canonical form, as `diff` prints them; "" without xmllint.
std::string canonical(std::string const& text, fs::path const& folder) {
    std::ofstream(folder / "c14n.xml", std::ios::binary) << text;
    auto const command = "xmllint --c14n '" + (folder / "c14n.xml").native() + "' > '" +
                         (folder / "c14n.out").native() + "' 2>/dev/null";
    if (std::system(command.c_str()) != 0) return {};
    return read_file(folder / "c14n.out").value_or("");
}

/// Runs `work` in a child process, so that limits and identities set there do not stay; its exit code.
int in_child(std::function<int()> work) {
    auto const pid = ::fork();
    if (pid == 0) ::_exit(work());
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string load_error(Workspace const& ws) {
    auto loaded = Mets::load(ws.mets);
    return loaded ? "loaded" : loaded.error().message();
}

// ------------------------------------------------------------------------------------------- what is not a METS

TEST(MetsLoad, SaysThatTheFileIsMissing) {
    Workspace ws;
    auto loaded = Mets::load(ws.mets);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().kind(), ErrorKind::NotFound);
    EXPECT_EQ(loaded.error().message(), "there is no METS at " + ws.mets.native());
}

TEST(MetsLoad, NamesTheLineWhereXmlBreaks) {
    Workspace ws("<?xml version=\"1.0\"?>\n<a>\n  <b>\n  </c>\n</a>\n");
    EXPECT_EQ(load_error(ws).find(ws.mets.native() + " is not XML: line 4: "), 0u) << load_error(ws);
}

TEST(MetsLoad, SaysThatTheFileIsEmpty) {
    Workspace ws("");
    EXPECT_EQ(load_error(ws), ws.mets.native() + " is not XML: it is empty");
}

TEST(MetsLoad, RefusesAJpegWithAClearMessage) {
    Workspace ws(std::string("\xff\xd8\xff\xe0\0\x10JFIF\0", 11));
    EXPECT_NE(load_error(ws).find("is not XML"), std::string::npos) << load_error(ws);
}

TEST(MetsLoad, NamesTheRootElementOfWhatIsNoMets) {
    Workspace ws("<PcGts xmlns=\"http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15\"/>");
    EXPECT_EQ(load_error(ws), ws.mets.native() + " is not a METS: its root element is <PcGts>");
}

TEST(MetsLoad, TellsThatANewspaperYearOnlyPointsToOtherMets) {
    Workspace ws(R"(<mets:mets xmlns:mets="http://www.loc.gov/METS/" xmlns:xlink="http://www.w3.org/1999/xlink">
  <mets:structMap TYPE="LOGICAL"><mets:div TYPE="newspaper"><mets:div TYPE="year">
    <mets:mptr LOCTYPE="URL" xlink:href="https://example.org/1848.xml"/></mets:div></mets:div></mets:structMap></mets:mets>)");
    EXPECT_EQ(load_error(ws),
              ws.mets.native() +
                  " has no pages of its own, it only points to other METS (a newspaper year or a multi-volume "
                  "work): use one of those, for example https://example.org/1848.xml");
}

TEST(MetsLoad, RefusesEntitiesOfADoctype) {
    Workspace ws("<!DOCTYPE m [<!ENTITY x \"y\">]>\n<m:mets xmlns:m=\"http://www.loc.gov/METS/\"/>");
    EXPECT_NE(load_error(ws).find("declares entities in its DOCTYPE"), std::string::npos) << load_error(ws);
}

TEST(MetsLoad, TakesAnEmptyWorkspace) {
    Workspace ws("<m:mets xmlns:m=\"http://www.loc.gov/METS/\"/>");
    auto mets = ws.load();
    EXPECT_TRUE(mets.pages().empty());
    EXPECT_TRUE(mets.groups().empty());
    EXPECT_EQ(mets.groups_text(), "none");
}

// ------------------------------------------------------------------------------------------- what is in it

TEST(MetsRead, ListsPagesInOrderAndGroupsWithCounts) {
    Workspace ws(mets_xml(group_xml("IMG", file_xml("I2", "b.tif") + file_xml("I1", "a.tif")) + group_xml("EMPTY", ""),
                          page_xml("P2", {"I2"}) + page_xml("P1", {"I1"})));
    auto mets = ws.load();
    EXPECT_EQ(mets.pages(), (Strings{"P2", "P1"}));
    EXPECT_EQ(mets.groups_text(), "IMG (2 files), EMPTY (0 files)");
    EXPECT_EQ(mets.find("I1")->page_id, "P1");
    EXPECT_EQ(mets.find("I1")->path, "a.tif");
    EXPECT_EQ(mets.find("nothing"), nullptr);
    EXPECT_EQ(ids(mets.files_of("P2", "IMG")), (Strings{"I2"}));
    EXPECT_TRUE(mets.files_of("P2", "OCR").empty());
}

TEST(MetsRead, ResolvesNamespacesWhereTheyAreDeclared) {
    Workspace ws(
        R"(<mets xmlns="http://www.loc.gov/METS/"><fileSec><fileGrp USE="IMG"><file ID="I1" MIMETYPE="image/tiff">
      <FLocat xmlns:xl="http://www.w3.org/1999/xlink" LOCTYPE="URL" xl:href="https://example.org/1.tif"/>
      <FLocat xmlns:href="http://www.w3.org/1999/xlink" LOCTYPE="OTHER" OTHERLOCTYPE="FILE" href:href="IMG/1.tif"/></file></fileGrp></fileSec>
      <m:structMap xmlns:m="http://www.loc.gov/METS/" TYPE="PHYSICAL"><m:div TYPE="physSequence"><m:div TYPE="page" ID="P1">
      <m:fptr FILEID="I1"/></m:div></m:div></m:structMap></mets>)");
    auto mets = ws.load();
    ASSERT_NE(mets.find("I1"), nullptr);
    EXPECT_EQ(mets.find("I1")->url, "https://example.org/1.tif");
    EXPECT_EQ(mets.find("I1")->path, "IMG/1.tif");
    EXPECT_EQ(mets.find("I1")->page_id, "P1");
}

TEST(MetsRead, IgnoresForeignElementsOfTheSameName) {
    Workspace ws(mets_xml(group_xml("IMG", "<x:file xmlns:x=\"urn:other\" ID=\"X\"/>" + file_xml("I1", "a.tif")),
                          page_xml("P1", {"I1"})));
    auto mets = ws.load();
    EXPECT_EQ(mets.find("X"), nullptr);
    EXPECT_EQ(mets.groups_text(), "IMG (1 file)");
}

TEST(MetsRead, KeepsUrlAndLocalLocationOfOneFileApart) {
    Workspace ws(mets_xml(group_xml("IMG", R"(<mets:file ID="I1" MIMETYPE="image/jpeg">
        <mets:FLocat LOCTYPE="URL" xlink:href="https://example.org/a%20b.jpg"/>
        <mets:FLocat LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xlink:href="IMG/I1.jpg"/></mets:file>)"),
                          page_xml("P1", {"I1"})));
    auto mets = ws.load();
    EXPECT_EQ(mets.find("I1")->url, "https://example.org/a%20b.jpg");
    EXPECT_EQ(mets.find("I1")->path, "IMG/I1.jpg");
}

TEST(MetsRead, TakesAUrlWithoutSchemeAsALocalFile) {
    Workspace ws(mets_xml(
        group_xml(
            "IMG",
            R"(<mets:file ID="I1" MIMETYPE="image/jpeg"><mets:FLocat LOCTYPE="URL" xlink:href="IMG/I1.jpg"/></mets:file>)"),
        page_xml("P1", {"I1"})));
    EXPECT_EQ(ws.load().find("I1")->path, "IMG/I1.jpg");
    EXPECT_EQ(ws.load().find("I1")->url, "");
}

TEST(MetsRead, DecodesLocalLocations) {
    Workspace ws(mets_xml(group_xml("IMG", file_xml("I1", "IMG/Seite%201%C3%BC.tif") +
                                               file_xml("I2", "IMG/with blank: and colon.tif") +
                                               file_xml("I3", "IMG/100%25.tif") + file_xml("I4", "IMG/50%zz.tif")),
                          ""));
    auto mets = ws.load();
    EXPECT_EQ(mets.find("I1")->path, "IMG/Seite 1ü.tif");
    EXPECT_EQ(mets.find("I2")->path, "IMG/with blank: and colon.tif");
    EXPECT_EQ(mets.find("I3")->path, "IMG/100%.tif");
    EXPECT_EQ(mets.find("I4")->path, "IMG/50%zz.tif");
}

TEST(MetsRead, LeavesAPercentSignAloneWhereTheFileIsNamedSo) {
    Workspace ws(mets_xml(group_xml("IMG", file_xml("I1", "IMG/a%20b.tif")), ""));
    ws.write("IMG/a%20b.tif");
    EXPECT_EQ(ws.load().find("I1")->path, "IMG/a%20b.tif");
}

TEST(MetsRead, KeepsLocationsInsideTheWorkspace) {
    Workspace ws;
    ws.write("mets.xml",
             mets_xml(group_xml("IMG", file_xml("OUT", "../secret.tif") + file_xml("OUT2", "IMG/../../secret.tif") +
                                           file_xml("OUT3", "/etc/passwd") + file_xml("OUT4", "%2e%2e/secret.tif") +
                                           file_xml("IN1", "IMG/../IMG/a.tif") + file_xml("IN2", "./IMG/a.tif") +
                                           file_xml("IN3", "file://" + (ws.folder / "IMG/a.tif").native())),
                      ""));
    auto mets = ws.load();
    for (auto const* id : {"OUT", "OUT2", "OUT3", "OUT4"}) {
        EXPECT_TRUE(mets.find(id)->escapes) << id;
        EXPECT_EQ(mets.find(id)->path, "") << id;
    }
    for (auto const* id : {"IN1", "IN2", "IN3"}) EXPECT_EQ(mets.find(id)->path, "IMG/a.tif") << id;
}

TEST(MetsRead, KnowsFilesWithoutPageAndPagesWithoutFile) {
    Workspace ws(mets_xml(group_xml("IMG", file_xml("DOC", "doc.pdf", "application/pdf") + file_xml("I1", "a.tif")),
                          page_xml("P1", {"I1"}) + page_xml("P2", {}) + page_xml("P3", {"GONE"})));
    auto mets = ws.load();
    EXPECT_EQ(mets.find("DOC")->page_id, "");
    EXPECT_EQ(mets.pages(), (Strings{"P1", "P2", "P3"}));
    EXPECT_TRUE(mets.files_of("P2", "IMG").empty());
    EXPECT_TRUE(mets.files_of("P3", "IMG").empty());
}

TEST(MetsRead, ReadsSeveralPhysicalAndLogicalStructMaps) {
    auto const second = "  <mets:structMap TYPE=\"PHYSICAL\"><mets:div TYPE=\"physSequence\">" +
                        page_xml("P1", {"X1"}) + page_xml("P3", {"I3"}) +
                        "</mets:div></mets:structMap>\n"
                        "  <mets:structMap TYPE=\"LOGICAL\"><mets:div ID=\"L1\" TYPE=\"monograph\"/></mets:structMap>\n"
                        "  <mets:structMap TYPE=\"LOGICAL\"><mets:div ID=\"L2\" TYPE=\"chapter\"/></mets:structMap>\n"
                        "  <mets:structLink><mets:smLink xlink:from=\"L1\" xlink:to=\"P2\"/><mets:smLink "
                        "xlink:from=\"L2\" xlink:to=\"P3\"/></mets:structLink>\n";
    Workspace ws(mets_xml(group_xml("IMG", file_xml("I1", "1") + file_xml("X1", "x", "text/plain") +
                                               file_xml("I2", "2") + file_xml("I3", "3")),
                          page_xml("P1", {"I1"}) + page_xml("P2", {"I2"}), "", second));
    auto mets = ws.load();
    EXPECT_EQ(mets.pages(), (Strings{"P1", "P2", "P3"}));
    EXPECT_EQ(ids(mets.files_of("P1", "IMG")), (Strings{"I1", "X1"}));
    EXPECT_EQ(*mets.select_pages("L1"), (Strings{"P2"}));
    EXPECT_EQ(*mets.select_pages("logical:type:chapter"), (Strings{"P3"}));
}

TEST(MetsRead, FindsTheIdentifierByOcrdPriority) {
    Workspace ws(mets_xml("", "", R"(<mets:dmdSec ID="D"><mets:mdWrap MDTYPE="MODS"><mets:xmlData>
      <mods:mods xmlns:mods="http://www.loc.gov/mods/v3"><mods:identifier type="url">http://u</mods:identifier>
      <mods:identifier type="urn">urn:nbn:de:1</mods:identifier></mods:mods></mets:xmlData></mets:mdWrap></mets:dmdSec>)"));
    EXPECT_EQ(ws.load().unique_identifier(), "urn:nbn:de:1");
    EXPECT_EQ(Workspace(two_pages()).load().unique_identifier(), "");
}

TEST(MetsRead, FindsFilesByEveryCriterion) {
    Workspace ws(mets_xml(group_xml("IMG", file_xml("I1", "IMG/1.tif") + file_xml("I2", "IMG/2.tif")) +
                              group_xml("OCR", file_xml("O1", "OCR/1.xml", std::string(kPageMimetype))),
                          page_xml("P1", {"I1", "O1"}) + page_xml("P2", {"I2"})));
    auto mets = ws.load();
    auto find = [&](Query const& q) { return ids(*mets.find_files(q)); };
    EXPECT_EQ(find({}), (Strings{"I1", "I2", "O1"}));
    EXPECT_EQ(find({.group = "IMG"}), (Strings{"I1", "I2"}));
    EXPECT_EQ(find({.group = "//I.*|OCR"}), (Strings{"I1", "I2", "O1"}));
    EXPECT_EQ(find({.group = "//I"}), Strings{}) << "a regular expression matches in full";
    EXPECT_EQ(find({.id = "//.1"}), (Strings{"I1", "O1"}));
    EXPECT_EQ(find({.id = "O1"}), (Strings{"O1"}));
    EXPECT_EQ(find({.page = "P1"}), (Strings{"I1", "O1"}));
    EXPECT_EQ(find({.page = ""}), Strings{});
    EXPECT_EQ(find({.page = "P1", .mimetype = "//image/.*"}), (Strings{"I1"}));
    EXPECT_EQ(find({.path = "IMG/2.tif"}), (Strings{"I2"}));
    EXPECT_EQ(find({.url = "x"}), Strings{});
    auto bad = mets.find_files({.id = "//("});
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().kind(), ErrorKind::Invalid);
    EXPECT_NE(bad.error().message().find("regular expression '(' is not valid"), std::string::npos)
        << bad.error().message();
    EXPECT_EQ(mets.find_files({.page = "nowhere"}).error().message(), "page selector 'nowhere' matches no page");
}

TEST(MetsRead, FindsWhatCameAndWentAfterASearch) {
    Workspace ws(mets_xml(group_xml("IMG", file_xml("I1", "IMG/1%20a.tif") + file_xml("I2", "IMG/2.tif")),
                          page_xml("P1", {"I1"}) + page_xml("P2", {"I2"})));
    auto mets = ws.load();
    auto find = [&](Query const& q) { return ids(*mets.find_files(q)); };
    // Each kind of search once: it makes its index.
    EXPECT_EQ(find({.id = "//I.*"}), (Strings{"I1", "I2"}));
    EXPECT_EQ(find({.path = "IMG/1 a.tif"}), (Strings{"I1"}));
    EXPECT_EQ(find({.path = "IMG/1%20a.tif"}), (Strings{"I1"})) << "as it is written";
    EXPECT_EQ(find({.url = "https://x/3"}), Strings{});
    ASSERT_TRUE(mets.add_file({"IMG", "I3", "P1", "image/tiff", "IMG/3.tif", 0, ""}, false, "https://x/3"));
    ASSERT_TRUE(mets.add_file({"OCR", "I0", "P2", std::string(kPageMimetype), "OCR/0.xml", 0, ""}));
    EXPECT_EQ(find({.id = "//I.*"}), (Strings{"I1", "I2", "I3", "I0"})) << "in document order";
    EXPECT_EQ(find({.url = "https://x/3"}), (Strings{"I3"}));
    EXPECT_EQ(find({.path = "IMG/3.tif"}), (Strings{"I3"}));
    ASSERT_TRUE(mets.add_file({"IMG", "I3", "P1", "image/tiff", "IMG/moved.tif", 0, ""}, true, "https://x/moved"));
    EXPECT_EQ(find({.path = "IMG/3.tif"}), Strings{});
    EXPECT_EQ(find({.url = "https://x/3"}), Strings{});
    EXPECT_EQ(find({.path = "IMG/moved.tif", .url = "https://x/moved"}), (Strings{"I3"}));
    EXPECT_TRUE(mets.is_quick({.path = "IMG/moved.tif"}));
    ASSERT_TRUE(mets.remove_file("I3", "IMG"));
    EXPECT_EQ(find({.id = "//I.*"}), (Strings{"I1", "I2", "I0"}));
    EXPECT_EQ(find({.path = "IMG/moved.tif"}), Strings{});
    EXPECT_EQ(find({.page = "P1,P2"}), (Strings{"I1", "I2", "I0"}));
    EXPECT_TRUE(mets.is_quick({.page = "P1,P2"}));
    EXPECT_FALSE(mets.is_quick({.page = "P1..P2"}));
    EXPECT_FALSE(mets.is_quick({.page = "//P.*"}));
}

TEST(MetsRead, DoesNotLetARegularExpressionRunForEver) {
    Workspace ws(mets_xml(group_xml("IMG", file_xml(std::string(60, 'a') + "!", "1.tif")), ""));
    auto mets = ws.load();
    EXPECT_TRUE(mets.find_files({.id = "//(a+)+(a+)+(a+)+b"})->empty());
}

// ------------------------------------------------------------------------------------------- adding

TEST(MetsAdd, WritesWhatOcrdWrites) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "OCR_0001", "PHYS_0001")));
    ASSERT_TRUE(mets.save());
    auto expected = two_pages();
    auto insert = [&](std::string const& before, std::string const& text) {
        expected.insert(expected.find(before), text);
    };
    insert("  </mets:fileSec>", group_xml("OCR", file_xml("OCR_0001", "OCR/OCR_0001.xml", std::string(kPageMimetype))));
    insert("      </mets:div>", "        <mets:fptr FILEID=\"OCR_0001\"/>\n");
    // An empty element is written with a blank before its slash: nothing else differs.
    auto text = ws.text();
    for (std::size_t at; (at = text.find(" />")) != std::string::npos;) text.erase(at, 1);
    EXPECT_EQ(text, expected);
    EXPECT_FALSE(mets.changed());
    EXPECT_EQ(ids(ws.load().files_of("PHYS_0001", "OCR")), (Strings{"OCR_0001"}));
}

TEST(MetsAdd, MakesEverythingThatAnEmptyMetsLacksInTheOrderOfTheSchema) {
    Workspace ws("<m:mets xmlns:m=\"http://www.loc.gov/METS/\">\n  <m:structLink/>\n</m:mets>\n");
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "P1")));
    mets.add_agent({"me", "OTHER", "OTHER", "SOFTWARE", "step", {}});
    ASSERT_TRUE(mets.save());
    auto const text = ws.text();
    auto const header = text.find("<m:metsHdr>"), section = text.find("<m:fileSec>"), map = text.find("<m:structMap"),
               link = text.find("<m:structLink");
    EXPECT_LT(header, section) << text;
    EXPECT_LT(section, map) << text;
    EXPECT_LT(map, link) << text;
    auto again = ws.load();
    EXPECT_EQ(again.find("A")->page_id, "P1");
    EXPECT_EQ(again.find("A")->path, "OCR/A.xml");
    EXPECT_EQ(again.agents().size(), 1u);
}

TEST(MetsAdd, EncodesLocationsAndReadsThemBack) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    std::string const nfc = "OCR/\xc3\xbc.xml", nfd = "OCR/u\xcc\x88.xml";
    std::vector<std::string> const paths{"OCR/a b%20c.xml", "a:b/c.xml", "OCR/x:y.xml", nfc, nfd, "OCR/#1?.xml"};
    for (std::size_t i = 0; i < paths.size(); ++i)
        ASSERT_TRUE(mets.add_file(file_ref("OCR", "F" + std::to_string(i), "PHYS_0001", paths[i])));
    ASSERT_TRUE(mets.save());
    EXPECT_NE(ws.text().find("OCR/a%20b%2520c.xml"), std::string::npos);
    EXPECT_NE(ws.text().find("a%3Ab/c.xml"), std::string::npos);
    auto again = ws.load();
    for (std::size_t i = 0; i < paths.size(); ++i) EXPECT_EQ(again.find("F" + std::to_string(i))->path, paths[i]);
}

TEST(MetsAdd, RefusesBadNamesAndPathsThatLeave) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    EXPECT_EQ(mets.add_file(file_ref("OCR", "1A", "P")).error().message(),
              "Invalid syntax for mets:file/@ID 1A (not an xs:ID)");
    EXPECT_EQ(mets.add_file(file_ref("O CR", "A", "P")).error().message(),
              "Invalid syntax for mets:fileGrp/@USE O CR (not an xs:ID)");
    EXPECT_EQ(mets.add_file(file_ref("OCR", "A", "P", "../x.xml")).error().message(),
              "file A lies outside the workspace: ../x.xml");
    EXPECT_FALSE(mets.changed());
    EXPECT_FALSE(mets.has_group("OCR")) << "a refused addition leaves no empty group";
}

TEST(MetsAdd, RefusesAnIdThatIsTakenUnlessForced) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    auto again = mets.add_file(file_ref("OCR", "A", "PHYS_0001"));
    EXPECT_EQ(again.error().kind(), ErrorKind::Conflict);
    EXPECT_NE(again.error().message().find("already exists"), std::string::npos);
    EXPECT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001", "OCR/new.xml"), true));
    EXPECT_EQ(mets.find("A")->path, "OCR/new.xml");
    EXPECT_EQ(ids(mets.files_of("PHYS_0001", "OCR")), (Strings{"A"}));
    EXPECT_EQ(mets.add_file(file_ref("OCR", "A", "PHYS_0002"), true).error().kind(), ErrorKind::Conflict);
    EXPECT_EQ(mets.pages(), (Strings{"PHYS_0001", "PHYS_0002"}));
}

TEST(MetsAdd, OverwritingTheOnlyFileOfAPageLeavesThePageInItsPlace) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.remove_file("IMG_0001"));
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001", "OCR/new.xml"), true));
    ASSERT_TRUE(mets.save());
    EXPECT_EQ(ws.load().pages(), (Strings{"PHYS_0001", "PHYS_0002"}));
}

TEST(MetsAdd, LetsTheSameIdBeInTwoGroups) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("A", "SAME", "PHYS_0001")));
    ASSERT_TRUE(mets.add_file(file_ref("B", "SAME", "PHYS_0002")));
    EXPECT_EQ(mets.find("SAME")->group, "B");
    EXPECT_EQ(mets.find("SAME", "A")->group, "A");
    EXPECT_EQ(ids(mets.files_of("PHYS_0002", "B")), (Strings{"SAME"}));
    EXPECT_TRUE(mets.files_of("PHYS_0001", "A").empty()) << "the pointer belongs to the last one added";
    ASSERT_TRUE(mets.remove_file("SAME", "B"));
    EXPECT_EQ(mets.find("SAME")->group, "A");
}

TEST(MetsAdd, PutsTheLocalCopyBesideTheUrl) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    FileRef remote{"WEB", "W1", "PHYS_0001", "image/jpeg", "", 0, ""};
    ASSERT_TRUE(mets.add_file(remote, false, "https://example.org/1.jpg"));
    ASSERT_TRUE(mets.set_local("W1", "WEB", "WEB/W1.jpg"));
    ASSERT_TRUE(mets.save());
    auto again = ws.load();
    EXPECT_EQ(again.find("W1")->url, "https://example.org/1.jpg");
    EXPECT_EQ(again.find("W1")->path, "WEB/W1.jpg");
}

TEST(MetsAdd, KeepsTheOrderOfPages) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A2", "PHYS_0002")));
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A9", "PHYS_0009")));
    ASSERT_TRUE(mets.remove_file("IMG_0001"));
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A1", "PHYS_0001")));
    EXPECT_EQ(mets.pages(), (Strings{"PHYS_0001", "PHYS_0002", "PHYS_0009"}));
    ASSERT_TRUE(mets.save());
    EXPECT_EQ(ws.load().pages(), (Strings{"PHYS_0001", "PHYS_0002", "PHYS_0009"}));
}

TEST(MetsAdd, RemovesAnEntryWithoutATrace) {
    Workspace ws(two_pages());
    auto const before = canonical(ws.text(), ws.folder);
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("IMG", "NEW", "PHYS_0002")));
    ASSERT_TRUE(mets.remove_file("NEW"));
    ASSERT_TRUE(mets.save());
    EXPECT_EQ(canonical(ws.text(), ws.folder), before);
    EXPECT_EQ(mets.remove_file("NEW").error().kind(), ErrorKind::NotFound);
}

TEST(MetsAdd, WritesAgentsAsOcrdDoesAfterThoseOfOthers) {
    Workspace ws(mets_xml(
        "", "",
        "  <mets:metsHdr CREATEDATE=\"2017-11-30T16:18:26\">\n    <mets:agent TYPE=\"OTHER\" OTHERTYPE=\"SOFTWARE\" "
        "ROLE=\"CREATOR\">\n      <mets:name>Kitodo</mets:name>\n    </mets:agent>\n    "
        "<mets:metsDocumentID>7</mets:metsDocumentID>\n"
        "  </mets:metsHdr>\n"));
    auto mets = ws.load();
    Agent const agent{"ocrd-x v1", "OTHER",       "OTHER",
                      "SOFTWARE",  "recognition", {{{{"{https://ocr-d.de}option", "parameter"}}, "{\"a\": \"<&>\"}"}}};
    mets.add_agent(agent);
    ASSERT_TRUE(mets.save());
    auto const agents = ws.load().agents();
    ASSERT_EQ(agents.size(), 2u);
    EXPECT_EQ(agents[0].name, "Kitodo");
    EXPECT_EQ(agents[0].otherrole, std::nullopt);
    EXPECT_EQ(agents[1], agent);
    auto const text = ws.text();
    EXPECT_NE(text.find("<mets:note xmlns:ocrd=\"https://ocr-d.de\" ocrd:option=\"parameter\">{\"a\": "
                        "\"&lt;&amp;&gt;\"}</mets:note>"),
              std::string::npos)
        << text;
    EXPECT_LT(text.find("ocrd-x v1"), text.find("<mets:metsDocumentID>"));
}

TEST(MetsAdd, MakesTheHeaderForTheFirstAgent) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    mets.add_agent({"me", "OTHER", "OTHER", "SOFTWARE", "step", {}});
    ASSERT_TRUE(mets.save());
    EXPECT_LT(ws.text().find("<mets:metsHdr>"), ws.text().find("<mets:fileSec>"));
    EXPECT_EQ(ws.load().agents().front().name, "me");
}

// ------------------------------------------------------------------------------------------- saving

constexpr char kForeign[] = R"(<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<!-- by Kitodo -->
<?xml-stylesheet href="x.xsl"?>
<METS:mets xmlns:METS="http://www.loc.gov/METS/" OBJID="7" LABEL="a &quot;b&quot; &#10; c">
	<METS:amdSec ID="AMD"><METS:rightsMD ID="R"><METS:mdWrap MIMETYPE="text/xml" MDTYPE="OTHER"><METS:xmlData><dv:rights xmlns:dv="http://dfg-viewer.de/"><dv:owner>  Bibliothek &amp; Söhne  </dv:owner><![CDATA[ <raw> ]]></dv:rights></METS:xmlData></METS:mdWrap></METS:rightsMD></METS:amdSec>
	<!-- the files -->
	<METS:fileSec>
		<METS:fileGrp USE="DEFAULT">
			<METS:file MIMETYPE="image/jpeg" ID="F1" SIZE="7"><METS:FLocat xlink:href="https://example.org/1.jpg?a=1&amp;b=2" LOCTYPE="URL" xmlns:xlink="http://www.w3.org/1999/xlink"/></METS:file>
		</METS:fileGrp>
	</METS:fileSec>
	<METS:structMap TYPE="PHYSICAL"><METS:div TYPE="physSequence" ID="PHYS"><METS:div ID="P1" ORDER="1" TYPE="page"><METS:fptr FILEID="F1"/></METS:div></METS:div></METS:structMap>
</METS:mets>
)";

TEST(MetsSave, ChangesNothingButWhatWasAdded) {
    Workspace ws(kForeign);
    auto const before = canonical(kForeign, ws.folder);
    if (before.empty()) GTEST_SKIP() << "xmllint is not installed";
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "O1", "P1")));
    ASSERT_TRUE(mets.save());
    auto added = canonical(ws.text(), ws.folder);
    EXPECT_NE(added.find("ID=\"O1\""), std::string::npos);
    ASSERT_TRUE(mets.remove_file("O1"));
    ASSERT_TRUE(mets.save());
    auto after = canonical(ws.text(), ws.folder);
    auto const group = after.find("\n\t\t<METS:fileGrp USE=\"OCR\">"); // stays, empty
    ASSERT_NE(group, std::string::npos) << after;
    auto const end = after.find("</METS:fileGrp>", group) + std::string("</METS:fileGrp>").size();
    after.erase(group, end - group);
    EXPECT_EQ(after, before);
    EXPECT_NE(ws.text().find("<?xml-stylesheet href=\"x.xsl\"?>"), std::string::npos);
    EXPECT_NE(ws.text().find("standalone=\"no\""), std::string::npos);
}

TEST(MetsSave, WritesNothingWhenNothingChanged) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    auto const time = fs::last_write_time(ws.mets);
    ASSERT_TRUE(mets.save());
    EXPECT_EQ(fs::last_write_time(ws.mets), time);
    EXPECT_EQ(ws.text(), two_pages());
}

TEST(MetsSave, KeepsModeAndSymlink) {
    Workspace ws;
    fs::create_directories(ws.folder / "real");
    ws.write("real/book.xml", two_pages());
    fs::create_symlink("real/book.xml", ws.mets);
    ::chmod((ws.folder / "real/book.xml").c_str(), 0664);
    auto mets = ws.load();
    EXPECT_EQ(mets.workspace(), ws.folder) << "paths are relative to where the link lies";
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    ASSERT_TRUE(mets.save());
    EXPECT_TRUE(fs::is_symlink(ws.mets));
    struct stat status{};
    ::stat(ws.mets.c_str(), &status);
    EXPECT_EQ(status.st_mode & 07777, 0664u);
    EXPECT_NE(read_file(ws.folder / "real/book.xml")->find("ID=\"A\""), std::string::npos);
    EXPECT_EQ(std::distance(fs::directory_iterator(ws.folder / "real"), {}), 1) << "no temporary file is left";
}

TEST(MetsSave, KeepsTheOwner) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
    Workspace ws(two_pages());
    ASSERT_EQ(::chown(ws.mets.c_str(), 1234, 2345), 0);
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    ASSERT_TRUE(mets.save());
    struct stat status{};
    ::stat(ws.mets.c_str(), &status);
    EXPECT_EQ(status.st_uid, 1234u);
    EXPECT_EQ(status.st_gid, 2345u);
}

TEST(MetsSave, OverwritesNothingThatSomebodyElseWrote) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    EXPECT_FALSE(mets.changed_on_disk());
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "OURS", "PHYS_0001")));
    auto others = ws.load();
    ASSERT_TRUE(others.add_file(file_ref("OCR", "THEIRS", "PHYS_0002")));
    ASSERT_TRUE(others.save());
    EXPECT_TRUE(mets.changed_on_disk());
    auto refused = mets.save();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::Conflict);
    ASSERT_TRUE(mets.reload());
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "OURS", "PHYS_0001")));
    ASSERT_TRUE(mets.save());
    auto const both = ws.load();
    EXPECT_NE(both.find("OURS"), nullptr);
    EXPECT_NE(both.find("THEIRS"), nullptr);
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "MORE", "PHYS_0001")));
    EXPECT_TRUE(mets.save()) << "our own writing is no change by somebody else";
}

TEST(MetsSave, RefusesToWriteWhereTheMetsIsGone) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    fs::remove(ws.mets);
    EXPECT_EQ(mets.save().error().kind(), ErrorKind::Conflict);
    EXPECT_FALSE(fs::exists(ws.mets));
}

TEST(MetsSave, KeepsWhatItHasWhenReloadingFails) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    ws.write("mets.xml", "<broken");
    EXPECT_FALSE(mets.reload());
    EXPECT_NE(mets.find("A"), nullptr);
}

TEST(MetsSave, TellsThatTheFolderIsReadOnly) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    fs::permissions(ws.folder, fs::perms(0555));
    auto const code = in_child([&] {
        if (::geteuid() == 0 && (::setgid(65534) != 0 || ::setuid(65534) != 0)) return 2;
        auto saved = mets.save();
        return !saved && saved.error().kind() == ErrorKind::Denied &&
                       saved.error().message() == "cannot save " + ws.mets.native() + ": no permission to write in " +
                                                      ws.folder.native() + "; the old METS is untouched"
                   ? 0
                   : 1;
    });
    fs::permissions(ws.folder, fs::perms(0755));
    EXPECT_EQ(code, 0);
    EXPECT_EQ(ws.text(), two_pages());
}

TEST(MetsSave, LeavesTheOldFileWhenTheDiskIsFull) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0001")));
    auto const code = in_child([&] {
        std::signal(SIGXFSZ, SIG_IGN);
        rlimit limit{200, 200}; // what a full disk does: the write stops in the middle
        ::setrlimit(RLIMIT_FSIZE, &limit);
        auto saved = mets.save();
        return !saved && saved.error().kind() == ErrorKind::Unavailable &&
                       saved.error().message().find("no space left for it in " + ws.folder.native()) !=
                           std::string::npos
                   ? 0
                   : 1;
    });
    EXPECT_EQ(code, 0);
    EXPECT_EQ(ws.text(), two_pages());
    EXPECT_EQ(std::distance(fs::directory_iterator(ws.folder), {}), 1) << "no temporary file is left";
}

TEST(MetsSave, IsQuickOnTenThousandPages) {
    std::string images, pages;
    for (int i = 0; i < 10'000; ++i) {
        auto const n = fmt::format("{:05}", i);
        images += file_xml("IMG_" + n, "IMG/" + n + ".tif");
        pages += page_xml("PHYS_" + n, {"IMG_" + n});
    }
    Workspace ws(mets_xml(group_xml("IMG", images), pages));
    auto mets = ws.load();
    auto const started = std::chrono::steady_clock::now();
    for (int i = 0; i < 10'000; ++i) {
        auto const n = fmt::format("{:05}", i);
        ASSERT_TRUE(mets.add_file(file_ref("OCR", "OCR_" + n, "PHYS_" + n)));
    }
    auto const took = std::chrono::steady_clock::now() - started;
    EXPECT_LT(took, std::chrono::seconds(5)) << "adding is linear; sanitizers and other load allowed for";
    RecordProperty("add_ms", static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
    ASSERT_TRUE(mets.save());
    EXPECT_EQ(ws.load().groups()[1].files, 10'000u);
}

} // namespace
} // namespace ocrctl::mets
