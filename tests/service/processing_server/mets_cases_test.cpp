// Libraries' METS as they are, through the METS API: what a client finds in them, adds to them, and what is on disk
// afterwards. The same cases below the API: tests/unit/mets.
#include "tests/service/processing_server/harness.hpp"

#include "lib/net/url.hpp"
#include "tests/unit/mets/workspace.hpp"

namespace ocrctl::server::test {
namespace {

using mets::file_xml;
using mets::group_xml;
using mets::mets_xml;
using mets::page_xml;
using Strings = std::vector<std::string>;

class MetsCasesTest : public ServerTest {
protected:
    void write(std::string const& text) const { std::ofstream(workspace_ / "mets.xml", std::ios::binary) << text; }
    std::string text() const { return *read_file(workspace_ / "mets.xml"); }
    void serve(std::string const& text) {
        write(text);
        start();
        open();
    }
    void open() {
        auto answer = server_->post("/v1/mets", Json{{"path_to_mets", (workspace_ / "mets.xml").native()}});
        ASSERT_EQ(answer.status, 200) << answer.body;
        socket_ = parse_json(answer.body)->value("mets_server_url", "");
    }
    net::Response call(std::string method, std::string target, std::string body = {}) const {
        net::Headers headers;
        if (!body.empty()) headers.add("Content-Type", "application/x-www-form-urlencoded");
        auto answer = net::http_request(std::move(method), net::unix_url(socket_, target), std::move(headers), body);
        if (answer) return *answer;
        net::Response none;
        none.status = 0;
        none.body = answer.error().message();
        return none;
    }
    net::Response add(std::string const& id, std::string const& page, std::string const& path,
                      std::string const& more = {}) const {
        return call("POST", "/file",
                    fmt::format("file_grp=OUT&file_id={}&mimetype=image%2Fpng&page_id={}&local_filename={}{}", id, page,
                                net::percent_encode(path), more));
    }
    Json files(std::string const& query = {}) const {
        auto answer = call("GET", "/file?" + query);
        EXPECT_EQ(answer.status, 200) << answer.body;
        return parse_json(answer.body)->value("files", Json::array());
    }
    Strings ids(std::string const& query = {}) const {
        Strings list;
        for (auto const& file : files(query)) list.push_back(file.value("file_id", ""));
        return list;
    }
    Strings pages() const { return parse_json(call("GET", "/physical_pages").body)->at("physical_pages"); }
    void save() const {
        auto answer = call("PUT", "/");
        EXPECT_EQ(answer.status, 200) << answer.body;
    }
    /// Every line of `before` is in `after`, in the same order: nothing but additions.
    static void expect_only_additions(std::string const& before, std::string const& after) {
        auto const old_lines = split(before, '\n'), lines = split(after, '\n');
        auto at = lines.begin();
        for (auto const& line : old_lines) {
            at = std::find(at, lines.end(), line);
            ASSERT_NE(at, lines.end()) << "lost or moved: " << line << "\n" << after;
            ++at;
        }
    }

    std::string socket_;
};

TEST_F(MetsCasesTest, AUrlAndALocalLocationOfOneFileAreBothFound) {
    serve(mets_xml(group_xml("IMG", R"(      <mets:file ID="I1" MIMETYPE="image/jpeg">
        <mets:FLocat LOCTYPE="URL" xlink:href="https://example.org/a%20b.jpg"/>
        <mets:FLocat LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xlink:href="IMG/I1.jpg"/>
      </mets:file>
      <mets:file ID="I2" MIMETYPE="image/jpeg">
        <mets:FLocat LOCTYPE="URL" xlink:href="https://example.org/2.jpg"/>
      </mets:file>
)"),
                   page_xml("P1", {"I1"}) + page_xml("P2", {"I2"})));
    auto both = files("page_id=P1")[0];
    EXPECT_EQ(both["url"], "https://example.org/a%20b.jpg");
    EXPECT_EQ(both["local_filename"], "IMG/I1.jpg");
    EXPECT_EQ(files("page_id=P2")[0]["local_filename"], nullptr);
    EXPECT_EQ(ids("url=https%3A%2F%2Fexample.org%2F2.jpg"), Strings{"I2"});
    EXPECT_EQ(ids("url=%2F%2Fhttps%3A.*"), (Strings{"I1", "I2"}));
    EXPECT_EQ(add("O1", "P1", "OUT/1.png", "&url=https%3A%2F%2Fexample.org%2Fo.png").status, 200);
    save();
    EXPECT_EQ(mets().find("O1", "OUT")->url, "https://example.org/o.png");
    EXPECT_EQ(mets().find("O1", "OUT")->path, "OUT/1.png");
}

TEST_F(MetsCasesTest, SeveralImagesOfAPagePagesWithoutFileAndFilesWithoutPageAreListedAsTheyAre) {
    serve(mets_xml(group_xml("IMG", file_xml("I1", "IMG/1.tif") + file_xml("I1b", "IMG/1b.tif") +
                                        file_xml("DOC", "doc.pdf", "application/pdf")) +
                       group_xml("PART", file_xml("X2", "PART/2.xml", "text/xml")),
                   page_xml("P1", {"I1", "I1b"}) + page_xml("P2", {"X2"}) + page_xml("P3", {}) +
                       page_xml("P4", {"GONE"})));
    EXPECT_EQ(pages(), (Strings{"P1", "P2", "P3", "P4"}));
    EXPECT_EQ(ids("page_id=P1&file_grp=IMG"), (Strings{"I1", "I1b"}));
    EXPECT_EQ(ids("page_id=P2&file_grp=IMG"), Strings{}); // the group is missing on that page
    EXPECT_EQ(ids("page_id=P3"), Strings{});
    EXPECT_EQ(ids("page_id=P4"), Strings{});
    EXPECT_EQ(ids("file_grp=NONE"), Strings{});
    EXPECT_EQ(files("file_id=DOC")[0]["page_id"], nullptr);
    EXPECT_EQ(ids(), (Strings{"I1", "I1b", "DOC", "X2"}));
    EXPECT_EQ(add("O3", "P3", "OUT/3.png").status, 200);
    EXPECT_EQ(
        call("POST", "/file", "file_grp=OUT&file_id=ALL&mimetype=text%2Fplain&local_filename=OUT%2Fall.txt").status,
        200);
    save();
    EXPECT_EQ(mets().find("O3", "OUT")->page_id, "P3");
    EXPECT_EQ(mets().find("ALL", "OUT")->page_id, "");
    EXPECT_EQ(mets().pages(), (Strings{"P1", "P2", "P3", "P4"}));
}

TEST_F(MetsCasesTest, SeveralPhysicalAndLogicalStructMapsAreOneListOfPages) {
    serve(mets_xml(group_xml("IMG", file_xml("I1", "1.tif") + file_xml("X1", "x.txt", "text/plain") +
                                        file_xml("I2", "2.tif") + file_xml("I3", "3.tif")),
                   page_xml("P1", {"I1"}) + page_xml("P2", {"I2"}), "",
                   "  <mets:structMap TYPE=\"PHYSICAL\"><mets:div TYPE=\"physSequence\">\n" + page_xml("P1", {"X1"}) +
                       page_xml("P3", {"I3"}) +
                       "  </mets:div></mets:structMap>\n"
                       "  <mets:structMap TYPE=\"LOGICAL\"><mets:div ID=\"L1\" TYPE=\"monograph\" LABEL=\"Whole\"/>"
                       "</mets:structMap>\n"
                       "  <mets:structMap TYPE=\"LOGICAL\"><mets:div ID=\"L2\" TYPE=\"chapter\"/></mets:structMap>\n"
                       "  <mets:structLink><mets:smLink xlink:from=\"L1\" xlink:to=\"P2\"/>"
                       "<mets:smLink xlink:from=\"L2\" xlink:to=\"P3\"/></mets:structLink>\n"));
    EXPECT_EQ(pages(), (Strings{"P1", "P2", "P3"}));
    EXPECT_EQ(ids("page_id=P1"), (Strings{"I1", "X1"}));
    EXPECT_EQ(ids("page_id=logical%3Atype%3Achapter"), Strings{"I3"});
    EXPECT_EQ(ids("page_id=Whole"), Strings{"I2"});
    EXPECT_EQ(ids("page_id=P1..P2"), (Strings{"I1", "X1", "I2"}));
    auto const before = text();
    EXPECT_EQ(add("O3", "P3", "OUT/3.png").status, 200);
    EXPECT_EQ(ids("page_id=L2"), (Strings{"I3", "O3"}));
    save();
    expect_only_additions(before, text());
}

TEST_F(MetsCasesTest, ANewspaperYearIsRefusedWithAMessageThatNamesAnIssue) {
    write(R"(<mets:mets xmlns:mets="http://www.loc.gov/METS/" xmlns:xlink="http://www.w3.org/1999/xlink">
  <mets:structMap TYPE="LOGICAL"><mets:div TYPE="newspaper"><mets:div TYPE="year"><mets:div TYPE="issue">
  <mets:mptr LOCTYPE="URL" xlink:href="https://example.org/18991231.xml"/></mets:div></mets:div></mets:div></mets:structMap>
</mets:mets>)");
    start();
    auto answer = server_->post("/v1/mets", Json{{"path_to_mets", (workspace_ / "mets.xml").native()}});
    EXPECT_EQ(answer.status, 422);
    EXPECT_NE(answer.body.find("only points to other METS"), std::string::npos) << answer.body;
    EXPECT_NE(answer.body.find("https://example.org/18991231.xml"), std::string::npos) << answer.body;
}

TEST_F(MetsCasesTest, NamesOfAllSortsComeAsThePathsOfFilesAndGoBackAsTheyWere) {
    std::string const composed = "IMG/m\u00fcnchen.tif", decomposed = "IMG/mu\u0308nchen.tif";
    serve(mets_xml(group_xml("IMG", file_xml("A", "IMG/a%20b%C3%BC.tif") + file_xml("B", "IMG/blank and: colon.tif") +
                                        file_xml("C", composed) + file_xml("D", decomposed) +
                                        file_xml("E", "../secret.tif") + file_xml("F", "%2e%2e/secret.tif")),
                   page_xml("P1", {"A", "B", "C", "D", "E", "F"})));
    Json local = Json::array();
    for (auto const& file : files()) local.push_back(file["local_filename"]);
    EXPECT_EQ(local,
              Json::array({"IMG/a b\u00fc.tif", "IMG/blank and: colon.tif", composed, decomposed, nullptr, nullptr}));
    EXPECT_EQ(ids("local_filename=" + net::percent_encode(composed)), Strings{"C"});
    EXPECT_EQ(ids("local_filename=" + net::percent_encode(decomposed)), Strings{"D"});
    EXPECT_EQ(ids("local_filename=" + net::percent_encode("IMG/a b\u00fc.tif")), Strings{"A"});
    EXPECT_EQ(ids("local_filename=" + net::percent_encode("IMG/a%20b%C3%BC.tif")), Strings{"A"}); // as it is written

    Strings const odd{"OUT/mu\u0308n chen: 1%.png", "OUT/m\u00fcn&<x>.png", "OUT/#5?.png", "OUT/100%25.png"};
    for (std::size_t i = 0; i < odd.size(); ++i)
        EXPECT_EQ(add(fmt::format("O{}", i), "P1", odd[i]).status, 200) << odd[i];
    for (auto const* leaves : {"../x.png", "OUT/../../x.png", "/etc/x.png", ".."})
        EXPECT_EQ(add("BAD", "P1", leaves).status, 400) << leaves;
    save();
    for (std::size_t i = 0; i < odd.size(); ++i) EXPECT_EQ(mets().find(fmt::format("O{}", i), "OUT")->path, odd[i]);
    call("POST", "/reload");
    for (std::size_t i = 0; i < odd.size(); ++i)
        EXPECT_EQ(files(fmt::format("file_id=O{}", i))[0]["local_filename"], odd[i]);
}

TEST_F(MetsCasesTest, AMetsWithoutHeaderFileSectionOrPagesGetsWhatItLacks) {
    serve("<mets:mets xmlns:mets=\"http://www.loc.gov/METS/\" xmlns:xlink=\"http://www.w3.org/1999/xlink\"/>\n");
    EXPECT_EQ(ids(), Strings{});
    EXPECT_EQ(pages(), Strings{});
    EXPECT_EQ(call("GET", "/agent").body, R"({"agents":[]})");
    EXPECT_EQ(call("GET", "/unique_identifier").body, "");
    Json const agent{{"name", "a"},      {"type", "OTHER"},         {"role", "OTHER"},
                     {"otherrole", "x"}, {"othertype", "SOFTWARE"}, {"notes", nullptr}};
    auto posted = net::http_request("POST", net::unix_url(socket_, "/agent"), {{"Content-Type", "application/json"}},
                                    dump(agent));
    ASSERT_TRUE(posted);
    EXPECT_EQ(posted->status, 200) << posted->body;
    EXPECT_EQ(add("O1", "P1", "OUT/1.png").status, 200);
    save();
    EXPECT_EQ(mets().agents().size(), 1u);
    EXPECT_EQ(mets().find("O1", "OUT")->page_id, "P1");
    EXPECT_EQ(mets().pages(), Strings{"P1"});
}

TEST_F(MetsCasesTest, PageOrderNeverChanges) {
    serve(
        mets_xml(group_xml("IMG", file_xml("I2", "2.tif")) + group_xml("OUT", file_xml("O1", "OUT/1.png", "image/png")),
                 page_xml("P2", {"I2"}) + page_xml("P1", {"O1"}) + page_xml("P3", {})));
    // In OCR-D a page goes to the end when its only file is added again by force.
    EXPECT_EQ(add("O1", "P1", "OUT/again.png", "&force=true").status, 200);
    EXPECT_EQ(add("O0", "P0", "OUT/0.png").status, 200);
    EXPECT_EQ(pages(), (Strings{"P2", "P1", "P3", "P0"}));
    save();
    EXPECT_EQ(mets().pages(), (Strings{"P2", "P1", "P3", "P0"}));
    EXPECT_EQ(mets().find("O1", "OUT")->path, "OUT/again.png");
}

TEST_F(MetsCasesTest, SavingKeepsForeignSectionsPrefixesModeAndASymlink) {
    std::string const before = R"(<?xml version="1.0" encoding="UTF-8"?>
<?xml-stylesheet href="x.xsl"?>
<!-- made by Kitodo -->
<m:mets xmlns:m="http://www.loc.gov/METS/" LABEL="b" OBJID="a">
  <m:metsHdr CREATEDATE="2020-01-01T00:00:00"/>
  <m:amdSec ID="AMD"><x:thing xmlns:x="urn:other"  odd = 'yes'>text &amp; more</x:thing></m:amdSec>
  <m:fileSec>
    <m:fileGrp USE="IMG">
      <m:file MIMETYPE="image/tiff" ID="I1">
        <m:FLocat xmlns:xl="http://www.w3.org/1999/xlink" LOCTYPE="OTHER" OTHERLOCTYPE="FILE" xl:href="IMG/1.tif"/>
      </m:file>
    </m:fileGrp>
  </m:fileSec>
  <!-- one page -->
  <m:structMap TYPE="PHYSICAL">
    <m:div TYPE="physSequence">
      <m:div TYPE="page" ID="P1">
        <m:fptr FILEID="I1"/>
      </m:div>
    </m:div>
  </m:structMap>
</m:mets>
)";
    auto const real = folder_ / "data" / "real.xml";
    std::ofstream(real) << before;
    std::filesystem::permissions(real, std::filesystem::perms(0640));
    std::filesystem::remove(workspace_ / "mets.xml");
    std::filesystem::create_symlink(real, workspace_ / "mets.xml");
    start();
    open();
    EXPECT_EQ(ids("page_id=P1"), Strings{"I1"});
    EXPECT_EQ(files()[0]["local_filename"], "IMG/1.tif");
    EXPECT_EQ(add("O1", "P1", "OUT/1.png").status, 200);
    save();
    EXPECT_TRUE(std::filesystem::is_symlink(workspace_ / "mets.xml"));
    EXPECT_EQ(std::filesystem::status(real).permissions(), std::filesystem::perms(0640));
    auto expected = before;
    auto put_apart = [&](std::string_view old_text, std::string_view new_text) {
        auto const at = expected.find(old_text);
        ASSERT_NE(at, std::string::npos) << old_text;
        expected.replace(at, old_text.size(), new_text);
    };
    put_apart("  odd = 'yes'", " odd=\"yes\""); // how XML is written, not what it says
    expect_only_additions(expected, text());
    EXPECT_EQ(mets().find("O1", "OUT")->path, "OUT/1.png");
}

TEST_F(MetsCasesTest, ReloadShowsWhatSomebodyElseWrote) {
    start();
    open();
    EXPECT_EQ(ids().size(), 5u);
    auto other = mets();
    ASSERT_TRUE(other.add_file({"FOO", "foo", "PHYS_0001", "image/png", "FOO/foo.png", 0, ""}));
    ASSERT_TRUE(other.save());
    EXPECT_EQ(call("POST", "/reload").body, "Reloaded from " + workspace_.native());
    EXPECT_EQ(ids("file_grp=FOO"), Strings{"foo"});
    EXPECT_EQ(ids().size(), 6u);
}

// OCR-D's server forgets them, also those of other Workers, whose Jobs then succeed without their files.
TEST_F(MetsCasesTest, ReloadKeepsWhatIsNotSavedYet) {
    start();
    open();
    EXPECT_EQ(add("O1", "PHYS_0001", "OUT/1.png").status, 200);
    EXPECT_EQ(add("O2", "PHYS_0002", "OUT/2.png").status, 200);
    EXPECT_EQ(call("POST", "/reload").status, 200);
    EXPECT_EQ(ids("file_grp=OUT"), (Strings{"O1", "O2"}));
    auto other = mets();
    ASSERT_TRUE(other.add_file({"FOO", "foo", "PHYS_0001", "image/png", "FOO/foo.png", 0, ""}));
    ASSERT_TRUE(other.add_file({"OUT", "O2", "PHYS_0003", "image/png", "OUT/theirs.png", 0, ""})); // another file
    ASSERT_TRUE(other.save());
    EXPECT_EQ(call("POST", "/reload").status, 200);
    EXPECT_EQ(ids("file_grp=%2F%2FFOO%7COUT").size(), 3u);
    EXPECT_EQ(files("file_id=O2")[0]["page_id"], "PHYS_0003");
    EXPECT_EQ(mets().find("O1", "OUT"), nullptr) << "a reload writes nothing";
    auto told = call("PUT", "/"); // saves what goes, and names what was given up
    EXPECT_EQ(told.status, 409);
    EXPECT_NE(told.body.find("O2"), std::string::npos) << told.body;
    EXPECT_NE(mets().find("O1", "OUT"), nullptr);
    EXPECT_NE(mets().find("foo", "FOO"), nullptr);
}

TEST_F(MetsCasesTest, AReloadThatFailsForgetsNothing) {
    start();
    open();
    auto const good = text();
    EXPECT_EQ(add("O1", "PHYS_0001", "OUT/1.png").status, 200);
    write("<mets:mets");
    auto answer = call("POST", "/reload");
    EXPECT_EQ(answer.status, 422);
    EXPECT_NE(answer.body.find("not XML"), std::string::npos) << answer.body;
    write(good);
    EXPECT_EQ(call("POST", "/reload").status, 200);
    EXPECT_EQ(ids("file_grp=OUT"), Strings{"O1"});
    save();
    EXPECT_NE(mets().find("O1", "OUT"), nullptr);
}

} // namespace
} // namespace ocrctl::server::test
