// The bytes that foreign Workers are sent, and that a YAML reader takes them for what they are.
#include "processing_server/foreign_message.hpp"

#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

namespace ocrctl::server {
namespace {

Job job() {
    Job one;
    one.id = JobId("9b0c7f1e-64f4-4b0e-8f3a-2f6f6a1d9c11");
    one.target.name = "ocrd-dummy";
    one.foreign = true;
    one.workspace = "/data/ws";
    one.input_groups = {"OCR-D-IMG"};
    one.output_groups = {"OCR-D-BIN"};
    one.parameters = Json{{"threshold", 0.5}};
    return one;
}

std::string message(Job const& one, std::string const& page_id = "PHYS_0001") {
    return foreign_message(one, "/data/ws/mets.xml", page_id, "http://ps-host:8000", 1'771'000'000'123);
}

TEST(ForeignMessage, HoldsWhatAWorkerNeedsWithItsKeysSorted) {
    EXPECT_EQ(
        message(job()),
        R"({"created_time": 1771000000, "input_file_grps": ["OCR-D-IMG"], )"
        R"("internal_callback_url": "http://ps-host:8000/result_callback", "job_id": "9b0c7f1e-64f4-4b0e-8f3a-2f6f6a1d9c11", )"
        R"("output_file_grps": ["OCR-D-BIN"], "page_id": "PHYS_0001", "parameters": {"threshold": 0.5}, )"
        R"("path_to_mets": "/data/ws/mets.xml", "processor_name": "ocrd-dummy"})");
    auto read = YAML::Load(message(job()));
    EXPECT_EQ(read["created_time"].as<long>(), 1771000000);
    EXPECT_EQ(read["parameters"]["threshold"].as<double>(), 0.5);
    EXPECT_EQ(read["input_file_grps"][0].as<std::string>(), "OCR-D-IMG");
}

TEST(ForeignMessage, LeavesOutWhatIsEmptyAndNeverSaysNull) {
    auto one = job();
    one.output_groups.clear();
    one.parameters = Json::object();
    EXPECT_EQ(
        message(one, ""),
        R"({"created_time": 1771000000, "input_file_grps": ["OCR-D-IMG"], )"
        R"("internal_callback_url": "http://ps-host:8000/result_callback", "job_id": "9b0c7f1e-64f4-4b0e-8f3a-2f6f6a1d9c11", )"
        R"("parameters": {}, "path_to_mets": "/data/ws/mets.xml", "processor_name": "ocrd-dummy"})");
}

TEST(ForeignMessage, KeepsFromTheWorkerWhatWouldMakeItExit) {
    auto one = job();
    one.callback_url = "https://client/none";
    one.result_queue_name = "results";
    one.description = "text";
    one.depends_on = {JobId("other")};
    auto text = message(one);
    for (auto const* key :
         {"\"callback_url\"", "result_queue_name", "description", "depends_on", "workspace_id", "null"})
        EXPECT_EQ(text.find(key), std::string::npos) << key;
}

TEST(ForeignMessage, WritesNumbersThatYamlDoesNotTakeForStrings) {
    EXPECT_EQ(yaml_safe_json(Json(1e-5)), "1.0e-05");
    EXPECT_EQ(yaml_safe_json(Json(2.5e30)), "2.5e+30");
    EXPECT_EQ(yaml_safe_json(Json(1e30)), "1.0e+30");
    EXPECT_EQ(yaml_safe_json(Json(3.0)), "3.0");
    EXPECT_EQ(yaml_safe_json(Json(-7)), "-7");
    EXPECT_EQ(yaml_safe_json(Json(nullptr)), "null");
    EXPECT_EQ(yaml_safe_json(Json(true)), "true");
}

TEST(ForeignMessage, WritesTextsThatYamlReadsBack) {
    for (std::string text : {"yes", "0x10", "1_000", "2026-01-01", "", " a: b #c", "\"\\", "Größe 𝔄 ſ", "a\tb\nc\r",
                             "\x7f\x01", "\xC2\x85\xE2\x80\xA8x", "[*&!%@`]", "~"}) {
        auto written = yaml_safe_json(Json{{"k", text}});
        EXPECT_EQ(YAML::Load(written)["k"].as<std::string>(), text) << written;
        EXPECT_EQ((*parse_json(written))["k"].get<std::string>(), text) << "it is JSON too";
    }
    EXPECT_EQ(yaml_safe_json(Json("Größe 𝔄")), "\"Größe 𝔄\"") << "raw: YAML does not join surrogates";
    EXPECT_EQ(yaml_safe_json(Json("\xC2\x85\x7f\xE2\x80\xA8\x1b")), R"("\u0085\u007f\u2028\u001b")");
    EXPECT_EQ(yaml_safe_json(Json("a\xff")), "\"a\xEF\xBF\xBD\"");
}

} // namespace
} // namespace ocrctl::server
