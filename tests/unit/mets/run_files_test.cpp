// What a Job reads, and how its outcome goes back.
#include "tests/unit/mets/workspace.hpp"

namespace ocrctl::mets {
namespace {

std::string const kPage{kPageMimetype};

struct InputsTest : testing::Test {
    Workspace ws;
    Mets load(std::string const& text) {
        ws.write("mets.xml", text);
        return ws.load();
    }
    static Strings reasons(std::vector<PageProblem> const& problems) {
        Strings list;
        for (auto const& p : problems) list.push_back(p.page_id + ": " + p.reason);
        return list;
    }
};

TEST_F(InputsTest, ResolvesOneFilePerPageAndGroupWithItsSize) {
    ws.write("IMG/1.tif", "12345");
    ws.write("IMG/2.tif", "12");
    auto mets = load(mets_xml(group_xml("IMG", file_xml("IMG_1", "IMG/1.tif") + file_xml("X_2", "IMG/2.tif")),
                              page_xml("P1", {"IMG_1"}) + page_xml("P2", {"X_2"})));
    auto inputs = inputs_for(mets, mets.pages(), {"IMG"}, {"OCR", "IMG"});
    ASSERT_TRUE(inputs);
    ASSERT_EQ(inputs->pages.size(), 2u);
    EXPECT_EQ(inputs->pages[0].files[0].size, 5u);
    EXPECT_EQ(inputs->pages[0].files[0].path, "IMG/1.tif");
    EXPECT_EQ(inputs->pages[0].output_ids, (Strings{"OCR_1", "IMG_1"}));
    EXPECT_EQ(inputs->pages[1].output_ids, (Strings{"OCR_P2", "X_2"}));
    EXPECT_TRUE(inputs->left_out.empty());
    EXPECT_TRUE(inputs->failed.empty());
}

TEST_F(InputsTest, PrefersPageXmlToImages) {
    ws.write("OCR/1.xml");
    auto mets = load(mets_xml(group_xml("OCR", file_xml("IMG", "OCR/1.IMG-BIN.png", "image/png") + file_xml("PAGE", "OCR/1.xml", kPage) +
                                                   file_xml("IMG2", "OCR/2.png", "image/png")),
                              page_xml("P1", {"IMG", "PAGE", "IMG2"})));
    auto inputs = inputs_for(mets, {"P1"}, {"OCR"}, {"OUT"});
    ASSERT_EQ(inputs->pages.size(), 1u);
    EXPECT_EQ(inputs->pages[0].files[0].id, "PAGE");
}

TEST_F(InputsTest, NamesBothOfSeveralImagesOfAPageAndRunsTheOthers) {
    ws.write("3.tif");
    auto mets = load(mets_xml(group_xml("IMG", file_xml("A", "1.tif") + file_xml("B", "2.jpg", "image/jpeg") + file_xml("C", "3.tif")),
                              page_xml("P1", {"A", "B"}) + page_xml("P2", {"C"})));
    auto inputs = inputs_for(mets, mets.pages(), {"IMG"}, {"OUT"});
    EXPECT_EQ(reasons(inputs->failed), (Strings{"P1: page P1 has several images in group IMG: A and B"}));
    ASSERT_EQ(inputs->pages.size(), 1u);
    EXPECT_EQ(inputs->pages[0].page_id, "P2");
}

TEST_F(InputsTest, LeavesOutPagesThatLackAGroupAndSaysSo) {
    ws.write("1.tif");
    ws.write("1.xml");
    auto mets = load(mets_xml(group_xml("IMG", file_xml("A", "1.tif") + file_xml("B", "1.tif")) + group_xml("SEG", file_xml("S", "1.xml", kPage)),
                              page_xml("P1", {"A", "S"}) + page_xml("P2", {"B"}) + page_xml("P3", {})));
    auto inputs = inputs_for(mets, mets.pages(), {"IMG", "SEG"}, {"OUT"});
    ASSERT_EQ(inputs->pages.size(), 1u);
    EXPECT_EQ(inputs->pages[0].files.size(), 2u);
    EXPECT_EQ(reasons(inputs->left_out), (Strings{"P2: page P2 has no file in group SEG", "P3: page P3 has no file in group IMG"}));
    EXPECT_TRUE(inputs->failed.empty());
}

TEST_F(InputsTest, ListsTheGroupsThereAreForAWrongOne) {
    auto mets = load(two_pages());
    auto inputs = inputs_for(mets, mets.pages(), {"OCR-D-IMG"}, {"OUT"});
    ASSERT_FALSE(inputs);
    EXPECT_EQ(inputs.error().kind(), ErrorKind::NotFound);
    EXPECT_EQ(inputs.error().message(), "there is no input group OCR-D-IMG in " + ws.mets.native() + "; it has: IMG (2 files)");
}

TEST_F(InputsTest, FailsAPageWhoseFileIsRemoteMissingOrOutside) {
    auto const remote = [](std::string const& id, std::string const& local) {
        return "<mets:file ID=\"" + id + "\" MIMETYPE=\"image/jpeg\"><mets:FLocat LOCTYPE=\"URL\" xlink:href=\"https://example.org/" + id + ".jpg\"/>" +
               (local.empty() ? "" : "<mets:FLocat LOCTYPE=\"OTHER\" OTHERLOCTYPE=\"FILE\" xlink:href=\"" + local + "\"/>") + "</mets:file>";
    };
    ws.write("IMG/both.jpg");
    auto mets = load(mets_xml(group_xml("IMG", remote("BOTH", "IMG/both.jpg") + remote("WEB", "") + file_xml("GONE", "IMG/gone.tif") +
                                                   file_xml("OUT", "../x.tif") + "<mets:file ID=\"NONE\" MIMETYPE=\"image/tiff\"/>"),
                              page_xml("P1", {"BOTH"}) + page_xml("P2", {"WEB"}) + page_xml("P3", {"GONE"}) + page_xml("P4", {"OUT"}) + page_xml("P5", {"NONE"})));
    auto inputs = inputs_for(mets, mets.pages(), {"IMG"}, {"O"});
    ASSERT_EQ(inputs->pages.size(), 1u);
    EXPECT_EQ(inputs->pages[0].files[0].path, "IMG/both.jpg");
    EXPECT_EQ(reasons(inputs->failed), (Strings{"P2: file WEB of page P2 is remote and not in the workspace: https://example.org/WEB.jpg",
                                                "P3: file GONE of page P3 is not there: " + (ws.folder / "IMG/gone.tif").native(),
                                                "P4: file OUT of page P4 lies outside the workspace: ../x.tif", "P5: file NONE of page P5 has no location"}));
    EXPECT_EQ(inputs_for(mets, {"P3"}, {"IMG"}, {"O"}, CheckDisk::No)->pages.size(), 1u);
}

TEST_F(InputsTest, FindsTheFileWhoseNameIsComposedOtherwiseThanTheMetsSays) {
    std::string const nfc = "IMG/M\xc3\xbcller 1.tif", nfd = "IMG/Mu\xcc\x88ller 1.tif";
    ws.write(nfd);
    auto mets = load(mets_xml(group_xml("IMG", file_xml("A", "IMG/M%C3%BCller%201.tif")), page_xml("P1", {"A"})));
    auto inputs = inputs_for(mets, {"P1"}, {"IMG"}, {"O"});
    ASSERT_EQ(inputs->pages.size(), 1u);
    EXPECT_EQ(inputs->pages[0].files[0].path, nfd);
    ws.write(nfc);
    EXPECT_EQ(inputs_for(mets, {"P1"}, {"IMG"}, {"O"})->pages[0].files[0].path, nfc) << "the spelling of the METS wins";
}

TEST_F(InputsTest, KnowsWhichPagesHaveOutput) {
    auto mets = load(two_pages());
    EXPECT_TRUE(existing_outputs(mets, mets.pages(), {"OCR"}).empty());
    ASSERT_TRUE(mets.add_file(file_ref("OCR", "A", "PHYS_0002")));
    EXPECT_EQ(existing_outputs(mets, mets.pages(), {"X", "OCR"}), (Strings{"PHYS_0002"}));
    EXPECT_TRUE(existing_outputs(mets, {"PHYS_0001"}, {"OCR"}).empty());
}

RunFiles run(std::vector<FileRef> files, bool overwrite = false) {
    return {std::move(files), overwrite, {"ocrd-x v1", "preprocessing", Json{{"dpi", 300}}}, {"IMG"}, {"OCR"}};
}

TEST(Apply, AddsFilesAndOneAgentHoweverManyJobs) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    ASSERT_TRUE(apply(mets, run({file_ref("OCR", "A1", "PHYS_0001")})));
    ASSERT_TRUE(apply(mets, run({file_ref("OCR", "A2", "PHYS_0002")})));
    ASSERT_TRUE(mets.save());
    auto again = ws.load();
    EXPECT_EQ(again.groups_text(), "IMG (2 files), OCR (2 files)");
    ASSERT_EQ(again.agents().size(), 1u);
    auto const agent = again.agents()[0];
    EXPECT_EQ(agent.name, "ocrd-x v1");
    EXPECT_EQ(agent.otherrole, "preprocessing");
    ASSERT_EQ(agent.notes.size(), 3u);
    EXPECT_EQ(agent.notes[0].second, "IMG");
    EXPECT_EQ(agent.notes[1].second, "OCR");
    EXPECT_EQ(agent.notes[2].second, R"({"dpi":300})");
    EXPECT_EQ(agent.notes[2].first.begin()->first, "{https://ocr-d.de}option");
}

TEST(Apply, IsTheSameAppliedTwice) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    for (bool overwrite : {false, true}) {
        ASSERT_TRUE(apply(mets, run({file_ref("OCR", "A1", "PHYS_0001")}, overwrite)));
        ASSERT_TRUE(mets.save());
        auto const once = ws.text();
        auto dropped = apply(mets, run({file_ref("OCR", "A1", "PHYS_0001")}, overwrite));
        ASSERT_TRUE(dropped);
        EXPECT_TRUE(dropped->empty());
        EXPECT_FALSE(mets.changed());
        EXPECT_EQ(ws.text(), once);
    }
}

TEST(Apply, AddsAnAgentForOtherParameters) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    auto first = run({}), second = run({});
    second.provenance.parameters = Json{{"dpi", 600}};
    ASSERT_TRUE(apply(mets, first));
    ASSERT_TRUE(apply(mets, second));
    EXPECT_EQ(mets.agents().size(), 2u);
}

TEST(Apply, ChangesNothingWhenOneFileDoesNotFit) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    auto refused = apply(mets, run({file_ref("OCR", "GOOD", "PHYS_0001"), file_ref("IMG", "IMG_0001", "PHYS_0001")}));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::Conflict);
    EXPECT_EQ(apply(mets, run({file_ref("OCR", "GOOD", "PHYS_0001"), file_ref("OCR", "BAD", "PHYS_0001", "../x")})).error().kind(), ErrorKind::Invalid);
    EXPECT_EQ(apply(mets, run({file_ref("OCR", "TWICE", "PHYS_0001"), file_ref("OCR", "TWICE", "PHYS_0002")})).error().kind(), ErrorKind::Invalid);
    EXPECT_FALSE(mets.changed());
    EXPECT_EQ(mets.find("GOOD"), nullptr);
}

TEST(Apply, TakesOutWhatAnOverwritingRunNoLongerMakes) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    auto image = file_ref("OCR", "A1_BIN", "PHYS_0001", "OCR/A1_BIN.png");
    image.mimetype = "image/png";
    ASSERT_TRUE(apply(mets, run({file_ref("OCR", "A1", "PHYS_0001"), image, file_ref("OCR", "A2", "PHYS_0002")})));
    auto dropped = apply(mets, run({file_ref("OCR", "A1", "PHYS_0001", "OCR/A1_new.xml")}, true));
    ASSERT_TRUE(dropped);
    EXPECT_EQ(Strings(dropped->begin(), dropped->end()), (Strings{"OCR/A1_BIN.png", "OCR/A1.xml"}));
    EXPECT_EQ(ids(mets.files_of("PHYS_0001", "OCR")), (Strings{"A1"}));
    EXPECT_EQ(ids(mets.files_of("PHYS_0002", "OCR")), (Strings{"A2"})) << "another page's stay";
    EXPECT_EQ(mets.find("A1")->path, "OCR/A1_new.xml");
    EXPECT_EQ(mets.pages(), (Strings{"PHYS_0001", "PHYS_0002"}));
}

TEST(Apply, NeverTakesOutWhatTheRunReads) {
    Workspace ws(two_pages());
    auto mets = ws.load();
    auto into_itself = run({file_ref("IMG", "NEW", "PHYS_0001")}, true);
    into_itself.output_groups = {"IMG"};
    auto dropped = apply(mets, into_itself);
    ASSERT_TRUE(dropped);
    EXPECT_TRUE(dropped->empty());
    EXPECT_NE(mets.find("IMG_0001"), nullptr);
    into_itself.files = {file_ref("IMG", "IMG_0002", "PHYS_0002")}; // a PAGE in place of an image
    EXPECT_EQ(apply(mets, into_itself).error().kind(), ErrorKind::Conflict);
}

} // namespace
} // namespace ocrctl::mets
