#include "processing_server/tool_catalogue.hpp"

#include "lib/async/on_thread.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "lib/process/process.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <cstdlib>
#include <poll.h>
#include <set>
#include <unistd.h>

namespace ocrctl::server {

namespace field = log::field;
namespace fs = std::filesystem;
using log::kv;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto kAnswerLimit = 60s; // imports of a Python program on a busy machine
constexpr auto kAskAgain = 60s;    // one that gave no answer
constexpr std::size_t kMaxAnswer = 4 << 20;

bool good_name(std::string_view name) {
    return name.starts_with("ocrd-") && name.size() <= 128 && std::ranges::all_of(name, [](unsigned char c) {
               return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
           });
}

Millis changed_at(fs::path const& file) {
    std::error_code problem;
    auto time = fs::last_write_time(file, problem);
    return problem ? 0 : std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
}

bool runs(fs::path const& file) {
    std::error_code problem;
    return fs::is_regular_file(file, problem) && ::access(file.c_str(), X_OK) == 0;
}

/// What `PROGRAM --dump-json` prints. Blocks.
Result<Json> dump_json(fs::path const& program, std::map<std::string, std::string> const& env,
                       std::atomic<bool> const& stopping) {
    process::SpawnOptions options;
    options.argv = {program.native(), "--dump-json"};
    options.env = env;
    options.pipe_output = true;
    auto child = process::spawn(options);
    if (!child) return fail(child.error());
    auto const end = Clock::now() + kAnswerLimit;
    std::string text;
    bool whole = false;
    while (!stopping && Clock::now() < end && text.size() <= kMaxAnswer) {
        pollfd waiting{child->output.get(), POLLIN, 0};
        auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
        if (::poll(&waiting, 1, static_cast<int>(std::clamp<long>(left, 0, 100))) <= 0) continue;
        char buffer[65536];
        auto got = ::read(child->output.get(), buffer, sizeof buffer);
        if (got <= 0) {
            whole = got == 0;
            break;
        }
        text.append(buffer, static_cast<std::size_t>(got));
    }
    auto status = process::wait_for(child->pidfd.get(), whole ? 5000ms : 0ms);
    if (!status) {
        process::stop_processes(std::vector{child->identity}, 0ms);
        (void)process::wait_for(child->pidfd.get(), 5000ms);
        return fail(ErrorKind::Timeout, "{} --dump-json does not end", program.native());
    }
    if (!status->success()) return fail(ErrorKind::Invalid, "{} --dump-json {}", program.native(), status->text());
    // Programs print other lines before it now and then.
    auto start = text.starts_with('{') ? 0 : text.find("\n{");
    auto json = start == std::string::npos ? Result<Json>(Json()) : parse_json(text.substr(start));
    if (!json || !json->is_object() || !json->contains("executable"))
        return fail(ErrorKind::Invalid, "{} --dump-json prints no tool description", program.native());
    return json;
}

} // namespace

ToolCatalogue::ToolCatalogue(Settings const& settings, asio::any_io_executor io, asio::thread_pool& pool)
    : settings_(settings), io_(std::move(io)), pool_(pool), log_("tools"), tasks_(io_, "tools") {}

namespace {

/// The ocrd-all-tool.json inside the package of the first `ocrd` in the PATH, as OCR-D's own server reads it; empty if
/// there is none.
fs::path shipped_catalogue() {
    auto const* path = std::getenv("PATH");
    for (auto const& folder : split(path != nullptr ? path : "", ':')) {
        if (folder.empty() || folder[0] != '/' || !runs(fs::path(folder) / "ocrd")) continue;
        std::error_code problem;
        auto program = fs::canonical(fs::path(folder) / "ocrd", problem);
        if (problem) return {};
        for (fs::directory_iterator python(program.parent_path().parent_path() / "lib", problem), end;
             !problem && python != end; python.increment(problem)) {
            if (!python->path().filename().native().starts_with("python3")) continue;
            for (char const* packages : {"site-packages", "dist-packages"})
                if (auto file = python->path() / packages / "ocrd" / "ocrd-all-tool.json";
                    fs::is_regular_file(file, problem))
                    return file;
        }
        return {};
    }
    return {};
}

/// Calls take(name, tool) for each entry. OCR-D's ocrd-all-tool.json maps names to tools; an ocrd-tool.json has them below "tools".
template <class Take>
Result<void> read_catalogue(fs::path const& file, Take take) {
    auto text = read_file(file);
    if (!text) return fail(text.error().during("read the tool catalogue"));
    auto json = parse_json(*text);
    if (!json || !json->is_object())
        return fail(ErrorKind::Invalid, "the tool catalogue {} is no JSON object{}", file.native(),
                    json ? "" : ": " + json.error().message());
    auto const& entries = json->contains("tools") && (*json)["tools"].is_object() ? (*json)["tools"] : *json;
    for (auto const& [name, tool] : entries.items())
        if (tool.is_object()) take(name, tool);
    return {};
}

} // namespace

Result<void> ToolCatalogue::load() {
    for (auto const& [name, tool] : tools::builtin_tools().items()) tools_[name] = tool;
    look_for_programs();
    // What programs said earlier, as long as they are the same.
    if (auto text = read_file(settings_.state / "dumped-tools.json")) {
        if (auto json = parse_json(*text); json && json->is_object() && json->contains("tools"))
            for (auto const& [name, tool] : (*json)["tools"].items()) {
                auto changed = json->value("changed", Json::object()).value(name, Millis(0));
                auto program = programs_.find(name);
                if (!tool.is_object() || (program != programs_.end() && program->second.changed != changed)) continue;
                tools_[name] = tool;
                said_[name] = changed;
            }
    }
    read_found();
    auto files = settings_.tools;
    if (auto own = settings_.state / "tools.json"; fs::exists(own)) files.push_back(own);
    for (auto const& file : files)
        if (auto read = read_catalogue(file,
                                       [&](auto const& name, auto const& tool) {
                                           tools_[name] = tool;
                                           loose_.erase(name);
                                       });
            !read)
            return read;
    // Of what nobody named and no program here can tell. A broken one is not the user's file: said, and passed over.
    if (auto shipped = shipped_catalogue(); !shipped.empty())
        if (auto read = read_catalogue(shipped,
                                       [&](auto const& name, auto const& tool) {
                                           if (!programs_.contains(name) && tools_.try_emplace(name, tool).second)
                                               loose_.insert(name);
                                       });
            !read)
            log_.warn("tools.unread", kv(field::kError, read.error().message()));
    return {};
}

// The Deployer writes it while the server runs: a Host may come later.
void ToolCatalogue::read_found() {
    auto file = settings_.state / "found-tools.json";
    auto changed = changed_at(file);
    if (changed == found_changed_) return;
    found_changed_ = changed;
    auto take = [&](auto const& name, auto const& tool) {
        if (programs_.contains(name) || (tools_.contains(name) && !loose_.contains(name))) return;
        tools_[name] = tool;
        loose_.insert(name);
    };
    if (auto read = read_catalogue(file, take); !read)
        log_.warn("tools.unread", kv(field::kError, read.error().message()));
}

void ToolCatalogue::look_for_programs() {
    auto look = [&](std::string_view path, std::map<std::string, std::string> const& env, std::string const& only) {
        for (auto const& folder : split(path, ':')) {
            if (folder.empty() || folder[0] != '/') continue;
            if (!only.empty()) {
                if (auto file = fs::path(folder) / only; runs(file)) {
                    programs_.try_emplace(only, Program{file, env, changed_at(file)});
                    return;
                }
                continue;
            }
            std::error_code problem;
            for (fs::directory_iterator entry(folder, problem), end; !problem && entry != end;
                 entry.increment(problem)) {
                auto name = entry->path().filename().native();
                if (good_name(name) && !tools_.contains(name) && runs(entry->path()))
                    programs_.try_emplace(name, Program{entry->path(), env, changed_at(entry->path())});
            }
        }
    };
    // First as the configuration says it for this machine, then by PATH.
    for (auto const& [name, processor] : settings_.processors) {
        if (tools::builtin_tool(name) != nullptr || !good_name(name) || !processor.here) continue;
        if (processor.executable.find('/') != std::string::npos) {
            if (runs(processor.executable))
                programs_.try_emplace(name,
                                      Program{processor.executable, processor.env, changed_at(processor.executable)});
            continue;
        }
        auto path = processor.env.find("PATH");
        if (path != processor.env.end()) look(path->second, processor.env, name);
    }
    if (auto const* path = std::getenv("PATH"); path != nullptr) look(path, {}, "");
}

std::string ToolCatalogue::unknown(std::string_view processor) {
    return fmt::format("{} is not in the tool catalogue, and no such program is in the PATH of the server: name an ocrd-all-tool.json that has it in `tools` of the configuration", processor);
}

Json const* ToolCatalogue::find(std::string const& processor) const {
    auto found = tools_.find(processor);
    return found == tools_.end() ? nullptr : &found->second;
}

awaitable<Json const*> ToolCatalogue::find_or_ask(std::string processor) {
    read_found();
    if (auto const* known = find(processor)) co_return known;
    auto program = programs_.find(processor);
    if (program == programs_.end()) co_return nullptr;
    if (auto silent = silent_.find(processor); silent != silent_.end() && Clock::now() - silent->second < kAskAgain)
        co_return nullptr;
    auto& asked = asked_[processor];
    if (!asked) {
        asked = std::make_shared<Event>(io_);
        tasks_.spawn("ask " + processor, ask(processor, program->second));
    }
    auto answer = asked;
    co_await answer->wait();
    co_return find(processor);
}

awaitable<void> ToolCatalogue::ask(std::string processor, Program program) {
    auto work = [this, program] { return dump_json(program.path, program.env, stopping_); };
    auto tool = co_await on_thread(pool_, std::move(work));
    if (tool) {
        log_.info("tool.found", kv(field::kProcessor, processor), kv("program", program.path.native()));
        tools_[processor] = std::move(*tool);
        said_[processor] = program.changed;
        remember();
    } else {
        log_.warn("tool.silent", kv(field::kProcessor, processor), kv(field::kReason, tool.error().message()));
        silent_[processor] = Clock::now();
    }
    auto asked = asked_.extract(processor);
    if (asked) asked.mapped()->notify_all();
}

awaitable<void> ToolCatalogue::stop() {
    stopping_ = true;
    tasks_.cancel();
    co_await tasks_.join();
}

void ToolCatalogue::remember() const {
    Json tools = Json::object(), changed = Json::object();
    for (auto const& [name, when] : said_) {
        tools[name] = tools_.at(name);
        changed[name] = when;
    }
    auto written = write_file_atomically(settings_.state / "dumped-tools.json",
                                         Json{{"tools", tools}, {"changed", changed}}.dump(1) + "\n");
    if (!written) log_.warn("tools.not_kept", kv(field::kReason, written.error().message()));
}

std::vector<std::string> ToolCatalogue::names() {
    read_found();
    std::set<std::string> all;
    for (auto const& [name, tool] : tools_) all.insert(name);
    for (auto const& [name, program] : programs_) all.insert(name);
    return {all.begin(), all.end()};
}

} // namespace ocrctl::server
