// OCR-D's METS server API over HTTP: packed into /tcp_mets, and on the Unix socket of a workspace.
#include "tests/service/processing_server/harness.hpp"

#include "lib/net/url.hpp"

#include <sys/stat.h>

namespace ocrctl::server::test {
namespace {

class MetsApiTest : public ServerTest {
protected:
    /// A call through /tcp_mets.
    net::Response packed(std::string method, std::string url, Json data = Json::object(), std::string type = "class",
                         std::string workspace = {}) const {
        return server_->post("/tcp_mets", Json{{"workspace_path", workspace.empty() ? workspace_.native() : workspace},
                                               {"method_type", std::move(method)},
                                               {"response_type", std::move(type)},
                                               {"request_url", std::move(url)},
                                               {"request_data", std::move(data)}});
    }
    Json json(net::Response const& answer) const {
        EXPECT_EQ(answer.status, 200) << answer.body;
        return parse_json(answer.body).value_or(Json());
    }
    static Json form(std::string id, std::string page, Json more = Json::object()) {
        Json fields{{"file_grp", "OUT"}, {"file_id", id},  {"mimetype", "application/vnd.prima.page+xml"},
                    {"page_id", page},   {"url", nullptr}, {"local_filename", "OUT/" + id + ".xml"}};
        fields.update(more);
        return Json{{"form", fields}};
    }
    Json found(Json params) { return json(packed("GET", "file", Json{{"params", std::move(params)}}))["files"]; }
    Json save() { return json(packed("PUT", "", Json::object(), "text")); }

    std::string socket_address() {
        auto answer = server_->post("/v1/mets", Json{{"path_to_mets", (workspace_ / "mets.xml").native()}});
        EXPECT_EQ(answer.status, 200) << answer.body;
        return parse_json(answer.body)->value("mets_server_url", "");
    }
    static net::Response on(std::string const& socket, std::string method, std::string target, std::string body = {},
                            net::Headers headers = {}) {
        auto answer =
            net::http_request(std::move(method), net::unix_url(socket, target), std::move(headers), std::move(body));
        if (answer) return *answer;
        net::Response none;
        none.status = 0;
        none.body = answer.error().message();
        return none;
    }
    static net::Response add_on(std::string const& socket, std::string const& fields) {
        return on(socket, "POST", "/file", fields, {{"Content-Type", "application/x-www-form-urlencoded"}});
    }
};

TEST_F(MetsApiTest, ServesEveryCallPackedIntoTcpMets) {
    start();
    EXPECT_EQ(json(packed("GET", "workspace_path", Json::object(), "text"))["text"], workspace_.native());
    EXPECT_EQ(json(packed("GET", "unique_identifier", Json::object(), "text"))["text"], "");
    EXPECT_EQ(json(packed("GET", "physical_pages", Json::object(), "dict"))["physical_pages"].size(), 5u);
    EXPECT_EQ(json(packed("GET", "file_groups", Json::object(), "dict"))["file_groups"], Json::array({"OCR-D-IMG"}));
    EXPECT_EQ(json(packed("POST", "file", form("OUT_1", "PHYS_0001")))["file_id"], "OUT_1");
    Json agent{{"name", "ocrd-dummy"}, {"type", "OTHER"},         {"role", "OTHER"},
               {"otherrole", "x"},     {"othertype", "SOFTWARE"}, {"notes", {{{{"option", "page-id"}}, "PHYS_0001"}}}};
    EXPECT_EQ(json(packed("POST", "agent", Json{{"class", agent}})), agent);
    auto agents = json(packed("GET", "agent"))["agents"];
    ASSERT_EQ(agents.size(), 1u); // in a METS that had no agent
    EXPECT_EQ(agents[0]["notes"][0][0], (Json{{"{https://ocr-d.de}option", "page-id"}}));
    ASSERT_EQ(found({{"page_id", "PHYS_0001..PHYS_0002"}, {"file_grp", "//OUT|OTHER"}}).size(), 1u);
    EXPECT_FALSE(mets().has_group("OUT")) << "nothing is written before it is asked for";
    EXPECT_TRUE(save()["text"].is_string());
    EXPECT_EQ(files_in("OUT"), 1u);
    EXPECT_EQ(mets().agents().size(), 1u);
    EXPECT_TRUE(json(packed("DELETE", "", Json::object(), "text"))["text"].is_string());
    EXPECT_EQ(json(packed("POST", "reload", Json::object(), "text"))["text"], "Reloaded from " + workspace_.native());
}

TEST_F(MetsApiTest, TellsErrorsOfACallAsOcrdsRelayDoesAndARefusedAdditionByItsStatusToo) {
    start();
    json(packed("POST", "file", form("OUT_1", "PHYS_0001")));
    auto error = [&](net::Response const& answer) { return json(answer).value("error", "none"); };
    auto refused = [&](net::Response const& answer) {
        EXPECT_TRUE(answer.status == 400 || answer.status == 422) << answer.status << answer.body;
        return parse_json(answer.body).value_or(Json::object()).value("error", "none");
    };
    EXPECT_NE(refused(packed("POST", "file", form("OUT_1", "PHYS_0001"))).find("already exists"), std::string::npos);
    EXPECT_EQ(error(packed("POST", "file", form("OUT_1", "PHYS_0001", {{"force", true}}))), "none");
    EXPECT_NE(refused(packed("POST", "file", form("OUT_1", "PHYS_0002", {{"force", true}}))).find("already exists"), std::string::npos);
    for (auto const& bad : {form("1 bad id", "PHYS_0001"), form("OUT_2", "PHYS_0001", {{"local_filename", "../../outside.xml"}}),
                            form("OUT_2", "PHYS\x01"), form("OUT_2", "PHYS_0001", {{"file_grp", "a/b"}}), Json{{"form", {{"file_grp", "OUT"}}}}})
        EXPECT_NE(refused(packed("POST", "file", bad)), "none") << bad;
    EXPECT_EQ(json(packed("GET", "file_groups", Json::object(), "dict"))["file_groups"], Json::array({"OCR-D-IMG", "OUT"})) << "nor an empty group";
    EXPECT_NE(error(packed("GET", "file", Json{{"params", {{"page_id", "NONE"}}}})), "none");
    EXPECT_NE(error(packed("GET", "file", Json{{"params", {{"file_id", "//("}}}})), "none");
    EXPECT_NE(error(packed("POST", "agent", Json{{"class", {{"name", "x"}}}})), "none");
    EXPECT_EQ(found({{"file_grp", "OUT"}}).size(), 1u);
    // What is no call of this workspace has a status of its own.
    EXPECT_EQ(packed("PATCH", "file").status, 422);
    EXPECT_EQ(packed("GET", "file", Json::object(), "xml").status, 422);
    EXPECT_EQ(server_->request("POST", "/tcp_mets", "{", {{"Content-Type", "application/json"}}).status, 422);
}

TEST_F(MetsApiTest, ServesOnlyBelowTheWorkspaceRoots) {
    make_workspace(folder_ / "elsewhere", 1);
    std::filesystem::create_symlink(folder_ / "elsewhere", folder_ / "data" / "way-out");
    std::filesystem::create_directories(folder_ / "data" / "empty");
    start();
    for (auto const* path : {"elsewhere", "data/way-out", "data/../elsewhere"})
        EXPECT_EQ(packed("GET", "workspace_path", Json::object(), "text", (folder_ / path).native()).status, 403)
            << path;
    EXPECT_EQ(packed("GET", "workspace_path", Json::object(), "text", "data/ws").status, 422);
    EXPECT_EQ(packed("GET", "workspace_path", Json::object(), "text", (folder_ / "data" / "none").native()).status,
              404);
    EXPECT_NE(json(packed("GET", "file_groups", Json::object(), "dict", (folder_ / "data" / "empty").native()))
                  .value("error", "")
                  .find("no METS"),
              std::string::npos);
    auto answer = server_->post("/v1/mets", Json{{"path_to_mets", (folder_ / "elsewhere" / "mets.xml").native()}});
    EXPECT_EQ(answer.status, 403);
}

TEST_F(MetsApiTest, KnowsAWorkspaceByItsRealPathHoweverItIsSpelled) {
    std::filesystem::create_directory_symlink(workspace_, folder_ / "data" / "link");
    start();
    auto linked = (folder_ / "data" / "link").native(), dotted = (folder_ / "data" / "x" / ".." / "ws").native();
    EXPECT_EQ(json(packed("GET", "workspace_path", Json::object(), "text", linked))["text"], workspace_.native());
    json(packed("POST", "file", form("OUT_1", "PHYS_0001"), "class", linked));
    json(packed("POST", "file", form("OUT_2", "PHYS_0002"), "class", dotted));
    json(packed("POST", "file", form("OUT_3", "PHYS_0003")));
    json(packed("PUT", "", Json::object(), "text", linked));
    EXPECT_EQ(files_in("OUT"), 3u);
}

TEST_F(MetsApiTest, AdditionsSurviveAnEditBySomebodyElseAndAConflictIsReported) {
    start();
    json(packed("POST", "file", form("OUT_1", "PHYS_0001")));
    json(packed("POST", "file", form("OUT_2", "PHYS_0002")));
    auto other = mets();
    ASSERT_TRUE(other.add_file({"THEIRS", "T_1", "PHYS_0001", "image/png", "T/1.png", 0, ""}));
    ASSERT_TRUE(other.add_file({"OUT", "OUT_2", "PHYS_0003", "image/png", "T/2.png", 0, ""}));
    ASSERT_TRUE(other.save());
    auto answer = save();
    EXPECT_NE(answer.value("error", "").find("OUT_2"), std::string::npos) << answer;
    EXPECT_EQ(files_in("THEIRS"), 1u);
    EXPECT_NE(mets().find("OUT_1", "OUT"), nullptr);
    EXPECT_EQ(mets().find("OUT_2", "OUT")->page_id, "PHYS_0003");
    EXPECT_TRUE(save().contains("text")); // told once
}

TEST_F(MetsApiTest, ResultsAndAdditionsAreSavedTogether) {
    start();
    auto played = worker();
    json(packed("POST", "file", form("API_1", "PHYS_0001", {{"file_grp", "API"}, {"local_filename", "API/1.xml"}})));
    auto job = submit(job_body("RUN"));
    ASSERT_TRUE(reaches(job, "SUCCESS"));
    EXPECT_EQ(files_in("RUN"), 5u);
    EXPECT_EQ(files_in("API"), 1u);
    // Edited by hand meanwhile, with unsaved additions in memory and more results to come.
    json(packed("POST", "file", form("API_2", "PHYS_0002", {{"file_grp", "API"}, {"local_filename", "API/2.xml"}})));
    auto other = mets();
    ASSERT_TRUE(other.add_file({"THEIRS", "T_1", "PHYS_0001", "image/png", "T/1.png", 0, ""}));
    ASSERT_TRUE(other.save());
    auto second = submit(job_body("RUN2"));
    ASSERT_TRUE(reaches(second, "SUCCESS"));
    EXPECT_EQ(files_in("RUN2"), 5u);
    EXPECT_EQ(files_in("API"), 2u);
    EXPECT_EQ(files_in("THEIRS"), 1u);
}

TEST_F(MetsApiTest, WhatIsUnsavedIsSavedWhenTheServerStops) {
    start();
    json(packed("POST", "file", form("OUT_1", "PHYS_0001")));
    EXPECT_EQ(server_->stop(), 0);
    EXPECT_EQ(files_in("OUT"), 1u);
}

TEST_F(MetsApiTest, ServesTheSameOnAUnixSocketOfTheWorkspace) {
    start();
    auto socket = socket_address();
    ASSERT_TRUE(socket.starts_with((state_ / "mets").native())) << socket;
    struct stat status{};
    ASSERT_EQ(::stat(socket.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0666u);
    EXPECT_EQ(socket_address(), socket);
    EXPECT_EQ(on(socket, "GET", "/workspace_path").body, workspace_.native());
    auto added = add_on(
        socket, "file_grp=OUT&file_id=OUT_1&mimetype=image%2Fpng&page_id=PHYS_0001&local_filename=OUT%2F1+2.png");
    EXPECT_EQ(added.status, 200) << added.body;
    EXPECT_EQ((*parse_json(added.body))["local_filename"], "OUT/1 2.png");
    EXPECT_EQ((*parse_json(added.body))["url"], nullptr);
    EXPECT_TRUE(std::filesystem::is_directory(workspace_ / "OUT"));
    auto twice = add_on(
        socket, "file_grp=OUT&file_id=OUT_1&mimetype=image%2Fpng&page_id=PHYS_0001&local_filename=OUT%2F1+2.png");
    EXPECT_EQ(twice.status, 400);
    EXPECT_TRUE(parse_json(twice.body)->is_string()) << twice.body;
    EXPECT_EQ(add_on(socket, "file_grp=OUT").status, 422);
    for (auto const* bad : {"file_grp=OUT&file_id=1+bad&mimetype=image%2Fpng", "file_grp=a%2Fb&file_id=OUT_2&mimetype=image%2Fpng"}) {
        auto refused = add_on(socket, bad);
        EXPECT_EQ(refused.status, 400) << bad;
        EXPECT_TRUE(parse_json(refused.body) && parse_json(refused.body)->is_string()) << refused.body;
    }
    EXPECT_EQ(on(socket, "GET", "/file?page_id=NONE").status, 400);
    EXPECT_EQ(on(socket, "GET", "/file?file_id=%2F%2F.*_1&file_grp=OUT").status, 200);
    EXPECT_EQ(on(socket, "GET", "/none").status, 404);
    EXPECT_EQ(on(socket, "PATCH", "/file").status, 405);
    EXPECT_EQ(on(socket, "DELETE", "/file").status, 405);
    EXPECT_EQ(found({{"file_grp", "OUT"}}).size(), 1u) << "one METS, whichever way it is reached";
    EXPECT_EQ(on(socket, "PUT", "/").status, 200);
    EXPECT_EQ(mets().find("OUT_1", "OUT")->path, "OUT/1 2.png");
    EXPECT_EQ(on(socket, "POST", "/reload").body, "Reloaded from " + workspace_.native());
}

TEST_F(MetsApiTest, FoldersOfLikeNamesAndDeepOnesHaveSocketsOfTheirOwn) {
    start();
    auto deep = folder_ / "data" / std::string(80, 'd') / std::string(80, 'e');
    std::set<std::string> sockets;
    for (auto const& folder : {folder_ / "data" / "b-c", folder_ / "data" / "b_c", folder_ / "data" / "b c", deep}) {
        make_workspace(folder, 1);
        auto answer = server_->post("/v1/mets", Json{{"path_to_mets", (folder / "mets.xml").native()}});
        ASSERT_EQ(answer.status, 200) << answer.body;
        auto socket = parse_json(answer.body)->value("mets_server_url", "");
        ASSERT_TRUE(socket.starts_with((state_ / "mets").native())) << socket;
        sockets.insert(socket);
        EXPECT_EQ(on(socket, "GET", "/workspace_path").body, folder.native());
    }
    EXPECT_EQ(sockets.size(), 4u);
}

TEST_F(MetsApiTest, FreshWorkspacesAreServedWithoutAWaitAndHoldUpNobody) {
    start();
    auto played = worker();
    std::atomic<bool> done = false;
    std::chrono::steady_clock::duration slowest{};
    std::jthread asks([&] {
        while (!done) {
            auto began = std::chrono::steady_clock::now();
            EXPECT_EQ(server_->get("/").status, 200);
            slowest = std::max(slowest, std::chrono::steady_clock::now() - began);
        }
    });
    auto began = std::chrono::steady_clock::now();
    std::vector<std::string> jobs;
    for (int i = 0; i < 20; ++i) {
        auto folder = folder_ / "data" / fmt::format("fresh{}", i);
        make_workspace(folder, 3);
        auto body = job_body();
        body["path_to_mets"] = (folder / "mets.xml").native();
        jobs.push_back(submit(body));
        EXPECT_EQ(packed("GET", "file_groups", Json::object(), "dict", folder.native()).status, 200);
    }
    EXPECT_LT(std::chrono::steady_clock::now() - began, 20s) << "OCR-D: 2 s for each";
    for (auto const& job : jobs) ASSERT_TRUE(reaches(job, "SUCCESS")) << "the first of its workspace";
    done = true;
    asks.join();
    EXPECT_LT(slowest, 1500ms) << "OCR-D: stands still for 2 s";
}

TEST_F(MetsApiTest, AdditionsFromManySidesWithSavesInBetweenAreAllKept) {
    start();
    constexpr int kSides = 4, kEach = 50;
    std::atomic<int> adding = kSides;
    std::vector<std::jthread> threads;
    for (int side = 0; side < kSides; ++side)
        threads.emplace_back([&, side] {
            for (int i = 0; i < kEach; ++i) {
                auto answer = packed("POST", "file", form(fmt::format("OUT_{}_{}", side, i), "PHYS_0001"));
                EXPECT_EQ(answer.status, 200) << answer.body;
            }
            --adding;
        });
    while (adding > 0) EXPECT_TRUE(save().contains("text"));
    threads.clear();
    EXPECT_TRUE(save().contains("text"));
    EXPECT_EQ(files_in("OUT"), static_cast<std::size_t>(kSides * kEach));
}

TEST_F(MetsApiTest, DeleteSavesAndTakesTheSocketAway) {
    start();
    auto socket = socket_address();
    add_on(socket, "file_grp=OUT&file_id=OUT_1&mimetype=image%2Fpng&page_id=PHYS_0001");
    EXPECT_EQ(on(socket, "DELETE", "/").status, 200);
    EXPECT_FALSE(std::filesystem::exists(socket));
    EXPECT_EQ(on(socket, "GET", "/file_groups").status, 0);
    EXPECT_EQ(files_in("OUT"), 1u);
    auto again = socket_address();
    EXPECT_EQ(on(again, "GET", "/file_groups").status, 200);
}

TEST_F(MetsApiTest, NoSocketIsLeftByAStopAndAKilledServersSocketIsReplaced) {
    start();
    auto socket = socket_address();
    server_->kill();
    EXPECT_TRUE(std::filesystem::exists(socket));
    start();
    EXPECT_FALSE(std::filesystem::exists(socket));
    EXPECT_EQ(socket_address(), socket);
    EXPECT_EQ(on(socket, "GET", "/file_groups").status, 200);
    EXPECT_EQ(server_->stop(), 0);
    EXPECT_FALSE(std::filesystem::exists(state_ / "mets"));
}

TEST_F(MetsApiTest, GivesTheTcpAddressWhereASocketCannotBe) {
    settings_["use_tcp_mets"] = true;
    start();
    auto address = socket_address();
    EXPECT_EQ(address, fmt::format("http://127.0.0.1:{}/tcp_mets", port_));
    std::filesystem::copy_file(workspace_ / "mets.xml", workspace_ / "other.xml");
    auto other = parse_json(server_->post("/v1/mets", Json{{"path_to_mets", (workspace_ / "other.xml").native()}}).body)
                     ->value("mets_server_url", "");
    EXPECT_EQ(other, address + "?mets=other.xml");
    auto url = other.substr(other.find("/tcp_mets"));
    Json call{{"workspace_path", workspace_.native()},
              {"method_type", "POST"},
              {"response_type", "class"},
              {"request_url", "file"},
              {"request_data", form("OUT_1", "PHYS_0001")}};
    EXPECT_EQ(server_->post(url, call).status, 200);
    EXPECT_EQ(found({{"file_grp", "OUT"}}).size(), 0u) << "another METS of the same folder";
    EXPECT_EQ(server_->post("/tcp_mets?mets=..%2Fmets.xml", call).status, 422);
}

TEST_F(MetsApiTest, GivesTheTcpAddressWhenTheStateFolderIsTooDeepForASocket) {
    state_ = folder_ / std::string(60, 'd') / std::string(40, 'e');
    std::filesystem::create_directories(state_);
    std::filesystem::rename(folder_ / "state" / "secrets", state_ / "secrets");
    server_ = std::make_unique<ServerProcess>(state_, port_);
    start();
    EXPECT_EQ(socket_address(), fmt::format("http://127.0.0.1:{}/tcp_mets", port_));
}

TEST_F(MetsApiTest, SaysWhatIsWrongWithABrokenMetsAndGoesOnOnceItIsRepaired) {
    start();
    auto good = *read_file(workspace_ / "mets.xml");
    std::ofstream(workspace_ / "mets.xml") << "<mets:mets";
    EXPECT_NE(json(packed("GET", "file_groups", Json::object(), "dict")).value("error", "").find("not XML"),
              std::string::npos);
    std::ofstream(workspace_ / "mets.xml") << good;
    EXPECT_TRUE(
        eventually([&] { return json(packed("GET", "file_groups", Json::object(), "dict")).contains("file_groups"); }));
}

} // namespace
} // namespace ocrctl::server::test
