#include "cmd/commands.hpp"
#include "lib/base/files.hpp"
#include "lib/model/json.hpp"

#include <CLI/CLI.hpp>
#include <gtest/gtest.h>
#include <unistd.h>

namespace ocrctl {
namespace {

struct Outcome {
    int exit_code;
    std::string out, err;
};

class Validate : public testing::Test {
protected:
    Validate() : folder_(std::filesystem::temp_directory_path() / fmt::format("ocrctl-validate-{}", getpid())) { std::filesystem::create_directories(folder_); }
    ~Validate() override { remove_tree(folder_); }

    std::string file(std::string_view yaml) {
        auto path = folder_ / "config.yml";
        EXPECT_TRUE(write_file_atomically(path, yaml));
        return path.string();
    }

    Outcome run(std::vector<std::string> arguments) {
        CLI::App app;
        int exit_code = -1;
        add_validate(app, exit_code);
        std::reverse(arguments.begin(), arguments.end());
        testing::internal::CaptureStdout();
        testing::internal::CaptureStderr();
        app.parse(std::move(arguments));
        auto out = testing::internal::GetCapturedStdout();
        return {exit_code, out, testing::internal::GetCapturedStderr()};
    }

    std::filesystem::path folder_;
};

TEST_F(Validate, PrintsEveryProblemOnStderrAndExitsWith2) {
    auto config = file("nam: x\nlisten: {port: 0}\n");
    auto outcome = run({"validate", config});
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(outcome.err, fmt::format("{0}:1:1: nam: unknown key (did you mean \"name\"?)\n"
                                       "{0}:2:16: listen.port: expected a whole number from 1 to 65535, got 0\n"
                                       "{0}: 2 problems\n",
                                       config));
}

TEST_F(Validate, SummarisesAGoodConfiguration) {
    auto config = file("name: demo\nhosts:\n  - {name: here, connection: local, workers: [{name: ocrd-ocrctl-dummy, instances: 3}]}\n"
                       "  - {address: ocr1, username: ocr, ssh_agent: true}\n");
    auto outcome = run({"validate", config});
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_EQ(outcome.err, "");
    EXPECT_EQ(outcome.out, fmt::format("{}: valid\n"
                                       "demo: 2 hosts with 3 Workers, server at 127.0.0.1:8080\n"
                                       "  queue native, database embedded\n"
                                       "  here (this machine): 3 x ocrd-ocrctl-dummy\n"
                                       "  ocr1 (ssh ocr@ocr1:22): no Workers\n",
                                       config));
}

TEST_F(Validate, SpeaksJsonToPrograms) {
    auto bad = run({"validate", "--json", file("nam: x\n")});
    EXPECT_EQ(bad.exit_code, 2);
    auto document = parse_json(bad.out);
    ASSERT_TRUE(document);
    EXPECT_EQ((*document)["valid"], false);
    EXPECT_EQ((*document)["problems"][0]["path"], "nam");
    EXPECT_EQ((*document)["problems"][0]["line"], 1);
    auto good = parse_json(run({"validate", "--json", file("name: x\n")}).out);
    ASSERT_TRUE(good);
    EXPECT_EQ((*good)["valid"], true);
    EXPECT_EQ((*good)["deployment"]["name"], "x");
}

TEST_F(Validate, NamesAMissingFile) {
    auto outcome = run({"validate", "/nowhere.yml"});
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_EQ(outcome.err, "/nowhere.yml: cannot be read: No such file or directory\n/nowhere.yml: 1 problem\n");
}

TEST_F(Validate, NeverPrintsAPassword) {
    auto config = file("process_queue: {credentials: {username: u, password: hunter2}}\nhosts: [{address: a, username: u, password: hunter2, workers: [{name: ocrd-ocrctl-dummy}]}]\n");
    for (auto const& outcome : {run({"validate", config}), run({"validate", config, "--json"})}) {
        EXPECT_EQ(outcome.exit_code, 0);
        EXPECT_EQ((outcome.out + outcome.err).find("hunter2"), std::string::npos);
    }
}

} // namespace
} // namespace ocrctl
