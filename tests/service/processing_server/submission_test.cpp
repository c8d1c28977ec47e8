// The table of OCR-D network protocol 1.8 and 1.10, with the better answers that page allows, against the running server.
#include "tests/service/processing_server/harness.hpp"

namespace ocrctl::server::test {
namespace {

class SubmissionTest : public ServerTest {
protected:
    void SetUp() override {
        ServerTest::SetUp();
        if (!IsSkipped() && !HasFatalFailure()) start();
    }
    void expect(net::Response const& answer, int status, std::string const& text) {
        EXPECT_EQ(answer.status, status) << answer.body;
        auto json = parse_json(answer.body);
        ASSERT_TRUE(json) << answer.body;
        ASSERT_TRUE(json->contains("detail")) << answer.body;
        EXPECT_NE((*json)["detail"].get<std::string>().find(text), std::string::npos) << answer.body;
    }
    void nothing_happened() {
        auto jobs = parse_json(server_->get("/v1/jobs").body);
        EXPECT_TRUE((*jobs)["jobs"].empty());
    }
};

TEST_F(SubmissionTest, RefusesWhatCannotRunBeforeAnythingHappens) {
    auto body = job_body();
    auto without = [&](char const* key) {
        auto copy = body;
        copy.erase(key);
        return copy;
    };
    auto with = [&](char const* key, Json value) {
        auto copy = body;
        copy[key] = std::move(value);
        return copy;
    };
    auto const* dummy = "ocrd-ocrctl-dummy";
    // 1: not what the schema says, in OCR-D's shape
    auto missing = server_->run(dummy, without("input_file_grps"));
    expect(missing, 422, "input_file_grps");
    EXPECT_EQ((*parse_json(missing.body))["status_code"], 10422);
    EXPECT_TRUE((*parse_json(missing.body))["data"].is_null());
    expect(server_->run(dummy, with("parameters", nullptr)), 422, "parameters");
    expect(server_->run(dummy, with("page_id", 7)), 422, "page_id");
    expect(server_->request("POST", "/processor/run/ocrd-ocrctl-dummy", "{nonsense", {{"Content-Type", "application/json"}}), 422, "body");
    expect(server_->request("POST", "/processor/run/ocrd-ocrctl-dummy", dump(body), {}), 422, "Content-Type");
    // 2, 3
    expect(server_->run("ocrd-unknown", body), 422, "ocrd-unknown");
    expect(server_->run(dummy, with("job_id", "mine")), 422, "job_id");
    // 5, 6, 7, 8
    expect(server_->run(dummy, without("path_to_mets")), 422, "path_to_mets");
    expect(server_->run(dummy, with("workspace_id", "w")), 422, "path_to_mets");
    expect(server_->run(dummy, with("parameters", Json{{"no_such", 1}})), 400, "no_such");
    auto by_id = without("path_to_mets");
    by_id["workspace_id"] = "w";
    expect(server_->run(dummy, by_id), 404, "workspace");
    expect(server_->run(dummy, with("path_to_mets", (folder_ / "data/none/mets.xml").native())), 404, "no METS file");
    expect(server_->run(dummy, with("path_to_mets", "/etc/passwd")), 403, "roots");
    expect(server_->run(dummy, with("path_to_mets", (folder_ / "data/../state/x").native())), 403, "roots");
    // 9 to 11, better than OCR-D's 500
    expect(server_->run(dummy, with("page_id", "PHYS_0001..FOO_0003")), 422, "page_id");
    expect(server_->run(dummy, with("page_id", "PHYS_0099")), 422, "PHYS_0099");
    expect(server_->run(dummy, without("output_file_grps")), 422, "output_file_grps");
    expect(server_->run(dummy, with("output_file_grps", Json::array())), 422, "output_file_grps");
    expect(server_->run(dummy, with("input_file_grps", Json::array())), 422, "input_file_grps");
    // ours
    expect(server_->run(dummy, with("input_file_grps", Json::array({"NO-SUCH"}))), 422, "OCR-D-IMG (5 files)");
    auto abort = with("output_file_grps", Json::array({"OCR-D-IMG"}));
    abort["input_file_grps"] = Json::array({"OCR-D-IMG2"});
    expect(server_->run(dummy, with("depends_on", Json::array({"nobody"}))), 422, "nobody");
    expect(server_->run(dummy, with("callback_url", "https://x/")), 422, "callback_url");
    expect(server_->run(dummy, with("existing_output", "maybe")), 422, "existing_output");
    nothing_happened();
    auto good = *parse_json(server_->run(dummy, body).body);
    EXPECT_EQ(good["state"], "QUEUED") << "none of them holds pages";
}

TEST_F(SubmissionTest, PagesMeetHoweverTheyAreNamed) {
    auto state = [&](std::string const& group, std::string const& pages) {
        auto body = job_body(group);
        body["page_id"] = pages;
        auto answer = server_->run("ocrd-ocrctl-dummy", body);
        EXPECT_EQ(answer.status, 200) << answer.body;
        return parse_json(answer.body)->value("state", "");
    };
    // Of each pair the second waits for the first: by range, expression, ORDER, negation they mean the same page.
    int n = 0;
    for (auto const& [first, second] : {std::pair{"PHYS_0002", "//PHYS_000[23]"}, {"//.*_0001", "PHYS_0001"}, {"4", "PHYS_0004"},
                                        {"PHYS_0001..PHYS_0003", "2"}, {"~PHYS_0005", "physical:PHYS_0003"}}) {
        auto group = fmt::format("OUT{}", ++n);
        EXPECT_EQ(state(group, first), "QUEUED") << first;
        EXPECT_EQ(state(group, second), "CACHED") << first << " and " << second;
    }
    auto none = job_body("NONE");
    none["page_id"] = "PHYS_0003..PHYS_0001"; // in OCR-D no page, which its locks take for all of them
    expect(server_->run("ocrd-ocrctl-dummy", none), 422, "matches no page");
}

TEST_F(SubmissionTest, SpellingsOfAPathAreOneWorkspace) {
    std::filesystem::create_directory_symlink(workspace_, folder_ / "data" / "link");
    auto first = *parse_json(server_->run("ocrd-ocrctl-dummy", job_body()).body);
    EXPECT_EQ(first["state"], "QUEUED");
    for (auto const* path : {"data/./ws/mets.xml", "data/ws/../ws/mets.xml", "data/link/mets.xml"}) {
        auto body = job_body();
        body["path_to_mets"] = (folder_ / path).native();
        auto answer = *parse_json(server_->run("ocrd-ocrctl-dummy", body).body);
        EXPECT_EQ(answer["state"], "CACHED") << path;
    }
}

TEST_F(SubmissionTest, RefusesOutputGroupsThatAreNoNames) {
    auto tree = [&] {
        std::set<std::string> found;
        for (auto const& entry : std::filesystem::recursive_directory_iterator(folder_ / "data")) found.insert(entry.path().native());
        return found;
    };
    auto const before = tree();
    auto many = Json::array();
    for (int i = 0; i < 5000; ++i) many.push_back(fmt::format("G{}", i));
    std::vector<std::pair<Json, std::string>> const rows{
        {{"../../x"}, "../../x"}, {{(folder_ / "data/abs").native()}, "data/abs"}, {{"."}, "USE ."}, {{".."}, "USE .."}, {{".ocrctl"}, ".ocrctl"},
        {{"a b<"}, "a b<"}, {{""}, "empty"}, {{"A/B"}, "A/B"}, {{std::string("A\0B", 3)}, "not an xs:ID"}, {{std::string(300, 'x')}, "xxx... has 300 bytes"},
        {{"Q", "Q"}, "Q is named more than once"}, {{"GOOD", "../x"}, "../x"}, {many, "5000 output groups"}};
    for (auto const& [groups, text] : rows) {
        auto body = job_body();
        body["output_file_grps"] = groups.is_array() ? groups : Json::array({groups});
        expect(server_->run("ocrd-ocrctl-dummy", body), 422, text);
    }
    auto const query = "mets_path=" + (workspace_ / "mets.xml").native();
    for (auto const* group : {"../../x", "/abs", ".", ".ocrctl", "'a b<'", "Q,Q"}) {
        auto answer = server_->run_workflow(query, fmt::format("ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-dummy -I A -O {}\n", group));
        expect(answer, 422, "line 2");
    }
    nothing_happened();
    EXPECT_EQ(tree(), before);
}

TEST_F(SubmissionTest, RefusesABrokenMetsWithTheReason) {
    std::ofstream(workspace_ / "mets.xml") << "<mets:mets";
    expect(server_->run("ocrd-ocrctl-dummy", job_body()), 422, "mets.xml");
    nothing_happened();
}

TEST_F(SubmissionTest, AnExistingOutputGroupIsAConflictUnderAbort) {
    auto played = worker();
    auto first = submit(job_body());
    ASSERT_TRUE(reaches(first, "SUCCESS"));
    auto again = job_body();
    again["existing_output"] = "abort";
    expect(server_->run("ocrd-ocrctl-dummy", again), 409, "OUT");
}

TEST_F(SubmissionTest, AnswersAsOcrdDoes) {
    auto answer = server_->run("ocrd-ocrctl-dummy", job_body());
    ASSERT_EQ(answer.status, 200) << answer.body;
    auto job = *parse_json(answer.body);
    EXPECT_EQ(job["state"], "QUEUED");
    EXPECT_EQ(job["processor_name"], "ocrd-ocrctl-dummy");
    EXPECT_EQ(job["input_file_grps"], Json::array({"OCR-D-IMG"}));
    EXPECT_FALSE(job.contains("page_id"));
    EXPECT_FALSE(job.contains("workspace_id"));
    EXPECT_FALSE(job.contains("log_file_path"));
    auto second = job_body();
    second["page_id"] = "";
    auto waiting = *parse_json(server_->run("ocrd-ocrctl-dummy", second).body);
    EXPECT_EQ(waiting["state"], "CACHED") << "the first holds all pages of the group";
    EXPECT_EQ(waiting["page_id"], "");
    auto shown = *parse_json(server_->get("/processor/job/" + job["job_id"].get<std::string>()).body);
    EXPECT_EQ(shown["state"], "QUEUED");
    expect(server_->get("/processor/job/none"), 422, "none");
    expect(server_->get("/processor/log/none"), 422, "none");
    expect(server_->get("/processor/log/" + job["job_id"].get<std::string>()), 404, "no log yet");
}

TEST_F(SubmissionTest, AnswersTheOtherRoutesAsOcrdDoes) {
    auto home = *parse_json(server_->get("/").body);
    EXPECT_TRUE(home["message"].get<std::string>().starts_with("The home page of"));
    EXPECT_EQ(home["time"].get<std::string>().size(), 16u);
    EXPECT_EQ(*parse_json(server_->get("/processor").body), Json::array({"ocrd-ocrctl-binarize", "ocrd-ocrctl-dummy"}));
    EXPECT_EQ((*parse_json(server_->get("/processor/info/ocrd-ocrctl-dummy").body))["executable"], "ocrd-ocrctl-dummy");
    expect(server_->get("/processor/info/ocrd-none"), 404, "ocrd-none");
    EXPECT_EQ(server_->request("DELETE", "/kill_mets_server_zombies").body, "[]");
    EXPECT_EQ(server_->request("DELETE", "/kill_mets_server_zombies?minutes_ago=x").status, 422);
    EXPECT_EQ(server_->get("/no/such").status, 404);
    EXPECT_EQ(server_->request("DELETE", "/processor").status, 405);
    EXPECT_EQ(server_->get("/healthz").status, 200);
    auto document = *parse_json(server_->get("/openapi.json").body);
    for (auto const& [path, item] : document["paths"].items())
        for (auto const& [method, operation] : item.items()) EXPECT_FALSE(operation.contains("x-undocumented")) << method << " " << path;
    EXPECT_EQ(server_->get("/docs").content_type, "text/html; charset=utf-8");
    EXPECT_EQ(server_->request("DELETE", "/kill_mets_server_zombies?dry_run=perhaps").status, 422);
    EXPECT_EQ(server_->request("HEAD", "/processor").status, 405);
    EXPECT_EQ(server_->request("POST", "/stop").status, 409); // no deployment's server
    auto status = *parse_json(server_->get("/v1/status").body);
    EXPECT_EQ(status["name"], name_);
    EXPECT_EQ(status["broker"]["connected"], true);
}

TEST_F(SubmissionTest, KeepsWorkflowScripts) {
    auto upload = [&](std::string method, std::string path, std::string script, bool filename = true) {
        auto body = "--b\r\nContent-Disposition: form-data; name=\"workflow\"" + std::string(filename ? "; filename=\"workflow\"" : "") + "\r\n\r\n" + script + "\r\n--b--\r\n";
        return server_->request(std::move(method), std::move(path), body, {{"Content-Type", "multipart/form-data; boundary=b"}});
    };
    std::string script = "ocrctl-dummy -I OCR-D-IMG -O A\n";
    auto made = upload("POST", "/workflow", script);
    ASSERT_EQ(made.status, 201) << made.body;
    auto id = (*parse_json(made.body))["workflow_id"].get<std::string>();
    EXPECT_EQ(server_->get("/workflow/" + id).body, script);
    expect(upload("POST", "/workflow", script), 409, id);
    expect(upload("POST", "/workflow", "dummy -g x\n"), 422, "-g");
    expect(upload("POST", "/workflow", "  \n"), 422, "empty");
    expect(server_->post("/workflow", Json{{"workflow", script}}), 422, "workflow");
    EXPECT_EQ(upload("PUT", "/workflow/" + id, script + "ocrctl-dummy -I A -O B\n").status, 200);
    expect(upload("PUT", "/workflow/none", script), 404, "none");
    expect(server_->get("/workflow/none"), 404, "none");
    std::ofstream(folder_ / "file.txt") << "ocrctl-dummy -I OCR-D-IMG -O FROM-FILE\n";
    auto from_path = upload("POST", "/workflow", (folder_ / "file.txt").native(), false);
    EXPECT_EQ(from_path.status, 201) << from_path.body;
    auto invented = upload("PUT", "/workflow/" + id, (folder_ / "file.txt").native(), true); // as OCR-D's client sends it
    EXPECT_EQ(invented.status, 200) << invented.body;
    EXPECT_NE(server_->get("/workflow/" + id).body.find("FROM-FILE"), std::string::npos);
}

TEST_F(SubmissionTest, RefusesScriptsThatCannotBeRead) {
    auto field = [&](std::string method, std::string path, std::string value, bool filename) {
        auto body = "--b\r\nContent-Disposition: form-data; name=\"workflow\"" + std::string(filename ? "; filename=\"w\"" : "") + "\r\n\r\n" + value + "\r\n--b--\r\n";
        return server_->request(std::move(method), std::move(path), body, {{"Content-Type", "multipart/form-data; boundary=b"}});
    };
    auto made = field("POST", "/workflow", "ocrctl-dummy -I OCR-D-IMG -O A\n", true);
    ASSERT_EQ(made.status, 201) << made.body;
    auto stored = "/workflow/" + (*parse_json(made.body))["workflow_id"].get<std::string>();
    auto run = "/workflow/run?mets_path=" + (workspace_ / "mets.xml").native();
    auto nowhere = (folder_ / "none.txt").native();
    std::ofstream(folder_ / "latin1.txt") << "ocrctl-dummy -I OCR-D-IMG -O A -P x \xe4\n";
    for (auto const& [method, path] : {std::pair<std::string, std::string>{"POST", "/workflow"}, {"PUT", stored}, {"POST", run}}) {
        expect(field(method, path, nowhere, false), 422, "none.txt");
        expect(field(method, path, (folder_ / "latin1.txt").native(), false), 422, "UTF-8");
        expect(field(method, path, "ocrctl-dummy -I OCR-D-IMG -O A -P x \xe4\n", true), 422, "UTF-8");
        expect(field(method, path, folder_.native(), false), 422, "workflow");
        for (auto const* last : {"-I", "-O", "-p"}) expect(field(method, path, fmt::format("ocrctl-dummy -I OCR-D-IMG -O A {}\n", last), true), 422, last);
        expect(field(method, path, " \n\n", true), 422, "workflow");
    }
    nothing_happened();
}

TEST_F(SubmissionTest, AnExpressionSelectsThePagesOfAPageWiseWorkflow) {
    auto answer = server_->run_workflow("page_wise=true&page_id=%2F%2FPHYS_000%5B24%5D&mets_path=" + (workspace_ / "mets.xml").native(), "ocrctl-dummy -I OCR-D-IMG -O A\n");
    ASSERT_EQ(answer.status, 200) << answer.body;
    std::set<std::string> pages;
    for (auto const& [page, jobs] : (*parse_json(answer.body))["processing_job_ids"].items()) pages.insert(page);
    EXPECT_EQ(pages, (std::set<std::string>{"PHYS_0002", "PHYS_0004"}));
}

TEST_F(SubmissionTest, GroupsAreLookedForInTheMetsThatIsNamed) {
    auto other = mets();
    ASSERT_TRUE(other.add_file({"ONLY-OTHER", "O_1", "PHYS_0001", "image/png", "O/1.png", 0, ""}));
    ASSERT_TRUE(other.save());
    std::filesystem::rename(workspace_ / "mets.xml", workspace_ / "other.xml");
    std::filesystem::remove_all(folder_ / "data" / "plain");
    make_workspace(folder_ / "data" / "plain", 5);
    std::filesystem::copy_file(folder_ / "data" / "plain" / "mets.xml", workspace_ / "mets.xml");
    std::string const script = "ocrctl-dummy -I ONLY-OTHER -O A\n";
    expect(server_->run_workflow("mets_path=" + (workspace_ / "mets.xml").native(), script), 422, "ONLY-OTHER");
    auto answer = server_->run_workflow("mets_path=" + (workspace_ / "other.xml").native(), script);
    EXPECT_EQ(answer.status, 200) << answer.body;
    // What was added through the METS API and is not on disk yet is there as well.
    Json form{{"file_grp", "UNSAVED"}, {"file_id", "U_1"}, {"mimetype", "image/png"}, {"page_id", "PHYS_0001"}, {"local_filename", "U/1.png"}};
    auto added = server_->post("/tcp_mets", Json{{"workspace_path", workspace_.native()}, {"method_type", "POST"}, {"response_type", "class"},
                                                 {"request_url", "file"}, {"request_data", {{"form", form}}}});
    ASSERT_EQ(added.status, 200) << added.body;
    answer = server_->run_workflow("mets_path=" + (workspace_ / "mets.xml").native(), "ocrctl-dummy -I UNSAVED -O B\n");
    EXPECT_EQ(answer.status, 200) << answer.body;
}

TEST_F(SubmissionTest, RefusesWorkflowsThatCannotRun) {
    auto mets = "mets_path=" + (workspace_ / "mets.xml").native();
    expect(server_->run_workflow("page_wise=True", "ocrctl-dummy -I OCR-D-IMG -O A\n"), 422, "mets_path");
    expect(server_->run_workflow(mets + "&page_wise=perhaps", "ocrctl-dummy -I OCR-D-IMG -O A\n"), 422, "page_wise");
    expect(server_->run_workflow("mets_path=" + (folder_ / "data/none/mets.xml").native(), "ocrctl-dummy -I OCR-D-IMG -O A\n"), 404, "no METS");
    expect(server_->run_workflow(mets, ""), 422, "workflow");
    expect(server_->request("POST", "/workflow/run?workflow_id=none&" + mets), 404, "none");
    expect(server_->run_workflow(mets, "ocrctl-dummy -I NOT-THERE -O A\n"), 422, "OCR-D-IMG (5 files)");
    expect(server_->run_workflow(mets, "nobody -I OCR-D-IMG -O A\nnobody2 -I A -O B\n"), 406, "ocrd-nobody, ocrd-nobody2");
    expect(server_->run_workflow(mets + "&page_id=PHYS_0077", "ocrctl-dummy -I OCR-D-IMG -O A\n"), 422, "PHYS_0077");
    expect(server_->run_workflow(mets + "&page_wise=1&page_id=PHYS_0077..PHYS_0079", "ocrctl-dummy -I OCR-D-IMG -O A\n"), 422, "PHYS_0077");
    expect(server_->run_workflow(mets, "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-dummy -I NOT-THERE -O B\n"), 422, "NOT-THERE");
    expect(server_->run_workflow(mets, "ocrctl-dummy -I OCR-D-IMG -O A\nocrctl-dummy -I A -O B -P no_such 1\n"), 400, "no_such");
    EXPECT_EQ(server_->get("/workflow/job/none").status, 404);
    EXPECT_EQ(server_->get("/workflow/job-simple/none").status, 404);
    nothing_happened();
}

TEST_F(SubmissionTest, TakesNothingWhileDraining) {
    EXPECT_EQ(server_->request("POST", "/v1/drain").status, 200);
    expect(server_->run("ocrd-ocrctl-dummy", job_body()), 503, "no new Jobs");
    EXPECT_EQ(server_->request("POST", "/v1/undrain").status, 200);
    EXPECT_EQ(server_->run("ocrd-ocrctl-dummy", job_body()).status, 200);
}

} // namespace
} // namespace ocrctl::server::test
