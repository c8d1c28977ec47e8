#include "processing_server/mets_calls.hpp"

#include <algorithm>
#include <array>

namespace ocrctl::server {

using net::Response;
using What = MetsCall::What;

namespace {

struct Known {
    std::string_view method, path;
    What what;
};
constexpr std::array kCalls{
    Known{"GET", "workspace_path", What::WorkspacePath},
    Known{"GET", "unique_identifier", What::Identifier},
    Known{"GET", "physical_pages", What::Pages},
    Known{"GET", "file_groups", What::Groups},
    Known{"GET", "agent", What::Agents},
    Known{"POST", "agent", What::AddAgent},
    Known{"GET", "file", What::Find},
    Known{"POST", "file", What::AddFile},
    Known{"PUT", "", What::Save},
    Known{"POST", "reload", What::Reload},
    Known{"DELETE", "", What::Stop},
};

/// FastAPI's list of what is wrong with a request.
class Faults {
public:
    void add(std::string_view type, Json place, std::string_view text, Json input = nullptr) {
        list_.push_back(Json{{"type", type}, {"loc", std::move(place)}, {"msg", text}, {"input", std::move(input)}});
    }
    bool any() const noexcept { return !list_.empty(); }
    Response response() const { return Response::json(422, Json{{"detail", list_}}); }

private:
    Json list_ = Json::array();
};

std::optional<std::string> field(MetsRequest const& request, std::string_view name) {
    for (auto const& [key, value] : request.fields)
        if (key == name) return value;
    return std::nullopt;
}

std::optional<bool> boolean(std::string text) {
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (auto const* yes : {"true", "1", "yes", "on", "t", "y"})
        if (text == yes) return true;
    for (auto const* no : {"false", "0", "no", "off", "f", "n"})
        if (text == no) return false;
    return std::nullopt;
}

mets::Query query_of(MetsRequest const& request) {
    // An empty criterion is none, but for the page: no page has the name "".
    auto wanted = [&](std::string_view name) {
        auto value = field(request, name);
        return value && value->empty() ? std::nullopt : value;
    };
    mets::Query query;
    query.group = wanted("file_grp");
    query.id = wanted("file_id");
    query.page = field(request, "page_id");
    query.mimetype = wanted("mimetype");
    query.path = wanted("local_filename");
    query.url = wanted("url");
    return query;
}

Json text_or_null(std::string const& text) {
    return text.empty() ? Json(nullptr) : Json(text);
}

std::optional<Response> read_addition(MetsRequest const& request, MetsCall& call) {
    Faults faults;
    auto given = [&](std::string_view name) { return field(request, name).value_or(""); };
    auto required = [&](std::string_view name) {
        auto value = given(name);
        if (value.empty()) faults.add("missing", Json::array({"body", name}), "Field required");
        return value;
    };
    auto& file = call.addition.file;
    file.group = required("file_grp");
    file.id = required("file_id");
    file.mimetype = required("mimetype");
    file.page_id = given("page_id");
    file.path = given("local_filename");
    call.addition.url = given("url");
    if (auto text = given("force"); !text.empty()) {
        auto force = boolean(text);
        if (force)
            call.addition.force = *force;
        else
            faults.add("bool_parsing", Json::array({"body", "force"}),
                       "Input should be a valid boolean, unable to interpret input", text);
    }
    if (faults.any()) return faults.response();
    call.given = Json{{"file_grp", file.group},
                      {"file_id", file.id},
                      {"mimetype", file.mimetype},
                      {"page_id", text_or_null(file.page_id)},
                      {"url", text_or_null(call.addition.url)},
                      {"local_filename", text_or_null(file.path)}};
    return std::nullopt;
}

// "notes": [[{"option": "page-id"}, "PHYS_0001"], ...]
void read_notes(Json const& notes, mets::Agent& agent, Faults& faults) {
    if (notes.is_null()) return;
    if (!notes.is_array())
        return faults.add("list_type", Json::array({"body", "notes"}), "Input should be a valid list", notes);
    for (std::size_t i = 0; i < notes.size(); ++i) {
        auto const& note = notes[i];
        auto wrong = [&](std::string_view what) {
            faults.add("value_error", Json::array({"body", "notes", i}), what, note);
        };
        if (!note.is_array() || note.size() != 2) {
            wrong("Input should be a list of attributes and text");
            continue;
        }
        if (!note[0].is_object() ||
            !std::ranges::all_of(note[0].items(), [](auto const& item) { return item.value().is_string(); })) {
            wrong("The attributes should be an object of strings");
            continue;
        }
        if (!note[1].is_string() && !note[1].is_null()) {
            wrong("The text should be a string or null");
            continue;
        }
        agent.notes.emplace_back(note[0].get<std::map<std::string, std::string>>(),
                                 note[1].is_null() ? std::string() : note[1].get<std::string>());
    }
}

std::optional<Response> read_agent(MetsRequest const& request, MetsCall& call) {
    Faults faults;
    if (!request.body) {
        faults.add("missing", Json::array({"body"}), "Field required");
        return faults.response();
    }
    auto const& body = *request.body;
    if (!body.is_object()) {
        faults.add("model_attributes_type", Json::array({"body"}),
                   "Input should be a valid dictionary or object to extract fields from", body);
        return faults.response();
    }
    auto text = [&](char const* name, bool may_be_null) -> std::optional<std::string> {
        auto found = body.find(name);
        if (found == body.end())
            faults.add("missing", Json::array({"body", name}), "Field required", body);
        else if (found->is_string())
            return found->get<std::string>();
        else if (!found->is_null() || !may_be_null)
            faults.add("string_type", Json::array({"body", name}), "Input should be a valid string", *found);
        return std::nullopt;
    };
    auto& agent = call.agent;
    agent.name = text("name", false).value_or("");
    agent.type = text("type", false).value_or("");
    agent.role = text("role", false).value_or("");
    agent.otherrole = text("otherrole", true);
    // OCR-D's model asks for a string; an agent without it, as GET /agent lists it, may be posted back.
    agent.othertype = text("othertype", true);
    if (auto notes = body.find("notes"); notes != body.end())
        read_notes(*notes, agent, faults);
    else
        faults.add("missing", Json::array({"body", "notes"}), "Field required", body);
    if (faults.any()) return faults.response();
    call.given = Json::object();
    for (auto const* name : {"name", "type", "role", "otherrole", "othertype", "notes"})
        call.given[name] = body.at(name);
    return std::nullopt;
}

/// A JSON string. Plain ASCII, which is nearly everything, is copied.
void append_text(std::string& out, std::string_view text) {
    auto plain = [](unsigned char c) { return c >= 0x20 && c < 0x80 && c != '"' && c != '\\'; };
    if (std::ranges::all_of(text, plain)) {
        out += '"';
        out += text;
        out += '"';
    } else {
        out += dump(Json(text));
    }
}

/// The answer to a search, written without a tree in between: one may list thousands of files.
std::string list_of(std::vector<mets::File const*> const& files) {
    std::string out = R"({"files":[)";
    out.reserve(out.size() + files.size() * 200);
    auto or_null = [&](std::string_view text) {
        if (text.empty())
            out += "null";
        else
            append_text(out, text);
    };
    for (auto const* file : files) {
        out += file == files.front() ? R"({"file_grp":)" : R"(,{"file_grp":)";
        append_text(out, file->group);
        out += R"(,"file_id":)";
        append_text(out, file->id);
        out += R"(,"local_filename":)";
        or_null(file->path);
        out += R"(,"mimetype":)";
        append_text(out, file->mimetype);
        out += R"(,"page_id":)";
        or_null(file->page_id);
        out += R"(,"url":)";
        append_text(out, file->url);
        out += '}';
    }
    out += "]}";
    return out;
}

Json json_of(mets::Agent const& agent) {
    auto or_null = [](std::optional<std::string> const& text) { return text ? Json(*text) : Json(nullptr); };
    Json notes = Json::array();
    for (auto const& [attributes, text] : agent.notes)
        notes.push_back(Json::array({Json(attributes), text_or_null(text)}));
    return Json{{"name", agent.name},
                {"type", agent.type},
                {"role", agent.role},
                {"otherrole", or_null(agent.otherrole)},
                {"othertype", or_null(agent.othertype)},
                {"notes", std::move(notes)}};
}

} // namespace

std::expected<MetsCall, Response> read_call(MetsRequest request) {
    auto there = [&](Known const& known) { return known.path == request.path; };
    auto const* known =
        std::ranges::find_if(kCalls, [&](Known const& one) { return there(one) && one.method == request.method; });
    if (known == kCalls.end()) {
        if (std::ranges::none_of(kCalls, there)) return std::unexpected(Response::error(404, "Not Found"));
        auto response = Response::error(405, "Method Not Allowed");
        for (auto const& one : kCalls)
            if (there(one)) response.headers.add("allow", std::string(one.method));
        return std::unexpected(std::move(response));
    }
    MetsCall call;
    call.what = known->what;
    std::optional<Response> refusal;
    if (call.what == What::Find) call.query = query_of(request);
    if (call.what == What::AddFile) refusal = read_addition(request, call);
    if (call.what == What::AddAgent) refusal = read_agent(request, call);
    if (refusal) return std::unexpected(std::move(*refusal));
    return call;
}

Response look_up(MetsCall const& call, mets::Mets const& mets, std::string const& folder) {
    switch (call.what) {
    case What::WorkspacePath:
        return Response::text(200, folder);
    case What::Identifier:
        return Response::text(200, mets.unique_identifier());
    case What::Pages:
        return Response::json(200, Json{{"physical_pages", mets.pages()}});
    case What::Groups: {
        Json names = Json::array();
        for (auto const& group : mets.groups()) names.push_back(group.name);
        return Response::json(200, Json{{"file_groups", std::move(names)}});
    }
    case What::Agents: {
        Json agents = Json::array();
        for (auto const& agent : mets.agents()) agents.push_back(json_of(agent));
        return Response::json(200, Json{{"agents", std::move(agents)}});
    }
    case What::Find: {
        auto found = mets.find_files(call.query);
        if (!found) return refused_call(found.error());
        return Response::text(200, list_of(*found), "application/json");
    }
    case What::AddAgent:
    case What::AddFile:
    case What::Save:
    case What::Reload:
    case What::Stop:
        break;
    }
    return Response::error(500, "this call changes the METS");
}

Response refused_call(Error const& problem) {
    if (problem.kind() == ErrorKind::Invalid || problem.kind() == ErrorKind::Conflict)
        return Response::json(400, Json(problem.message()));
    return Response::error(problem);
}

std::expected<PackedCall, Response> unpack(Json const& body) {
    auto refuse = [](std::string_view what) { return std::unexpected(Response::error(422, what)); };
    if (!body.is_object()) return refuse("the body must be a JSON object");
    auto text = [&](char const* name) -> std::optional<std::string> {
        auto found = body.find(name);
        return found != body.end() && found->is_string() ? std::optional(found->get<std::string>()) : std::nullopt;
    };
    auto workspace_path = text("workspace_path"), method = text("method_type"), response_type = text("response_type"),
         url = text("request_url");
    if (!workspace_path) return refuse("workspace_path: expected a string");
    if (!url) return refuse("request_url: expected a string");
    if (!method || (*method != "GET" && *method != "POST" && *method != "PUT" && *method != "DELETE"))
        return refuse("method_type: expected GET, POST, PUT or DELETE");
    if (!response_type || (*response_type != "text" && *response_type != "class" && *response_type != "dict" &&
                           *response_type != "empty"))
        return refuse("response_type: expected text, class, dict or empty");
    PackedCall call;
    call.workspace_path = std::move(*workspace_path);
    call.response_type = std::move(*response_type);
    call.request.method = std::move(*method);
    call.request.path = std::move(*url);
    auto data = body.find("request_data");
    if (data == body.end() || !data->is_object() || data->size() > 1)
        return refuse("request_data: expected an object that is empty or has exactly one of params, form and class");
    if (data->empty()) return call;
    auto const& content = data->front();
    auto const& kind = data->begin().key();
    if (kind == "class") {
        call.request.body = content;
        return call;
    }
    if ((kind != "params" && kind != "form") || !content.is_object())
        return refuse("request_data: expected an object that is empty or has exactly one of params, form and class");
    // As Python's HTTP client writes them: what is null is left out.
    auto written = [](Json const& value) {
        if (value.is_string()) return value.get<std::string>();
        if (value.is_boolean()) return std::string(value.get<bool>() ? "True" : "False");
        return dump(value);
    };
    for (auto const& [name, value] : content.items()) {
        if (value.is_null()) continue;
        if (!value.is_array())
            call.request.fields.emplace_back(name, written(value));
        else
            for (auto const& one : value)
                if (!one.is_null()) call.request.fields.emplace_back(name, written(one));
    }
    return call;
}

bool adds_file(MetsRequest const& request) { return request.method == "POST" && request.path == "file"; }

Response pack(Response answer, std::string const& response_type, bool addition) {
    if (!answer.ok() && addition) return Response::json(answer.status, Json{{"error", std::move(answer.body)}});
    if (response_type == "empty") return Response::json(200, Json::object());
    if (!answer.ok()) return Response::json(200, Json{{"error", std::move(answer.body)}});
    if (response_type == "text") return Response::json(200, Json{{"text", std::move(answer.body)}});
    if (answer.content_type != "application/json")
        return Response::error(422, "response_type: this call is answered with text");
    return answer;
}

} // namespace ocrctl::server
