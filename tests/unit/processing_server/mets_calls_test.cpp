#include "processing_server/mets_calls.hpp"

#include "tests/unit/mets/workspace.hpp"

#include <gtest/gtest.h>

namespace ocrctl::server {
namespace {

using What = MetsCall::What;

std::string error_of(std::expected<MetsCall, net::Response> const& call) {
    return call ? "" : call.error().body;
}

MetsRequest addition(std::vector<std::pair<std::string, std::string>> fields) {
    return {"POST", "file", std::move(fields), {}};
}

TEST(MetsCalls, KnowsEveryCallOfOcrdsServer) {
    for (auto [method, path, what] : {std::tuple{"GET", "workspace_path", What::WorkspacePath},
                                      {"GET", "unique_identifier", What::Identifier},
                                      {"GET", "physical_pages", What::Pages},
                                      {"GET", "file_groups", What::Groups},
                                      {"GET", "agent", What::Agents},
                                      {"GET", "file", What::Find},
                                      {"PUT", "", What::Save},
                                      {"POST", "reload", What::Reload},
                                      {"DELETE", "", What::Stop}}) {
        auto call = read_call({method, path, {}, {}});
        ASSERT_TRUE(call) << path << error_of(call);
        EXPECT_EQ(call->what, what);
    }
}

TEST(MetsCalls, RefusesOthersAsARouterDoes) {
    EXPECT_EQ(read_call({"GET", "nothing", {}, {}}).error().status, 404);
    auto wrong = read_call({"DELETE", "file", {}, {}});
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().status, 405);
    EXPECT_EQ(wrong.error().headers.get("Allow"), "GET");
}

TEST(MetsCalls, ReadsAnAddition) {
    auto call = read_call(addition({{"file_grp", "OUT"},
                                    {"file_id", "OUT_1"},
                                    {"mimetype", "image/png"},
                                    {"page_id", "P1"},
                                    {"local_filename", "OUT/1.png"},
                                    {"force", "True"},
                                    {"ignore", "True"}}));
    ASSERT_TRUE(call) << error_of(call);
    EXPECT_EQ(call->addition.file.group, "OUT");
    EXPECT_EQ(call->addition.file.path, "OUT/1.png");
    EXPECT_TRUE(call->addition.force);
    EXPECT_EQ(call->given, (Json{{"file_grp", "OUT"},
                                 {"file_id", "OUT_1"},
                                 {"mimetype", "image/png"},
                                 {"page_id", "P1"},
                                 {"url", nullptr},
                                 {"local_filename", "OUT/1.png"}}));
}

TEST(MetsCalls, NamesWhatAnAdditionLacksAsFastApiDoes) {
    auto call = read_call(addition({{"file_grp", "OUT"}, {"mimetype", ""}, {"force", "perhaps"}}));
    ASSERT_FALSE(call);
    EXPECT_EQ(call.error().status, 422);
    auto detail = parse_json(call.error().body)->at("detail");
    ASSERT_EQ(detail.size(), 3u);
    EXPECT_EQ(detail[0],
              (Json{{"type", "missing"}, {"loc", {"body", "file_id"}}, {"msg", "Field required"}, {"input", nullptr}}));
    EXPECT_EQ(detail[1]["loc"], (Json{"body", "mimetype"}));
    EXPECT_EQ(detail[2]["type"], "bool_parsing");
}

TEST(MetsCalls, ReadsAnAgentAndRepeatsIt) {
    Json posted{{"name", "ocrd-dummy"},    {"type", "OTHER"},
                {"role", "OTHER"},         {"otherrole", nullptr},
                {"othertype", "SOFTWARE"}, {"notes", {{{{"option", "page-id"}}, "P1"}, {Json::object(), nullptr}}}};
    auto call = read_call({"POST", "agent", {}, posted});
    ASSERT_TRUE(call) << error_of(call);
    EXPECT_EQ(call->given, posted);
    EXPECT_EQ(call->agent.othertype, "SOFTWARE");
    EXPECT_FALSE(call->agent.otherrole);
    ASSERT_EQ(call->agent.notes.size(), 2u);
    EXPECT_EQ(call->agent.notes[0].first.at("option"), "page-id");
}

TEST(MetsCalls, NamesEveryKeyThatAnAgentLacks) {
    auto call = read_call({"POST", "agent", {}, Json{{"name", 5}, {"type", "t"}}});
    ASSERT_FALSE(call);
    EXPECT_EQ(call.error().status, 422);
    std::vector<std::string> types, places;
    for (auto const& one : parse_json(call.error().body)->at("detail")) {
        types.push_back(one["type"]);
        places.push_back(one["loc"][1]);
    }
    EXPECT_EQ(places, (std::vector<std::string>{"name", "role", "otherrole", "othertype", "notes"}));
    EXPECT_EQ(types.front(), "string_type");
    EXPECT_EQ(read_call({"POST", "agent", {}, {}}).error().status, 422);
    EXPECT_EQ(read_call({"POST", "agent", {}, Json::array()}).error().status, 422);
    for (auto const& notes : {Json("x"), Json{{"a"}}, Json{{{{"k", 1}}, "t"}}, Json{{Json::object(), 7}}})
        EXPECT_EQ(read_call({"POST",
                             "agent",
                             {},
                             Json{{"name", "n"},
                                  {"type", "t"},
                                  {"role", "r"},
                                  {"otherrole", nullptr},
                                  {"othertype", "o"},
                                  {"notes", notes}}})
                      .error()
                      .status,
                  422)
            << notes;
}

class MetsCallsOnAMets : public testing::Test {
protected:
    mets::Workspace workspace{mets::two_pages()};
    mets::Mets mets = workspace.load();
    net::Response get(std::string path, std::vector<std::pair<std::string, std::string>> fields = {}) {
        auto call = read_call({"GET", std::move(path), std::move(fields), {}});
        return call ? look_up(*call, mets, "/data/ws") : call.error();
    }
    Json json(std::string path, std::vector<std::pair<std::string, std::string>> fields = {}) {
        return *parse_json(get(std::move(path), std::move(fields)).body);
    }
    std::vector<std::string> ids(std::vector<std::pair<std::string, std::string>> fields) {
        std::vector<std::string> found;
        for (auto const& file : json("file", std::move(fields))["files"]) found.push_back(file["file_id"]);
        return found;
    }
};

TEST_F(MetsCallsOnAMets, AnswersTextsAndListsInOcrdsShapes) {
    EXPECT_EQ(get("workspace_path").body, "/data/ws");
    EXPECT_EQ(get("workspace_path").content_type, "text/plain; charset=utf-8");
    EXPECT_EQ(get("unique_identifier").body, "");
    EXPECT_EQ(json("physical_pages"), (Json{{"physical_pages", {"PHYS_0001", "PHYS_0002"}}}));
    EXPECT_EQ(json("file_groups"), (Json{{"file_groups", {"IMG"}}}));
    EXPECT_EQ(json("agent"), (Json{{"agents", Json::array()}}));
    EXPECT_EQ(json("file", {{"file_id", "IMG_0001"}}), (Json{{"files",
                                                              {{{"file_grp", "IMG"},
                                                                {"file_id", "IMG_0001"},
                                                                {"mimetype", "image/tiff"},
                                                                {"page_id", "PHYS_0001"},
                                                                {"url", ""},
                                                                {"local_filename", "IMG/IMG_0001.tif"}}}}}));
}

TEST_F(MetsCallsOnAMets, TellsNullForAFileWithoutPageOrLocation) {
    ASSERT_TRUE(mets.add_file({"X", "X_1", "", "image/png", "", 0, ""}, false, "https://example.org/x.png"));
    EXPECT_EQ(json("file", {{"file_grp", "X"}})["files"][0], (Json{{"file_grp", "X"},
                                                                   {"file_id", "X_1"},
                                                                   {"mimetype", "image/png"},
                                                                   {"page_id", nullptr},
                                                                   {"url", "https://example.org/x.png"},
                                                                   {"local_filename", nullptr}}));
}

TEST_F(MetsCallsOnAMets, QualifiesTheAttributesOfNotesAndListsAgentsWithoutOthertype) {
    mets.add_agent(
        {"a", "ORGANIZATION", "CREATOR", std::nullopt, std::nullopt, {{{{"option", "parameter"}}, "{}"}, {{}, ""}}});
    auto agent = json("agent")["agents"][0];
    EXPECT_EQ(agent["othertype"], nullptr);
    EXPECT_EQ(agent["notes"], (Json{{{{"{https://ocr-d.de}option", "parameter"}}, "{}"}, {Json::object(), nullptr}}));
    // What was listed may be posted back.
    auto call = read_call({"POST", "agent", {}, agent});
    ASSERT_TRUE(call) << error_of(call);
    EXPECT_TRUE(mets::check_agent(call->agent));
    mets.add_agent(call->agent);
    EXPECT_EQ(json("agent")["agents"][1], agent);
}

TEST_F(MetsCallsOnAMets, TellsNamesThatJsonMustEscape) {
    std::string const odd = "X/a\"b\\c\t\u00fc.png", url = "https://example.org/?q=\"";
    ASSERT_TRUE(mets.add_file({"X", "X_1", "", "image/png", odd, 0, ""}, false, url));
    ASSERT_TRUE(mets.add_file({"X", "X_2", "P \"2\"", "image/png", "X/2.png", 0, ""}));
    auto files = json("file", {{"file_grp", "X"}})["files"];
    ASSERT_EQ(files.size(), 2u);
    EXPECT_EQ(files[0]["local_filename"], odd);
    EXPECT_EQ(files[0]["url"], url);
    EXPECT_EQ(files[1]["page_id"], "P \"2\"");
    EXPECT_EQ(get("file").content_type, "application/json");
}

TEST_F(MetsCallsOnAMets, FindsByEveryCriterion) {
    EXPECT_EQ(ids({}).size(), 2u);
    EXPECT_EQ(ids({{"file_id", ""}, {"file_grp", ""}}).size(), 2u);
    EXPECT_EQ(ids({{"page_id", ""}}).size(), 0u);
    EXPECT_EQ(ids({{"page_id", "PHYS_0001..PHYS_0002"}}).size(), 2u);
    EXPECT_EQ(ids({{"page_id", "~PHYS_0001"}}), std::vector<std::string>{"IMG_0002"});
    EXPECT_EQ(ids({{"page_id", "//PHYS_000(1|3)"}}), std::vector<std::string>{"IMG_0001"});
    EXPECT_EQ(ids({{"file_id", "//.*2"}, {"mimetype", "//image/.*"}}), std::vector<std::string>{"IMG_0002"});
    EXPECT_EQ(ids({{"local_filename", "IMG/IMG_0001.tif"}}), std::vector<std::string>{"IMG_0001"});
    EXPECT_EQ(ids({{"local_filename", "//IMG/.*_0001[.]tif"}}), std::vector<std::string>{"IMG_0001"});
    EXPECT_EQ(ids({{"file_grp", "//IM"}}).size(), 0u); // in full
}

TEST_F(MetsCallsOnAMets, RefusesABadExpressionOrPageWithAJsonStringAndNotWith500) {
    for (auto const& [name, value] : {std::pair{"file_id", "//("},
                                      {"page_id", "PHYS_0009"},
                                      {"page_id", "PHYS_0003..PHYS_0009"},
                                      {"page_id", "//("},
                                      {"page_id", "a,,b"}}) {
        auto answer = get("file", {{name, value}});
        EXPECT_EQ(answer.status, 400) << value;
        EXPECT_TRUE(parse_json(answer.body)->is_string()) << answer.body;
    }
}

TEST_F(MetsCallsOnAMets, DecodesLocalNamesAndHidesThoseThatLeaveTheWorkspace) {
    mets::Workspace odd(mets::mets_xml(
        mets::group_xml("IMG", mets::file_xml("A", "IMG/a%20b%C3%BC.tif") + mets::file_xml("B", "../secret.tif")), ""));
    auto loaded = odd.load();
    auto call = read_call({"GET", "file", {}, {}});
    auto files = parse_json(look_up(*call, loaded, "").body)->at("files");
    EXPECT_EQ(files[0]["local_filename"], "IMG/a b\u00fc.tif");
    EXPECT_EQ(files[1]["local_filename"], nullptr);
}

Json packed(Json data = Json::object(), std::string method = "GET", std::string url = "file",
            std::string type = "class") {
    return Json{{"workspace_path", "/data/ws"},
                {"method_type", method},
                {"response_type", type},
                {"request_url", url},
                {"request_data", std::move(data)}};
}

TEST(MetsPacked, UnpacksQueriesFormsAndBodiesAsPythonsClientWouldSendThem) {
    auto form = unpack(packed({{"form", {{"file_grp", "OUT"}, {"url", nullptr}, {"force", true}, {"n", 5}}}}, "POST"));
    ASSERT_TRUE(form);
    EXPECT_EQ(form->workspace_path, "/data/ws");
    EXPECT_EQ(form->request.fields,
              (std::vector<std::pair<std::string, std::string>>{{"file_grp", "OUT"}, {"force", "True"}, {"n", "5"}}));
    auto agent = unpack(packed({{"class", {{"name", "x"}}}}, "POST", "agent"));
    ASSERT_TRUE(agent);
    EXPECT_EQ(*agent->request.body, (Json{{"name", "x"}}));
    auto save = unpack(packed(Json::object(), "PUT", "", "text"));
    ASSERT_TRUE(save);
    EXPECT_EQ(read_call(save->request)->what, What::Save);
}

TEST(MetsPacked, RefusesABrokenBodyWith422) {
    for (auto const& broken :
         {Json::array(), Json{{"workspace_path", "/x"}}, packed({}, "PATCH"), packed({}, "GET", "file", "xml"),
          packed({{"params", 1}}), packed({{"query", Json::object()}}),
          packed({{"params", Json::object()}, {"form", Json::object()}})}) {
        auto call = unpack(broken);
        ASSERT_FALSE(call) << broken;
        EXPECT_EQ(call.error().status, 422);
        EXPECT_TRUE(parse_json(call.error().body)->at("detail").is_string());
    }
}

TEST(MetsPacked, AnswersErrorsWith200AndTheirRawBodyAndARefusedAdditionWithItsStatus) {
    auto taken = pack(net::Response::json(400, Json("A file with ID==X already exists")), "class", false);
    EXPECT_EQ(taken.status, 200);
    auto refused = pack(net::Response::json(400, Json("A file with ID==X already exists")), "class", true);
    EXPECT_EQ(refused.status, 400);
    EXPECT_EQ(refused.body, taken.body);
    EXPECT_TRUE(adds_file({"POST", "file", {}, {}}));
    EXPECT_FALSE(adds_file({"GET", "file", {}, {}}));
    EXPECT_EQ(*parse_json(taken.body), (Json{{"error", "\"A file with ID==X already exists\""}}));
    EXPECT_EQ(*parse_json(pack(net::Response::text(200, "/data/ws"), "text", false).body), (Json{{"text", "/data/ws"}}));
    EXPECT_EQ(*parse_json(pack(net::Response::json(200, Json{{"files", Json::array()}}), "dict", false).body), (Json{{"files", Json::array()}}));
    EXPECT_EQ(pack(net::Response::json(200, Json{{"x", 1}}), "empty", true).body, "{}");
    EXPECT_EQ(pack(net::Response::text(200, "x"), "class", false).status, 422);
}

} // namespace
} // namespace ocrctl::server
