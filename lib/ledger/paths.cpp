#include "lib/ledger/paths.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/model/json.hpp"

#include <algorithm>
#include <cstdlib>
#include <pwd.h>
#include <unistd.h>

namespace ocrctl::ledger {
namespace fs = std::filesystem;

Result<fs::path> default_state_root() {
    if (::geteuid() == 0) return fs::path("/var/lib/ocrctl");
    if (auto const* xdg = std::getenv("XDG_STATE_HOME"); xdg != nullptr && *xdg == '/') return fs::path(xdg) / "ocrctl";
    std::string home;
    if (auto const* named = std::getenv("HOME"); named != nullptr) home = named;
    if (home.empty()) {
        passwd entry{};
        passwd* found = nullptr;
        std::string buffer(4096, '\0');
        if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr && found->pw_dir != nullptr) home = found->pw_dir;
        if (!home.starts_with('/') || home == "/nonexistent") return fail(ErrorKind::Usage, "HOME is not set: give --state");
    }
    return fs::path(home) / ".local" / "state" / "ocrctl";
}

Result<fs::path> state_folder(std::string_view name, fs::path const& state) {
    if (!state.empty()) return fs::absolute(state).lexically_normal();
    auto root = default_state_root();
    if (!root) return root;
    return *root / name;
}

fs::path HostPaths::socket() const { return host_socket_path(root); }

fs::path host_socket_path(fs::path const& host_dir) {
    auto folder = fs::absolute(host_dir).lexically_normal();
    if (!folder.has_filename()) folder = folder.parent_path(); // "dir/" and "dir" are the same
    auto socket = folder / "agent.sock";
    if (socket.string().size() <= 100) return socket;
    return fs::path("/tmp") / fmt::format("ocrctl-{}.sock", sha256_hex(folder.string()).substr(0, 16));
}

std::string entry_file_name(std::string_view entry) {
    std::string name(entry);
    std::ranges::replace_if(
        name, [](char c) { return !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_'); },
        '_');
    return name.empty() || name[0] == '.' ? "_" + name : name;
}

Result<DeploymentInfo> read_deployment(fs::path const& state) {
    StatePaths paths{state};
    DeploymentInfo info;
    info.state = state;
    auto text = read_file(paths.deployment());
    if (text) {
        auto json = parse_json(*text);
        if (!json) return fail(json.error().during(paths.deployment().string()));
        if (!json->is_object()) return fail(ErrorKind::Invalid, "{}: not an object", paths.deployment().string());
        auto text_of = [&](char const* key) {
            auto value = json->find(key);
            return value != json->end() && value->is_string() ? value->get<std::string>() : std::string();
        };
        info.id = text_of("id");
        info.name = text_of("name");
        info.config = text_of("config");
    } else if (text.error().kind() == ErrorKind::NotFound) {
        info.name = state.filename().string();
    } else {
        return std::unexpected(text.error());
    }
    auto open = [](LedgerState const& ledger) { return std::ranges::any_of(ledger.entries, [](auto const& e) { return e.second.open(); }); };
    auto central = replay(paths.ledger());
    if (!central) return std::unexpected(central.error());
    std::error_code ignored;
    info.closing = central->closing || fs::exists(paths.closing(), ignored);
    info.live = open(*central);
    for (fs::directory_iterator host(paths.hosts(), ignored), end; !ignored && !info.live && host != end; host.increment(ignored))
        if (auto ledger = replay(HostPaths{host->path()}.ledger()); ledger) info.live = open(*ledger);
    if (!text && !info.live) return std::unexpected(text.error());
    return info;
}

namespace {

/// Central state folders whose agent on this machine runs: "ocrctl agent --state STATE/hosts/HOST".
std::vector<fs::path> folders_with_an_agent() {
    std::vector<fs::path> found;
    std::error_code ignored;
    for (fs::directory_iterator process("/proc", ignored), end; !ignored && process != end; process.increment(ignored)) {
        auto text = read_file(process->path() / "cmdline");
        if (!text) continue;
        auto words = split(*text, '\0');
        if (words.size() < 4 || words[1] != "agent" || words[2] != "--state") continue;
        auto host = fs::path(words[3]);
        if (host.is_absolute() && host.parent_path().filename() == "hosts") found.push_back(host.parent_path().parent_path());
    }
    return found;
}

} // namespace

std::vector<DeploymentInfo> find_deployments(bool all, fs::path const& root) {
    std::vector<DeploymentInfo> found;
    std::error_code ignored;
    auto folder = root.empty() ? default_state_root() : root;
    if (!folder) return found;
    if (root.empty()) // one may be kept anywhere (--state)
        for (auto const& elsewhere : folders_with_an_agent()) {
            // Another machine's hosts on this one have such a folder too, without the deployment's file.
            if (elsewhere.parent_path() == *folder || !fs::exists(StatePaths{elsewhere}.deployment(), ignored)) continue;
            if (auto info = read_deployment(elsewhere); info && info->live) found.push_back(std::move(*info));
        }
    for (fs::directory_iterator item(*folder, ignored), end; !ignored && item != end; item.increment(ignored))
        if (auto info = read_deployment(item->path()); info && (all || info->live)) found.push_back(std::move(*info));
    std::ranges::sort(found, {}, &DeploymentInfo::name);
    return found;
}

} // namespace ocrctl::ledger
