#include "deployer/host_setup.hpp"

#include "deployer/agentless.hpp"
#include "deployer/found_tools.hpp"
#include "lib/base/crash_point.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/hostops/control_client.hpp"

#include <algorithm>
#include <csignal>
#include <fstream>
#include <poll.h>
#include <set>
#include <sstream>

namespace ocrctl::deployer {

namespace fs = std::filesystem;
using hostops::ControlClient;
using remote::shell_quote;

OCRCTL_JSON_FIELDS(HostRecord, connection, address, port, username, private_key, host_key, known_hosts, password_file,
                   use_agent, state, binary, tunnel)

std::string agent_entry(std::string_view host) { return fmt::format("agent/{}", host); }

Result<remote::SshTarget> target_of(std::string const& host, HostRecord const& record,
                                    std::chrono::milliseconds timeout) {
    remote::SshTarget target;
    target.name = host;
    target.address = record.address;
    target.port = record.port;
    target.username = record.username;
    target.private_key = record.private_key;
    target.use_agent = record.use_agent;
    target.host_key = record.host_key;
    target.known_hosts = record.known_hosts;
    target.timeout = timeout;
    if (!record.password_file.empty()) {
        auto password = read_file(record.password_file);
        if (!password) return fail(password.error().during(host));
        target.password = Secret(*password);
    }
    return target;
}

Result<std::unique_ptr<HostDriver>> driver_for(std::string const& host, HostRecord const& record,
                                               std::chrono::milliseconds timeout) {
    if (record.connection == "local") return local_driver(host);
    auto target = target_of(host, record, timeout);
    if (!target) return std::unexpected(target.error());
    return ssh_driver(std::move(*target));
}

Result<bool> alive_on(HostDriver& driver, process::Identity const& identity) {
    if (identity.pid <= 1) return false;
    if (driver.local()) return process::alive(identity);
    auto output = driver.run({"/bin/sh", "-c", fmt::format("cat /proc/sys/kernel/random/boot_id; cat /proc/{}/stat 2>/dev/null; true", identity.pid)});
    if (!output) return std::unexpected(output.error());
    std::istringstream lines(output->out);
    std::string boot, stat;
    std::getline(lines, boot);
    std::getline(lines, stat);
    if (boot != identity.boot) return false;
    auto after = stat.rfind(") ");
    if (after == std::string::npos) return false;
    std::istringstream fields(stat.substr(after + 2));
    std::string field, state;
    std::uint64_t start = 0;
    fields >> state;
    for (int i = 4; i < 22; ++i) fields >> field; // fields 4 to 21
    fields >> start;
    return state != "Z" && state != "X" && start == identity.start;
}

namespace {

HostRecord record_of(SetupContext& context, HostPlan const& plan) {
    HostRecord record;
    if (!plan.local) {
        auto const& host = *plan.config;
        record.connection = "ssh";
        record.address = host.address;
        record.port = host.port;
        record.username = host.login.username;
        record.private_key = host.login.private_key.string();
        record.use_agent = host.login.use_agent;
        record.host_key = host.host_key;
        record.known_hosts = host.known_hosts.string();
        if (!host.login.password.empty())
            record.password_file = (context.paths.secrets() / ssh_secret(plan.name)).string();
    }
    if (plan.tunnel)
        for (auto const& item : plan.tunnel->ports) record.tunnel[item.name] = item.port;
    record.state = plan.state;
    record.binary = plan.state.empty() ? "" : ledger::HostPaths{plan.state}.bin(context.facts->build).string();
    return record;
}

/// Processes of the agent that no ledger knows (a crash between launch and identity), found by their marks.
Result<std::optional<process::Identity>> find_agent(HostDriver& driver, std::string const& deployment) {
    if (driver.local()) {
        for (auto const& found : process::scan(deployment, driver.name()))
            if (found.entry == "agent") return found.identity;
        return std::nullopt;
    }
    auto mark = [](char const* name, std::string const& value) { return shell_quote(fmt::format("{}={}", name, value)); };
    auto script = fmt::format("cat /proc/sys/kernel/random/boot_id; for e in $(grep -lzsxF {} /proc/[0-9]*/environ); do grep -qzsxF {} $e && grep -qzsxF {} $e && "
                              "cat ${{e%environ}}stat; done; true",
                              mark(process::kDeploymentMark, deployment), mark(process::kHostMark, driver.name()), mark(process::kEntryMark, "agent"));
    auto output = driver.run({"/bin/sh", "-c", script});
    if (!output) return std::unexpected(output.error());
    std::istringstream lines(output->out);
    std::string boot, stat;
    std::getline(lines, boot);
    while (std::getline(lines, stat)) {
        auto after = stat.rfind(") ");
        if (after == std::string::npos) continue;
        std::istringstream fields(stat.substr(after + 2));
        std::string state, field;
        process::Identity identity;
        identity.boot = boot;
        identity.pid = std::atoi(stat.c_str());
        fields >> state;
        for (int i = 4; i < 22; ++i) fields >> field;
        fields >> identity.start;
        if (state != "Z" && state != "X" && identity.pid > 1) return identity;
    }
    return std::nullopt;
}

Result<void> write_host_secrets(SetupContext& context, HostDriver& driver, Plan const& whole, HostPlan const& plan) {
    ledger::HostPaths there{plan.state};
    auto url = amqp_url(context.queue_user, context.queue_password, plan.amqp_host, plan.amqp_port, context.config->process_queue.vhost);
    std::vector<std::pair<std::string, std::string>> secrets{{kAmqpUrl, url}};
    if (plan.desired.agent) secrets.emplace_back(kAgentToken, context.token);
    bool foreign = std::ranges::any_of(plan.desired.units, [](auto const& unit) { return unit.kind == UnitKind::ForeignWorker; });
    if (foreign) secrets.emplace_back(kMongoUrl, mongo_url(context.config->database.credentials, plan.mongo_host, plan.mongo_port));
    for (auto const& worker : whole.foreign)
        if (worker.host == plan.name && !worker.vhost.empty())
            secrets.emplace_back(worker_amqp_name(worker.vhost),
                                 amqp_url(worker.vhost, worker_password(context.worker_key, worker.vhost), plan.amqp_host, plan.amqp_port, worker.vhost));
    for (auto const& [name, value] : secrets) {
        auto written = driver.local() ? write_secret(there.secrets(), name, value) : driver.put((there.secrets() / name).string(), value, 0600);
        if (!written) return written;
    }
    return {};
}

/// What the tunnels of this machine read, before its agent starts them.
Result<void> write_all_tunnels(SetupContext& context, Plan const& plan) {
    std::vector<TunnelSettings> tunnels;
    for (auto const& host : plan.hosts) {
        if (!host.tunnel) continue;
        if (!host.tunnel->password_file.empty()) {
            auto written =
                write_secret(context.paths.secrets(), ssh_secret(host.name), host.config->login.password.reveal());
            if (!written) return written;
        }
        tunnels.push_back(*host.tunnel);
    }
    return write_tunnels(plan.host(plan.local_host)->state, std::move(tunnels));
}

/// Decides the generation and writes STATE/hosts/H/desired.json, which on this machine is the agent's own file.
Result<DesiredState> write_desired(SetupContext& context, HostPlan const& plan) {
    auto desired = plan.desired;
    desired.generation = 1;
    ledger::HostPaths here{context.paths.host(plan.name)};
    auto before = read_file(here.desired());
    if (before) {
        auto old = json_to<DesiredState>(std::string_view(*before));
        if (old && same(*old, desired)) return *old;
        if (old) desired.generation = old->generation + 1;
    }
    auto made = make_folder(here.root);
    if (!made) return std::unexpected(made.error());
    auto written = write_file_atomically(here.desired(), dump(Json(desired)) + "\n");
    if (!written) return std::unexpected(written.error());
    return desired;
}

/// Until the agent's socket answers or the agent has ended.
Result<ControlClient> wait_for_socket(ledger::HostPaths const& paths, process::Identity const& agent, std::chrono::milliseconds limit) {
    auto deadline = std::chrono::steady_clock::now() + limit;
    for (;;) {
        auto client = ControlClient::connect(paths.root);
        if (client) return client;
        if (!process::alive(agent)) {
            auto log = read_file(paths.agent_log());
            auto text = log ? std::string(trim(*log)) : std::string();
            if (auto library = process::missing_library(text)) return fail(ErrorKind::Unavailable, "{}", *library);
            auto line = text.substr(text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1);
            return fail(ErrorKind::Unavailable, "the agent ended at once: {} ({})", line, paths.agent_log().string());
        }
        if (std::chrono::steady_clock::now() > deadline)
            return fail(ErrorKind::Timeout, "the agent does not answer on {} ({})", paths.socket().string(), paths.agent_log().string());
        ::poll(nullptr, 0, 10);
    }
}

Result<void> wait_until_gone(HostDriver& driver, process::Identity const& identity, std::chrono::milliseconds limit) {
    auto deadline = std::chrono::steady_clock::now() + limit;
    for (;;) {
        auto lives = alive_on(driver, identity);
        if (!lives) return std::unexpected(lives.error());
        if (!*lives) return {};
        if (std::chrono::steady_clock::now() > deadline) return fail(ErrorKind::Timeout, "pid {} does not end", identity.pid);
        ::poll(nullptr, 0, 10);
    }
}

std::string model_package(std::string const& model) {
    auto name = model;
    if (name.starts_with("script/")) return "tesseract-ocr-script-" + name.substr(7, 4);
    for (auto& c : name)
        if (c == '_') c = '-';
    return "tesseract-ocr-" + name;
}

} // namespace

Result<void> end_agent(HostDriver& driver, HostPlan const& plan, process::Identity const& agent) {
    if (driver.local()) {
        if (auto client = ControlClient::connect(plan.state)) {
            auto asked = client->ask(Json{{"op", "exit"}}, std::chrono::seconds(3));
            if (asked && wait_until_gone(driver, agent, std::chrono::seconds(5))) return {};
        }
        (void)process::signal_one(agent, SIGKILL);
    } else {
        // By identity: the shell there compares the start time right before it signals.
        auto lives = alive_on(driver, agent);
        if (!lives) return std::unexpected(lives.error());
        if (*lives) {
            auto killed = driver.run({"/bin/sh", "-c", fmt::format("kill -KILL {}", agent.pid)});
            if (!killed) return std::unexpected(killed.error());
        }
    }
    return wait_until_gone(driver, agent, std::chrono::seconds(5));
}

std::map<std::string, std::string> login_environment(HostDriver& driver) {
    std::map<std::string, std::string> env;
    // Interactive and login, since both kinds of profile are used for this; what it prints besides is no matter.
    auto output = driver.run({"/bin/sh", "-c", "\"${SHELL:-/bin/sh}\" -lic 'env -0' </dev/null 2>/dev/null; true"}, {}, std::chrono::seconds(15));
    if (!output) return env;
    for (auto entry : split(output->out, '\0')) {
        // The first one comes after whatever the profile prints.
        auto line = entry.rfind('\n', entry.find('='));
        if (line != std::string::npos) entry.erase(0, line + 1);
        auto equals = entry.find('=');
        if (equals == std::string::npos) continue;
        auto name = entry.substr(0, equals);
        static std::set<std::string> const kWanted{"PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TESSDATA_PREFIX", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR"};
        if (name.starts_with("OCRD_") || kWanted.contains(name)) env[name] = entry.substr(equals + 1);
    }
    if (!env.contains("PATH")) env.clear();
    return env;
}

std::vector<std::string> programs_missing(HostDriver& driver, HostPlan const& plan) {
    std::vector<std::string> problems;
    for (auto const& program : plan.programs) {
        auto script = fmt::format("{}command -v -- {} >/dev/null", program.path.empty() ? "" : fmt::format("PATH={}; ", shell_quote(program.path)), shell_quote(program.executable));
        auto output = driver.run({"/bin/sh", "-c", script});
        if (!output) problems.push_back(output.error().message());
        else if (output->exit_code != 0 && program.executable.find('/') != std::string::npos)
            problems.push_back(fmt::format("{0}: {1} is no program on {0}", plan.name, program.executable));
        else if (output->exit_code != 0)
            problems.push_back(fmt::format("{0}: {1} is not in PATH of {0} ({2}): install it there, or name its file by executable:", plan.name, program.executable,
                                           program.path.empty() ? "that of its agent" : program.path));
    }
    return problems;
}

std::vector<std::string> missing_on(HostDriver& driver, HostPlan const& plan, std::string const& binary, std::vector<fs::path> const& model_folders) {
    std::vector<std::string> problems;
    auto version = driver.run({binary, "--version"});
    if (!version) {
        problems.push_back(version.error().message());
        return problems;
    }
    if (version->exit_code != 0) {
        auto library = process::missing_library(version->err);
        problems.push_back(fmt::format("{}: {}", plan.name,
                                       library ? *library
                                               : fmt::format("ocrctl does not run there (exit code {}): {}", version->exit_code, trim(version->err.substr(0, 300)))));
        return problems;
    }
    for (auto& problem : programs_missing(driver, plan)) problems.push_back(std::move(problem));
    if (!plan.models.empty()) {
        std::string folders;
        for (auto const& folder : model_folders) folders += " " + shell_quote(folder.string());
        folders += " \"$TESSDATA_PREFIX\" \"$TESSDATA_PREFIX/tessdata\" /usr/share/tesseract-ocr/5/tessdata /usr/share/tesseract-ocr/4.00/tessdata /usr/share/tessdata "
                   "/usr/local/share/tessdata";
        std::string models;
        for (auto const& model : plan.models) models += " " + shell_quote(model);
        auto script = fmt::format("for m in{}; do f=; for d in{}; do if [ -e \"$d/$m.traineddata\" ] || [ -e \"$d/script/$m.traineddata\" ]; then f=1; fi; case \"$d\" in "
                                  "*/\"$m.traineddata\") [ -e \"$d\" ] && f=1;; esac; done; [ -n \"$f\" ] || echo \"$m\"; done",
                                  models, folders);
        auto output = driver.run({"/bin/sh", "-c", script});
        if (output) {
            for (auto const& model : split(trim(output->out), '\n'))
                problems.push_back(fmt::format("{}: the language model {} is not installed: apt-get install {}, or name the folder that holds {}.traineddata by models:", plan.name,
                                               model, model_package(model), model));
        }
    }
    return problems;
}

Result<SetupResult> setup_host(SetupContext& context, std::string const& host) {
    auto during = [&](Error const& error) { return std::unexpected(error.message().starts_with(host) ? error : error.during(host)); };
    auto snapshot = [&] {
        std::lock_guard lock(*context.mutex);
        return Plan::from(*context.config, *context.facts);
    };
    auto plan = snapshot();
    auto const* wanted = plan.host(host);
    if (!wanted) return fail(ErrorKind::NotFound, "{}: the config has no such host", host);

    // The record first, so that kill-all knows the Host whatever happens next.
    auto record = record_of(context, *wanted);
    if (!record.password_file.empty()) {
        auto written = write_secret(context.paths.secrets(), fs::path(record.password_file).filename().string(), wanted->config->login.password.reveal());
        if (!written) return during(written.error());
    }
    auto driver = driver_for(host, record);
    if (!driver) return during(driver.error());

    std::string boot; // of another machine
    if (!wanted->local) {
        crash_point("deploy.after-remote-connect");
        auto look = (*driver)->look();
        if (!look) return during(look.error());
        boot = look->boot;
        auto root = wanted->config->state.empty() ? look->state_root : wanted->config->state;
        auto folder = (fs::path(root) / context.config->name / "hosts" / host).lexically_normal().string();
        if (!fs::path(folder).is_absolute()) return fail(ErrorKind::Invalid, "{}: state: {} is not an absolute path", host, root);
        auto login = wanted->programs.empty() ? std::map<std::string, std::string>{} : login_environment(**driver);
        {
            std::lock_guard lock(*context.mutex);
            auto& fact = context.facts->deployment.hosts[host];
            if (!fact.state.empty() && fact.state != folder && !context.fresh)
                return fail(ErrorKind::Conflict, "{}: its state folder was {} and is {} now: run ocrctl kill-all first", host, fact.state, folder);
            fact.state = folder;
            if (!wanted->programs.empty()) fact.login = std::move(login);
        }
        plan = snapshot();
        wanted = plan.host(host);
        record = record_of(context, *wanted);
    }
    {
        std::lock_guard lock(*context.mutex);
        context.facts->deployment.hosts[host].state = wanted->state;
        auto saved = save_deployment(context.paths, context.facts->deployment);
        if (!saved) return during(saved.error());
    }
    auto recorded = context.ledger->append(ledger::host(host, Json(record)));
    if (!recorded) return during(recorded.error());
    crash_point("deploy.after-host-record");

    ledger::HostPaths there{wanted->state};
    if (context.fresh && !wanted->local) {
        // A finished deployment's ledger is history: the agent starts a new one.
        auto script = fmt::format("cd {} 2>/dev/null || exit 0; rm -f closing desired.json; [ -e ledger.jsonl ] && mv -f ledger.jsonl ledger-$(date +%s).jsonl; true",
                                  shell_quote(wanted->state));
        auto cleaned = (*driver)->run({"/bin/sh", "-c", script});
        if (!cleaned) return during(cleaned.error());
    }
    auto brought = (*driver)->bring("/proc/self/exe", record.binary);
    if (!brought) return during(brought.error());
    if (!wanted->local) crash_point("deploy.after-remote-binary");
    auto missing = missing_on(**driver, *wanted, record.binary, context.config->models);
    if (!missing.empty()) return fail(ErrorKind::Unavailable, "{}", join(missing, "\n"));

    if (!wanted->local && !wanted->programs.empty()) { // the server asks those of its own machine
        auto silent = ask_programs(**driver, wanted->desired.units, context.paths.root / "found-tools.json");
        if (!silent) return during(silent.error());
        for (auto const& processor : *silent)
            if (context.say)
                context.say(
                    host, fmt::format(
                              "{} --dump-json does not tell what it is: its Jobs need an ocrd-all-tool.json in tools:",
                              processor));
    }

    auto secrets = write_host_secrets(context, **driver, plan, *wanted);
    if (!secrets) return during(secrets.error());
    if (host == plan.local_host) {
        auto tunnels = write_all_tunnels(context, plan);
        if (!tunnels) return during(tunnels.error());
    }
    auto desired = write_desired(context, *wanted);
    if (!desired) return during(desired.error());
    if (wanted->local) crash_point("deploy.after-desired");

    SetupResult result;
    result.plan = *wanted;
    result.plan.desired = *desired;
    result.record = record;
    if (!desired->agent) {
        auto prepared = prepare_agentless(context, **driver, *wanted, boot);
        if (!prepared) return during(prepared.error());
        auto put = (*driver)->put(there.desired().string(), dump(Json(*desired)) + "\n", 0644);
        if (!put) return during(put.error());
        crash_point("deploy.after-agentless-desired");
        return result;
    }

    // The agent: known and alive, alive but unknown, or to be started.
    auto state = context.ledger->replay();
    if (!state) return during(state.error());
    auto entry = agent_entry(host);
    auto const* known = state->find(entry);
    std::optional<process::Identity> agent;
    if (known && known->identity && !known->stopped) {
        auto lives = alive_on(**driver, *known->identity);
        if (!lives) return during(lives.error());
        if (*lives) agent = known->identity;
    }
    if (!agent) {
        auto found = find_agent(**driver, wanted->desired.deployment);
        if (!found) return during(found.error());
        if (*found) {
            agent = *found;
            auto written = context.ledger->append({ledger::intent(entry, "agent", host, Json{{"adopted", true}}), ledger::identity(entry, *agent)});
            if (!written) return during(written.error());
        }
    }
    auto bin_of_agent = known ? known->spec.value("binary", std::string()) : std::string();
    if (agent && bin_of_agent != record.binary) { // another build: the next agent adopts what runs
        auto ended = end_agent(**driver, *wanted, *agent);
        if (!ended) return during(ended.error());
        agent.reset();
    }
    if (agent && wanted->local && !ControlClient::connect(there.root)) { // it lives but nobody is at home
        auto ended = end_agent(**driver, *wanted, *agent);
        if (!ended) return during(ended.error());
        agent.reset();
    }
    if (!wanted->local) {
        auto put = (*driver)->put(there.desired().string(), dump(Json(*desired)) + "\n", 0644);
        if (!put) return during(put.error());
        crash_point("deploy.after-remote-desired");
    }
    if (!agent) {
        Json spec = {{"argv", Json::array({record.binary, "agent", "--state", wanted->state})}, {"binary", record.binary}, {"socket", there.socket().string()}, {"state", wanted->state}};
        auto intent = context.ledger->append(ledger::intent(entry, "agent", host, std::move(spec)));
        if (!intent) return during(intent.error());
        crash_point(wanted->local ? "deploy.after-agent-intent" : "deploy.after-remote-intent");
        Launch launch;
        launch.argv = {record.binary, "agent", "--state", wanted->state};
        launch.env = {{process::kDeploymentMark, wanted->desired.deployment}, {process::kHostMark, host}, {process::kEntryMark, "agent"}};
        launch.log = there.agent_log().string();
        auto identity = (*driver)->launch(launch);
        if (!identity) return during(identity.error());
        crash_point(wanted->local ? "deploy.after-agent-launch" : "deploy.after-remote-launch");
        auto written = context.ledger->append(ledger::identity(entry, *identity));
        if (!written) return during(written.error());
        crash_point(wanted->local ? "deploy.after-agent-identity" : "deploy.after-remote-identity");
        agent = *identity;
        result.started = true;
    }
    result.agent = *agent;
    if (wanted->local) {
        auto client = wait_for_socket(there, *agent, std::chrono::seconds(20));
        if (!client) return during(client.error());
        auto ready = context.ledger->append(ledger::ready(entry));
        if (!ready) return during(ready.error());
        crash_point("deploy.after-agent-ready");
        auto applied = client->ask(Json{{"op", "apply"}, {"desired", Json(*desired)}});
        if (!applied) return during(applied.error());
        crash_point("deploy.after-apply");
    }
    if (context.say) context.say(host, result.started ? fmt::format("agent started, pid {}", agent->pid) : fmt::format("agent runs, pid {}", agent->pid));
    return result;
}

} // namespace ocrctl::deployer
