#include "cmd/client.hpp"

#include "cmd/progress.hpp"
#include "lib/base/clock.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/net/client.hpp"
#include "lib/net/url.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <thread>

namespace ocrctl {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

void add_where(CLI::App& command, Where& where, bool server) {
    if (server) command.add_option("--server", where.server, "The processing server [$OCRCTL_SERVER, else that of the deployment]")->type_name("URL");
    command.add_option("--state", where.state, "State folder of the deployment [the only live one on this machine]")->type_name("DIR");
    command.add_option("--name", where.name, "Name of the deployment")->type_name("NAME");
}

Result<ledger::DeploymentInfo> find_deployment(Where const& where, bool ended) {
    if (!where.state.empty() || !where.name.empty()) {
        if (where.state.empty())
            for (auto& one : ledger::find_deployments(false))
                if (one.name == where.name) return std::move(one);
        auto folder = ledger::state_folder(where.name, where.state);
        if (!folder) return std::unexpected(folder.error());
        auto found = ledger::read_deployment(*folder);
        if (!found && found.error().kind() == ErrorKind::NotFound) return fail(ErrorKind::NotFound, "there is no deployment in {}", folder->native());
        return found;
    }
    auto live = ledger::find_deployments(false);
    if (live.size() == 1) return live.front();
    if (live.empty() && ended) {
        auto all = ledger::find_deployments(true);
        if (all.size() == 1) return all.front();
        live = std::move(all);
    }
    if (live.empty())
        return fail(ErrorKind::NotFound, "no deployment is running on this machine: start one by ocrctl deploy, or name it by --state DIR or --server URL");
    std::vector<std::string> names;
    for (auto const& one : live) names.push_back(one.name);
    return fail(ErrorKind::Usage, "which deployment is meant? Name one of {} by --name", join(names, ", "));
}

Result<std::string> server_of(fs::path const& state) {
    auto text = read_file(ledger::StatePaths{state}.deployment());
    if (!text) return fail(text.error());
    auto json = parse_json(*text);
    if (!json || !json->is_object()) return fail(ErrorKind::Invalid, "{} cannot be read", ledger::StatePaths{state}.deployment().native());
    for (auto const* key : {"server", "address"})
        if (json->contains(key) && (*json)[key].is_string() && !(*json)[key].get<std::string>().empty()) {
            auto url = (*json)[key].get<std::string>();
            return url.find("://") == std::string::npos ? "http://" + url : url;
        }
    return fail(ErrorKind::NotFound, "the deployment in {} has no server yet", state.native());
}

Result<std::string> find_server(Where const& where) {
    auto url = where.server;
    if (auto const* set = std::getenv("OCRCTL_SERVER"); url.empty() && where.state.empty() && where.name.empty() && set != nullptr) url = set;
    if (url.empty()) {
        auto deployment = find_deployment(where);
        if (!deployment) return fail(deployment.error());
        return server_of(deployment->state);
    }
    if (url.find("://") == std::string::npos) url = "http://" + url;
    while (url.ends_with('/')) url.pop_back();
    if (auto parsed = net::parse_url(url); !parsed) return fail(ErrorKind::Usage, "{}", parsed.error().message());
    return url;
}

Result<net::Response> Api::send(std::string method, std::string const& target, net::Headers headers, std::string body,
                                std::chrono::milliseconds timeout) const {
    auto answer = net::http_request(std::move(method), url_ + target, std::move(headers), std::move(body), timeout);
    if (!answer) return fail(answer.error().during("the processing server"));
    if (answer->ok()) return answer;
    auto kind = ErrorKind::Invalid;
    switch (answer->status) {
    case 401:
    case 403: kind = ErrorKind::Denied; break;
    case 404: kind = ErrorKind::NotFound; break;
    case 409: kind = ErrorKind::Conflict; break;
    case 413: kind = ErrorKind::TooLarge; break;
    case 429: kind = ErrorKind::TooMany; break;
    case 502:
    case 503: kind = ErrorKind::Unavailable; break;
    case 504: kind = ErrorKind::Timeout; break;
    default: kind = answer->status >= 500 ? ErrorKind::Unavailable : ErrorKind::Invalid;
    }
    auto detail = answer->detail();
    return fail(kind, "{}", detail.empty() ? fmt::format("the server answered {} {}", answer->status, net::reason_phrase(answer->status)) : detail);
}

namespace {

Result<Json> json_of(Result<net::Response> answer) {
    if (!answer) return fail(answer.error());
    auto json = parse_json(answer->body);
    if (!json) return fail(ErrorKind::Invalid, "the server's answer is no JSON: is this a processing server?");
    return json;
}

} // namespace

bool is_final_state(std::string const& state) { return state == "SUCCESS" || state == "FAILED" || state == "CANCELLED"; }

Result<Json> Api::get(std::string const& target, std::chrono::milliseconds timeout) const { return json_of(send("GET", target, {}, {}, timeout)); }

Result<Json> Api::post(std::string const& target, Json const& body, std::chrono::milliseconds timeout) const {
    net::Headers headers{{"Content-Type", "application/json"}};
    return json_of(send("POST", target, std::move(headers), dump(body), timeout));
}

Result<Json> Api::upload(std::string const& target, std::string const& file_name, std::string const& content) const {
    auto name = file_name;
    std::erase_if(name, [](char c) { return c == '"' || c == '\\' || static_cast<unsigned char>(c) < ' '; });
    return form(target, fmt::format("; filename=\"{}\"\r\nContent-Type: text/plain", name), content);
}

// Without a file name the field is a path on the server.
Result<Json> Api::upload_path(std::string const& target, std::string const& path) const { return form(target, "", path); }

Result<Json> Api::form(std::string const& target, std::string const& about, std::string const& content) const {
    auto const boundary = "ocrctl-" + random_hex(16);
    auto body = fmt::format("--{}\r\nContent-Disposition: form-data; name=\"workflow\"{}\r\n\r\n{}\r\n--{}--\r\n", boundary, about, content, boundary);
    net::Headers headers{{"Content-Type", "multipart/form-data; boundary=" + boundary}};
    return json_of(send("POST", target, std::move(headers), std::move(body), std::chrono::seconds(120)));
}

Result<std::string> Api::text(std::string const& target) const {
    auto answer = send("GET", target, {}, {}, std::chrono::seconds(60));
    if (!answer) return fail(answer.error());
    return std::move(answer->body);
}

int complain(std::string_view command, Error const& error) {
    fmt::print(stderr, "ocrctl {}: {}\n", command, error.message());
    return error.exit_code();
}

namespace {

/// Columns that a terminal shows: letters, not bytes.
std::size_t width_of(std::string const& text) {
    return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

} // namespace

std::string table(std::vector<std::vector<std::string>> const& rows) {
    std::vector<std::size_t> widths;
    for (auto const& row : rows)
        for (std::size_t i = 0; i < row.size(); ++i) {
            if (i == widths.size()) widths.push_back(0);
            widths[i] = std::max(widths[i], width_of(row[i]));
        }
    std::string out;
    for (auto const& row : rows) {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i) {
            line += row[i];
            if (i + 1 < row.size()) line += std::string(widths[i] - width_of(row[i]) + 2, ' ');
        }
        while (line.ends_with(' ')) line.pop_back();
        out += line + "\n";
    }
    return out;
}

std::string ago(Millis instant) {
    if (instant <= 0) return "";
    auto s = std::max<Millis>(0, (now_millis() - instant) / 1000);
    if (s < 120) return fmt::format("{} s", s);
    if (s < 7200) return fmt::format("{} min", s / 60);
    if (s < 172800) return fmt::format("{} h", s / 3600);
    return fmt::format("{} d", s / 86400);
}

std::string path_for_server(std::string const& path) {
    std::error_code error;
    if (fs::exists(path, error)) return fs::absolute(path, error).lexically_normal().native();
    return path;
}

Result<Json> parameters_from(std::vector<std::string> const& files, std::vector<std::pair<std::string, std::string>> const& pairs) {
    auto parameters = Json::object();
    for (auto const& text : files) {
        std::error_code ignored;
        auto content = fs::is_regular_file(text, ignored) ? read_file(text) : Result<std::string>(text);
        if (!content) return fail(content.error());
        auto json = parse_json(*content);
        if (!json || !json->is_object()) return fail(ErrorKind::Usage, "-p {}: it is neither a JSON object nor a file with one", text);
        parameters.update(*json);
    }
    for (auto const& [key, value] : pairs) {
        auto json = parse_json(value);
        parameters[key] = json ? *json : Json(value); // what is no JSON is text, as in OCR-D
    }
    return parameters;
}

Result<Json> follow(Api const& api, std::string const& target, std::string const& what, std::optional<std::chrono::seconds> limit,
                    std::function<bool(Json const&)> ended, std::chrono::milliseconds slowest) {
    auto const begun = Clock::now();
    auto step = std::chrono::milliseconds(50);
    bool away = false;
    for (;;) {
        auto document = api.get(target, std::chrono::seconds(10));
        if (document) {
            if (away) fmt::print(stderr, "the server is back\n");
            away = false;
            if (ended(*document)) return document;
        } else if (document.error().kind() == ErrorKind::Unavailable || document.error().kind() == ErrorKind::Timeout) {
            if (!away) fmt::print(stderr, "the server is away, waiting for it: {}\n", document.error().message());
            away = true;
        } else {
            return document;
        }
        if (limit && Clock::now() - begun > *limit) return fail(ErrorKind::Timeout, "{} has not ended within {} s", what, limit->count());
        std::this_thread::sleep_for(step);
        step = std::min(step * 3 / 2, slowest);
    }
}

Result<Json> follow_job(Api const& api, std::string const& id, std::optional<std::chrono::seconds> limit) {
    return follow(api, "/v1/jobs/" + net::percent_encode(id), "Job " + id, limit,
                  [](Json const& job) { return is_final_state(job.value("state", "")); });
}

Result<Json> follow_workflow(Api const& api, std::string const& id, std::optional<std::chrono::seconds> limit, bool quiet) {
    std::optional<Progress> progress;
    bool const terminal = stderr_is_terminal();
    std::size_t shown = 0;
    auto ended = [&](Json const& workflow) {
        std::size_t total = 0, open = 0;
        for (auto const& [page, jobs] : workflow.value("processing_job_ids", Json::object()).items()) total += jobs.size();
        std::size_t final_jobs = 0;
        for (auto const& [processor, states] : workflow.value("processors", Json::object()).items())
            for (auto const& [state, count] : states.items()) (is_final_state(state) ? final_jobs : open) += count.get<std::size_t>();
        if (!quiet && !progress) progress.emplace(total, terminal, !terminal);
        if (progress) progress->set(final_jobs);
        if (!quiet && !terminal && final_jobs != shown) {
            fmt::print(stderr, "{} of {} Jobs done\n", final_jobs, total);
            shown = final_jobs;
        }
        return is_final_state(workflow.value("state", "")) && open == 0;
    };
    return follow(api, "/v1/workflows/" + net::percent_encode(id), "workflow " + id, limit, ended);
}

void print_failures(Api const& api, Json const& workflow, std::size_t most) {
    std::size_t shown = 0, all = 0;
    for (auto const& [processor, jobs] : workflow.value("failed", Json::object()).items())
        for (auto const& one : jobs) {
            ++all;
            if (shown == most) continue;
            ++shown;
            auto const id = one.value("job_id", "");
            std::string page = one.contains("page_id") && one["page_id"].is_string() ? one["page_id"].get<std::string>() : "";
            std::string reason;
            if (auto job = api.get("/v1/jobs/" + net::percent_encode(id))) {
                for (auto const& [name, why] : job->value("pages_failed", Json::object()).items())
                    reason += (reason.empty() ? "" : "; ") + (name == page ? "" : name + ": ") + why.get<std::string>();
                if (reason.empty()) reason = job->value("reason", "");
            }
            fmt::print(stderr, "  {}{} ({}): {}\n", processor, page.empty() ? "" : " " + page, id, reason.empty() ? "failed, see its log" : reason);
        }
    if (all > shown) fmt::print(stderr, "  and {} more\n", all - shown);
}

} // namespace ocrctl
