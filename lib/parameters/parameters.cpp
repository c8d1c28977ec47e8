#include "lib/parameters/parameters.hpp"

#include "lib/base/text.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#define VALIJSON_USE_EXCEPTIONS 1 // without it a broken schema aborts the process
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>
#include <vector>

namespace ocrctl::parameters {

namespace {

/// What a value may be held to. Others are left out on purpose: `format` is not enforced by OCR-D either, `pattern`
/// would run std::regex, which overflows the stack on long texts, and `$ref` would load other documents.
constexpr std::array kKept = {"type",          "enum",     "const",    "minimum",  "maximum",     "exclusiveMinimum", "exclusiveMaximum",
                              "multipleOf",    "minLength", "maxLength", "minItems", "maxItems",   "uniqueItems",      "minProperties",
                              "maxProperties", "required"};

/// One declared value as plain JSON Schema: OCR-D's own keys go, and its `required: true` on a member moves to the
/// list of the object around it.
Json value_schema(Json const& declared, int depth = 0) {
    if (!declared.is_object() || depth > 20) return declared.is_boolean() ? declared : Json::object();
    Json schema = Json::object();
    for (auto const* key : kKept)
        if (declared.contains(key)) schema[key] = declared[key];
    if (schema.contains("required") && !schema["required"].is_array()) schema.erase("required");
    // Drafts before 6 said `exclusiveMinimum: true` beside `minimum`.
    for (auto [flag, bound] : {std::pair("exclusiveMinimum", "minimum"), std::pair("exclusiveMaximum", "maximum")}) {
        if (!schema.contains(flag) || !schema[flag].is_boolean()) continue;
        bool exclusive = schema[flag].get<bool>();
        schema.erase(flag);
        if (!exclusive || !schema.contains(bound)) continue;
        schema[flag] = schema[bound];
        schema.erase(bound);
    }
    if (declared.contains("properties") && declared["properties"].is_object()) {
        schema["properties"] = Json::object();
        for (auto const& [name, member] : declared["properties"].items()) {
            schema["properties"][name] = value_schema(member, depth + 1);
            if (member.is_object() && member.contains("required") && member["required"] == true) schema["required"].push_back(name);
        }
    }
    for (auto const* key : {"additionalProperties", "items"})
        if (declared.contains(key) && (declared[key].is_object() || declared[key].is_boolean())) schema[key] = value_schema(declared[key], depth + 1);
    return schema;
}

Json const& declared_parameters(Json const& tool) {
    static Json const none = Json::object();
    auto found = tool.is_object() ? tool.find("parameters") : tool.end();
    return found != tool.end() && found->is_object() ? *found : none;
}

/// A value as OCR-D's messages show it: texts in single quotes, long ones cut.
std::string shown(Json const& value) {
    auto text = value.is_string() ? fmt::format("'{}'", value.get<std::string>()) : dump(value);
    if (text.size() <= 80) return text;
    std::size_t cut = 77;
    while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut; // not inside a character
    return text.substr(0, cut) + "...";
}

std::string shown_list(Json const& values) {
    std::vector<std::string> all;
    for (auto const& value : values) all.push_back(shown(value));
    return "[" + join(all, ", ") + "]";
}

bool is_of_type(Json const& value, std::string const& type) {
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_boolean();
    if (type == "number") return value.is_number();
    if (type == "integer") return value.is_number_integer() || (value.is_number_float() && value.get<double>() == static_cast<double>(static_cast<std::int64_t>(value.get<double>())));
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    if (type == "null") return value.is_null();
    return true;
}

/// valijson says that something is wrong and where; this says what, in OCR-D's words. Nothing if the schema of that
/// place does not explain it.
std::optional<std::string> explain(Json const& schema, Json const& value) {
    if (schema.contains("type") && schema["type"].is_string() && !is_of_type(value, schema["type"].get<std::string>()))
        return fmt::format("{} is not of type '{}'", shown(value), schema["type"].get<std::string>());
    if (schema.contains("enum") && schema["enum"].is_array() && std::ranges::find(schema["enum"], value) == schema["enum"].end())
        return fmt::format("{} is not one of {}", shown(value), shown_list(schema["enum"]));
    if (value.is_number()) {
        auto number = value.get<double>();
        auto bound = [&](char const* key) -> std::optional<double> {
            return schema.contains(key) && schema[key].is_number() ? std::optional(schema[key].get<double>()) : std::nullopt;
        };
        if (auto low = bound("minimum"); low && number < *low) return fmt::format("{} is less than the minimum of {}", shown(value), *low);
        if (auto high = bound("maximum"); high && number > *high) return fmt::format("{} is greater than the maximum of {}", shown(value), *high);
        if (auto low = bound("exclusiveMinimum"); low && number <= *low) return fmt::format("{} is less than or equal to the minimum of {}", shown(value), *low);
        if (auto high = bound("exclusiveMaximum"); high && number >= *high) return fmt::format("{} is greater than or equal to the maximum of {}", shown(value), *high);
        if (auto step = bound("multipleOf")) return fmt::format("{} is not a multiple of {}", shown(value), *step);
    }
    return {};
}

/// A place inside the parameters: {"<root>", "[key]", "[0]"} as valijson names it.
struct Place {
    std::vector<std::string> parts;
    std::string text() const { return join(parts, "."); }
};

Place place_of(std::vector<std::string> const& context) {
    Place place;
    for (std::size_t i = 1; i < context.size(); ++i) {
        auto part = context[i];
        if (part.size() >= 2 && part.front() == '[' && part.back() == ']') part = part.substr(1, part.size() - 2);
        place.parts.push_back(part);
    }
    return place;
}

/// Steps from a schema and a value to one of their members; false if there is none.
bool step_into(std::string const& part, Json const*& schema, Json const*& value) {
    static Json const anything = Json::object();
    if (value->is_array()) {
        std::size_t index = 0;
        auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
        if (error != std::errc() || end != part.data() + part.size() || index >= value->size()) return false;
        value = &(*value)[index];
        schema = schema->contains("items") ? &(*schema)["items"] : &anything;
    } else if (value->is_object() && value->contains(part)) {
        value = &(*value)[part];
        if (schema->contains("properties") && (*schema)["properties"].contains(part)) schema = &(*schema)["properties"][part];
        else schema = schema->contains("additionalProperties") ? &(*schema)["additionalProperties"] : &anything;
    } else {
        return false;
    }
    if (!schema->is_object()) schema = &anything;
    return true;
}

std::vector<std::string> names_of(Json const& object) {
    std::vector<std::string> names;
    for (auto const& [name, _] : object.items()) names.push_back(name);
    return names;
}

/// The faults of an object that lie in its keys, not in its values; false if there are none.
bool key_faults(std::string const& place, Json const& schema, Json const& value, std::vector<std::string>& faults) {
    if (!value.is_object()) return false;
    auto before = faults.size();
    if (schema.contains("additionalProperties") && schema["additionalProperties"] == false) {
        auto const& properties = schema.contains("properties") ? schema["properties"] : Json::object();
        auto known = names_of(properties);
        for (auto const& [name, _] : value.items()) {
            if (properties.contains(name)) continue;
            auto near = closest(name, known);
            faults.push_back(fmt::format("[{}] Additional properties are not allowed ('{}' was unexpected{})", place, name,
                                         near.empty() ? "" : fmt::format("; did you mean '{}'?", near)));
        }
    }
    if (schema.contains("required"))
        for (auto const& name : schema["required"])
            if (name.is_string() && !value.contains(name.get<std::string>()))
                faults.push_back(fmt::format("[{}] '{}' is a required property", place, name.get<std::string>()));
    return faults.size() > before;
}

/// valijson's list in OCR-D's words. An error of an outer place that only repeats that an inner one failed is dropped.
std::vector<std::string> faults_of(Json const& schema, Json const& checked, valijson::ValidationResults const& results) {
    std::vector<std::string> faults;
    auto add = [&faults](std::string fault) {
        if (std::ranges::find(faults, fault) == faults.end()) faults.push_back(std::move(fault));
    };
    std::vector<std::string> seconds; // said only if nothing better is found
    for (auto const& error : results) {
        auto place = place_of(error.context);
        Json const* inner_schema = &schema;
        Json const* inner_value = &checked;
        bool found = std::ranges::all_of(place.parts, [&](auto const& part) { return step_into(part, inner_schema, inner_value); });
        std::vector<std::string> of_keys;
        if (found && key_faults(place.text(), *inner_schema, *inner_value, of_keys)) {
            for (auto& fault : of_keys) add(std::move(fault));
        } else if (auto text = found ? explain(*inner_schema, *inner_value) : std::nullopt) {
            add(fmt::format("[{}] {}", place.text(), *text));
        } else {
            seconds.push_back(fmt::format("[{}] {}", place.text(), error.description));
        }
    }
    if (faults.empty()) faults = std::move(seconds);
    std::ranges::sort(faults); // valijson's order is none
    return faults;
}

} // namespace

Result<Json> checked_parameters(Json const& tool, Json const& parameters) {
    if (!parameters.is_object()) return fail(ErrorKind::Invalid, "[] {} is not of type 'object'", shown(parameters));
    auto const& declared = declared_parameters(tool);

    Json schema = value_schema({{"properties", declared}});
    schema["type"] = "object";
    schema["additionalProperties"] = false;

    auto checked = tools::with_defaults(tool, parameters);
    std::vector<std::string> faults;
    try {
        valijson::Schema compiled;
        valijson::SchemaParser parser(valijson::SchemaParser::kDraft7);
        parser.populateSchema(valijson::adapters::NlohmannJsonAdapter(schema), compiled);
        valijson::Validator validator(valijson::Validator::kStrongTypes);
        valijson::ValidationResults results;
        if (!validator.validate(compiled, valijson::adapters::NlohmannJsonAdapter(checked), &results)) {
            faults = faults_of(schema, checked, results);
            if (faults.empty()) faults.push_back("[] does not match what the Processor declares");
        }
    } catch (std::exception const& broken) {
        return fail(ErrorKind::Internal, "the tool JSON of {} declares its parameters wrongly: {}",
                    tool.is_object() ? tool.value("executable", "a Processor") : "a Processor", broken.what());
    }
    for (auto const& [name, _] : parameters.items())
        if (declared.contains(name) && declared[name].is_object() && declared[name].contains("deprecated") && declared[name]["deprecated"] == true)
            faults.push_back(fmt::format("[{}] is deprecated", name));
    if (!faults.empty()) return fail(ErrorKind::Invalid, "{}", join(faults, "; "));
    return checked;
}

Result<void> check_parameters(Json const& tool, Json const& parameters) {
    auto checked = checked_parameters(tool, parameters);
    if (!checked) return fail(checked.error());
    return {};
}

} // namespace ocrctl::parameters
