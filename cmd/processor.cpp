// A built-in Processor as an OCR-D command-line Processor: options, environment and exit codes are OCR-D's
// (reference: the processor contract). argv[0] = ocrd-ocrctl-* or `ocrctl processor NAME`.
#include "cmd/commands.hpp"
#include "cmd/workspace_run.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/log.hpp"
#include "lib/mets/mets.hpp"
#include "lib/parameters/parameters.hpp"
#include "lib/tools/catalogue.hpp"

#include <boost/asio/signal_set.hpp>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <optional>
#include <set>
#include <unistd.h>

namespace ocrctl {

namespace fs = std::filesystem;

namespace {

constexpr int kFailed = 1, kUsage = 2;

struct Options {
    std::optional<std::string> mets, working_dir, mets_server_url, input_groups, output_groups, page_id, log_level, log_filename, show_resource, resolve_resource;
    std::vector<std::string> parameters;
    std::vector<std::pair<std::string, std::string>> overrides;
    bool overwrite = false, debug = false, list_resources = false, dump_json = false, dump_module_dir = false, help = false, version = false;
    std::string subcommand;
};

/// What OCR-D's option parser does, exit code 2 for what it does not know. Usage.
Result<Options> parse(std::vector<std::string> const& args) {
    Options options;
    struct Valued {
        char short_name;
        std::vector<std::string> names;
        std::function<void(std::string)> take;
    };
    auto into = [](std::optional<std::string>& slot) { return [&slot](std::string value) { slot = std::move(value); }; };
    auto ignore = [](std::string const&) {};
    std::vector<Valued> const valued{
        {'m', {"--mets"}, into(options.mets)},
        {'w', {"--working-dir"}, into(options.working_dir)},
        {'U', {"--mets-server-url"}, into(options.mets_server_url)},
        {'I', {"--input-file-grp"}, into(options.input_groups)},
        {'O', {"--output-file-grp"}, into(options.output_groups)},
        {'g', {"--page-id"}, into(options.page_id)},
        {'p', {"--parameter"}, [&](std::string value) { options.parameters.push_back(std::move(value)); }},
        {'l', {"--log-level"}, into(options.log_level)},
        {0, {"--log-filename"}, into(options.log_filename)},
        {0, {"--profile-file"}, ignore},
        {'C', {"--show-resource"}, into(options.show_resource)},
        {'R', {"--resolve-resource"}, into(options.resolve_resource)},
        {0, {"--queue"}, ignore},
        {0, {"--database"}, ignore},
    };
    struct Flag {
        char short_name;
        std::string name;
        bool* slot;
    };
    bool profile = false;
    std::vector<Flag> const flags{{0, "--overwrite", &options.overwrite},     {0, "--debug", &options.debug},
                                  {0, "--profile", &profile},                 {'L', "--list-resources", &options.list_resources},
                                  {'J', "--dump-json", &options.dump_json},   {'D', "--dump-module-dir", &options.dump_module_dir},
                                  {'h', "--help", &options.help},             {'V', "--version", &options.version}};

    for (std::size_t i = 0; i < args.size(); ++i) {
        auto const& arg = args[i];
        if (!arg.starts_with('-') || arg == "-") {
            if (arg != "worker") return fail(ErrorKind::Usage, "unexpected argument '{}'", arg);
            options.subcommand = arg;
            continue;
        }
        bool const is_long = arg.starts_with("--");
        auto const equals = is_long ? arg.find('=') : std::string::npos;
        auto const name = is_long ? arg.substr(0, equals) : arg.substr(0, 2);
        std::optional<std::string> attached;
        if (equals != std::string::npos) attached = arg.substr(equals + 1);
        else if (!is_long && arg.size() > 2) attached = arg.substr(2);
        auto next = [&]() -> std::optional<std::string> {
            if (attached) return std::exchange(attached, std::nullopt);
            if (i + 1 < args.size()) return args[++i];
            return std::nullopt;
        };
        if (name == "-P" || name == "--parameter-override" || name == "--param-override") {
            auto key = next(), value = next();
            if (!key || !value) return fail(ErrorKind::Usage, "option {} needs a key and a value", name);
            options.overrides.emplace_back(*key, *value);
            continue;
        }
        bool known = false;
        for (auto const& option : valued) {
            bool const fits = is_long ? std::find(option.names.begin(), option.names.end(), name) != option.names.end()
                                      : option.short_name != 0 && option.short_name == name[1];
            if (!fits) continue;
            auto value = next();
            if (!value) return fail(ErrorKind::Usage, "option {} needs a value", name);
            option.take(std::move(*value));
            known = true;
        }
        // -JV: flags of one letter may be run together.
        for (std::size_t letter = 1; !known && !is_long && letter < arg.size(); ++letter) {
            auto const flag = std::find_if(flags.begin(), flags.end(), [&](auto const& f) { return f.short_name != 0 && f.short_name == arg[letter]; });
            if (flag == flags.end()) break;
            *flag->slot = true;
            known = letter + 1 == arg.size();
        }
        if (is_long && !known && !attached)
            for (auto const& flag : flags)
                if (flag.name == name) known = *flag.slot = true;
        if (!known) {
            std::vector<std::string> names{"--parameter-override"};
            for (auto const& option : valued) names.insert(names.end(), option.names.begin(), option.names.end());
            for (auto const& flag : flags) names.push_back(flag.name);
            auto const near = closest(name, names);
            return fail(ErrorKind::Usage, "no such option: {}{}", name, near.empty() ? "" : fmt::format(" (did you mean {}?)", near));
        }
    }
    static std::set<std::string> const levels{"OFF", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"};
    if (options.log_level && !levels.contains(*options.log_level))
        return fail(ErrorKind::Usage, "option --log-level: '{}' is none of {}", *options.log_level, "OFF, ERROR, WARN, INFO, DEBUG, TRACE");
    return options;
}

std::string help_text(Json const& tool) {
    auto text = fmt::format(R"(Usage: {} [OPTIONS]

  {}

Options for processing:
  -m, --mets PATH                 METS to process [./mets.xml]
  -w, --working-dir PATH          Working directory of the workspace [folder of the METS]
  -I, --input-file-grp USE        File group(s) used as input
  -O, --output-file-grp USE       File group(s) used as output
  -g, --page-id ID                Physical page ID(s) to process instead of the full document []
  --overwrite                     Replace existing output of the pages
                                  Short-hand for OCRD_EXISTING_OUTPUT=OVERWRITE
  --debug                         Abort on any error
                                  Short-hand for OCRD_MISSING_INPUT, OCRD_MISSING_OUTPUT and OCRD_EXISTING_OUTPUT=ABORT
  -p, --parameter JSON-PATH       Parameters, either verbatim JSON string or JSON file path
  -P, --parameter-override KEY VAL
                                  Override a single parameter, taking precedence over --parameter
  -l, --log-level [OFF|ERROR|WARN|INFO|DEBUG|TRACE]
                                  Log level [INFO]
  --log-filename LOG-PATH         File to redirect stdout and stderr to

Options for information:
  -C, --show-resource RESNAME     Print the content of a resource
  -R, --resolve-resource RESNAME  Print the path of a resource
  -L, --list-resources            List names of resources
  -J, --dump-json                 Print the tool description as JSON
  -D, --dump-module-dir           Print the folder of the program
  -h, --help                      Show this message
  -V, --version                   Show version

Environment:
  OCRD_EXISTING_OUTPUT            SKIP, OVERWRITE or ABORT pages that have output
  OCRD_MISSING_INPUT              SKIP or ABORT on pages without input
  OCRD_MISSING_OUTPUT             SKIP, COPY or ABORT on pages that fail
  OCRD_MAX_MISSING_OUTPUTS        share of failed pages above which the run fails [0.1]
  OCRD_MAX_PARALLEL_PAGES         pages worked on at once [1]
  OCRD_PROCESSING_PAGE_TIMEOUT    seconds a page may take [0: no limit]

Parameters:
)",
                            tool["executable"].get<std::string>(), tool["description"].get<std::string>());
    if (tool["parameters"].empty()) text += "  NONE\n";
    for (auto const& [name, declared] : tool["parameters"].items()) {
        auto const fallback = declared.value("required", false) ? std::string(" - REQUIRED")
                              : declared.contains("default")    ? " - " + dump(declared["default"])
                                                                : std::string();
        text += fmt::format("  \"{}\" [{}{}]\n    {}\n", name, declared.value("type", ""), fallback, declared.value("description", ""));
        if (declared.contains("enum")) text += fmt::format("    Possible values: {}\n", dump(declared["enum"]));
    }
    return text;
}

// ------------------------------------------------------------------------------------------- resources

/// Where OCR-D looks for the resources of a Processor: its data folder, the current one, the system's.
std::vector<fs::path> resource_folders(std::string const& name) {
    std::vector<fs::path> folders;
    auto const* data_home = std::getenv("XDG_DATA_HOME");
    auto const* home = std::getenv("HOME");
    if (data_home != nullptr && *data_home != '\0') folders.push_back(fs::path(data_home) / "ocrd-resources" / name);
    else if (home != nullptr) folders.push_back(fs::path(home) / ".local/share/ocrd-resources" / name);
    folders.push_back(fs::current_path());
    folders.push_back(fs::path("/usr/local/share/ocrd-resources") / name);
    if (auto const* prefix = std::getenv("TESSDATA_PREFIX"); name == "ocrd-ocrctl-recognize") {
        if (prefix != nullptr && *prefix != '\0') folders.emplace_back(prefix);
        folders.emplace_back("/usr/share/tesseract-ocr/5/tessdata");
    }
    return folders;
}

std::optional<fs::path> resource(std::string const& processor, std::string const& name) {
    std::error_code ignored;
    if (fs::path(name).is_absolute()) return fs::exists(name, ignored) ? std::optional<fs::path>(name) : std::nullopt;
    for (auto const& folder : resource_folders(processor))
        if (fs::is_regular_file(folder / name, ignored)) return folder / name;
    return std::nullopt;
}

int list_resources(std::string const& processor) {
    std::set<std::string> names;
    for (auto const& folder : resource_folders(processor)) {
        if (folder == fs::current_path()) continue; // anything might lie there
        std::error_code error;
        for (auto const& entry : fs::directory_iterator(folder, error))
            if (entry.is_regular_file(error)) names.insert(entry.path().filename().native());
    }
    for (auto const& name : names) fmt::print("{}\n", name);
    return 0;
}

// ------------------------------------------------------------------------------------------- parameters

/// JSON, with lines that begin with # left out.
Result<Json> parameter_object(std::string const& processor, std::string const& value) {
    if (trim(value).empty()) return Json::object();
    std::string text = value;
    bool const inline_json = trim(value).starts_with('{');
    if (!inline_json) {
        auto const file = resource(processor, value);
        if (file) {
            auto content = read_file(*file);
            if (!content) return std::unexpected(content.error());
            text = *content;
        }
    }
    std::string bare;
    for (auto const& line : split(text, '\n'))
        if (!trim(line).starts_with('#')) bare += line + "\n";
    auto parsed = parse_json(bare);
    if (!parsed)
        return fail(ErrorKind::Invalid, "parameter '{}' is neither JSON nor the name of a file: {}", inline_json ? "..." : value, parsed.error().message());
    if (!parsed->is_object()) return fail(ErrorKind::Invalid, "parameter '{}' is not a JSON object", value);
    return parsed;
}

Result<Json> all_parameters(Json const& tool, Options const& options) {
    auto parameters = Json::object();
    for (auto const& value : options.parameters) {
        auto object = parameter_object(tool["executable"].get<std::string>(), value);
        if (!object) return object;
        parameters.update(*object);
    }
    for (auto const& [key, value] : options.overrides) {
        auto parsed = parse_json(value);
        parameters[key] = parsed ? *parsed : Json(value); // what is no JSON is text
    }
    return parameters::checked_parameters(tool, parameters);
}

// ------------------------------------------------------------------------------------------- the run

Result<fs::path> mets_path(Options const& options) {
    auto const mets = options.mets.value_or("mets.xml");
    if (mets.starts_with("http://") || mets.starts_with("https://"))
        return fail(ErrorKind::Invalid, "METS {} is remote: clone the workspace first, then name its folder by --working-dir", mets);
    if (!options.working_dir) return fs::absolute(mets);
    auto const folder = fs::absolute(*options.working_dir).lexically_normal();
    if (!fs::path(mets).has_parent_path()) return folder / mets;
    auto const file = fs::absolute(mets).lexically_normal();
    auto const inside = file.lexically_relative(folder);
    if (inside.empty() || *inside.begin() == "..")
        return fail(ErrorKind::Invalid, "--mets {} is not in the folder of --working-dir {}", file.native(), folder.native());
    return file;
}

Result<void> check_cardinality(Json const& tool, char const* key, std::vector<std::string> const& groups, char const* what) {
    auto const declared = tool.find(key);
    if (declared == tool.end()) return {};
    auto const count = static_cast<long>(groups.size());
    long const least = declared->is_array() ? declared->at(0).get<long>() : declared->get<long>();
    long const most = declared->is_array() ? declared->at(1).get<long>() : declared->get<long>();
    if ((least > 0 && count < least) || (most > 0 && count > most))
        return fail(ErrorKind::Invalid, "{} takes {} {} group{}, not {}", tool["executable"].get<std::string>(), dump(*declared), what, most == 1 ? "" : "s", count);
    return {};
}

std::string environment(char const* name, std::string fallback) {
    auto const* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? std::string(value) : fallback;
}

template <class T>
Result<T> number(char const* name, T fallback) {
    auto const text = environment(name, "");
    if (text.empty()) return fallback;
    T value{};
    auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < 0)
        return fail(ErrorKind::Invalid, "{}={} is not a number of 0 or more", name, text);
    return value;
}

Result<WorkspaceRun> describe(Json const& tool, Options const& options) {
    WorkspaceRun run;
    run.processor = tool["executable"].get<std::string>();
    auto parameters = all_parameters(tool, options);
    if (!parameters) return std::unexpected(parameters.error());
    run.parameters = std::move(*parameters);

    if (!options.input_groups || options.input_groups->empty()) return fail(ErrorKind::Invalid, "-I/--input-file-grp is required");
    if (!options.output_groups || options.output_groups->empty()) return fail(ErrorKind::Invalid, "-O/--output-file-grp is required");
    run.input_groups = split(*options.input_groups, ',');
    run.output_groups = split(*options.output_groups, ',');
    if (auto fits = check_cardinality(tool, "input_file_grp_cardinality", run.input_groups, "input"); !fits) return std::unexpected(fits.error());
    if (auto fits = check_cardinality(tool, "output_file_grp_cardinality", run.output_groups, "output"); !fits) return std::unexpected(fits.error());
    if (auto fits = mets::check_output_groups(run.output_groups); !fits) return std::unexpected(fits.error());
    for (auto const& group : run.output_groups)
        if (std::find(run.input_groups.begin(), run.input_groups.end(), group) != run.input_groups.end())
            return fail(ErrorKind::Invalid, "group {} cannot be input and output at once", group);
    run.page_selector = options.page_id.value_or("");

    auto mets = mets_path(options);
    if (!mets) return std::unexpected(mets.error());
    run.mets_file = *mets;

    // Without a word about it, output that exists is an error on the command line, as in OCR-D.
    auto const existing = options.overwrite ? "OVERWRITE" : options.debug ? "ABORT" : environment("OCRD_EXISTING_OUTPUT", "ABORT");
    if (existing == "SKIP") run.existing = ExistingOutput::Skip;
    else if (existing == "OVERWRITE") run.existing = ExistingOutput::Overwrite;
    else if (existing == "ABORT") run.existing = ExistingOutput::Abort;
    else return fail(ErrorKind::Invalid, "OCRD_EXISTING_OUTPUT={} is none of SKIP, OVERWRITE, ABORT", existing);

    auto const missing = options.debug ? "ABORT" : environment("OCRD_MISSING_OUTPUT", "SKIP");
    if (missing == "SKIP") run.missing = MissingOutput::Skip;
    else if (missing == "COPY") run.missing = MissingOutput::Copy;
    else if (missing == "ABORT") run.missing = MissingOutput::Abort;
    else return fail(ErrorKind::Invalid, "OCRD_MISSING_OUTPUT={} is none of SKIP, COPY, ABORT", missing);

    auto const missing_input = options.debug ? "ABORT" : environment("OCRD_MISSING_INPUT", "SKIP");
    if (missing_input != "SKIP" && missing_input != "ABORT") return fail(ErrorKind::Invalid, "OCRD_MISSING_INPUT={} is none of SKIP, ABORT", missing_input);
    run.abort_on_missing_input = missing_input == "ABORT";

    auto max_missing = number<double>("OCRD_MAX_MISSING_OUTPUTS", 0.1);
    auto parallel = number<unsigned>("OCRD_MAX_PARALLEL_PAGES", 1);
    auto page_limit = number<unsigned>("OCRD_PROCESSING_PAGE_TIMEOUT", 0);
    if (!max_missing) return std::unexpected(max_missing.error());
    if (!parallel) return std::unexpected(parallel.error());
    if (!page_limit) return std::unexpected(page_limit.error());
    run.max_missing = *max_missing;
    run.parallel = std::clamp(*parallel, 1U, 256U);
    run.page_limit = std::chrono::seconds(*page_limit);
    return run;
}

int say(std::string const& name, Error const& error, int code) {
    fmt::print(stderr, "{}: {}\n", name, error.message());
    return code;
}

int execute(std::string const& name, WorkspaceRun run) {
    asio::io_context io;
    WorkspaceRunner runner(io.get_executor(), std::move(run));
    Result<WorkspaceReport> report = fail(ErrorKind::Internal, "the run did not end");
    int caught = 0;

    // Asked to end: the pages under way are given up, those that are done are recorded.
    asio::signal_set signals(io, SIGINT, SIGTERM);
    signals.async_wait([&](boost::system::error_code error, int signal) {
        if (error) return;
        caught = signal;
        runner.stop(fmt::format("stopped by {}", signal == SIGINT ? "SIGINT" : "SIGTERM"));
    });
    std::exception_ptr escaped;
    asio::co_spawn(io, runner.run(), [&](std::exception_ptr problem, Result<WorkspaceReport> result) {
        escaped = problem;
        if (!problem) report = std::move(result);
        signals.cancel();
        io.stop();
    });
    io.run();
    if (escaped) std::rethrow_exception(escaped);
    if (!report) return say(name, report.error(), caught != 0 ? 128 + caught : kFailed);
    fmt::print(stderr, "{}: {} done, {} failed, {} without input, {} skipped\n", name, counted(report->done, "page"), report->failed, report->left_out, report->existing);
    if (!report->error.empty()) return say(name, Error(ErrorKind::Invalid, report->error), caught != 0 ? 128 + caught : kFailed);
    return 0;
}

} // namespace

int run_processor(std::string name, std::vector<std::string> args) {
    auto const* tool = tools::builtin_tool(name);
    if (tool == nullptr) {
        std::vector<std::string> names;
        for (auto const& [known, entry] : tools::builtin_tools().items()) names.push_back(known);
        fmt::print(stderr, "ocrctl: there is no built-in Processor {}; there are: {}\n", name, join(names, ", "));
        return kUsage;
    }
    if (args.empty()) {
        fmt::print("{}", help_text(*tool));
        return kFailed;
    }
    auto options = parse(args);
    if (!options) {
        fmt::print(stderr, "{}: {}\ntry '{} --help'\n", name, options.error().message(), name);
        return kUsage;
    }
    if (options->help) {
        fmt::print("{}", help_text(*tool));
        return 0;
    }
    if (options->version) {
        fmt::print("Version {}, ocrctl {}\n", tools::version(), tools::version());
        return 0;
    }
    if (options->dump_json) {
        fmt::print("{}\n", tool->dump(1));
        return 0;
    }
    if (options->dump_module_dir) {
        std::error_code ignored;
        fmt::print("{}\n", fs::read_symlink("/proc/self/exe", ignored).parent_path().native());
        return 0;
    }
    if (auto const& wanted = options->resolve_resource ? options->resolve_resource : options->show_resource) {
        auto const file = resource(name, *wanted);
        if (!file) return say(name, Error(ErrorKind::NotFound, fmt::format("there is no resource {}", *wanted)), kFailed);
        if (options->resolve_resource) {
            fmt::print("{}\n", file->native());
            return 0;
        }
        auto content = read_file(*file);
        if (!content) return say(name, content.error(), kFailed);
        std::fwrite(content->data(), 1, content->size(), stdout);
        return 0;
    }
    if (options->list_resources) return list_resources(name);
    if (!options->subcommand.empty())
        return say(name, Error(ErrorKind::Invalid, "is not started as a Worker by hand: name it under `workers:` of a config and use `ocrctl deploy`"), kFailed);
    if (options->mets_server_url)
        return say(name, Error(ErrorKind::Invalid, "--mets-server-url is not supported: it works on the METS file itself"), kFailed);

    auto level = options->log_level.value_or("INFO");
    if (level == "TRACE") level = "DEBUG";
    for (auto& c : level) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    log::set_level(std::string_view(level));

    auto run = describe(*tool, *options);
    if (!run) return say(name, run.error(), kFailed);
    if (options->log_filename) {
        Fd file(::open(options->log_filename->c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
        if (!file || ::dup2(file.get(), STDOUT_FILENO) < 0 || ::dup2(file.get(), STDERR_FILENO) < 0)
            return say(name, errno_error(errno, "open " + *options->log_filename), kFailed);
    }
    std::signal(SIGPIPE, SIG_IGN);
    return execute(name, std::move(*run));
}

} // namespace ocrctl
