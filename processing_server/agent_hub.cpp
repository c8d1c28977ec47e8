#include "processing_server/agent_hub.hpp"

#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"

#include <algorithm>
#include <openssl/crypto.h>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using namespace std::chrono_literals;
using std::chrono::steady_clock;

namespace {

constexpr auto kSilence = 1s;       // then a host counts as gone
constexpr auto kFirstContact = 5s;  // for agents to dial in after the server's start
constexpr auto kWatch = 250ms;
constexpr auto kLease = 60s;

bool same_secret(std::string_view a, std::string_view b) {
    return a.size() == b.size() && !a.empty() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

bool good_host_name(std::string_view name) { return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos; }

} // namespace

AgentHub::AgentHub(asio::any_io_executor io, Settings const& settings, Converger* converger)
    : io_(io), log_("agents"), settings_(settings), converger_(converger), tasks_(io, "agents") {}

bool AgentHub::closing() const {
    std::error_code ignored;
    return std::filesystem::exists(settings_.state / "closing", ignored);
}

void AgentHub::add_routes(net::Router& router) {
    router.add_websocket(
        "/v1/agents/connect",
        [this](std::shared_ptr<net::WebSocket> socket, net::Request request) { return serve(std::move(socket), std::move(request)); },
        [this](net::Request const& request) -> std::optional<net::Response> {
            if (token_.empty())
                if (auto token = read_file(settings_.token_file)) token_ = trim(*token);
            std::string_view sent = request.headers.get("Authorization");
            if (!sent.starts_with("Bearer ") || !same_secret(sent.substr(7), token_))
                return net::Response::error(401, "the join token is missing or wrong");
            if (!good_host_name(request.query_or("host"))) return net::Response::error(422, "host: the name of the agent's host is needed");
            if (stopping_ || !running_) return net::Response::error(503, "the server is starting or stopping");
            auto host = request.query_or("host");
            if (auto known = agents_.find(host); known != agents_.end()) {
                read_desired(host, known->second); // it may have been given one just now
                if (known->second.none) return net::Response::error(409, "the host " + host + " has no agent in the configuration (agent: false)");
            }
            return std::nullopt;
        });
}

void AgentHub::start() {
    running_ = true;
    tasks_.spawn("watch", watch());
}

awaitable<void> AgentHub::stop() {
    stopping_ = true;
    for (auto& [host, agent] : agents_)
        if (agent.socket) agent.socket->close();
    tasks_.cancel();
    co_await tasks_.join();
}

void AgentHub::changed() {
    if (on_change) on_change();
}

awaitable<void> AgentHub::serve(std::shared_ptr<net::WebSocket> socket, net::Request request) {
    auto host = request.query_or("host");
    auto& agent = agents_[host];
    if (agent.socket) agent.socket->close(); // a newer one of the same host takes over
    agent.socket = socket;
    agent.sent_generation = -1;
    agent.cancelled.clear();
    log_.info("agent.connected", kv(field::kHost, host), kv(field::kAddress, socket->remote()));
    changed();
    socket->post(dump(Json{{"op", "lease"}}));
    while (!stopping_) {
        auto frame = co_await socket->read();
        if (!frame) break;
        if (agents_[host].socket != socket) break;
        auto message = parse_json(*frame);
        if (!message || !message->is_object()) {
            log_.warn("agent.unreadable", kv(field::kHost, host));
            continue;
        }
        try {
            received(host, agents_[host], *message);
        } catch (Json::exception const& problem) {
            log_.warn("agent.unreadable", kv(field::kHost, host), kv(field::kError, problem.what()));
        }
    }
    auto& after = agents_[host];
    if (after.socket == socket) {
        after.socket = nullptr;
        after.away_since = steady_clock::now();
        if (!stopping_) log_.warn("agent.lost", kv(field::kHost, host));
        changed();
    }
}

void AgentHub::received(std::string const& host, Agent& agent, Json const& message) {
    if (message.value("op", "") != "report") return;
    agent.report = message.at("report").get<HostReport>();
    agent.report.host = host;
    read_desired(host, agent);
    send_desired(agent);
    if (on_report) on_report(agent.report);
    if (wanted)
        for (auto const& unit : agent.report.units)
            if (!unit.job.empty() && !wanted(JobId(unit.job)) && agent.cancelled.emplace(unit.entry, unit.job).second)
                agent.socket->post(dump(Json{{"op", "cancel"}, {"slot", unit.entry}, {"job", unit.job}}));
    changed();
}

void AgentHub::read_desired(std::string const& host, Agent& agent) {
    auto file = settings_.state / "hosts" / host / "desired.json";
    std::error_code problem;
    auto time = std::filesystem::last_write_time(file, problem);
    if (problem || time == agent.desired_time) return;
    auto text = read_file(file);
    if (!text) return;
    auto desired = json_to<DesiredState>(std::string_view(*text));
    if (!desired) {
        log_.error("desired.unreadable", kv(field::kPath, file.native()), kv(field::kError, desired.error().message()));
        return;
    }
    agent.desired_time = time;
    agent.desired_generation = desired->generation;
    if (agent.none && desired->agent) agent.away_since = steady_clock::now() + kFirstContact; // deploy is about to start it
    agent.none = !desired->agent;
    agent.desired = std::move(*text);
}

void AgentHub::read_start_report(std::string const& host, Agent& agent) {
    auto file = settings_.state / "hosts" / host / "report.json";
    std::error_code problem;
    auto time = std::filesystem::last_write_time(file, problem);
    if (problem || time == agent.report_time) return;
    auto text = read_file(file);
    if (!text) return;
    agent.report_time = time;
    auto report = json_to<HostReport>(std::string_view(*text));
    if (!report) {
        log_.error("report.unreadable", kv(field::kPath, file.native()), kv(field::kError, report.error().message()));
        return;
    }
    agent.report = std::move(*report);
    agent.report.host = host;
    if (on_start_report) on_start_report(agent.report);
    changed();
}

void AgentHub::send_desired(Agent& agent) {
    if (!agent.socket || agent.desired.empty() || agent.report.deployment.empty()) return;
    if (agent.report.generation >= agent.desired_generation || agent.sent_generation == agent.desired_generation) return;
    agent.sent_generation = agent.desired_generation;
    agent.socket->post(R"({"op":"desired","desired":)" + agent.desired + "}");
}

void AgentHub::cancel(JobId const& job) {
    for (auto& [host, agent] : agents_)
        for (auto const& unit : agent.report.units)
            if (unit.job == job.str() && agent.socket && agent.cancelled.emplace(unit.entry, unit.job).second)
                agent.socket->post(dump(Json{{"op", "cancel"}, {"slot", unit.entry}, {"job", unit.job}}));
}

awaitable<void> AgentHub::watch() {
    auto lease_at = steady_clock::now() + kLease;
    while (!stopping_) {
        std::error_code ignored;
        for (std::filesystem::directory_iterator entry(settings_.state / "hosts", ignored), end; !ignored && entry != end; entry.increment(ignored)) {
            auto host = entry->path().filename().native();
            if (!agents_.contains(host) && std::filesystem::exists(entry->path() / "desired.json", ignored)) {
                agents_[host].away_since = steady_clock::now() + kFirstContact;
                agents_[host].report.host = host;
            }
        }
        auto now = steady_clock::now();
        auto lease = now >= lease_at;
        if (lease) lease_at = now + kLease;
        for (auto& [host, agent] : agents_) {
            read_desired(host, agent);
            if (agent.none && !agent.socket) {
                read_start_report(host, agent);
            } else if (agent.socket) {
                send_desired(agent);
                if (lease) agent.socket->post(dump(Json{{"op", "lease"}}));
            } else if (converger_ != nullptr && !agent.bringing_back && now > agent.away_since + kSilence && !closing()) {
                agent.bringing_back = true;
                tasks_.spawn("bring back " + host, bring_back(host));
            }
        }
        if (!co_await pause(kWatch)) break;
    }
}

awaitable<void> AgentHub::bring_back(std::string host) {
    auto wait = std::chrono::milliseconds(1000);
    while (!stopping_ && !agents_[host].socket && !closing()) {
        log_.info("host.bring-back", kv(field::kHost, host));
        auto done = co_await converger_->bring_back(host);
        if (!done) log_.warn("host.not-back", kv(field::kHost, host), kv(field::kError, done.error().message()), kv(field::kAfterMs, wait.count()));
        // It dials in by itself; look again soon, act again later.
        for (auto until = steady_clock::now() + wait; steady_clock::now() < until && !agents_[host].socket && !stopping_;)
            if (!co_await pause(50ms)) break;
        wait = std::min(wait * 2, std::chrono::milliseconds(30'000));
    }
    agents_[host].bringing_back = false;
}

std::map<std::string, AgentHub::Host> AgentHub::hosts() const {
    std::map<std::string, Host> all;
    for (auto const& [host, agent] : agents_) all[host] = Host{agent.report, agent.socket != nullptr, !agent.none || agent.socket != nullptr};
    return all;
}

std::map<std::string, std::size_t> AgentHub::ready() const {
    std::map<std::string, std::size_t> count;
    for (auto const& [host, agent] : agents_)
        if (agent.socket)
            for (auto const& unit : agent.report.units)
                if (unit.kind == UnitKind::Worker && unit.state == UnitState::Ready && !unit.processor.empty()) ++count[unit.processor];
    return count;
}

} // namespace ocrctl::server
