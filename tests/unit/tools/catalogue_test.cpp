#include "lib/tools/catalogue.hpp"

#include <gtest/gtest.h>

namespace ocrctl::tools {
namespace {

TEST(Catalogue, HoldsTheSixBuiltInProcessors) {
    for (std::string name : {"dummy", "binarize", "deskew", "segment", "recognize", "export"}) {
        auto const* tool = builtin_tool("ocrd-ocrctl-" + name);
        ASSERT_TRUE(tool) << name;
        EXPECT_EQ((*tool)["executable"], "ocrd-ocrctl-" + name);
    }
    EXPECT_EQ(builtin_tools().size(), 6u);
    EXPECT_FALSE(builtin_tool("ocrd-dummy"));
}

TEST(Catalogue, EveryParameterSaysItsTypeAndMeaningAndHasADefault) {
    for (auto const& [name, tool] : builtin_tools().items()) {
        for (auto key :
             {"description", "steps", "categories", "input_file_grp_cardinality", "output_file_grp_cardinality"})
            EXPECT_TRUE(tool.contains(key)) << name << " " << key;
        for (auto const& [parameter, schema] : tool["parameters"].items()) {
            EXPECT_TRUE(schema.contains("type")) << name << " " << parameter;
            EXPECT_TRUE(schema.contains("description")) << name << " " << parameter;
            EXPECT_TRUE(schema.contains("default")) << name << " " << parameter;
        }
    }
}

TEST(Catalogue, FillsInTheDefaultsOfMissingParametersOnly) {
    auto filled = with_defaults(*builtin_tool("ocrd-ocrctl-binarize"), {{"k", 0.5}});
    EXPECT_EQ(filled["k"], 0.5);
    EXPECT_EQ(filled["method"], "sauvola");
    EXPECT_EQ(with_defaults(*builtin_tool("ocrd-ocrctl-binarize"), nullptr)["window"], 0);
}

} // namespace
} // namespace ocrctl::tools
