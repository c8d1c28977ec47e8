#include "lib/tools/catalogue.hpp"

namespace ocrctl::tools {

extern char const kBuiltinToolsText[];
extern char const kVersion[];

namespace {

Json expanded() {
    Json tools = Json::parse(kBuiltinToolsText);
    for (auto& tool : tools) {
        if (!tool.contains("resource_locations")) tool["resource_locations"] = {"data", "cwd", "system", "module"};
        for (auto& parameter : tool["parameters"])
            if (!parameter.contains("cacheable")) parameter["cacheable"] = false;
    }
    return tools;
}

} // namespace

Json const& builtin_tools() {
    static Json const tools = expanded();
    return tools;
}

Json const* builtin_tool(std::string_view executable) {
    auto const& tools = builtin_tools();
    auto found = tools.find(std::string(executable));
    return found == tools.end() ? nullptr : &*found;
}

Json with_defaults(Json const& tool, Json parameters) {
    if (!parameters.is_object()) parameters = Json::object();
    auto declared = tool.find("parameters");
    if (declared == tool.end()) return parameters;
    for (auto const& [name, schema] : declared->items()) {
        auto value = schema.find("default");
        if (value != schema.end() && !parameters.contains(name)) parameters[name] = *value;
    }
    return parameters;
}

std::string agent_name(std::string_view executable) {
    return fmt::format("{} v{}", executable, version());
}

std::string_view version() noexcept {
    return kVersion;
}

} // namespace ocrctl::tools
