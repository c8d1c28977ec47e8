#include "processing_server/openapi.hpp"

#include "lib/base/text.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <fmt/format.h>

namespace ocrctl::server {

extern char const kOpenApiText[];

namespace {

std::string escaped(std::string_view text) {
    std::string out;
    for (char c : text) {
        if (c == '&')
            out += "&amp;";
        else if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '"')
            out += "&quot;";
        else
            out += c;
    }
    return out;
}

/// "string", "list of string", "PYJobInput (optional)": what a reader wants to know of a schema.
std::string type_of(Json const& schema) {
    if (!schema.is_object()) return "anything";
    if (auto ref = schema.find("$ref"); ref != schema.end()) {
        auto name = ref->get<std::string>();
        name = name.substr(name.rfind('/') + 1);
        return fmt::format("<a href=\"#{0}\">{0}</a>", escaped(name));
    }
    if (auto any = schema.find("anyOf"); any != schema.end()) {
        std::vector<std::string> names;
        for (auto const& one : *any) names.push_back(type_of(one));
        return join(names, " or ");
    }
    if (auto all = schema.find("allOf"); all != schema.end()) {
        std::vector<std::string> names;
        for (auto const& one : *all) names.push_back(type_of(one));
        return join(names, " and ");
    }
    auto type = schema.find("type");
    if (type == schema.end()) return "anything";
    std::string text;
    if (type->is_array()) {
        std::vector<std::string> names;
        for (auto const& one : *type) names.push_back(one.get<std::string>());
        text = join(names, " or ");
    } else {
        text = type->get<std::string>();
    }
    if (text.starts_with("array") && schema.contains("items")) text = "list of " + type_of(schema["items"]);
    if (auto values = schema.find("enum"); values != schema.end()) {
        std::vector<std::string> names;
        for (auto const& one : *values) names.push_back(one.is_string() ? one.get<std::string>() : dump(one));
        text = escaped(join(names, ", "));
    }
    return text;
}

std::string about(Json const& schema) {
    return schema.is_object() ? escaped(schema.value("description", "")) : "";
}

std::string row(std::string const& name, std::string const& type, std::string const& text, bool required) {
    return fmt::format("<tr><td><code>{}</code></td><td>{}{}</td><td>{}</td></tr>\n", escaped(name), type,
                       required ? "" : ", optional", text);
}

void members(Json const& schema, std::string& page) {
    if (auto all = schema.find("allOf"); all != schema.end())
        for (auto const& one : *all) members(one, page);
    auto required = schema.value("required", std::vector<std::string>());
    for (auto const& [name, member] : schema.value("properties", Json::object()).items())
        page += row(name, type_of(member), about(member), std::ranges::find(required, name) != required.end());
}

void describe(std::string const& method, std::string const& path, Json const& operation, std::string& page) {
    std::string upper(method);
    std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return std::toupper(c); });
    page += fmt::format("<h3><code>{} {}</code></h3>\n<p>{}. {}</p>\n<table>\n", upper, escaped(path),
                        escaped(operation.value("summary", "")), about(operation));
    for (auto const& parameter : operation.value("parameters", Json::array()))
        page += row(fmt::format("{} ({})", parameter.value("name", ""), parameter.value("in", "")),
                    type_of(parameter.value("schema", Json::object())),
                    about(parameter) + about(parameter.value("schema", Json::object())),
                    parameter.value("required", false));
    if (auto body = operation.find("requestBody"); body != operation.end())
        for (auto const& [media, content] : (*body)["content"].items())
            page += row("body", type_of(content["schema"]), escaped(media), true);
    for (auto const& [status, response] : operation.value("responses", Json::object()).items()) {
        std::string type;
        for (auto const& [media, content] : response.value("content", Json::object()).items())
            type = type_of(content["schema"]);
        page += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n", status == "default" ? "else" : status, type,
                            about(response));
    }
    page += "</table>\n";
}

} // namespace

Json openapi(net::Router const& router) {
    auto document = Json::parse(kOpenApiText);
    document["info"]["version"] = std::string(tools::version());
    for (auto [method, path] : router.routes()) {
        std::ranges::transform(method, method.begin(), [](unsigned char c) { return std::tolower(c); });
        auto& item = document["paths"][path];
        if (!item.contains(method))
            item[method] =
                Json{{"x-undocumented", true}, {"responses", {{"default", {{"description", "not described"}}}}}};
    }
    return document;
}

std::string docs_page(Json const& document) {
    std::string page =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>ocrctl processing server</title>\n"
        "<style>body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 "
        "1em}table{border-collapse:collapse;margin:.5em 0 1.5em}"
        "td{border-top:1px solid #ccc;padding:.2em .8em .2em "
        "0;vertical-align:top}h3{margin-bottom:.2em}</style></head><body>\n";
    page += fmt::format("<h1>{} {}</h1>\n<p>{} For programs: <a href=\"/openapi.json\">/openapi.json</a></p>\n",
                        escaped(document["info"].value("title", "")), escaped(document["info"].value("version", "")),
                        about(document["info"]));
    for (auto const& tag : document["tags"]) {
        auto name = tag.value("name", "");
        page += fmt::format("<h2>{}</h2>\n<p>{}</p>\n", escaped(name), about(tag));
        for (auto const& [path, item] : document["paths"].items())
            for (auto const& [method, operation] : item.items()) {
                auto tags = operation.value("tags", std::vector<std::string>{"ocrctl"});
                if (std::ranges::find(tags, name) != tags.end()) describe(method, path, operation, page);
            }
    }
    page += "<h2>Documents</h2>\n";
    for (auto const& [name, schema] : document["components"]["schemas"].items()) {
        page += fmt::format("<h3 id=\"{0}\"><code>{0}</code></h3>\n<p>{1}</p>\n", escaped(name), about(schema));
        if (schema.contains("properties") || schema.contains("allOf")) {
            page += "<table>\n";
            members(schema, page);
            page += "</table>\n";
        } else {
            page += "<p>" + type_of(schema) + "</p>\n";
        }
    }
    return page + "</body></html>\n";
}

} // namespace ocrctl::server
