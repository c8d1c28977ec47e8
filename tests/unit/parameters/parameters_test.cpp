#include "lib/parameters/parameters.hpp"
#include "lib/tools/catalogue.hpp"

#include <gtest/gtest.h>

namespace ocrctl::parameters {
namespace {

Json const kTool = Json::parse(R"({
  "executable": "ocrd-x",
  "parameters": {
    "copy_files": {"type": "boolean", "description": "d", "default": false},
    "model": {"type": "string", "description": "d", "required": true, "format": "uri", "content-type": "application/x", "cacheable": true},
    "level": {"type": "string", "description": "d", "enum": ["region", "line"], "default": "line"},
    "dpi": {"type": "number", "description": "d", "minimum": 0, "maximum": 2400, "format": "integer"},
    "share": {"type": "number", "description": "d", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "step": {"type": "number", "description": "d", "multipleOf": 2},
    "classes": {"type": "array", "description": "d", "items": {"type": "string"}},
    "more": {"type": "object", "description": "d", "additionalProperties": false, "properties": {"a": {"type": "number", "required": true}, "b": {"type": "number"}}},
    "map": {"type": "object", "description": "d", "additionalProperties": {"type": "number"}},
    "old": {"type": "string", "description": "d", "deprecated": true}
  }
})");

std::string fault(Json const& parameters) {
    auto result = check_parameters(kTool, parameters);
    return result ? "" : result.error().message();
}

TEST(Parameters, FillsTheDeclaredDefaultsIntoACopy) {
    Json given = {{"model", "m"}};
    auto checked = checked_parameters(kTool, given);
    ASSERT_TRUE(checked);
    EXPECT_EQ(*checked, Json::parse(R"({"model":"m","copy_files":false,"level":"line"})"));
    EXPECT_EQ(given.size(), 1u);
}

TEST(Parameters, WordsItsFindingsAsOcrdDoes) {
    EXPECT_EQ(fault({{"model", "m"}, {"copy_files", 3}}), "[copy_files] 3 is not of type 'boolean'");
    EXPECT_EQ(fault({{"model", "m"}, {"level", "page"}}), "[level] 'page' is not one of ['region', 'line']");
    EXPECT_EQ(fault({{"model", "m"}, {"dpi", -1}}), "[dpi] -1 is less than the minimum of 0");
    EXPECT_EQ(fault({{"model", "m"}, {"dpi", 3000}}), "[dpi] 3000 is greater than the maximum of 2400");
    EXPECT_EQ(fault({{"model", "m"}, {"share", 0}}), "[share] 0 is less than or equal to the minimum of 0");
    EXPECT_EQ(fault({{"model", "m"}, {"share", 1.0}}), "[share] 1.0 is greater than or equal to the maximum of 1");
    EXPECT_EQ(fault({{"model", "m"}, {"step", 3}}), "[step] 3 is not a multiple of 2");
    EXPECT_EQ(fault(Json::object()), "[] 'model' is a required property");
    EXPECT_EQ(fault({{"model", "m"}, {"copy_file", true}}), "[] Additional properties are not allowed ('copy_file' was unexpected; did you mean 'copy_files'?)");
    EXPECT_EQ(fault({{"model", "m"}, {"classes", {"a", 1}}}), "[classes.1] 1 is not of type 'string'");
    EXPECT_EQ(fault({{"model", "m"}, {"more", {{"a", "x"}}}}), "[more.a] 'x' is not of type 'number'");
    EXPECT_EQ(fault({{"model", "m"}, {"more", {{"b", 1}}}}), "[more] 'a' is a required property");
    EXPECT_EQ(fault({{"model", "m"}, {"more", {{"a", 1}, {"zzz", 1}}}}), "[more] Additional properties are not allowed ('zzz' was unexpected)");
    EXPECT_EQ(fault({{"model", "m"}, {"map", {{"k", "v"}}}}), "[map.k] 'v' is not of type 'number'");
    EXPECT_EQ(fault({{"model", "m"}, {"old", "x"}}), "[old] is deprecated");
    EXPECT_EQ(fault(nullptr), "[] null is not of type 'object'");
}

TEST(Parameters, NamesAllFindingsAtOnce) {
    auto text = fault({{"copy_files", 3}, {"level", 1}});
    EXPECT_NE(text.find("[copy_files] 3 is not of type 'boolean'"), std::string::npos) << text;
    EXPECT_NE(text.find("[level] 1 is not of type 'string'"), std::string::npos) << text;
    EXPECT_NE(text.find("[] 'model' is a required property"), std::string::npos) << text;
}

TEST(Parameters, AcceptWhatIsDeclared) {
    EXPECT_EQ(fault(Json::parse(R"({"model":"m","dpi":300,"share":0.5,"step":4,"classes":["a"],"more":{"a":1},"map":{"k":1.5},"copy_files":true})")), "");
    EXPECT_EQ(fault(Json::parse(R"({"model":"m","dpi":300.5})")), "") << "format is not enforced";
}

TEST(Parameters, RequiredStaysRequiredAtTheSecondCheck) {
    EXPECT_NE(fault(Json::object()), "");
    EXPECT_NE(fault(Json::object()), "");
    EXPECT_EQ(kTool["parameters"]["model"]["required"], true);
}

TEST(Parameters, ToolsWithoutParametersTakeNone) {
    Json tool = {{"executable", "ocrd-y"}};
    EXPECT_TRUE(check_parameters(tool, Json::object()));
    EXPECT_FALSE(check_parameters(tool, {{"x", 1}}));
}

TEST(Parameters, ABrokenToolJsonIsAnErrorNotACrash) {
    Json tool = Json::parse(R"({"executable":"ocrd-y","parameters":{"x":{"type":"strange","enum":3,"items":[],"required":"yes","minimum":"a"}}})");
    auto result = check_parameters(tool, {{"x", 1}});
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message(), "");
    EXPECT_FALSE(check_parameters(Json::array(), {{"x", 1}}));
}

TEST(Parameters, LongValuesAreCutInMessages) {
    EXPECT_EQ(fault({{"model", "m"}, {"copy_files", std::string(500, 'a')}}), "[copy_files] '" + std::string(76, 'a') + "... is not of type 'boolean'");
}

TEST(Parameters, TheBuiltInToolsAcceptTheirOwnDefaults) {
    for (auto const& [name, tool] : tools::builtin_tools().items()) {
        Json given = Json::object();
        for (auto const& [parameter, declared] : tool["parameters"].items())
            if (declared.contains("default")) given[parameter] = declared["default"];
        auto result = check_parameters(tool, given);
        EXPECT_TRUE(result) << name << ": " << (result ? "" : result.error().message());
    }
}

} // namespace
} // namespace ocrctl::parameters
