// What commands that talk to a deployment share: which one is meant, its server, tables.
#pragma once

#include "lib/base/clock.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/model/json.hpp"
#include "lib/net/http.hpp"

#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
}

namespace ocrctl {

/// Which deployment or server a command means.
struct Where {
    std::string server, name;
    std::filesystem::path state;
};

/// --server, --state, --name. `server`: whether the command has --server at all.
void add_where(CLI::App& command, Where& where, bool server = true);

/// --state, else --name, else the only one on this machine that is live; `ended`: else the only one at all. NotFound, Usage (several: the
/// message lists them).
Result<ledger::DeploymentInfo> find_deployment(Where const& where, bool ended = false);

/// --server, else OCRCTL_SERVER, else that of the deployment. "http://127.0.0.1:8080"
Result<std::string> find_server(Where const& where);
/// As the deployment's state folder has it.
Result<std::string> server_of(std::filesystem::path const& state);

/// JSON requests to a processing server. Refusals are errors with the server's "detail".
class Api {
public:
    explicit Api(std::string url) : url_(std::move(url)) {}
    Result<Json> get(std::string const& target, std::chrono::milliseconds timeout = std::chrono::seconds(30)) const;
    Result<Json> post(std::string const& target, Json const& body, std::chrono::milliseconds timeout = std::chrono::seconds(120)) const;
    /// A text file as the form field "workflow".
    Result<Json> upload(std::string const& target, std::string const& file_name, std::string const& content) const;
    /// The same field as a path that the server opens.
    Result<Json> upload_path(std::string const& target, std::string const& path) const;
    Result<std::string> text(std::string const& target) const;
    std::string const& url() const noexcept { return url_; }

private:
    Result<Json> form(std::string const& target, std::string const& about, std::string const& content) const;
    Result<net::Response> send(std::string method, std::string const& target, net::Headers headers, std::string body,
                               std::chrono::milliseconds timeout) const;
    std::string url_;
};

/// stderr: "ocrctl COMMAND: sentence"; the exit code.
int complain(std::string_view command, Error const& error);

/// Columns as wide as needed, two blanks between; the first row is the heading.
std::string table(std::vector<std::vector<std::string>> const& rows);

/// "12 s", "3 min", "2 h", "5 d" since an instant; "" for 0.
std::string ago(Millis instant);

/// An absolute path if it names something here, else as it is (a path on the server).
std::string path_for_server(std::string const& path);

/// What -p and -P of OCR-D's commands give: JSON objects or files with one, then single values; what is no JSON is text. Usage.
Result<Json> parameters_from(std::vector<std::string> const& files, std::vector<std::pair<std::string, std::string>> const& pairs);

/// CACHED, QUEUED and RUNNING are not.
bool is_final_state(std::string const& state);

/// Asks `target` until `ended` says so of its document; a server that is away is waited for. `slowest`: the longest pause between two
/// questions. Timeout.
Result<Json> follow(Api const& api, std::string const& target, std::string const& what, std::optional<std::chrono::seconds> limit,
                    std::function<bool(Json const&)> ended, std::chrono::milliseconds slowest = std::chrono::milliseconds(1000));

/// Follows a workflow until it has ended, with progress on stderr. The final document of /v1/workflows/ID. While the server is away
/// it waits for it. Timeout.
Result<Json> follow_workflow(Api const& api, std::string const& id, std::optional<std::chrono::seconds> limit, bool quiet);
/// The same for a Job.
Result<Json> follow_job(Api const& api, std::string const& id, std::optional<std::chrono::seconds> limit);

/// stderr: each failed Job of a workflow with its reason, at most `most`.
void print_failures(Api const& api, Json const& workflow, std::size_t most = 20);

} // namespace ocrctl
