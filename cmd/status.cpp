// ocrctl status: hosts, units and their states, from the server when it answers, else from the ledgers.
#include "cmd/client.hpp"
#include "cmd/commands.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/model/unit.hpp"
#include "lib/process/process.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <set>

namespace ocrctl {

namespace {

namespace fs = std::filesystem;

/// What the ledgers say; identities of this machine are looked up, those of others cannot be.
Json unit_of(ledger::Entry const& entry) {
    std::string state, detail;
    bool const here = entry.identity && entry.identity->boot == process::boot_id();
    bool const alive = here && process::alive(*entry.identity);
    if (entry.kind == "no-agent" && !entry.stopped) {
        state = "unknown";
        detail = "agent: false: what was started there is in the ledger on it";
    } else if (entry.stopped) {
        state = "stopped";
    } else if (alive) {
        state = entry.ready ? "ready" : "starting";
    } else if (entry.exited) {
        state = "failed";
        detail = entry.status;
    } else if (here) {
        state = "failed";
        detail = "its process is gone";
    } else if (entry.identity) {
        state = "unknown";
        detail = "on another machine, or before this machine was rebooted";
    } else {
        state = "unknown";
        detail = "its start was begun, nothing more is known";
    }
    Json unit;
    unit["entry"] = entry.entry;
    unit["kind"] = entry.kind;
    unit["state"] = state;
    unit["pid"] = entry.identity ? entry.identity->pid : 0;
    unit["since"] = entry.since;
    unit["restarts"] = 0;
    unit["detail"] = detail;
    return unit;
}

Result<Json> from_ledgers(ledger::DeploymentInfo const& deployment) {
    ledger::StatePaths paths{deployment.state};
    Json out;
    out["source"] = "ledgers";
    out["name"] = deployment.name;
    out["deployment"] = deployment.id;
    out["state_folder"] = deployment.state.native();
    out["closing"] = deployment.closing;
    out["live"] = deployment.live;
    std::map<std::string, std::map<std::string, Json>> hosts;   // host -> entry -> unit
    std::map<std::string, std::vector<std::string>> order;
    auto take = [&](ledger::LedgerState const& state, std::string const& folder_host) {
        for (auto const& name : state.order) {
            auto const* entry = state.find(name);
            if (entry == nullptr) continue;
            auto host = entry->host.empty() ? folder_host : entry->host;
            if (hosts[host].emplace(name, unit_of(*entry)).second) order[host].push_back(name);
            else hosts[host][name] = unit_of(*entry); // the host's own ledger knows better than the central one
        }
    };
    auto central = ledger::replay(paths.ledger());
    if (!central) return fail(central.error());
    for (auto const& [name, config] : central->hosts) hosts[name];
    take(*central, "");
    std::set<std::string> with_ledger;
    std::error_code ignored;
    for (fs::directory_iterator at(paths.hosts(), ignored), end; !ignored && at != end; at.increment(ignored)) {
        auto file = ledger::HostPaths{at->path()}.ledger();
        if (!fs::exists(file, ignored)) continue;
        auto state = ledger::replay(file);
        if (!state) return fail(state.error());
        with_ledger.insert(at->path().filename().native());
        take(*state, at->path().filename().native());
    }
    out["hosts"] = Json::array();
    for (auto const& [name, units] : hosts) {
        Json host;
        host["host"] = name;
        host["connected"] = false;
        if (!with_ledger.contains(name)) host["note"] = "its own ledger lies on it";
        host["units"] = Json::array();
        for (auto const& entry : order[name]) host["units"].push_back(units.at(entry));
        out["hosts"].push_back(std::move(host));
    }
    return out;
}

void print_status(Json const& status) {
    bool const from_server = status.value("source", "") == "server";
    std::size_t ready = 0, all = 0, hosts = 0;
    std::vector<std::vector<std::string>> rows{{"HOST", "UNIT", "KIND", "STATE", "FOR", "PID", "RESTARTS", "DETAIL"}};
    for (auto const& host : status.value("hosts", Json::array())) {
        ++hosts;
        auto const name = host.value("host", "");
        auto const connected = host.value("connected", false);
        auto const agent = host.value("agent", true);
        if (from_server && !agent) rows.push_back({name, "(no agent)", "", "", "", "", "", "agent: false: its Workers are not supervised, ocrctl deploy starts what is missing"});
        if (from_server && agent && !connected) rows.push_back({name, "(agent)", "agent", "away", "", "", "", "its agent is not connected: the rest is what it said last"});
        if (!from_server && host.contains("note") && host.value("units", Json::array()).empty()) rows.push_back({name, "", "", "unknown", "", "", "", host.value("note", "")});
        for (auto const& unit : host.value("units", Json::array())) {
            ++all;
            auto state = unit.value("state", "");
            if (state == "ready") ++ready;
            auto detail = unit.value("detail", "");
            if (auto job = unit.value("job", ""); !job.empty()) detail = "Job " + job + (detail.empty() ? "" : ", " + detail);
            auto pid = unit.value("pid", 0), restarts = unit.value("restarts", 0);
            if (auto last = unit.value("last_exit", ""); detail.empty() && !last.empty()) detail = "restarted after: " + last;
            rows.push_back({name, unit.value("entry", ""), unit.value("kind", ""), state, ago(unit.value("since", Millis(0))),
                            pid > 0 ? std::to_string(pid) : "", restarts > 0 ? std::to_string(restarts) : "", detail});
        }
    }
    if (from_server) {
        fmt::print("{}: {} of {} ready on {}, server {}\n", status.value("name", ""), ready, counted(all, "unit"), counted(hosts, "host"), status.value("address", ""));
        std::vector<std::string> jobs;
        for (auto const& [state, count] : status.value("jobs", Json::object()).items()) jobs.push_back(fmt::format("{} {}", count.get<long>(), state));
        if (!jobs.empty()) fmt::print("Jobs: {}\n", join(jobs, ", "));
        if (status.value("intake", "open") == "closed") fmt::print("the intake is closed: no new Jobs are taken\n");
        if (auto broker = status.value("broker", Json::object()); broker.contains("problem")) fmt::print("broker: {}\n", broker.value("problem", ""));
        if (auto database = status.value("database", Json::object()); database.contains("problem")) fmt::print("database: {}\n", database.value("problem", ""));
        for (auto const& problem : status.value("problems", Json::array())) fmt::print("workspace {}: {}\n", problem.value("workspace", ""), problem.value("problem", ""));
    } else {
        fmt::print("{}: {}; from its ledgers in {}\n", status.value("name", ""),
                   !status.value("live", false)    ? "stopped"
                   : status.value("closing", false) ? "a kill-all was begun, run it again to finish it"
                                                    : "the server does not answer (" + status.value("server_problem", "") + ")",
                   status.value("state_folder", ""));
    }
    if (rows.size() > 1) fmt::print("{}", table(rows));
}

} // namespace

void add_status(CLI::App& app, int& exit_code) {
    struct Options {
        Where where;
        bool json = false;
    };
    auto options = std::make_shared<Options>();
    auto* command = app.add_subcommand("status", "Hosts, units and their states; reads the ledgers if the server is gone");
    add_where(*command, options->where);
    command->add_flag("--json", options->json, "Print it as JSON");
    command->footer("examples:\n  ocrctl status\n  ocrctl status --name archive --json");
    command->callback([options, &exit_code] {
        exit_code = 0;
        auto url = find_server(options->where);
        std::string problem;
        if (url) {
            auto status = Api(*url).get("/v1/status", std::chrono::seconds(5));
            // Its port may have become somebody else's.
            auto const meant = options->where.server.empty() ? find_deployment(options->where, true) : Result<ledger::DeploymentInfo>(fail(ErrorKind::NotFound, ""));
            if (status && status->is_object() && meant && !meant->id.empty() && status->value("deployment", "") != meant->id && std::getenv("OCRCTL_SERVER") == nullptr)
                status = fail(ErrorKind::Unavailable, "another deployment answers at {}", *url);
            if (status && status->is_object()) {
                (*status)["source"] = "server";
                if (options->json) fmt::print("{}\n", dump(*status));
                else print_status(*status);
                return;
            }
            problem = status ? "its answer is no object" : status.error().message();
            if (!options->where.server.empty()) {
                exit_code = complain("status", status.error());
                return;
            }
        } else {
            problem = url.error().message();
        }
        auto deployment = find_deployment(options->where, true);
        if (!deployment) {
            exit_code = complain("status", deployment.error());
            return;
        }
        auto status = from_ledgers(*deployment);
        if (!status) {
            exit_code = complain("status", status.error());
            return;
        }
        (*status)["server_problem"] = problem;
        if (options->json) fmt::print("{}\n", dump(*status));
        else print_status(*status);
    });
}

} // namespace ocrctl
