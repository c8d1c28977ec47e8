// The host agent with real processes: what it starts, restarts, adopts, drains, refuses, leaves alone.
#include "host_agent/agent_unit.hpp"
#include "lib/base/ids.hpp"
#include "lib/hostops/control_client.hpp"
#include "lib/hostops/host_ops.hpp"
#include "lib/hostops/start.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/ledger/paths.hpp"
#include "lib/net/server.hpp"

#include <algorithm>
#include <arpa/inet.h>
#include <csignal>
#include <fstream>
#include <gtest/gtest.h>
#include <mutex>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>

namespace ocrctl {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

template <class Condition>
bool eventually(Condition condition, std::chrono::milliseconds limit = 15s) {
    auto end = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        ::poll(nullptr, 0, 10);
    }
    return true;
}

class AgentTest : public testing::Test {
protected:
    void SetUp() override {
        ASSERT_TRUE(make_folder(folder).has_value());
        desired.deployment = "test-" + random_hex(6);
        desired.host = "h1";
        desired.generation = 1;
    }

    void TearDown() override {
        if (HasFailure())
            if (auto log = read_file(folder / "agent.out")) fmt::print("--- agent\n{}", *log);
        (void)hostops::close(folder);
        (void)hostops::stop(folder, *hostops::parse_kinds("all"), 0ms);
        for (auto const& agent : agents)
            if (!process::wait_for(agent.pidfd.get(), 5s)) {
                (void)process::signal_one(agent.identity, SIGKILL);
                (void)process::wait_for(agent.pidfd.get(), 5s);
            }
        auto left = process::scan(desired.deployment);
        EXPECT_TRUE(left.empty()) << "pid " << left.front().identity.pid << " " << left.front().command;
        for (auto const& found : left) (void)process::signal_one(found.identity, SIGKILL);
        remove_tree(folder);
    }

    void start_agent(std::map<std::string, std::string> env = {}) {
        process::SpawnOptions options;
        options.argv = {AGENT_PROGRAM, folder.string(), std::to_string(silence.count())};
        options.env = std::move(env);
        options.log = folder / "agent.out";
        auto child = process::spawn(options);
        ASSERT_TRUE(child.has_value()) << child.error().message();
        agents.push_back(std::move(*child));
    }
    void kill_agent() {
        ASSERT_TRUE(process::signal_one(agents.back().identity, SIGKILL).has_value());
        ASSERT_TRUE(process::wait_for(agents.back().pidfd.get(), 5s).has_value());
    }
    bool agent_listens() {
        return eventually([&] { return hostops::ControlClient::connect(folder).has_value(); });
    }

    UnitSpec shell(std::string entry, std::string script, UnitKind kind = UnitKind::Server) {
        UnitSpec spec;
        spec.entry = std::move(entry);
        spec.kind = kind;
        spec.argv = {"/bin/sh", "-c", std::move(script)};
        spec.grace_s = 1;
        return spec;
    }
    UnitSpec worker(std::string slot, std::string mode = "") {
        UnitSpec spec;
        spec.entry = slot;
        spec.kind = UnitKind::Worker;
        spec.argv = {AGENT_PROGRAM, "worker", std::move(slot), std::move(mode)};
        spec.ready.kind = "report";
        spec.assignment = Json{{"processor", "ocrd-ocrctl-dummy"}};
        spec.grace_s = 1;
        return spec;
    }
    void write_desired() { ASSERT_TRUE(write_file_atomically(folder / "desired.json", dump(Json(desired))).has_value()); }

    Result<Json> ask(Json request, std::chrono::milliseconds limit = 20s) {
        auto client = hostops::ControlClient::connect(folder);
        if (!client) return std::unexpected(client.error());
        return client->ask(request, limit);
    }
    Result<Json> apply() {
        ++desired.generation;
        return ask(Json{{"op", "apply"}, {"desired", desired}});
    }
    UnitReport unit(std::string const& entry) {
        auto reply = ask(Json{{"op", "status"}});
        if (!reply) return {};
        auto report = (*reply)["report"].get<HostReport>();
        for (auto const& row : report.units)
            if (row.entry == entry) return row;
        return {};
    }
    bool reaches(std::string const& entry, UnitState state, std::chrono::milliseconds limit = 15s) {
        bool there = eventually([&] { return unit(entry).entry == entry && unit(entry).state == state; }, limit);
        if (!there) ADD_FAILURE() << entry << " is " << wire(unit(entry).state) << ": " << unit(entry).detail;
        return there;
    }
    /// Ready with a process that is not this one: asked in one report, as another one may say something else.
    bool runs_anew(std::string const& entry, int before, std::chrono::milliseconds limit = 15s) {
        return eventually([&] {
            auto row = unit(entry);
            return row.state == UnitState::Ready && row.pid > 0 && row.pid != before;
        }, limit);
    }
    /// To its process; never to process 0, which is everybody in our own group.
    bool signal(std::string const& entry, int number) {
        auto pid = unit(entry).pid;
        return pid > 0 && ::kill(pid, number) == 0;
    }
    std::string log_of(std::string const& entry) {
        auto text = read_file(folder / "logs" / (ledger::entry_file_name(entry) + ".log"));
        return text ? *text : "";
    }
    ledger::LedgerState book() { return *ledger::replay(folder / "ledger.jsonl"); }
    std::size_t starts_of(std::string const& entry) {
        auto text = read_file(folder / "ledger.jsonl");
        std::size_t count = 0;
        for (std::size_t at = 0; text && (at = text->find('\n', at)) != std::string::npos; ++at) {}
        std::ifstream lines(folder / "ledger.jsonl");
        for (std::string line; std::getline(lines, line);)
            if (auto json = parse_json(line); json && json->value("op", "") == "intent" && json->value("entry", "") == entry) ++count;
        return count;
    }

    fs::path folder = fs::temp_directory_path() / ("oa-" + random_hex(4));
    DesiredState desired;
    std::chrono::milliseconds silence = 10s;
    std::vector<process::Child> agents;
};

int free_port() {
    int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
    socklen_t size = sizeof address;
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
    ::close(fd);
    return ntohs(address.sin_port);
}

TEST_F(AgentTest, StartsWhatIsDesiredWithItsMarksAndSecretsAndRecordsIt) {
    ASSERT_TRUE(write_file_atomically(folder / "password", "s3cret\n", 0600).has_value());
    auto spec = shell("a", "echo $OCRCTL_DEPLOYMENT $OCRCTL_HOST $OCRCTL_ENTRY $COLOUR $PASSWORD $OCRCTL_AGENT_SOCKET; exec sleep 60");
    spec.env = {{"COLOUR", "blue"}};
    spec.env_files = {{"PASSWORD", (folder / "password").string()}};
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("a", UnitState::Ready));
    EXPECT_TRUE(eventually([&] {
        return log_of("a") == fmt::format("{} h1 a blue s3cret {}\n", desired.deployment, ledger::host_socket_path(folder).string());
    })) << log_of("a");
    auto state = book();
    auto const* entry = state.find("a");
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->identity->pid, unit("a").pid);
    EXPECT_TRUE(process::alive(*entry->identity));
    EXPECT_TRUE(entry->ready);
    EXPECT_EQ(read_file(folder / "ledger.jsonl")->find("s3cret"), std::string::npos);
    struct stat info {};
    ASSERT_EQ(::stat(ledger::host_socket_path(folder).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600U);
}

TEST_F(AgentTest, PutsASecretIntoTheCommandLineOfAForeignWorkerAtItsStartAlone) {
    ASSERT_TRUE(write_file_atomically(folder / "url", "amqp://w:s3cret@127.0.0.1/\n", 0600).has_value());
    UnitSpec spec;
    spec.entry = "h1/ocrd-dummy-1/shard-0/rep-0";
    spec.kind = UnitKind::ForeignWorker;
    spec.argv = {"/bin/sh", "-c", "echo $0 $1; exec sleep 60", "worker", file_word((folder / "url").string())};
    spec.assignment = Json{{"processor", "ocrd-dummy"}};
    spec.grace_s = 1;
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches(spec.entry, UnitState::Ready));
    EXPECT_TRUE(eventually([&] { return log_of(spec.entry) == "worker amqp://w:s3cret@127.0.0.1/\n"; })) << log_of(spec.entry);
    EXPECT_EQ(unit(spec.entry).processor, "ocrd-dummy");
    for (char const* file : {"ledger.jsonl", "desired.json"}) EXPECT_EQ(read_file(folder / file)->find("s3cret"), std::string::npos) << file;
    // Killed, it is started again; without its file it is said what is missing.
    auto first = unit(spec.entry).pid;
    ASSERT_GT(first, 0);
    ASSERT_EQ(::kill(first, SIGKILL), 0);
    ASSERT_TRUE(runs_anew(spec.entry, first));
    EXPECT_EQ(unit(spec.entry).restarts, 1);
    EXPECT_FALSE(unit(spec.entry).last_exit.empty());
    ASSERT_TRUE(fs::remove(folder / "url"));
    ASSERT_TRUE(signal(spec.entry, SIGKILL));
    ASSERT_TRUE(reaches(spec.entry, UnitState::Failed));
    EXPECT_NE(unit(spec.entry).detail.find((folder / "url").string()), std::string::npos) << unit(spec.entry).detail;
}

TEST_F(AgentTest, AForeignWorkerIsStartedOnceItsServicesAcceptAndReadyOnceItIsConnected) {
    auto port = free_port();
    auto address = fmt::format("127.0.0.1:{}", port);
    auto spec = shell("w", fmt::format("exec python3 -c 'import os, socket, time\nwhile not os.path.exists(\"{}\"): time.sleep(0.02)\ns = socket.create_connection((\"127.0.0.1\", {}))\n"
                                       "time.sleep(60)'",
                                       (folder / "go").string(), port),
                      UnitKind::ForeignWorker);
    spec.needs_tcp = {address};
    spec.ready = {"connected", address, {}, 30};
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(eventually([&] { return unit("w").detail == "waits for " + address; })) << unit("w").detail;
    EXPECT_EQ(starts_of("w"), 0U);
    process::SpawnOptions options;
    options.argv = {"python3", "-m", "http.server", "--bind", "127.0.0.1", std::to_string(port)};
    auto service = process::spawn(options);
    ASSERT_TRUE(service.has_value());
    EXPECT_TRUE(reaches("w", UnitState::Starting));
    ASSERT_TRUE(write_file_atomically(folder / "go", "").has_value());
    EXPECT_TRUE(reaches("w", UnitState::Ready));
    EXPECT_EQ(starts_of("w"), 1U);
    (void)process::signal_one(service->identity, SIGKILL);
    (void)process::wait_for(service->pidfd.get(), 5s);
}

TEST_F(AgentTest, IsTheOnlyOneOnItsFolder) {
    start_agent();
    ASSERT_TRUE(agent_listens());
    start_agent();
    auto status = process::wait_for(agents.back().pidfd.get(), 10s);
    ASSERT_TRUE(status.has_value());
    EXPECT_EQ(status->code, 1);
    EXPECT_NE(read_file(folder / "agent.out")->find("an agent runs here already"), std::string::npos);
}

TEST_F(AgentTest, StartsInTheOrderOfNeedsAndWaitsForReadiness) {
    auto port = free_port();
    auto queue = shell("queue", "sleep 0.3; exec python3 -m http.server --bind 127.0.0.1 " + std::to_string(port), UnitKind::Queue);
    queue.ready = {"tcp", fmt::format("127.0.0.1:{}", port), {}, 20};
    auto server = shell("server", "echo up; exec sleep 60");
    server.needs = {"queue"};
    server.ready = {"http", fmt::format("http://127.0.0.1:{}/", port), {}, 20};
    auto last = shell("last", "exec sleep 60", UnitKind::Worker);
    last.needs = {"server"};
    last.ready = {"exec", "", {"/bin/sh", "-c", "test -e " + (folder / "go").string()}, 20};
    desired.units = {last, server, queue};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    EXPECT_EQ(unit("server").state, UnitState::Waiting);
    EXPECT_EQ(unit("server").detail, "waits for queue");
    ASSERT_TRUE(reaches("server", UnitState::Ready));
    EXPECT_EQ(unit("last").state, UnitState::Starting);
    std::ofstream(folder / "go") << "";
    ASSERT_TRUE(reaches("last", UnitState::Ready));
    auto order = book().order;
    EXPECT_EQ(order, (std::vector<std::string>{"queue", "server", "last"}));
}

TEST_F(AgentTest, RestartsWhatCrashesAtOnceAndThenWithBackOffTellingTheReason) {
    auto spec = shell("a", "echo 'cannot open the port' >&2; exit 7");
    spec.ready = {"tcp", "127.0.0.1:1", {}, 20};
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    EXPECT_TRUE(eventually([&] { return unit("a").restarts >= 3; }));
    EXPECT_EQ(unit("a").detail, "ended with code 7: cannot open the port");
    EXPECT_EQ(unit("a").state, UnitState::Failed);
    EXPECT_LE(starts_of("a"), 5U);
    EXPECT_EQ(host_agent::restart_delay(1), 0s);
    EXPECT_EQ(host_agent::restart_delay(2), 1s);
    EXPECT_EQ(host_agent::restart_delay(4), 4s);
    EXPECT_EQ(host_agent::restart_delay(99), 30s);
}

TEST_F(AgentTest, BringsBackAKilledUnitAtOnce) {
    desired.units = {shell("a", "exec sleep 60")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("a", UnitState::Ready));
    auto before = unit("a").pid;
    ASSERT_GT(before, 0);
    ASSERT_EQ(::kill(before, SIGKILL), 0);
    EXPECT_TRUE(runs_anew("a", before, 3s));
    EXPECT_EQ(book().find("a")->status, "");
    EXPECT_EQ(starts_of("a"), 2U);
}

TEST_F(AgentTest, TellsAMissingLibraryAndAMissingProgramApart) {
    auto library = shell("a", "echo 'x: error while loading shared libraries: libtesseract.so.5: cannot open shared object file: No such file' >&2; exit 127");
    auto program = shell("b", "");
    program.argv = {"no-such-program-here"};
    desired.units = {library, program};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    EXPECT_TRUE(eventually([&] {
        return unit("a").detail == "the shared library libtesseract.so.5 is not installed: apt-get install libtesseract5";
    })) << unit("a").detail;
    EXPECT_TRUE(eventually([&] { return unit("b").state == UnitState::Failed; }));
    EXPECT_EQ(unit("b").detail, "start no-such-program-here: no program no-such-program-here in PATH");
}

TEST_F(AgentTest, KilledDisturbsNothingAndIsReplacedByOneThatAdopts) {
    desired.units = {shell("a", "trap 'exit 5' USR1; while :; do sleep 0.05; done"), worker("h1/w/shard-0/rep-0")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("a", UnitState::Ready));
    ASSERT_TRUE(reaches("h1/w/shard-0/rep-0", UnitState::Ready));
    auto a = unit("a").pid, w = unit("h1/w/shard-0/rep-0").pid;
    kill_agent();
    EXPECT_TRUE(process::identity_of(a).has_value());
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("a", UnitState::Ready));
    ASSERT_TRUE(reaches("h1/w/shard-0/rep-0", UnitState::Ready));
    EXPECT_EQ(unit("a").pid, a);
    EXPECT_EQ(unit("h1/w/shard-0/rep-0").pid, w);
    EXPECT_EQ(starts_of("a"), 1U);
    // It is watched, though it is nobody's child here.
    ASSERT_GT(a, 0);
    ASSERT_EQ(::kill(a, SIGUSR1), 0);
    EXPECT_TRUE(eventually([&] { return unit("a").pid != a && unit("a").pid != 0; }));
    EXPECT_EQ(starts_of("a"), 2U);
}

TEST_F(AgentTest, KilledAtAnyPointOfAStartNeverLeavesTwo) {
    for (std::string point : {"agent.after-lock", "agent.after-socket", "agent.after-intent", "agent.after-spawn", "agent.after-identity", "agent.after-ready"}) {
        SCOPED_TRACE(point);
        auto entry = "unit-" + point.substr(12);
        desired.units = {shell(entry, "echo started; exec sleep 60")};
        write_desired();
        start_agent({{"OCRCTL_CRASH_AT", point}});
        auto status = process::wait_for(agents.back().pidfd.get(), 15s);
        ASSERT_TRUE(status.has_value());
        EXPECT_EQ(status->signal, SIGKILL);
        start_agent();
        ASSERT_TRUE(agent_listens());
        ASSERT_TRUE(reaches(entry, UnitState::Ready));
        EXPECT_TRUE(eventually([&] { return log_of(entry) == "started\n"; })) << log_of(entry);
        auto found = process::scan(desired.deployment);
        EXPECT_EQ(std::ranges::count(found, entry, &process::Found::entry), 1);
        EXPECT_EQ(book().find(entry)->identity->pid, unit(entry).pid);
        ASSERT_TRUE(ask(Json{{"op", "exit"}}).has_value());
        ASSERT_TRUE(process::wait_for(agents.back().pidfd.get(), 5s).has_value());
    }
}

TEST_F(AgentTest, EndedBySigtermLeavesItsUnitsAlone) {
    desired.units = {shell("a", "exec sleep 60")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("a", UnitState::Ready));
    auto pid = unit("a").pid;
    ASSERT_TRUE(process::signal_one(agents.back().identity, SIGTERM).has_value());
    auto status = process::wait_for(agents.back().pidfd.get(), 5s);
    ASSERT_TRUE(status.has_value());
    EXPECT_EQ(status->text(), "ended with code 0");
    EXPECT_TRUE(process::identity_of(pid).has_value());
    EXPECT_FALSE(fs::exists(ledger::host_socket_path(folder)));
}

TEST_F(AgentTest, EndsAtOnceThoughAUnitTakesItsTimeToStop) {
    auto spec = shell("a", "trap '' TERM; while :; do sleep 0.1; done");
    spec.grace_s = 60;
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("a", UnitState::Ready));
    desired.units.clear();
    ASSERT_TRUE(apply().has_value());
    ASSERT_TRUE(reaches("a", UnitState::Stopping));
    ASSERT_TRUE(process::signal_one(agents.back().identity, SIGTERM).has_value());
    EXPECT_TRUE(process::wait_for(agents.back().pidfd.get(), 8s).has_value());
    start_agent();
    ASSERT_TRUE(agent_listens());
    EXPECT_TRUE(reaches("a", UnitState::Stopping)); // it goes on where the last one was
}

TEST_F(AgentTest, IsItselfABystanderWhenTheServerStartedIt) {
    // The server brings a lost agent back, so the agent may be its descendant and yet has to adopt and to stop it.
    auto script = fmt::format("while [ ! -e {0}/kill ]; do sleep 0.05; done; OCRCTL_ENTRY=agent setsid {1} {0} >>{0}/agent.out 2>&1 & while :; do sleep 0.05; done",
                              folder.string(), AGENT_PROGRAM);
    desired.units = {shell("server", script)};
    write_desired();
    start_agent({{"OCRCTL_CRASH_AT", "agent.after-spawn"}});
    ASSERT_TRUE(process::wait_for(agents.back().pidfd.get(), 15s).has_value());
    auto before = process::scan(desired.deployment);
    auto leader = std::ranges::find_if(before, [](auto const& f) { return process::row_of(f.identity.pid)->session == f.identity.pid; });
    ASSERT_NE(leader, before.end());
    std::ofstream(folder / "kill") << "";
    // The variable of the crash point was inherited by the unit and by its agent, which never spawns: it adopts.
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("server", UnitState::Ready));
    EXPECT_EQ(unit("server").pid, leader->identity.pid);
    auto stopped = ask(Json{{"op", "stop"}, {"kinds", {"server"}}, {"grace_s", 1}});
    ASSERT_TRUE(stopped.has_value());
    EXPECT_TRUE(stopped->at("left").empty());
    EXPECT_FALSE(process::alive(leader->identity));
}

TEST_F(AgentTest, ChangesOnlyWhatDiffers) {
    desired.units = {shell("same", "exec sleep 60"), shell("changed", "exec sleep 61"), shell("gone", "exec sleep 62")};
    desired.units[2].remove = {(folder / "gone.sock").string()};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    for (auto const* entry : {"same", "changed", "gone"}) ASSERT_TRUE(reaches(entry, UnitState::Ready));
    std::ofstream(folder / "gone.sock") << "";
    auto same = unit("same").pid, changed = unit("changed").pid;
    desired.units = {desired.units[0], shell("changed", "exec sleep 63"), shell("new", "exec sleep 64")};
    auto applied = apply();
    ASSERT_TRUE(applied.has_value()) << applied.error().message();
    EXPECT_EQ((*applied)["generation"], 2);
    ASSERT_TRUE(reaches("new", UnitState::Ready));
    EXPECT_TRUE(runs_anew("changed", changed));
    EXPECT_TRUE(eventually([&] { return unit("gone").entry.empty(); }));
    EXPECT_FALSE(fs::exists(folder / "gone.sock"));
    EXPECT_EQ(unit("same").pid, same);
    EXPECT_TRUE(book().find("gone")->stopped);
    --desired.generation;
    EXPECT_TRUE(apply().has_value()); // the same number again is fine, an older one is not
    desired.generation -= 2;
    auto old = apply();
    ASSERT_FALSE(old.has_value());
    EXPECT_EQ(old.error().kind(), ErrorKind::Conflict);
}

TEST_F(AgentTest, WorkerIsAssignedReportsIsCancelledAndDrained) {
    auto spec = worker("h1/w/shard-0/rep-0");
    spec.assignment["busy_with"] = "job-1";
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches(spec.entry, UnitState::Ready));
    EXPECT_TRUE(eventually([&] { return unit(spec.entry).job == "job-1"; }));
    EXPECT_EQ(unit(spec.entry).processor, "ocrd-ocrctl-dummy");
    EXPECT_EQ(unit(spec.entry).detail, "page 1 of 3");
    ASSERT_TRUE(ask(Json{{"op", "cancel"}, {"slot", spec.entry}, {"job", "job-1"}}).has_value());
    EXPECT_TRUE(eventually([&] { return unit(spec.entry).job.empty(); }));
    EXPECT_EQ(unit(spec.entry).jobs_done, 1);
    auto stopped = ask(Json{{"op", "stop"}, {"kinds", {"worker"}}, {"grace_s", 5}});
    ASSERT_TRUE(stopped.has_value());
    EXPECT_EQ(stopped->at("stopped"), Json::array({spec.entry}));
    EXPECT_EQ(log_of(spec.entry), "drained\n");
    EXPECT_TRUE(book().find(spec.entry)->stopped);
    EXPECT_EQ(unit(spec.entry).state, UnitState::Stopped);
}

TEST_F(AgentTest, ANewAssignmentReachesAWorkerWithoutARestart) {
    auto spec = worker("h1/w/shard-0/rep-0");
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches(spec.entry, UnitState::Ready));
    auto pid = unit(spec.entry).pid;
    desired.units[0].assignment["busy_with"] = "job-2";
    ASSERT_TRUE(apply().has_value());
    EXPECT_TRUE(eventually([&] { return unit(spec.entry).job == "job-2"; }));
    EXPECT_EQ(unit(spec.entry).pid, pid);
    kill_agent();
    start_agent();
    ASSERT_TRUE(agent_listens());
    EXPECT_TRUE(eventually([&] { return unit(spec.entry).job == "job-2"; }));
    EXPECT_EQ(unit(spec.entry).pid, pid);
}

TEST_F(AgentTest, AWorkerThatDoesNotDrainInTimeIsEnded) {
    desired.units = {worker("h1/w/shard-0/rep-0", "stubborn")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("h1/w/shard-0/rep-0", UnitState::Ready));
    auto begin = std::chrono::steady_clock::now();
    auto stopped = ask(Json{{"op", "stop"}, {"kinds", {"worker"}}, {"grace_s", 0.3}});
    ASSERT_TRUE(stopped.has_value());
    EXPECT_TRUE(stopped->at("left").empty());
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
    EXPECT_TRUE(process::scan(desired.deployment).empty());
}

TEST_F(AgentTest, AStoppedWorkerIsKilledAndReplaced) {
    silence = 1s;
    auto stopped = worker("h1/w/shard-0/rep-0", "beats"), other = worker("h1/w/shard-0/rep-1", "beats");
    desired.units = {stopped, other};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches(stopped.entry, UnitState::Ready));
    ASSERT_TRUE(reaches(other.entry, UnitState::Ready));
    auto pid = unit(stopped.entry).pid, others = unit(other.entry).pid;
    auto begin = std::chrono::steady_clock::now();
    ASSERT_GT(pid, 0);
    ASSERT_EQ(::kill(pid, SIGSTOP), 0);
    EXPECT_TRUE(runs_anew(stopped.entry, pid));
    EXPECT_GE(std::chrono::steady_clock::now() - begin, 900ms);
    EXPECT_NE(read_file(folder / "ledger.jsonl")->find("gave no sign of life for 1 s and was killed"), std::string::npos);
    EXPECT_EQ(unit(stopped.entry).restarts, 1);
    EXPECT_EQ(unit(other.entry).pid, others);
    EXPECT_EQ(unit(other.entry).restarts, 0);
}

TEST_F(AgentTest, AStoppedWorkerThatIsToDrainIsKilledToo) {
    silence = 500ms;
    auto spec = worker("h1/w/shard-0/rep-0", "beats");
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches(spec.entry, UnitState::Ready));
    ASSERT_TRUE(signal(spec.entry, SIGSTOP));
    auto begin = std::chrono::steady_clock::now();
    auto stopped = ask(Json{{"op", "stop"}, {"kinds", {"worker"}}, {"grace_s", 60}});
    ASSERT_TRUE(stopped.has_value());
    EXPECT_TRUE(stopped->at("left").empty());
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 15s);
}

TEST_F(AgentTest, WhatPassesWhileTheAgentIsStoppedIsNoSilenceOfItsWorkers) {
    silence = 500ms;
    auto beating = worker("h1/w/shard-0/rep-0", "beats"), silent = worker("h1/w/shard-0/rep-1");
    desired.units = {beating, silent}; // the second one is of a build that knows no beats
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches(beating.entry, UnitState::Ready));
    ASSERT_TRUE(reaches(silent.entry, UnitState::Ready));
    auto pid = unit(beating.entry).pid, other = unit(silent.entry).pid;
    // Agent and Workers stand still together, as on a suspended machine; the agent comes back first.
    for (auto one : {agents.back().identity.pid, pid, other}) ASSERT_TRUE(one > 0 && ::kill(one, SIGSTOP) == 0);
    (void)process::wait_for(agents.back().pidfd.get(), 1500ms);
    ASSERT_EQ(::kill(agents.back().identity.pid, SIGCONT), 0);
    for (auto one : {pid, other}) ASSERT_EQ(::kill(one, SIGCONT), 0);
    // Longer than the silence that would have been too much.
    (void)process::wait_for(agents.back().pidfd.get(), 1200ms);
    EXPECT_EQ(unit(beating.entry).pid, pid);
    EXPECT_EQ(unit(silent.entry).pid, other);
    EXPECT_EQ(unit(beating.entry).restarts, 0);
}

TEST_F(AgentTest, AWorkerWithoutHelloCountsAsFailed) {
    auto spec = worker("h1/w/shard-0/rep-0", "mute");
    spec.ready.timeout_s = 1;
    desired.units = {spec};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    EXPECT_TRUE(eventually([&] { return unit(spec.entry).restarts >= 1; }));
    EXPECT_TRUE(eventually([&] { return unit(spec.entry).detail == "was not ready within 1 s"; }));
}

TEST_F(AgentTest, ABrokenWorkersReasonIsReported) {
    desired.units = {worker("h1/w/shard-0/rep-0", "broken")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    EXPECT_TRUE(reaches("h1/w/shard-0/rep-0", UnitState::Failed));
    EXPECT_EQ(unit("h1/w/shard-0/rep-0").detail, "no language model frk");
}

TEST_F(AgentTest, StartsNothingAnyMoreWhileClosing) {
    desired.units = {shell("a", "exec sleep 60"), shell("b", "exec sleep 60")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    ASSERT_TRUE(reaches("a", UnitState::Ready));
    ASSERT_TRUE(reaches("b", UnitState::Ready));
    ASSERT_TRUE(hostops::close(folder).has_value());
    auto pid = unit("a").pid;
    ASSERT_GT(pid, 0);
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
    ASSERT_TRUE(reaches("a", UnitState::Stopped));
    EXPECT_FALSE(apply().has_value());
    auto report = hostops::stop(folder, *hostops::parse_kinds("server"), 2s);
    ASSERT_TRUE(report.has_value());
    EXPECT_EQ(report->stopped, (std::vector<std::string>{"a", "b"}));
    EXPECT_TRUE(process::scan(desired.deployment).empty());
    kill_agent();
    start_agent(); // a new one does not start them either
    EXPECT_TRUE(process::wait_for(agents.back().pidfd.get(), 10s).has_value());
    EXPECT_EQ(starts_of("a"), 1U);
}

TEST_F(AgentTest, IsNotNeededToStopEverything) {
    auto stubborn = shell("a", "trap '' TERM; sleep 61 & while :; do sleep 1; done");
    auto queue = shell("queue", "setsid sleep 62 & exec sleep 60", UnitKind::Queue); // leaves a daemon behind, as RabbitMQ does
    queue.also = {"sleep"};
    queue.remove = {(folder / "queue.sock").string()};
    queue.stop_argv = {"/bin/sh", "-c", "echo asked >> " + (folder / "asked").string()};
    desired.units = {stubborn, queue, worker("h1/w/shard-0/rep-0")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    for (auto const& spec : desired.units) ASSERT_TRUE(reaches(spec.entry, UnitState::Ready));
    std::ofstream(folder / "queue.sock") << "";
    kill_agent();
    EXPECT_GE(process::scan(desired.deployment).size(), 5U);
    ASSERT_TRUE(hostops::close(folder).has_value());
    auto report = hostops::stop(folder, *hostops::parse_kinds("all"), 300ms);
    ASSERT_TRUE(report.has_value()) << report.error().message();
    EXPECT_EQ(report->stopped, (std::vector<std::string>{"h1/w/shard-0/rep-0", "a", "queue"}));
    EXPECT_TRUE(report->left.empty());
    EXPECT_EQ(*read_file(folder / "asked"), "asked\n");
    EXPECT_FALSE(fs::exists(folder / "queue.sock"));
    auto left = hostops::scan(folder, desired.deployment, "h1");
    EXPECT_TRUE(left.processes.empty());
    EXPECT_TRUE(left.sockets.empty()) << left.sockets.front();
    auto again = hostops::stop(folder, *hostops::parse_kinds("all"), 300ms);
    EXPECT_TRUE(again->stopped.empty());
    ASSERT_TRUE(hostops::clean(folder, desired.deployment, "h1").has_value());
    std::vector<std::string> names;
    for (auto const& item : fs::directory_iterator(folder)) names.push_back(item.path().filename().string().substr(0, 7));
    std::ranges::sort(names);
    EXPECT_EQ(names, (std::vector<std::string>{"ledger-", "logs"}));
}

TEST_F(AgentTest, StoppedThroughTheAgentItGoesBetweenWorkersAndServer) {
    desired.units = {shell("server", "exec sleep 60"), worker("h1/w/shard-0/rep-0")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    for (auto const& spec : desired.units) ASSERT_TRUE(reaches(spec.entry, UnitState::Ready));
    ASSERT_TRUE(hostops::close(folder).has_value());
    auto report = hostops::stop(folder, *hostops::parse_kinds("all"), 3s);
    ASSERT_TRUE(report.has_value());
    EXPECT_EQ(report->stopped, (std::vector<std::string>{"h1/w/shard-0/rep-0", "agent", "server"}));
    EXPECT_EQ(log_of("h1/w/shard-0/rep-0"), "drained\n");
    EXPECT_TRUE(process::scan(desired.deployment).empty());
}

TEST_F(AgentTest, DrainsAndStopsEverythingWhenItsLeaseEnds) {
    desired.units = {shell("a", "exec sleep 60"), worker("h1/w/shard-0/rep-0")};
    desired.lease_s = 2;
    write_desired();
    start_agent();
    auto status = process::wait_for(agents.back().pidfd.get(), 20s);
    ASSERT_TRUE(status.has_value());
    EXPECT_EQ(status->text(), "ended with code 0");
    EXPECT_TRUE(process::scan(desired.deployment).empty());
    EXPECT_EQ(log_of("h1/w/shard-0/rep-0"), "drained\n");
    EXPECT_TRUE(book().find("a")->stopped);
}

TEST_F(AgentTest, WatchTellsEachChange) {
    desired.units = {shell("a", "exec sleep 60")};
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    auto client = hostops::ControlClient::connect(folder);
    ASSERT_TRUE(client.has_value());
    ASSERT_TRUE(client->send(Json{{"op", "watch"}}).has_value());
    bool ready = false;
    while (!ready) {
        auto line = client->receive(10s);
        ASSERT_TRUE(line.has_value());
        auto report = line->get<HostReport>();
        ready = !report.units.empty() && report.units[0].state == UnitState::Ready;
        EXPECT_EQ(report.agent_build, "test-build");
    }
    auto bad = ask(Json{{"op", "nonsense"}});
    ASSERT_FALSE(bad.has_value());
    EXPECT_EQ(bad.error().message(), "unknown op nonsense");
}

/// The server's end of the agents' connection, on a thread of its own.
class FakeServer {
public:
    FakeServer() {
        auto check = [this](net::Request const& request) -> std::optional<net::Response> {
            if (request.headers.get("Authorization") != "Bearer join-me") return net::Response::error(401, "wrong token");
            std::lock_guard lock(mutex_);
            host_ = request.query_or("host");
            return std::nullopt;
        };
        router_.add_websocket("/v1/agents/connect", [this](std::shared_ptr<net::WebSocket> socket, net::Request) { return session(socket); }, check);
    }
    ~FakeServer() { stop(); }

    void start(std::uint16_t port) {
        io_ = std::make_unique<asio::io_context>(1);
        server_ = std::make_unique<net::HttpServer>(io_->get_executor(), router_);
        auto bound = server_->listen("127.0.0.1", port);
        ASSERT_TRUE(bound.has_value()) << bound.error().message();
        thread_ = std::jthread([this] { io_->run(); });
    }
    void stop() {
        if (!thread_.joinable()) return;
        io_->stop();
        thread_.join();
        socket_.reset();
        server_.reset();
        io_.reset();
    }
    void send(Json json) {
        asio::post(*io_, [this, text = dump(json)] {
            if (socket_) socket_->post(text);
        });
    }
    HostReport last() {
        std::lock_guard lock(mutex_);
        return last_;
    }
    std::string host() {
        std::lock_guard lock(mutex_);
        return host_;
    }

private:
    awaitable<void> session(std::shared_ptr<net::WebSocket> socket) {
        socket_ = socket;
        for (;;) {
            auto message = co_await socket->read();
            if (!message) co_return;
            auto json = parse_json(*message);
            std::lock_guard lock(mutex_);
            if (json && json->value("op", "") == "report") last_ = (*json)["report"].get<HostReport>();
        }
    }
    net::Router router_;
    std::unique_ptr<asio::io_context> io_;
    std::unique_ptr<net::HttpServer> server_;
    std::shared_ptr<net::WebSocket> socket_;
    std::jthread thread_;
    std::mutex mutex_;
    HostReport last_;
    std::string host_;
};

TEST_F(AgentTest, DialsTheServerReportsTakesOrdersAndComesBackWhenItWasAway) {
    auto port = static_cast<std::uint16_t>(free_port());
    ASSERT_TRUE(write_file_atomically(folder / "token", "join-me\n", 0600).has_value());
    desired.server = fmt::format("http://127.0.0.1:{}", port);
    desired.token_file = (folder / "token").string();
    desired.units = {worker("h1/w/shard-0/rep-0")};
    write_desired();
    start_agent(); // before the server is there
    ASSERT_TRUE(agent_listens());
    FakeServer server;
    server.start(port);
    ASSERT_TRUE(eventually([&] { return server.last().units.size() == 1 && server.last().units[0].state == UnitState::Ready; }));
    EXPECT_EQ(server.host(), "h1");
    EXPECT_EQ(server.last().generation, 1);
    desired.generation = 2;
    desired.units.push_back(shell("a", "exec sleep 60"));
    server.send(Json{{"op", "desired"}, {"desired", desired}});
    EXPECT_TRUE(eventually([&] { return server.last().generation == 2 && server.last().units.size() == 2; }));
    server.stop();
    ASSERT_TRUE(signal("a", SIGKILL));
    server.start(port);
    EXPECT_TRUE(eventually([&] {
        auto report = server.last();
        return !report.units.empty() && report.units[0].entry == "a" && report.units[0].restarts == 1 && report.units[0].state == UnitState::Ready;
    }));
    server.send(Json{{"op", "lease"}});
    server.send(Json{{"op", "close"}});
    EXPECT_TRUE(eventually([&] { return server.last().closing; }));
    EXPECT_TRUE(fs::exists(folder / "closing"));
    EXPECT_TRUE(book().closing);
}

TEST_F(AgentTest, AStartFromWhenTheHostHadNoAgentIsEndedAndWhatItStartedIsAdopted) {
    desired.agent = false;
    auto spec = shell("h1/g/shard-0/rep-0", "exec sleep 600", UnitKind::ForeignWorker);
    spec.ready.kind = "exec";
    spec.ready.argv = {"/bin/sh", "-c", "test -e " + (folder / "go").string()};
    desired.units = {spec};
    write_desired();
    pid_t child = ::fork();
    if (child == 0) {
        (void)hostops::start(folder, 60s);
        ::_exit(0);
    }
    ASSERT_TRUE(eventually([&] { return process::scan(desired.deployment).size() == 1; }));
    auto worker = process::scan(desired.deployment).front().identity;
    desired.agent = true;
    write_desired();
    start_agent();
    ASSERT_TRUE(agent_listens());
    int status = 0;
    EXPECT_TRUE(eventually([&] { return ::waitpid(child, &status, WNOHANG) != 0; })) << "it has ended";
    EXPECT_TRUE(reaches(spec.entry, UnitState::Starting));
    std::ofstream(folder / "go").close();
    EXPECT_TRUE(reaches(spec.entry, UnitState::Ready));
    EXPECT_EQ(unit(spec.entry).pid, worker.pid);
}

TEST_F(AgentTest, ABrokenRequestEndsNeitherAgentNorSession) {
    start_agent();
    ASSERT_TRUE(agent_listens());
    auto client = hostops::ControlClient::connect(folder);
    for (Json request : {Json{{"op", 5}}, Json("x"), Json{{"op", "stop"}, {"kinds", 7}}, Json{{"op", "apply"}}, Json{{"op", "apply"}, {"desired", {{"units", "x"}}}}}) {
        auto reply = client->ask(request);
        ASSERT_FALSE(reply.has_value());
        EXPECT_EQ(reply.error().kind(), ErrorKind::Invalid) << reply.error().message();
    }
    EXPECT_TRUE(client->ask(Json{{"op", "status"}}).has_value());
}

} // namespace
} // namespace ocrctl
