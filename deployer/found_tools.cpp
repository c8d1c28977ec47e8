#include "deployer/found_tools.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <map>
#include <mutex>

namespace ocrctl::deployer {

using remote::shell_quote;

namespace {

constexpr int kAtOnce = 4; // each imports a good deal of Python
constexpr auto kLimit = std::chrono::minutes(3);

std::mutex file_mutex; // Hosts are set up at once, the file is one

Json read_found(std::filesystem::path const& file) {
    if (auto text = read_file(file))
        if (auto json = parse_json(*text);
            json && json->is_object() && json->contains("tools") && json->contains("which"))
            return std::move(*json);
    return Json{{"tools", Json::object()}, {"which", Json::object()}};
}

bool good_variable(std::string const& name) {
    return !name.empty() && (name[0] < '0' || name[0] > '9') && std::ranges::all_of(name, [](unsigned char c) {
        return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    });
}

/// Prints per program that was asked: number, what tells that it is the same one next time, answer; each ended by NUL.
std::string script_for(std::vector<UnitSpec const*> const& programs, std::vector<std::string> const& known) {
    std::string script = "d=$(mktemp -d) || exit 1\n"
                         "ask() {\n"
                         "  f=$(command -v -- \"$2\") || return\n"
                         "  s=\"$f $(stat -L -c '%Y %s' -- \"$f\")\"\n"
                         "  [ \"$s\" = \"$3\" ] && return\n"
                         "  printf %s \"$s\" >\"$d/$1.which\"\n"
                         "  timeout 60 \"$f\" --dump-json >\"$d/$1.json\" 2>/dev/null </dev/null || : >\"$d/$1.json\"\n"
                         "}\n";
    for (std::size_t i = 0; i < programs.size(); ++i) {
        script += "(";
        for (auto const& [name, value] : programs[i]->env)
            if (good_variable(name)) script += fmt::format("export {}={}; ", name, shell_quote(value));
        script += fmt::format("ask {} {} {}) &\n", i, shell_quote(programs[i]->argv.at(0)), shell_quote(known[i]));
        if ((i + 1) % kAtOnce == 0) script += "wait\n";
    }
    return script + fmt::format("wait\ni=0; while [ $i -lt {} ]; do\n"
                                "  if [ -e \"$d/$i.which\" ]; then printf '%s\\0' \"$i\"; cat \"$d/$i.which\"; printf "
                                "'\\0'; cat \"$d/$i.json\"; printf '\\0'; fi\n"
                                "  i=$((i + 1))\ndone\nrm -rf \"$d\"\n",
                                programs.size());
}

} // namespace

Result<std::vector<std::string>> ask_programs(HostDriver& driver, std::vector<UnitSpec> const& units,
                                              std::filesystem::path const& file) {
    std::map<std::string, UnitSpec const*> by_processor;
    for (auto const& unit : units)
        if (unit.kind == UnitKind::ForeignWorker && !unit.argv.empty())
            by_processor.emplace(unit.assignment.value("processor", ""), &unit);
    if (by_processor.empty()) return std::vector<std::string>{};

    auto before = [&] {
        std::lock_guard lock(file_mutex);
        return read_found(file);
    }();
    std::vector<std::string> names, known;
    std::vector<UnitSpec const*> programs;
    for (auto const& [name, unit] : by_processor) {
        names.push_back(name);
        programs.push_back(unit);
        known.push_back(before["tools"].contains(name) ? before["which"].value(driver.name() + "/" + name, "") : "");
    }
    auto output = driver.run({"/bin/sh", "-c", script_for(programs, known)}, {}, kLimit);
    if (!output) return std::unexpected(output.error());

    std::vector<std::string> silent;
    auto parts = split(output->out, '\0');
    std::lock_guard lock(file_mutex);
    auto found = read_found(file);
    auto changed = false;
    for (std::size_t at = 0; at + 2 < parts.size(); at += 3) {
        std::size_t number = 0;
        while (number < names.size() && std::to_string(number) != parts[at]) ++number;
        if (number == names.size()) continue;
        auto const& name = names[number];
        auto tool = parse_json(parts[at + 2]);
        if (!tool || !tool->is_object() || !tool->contains("executable")) {
            silent.push_back(name);
            continue;
        }
        found["tools"][name] = std::move(*tool);
        found["which"][driver.name() + "/" + name] = std::string(parts[at + 1]);
        changed = true;
    }
    if (changed)
        if (auto written = write_file_atomically(file, found.dump(1) + "\n"); !written)
            return std::unexpected(written.error());
    return silent;
}

} // namespace ocrctl::deployer
