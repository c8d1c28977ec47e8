// The host agents, as the server sees them: each dials in by WebSocket, reports, is given its desired state and its lease.
#pragma once

#include "lib/async/task_group.hpp"
#include "lib/model/unit.hpp"
#include "lib/net/router.hpp"
#include "processing_server/converger.hpp"
#include "processing_server/settings.hpp"

#include <functional>
#include <map>
#include <optional>
#include <set>

namespace ocrctl::server {

/// Lives on the io thread. Hosts are those that have a folder STATE/hosts/H with a desired.json, and those that dialled
/// in. A host that is away for more than a second is brought back through the Converger, with growing pauses, unless
/// the deployment is closing or the server stops. Of a host without an agent (its desired.json says so) all that is known
/// is what its last start told: STATE/hosts/H/report.json.
class AgentHub {
public:
    AgentHub(asio::any_io_executor io, Settings const& settings, Converger* converger);

    void add_routes(net::Router& router);
    void start();
    awaitable<void> stop();

    /// A Job somewhere that no longer counts: the agent that runs it is told.
    void cancel(JobId const& job);

    struct Host {
        HostReport report;
        bool connected = false;
        bool agent = true; // false: it has none
    };
    std::map<std::string, Host> hosts() const;
    /// Workers that are READY, by Processor.
    std::map<std::string, std::size_t> ready() const;
    /// STATE/closing is there: a kill-all was begun.
    bool closing() const;

    /// After each report, and when a host comes or goes.
    std::function<void(HostReport const&)> on_report;
    /// After each start on a host without an agent, and once at the beginning.
    std::function<void(HostReport const&)> on_start_report;
    std::function<void()> on_change;
    /// Does this Job still want to be worked on?
    std::function<bool(JobId const&)> wanted;

private:
    struct Agent {
        std::shared_ptr<net::WebSocket> socket; // null: away
        HostReport report;
        std::chrono::steady_clock::time_point away_since;
        bool bringing_back = false;
        std::filesystem::file_time_type desired_time{};
        std::int64_t desired_generation = 0, sent_generation = -1;
        std::string desired; // the file's content
        bool none = false;   // the host has no agent
        std::filesystem::file_time_type report_time{};
        std::set<std::pair<std::string, std::string>> cancelled; // slot, job: told already
    };
    awaitable<void> serve(std::shared_ptr<net::WebSocket> socket, net::Request request);
    awaitable<void> watch();
    awaitable<void> bring_back(std::string host);
    void received(std::string const& host, Agent& agent, Json const& message);
    void read_desired(std::string const& host, Agent& agent);
    void read_start_report(std::string const& host, Agent& agent);
    void send_desired(Agent& agent);
    void changed();

    asio::any_io_executor io_;
    log::Logger log_;
    Settings const& settings_;
    Converger* converger_;
    TaskGroup tasks_;
    std::map<std::string, Agent> agents_;
    std::string token_;
    bool running_ = false, stopping_ = false;
};

} // namespace ocrctl::server
