#include "deployer/deployer.hpp"

#include "deployer/agentless.hpp"
#include "deployer/host_teardown.hpp"
#include "deployer/host_setup.hpp"
#include "deployer/ports.hpp"
#include "deployer/services.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/base/text.hpp"
#include "lib/hostops/control_client.hpp"
#include "lib/hostops/host_ops.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/net/client.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <future>
#include <poll.h>
#include <thread>
#include <unistd.h>

namespace ocrctl::deployer {

namespace fs = std::filesystem;
using hostops::ControlClient;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

bool DeployReport::complete() const {
    return std::ranges::none_of(hosts, [](auto const& host) { return host.error.has_value(); });
}

namespace {

std::string seconds_since(Clock::time_point start) {
    return fmt::format("{:.1f} s", std::chrono::duration<double>(Clock::now() - start).count());
}

/// Everything of it has been stopped: what its Ledger says is history.
bool is_over(ledger::LedgerState const& state) {
    return std::ranges::none_of(state.entries, [](auto const& entry) { return entry.second.open(); });
}

/// Entries of a host of this machine that live now.
Observed observe_local(ledger::StatePaths const& paths, ledger::LedgerState const& central, std::string const& host) {
    Observed observed;
    ledger::HostPaths here{paths.host(host)};
    auto const* agent = central.find(agent_entry(host));
    observed.agent = agent && agent->open() && agent->identity && process::alive(*agent->identity);
    if (auto text = read_file(here.desired())) {
        if (auto desired = json_to<DesiredState>(std::string_view(*text))) observed.desired = *desired;
    }
    if (auto ledger = ledger::replay(here.ledger())) {
        for (auto const& [name, entry] : ledger->entries)
            if (entry.open() && entry.kind != "agent" && entry.identity && process::alive(*entry.identity)) observed.running.insert(name);
    }
    return observed;
}

/// As far as this machine knows: what the Host was told, if its agent was started and never stopped.
Observed observe_remote(ledger::StatePaths const& paths, ledger::LedgerState const& central, std::string const& host) {
    Observed observed;
    auto const* agent = central.find(agent_entry(host));
    observed.agent = agent && agent->open() && agent->identity;
    auto text = read_file(ledger::HostPaths{paths.host(host)}.desired());
    if (!text || !agent || !agent->open()) return observed;
    if (!observed.agent) { // a Host without one: what its last start told
        if (auto desired = json_to<DesiredState>(std::string_view(*text))) observed.desired = std::move(*desired);
        if (auto report = agentless_report(paths, host))
            for (auto const& unit : report->units)
                if (unit.pid != 0) observed.running.insert(unit.entry);
        return observed;
    }
    if (auto desired = json_to<DesiredState>(std::string_view(*text))) {
        for (auto const& unit : desired->units) observed.running.insert(unit.entry);
        observed.desired = std::move(*desired);
    }
    return observed;
}

std::map<std::string, Observed> observe(ledger::StatePaths const& paths, ledger::LedgerState const& central) {
    std::map<std::string, Observed> observed;
    for (auto const& [host, config] : central.hosts) {
        auto record = json_to<HostRecord>(config);
        bool local = !record || record->connection == "local";
        observed[host] = local ? observe_local(paths, central, host) : observe_remote(paths, central, host);
    }
    return observed;
}

/// Chooses what the config leaves open and was not chosen before.
Result<void> choose(config::Deployment const& config, DeploymentFile& deployment) {
    auto const& queue = config.process_queue;
    bool external = queue.kind == config::ServiceKind::External || queue.skip_deployment;
    auto& fact = deployment.queue;
    fact.kind = external ? "external" : "native";
    fact.address = queue.address;
    if (external) {
        fact.port = config::queue_port(queue);
        return {};
    }
    if (queue.port != 0) fact.port = queue.port;
    std::set<int> taken{config.listen.port, fact.port, fact.dist_port, fact.epmd_port};
    for (int* port : {&fact.port, &fact.dist_port, &fact.epmd_port}) {
        if (*port == 0) *port = choose_port(taken);
        taken.insert(*port);
        if (*port == 0) return fail(ErrorKind::Unavailable, "no free port was found for the broker");
    }
    return {};
}

/// Ports that must be free and are not, each named with its holder.
std::vector<std::string> ports_taken(config::Deployment const& config, Plan const& plan, std::map<std::string, Observed> const& observed) {
    std::vector<std::string> problems;
    auto found = observed.find(plan.local_host);
    auto runs = [&](char const* entry) { return found != observed.end() && found->second.running.contains(entry); };
    auto check = [&](std::string const& address, int port, char const* what, char const* key) {
        if (port == 0 || port_free(address, port)) return;
        auto holder = port_holder(port);
        problems.push_back(fmt::format("port {} ({}) is in use{}: end that, or choose another one by {}", config::host_port(address, port), what,
                                       holder ? " by " + *holder : "", key));
    };
    if (!runs("server")) check(config.listen.address, config.listen.port, "the processing server", "listen.port");
    if (plan.rabbitmq && !runs("queue")) check("127.0.0.1", plan.rabbitmq->port, "RabbitMQ", "process_queue.port");
    return problems;
}

/// A deploy from its config to the moment where Hosts are worked on; also what Converge starts from.
struct Prepared {
    ledger::StatePaths paths;
    std::string config_text;
    config::Deployment config;
    Facts facts;
};

Result<Prepared> prepare(DeployOptions const& options) {
    Prepared prepared;
    auto text = read_file(options.config);
    if (!text) return fail(Error(ErrorKind::Usage, text.error().message()));
    prepared.config_text = *text;
    auto config = config::load_or_error(options.config);
    if (!config) return std::unexpected(config.error());
    prepared.config = std::move(*config);
    auto state = options.state.empty() ? prepared.config.state : options.state;
    auto folder = ledger::state_folder(prepared.config.name, state);
    if (!folder) return std::unexpected(folder.error());
    prepared.paths.root = fs::absolute(*folder).lexically_normal();
    auto build = own_build();
    if (!build) return std::unexpected(build.error());
    auto& facts = prepared.facts;
    facts.state = prepared.paths;
    facts.build = *build;
    facts.rabbitmq = find_rabbitmq();
    auto there = load_deployment(prepared.paths);
    if (there) {
        facts.deployment = *there;
        if (there->name != prepared.config.name)
            return fail(ErrorKind::Conflict, "{} belongs to the deployment \"{}\", the config says \"{}\": choose another folder by --state", prepared.paths.root.string(), there->name,
                        prepared.config.name);
    } else if (there.error().kind() != ErrorKind::NotFound) {
        return std::unexpected(there.error());
    } else {
        facts.deployment.id = new_uuid();
        facts.deployment.created = now_millis();
    }
    auto& deployment = facts.deployment;
    deployment.name = prepared.config.name;
    deployment.config = fs::absolute(options.config).lexically_normal().string();
    deployment.build = *build;
    deployment.local_host = local_host_name(prepared.config);
    deployment.listen = {prepared.config.listen.address, prepared.config.listen.port};
    return prepared;
}

/// Where programs of others are looked for on this machine: the PATH of who deployed first, as long as it has them all. True: the
/// facts have changed.
bool take_path(Facts& facts, Plan const& plan) {
    char const* mine = std::getenv("PATH");
    auto has_all = [](std::set<Program> const& programs, std::string const& path) {
        return std::ranges::all_of(programs, [&](Program const& program) {
            if (program.executable.find('/') != std::string::npos) return true;
            return std::ranges::any_of(split(path, ':'), [&](auto const& folder) { return ::access((fs::path(folder) / program.executable).c_str(), X_OK) == 0; });
        });
    };
    bool changed = false;
    for (auto const& host : plan.hosts) {
        if (!host.local || host.programs.empty() || !mine) continue;
        auto& known = facts.deployment.hosts[host.name].login["PATH"];
        if (known == mine || (!known.empty() && (has_all(host.programs, known) || !has_all(host.programs, mine)))) continue;
        known = mine;
        changed = true;
    }
    return changed;
}

/// Calls work(host) for all, at most `bound` at a time.
void in_parallel(std::vector<std::string> const& hosts, std::size_t bound, std::function<void(std::string const&)> const& work) {
    std::atomic<std::size_t> next = 0;
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < std::min(bound, hosts.size()); ++i)
        threads.emplace_back([&] {
            for (std::size_t mine; (mine = next++) < hosts.size();) work(hosts[mine]);
        });
}

/// The ports of tunnels there: chosen once, and again where another program has taken one meanwhile. Host -> why there
/// is no tunnel to it.
std::map<std::string, Error> choose_tunnels(config::Deployment const& config, Facts& facts) {
    auto here = facts.state.host(facts.deployment.local_host);
    std::set<std::string> ready; // those need no look
    if (auto client = ControlClient::connect(here))
        if (auto answer = client->ask(Json{{"op", "status"}}))
            if (auto report = json_to<HostReport>((*answer)["report"]);
                report && report->deployment == facts.deployment.id)
                for (auto const& unit : report->units)
                    if (unit.kind == UnitKind::Tunnel && unit.state == UnitState::Ready) ready.insert(unit.entry);
    std::map<std::string, TunnelSettings> tunnels;
    std::map<std::string, config::Host const*> reached;
    std::vector<std::string> hosts;
    for (auto const& host : config.hosts) {
        if (!is_tunnelled(host)) continue;
        auto tunnel = tunnel_of(config, host, facts.state, facts.deployment);
        bool chosen = std::ranges::all_of(tunnel.ports, [](auto const& item) { return item.port != 0; });
        if (chosen && ready.contains(tunnel_entry(host.name))) continue;
        hosts.push_back(host.name);
        tunnels[host.name] = std::move(tunnel);
        reached[host.name] = &host;
    }
    std::map<std::string, Error> problems;
    std::mutex mutex;
    in_parallel(hosts, static_cast<std::size_t>(std::max(1, config.parallel_hosts)), [&](std::string const& host) {
        std::map<std::string, int> ports;
        auto prepared = prepare_tunnel(*reached.at(host), tunnels.at(host), ready.contains(tunnel_entry(host)),
                                       tunnel_memory(here, host), ports);
        std::lock_guard lock(mutex);
        if (!prepared) problems.emplace(host, prepared.error());
        facts.deployment.hosts[host].tunnel = std::move(ports);
    });
    return problems;
}

/// A Host that left the config: everything of the deployment there is ended and cleared away.
Result<void> retire(ledger::Ledger& ledger, std::string const& host, Json const& config, std::string const& deployment, std::chrono::seconds grace) {
    auto record = json_to<HostRecord>(config);
    if (!record) return std::unexpected(record.error());
    auto ops = HostTeardown::open(host, *record, deployment);
    if (!ops) return std::unexpected(ops.error());
    auto closed = (*ops)->close();
    if (!closed) return closed;
    auto stopped = (*ops)->stop({"all"}, grace);
    if (!stopped) return std::unexpected(stopped.error());
    auto left = (*ops)->sweep(grace);
    if (!left) return std::unexpected(left.error());
    if (!left->empty()) return fail(ErrorKind::Unavailable, "{}", left->front());
    auto cleaned = (*ops)->clean(false);
    if (!cleaned) return cleaned;
    return ledger.append(ledger::stopped(agent_entry(host)));
}

// --- waiting for READY ---------------------------------------------------------------------------------------------

struct Wait {
    std::function<void(std::string const&)> say;
    Clock::time_point start, deadline;
    std::string local_host, server;
    std::map<std::string, SetupResult> hosts; // those that were set up
    std::map<std::string, HostOutcome> outcomes;
    std::set<std::string> told;               // host + entry whose READY was said
};

bool is_worker(UnitKind kind) { return kind == UnitKind::Worker || kind == UnitKind::ForeignWorker; }

bool given_up(UnitReport const& unit) {
    // Once more may be chance; three times is not.
    return unit.state == UnitState::Failed || (unit.state == UnitState::BackOff && unit.restarts >= 3);
}

/// Takes over one report; true when the host needs no further waiting.
bool take_report(Wait& wait, std::string const& host, HostReport const& report, bool services_only) {
    auto const& wanted = wait.hosts.at(host).plan;
    auto& outcome = wait.outcomes[host];
    if (report.generation < wanted.desired.generation) return false;
    bool all = true;
    std::size_t workers = 0, ready_workers = 0;
    for (auto const& unit : wanted.desired.units) {
        bool worker = is_worker(unit.kind);
        workers += worker;
        if (services_only && worker) continue;
        auto found = std::ranges::find(report.units, unit.entry, &UnitReport::entry);
        if (unit.kind == UnitKind::Tunnel) { // its own Host waits for it, no other
            if (found != report.units.end() && found->state == UnitState::Ready && wait.told.insert(unit.entry).second)
                wait.say(fmt::format("{}: ready ({})", unit.entry, seconds_since(wait.start)));
            continue;
        }
        if (found == report.units.end()) {
            all = false;
            continue;
        }
        if (found->state == UnitState::Ready) {
            ready_workers += worker;
            if (!worker && wait.told.insert(host + "/" + unit.entry).second)
                wait.say(fmt::format("{}: ready ({})", unit.kind == UnitKind::Queue ? "rabbitmq" : unit.entry, seconds_since(wait.start)));
        } else if (given_up(*found)) {
            outcome.error = Error(ErrorKind::Unavailable, fmt::format("{}: {} does not start: {} (log: {})", host, unit.entry, found->detail, unit.log));
            return true;
        } else {
            all = false;
        }
    }
    outcome.workers = ready_workers;
    if (all && !services_only && wait.told.insert(host).second)
        wait.say(fmt::format("{}: {} ready ({})", host, counted(workers, "worker"), seconds_since(wait.start)));
    return all;
}

milliseconds left(Clock::time_point deadline) {
    return std::max(milliseconds(0), std::chrono::duration_cast<milliseconds>(deadline - Clock::now()));
}

/// Follows an agent of this machine until its units are READY.
void wait_for_local(Wait& wait, std::string const& host, bool services_only) {
    auto& outcome = wait.outcomes[host];
    auto const& setup = wait.hosts.at(host);
    std::string last = "nothing was reported";
    while (Clock::now() < wait.deadline) {
        auto client = ControlClient::connect(setup.plan.state);
        if (!client) {
            if (!process::alive(setup.agent)) {
                outcome.error = Error(ErrorKind::Unavailable, fmt::format("{}: its agent has ended (log: {})", host, ledger::HostPaths{setup.plan.state}.agent_log().string()));
                return;
            }
            ::poll(nullptr, 0, 20);
            continue;
        }
        if (!client->send(Json{{"op", "watch"}})) continue;
        for (;;) {
            auto line = client->receive(left(wait.deadline));
            if (!line) break; // late, or the agent has gone: looked at above
            auto document = line->contains("report") ? (*line)["report"] : *line;
            if (!document.contains("units")) continue;
            auto report = json_to<HostReport>(document);
            if (!report) continue;
            if (take_report(wait, host, *report, services_only)) return;
            for (auto const& unit : report->units)
                if (unit.state != UnitState::Ready && (!services_only || !is_worker(unit.kind)))
                    last = fmt::format("{} is {}{}{}", unit.entry, wire(unit.state), unit.detail.empty() ? "" : ": ", unit.detail);
        }
    }
    outcome.error = Error(ErrorKind::Timeout, fmt::format("{}: not ready after {}: {}", host, seconds_since(wait.start), last));
}

/// Host -> what is wrong with its tunnel, from the server's view.
std::map<std::string, std::string> tunnel_problems(Json const& status) {
    std::map<std::string, std::string> problems;
    for (auto const& document : status.value("hosts", Json::array())) {
        auto report = json_to<HostReport>(document);
        if (!report) continue;
        for (auto const& unit : report->units)
            if (unit.kind == UnitKind::Tunnel && unit.state != UnitState::Ready)
                problems[unit.entry.substr(tunnel_entry("").size())] =
                    fmt::format("its tunnel is {}{}{}", wire(unit.state), unit.detail.empty() ? "" : ": ", unit.detail);
    }
    return problems;
}

/// Follows the server's view until all hosts are READY.
void wait_for_all(Wait& wait) {
    auto open = [&] {
        std::vector<std::string> hosts;
        for (auto const& [host, setup] : wait.hosts)
            if (!wait.outcomes[host].error && !wait.told.contains(host)) hosts.push_back(host);
        return hosts;
    };
    std::map<std::string, std::string> last;
    std::int64_t version = 0;
    while (!open().empty() && Clock::now() < wait.deadline) {
        auto limit = std::min<milliseconds>(left(wait.deadline), std::chrono::seconds(10));
        auto url = fmt::format("{}/v1/status?after={}&timeout={}", wait.server, version, std::max<long long>(1, limit.count() / 1000));
        auto answer = net::http_request("GET", url, {}, {}, limit + std::chrono::seconds(5));
        if (!answer || answer->status != 200) {
            ::poll(nullptr, 0, 50);
            continue;
        }
        auto status = parse_json(answer->body);
        if (!status || !status->is_object()) continue;
        version = status->value("version", version);
        auto tunnels = tunnel_problems(*status);
        for (auto const& document : status->value("hosts", Json::array())) {
            auto report = json_to<HostReport>(document);
            if (!report || !wait.hosts.contains(report->host) || wait.outcomes[report->host].error || wait.told.contains(report->host)) continue;
            if (!document.value("connected", false)) continue;
            (void)take_report(wait, report->host, *report, false);
            for (auto const& unit : report->units)
                if (unit.state != UnitState::Ready)
                    last[report->host] = fmt::format("{} is {}{}{}", unit.entry, wire(unit.state), unit.detail.empty() ? "" : ": ", unit.detail);
        }
        for (auto const& [host, problem] : tunnels)
            if (!wait.told.contains(host)) last[host] = problem;
    }
    for (auto const& host : open())
        wait.outcomes[host].error = Error(ErrorKind::Timeout, fmt::format("{}: not ready after {}: {}", host, seconds_since(wait.start),
                                                                          last.contains(host) ? last[host] : "its agent has not reported to the server"));
}

/// Nobody reports which Workers of a Host without an agent still live: it is asked. That one cannot be reached is said by the
/// pre-flight.
void look_at_agentless(Json const& config, HostPlan const& host, std::set<std::string>& running) {
    auto record = json_to<HostRecord>(config);
    auto driver = record ? driver_for(host.name, *record) : Result<std::unique_ptr<HostDriver>>(fail(record.error()));
    auto output = driver ? (*driver)->run({record->binary, "host", "scan", "--state", record->state, "--deployment", host.desired.deployment, "--host", host.name, "--json"})
                         : Result<Output>(fail(driver.error()));
    if (!output || output->exit_code != 0) return;
    auto found = json_to<hostops::ScanReport>(std::string_view(output->out));
    if (!found) return;
    running.clear();
    for (auto const& process : found->processes) running.insert(process.entry);
    running.erase("agent");
    running.erase("host-start");
}

/// The Workers of all Hosts without an agent, once the broker is there.
std::map<std::string, HostOutcome> start_all(ledger::StatePaths const& paths, std::map<std::string, SetupResult> const& hosts, Wait const& wait, std::size_t bound) {
    std::vector<std::string> names;
    for (auto const& [host, setup] : hosts) names.push_back(host);
    std::map<std::string, HostOutcome> outcomes;
    std::mutex mutex;
    in_parallel(names, bound, [&](std::string const& host) {
        auto started = start_agentless(paths, hosts.at(host), left(wait.deadline));
        HostOutcome outcome{host, started ? started->ready : 0, started ? started->error : std::optional(started.error())};
        if (!outcome.error) wait.say(fmt::format("{}: {} ready, without agent ({})", host, counted(outcome.workers, "worker"), seconds_since(wait.start)));
        std::lock_guard lock(mutex);
        outcomes.emplace(host, std::move(outcome));
    });
    return outcomes;
}

} // namespace

Result<DeployReport> deploy(DeployOptions const& options) {
    auto start = Clock::now();
    std::mutex say_mutex;
    auto say = [&](std::string const& line) {
        std::lock_guard lock(say_mutex);
        if (options.say) options.say(line);
    };

    auto prepared = prepare(options);
    if (!prepared) return std::unexpected(prepared.error());
    auto& paths = prepared->paths;
    auto& config = prepared->config;
    auto& facts = prepared->facts;
    bool new_folder = !fs::exists(paths.root);

    auto lock = ledger::LockFile::take(paths.lock(), fmt::format("deploy {}", options.config.string()));
    if (!lock) return fail(lock.error().kind() == ErrorKind::Conflict ? lock.error().during("another deploy is at work") : lock.error());
    crash_point("deploy.after-lock");
    // From here on a refusal leaves nothing behind that was not there before.
    auto refuse = [&](Error error) -> std::unexpected<Error> {
        std::error_code ignored;
        fs::remove(paths.lock(), ignored);
        if (new_folder) fs::remove(paths.root, ignored); // only if it is empty
        return std::unexpected(std::move(error));
    };

    auto state = ledger::replay(paths.ledger());
    if (!state) return refuse(state.error());
    bool over = is_over(*state);
    if (fs::exists(paths.closing()) || state->closing) {
        if (!over || fs::exists(paths.closing()))
            return refuse(Error(ErrorKind::Conflict, fmt::format("a kill-all of \"{}\" was begun and is not finished: run ocrctl kill-all --state {} first", config.name, paths.root.string())));
    }
    bool fresh = state->entries.empty() || (state->closing && over);
    auto observed = fresh ? std::map<std::string, Observed>{} : observe(paths, *state);

    auto chosen = choose(config, facts.deployment);
    if (!chosen) return refuse(chosen.error());
    if (fresh) facts.deployment.hosts.clear();
    auto plan = Plan::from(config, facts);
    if (take_path(facts, plan)) plan = Plan::from(config, facts);
    facts.deployment.server = plan.server;
    auto problems = plan.problems;
    for (auto const& problem : ports_taken(config, plan, observed)) problems.push_back(problem);
    if (problems.empty()) {
        problems = services_missing(config, plan);
        auto here = local_driver(plan.local_host);
        for (auto const& host : plan.hosts) {
            if (!host.local) continue;
            for (auto const& problem : missing_on(*here, host, "/proc/self/exe", config.models)) problems.push_back(problem);
        }
    }
    if (!problems.empty()) return refuse(Error(ErrorKind::Unavailable, join(problems, "\n")));
    auto no_tunnel = choose_tunnels(config, facts);
    plan = Plan::from(config, facts);

    if (fresh && fs::exists(paths.ledger())) {
        std::error_code error;
        fs::rename(paths.ledger(), paths.root / fmt::format("ledger-{}.jsonl", now_millis()), error);
        if (error) return refuse(errno_error(error.value(), fmt::format("rename {}", paths.ledger().string())));
        for (auto const& host : plan.hosts) {
            if (!host.local) continue;
            ledger::HostPaths here{host.state};
            fs::rename(here.ledger(), here.root / fmt::format("ledger-{}.jsonl", now_millis()), error);
        }
    }
    if (fresh) { // a Host's desired state of last time is no generation to count from
        for (auto const& host : plan.hosts) {
            std::error_code ignored;
            fs::remove(ledger::HostPaths{paths.host(host.name)}.desired(), ignored);
            fs::remove(ledger::HostPaths{paths.host(host.name)}.report(), ignored);
        }
    }
    auto ledger = ledger::Ledger::open(paths.ledger());
    if (!ledger) return refuse(ledger.error());

    auto written = save_deployment(paths, facts.deployment);
    if (written) written = write_file_atomically(paths.config(), prepared->config_text, 0600);
    if (!written) return std::unexpected(written.error());
    crash_point("deploy.after-deployment-file");

    // Secrets
    SetupContext context;
    context.paths = paths;
    context.ledger = &*ledger;
    context.config = &config;
    context.facts = &facts;
    std::mutex facts_mutex;
    context.mutex = &facts_mutex;
    context.fresh = fresh;
    context.queue_user = plan.queue_user;
    std::string cookie;
    {
        std::vector<ledger::Record> records;
        for (char const* name : {kAmqpUrl, kQueuePassword, kErlangCookie, kAgentToken, kMongoUrl, kWorkerKey}) records.push_back(ledger::secret(name));
        written = ledger->append(std::move(records));
        if (!written) return std::unexpected(written.error());
        auto token = secret(paths.secrets(), kAgentToken, 32);
        auto erlang = secret(paths.secrets(), kErlangCookie, 24);
        auto key = secret(paths.secrets(), kWorkerKey, 24);
        Result<std::string> password = std::string("guest");
        if (config.process_queue.credentials) password = config.process_queue.credentials->password.reveal();
        else if (plan.rabbitmq) password = secret(paths.secrets(), kQueuePassword, 24);
        for (auto* made : {&token, &erlang, &key, &password})
            if (!*made) return std::unexpected(made->error());
        context.token = *token;
        context.queue_password = Secret(*password);
        context.worker_key = Secret(*key);
        cookie = *erlang;
        auto const* local = plan.host(plan.local_host);
        auto url = amqp_url(plan.queue_user, context.queue_password, local->amqp_host, local->amqp_port, config.process_queue.vhost);
        written = write_secret(paths.secrets(), kAmqpUrl, url);
        if (!written) return std::unexpected(written.error());
        if (!local->mongo_host.empty()) {
            written = write_secret(paths.secrets(), kMongoUrl, mongo_url(config.database.credentials, local->mongo_host, local->mongo_port));
            if (!written) return std::unexpected(written.error());
        }
        for (auto const& worker : plan.foreign) {
            if (worker.vhost.empty()) continue;
            written = write_secret(paths.secrets(), worker_amqp_name(worker.vhost), amqp_url(plan.queue_user, context.queue_password, local->amqp_host, local->amqp_port, worker.vhost));
            if (!written) return std::unexpected(written.error());
        }
    }
    crash_point("deploy.after-secrets");

    for (auto const& folder : {paths.logs(), paths.job_logs(), paths.store().parent_path()}) {
        written = make_folder(folder);
        if (!written) return std::unexpected(written.error());
    }
    if (plan.rabbitmq) {
        written = write_rabbitmq_files(*plan.rabbitmq, {plan.queue_user, context.queue_password, context.worker_key}, Secret(cookie));
        if (!written) return std::unexpected(written.error());
        auto here = observed.find(plan.local_host);
        written = apply_rabbitmq_definitions(*plan.rabbitmq, here != observed.end() && here->second.running.contains("queue"));
        if (!written) return std::unexpected(written.error());
    }
    written = write_file_atomically(paths.root / "server.json", plan.server_settings.dump(2) + "\n", 0600);
    if (!written) return std::unexpected(written.error());
    crash_point("deploy.after-queue-files");

    // Hosts, in parallel; each sentence names its host.
    Wait wait;
    wait.say = say;
    wait.start = start;
    wait.deadline = start + options.limit;
    wait.local_host = plan.local_host;
    wait.server = plan.server;
    std::mutex mutex;
    context.say = [&](std::string const& host, std::string const& text) { say(fmt::format("{}: {} ({})", host, text, seconds_since(start))); };
    std::vector<std::string> gone;
    for (auto const& [host, known] : state->hosts) {
        auto const* agent = state->find(agent_entry(host));
        if (!fresh && !plan.host(host) && agent && agent->open()) gone.push_back(host);
    }
    in_parallel(gone, 8, [&](std::string const& host) {
        auto done = retire(*ledger, host, state->hosts.at(host), facts.deployment.id, config.grace);
        if (done) {
            say(fmt::format("{}: stopped, it is not in the config any more ({})", host, seconds_since(start)));
        } else {
            std::lock_guard guard(mutex);
            wait.outcomes[host] = {host, 0, done.error().during(fmt::format("{}: is not in the config any more, but cannot be stopped", host))};
        }
    });
    std::vector<std::string> hosts;
    std::map<std::string, SetupResult> agentless; // Hosts that were set up, and have no agent
    for (auto const& host : plan.hosts) hosts.push_back(host.name);
    in_parallel(hosts, static_cast<std::size_t>(std::max(1, config.parallel_hosts)), [&](std::string const& host) {
        auto result =
            no_tunnel.contains(host) ? Result<SetupResult>(fail(no_tunnel.at(host))) : setup_host(context, host);
        std::lock_guard guard(mutex);
        auto& outcome = wait.outcomes[host];
        outcome.host = host;
        if (!result)
            outcome.error = result.error();
        else
            (result->plan.desired.agent ? wait.hosts : agentless).emplace(host, std::move(*result));
    });
    for (auto const& [host, outcome] : wait.outcomes)
        if (outcome.error) say(fmt::format("{}", outcome.error->message()));
    crash_point("deploy.before-wait");

    // Services first: without the server nobody tells about the other hosts.
    if (wait.hosts.contains(plan.local_host)) {
        wait_for_local(wait, plan.local_host, true);
        if (!wait.outcomes[plan.local_host].error) {
            crash_point("deploy.after-services-ready");
            auto alone = std::async(std::launch::async, [&] { return start_all(paths, agentless, wait, static_cast<std::size_t>(std::max(1, config.parallel_hosts))); });
            wait_for_all(wait);
            for (auto& [host, outcome] : alone.get()) wait.outcomes[host] = std::move(outcome);
        } else {
            for (auto const& [host, setup] : agentless) wait.outcomes[host].error = Error(ErrorKind::Unavailable, fmt::format("{}: the server is not running", host));
            for (auto const& [host, setup] : wait.hosts)
                if (!wait.outcomes[host].error) wait.outcomes[host].error = Error(ErrorKind::Unavailable, fmt::format("{}: the server is not running", host));
        }
    }
    crash_point("deploy.before-ready");
    std::vector<ledger::Record> ready;
    for (auto const* those : {&wait.hosts, &agentless})
        for (auto const& [host, setup] : *those)
            if (!wait.outcomes[host].error) ready.push_back(ledger::ready(agent_entry(host)));
    if (!ready.empty()) {
        written = ledger->append(std::move(ready));
        if (!written) return std::unexpected(written.error());
    }
    crash_point("deploy.after-ready");

    DeployReport report;
    report.id = facts.deployment.id;
    report.name = config.name;
    report.state = paths.root;
    report.server = plan.server;
    report.queue = fmt::format("amqp://{}", config::host_port(plan.host(plan.local_host)->amqp_host, plan.host(plan.local_host)->amqp_port));
    for (auto const& host : plan.hosts) report.hosts.push_back(wait.outcomes[host.name]);
    for (auto const& host : gone)
        if (wait.outcomes.contains(host)) report.hosts.push_back(wait.outcomes[host]);
    report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return report;
}

Result<fs::path> state_of(DeployOptions const& options) {
    auto config = config::load_or_error(options.config);
    if (!config) return std::unexpected(config.error());
    auto folder = ledger::state_folder(config->name, options.state.empty() ? config->state : options.state);
    if (!folder) return folder;
    return fs::absolute(*folder).lexically_normal();
}

Result<PlanReport> plan(DeployOptions const& options, bool reach_hosts) {
    auto prepared = prepare(options);
    if (!prepared) return std::unexpected(prepared.error());
    auto& facts = prepared->facts;
    auto state = ledger::replay(prepared->paths.ledger());
    if (!state) return std::unexpected(state.error());
    bool fresh = state->entries.empty() || (state->closing && is_over(*state));
    auto observed = fresh ? std::map<std::string, Observed>{} : observe(prepared->paths, *state);
    // Ports are chosen by deploy; until then the plan says "a free port".
    if (prepared->config.process_queue.port != 0) facts.deployment.queue.port = prepared->config.process_queue.port;
    auto wanted = Plan::from(prepared->config, facts);
    if (take_path(facts, wanted)) wanted = Plan::from(prepared->config, facts);
    if (reach_hosts)
        for (auto const& host : wanted.hosts)
            if (!host.desired.agent && observed.contains(host.name)) look_at_agentless(state->hosts.at(host.name), host, observed[host.name].running);
    PlanReport report;
    report.name = prepared->config.name;
    report.state = prepared->paths.root;
    report.steps = changes(wanted, observed);
    report.problems = wanted.problems;
    report.changed = std::ranges::any_of(report.steps, [](auto const& step) { return step.verb != Verb::Keep; });
    for (auto const& problem : ports_taken(prepared->config, wanted, observed)) report.problems.push_back(problem);
    for (auto const& problem : services_missing(prepared->config, wanted)) report.problems.push_back(problem);
    std::mutex mutex;
    std::vector<std::string> hosts;
    for (auto const& host : wanted.hosts)
        if (host.local || reach_hosts) hosts.push_back(host.name);
    in_parallel(hosts, 8, [&](std::string const& name) {
        auto const& host = *wanted.host(name);
        std::vector<std::string> problems;
        if (host.local) {
            problems = missing_on(*local_driver(name), host, "/proc/self/exe", prepared->config.models);
        } else {
            auto driver = ssh_driver(ssh_target(*host.config));
            bool up = observed.contains(wanted.local_host) &&
                      observed.at(wanted.local_host).running.contains(tunnel_entry(name));
            std::map<std::string, int> ports; // deploy chooses those that count
            auto tunnel =
                driver && host.tunnel ? prepare_tunnel(*host.config, *host.tunnel, up, {}, ports) : Result<void>();
            if (!tunnel) problems.push_back(tunnel.error().message());
            if (!driver) {
                problems.push_back(driver.error().message());
            } else if (!host.programs.empty()) {
                auto known = facts;
                known.deployment.hosts[name].login = login_environment(**driver);
                auto asked = Plan::from(prepared->config, known);
                problems = programs_missing(**driver, *asked.host(name));
            }
        }
        std::lock_guard lock(mutex);
        for (auto& problem : problems) report.problems.push_back(std::move(problem));
    });
    return report;
}

} // namespace ocrctl::deployer
