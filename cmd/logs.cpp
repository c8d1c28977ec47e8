// ocrctl logs [ENTRY] [-f]: the logs that lie on this machine.
#include "cmd/client.hpp"
#include "cmd/commands.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/ledger.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fcntl.h>
#include <map>
#include <memory>
#include <set>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace ocrctl {

namespace {

namespace fs = std::filesystem;

struct LogFile {
    std::string name; // what the user may call it
    fs::path path;
};

struct LogOptions {
    Where where;
    std::string entry;
    int lines = -1;
    bool follow = false, list = false;
};

void add_logs_of(fs::path const& folder, std::string const& prefix, std::vector<LogFile>& out) {
    std::error_code ignored;
    for (fs::directory_iterator at(folder, ignored), end; !ignored && at != end; at.increment(ignored))
        if (at->is_regular_file(ignored) && at->path().extension() == ".log") out.push_back({prefix + at->path().stem().native(), at->path()});
}

std::vector<LogFile> find_logs(fs::path const& state) {
    ledger::StatePaths paths{state};
    std::vector<LogFile> logs;
    add_logs_of(paths.logs(), "", logs);
    std::map<std::string, std::string> entries; // file name -> the unit's name
    std::error_code ignored;
    for (fs::directory_iterator at(paths.hosts(), ignored), end; !ignored && at != end; at.increment(ignored)) {
        ledger::HostPaths const host{at->path()};
        add_logs_of(host.logs(), at->path().filename().native() + ": ", logs);
        if (auto known = ledger::replay(host.ledger()))
            for (auto const& name : known->order) entries[ledger::entry_file_name(name)] = name;
    }
    for (auto& log : logs)
        if (auto known = entries.find(log.path.stem().native()); known != entries.end()) log.name = known->second;
    std::ranges::sort(logs, {}, &LogFile::name);
    return logs;
}

/// The last `lines` lines of the file, all if negative, and where they end.
std::string tail_of(fs::path const& file, int lines, std::uintmax_t& end) {
    Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info{};
    if (!fd || ::fstat(fd.get(), &info) != 0) return {};
    end = static_cast<std::uintmax_t>(info.st_size);
    auto begin = lines < 0 ? std::uintmax_t(0) : end;
    std::string text;
    if (lines >= 0) {
        // Backwards, block by block, until enough line ends were seen.
        long seen = -1;
        while (begin > 0 && seen < lines) {
            auto const step = std::min<std::uintmax_t>(begin, 65536);
            begin -= step;
            std::string block(step, '\0');
            if (::pread(fd.get(), block.data(), step, static_cast<off_t>(begin)) != static_cast<ssize_t>(step)) break;
            seen += std::ranges::count(block, '\n');
            text = block + text;
        }
        if (!text.ends_with('\n') && !text.empty()) ++seen;
        while (seen >= lines && !text.empty()) {
            auto const newline = text.find('\n');
            if (std::ranges::count(text, '\n') + (text.ends_with('\n') ? 0 : 1) <= lines) break;
            text.erase(0, newline == std::string::npos ? text.size() : newline + 1);
        }
        return text;
    }
    text.resize(end);
    auto const got = ::pread(fd.get(), text.data(), text.size(), 0);
    text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    end = text.size();
    return text;
}

struct Followed {
    LogFile log;
    std::uintmax_t at = 0;
    ino_t inode = 0;
};

/// What has come since; a file that was replaced or cut is read from its beginning.
std::string news_of(Followed& followed) {
    Fd fd(::open(followed.log.path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info{};
    if (!fd || ::fstat(fd.get(), &info) != 0) return {};
    auto const size = static_cast<std::uintmax_t>(info.st_size);
    if (info.st_ino != followed.inode || size < followed.at) followed.at = 0;
    followed.inode = info.st_ino;
    if (size <= followed.at) return {};
    std::string text(std::min<std::uintmax_t>(size - followed.at, 1u << 20), '\0');
    auto const got = ::pread(fd.get(), text.data(), text.size(), static_cast<off_t>(followed.at));
    text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    followed.at += text.size();
    return text;
}

void print_text(std::string const& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (!text.empty() && text.back() != '\n') std::fputc('\n', stdout);
}

int logs(LogOptions const& options) {
    auto deployment = find_deployment(options.where, true);
    if (!deployment) return complain("logs", deployment.error());
    auto all = find_logs(deployment->state);
    std::vector<LogFile> chosen;
    if (options.entry.empty()) {
        chosen = all;
    } else {
        auto const file = ledger::entry_file_name(options.entry);
        for (auto const& log : all)
            if (log.name == options.entry || log.path.stem().native() == file) chosen.push_back(log);
        auto const job = ledger::StatePaths{deployment->state}.job_logs() / (file + ".log");
        std::error_code ignored;
        if (chosen.empty() && fs::exists(job, ignored)) chosen.push_back({options.entry, job});
        if (chosen.empty()) {
            // Part of a name is enough if it is unambiguous.
            for (auto const& log : all)
                if (log.path.stem().native().find(file) != std::string::npos) chosen.push_back(log);
        }
        if (chosen.empty()) {
            std::vector<std::string> names;
            for (auto const& log : all) names.push_back(log.name);
            auto central = ledger::replay(ledger::StatePaths{deployment->state}.ledger());
            std::string elsewhere;
            for (auto const& [host, config] : central ? central->hosts : std::map<std::string, Json>())
                if (options.entry.starts_with(host + "/") && config.is_object() && config.value("connection", "") == "ssh")
                    elsewhere = fmt::format("; {} is another machine: its logs are in {}/logs there", host, config.value("state", "its state folder"));
            return complain("logs", Error(ErrorKind::NotFound, fmt::format("there is no log of {} on this machine (of a Job: ocrctl job log ID){}{}", options.entry, elsewhere,
                                                                          names.empty() ? "" : "; there are: " + join(names, ", "))));
        }
    }
    if (options.list) {
        for (auto const& log : chosen) fmt::print("{}\t{}\n", log.name, log.path.native());
        return 0;
    }
    int const lines = options.lines >= 0 ? options.lines : options.entry.empty() ? 10 : options.follow ? 50 : -1;
    std::vector<Followed> followed;
    for (auto const& log : chosen) {
        Followed one{log, 0, 0};
        auto const text = tail_of(log.path, lines, one.at);
        struct stat info{};
        if (::stat(log.path.c_str(), &info) == 0) one.inode = info.st_ino;
        if (chosen.size() > 1 && !text.empty()) fmt::print("==> {} <==\n", log.name);
        print_text(text);
        followed.push_back(std::move(one));
    }
    std::fflush(stdout);
    if (!options.follow) return 0;
    std::string last = chosen.size() == 1 ? chosen.front().name : "";
    for (unsigned turn = 1;; ++turn) {
        for (auto& one : followed)
            for (auto text = news_of(one); !text.empty(); text = news_of(one)) {
                if (last != one.log.name) fmt::print("==> {} <==\n", one.log.name);
                last = one.log.name;
                std::fwrite(text.data(), 1, text.size(), stdout);
            }
        if (std::fflush(stdout) != 0) return 0; // nobody reads any more
        if (options.entry.empty() && turn % 20 == 0) { // units that were started meanwhile
            std::set<fs::path> known;
            for (auto const& one : followed) known.insert(one.log.path);
            for (auto const& log : find_logs(deployment->state))
                if (!known.contains(log.path)) followed.push_back({log, 0, 0});
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(150));
    }
}

} // namespace

void add_logs(CLI::App& app, int& exit_code) {
    auto options = std::make_shared<LogOptions>();
    auto* command = app.add_subcommand("logs", "Logs of units, server, agent and Jobs that lie on this machine");
    command->add_option("entry", options->entry, "A unit's name as `ocrctl status` shows it, `server`, `agent`, or a Job's id [all]");
    add_where(*command, options->where, false);
    command->add_option("-n,--lines", options->lines, "Only the last lines of each [10 of each; all of one]")->type_name("N")->check(CLI::Range(0, 100000000));
    command->add_flag("-f,--follow", options->follow, "Go on printing what is added");
    command->add_flag("--list", options->list, "Only names and files");
    command->footer("examples:\n  ocrctl logs -f\n  ocrctl logs here/ocrd-ocrctl-recognize-1/shard-0/rep-0 -n 100");
    command->callback([options, &exit_code] { exit_code = logs(*options); });
}

} // namespace ocrctl
