#include "processing_server/workflow_script.hpp"

#include "lib/base/files.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

namespace ocrctl::server {
namespace {

using Groups = std::vector<std::string>;

std::vector<WorkflowTask> tasks_of(std::string_view script) {
    auto tasks = parse_workflow(script);
    if (!tasks) {
        ADD_FAILURE() << tasks.error().message();
        return {};
    }
    return *tasks;
}

std::string fault(std::string_view script) {
    auto tasks = parse_workflow(script);
    if (tasks) return "";
    EXPECT_EQ(tasks.error().http_status(), 422);
    return tasks.error().message();
}

TEST(WorkflowScript, ReadsOneTaskALine) {
    auto tasks = tasks_of("ocrctl-binarize -I OCR-D-IMG -O OCR-D-BIN -P k 0.3\n\n"
                          "tesserocr-recognize -I OCR-D-BIN,OCR-D-SEG -I MORE -O OCR-D-OCR -p '{\"model\": \"Fraktur\", \"dpi\": 300}' -P dpi 400 -P model frk\r\n");
    ASSERT_EQ(tasks.size(), 2u);
    EXPECT_EQ(tasks[0].processor, "ocrd-ocrctl-binarize");
    EXPECT_EQ(tasks[0].input_groups, Groups{"OCR-D-IMG"});
    EXPECT_EQ(tasks[0].output_groups, Groups{"OCR-D-BIN"});
    EXPECT_EQ(tasks[0].parameters, Json({{"k", 0.3}}));
    EXPECT_EQ(tasks[0].line, 1);
    EXPECT_EQ(tasks[1].processor, "ocrd-tesserocr-recognize");
    EXPECT_EQ(tasks[1].input_groups, (Groups{"OCR-D-BIN", "OCR-D-SEG", "MORE"}));
    EXPECT_EQ(tasks[1].parameters, Json::parse(R"({"model":"frk","dpi":400})"));
    EXPECT_EQ(tasks[1].line, 3);
}

TEST(WorkflowScript, ValuesOfSingleParametersAreJsonIfTheyCanBe) {
    auto tasks = tasks_of(R"(dummy -I A -O B -P a true -P b 0.5 -P c Fraktur -P d '"true"' -P e '[1, 2]' -P f null -P g 007 -P h '')");
    EXPECT_EQ(tasks.at(0).parameters, Json::parse(R"({"a":true,"b":0.5,"c":"Fraktur","d":"true","e":[1,2],"f":null,"g":"007","h":""})"));
}

TEST(WorkflowScript, LaterObjectsOverrideEarlierOnesKeyByKey) {
    auto tasks = tasks_of(R"(dummy -I A -O B -p '{"a": 1, "b": {"x": 1}}' -p '{"b": {"y": 2}}' -p ' ')");
    EXPECT_EQ(tasks.at(0).parameters, Json::parse(R"({"a":1,"b":{"y":2}})"));
}

TEST(WorkflowScript, TakesParametersFromAFileWithHashLines) {
    auto file = std::filesystem::temp_directory_path() / fmt::format("ocrctl-workflow-{}.json", getpid());
    ASSERT_TRUE(write_file_atomically(file, "# a comment\n{\"dpi\": 300,\n  # another\n \"name\": \"# kept\"}\n"));
    auto tasks = tasks_of(fmt::format("dummy -I A -O B -p {}", file.string()));
    EXPECT_EQ(tasks.at(0).parameters, Json::parse(R"({"dpi":300,"name":"# kept"})"));
    ASSERT_TRUE(write_file_atomically(file, "nonsense"));
    EXPECT_NE(fault(fmt::format("dummy -I A -O B -p {}", file.string())).find("the parameter file"), std::string::npos);
    std::filesystem::remove(file);
}

TEST(WorkflowScript, SplitsWordsAsAShellDoes) {
    EXPECT_EQ(*split_shell_words(R"(a 'b c' "d e" f\ g '' h"i"'j')"), (Groups{"a", "b c", "d e", "f g", "", "hij"}));
    EXPECT_EQ(*split_shell_words(R"("a\"b\\c\d" 'a\b' # x)"), (Groups{R"(a"b\c\d)", R"(a\b)", "#", "x"}));
    EXPECT_EQ(*split_shell_words("  \t "), Groups{});
}

TEST(WorkflowScript, CutsAtEveryUnicodeLineBoundary) {
    EXPECT_EQ(tasks_of("a -I A -O B\rb -I A -O B\vc -I A -O B\fd -I A -O B\xC2\x85" "e -I A -O B\xE2\x80\xA8" "f -I A -O B").size(), 6u);
}

TEST(WorkflowScript, NamesTheLineOfEachFault) {
    EXPECT_EQ(fault("dummy -I A -O B\n# comment\n"),
              "line 2 of the workflow: \"comment\" is neither an option nor the argument of one (a workflow has no comments)");
    EXPECT_EQ(fault("dummy -I A -O B -g PHYS_1"), "line 1 of the workflow: unknown option \"-g\"; a task has -I, -O, -p and -P");
    EXPECT_EQ(fault("dummy -I A -O B --overwrite"), "line 1 of the workflow: unknown option \"--overwrite\"; a task has -I, -O, -p and -P");
    EXPECT_EQ(fault("dummy -I A -O B stray"), "line 1 of the workflow: \"stray\" is neither an option nor the argument of one");
    EXPECT_EQ(fault("\n\ndummy -I A -O 'B"), "line 3 of the workflow: a quote (') is not closed");
    EXPECT_EQ(fault("dummy -I A -O B\\"), "line 1 of the workflow: nothing follows the backslash at the end");
    EXPECT_EQ(fault("dummy -I A -O B -p nofile"), "line 1 of the workflow: the JSON after -p is neither a readable file nor JSON");
    EXPECT_EQ(fault("dummy -I A -O B -p '[1]'"), "line 1 of the workflow: the JSON after -p is no object");
    EXPECT_EQ(fault("dummy -I A -O B -P key"), "line 1 of the workflow: -P needs a key and a value after it");
}

TEST(WorkflowScript, RefusesWhatMakesOcrdAnswer500) {
    EXPECT_EQ(fault("dummy -O B -I"), "line 1 of the workflow: -I needs a word after it");
    EXPECT_EQ(fault("dummy -I A -O"), "line 1 of the workflow: -O needs a word after it");
    EXPECT_EQ(fault("dummy -I A -O B -p"), "line 1 of the workflow: -p needs a word after it");
    EXPECT_EQ(fault("dummy -I A"), "line 1 of the workflow: ocrd-dummy has no output file group (-O)");
    EXPECT_EQ(fault("dummy -O A"), "line 1 of the workflow: ocrd-dummy has no input file group (-I)");
    EXPECT_EQ(fault("dummy -I A,,B -O C"), "line 1 of the workflow: -I \"A,,B\" holds an empty name of a file group");
    EXPECT_EQ(fault("dummy -I '' -O C"), "line 1 of the workflow: -I names no file group");
    EXPECT_EQ(fault("''"), "line 1 of the workflow: the name of the Processor is empty");
    EXPECT_EQ(fault(""), "the workflow has no task");
    EXPECT_EQ(fault(" \n \n"), "the workflow has no task");
}

TEST(WorkflowScript, TheFileOfAParameterMustBeAFile) {
    EXPECT_NE(fault("dummy -I A -O B -p /dev/zero"), "");
    EXPECT_NE(fault("dummy -I A -O B -p /tmp"), "");
}

TEST(WorkflowScript, TasksWaitForTheLatestWriterOfEachInput) {
    auto tasks = tasks_of("a -I IMG -O BIN\n"
                          "b -I BIN -O SEG\n"
                          "c -I BIN -O BIN\n"
                          "d -I BIN,SEG -O OCR\n"
                          "e -I IMG -O X\n"
                          "f -I SEG,SEG,OCR -O Y\n");
    using Needs = std::vector<std::vector<std::size_t>>;
    EXPECT_EQ(dependencies(tasks), (Needs{{}, {0}, {0}, {2, 1}, {}, {1, 3}}));
}

} // namespace
} // namespace ocrctl::server
