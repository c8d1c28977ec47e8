// Any OCR-D command-line Processor, one process a call, in a scratch workspace that holds what its pages need and
// nothing else: it may write what it likes there, and only new files and agents leave it.
#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/base/text.hpp"
#include "lib/engine/engine.hpp"
#include "lib/engine/files.hpp"
#include "lib/log/log.hpp"
#include "lib/mets/mets.hpp"
#include "lib/process/process.hpp"

#include <algorithm>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <set>
#include <unistd.h>

namespace ocrctl::engine {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

std::string unescape(std::string_view text) {
    static constexpr std::pair<std::string_view, char> kNamed[] = {
        {"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
    std::string out;
    for (std::size_t i = 0; i < text.size();) {
        bool replaced = false;
        for (auto const& [name, value] : kNamed)
            if (text.substr(i).starts_with(name)) {
                out += value;
                i += name.size();
                replaced = true;
                break;
            }
        if (!replaced) out += text[i++];
    }
    return out;
}

/// Values of an attribute in a piece of markup.
std::optional<std::string> attribute(std::string_view tag, std::string_view name) {
    for (auto at = tag.find(name); at != std::string_view::npos; at = tag.find(name, at + 1)) {
        if (at == 0 || !std::isspace(static_cast<unsigned char>(tag[at - 1]))) continue;
        auto rest = tag.substr(at + name.size());
        while (!rest.empty() && std::isspace(static_cast<unsigned char>(rest.front()))) rest.remove_prefix(1);
        if (rest.empty() || rest.front() != '=') continue;
        rest.remove_prefix(1);
        while (!rest.empty() && std::isspace(static_cast<unsigned char>(rest.front()))) rest.remove_prefix(1);
        if (rest.empty() || (rest.front() != '"' && rest.front() != '\'')) continue;
        auto end = rest.find(rest.front(), 1);
        if (end == std::string_view::npos) return std::nullopt;
        return unescape(rest.substr(1, end - 1));
    }
    return std::nullopt;
}

/// Files that a PAGE document refers to: Page/@imageFilename, AlternativeImage/@filename at all levels.
std::vector<std::string> references_of(std::string_view page) {
    std::vector<std::string> found;
    for (auto open = page.find('<'); open != std::string_view::npos; open = page.find('<', open + 1)) {
        if (page.substr(open).starts_with("<!--")) {
            open = page.find("-->", open);
            if (open == std::string_view::npos) break;
            continue;
        }
        auto close = page.find('>', open);
        if (close == std::string_view::npos) break;
        auto tag = page.substr(open + 1, close - open - 1);
        auto name = tag.substr(0, tag.find_first_of(" \t\r\n/"));
        if (auto colon = name.find(':'); colon != std::string_view::npos) name.remove_prefix(colon + 1);
        std::optional<std::string> value;
        if (name == "Page") value = attribute(tag, "imageFilename");
        else if (name == "AlternativeImage") value = attribute(tag, "filename");
        if (value && !value->empty()) found.push_back(std::move(*value));
    }
    return found;
}

bool inside(std::string const& relative) {
    auto path = fs::path(relative).lexically_normal();
    return !relative.empty() && path.is_relative() && *path.begin() != "..";
}

/// Scratch folder of one call, removed with it.
struct Scratch {
    fs::path folder;
    explicit Scratch(fs::path const& parent) : folder(parent / ("ocrctl-run-" + new_ulid())) {}
    ~Scratch() { remove_tree(folder); }
    Scratch(Scratch const&) = delete;
};

Result<void> place_file(fs::path const& workspace, fs::path const& scratch, std::string const& relative) {
    std::error_code error;
    auto target = scratch / relative;
    if (fs::exists(fs::symlink_status(target, error))) return {};
    if (!fs::exists(workspace / relative, error)) return fail(ErrorKind::NotFound, "there is no file {} in {}", relative, workspace.string());
    fs::create_directories(target.parent_path(), error);
    if (!error) fs::create_symlink(workspace / relative, target, error);
    if (error) return fail(ErrorKind::Unavailable, "scratch workspace: {}: {}", relative, error.message());
    return {};
}

Result<void> move_file(fs::path const& from, fs::path const& to) {
    std::error_code error;
    fs::create_directories(to.parent_path(), error);
    if (!error) {
        fs::rename(from, to, error);
        if (error == std::errc::cross_device_link) {
            error.clear();
            fs::copy_file(from, to, fs::copy_options::overwrite_existing, error);
        }
    }
    if (error) return fail(ErrorKind::Unavailable, "collect {}: {}", to.string(), error.message());
    return {};
}

std::string tail_of(fs::path const& file) {
    auto text = read_file(file);
    std::string log;
    if (text) append_log(log, *text);
    return log;
}

std::string last_line(std::string_view log) {
    auto lines = split(trim(log), '\n');
    return lines.empty() ? std::string() : std::string(trim(lines.back()));
}

class CliRunner final : public TaskRunner {
public:
    CliRunner(asio::any_io_executor, std::string executable, Json parameters, fs::path scratch, EngineOptions options)
        : executable_(std::move(executable)), parameters_(std::move(parameters)), scratch_(std::move(scratch)), options_(std::move(options)),
          log_(log::Logger("engine").with(log::kv("processor", executable_))) {}
    ~CliRunner() override { kill(); }

    awaitable<Result<Provenance>> load() override {
        stopped_ = false;
        Scratch scratch(scratch_);
        if (auto made = make_folder(scratch.folder, 0700); !made) co_return fail(made.error());
        auto call = co_await run_program({executable_, "--dump-json"}, scratch.folder, std::chrono::minutes(2));
        if (!call) co_return fail(call.error());
        if (auto library = process::missing_library(call->log))
            co_return fail(ErrorKind::Unavailable, "{} cannot start on this host: {}", executable_, *library);
        if (call->late) co_return fail(ErrorKind::Unavailable, "{} --dump-json did not end within 2 minutes", executable_);
        if (!call->status.success())
            co_return fail(ErrorKind::Invalid, "{} --dump-json {}: {}", executable_, call->status.text(), last_line(call->log));
        Provenance provenance;
        provenance.name = executable_;
        provenance.parameters = parameters_;
        // Some programs log on stdout before the JSON.
        auto text = std::string_view(call->log);
        for (auto at = text.find('{'); at != std::string_view::npos; at = text.find("\n{", at + 1)) {
            auto json = parse_json(text.substr(at, text.rfind('}') == std::string_view::npos ? 0 : text.rfind('}') + 1 - at));
            if (!json || !json->is_object()) continue;
            if (json->contains("steps") && !(*json)["steps"].empty() && (*json)["steps"][0].is_string()) provenance.step = (*json)["steps"][0];
            break;
        }
        ready_ = true;
        co_return provenance;
    }

    bool ready() const noexcept override { return ready_; }

    void stop(std::string reason, bool cancelled) override {
        stopped_ = true;
        stop_reason_ = std::move(reason);
        stop_cancelled_ = cancelled;
        kill();
    }

    void kill() override {
        if (running_) ::kill(-running_->identity.pid, SIGKILL); // not reaped yet
    }

    awaitable<TaskResult> run(Task task, Place place) override {
        stopped_ = false;
        TaskResult result;
        result.job = task.job;
        result.shard = task.shard;
        result.attempt = task.attempt;
        result.started = now_millis();
        co_await work(task, place, result);
        result.ended = now_millis();
        co_return result;
    }

private:
    struct Call {
        process::ExitStatus status;
        std::string log;
        bool late = false;
    };

    awaitable<Result<Call>> run_program(std::vector<std::string> argv, fs::path folder, milliseconds limit) {
        process::SpawnOptions spawn;
        spawn.argv = std::move(argv);
        spawn.env = options_.env;
        spawn.env["OMP_THREAD_LIMIT"] = "1";
        // A page that fails is left out instead of ending the whole call (OCR-D 3).
        spawn.env.try_emplace("OCRD_MISSING_OUTPUT", "SKIP");
        spawn.env.try_emplace("OCRD_MAX_MISSING_OUTPUTS", "-1");
        spawn.env.try_emplace("OCRD_MISSING_INPUT", "SKIP");
        spawn.cwd = folder;
        spawn.log = folder / ".ocrctl-log";
        auto child = process::spawn(spawn);
        if (!child) co_return fail(child.error());
        running_ = std::move(*child);
        struct Guard { // cancelled: nothing of it goes on
            CliRunner& runner;
            ~Guard() {
                if (!runner.running_) return;
                runner.kill();
                (void)process::wait_for(runner.running_->pidfd.get(), std::chrono::seconds(5));
                runner.running_.reset();
            }
        } guard{*this};
        if (stopped_) kill();
        Call call;
        auto ended = limit == milliseconds::max() ? std::optional(co_await wait_killing_rest())
                                                  : co_await within(limit, wait_killing_rest());
        if (!ended) {
            kill();
            ended = co_await wait_killing_rest();
            call.late = true;
        }
        call.status = *ended;
        running_.reset();
        call.log = tail_of(spawn.log);
        co_return call;
    }

    awaitable<process::ExitStatus> wait_killing_rest() {
        asio::posix::stream_descriptor pidfd(co_await asio::this_coro::executor, ::dup(running_->pidfd.get()));
        co_await pidfd.async_wait(asio::posix::stream_descriptor::wait_read, use_awaitable);
        kill(); // what the program left behind in its group, as long as the number is its own
        co_return co_await process::wait(running_->pidfd.get());
    }

    awaitable<void> work(Task const& task, Place const& place, TaskResult& result) {
        if (until_deadline(task).count() == 0) {
            result.error = "the deadline had passed before the work began";
            fail_rest(result, task, result.error);
            co_return;
        }
        if (auto fits = mets::check_output_groups(task.output_groups); !fits) {
            result.error = fits.error().message();
            fail_rest(result, task, result.error);
            co_return;
        }
        result.provenance.name = executable_;
        result.provenance.parameters = parameters_;
        std::map<std::string, PageOutcome> outcomes;
        bool go_on = co_await call(task, task.pages, place, result, outcomes);
        if (go_on && result.error.empty() && task.pages.size() > 1) {
            // A Processor that stops at its first bad page took the others with it: these get a call of their own.
            std::vector<PageInput> missing;
            for (auto const& page : task.pages)
                if (auto at = outcomes.find(page.page_id); at == outcomes.end() || (!at->second.ok && at->second.retry)) missing.push_back(page);
            for (auto const& page : missing) {
                if (!co_await call(task, {page}, place, result, outcomes)) break;
            }
        }
        for (auto const& page : task.pages) {
            auto at = outcomes.find(page.page_id);
            PageOutcome outcome = at == outcomes.end() ? PageOutcome{} : std::move(at->second);
            outcome.page_id = page.page_id;
            if (!outcome.ok && outcome.error.empty()) outcome.error = result.error.empty() ? "no output" : result.error;
            outcome.retry = false;
            result.pages.push_back(std::move(outcome));
        }
        if (place.progress) place.progress(task.pages.size(), task.pages.size());
    }

    /// One call for these pages. A page that has no outcome, or one that failed with `retry`, may be tried alone. False:
    /// the Task is over.
    awaitable<bool> call(Task const& task, std::vector<PageInput> pages, Place const& place, TaskResult& result,
                         std::map<std::string, PageOutcome>& outcomes) {
        Scratch scratch(scratch_);
        if (auto made = make_folder(scratch.folder, 0700); !made) {
            result.error = made.error().message();
            co_return false;
        }
        std::set<std::string> known;
        std::vector<mets::Agent> agents;
        if (auto ready = prepare(task, pages, place.workspace, scratch.folder, outcomes, known, agents); !ready) {
            result.error = ready.error().message();
            co_return false;
        }
        if (pages.empty()) co_return true;
        std::vector<std::string> ids;
        for (auto const& page : pages) ids.push_back(page.page_id);
        auto parameters = parameters_;
        if (task.parameters.is_object()) parameters.update(task.parameters);
        auto parameter_file = scratch.folder / ".ocrctl-parameters.json";
        if (auto put = write_file_atomically(parameter_file, dump(parameters)); !put) {
            result.error = put.error().message();
            co_return false;
        }
        std::vector<std::string> argv{executable_, "-m", (scratch.folder / "mets.xml").string(), "-w", scratch.folder.string(),
                                      "-I", join(task.input_groups, ","), "-O", join(task.output_groups, ","),
                                      "-p", parameter_file.string()};
        if (!(ids.size() == 1 && ids.front().empty())) {
            argv.push_back("-g");
            argv.push_back(join(ids, ","));
        }
        auto deadline = until_deadline(task);
        auto limit = place.page_limit.count() > 0 ? std::min(deadline, place.page_limit * static_cast<int>(pages.size())) : deadline;
        auto done = co_await run_program(std::move(argv), scratch.folder, limit);
        if (!done) {
            result.error = done.error().message();
            co_return false;
        }
        append_log(result.log, done->log);
        if (stopped_) {
            result.error = stop_reason_;
            result.cancelled = stop_cancelled_;
            co_return false;
        }
        auto library = process::missing_library(done->log);
        std::string reason;
        if (done->late) reason = limit == deadline ? "the deadline passed" : fmt::format("took longer than {} s", limit.count() / 1000.0);
        else if (library) reason = fmt::format("{} cannot start on this host: {}", executable_, *library);
        else if (done->status.signal) reason = fmt::format("{} was killed by signal {} ({})", executable_, done->status.signal, ::strsignal(done->status.signal));
        else if (!done->status.success()) reason = fmt::format("{} {}: {}", executable_, done->status.text(), last_line(done->log));
        if (auto collected = collect(task, pages, place.staging, scratch.folder, known, agents, reason, result, outcomes); !collected) {
            result.error = collected.error().message();
            co_return false;
        }
        if (library || (done->late && limit == deadline)) {
            result.error = reason;
            co_return false;
        }
        if (done->status.signal && !done->late) {
            result.error = reason;
            result.engine_died = true;
            co_return false;
        }
        co_return true;
    }

    /// Fills the scratch folder. Pages whose files are not there get their outcome and leave `pages`.
    static Result<void> prepare(Task const& task, std::vector<PageInput>& pages, fs::path const& workspace, fs::path const& scratch,
                                std::map<std::string, PageOutcome>& outcomes, std::set<std::string>& known, std::vector<mets::Agent>& agents) {
        std::set<std::string> placed;
        std::erase_if(pages, [&](PageInput const& page) {
            auto put = [&](std::string const& relative) -> Result<void> {
                if (!inside(relative)) return fail(ErrorKind::Invalid, "{} leaves the workspace", relative);
                auto done = place_file(workspace, scratch, relative);
                if (done) placed.insert(relative);
                return done;
            };
            Result<void> done;
            for (auto const& file : page.files) {
                if (done) done = put(file.path);
                if (!done || (file.mimetype != mets::kPageMimetype && !file.path.ends_with(".xml"))) continue;
                auto text = read_file(workspace / file.path);
                if (!text) {
                    done = fail(text.error());
                    continue;
                }
                for (auto const& reference : references_of(*text))
                    if (done && reference.find("://") == std::string::npos) done = put(reference);
            }
            if (done) return false;
            auto& outcome = outcomes[page.page_id];
            outcome.page_id = page.page_id;
            outcome.error = done.error().message();
            return true;
        });
        auto source = workspace / task.mets_basename;
        std::error_code error;
        fs::copy_file(source, scratch / "mets.xml", error);
        if (error) return fail(ErrorKind::Unavailable, "copy {} into the scratch workspace: {}", source.string(), error.message());
        fs::permissions(scratch / "mets.xml", fs::perms::owner_read | fs::perms::owner_write, error);
        auto mets = mets::Mets::load(scratch / "mets.xml");
        if (!mets) return fail(mets.error());
        auto all = mets->find_files({});
        if (!all) return fail(all.error());
        std::vector<std::pair<std::string, std::string>> surplus;
        for (auto const* file : *all)
            if (!placed.contains(file->path)) surplus.emplace_back(file->id, file->group);
        for (auto const& [id, group] : surplus)
            if (auto removed = mets->remove_file(id, group); !removed) return removed;
        // Files of a step that has just ended may not be in the METS on disk yet.
        for (auto const& page : pages)
            for (auto const& file : page.files) {
                if (mets->find(file.id, file.group)) continue;
                auto ref = file;
                if (ref.page_id.empty()) ref.page_id = page.page_id;
                if (auto added = mets->add_file(ref); !added) return added;
            }
        auto kept = mets->find_files({});
        if (!kept) return fail(kept.error());
        for (auto const* file : *kept) known.insert(file->group + '\0' + file->id);
        agents = mets->agents();
        return mets->save();
    }

    static Result<void> collect(Task const& task, std::vector<PageInput> const& pages, fs::path const& staging, fs::path const& scratch,
                                std::set<std::string> const& known, std::vector<mets::Agent> const& agents, std::string const& reason,
                                TaskResult& result, std::map<std::string, PageOutcome>& outcomes) {
        auto mets = mets::Mets::load(scratch / "mets.xml");
        if (!mets) {
            if (!reason.empty()) return {}; // it broke off while saving: no page has an output
            return fail(mets.error().during("read what " + result.provenance.name + " wrote"));
        }
        auto all = mets->find_files({});
        if (!all) return fail(all.error());
        std::map<std::string, PageOutcome> fresh;
        for (auto const& page : pages) fresh[page.page_id].page_id = page.page_id;
        for (auto const* file : *all) {
            if (known.contains(file->group + '\0' + file->id)) continue;
            auto page = fresh.find(file->page_id);
            if (page == fresh.end()) {
                if (pages.size() != 1) continue;
                page = fresh.begin(); // a file of the whole document belongs to the only page of the call
            }
            FileRef ref{.group = file->group, .id = file->id, .page_id = file->page_id, .mimetype = file->mimetype, .path = file->path};
            if (!inside(ref.path)) {
                page->second.error = fmt::format("output {} has no file inside the workspace", file->id);
                continue;
            }
            if (auto moved = move_file(scratch / ref.path, staging / ref.path); !moved) {
                page->second.error = moved.error().message();
                continue;
            }
            page->second.files.push_back(std::move(ref));
        }
        for (auto const& page : pages) {
            auto& outcome = fresh[page.page_id];
            std::vector<std::string> missing;
            for (auto const& group : task.output_groups)
                if (std::ranges::none_of(outcome.files, [&](FileRef const& f) { return f.group == group; })) missing.push_back(group);
            outcome.ok = missing.empty() && outcome.error.empty();
            if (outcome.ok) {
                settle(outcome, staging, false);
                if (!reason.empty()) outcome.warnings.push_back(reason);
            } else {
                // Alone it can be tried once more, unless the program said that all went well.
                outcome.retry = pages.size() > 1 && !reason.empty();
                if (outcome.error.empty())
                    outcome.error = reason.empty() ? "no output in " + join(missing, ", ") + ": " + last_line(result.log) : reason;
            }
            outcomes[page.page_id] = outcome;
        }
        for (auto const& agent : mets->agents()) {
            if (std::ranges::find(agents, agent) != agents.end()) continue;
            result.provenance.name = agent.name;
            result.provenance.step = agent.otherrole.value_or(result.provenance.step);
            for (auto const& [attributes, text] : agent.notes) {
                auto option = std::ranges::find_if(attributes, [](auto const& a) { return a.first.ends_with("option"); });
                if (option == attributes.end() || option->second != "parameter") continue;
                if (auto parameters = parse_json(text); parameters && parameters->is_object()) result.provenance.parameters = *parameters;
            }
        }
        return {};
    }

    std::string executable_;
    Json parameters_;
    fs::path scratch_;
    EngineOptions options_;
    log::Logger log_;
    std::optional<process::Child> running_;
    bool ready_ = false, stopped_ = false, stop_cancelled_ = false;
    std::string stop_reason_;
};

} // namespace

std::unique_ptr<TaskRunner> cli_runner(asio::any_io_executor executor, std::string executable, Json parameters, fs::path scratch,
                                       EngineOptions options) {
    return std::make_unique<CliRunner>(std::move(executor), std::move(executable), std::move(parameters), std::move(scratch), std::move(options));
}

} // namespace ocrctl::engine
