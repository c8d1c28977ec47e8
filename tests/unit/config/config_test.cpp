#include "lib/config/config.hpp"

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"

#include <fstream>
#include <gtest/gtest.h>
#include <sys/stat.h>

namespace ocrctl::config {
namespace {

/// All problems as the user sees them, one a line.
std::string problems(std::string const& yaml) {
    std::string text;
    for (auto const& problem : load_text(yaml, "config.yml").problems) text += problem.text() + "\n";
    return text;
}

Deployment good(std::string const& yaml) {
    auto loaded = load_text(yaml, "config.yml");
    for (auto const& problem : loaded.problems) ADD_FAILURE() << problem.text();
    return loaded.config;
}

constexpr auto kPeerConfig = R"(internal_callback_url: http://10.0.0.5:8000
use_tcp_mets: true
process_queue:
  address: 10.0.0.6
  port: 5672
  credentials: {username: ocrd, password: secret}
  ssh: {username: deploy, path_to_privkey: /home/deploy/.ssh/id_ed25519}
database:
  address: 10.0.0.6
  port: 27018
  credentials: {username: ocrd, password: secret}
  ssh: {username: deploy, path_to_privkey: /home/deploy/.ssh/id_ed25519}
hosts:
  - address: 10.0.0.7
    username: deploy
    path_to_privkey: /home/deploy/.ssh/id_ed25519
    workers:
      - {name: ocrd-dummy, number_of_instance: 2, deploy_type: native}
  - address: localhost
    username: ocrd
    password: secret
    workers:
      - name: ocrd-cis-ocropy-binarize
        number_of_instance: 1
      - name: ocrd-olena-binarize
        number_of_instance: 3
        deploy_type: docker
)";

TEST(Config, LoadsAnOcrdConfigUnchanged) {
    auto c = good(kPeerConfig);
    EXPECT_EQ(c.name, "config");
    EXPECT_EQ(c.internal_callback_url, "http://10.0.0.5:8000");
    EXPECT_TRUE(c.use_tcp_mets);
    EXPECT_EQ(c.process_queue.kind, ServiceKind::Unset);
    EXPECT_EQ(c.process_queue.address, "10.0.0.6");
    EXPECT_EQ(c.process_queue.port, 5672);
    ASSERT_TRUE(c.process_queue.credentials);
    EXPECT_EQ(c.process_queue.credentials->username, "ocrd");
    EXPECT_EQ(c.process_queue.credentials->password.reveal(), "secret");
    ASSERT_TRUE(c.process_queue.ssh);
    EXPECT_EQ(c.process_queue.ssh->private_key, "/home/deploy/.ssh/id_ed25519");
    EXPECT_EQ(c.database.port, 27018);
    ASSERT_EQ(c.hosts.size(), 2u);
    EXPECT_EQ(c.hosts[0].connection, Connection::Ssh);
    EXPECT_EQ(c.hosts[0].name, "10.0.0.7");
    EXPECT_EQ(c.hosts[0].login.username, "deploy");
    EXPECT_EQ(c.hosts[1].connection, Connection::Ssh) << "localhost with credentials is reached by SSH, as OCR-D does";
    ASSERT_EQ(c.hosts[1].workers.size(), 2u);
    EXPECT_EQ(c.hosts[0].workers[0].processor, "ocrd-dummy");
    EXPECT_EQ(c.hosts[0].workers[0].name, "ocrd-dummy-1");
    EXPECT_EQ(c.hosts[0].workers[0].count, 2);
    EXPECT_EQ(c.hosts[0].workers[0].kind, WorkerKind::Foreign);
    EXPECT_EQ(c.hosts[1].workers[1].deploy_type, DeployType::Docker);
}

TEST(Config, LoadsTheConfigOfOcrdsOwnTests) {
    auto c = good("process_queue:\n  address: localhost\n  port: 5672\n  skip_deployment: true\n  credentials: {username: network_test, password: network_test}\n"
                  "database:\n  address: localhost\n  port: 27017\n  skip_deployment: true\nhosts: []\nuse_tcp_mets: true\n");
    EXPECT_EQ(c.process_queue.kind, ServiceKind::External);
    EXPECT_EQ(c.database.kind, ServiceKind::External);
    EXPECT_TRUE(c.hosts.empty());
}

TEST(Config, LoadsWhatTheTestsOfOcrdDeployInContainers) {
    auto c = good(R"(process_queue:
  address: rabbitmq-host.test_network
  port: 5672
  credentials: {username: test, password: test}
  ssh: {username: root, path_to_privkey: /key}
  skip_deployment: true
database:
  address: mongodb-host.test_network
  port: 27017
  credentials: {username: test, password: test}
  ssh: {username: root, path_to_privkey: /key}
  skip_deployment: true
hosts:
  - address: worker-host.test_network
    username: root
    path_to_privkey: /key
    workers:
      - {name: ocrd-dummy, number_of_instance: 1, deploy_type: native}
)");
    EXPECT_EQ(c.database.kind, ServiceKind::External);
    EXPECT_EQ(c.hosts[0].connection, Connection::Ssh);
    EXPECT_EQ(c.hosts[0].workers[0].kind, WorkerKind::Foreign);
}

TEST(Config, SaysInAWarningWhatThisVersionDoesNotServe) {
    auto loaded = load_text(kPeerConfig, "config.yml");
    ASSERT_EQ(loaded.warnings.size(), 1u);
    EXPECT_EQ(loaded.warnings[0].text(), "config.yml:27:22: hosts[1].workers[1].deploy_type: this version deploys native Workers only");
}

TEST(Config, TakesItsDefaultsFromTheStructs) {
    auto c = good("name: tiny\n");
    EXPECT_EQ(c.name, "tiny");
    EXPECT_EQ(c.listen.address, "127.0.0.1");
    EXPECT_EQ(c.listen.port, 8080);
    EXPECT_EQ(c.database.kind, ServiceKind::Embedded);
    EXPECT_EQ(c.process_queue.kind, ServiceKind::Unset);
    EXPECT_EQ(c.auth.kind, AuthKind::Unset);
    EXPECT_EQ(c.drain, std::chrono::seconds(30));
    EXPECT_TRUE(c.workspaces.empty());
}

TEST(Config, ReadsWhatIsOurs) {
    auto c = good(R"(name: library
listen: {address: 0.0.0.0, port: 9000}
auth: none
workspaces: [/data/works, ~/more]
log_level: debug
drain: 2m
grace: 5s
lease: 1d
existing_output: overwrite
max_body: 64MiB
process_queue: {kind: native, port: 5673}
hosts:
  - connection: local
    name: here
    env: {OMP_NUM_THREADS: 1}
    workers:
      - {name: ocrd-ocrctl-recognize, instances: 4, parameters: {model: Fraktur+deu}}
      - {processor: ocrd-tesserocr-recognize, name: latin, kind: managed, executable: /opt/ocrd/bin/ocrd-tesserocr-recognize, page_timeout: 5m,
         parameters: {model: Fraktur+deu, dpi: 300, overwrite_segments: true, zip: 007, padding: 1.5, quoted: "3", none: ~, list: [1, a]}}
  - name: ocr1
    address: ocr1.example.org
    port: 2222
    username: ocr
    ssh_agent: true
    host_key: SHA256:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ
    reach: tunnel
    agent: false
    state: /srv/ocrctl
    path_map: {/data/works: /mnt/works}
)");
    EXPECT_EQ(c.listen.address, "0.0.0.0");
    EXPECT_EQ(c.auth.kind, AuthKind::None);
    ASSERT_EQ(c.workspaces.size(), 2u);
    EXPECT_EQ(c.workspaces[0], "/data/works");
    EXPECT_EQ(c.workspaces[1], std::filesystem::path(std::getenv("HOME")) / "more");
    EXPECT_EQ(c.drain, std::chrono::minutes(2));
    EXPECT_EQ(c.lease, std::chrono::hours(24));
    EXPECT_EQ(c.existing_output, ExistingOutput::Overwrite);
    EXPECT_EQ(c.max_body, 64u * 1024 * 1024);
    EXPECT_EQ(c.process_queue.kind, ServiceKind::Native);
    auto const& recognize = c.hosts[0].workers[0];
    EXPECT_EQ(recognize.kind, WorkerKind::Managed);
    EXPECT_EQ(recognize.count, 4);
    EXPECT_EQ(recognize.parameters, Json({{"model", "Fraktur+deu"}}));
    auto const& latin = c.hosts[0].workers[1];
    EXPECT_EQ(latin.name, "latin");
    EXPECT_EQ(latin.processor, "ocrd-tesserocr-recognize");
    EXPECT_EQ(latin.parameters, Json::parse(R"({"model":"Fraktur+deu","dpi":300,"overwrite_segments":true,"zip":"007","padding":1.5,"quoted":"3","none":null,"list":[1,"a"]})"));
    EXPECT_EQ(latin.page_timeout, std::chrono::minutes(5));
    EXPECT_EQ(c.hosts[0].env.at("OMP_NUM_THREADS"), "1");
    EXPECT_EQ(c.hosts[1].connection, Connection::Ssh);
    EXPECT_TRUE(c.hosts[1].login.use_agent);
    EXPECT_EQ(c.hosts[1].port, 2222);
    EXPECT_FALSE(c.hosts[1].agent);
    EXPECT_EQ(c.hosts[1].path_map.at("/data/works"), "/mnt/works");
}

TEST(Config, NamesEveryProblemAtOnceWithItsPlace) {
    EXPECT_EQ(problems(R"(hosts:
  - connection: local
    adress: ocr1
    workers:
      - name: ocrd-ocrctl-dummy
        number_of_instance: "2"
      - number_of_instance: two
        kind: manged
use_tcp_mets: maybe
)"),
              "config.yml:3:5: hosts[0].adress: unknown key (did you mean \"address\"?)\n"
              "config.yml:6:29: hosts[0].workers[0].number_of_instance: expected a whole number from 1 to 1024, got the text \"2\" (leave the quotes out)\n"
              "config.yml:7:9: hosts[0].workers[1].name: is required\n"
              "config.yml:7:29: hosts[0].workers[1].number_of_instance: expected a whole number from 1 to 1024, got \"two\"\n"
              "config.yml:8:15: hosts[0].workers[1].kind: expected managed | foreign, got \"manged\" (did you mean \"managed\"?)\n"
              "config.yml:9:15: use_tcp_mets: expected true or false, got \"maybe\"\n");
}

TEST(Config, ListsTheKnownKeysWhenNoneIsNear) {
    EXPECT_EQ(problems("listen: {zzzzzzzz: 1}\n"), "config.yml:1:10: listen.zzzzzzzz: unknown key; known here: address, port\n");
}

TEST(Config, FindsKeysGivenTwice) {
    EXPECT_EQ(problems("name: a\nlisten: {port: 1, port: 2}\nname: b\n"),
              "config.yml:2:19: listen.port: is given twice, first in line 2\n"
              "config.yml:3:1: name: is given twice, first in line 1\n");
}

TEST(Config, RefusesNumbersThatSomeReadersTakeForOctal) {
    EXPECT_EQ(problems("listen:\n  port: 010\n"),
              "config.yml:2:9: listen.port: expected a whole number from 1 to 65535, got \"010\" (some YAML readers take a leading zero for octal: write 10)\n");
}

TEST(Config, RefusesNumbersOutOfRange) {
    EXPECT_EQ(problems("listen:\n  port: 70000\n"), "config.yml:2:9: listen.port: expected a whole number from 1 to 65535, got 70000\n");
    EXPECT_EQ(problems("listen:\n  port: 99999999999999999999\n"),
              "config.yml:2:9: listen.port: expected a whole number from 1 to 65535, got \"99999999999999999999\"\n");
    EXPECT_EQ(problems("hosts: [{connection: local, workers: [{name: ocrd-ocrctl-dummy, instances: 0}]}]\n"),
              "config.yml:1:76: hosts[0].workers[0].instances: expected a whole number from 1 to 1024, got 0\n");
}

TEST(Config, SaysWhereBrokenYamlBreaks) {
    EXPECT_EQ(problems("name: a\nlisten: {port: 1\nauth: none\n"), "config.yml:3:5: is not YAML: end of map flow not found\n");
    EXPECT_EQ(problems("name: a\n\tlisten: 1\n").substr(0, 28), "config.yml:2:1: is not YAML:");
    EXPECT_EQ(problems("a: *nowhere\n").substr(0, 28), "config.yml:1:4: is not YAML:");
}

TEST(Config, ReadsRegularFilesOfSensibleSizeOnly) {
    auto only = [](std::filesystem::path const& file) {
        auto loaded = load(file);
        return loaded.problems.size() == 1 ? loaded.problems[0].text() : fmt::format("{} problems", loaded.problems.size());
    };
    EXPECT_EQ(only("/dev/zero"), "/dev/zero: is not a regular file");
    EXPECT_EQ(only("/no/such/file"), "/no/such/file: cannot be read: No such file or directory");
    auto const folder = std::filesystem::temp_directory_path() / ("ocrctl-test-" + random_hex(6));
    ASSERT_TRUE(make_folder(folder));
    auto const pipe = folder / "pipe.yml", large = folder / "large.yml";
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    EXPECT_EQ(only(pipe), pipe.native() + ": is not a regular file");
    ASSERT_TRUE(write_file_atomically(large, "name: a\n"));
    std::filesystem::resize_file(large, (16u << 20) + 1);
    EXPECT_EQ(only(large), large.native() + ": is larger than 16 MiB: that is no configuration");
    remove_tree(folder);
}

TEST(Config, CountsColumnsInCharacters) {
    EXPECT_EQ(problems("listen: {Schlüssel: a, port: 1, öä: 1}\n"),
              "config.yml:1:10: listen.Schlüssel: unknown key; known here: address, port\n"
              "config.yml:1:33: listen.öä: unknown key; known here: address, port\n");
}

TEST(Config, RefusesWhatIsNoMapping) {
    EXPECT_EQ(problems(""), "config.yml: is empty\n");
    EXPECT_EQ(problems("# only a comment\n"), "config.yml: is empty\n");
    EXPECT_EQ(problems("- a\n"), "config.yml:1:1: expected a mapping, got a list\n");
    EXPECT_EQ(problems("hello\n"), "config.yml:1:1: expected a mapping, got \"hello\"\n");
    EXPECT_EQ(problems("name: a\n---\nname: b\n"), "config.yml:3:1: holds more than one YAML document\n");
    EXPECT_EQ(problems("listen: 127.0.0.1:8080\nhosts:\n"),
              "config.yml:1:9: listen: expected a mapping, got \"127.0.0.1:8080\"\n"
              "config.yml:2:1: hosts: expected a list, got nothing\n");
    EXPECT_EQ(problems("hosts:\n  - ocr1\n  -\n"),
              "config.yml:2:3: hosts[1]: expected a mapping, got nothing\n"
              "config.yml:2:5: hosts[0]: expected a mapping, got \"ocr1\"\n");
}

TEST(Config, NamesAFileThatCannotBeRead) {
    auto loaded = load("/nowhere/config.yml");
    ASSERT_EQ(loaded.problems.size(), 1u);
    EXPECT_EQ(loaded.problems[0].text(), "/nowhere/config.yml: cannot be read: No such file or directory");
    auto error = load_or_error("/nowhere/config.yml").error();
    EXPECT_EQ(error.kind(), ErrorKind::Usage);
}

TEST(Config, KnowsMergeKeysAsOcrdDoes) {
    auto c = good(R"(hosts:
  - &first
    address: a.example.org
    username: ocr
    password: x
    workers: &all [{name: ocrd-ocrctl-dummy, number_of_instance: 1}]
  - <<: *first
    address: b.example.org
)");
    ASSERT_EQ(c.hosts.size(), 2u);
    EXPECT_EQ(c.hosts[1].address, "b.example.org");
    EXPECT_EQ(c.hosts[1].login.username, "ocr");
    EXPECT_EQ(c.hosts[1].workers.size(), 1u);
}

TEST(Config, TellsLocalHostsFromSshHosts) {
    auto c = good("hosts:\n  - address: localhost\n  - connection: local\n  - {address: 127.0.0.1, username: u, path_to_privkey: k}\n");
    EXPECT_EQ(c.hosts[0].connection, Connection::Local);
    EXPECT_EQ(c.hosts[0].name, "localhost");
    EXPECT_EQ(c.hosts[1].connection, Connection::Local);
    EXPECT_EQ(c.hosts[1].name, "localhost-2");
    EXPECT_EQ(c.hosts[2].connection, Connection::Ssh);
    EXPECT_EQ(c.hosts[2].login.private_key, std::filesystem::current_path() / "k");
    EXPECT_EQ(problems("hosts:\n  - address: ocr1\n"),
              "config.yml:2:5: hosts[0]: another machine (ocr1) needs username and one of password, path_to_privkey, ssh_agent: true; this machine needs connection: local\n");
    EXPECT_EQ(problems("hosts:\n  - name: x\n"), "config.yml:2:5: hosts[0].address: is required\n");
    EXPECT_EQ(problems("hosts:\n  - connection: ssh\n    address: ocr1\n"),
              "config.yml:2:5: hosts[0].username: is required\n"
              "config.yml:2:5: hosts[0]: needs one of password, path_to_privkey, ssh_agent: true\n");
    EXPECT_EQ(problems("hosts:\n  - {connection: local, username: u, reach: direct}\n"),
              "config.yml:2:35: hosts[0].username: has no meaning for connection: local\n"
              "config.yml:2:45: hosts[0].reach: has no meaning for connection: local\n");
    EXPECT_EQ(problems("hosts:\n  - {address: ocr1, username: u, password: a, path_to_privkey: b}\n"),
              "config.yml:2:44: hosts[0].password: only one of password, path_to_privkey, ssh_agent can be given\n");
}

TEST(Config, AHostWithoutAnAgentCanOnlyHaveForeignWorkersAndIsAnotherMachine) {
    std::string const start = "database: {address: db, port: 1, skip_deployment: true}\n"
                              "hosts:\n"
                              "  - {address: ocr1, username: u, password: p, agent: false, reach: tunnel, workers: [";
    EXPECT_EQ(problems(start + "{name: ocrd-dummy}]}\n"), "");
    EXPECT_EQ(problems(start + "{name: ocrd-dummy}, {name: ocrd-ocrctl-dummy}]}\n"),
              "config.yml:3:106: hosts[0].workers[1]: ocrd-ocrctl-dummy runs in managed Workers, which take their orders from an agent, but ocr1 has none (agent: false): only "
              "foreign Workers can run there\n");
    EXPECT_NE(problems(start + "{name: ocrd-dummy, kind: managed}]}\n").find("config.yml:3:86: hosts[0].workers[0]: ocrd-dummy runs in managed Workers"), std::string::npos);
    EXPECT_EQ(problems(start + "{name: ocrd-dummy, deploy_type: docker}]}\n"),
              "config.yml:3:118: hosts[0].workers[0].deploy_type: docker: ocr1 has no agent (agent: false), so only native Workers can run there\n");
    EXPECT_EQ(problems("hosts:\n  - {connection: local, agent: false}\n"),
              "config.yml:2:32: hosts[0].agent: false: this machine always has an agent, which looks after the server and the services\n");
}

TEST(Config, RefusesTwoHostsOfOneName) {
    EXPECT_EQ(problems("hosts:\n  - {name: a, connection: local}\n  - {name: a, connection: local}\n"),
              "config.yml:3:12: hosts[1].name: the name \"a\" belongs to the host of line 2 already\n");
}

TEST(Config, GivesEachGroupAName) {
    auto c = good("hosts: [{connection: local, workers: [{name: ocrd-ocrctl-dummy}, {processor: ocrd-ocrctl-dummy, name: ocrd-ocrctl-dummy-2}, {name: ocrd-ocrctl-dummy}]}]\n");
    EXPECT_EQ(c.hosts[0].workers[0].name, "ocrd-ocrctl-dummy-1");
    EXPECT_EQ(c.hosts[0].workers[1].name, "ocrd-ocrctl-dummy-2");
    EXPECT_EQ(c.hosts[0].workers[2].name, "ocrd-ocrctl-dummy-3");
}

TEST(Config, SuggestsTheBuiltInProcessorThatWasMeant) {
    EXPECT_EQ(problems("hosts: [{connection: local, workers: [{name: ocrd-ocrctl-binarise}]}]\n"),
              "config.yml:1:46: hosts[0].workers[0].name: no such Processor in ocrctl (did you mean \"ocrd-ocrctl-binarize\"?)\n");
    EXPECT_EQ(problems("hosts: [{connection: local, workers: [{name: tesserocr-recognize}]}]\n"),
              "config.yml:1:46: hosts[0].workers[0].name: a Processor's name begins with \"ocrd-\", got \"tesserocr-recognize\"\n");
}

TEST(Config, ChecksTheParametersOfBuiltInProcessors) {
    EXPECT_EQ(problems("hosts: [{connection: local, workers: [{name: ocrd-ocrctl-dummy, parameters: {copy_file: true, delay_ms: soon}}]}]\n"),
              "config.yml:1:77: hosts[0].workers[0].parameters: [] Additional properties are not allowed ('copy_file' was unexpected; did you mean 'copy_files'?); "
              "[delay_ms] 'soon' is not of type 'number'\n");
    EXPECT_EQ(problems("hosts: [{connection: local, workers: [{name: ocrd-ocrctl-dummy, parameters: {delay_ms: 5}}]}]\n"), "");
}

TEST(Config, AllowsOneKindOfWorkerPerProcessor) {
    EXPECT_EQ(problems(R"(database: {address: db, skip_deployment: true}
hosts:
  - connection: local
    workers:
      - {name: ocrd-dummy}
      - {name: ocrd-dummy, kind: managed}
)"),
              "config.yml:6:34: hosts[0].workers[1].kind: ocrd-dummy has foreign Workers in line 5, here they are managed; a Processor has one kind in a deployment\n");
}

TEST(Config, ForeignWorkersNeedMongoDb) {
    auto text = problems("hosts:\n  - connection: local\n    workers: [{name: ocrd-dummy}]\n");
    EXPECT_EQ(text.substr(0, 130), "config.yml:3:15: hosts[0].workers[0]: foreign Workers (ocrd-dummy) keep their Jobs in MongoDB, but the database is embedded: give ");
    EXPECT_EQ(problems("database: {kind: embedded}\nhosts: [{connection: local, workers: [{name: ocrd-dummy}]}]\n").substr(0, 38), "config.yml:2:39: hosts[0].workers[0]: ");
    EXPECT_EQ(problems("database: {address: db, skip_deployment: true}\nhosts: [{connection: local, workers: [{name: ocrd-dummy}]}]\n"), "");
    EXPECT_EQ(problems("hosts: [{connection: local, workers: [{name: ocrd-dummy, kind: managed}]}]\n"), "");
}

TEST(Config, TellsWorkersNoHttpsAddress) {
    EXPECT_NE(problems("internal_callback_url: https://ps-host:8000\n")
                  .find("internal_callback_url: expected a URL beginning with http:// (OCR-D's workers know no other)"),
              std::string::npos);
}

TEST(Config, WillNotTellAForeignWorkerWhatItCannotDo) {
    EXPECT_EQ(problems("database: {address: db, skip_deployment: true}\nhosts: [{connection: local, workers: [{name: ocrd-dummy, page_timeout: 3}]}]\n"),
              "config.yml:2:72: hosts[0].workers[0].page_timeout: foreign Workers cannot be told that; kind: managed can\n");
}

TEST(Config, FindsPortsUsedTwiceOnOneMachine) {
    EXPECT_EQ(problems("listen: {port: 5672}\nprocess_queue: {address: localhost, port: 5672, kind: native}\n"),
              "config.yml:2:43: process_queue.port: port 5672 of localhost is used by the server already\n");
    EXPECT_EQ(problems("listen: {port: 5672, address: 10.0.0.1}\nauth: none\nprocess_queue: {address: 10.0.0.2, port: 5672, skip_deployment: true}\n"), "");
}

TEST(Config, WantsAuthBeyondLoopback) {
    EXPECT_EQ(problems("listen: {address: 0.0.0.0}\n"),
              "config.yml:1:19: listen.address: listening on 0.0.0.0 lets other machines in, unasked who they are: say auth: none if that is wanted\n");
    EXPECT_EQ(problems("listen: {address: 0.0.0.0}\nauth: none\n"), "");
    EXPECT_EQ(problems("listen: {address: 0.0.0.0}\nauth: {tokens: t.txt}\n"),
              "config.yml:2:16: auth.tokens: the server of this version does not check tokens: listen on loopback, or say auth: none\n");
    EXPECT_EQ(problems("auth: open\n"), "config.yml:1:7: auth: expected none, or a mapping with the key tokens, got \"open\"\n");
}

TEST(Config, DirectHostsNeedAServerTheyCanReach) {
    EXPECT_EQ(problems("hosts:\n  - {address: ocr1, username: u, password: p, reach: direct}\n"),
              "config.yml:2:54: hosts[0].reach: direct: ocr1 cannot reach the server at 127.0.0.1:8080; set listen.address, or use reach: tunnel\n"
              "config.yml:2:54: hosts[0].reach: direct: ocr1 cannot reach the broker at 127.0.0.1; set process_queue.address, or use reach: tunnel\n");
}

TEST(Config, RefusesContradictingServices) {
    EXPECT_EQ(problems("process_queue: {kind: native, skip_deployment: true}\n"),
              "config.yml:1:48: process_queue.skip_deployment: contradicts kind: native: what is not deployed is external\n");
    EXPECT_EQ(problems("process_queue: {kind: embedded}\n"), "config.yml:1:23: process_queue.kind: expected native | docker | external, got \"embedded\"\n");
    EXPECT_EQ(problems("database: {kind: embedded, port: 3}\n"), "config.yml:1:34: database.port: has no meaning for kind: embedded\n");
    EXPECT_EQ(problems("process_queue: {kind: native, consumer_timeout: 30m}\n"),
              "config.yml:1:49: process_queue.consumer_timeout: is for an external broker; one that ocrctl starts is set up by ocrctl\n");
    EXPECT_EQ(queue_port(good("process_queue: {kind: external}\n").process_queue), 5672);
    EXPECT_EQ(queue_port(good("process_queue: {kind: native}\n").process_queue), 0);
    EXPECT_EQ(problems("process_queue: {credentials: {username: u}}\n"), "config.yml:1:30: process_queue.credentials.password: is required\n");
}

TEST(Config, RefusesAddressesThatAreNone) {
    EXPECT_EQ(problems("listen: {address: \"*\"}\nauth: none\n"),
              "config.yml:1:19: listen.address: expected a host name or an IP address, got \"*\" (write 0.0.0.0 for all addresses of this machine)\n");
    EXPECT_EQ(problems("process_queue: {address: \"amqp://x\"}\n"), "config.yml:1:26: process_queue.address: expected a host name or an IP address, got the URL \"amqp://x\"\n");
    EXPECT_EQ(problems("process_queue: {address: \"x:5672\"}\n"),
              "config.yml:1:26: process_queue.address: expected a host name or an IP address, got \"x:5672\" (the port has a key of its own: port)\n");
    EXPECT_EQ(problems("process_queue: {address: \"-oProxyCommand=x\"}\n"), "config.yml:1:26: process_queue.address: expected a host name or an IP address, got \"-oProxyCommand=x\"\n");
    EXPECT_EQ(good("process_queue: {address: \"fe80::1\", skip_deployment: true}\n").process_queue.address, "fe80::1");
}

TEST(Config, RefusesNamesThatAreUnsafeInPaths) {
    EXPECT_EQ(problems("name: ../x\n"),
              "config.yml:1:7: name: expected letters, digits, dots, hyphens and underscores, beginning with a letter or digit, at most 64, got \"../x\"\n");
    EXPECT_EQ(load_text("auth: none\n", "/tmp/my deployment.yml").config.name, "my-deployment");
}

TEST(Config, ReadsTimesAndSizes) {
    EXPECT_EQ(good("drain: 90\n").drain, std::chrono::seconds(90));
    EXPECT_EQ(good("drain: 1h\n").drain, std::chrono::hours(1));
    EXPECT_EQ(problems("drain: soon\n"), "config.yml:1:8: drain: expected a time such as 30s, 5m, 2h or 1d, got \"soon\"\n");
    EXPECT_EQ(problems("drain: -5\n"), "config.yml:1:8: drain: expected a time such as 30s, 5m, 2h or 1d, got \"-5\"\n");
    EXPECT_EQ(problems("drain: 99999999999999999d\n"), "config.yml:1:8: drain: expected a time such as 30s, 5m, 2h or 1d, got \"99999999999999999d\"\n");
    EXPECT_EQ(good("max_body: 1GB\n").max_body, 1000000000u);
    EXPECT_EQ(problems("max_body: 16 pages\n"), "config.yml:1:11: max_body: expected a size such as 65536, 16MiB or 1GB, got \"16 pages\"\n");
    EXPECT_EQ(problems("lease: 10s\n"), "config.yml:1:8: lease: must be at least 5m: the server renews it once a minute\n");
}

TEST(Config, RefusesEnvironmentVariablesThatAreOurs) {
    EXPECT_EQ(problems("hosts: [{connection: local, env: {OCRCTL_HOST: x, 1A: y}}]\n"),
              "config.yml:1:48: hosts[0].env.OCRCTL_HOST: variables beginning with OCRCTL_ are set by ocrctl itself\n"
              "config.yml:1:55: hosts[0].env.1A: is no name of an environment variable\n");
}

TEST(Config, RefusesHostKeysInOtherForms) {
    EXPECT_EQ(problems("hosts: [{address: a, username: u, password: p, host_key: \"MD5:aa:bb\"}]\n"),
              "config.yml:1:58: hosts[0].host_key: expected SHA256: and 43 characters, as ssh-keygen -lf prints them\n");
}

TEST(Config, PasswordsPrintAsStars) {
    auto c = good(kPeerConfig);
    EXPECT_EQ(fmt::format("{}", c.process_queue.credentials->password), "***");
}

TEST(Config, SurvivesFilesThatWantToHurt) {
    EXPECT_NE(problems(std::string(5000, '[')), "");
    EXPECT_NE(problems(std::string(5000, '{')), "");
    EXPECT_NE(problems("hosts: [{connection: local, workers: [{name: ocrd-ocrctl-dummy, parameters: &a {x: *a}}]}]\n"), "");
    std::string bomb = "hosts: [{connection: local, workers: [{name: ocrd-ocrctl-dummy, parameters: {a: &a [1,1,1,1,1,1,1,1,1,1]";
    for (char c = 'b'; c <= 'j'; ++c) {
        bomb += fmt::format(", {0}: &{0} [", c);
        for (int i = 0; i < 10; ++i) bomb += fmt::format("{}*{}", i ? "," : "", static_cast<char>(c - 1));
        bomb += "]";
    }
    EXPECT_NE(problems(bomb + "}}]}]\n").find("holds too many values"), std::string::npos);
    EXPECT_NE(problems(std::string("name: \0x\n", 9)), "");
    EXPECT_NE(problems("\xff\xfe\x00\x01garbage"), "");
    EXPECT_NE(problems("? [a, b]\n: 1\n"), "");
}

TEST(Config, EveryPrefixOfAConfigIsReadWithoutHarm) {
    std::string text = kPeerConfig;
    for (std::size_t length = 0; length < text.size(); length += 7) load_text(text.substr(0, length), "config.yml");
}

TEST(Config, TellsAddressesApart) {
    EXPECT_TRUE(is_loopback("127.0.0.1"));
    EXPECT_TRUE(is_loopback("127.1.2.3"));
    EXPECT_TRUE(is_loopback("::1"));
    EXPECT_FALSE(is_loopback("0.0.0.0"));
    EXPECT_FALSE(is_loopback("10.0.0.1"));
    EXPECT_FALSE(is_loopback("127.example.org"));
    EXPECT_EQ(host_port("::1", 80), "[::1]:80");
    EXPECT_EQ(host_port(connect_address("0.0.0.0"), 80), "127.0.0.1:80");
}

} // namespace
} // namespace ocrctl::config
