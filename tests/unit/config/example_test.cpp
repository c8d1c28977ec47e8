// config.yml.example cannot rot: it loads as it is, and with everything that is commented out it knows each key of the
// reader and no other.
#include "lib/config/config.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <cstdlib>
#include <gtest/gtest.h>
#include <set>
#include <yaml-cpp/yaml.h>

namespace ocrctl::config {
namespace {

std::filesystem::path example() {
    auto const* source = std::getenv("OCRCTL_SOURCE_DIR");
    return std::filesystem::path(source ? source : ".") / "config.yml.example";
}

/// Prose has one blank after the hash; a key that is commented out has none, or its indent.
std::string with_all_keys(std::string const& text) {
    std::string all;
    for (auto const& line : split(text, '\n')) {
        bool key = line.size() > 1 && line[0] == '#' && (line[1] != ' ' || line.starts_with("#  ")) && !line.starts_with("#     ocrctl") &&
                   !line.starts_with("#     cp");
        all += (key ? line.substr(1) : line) + "\n";
    }
    return all;
}

void collect(YAML::Node const& node, std::string const& path, std::set<std::string>& keys) {
    if (node.IsSequence())
        for (auto const& item : node) collect(item, path + "[]", keys);
    if (!node.IsMap()) return;
    for (auto const& pair : node) {
        auto inner = path.empty() ? pair.first.Scalar() : path + "." + pair.first.Scalar();
        keys.insert(inner);
        collect(pair.second, inner, keys);
    }
}

TEST(ConfigExample, LoadsAsItIs) {
    auto loaded = load(example());
    for (auto const& problem : loaded.problems) ADD_FAILURE() << problem.text();
    EXPECT_TRUE(loaded.warnings.empty());
    EXPECT_EQ(loaded.config.name, "example");
    ASSERT_EQ(loaded.config.hosts.size(), 1u);
    EXPECT_EQ(loaded.config.hosts[0].connection, Connection::Local);
    std::set<std::string> processors;
    for (auto const& group : loaded.config.hosts[0].workers) processors.insert(group.processor);
    EXPECT_EQ(processors, std::set<std::string>(builtin_processors().begin(), builtin_processors().end()));
}

TEST(ConfigExample, ShowsEveryKeyTheReaderKnows) {
    auto text = read_file(example());
    ASSERT_TRUE(text);
    std::set<std::string> shown;
    collect(YAML::Load(with_all_keys(*text)), "", shown);
    for (auto const& key : known_keys()) EXPECT_TRUE(shown.contains(key)) << key << " is not in config.yml.example";
}

TEST(ConfigExample, ShowsNoKeyTheReaderRefuses) {
    auto text = read_file(example());
    ASSERT_TRUE(text);
    for (auto const& problem : load_text(with_all_keys(*text), example()).problems) {
        // Alternatives stand beside one another; each by itself is valid.
        bool alternative = problem.message.starts_with("only one of") || problem.message.starts_with("contradicts kind") ||
                           problem.message.starts_with("is for an external broker") || problem.message.starts_with("has no meaning for kind: embedded") ||
                           problem.message.starts_with("the server of this version");
        EXPECT_TRUE(alternative) << problem.text();
    }
}

TEST(ConfigExample, SpellsOutTheDefaultsOfTheStructs) {
    auto shown = load(example()).config;
    auto bare = load_text("name: example\n", example()).config;
    EXPECT_EQ(shown.listen.address, bare.listen.address);
    EXPECT_EQ(shown.listen.port, bare.listen.port);
    EXPECT_EQ(shown.log_level, bare.log_level);
    EXPECT_EQ(shown.drain, bare.drain);
    EXPECT_EQ(shown.grace, bare.grace);
    EXPECT_EQ(shown.existing_output, bare.existing_output);
    auto text = read_file(example());
    ASSERT_TRUE(text);
    auto all = load_text(with_all_keys(*text), example()).config;
    EXPECT_EQ(all.lease, bare.lease);
    EXPECT_EQ(all.parallel_hosts, bare.parallel_hosts);
    EXPECT_EQ(all.max_body, bare.max_body);
    EXPECT_EQ(all.use_tcp_mets, bare.use_tcp_mets);
    EXPECT_EQ(all.process_queue.consumer_timeout, bare.process_queue.consumer_timeout);
    EXPECT_EQ(all.process_queue.durable_exchange, bare.process_queue.durable_exchange);
    EXPECT_EQ(all.process_queue.durable_queues, bare.process_queue.durable_queues);
    EXPECT_EQ(all.process_queue.vhost, bare.process_queue.vhost);
}

TEST(ConfigExample, TheManualNamesEveryKey) {
    auto manual = read_file(example().parent_path() / "docs/configuration.md");
    ASSERT_TRUE(manual);
    for (auto const& path : known_keys()) {
        auto key = path.substr(path.find_last_of('.') + 1);
        EXPECT_NE(manual->find("`" + key + "`"), std::string::npos) << path << " is not in docs/configuration.md";
    }
}

} // namespace
} // namespace ocrctl::config
