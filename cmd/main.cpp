// The one binary. Called as ocrd-ocrctl-* (a symbolic link) it is that Processor.
#include "cmd/commands.hpp"
#include "lib/base/text.hpp"
#include "lib/log/log.hpp"
#include "lib/tools/catalogue.hpp"

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

using namespace ocrctl;

constexpr int kUsage = 2, kBug = 70;

// libmongoc's initialiser, which runs before main in every command, makes a file for its counters in /dev/shm. A process that is
// killed would leave it there, and the next one of that pid would complain; nobody reads it by its name.
void remove_counters_file() { (void)::shm_unlink(fmt::format("/mongoc-{}", ::getpid()).c_str()); }

void add_commands(CLI::App& app, int& exit_code) {
    ocrctl::add_deploy(app, exit_code);
    ocrctl::add_kill_all(app, exit_code);
    ocrctl::add_ocr(app, exit_code);
    ocrctl::add_status(app, exit_code);
    ocrctl::add_wait(app, exit_code);
    ocrctl::add_logs(app, exit_code);
    ocrctl::add_job(app, exit_code);
    ocrctl::add_workflow(app, exit_code);
    ocrctl::add_ocrd_client(app, exit_code);
    ocrctl::add_validate(app, exit_code);
    ocrctl::add_plan(app, exit_code);
    ocrctl::add_trust(app, exit_code);
    ocrctl::add_serve(app, exit_code);
    ocrctl::add_agent(app, exit_code);
    ocrctl::add_host(app, exit_code);
    ocrctl::add_worker(app, exit_code);
    ocrctl::add_tunnel(app, exit_code);
    auto* processor = app.add_subcommand("processor", "Runs a built-in Processor as an OCR-D command-line Processor");
    processor->footer("example: ocrctl processor ocrd-ocrctl-binarize -m mets.xml -I OCR-D-IMG -O OCR-D-BIN");
    processor->prefix_command();
    processor->callback([processor, &exit_code] {
        auto rest = processor->remaining();
        if (rest.empty()) throw CLI::RequiredError("NAME");
        auto name = rest.front();
        rest.erase(rest.begin());
        exit_code = ocrctl::run_processor(name.starts_with("ocrd-") ? name : "ocrd-" + name, rest);
    });
}

/// The unknown command is told apart from other mistakes, as the first word is where newcomers slip.
int unknown_command(CLI::App const& app, std::string const& word) {
    std::vector<std::string> names;
    for (auto const* command : app.get_subcommands([](CLI::App const*) { return true; })) names.push_back(command->get_name());
    auto near = closest(word, names);
    if (near.empty())
        fmt::print(stderr, "ocrctl: there is no command \"{}\"; ocrctl --help lists them\n", word);
    else
        fmt::print(stderr, "ocrctl: there is no command \"{}\" (did you mean \"{}\"?)\n", word, near);
    return kUsage;
}

int run(int argc, char** argv) {
    std::string const called = argc > 0 ? std::filesystem::path(argv[0]).filename().string() : "ocrctl";
    std::string const first = argc > 1 ? argv[1] : "";
    if (called.starts_with("ocrd-ocrctl-")) return ocrctl::run_processor(called, std::vector<std::string>(argv + 1, argv + argc));
    // OCR-D's options are not ours: --help and --version are the Processor's own.
    if (first == "processor" && argc > 2 && argv[2][0] != '-') {
        std::string name = argv[2];
        if (!name.starts_with("ocrd-")) name = "ocrd-" + name;
        return ocrctl::run_processor(name, std::vector<std::string>(argv + 3, argv + argc));
    }
    if (first == "--version" || first == "-V") {
        fmt::print("ocrctl {}\n", tools::version());
        return 0;
    }
    std::signal(SIGPIPE, SIG_IGN);
    if (auto const* level = std::getenv("OCRCTL_LOG"); level != nullptr) log::set_level(std::string_view(level));

    int exit_code = 0;
    CLI::App app("Deploys and runs OCR over many hosts; reads pages without any of them, too.", "ocrctl");
    app.footer("first steps:\n"
               "  ocrctl ocr scans/*.tif -o out/    pages in, text out; needs nothing else\n"
               "  ocrctl deploy config.yml          everything running, READY, addresses printed\n"
               "  ocrctl kill-all                   everything stopped, nothing left\n"
               "ocrctl COMMAND --help explains a command.");
    app.require_subcommand(1);
    app.set_help_flag("-h,--help", "Prints this help and ends");
    app.add_flag_callback("-V,--version", [] { throw CLI::CallForVersion(fmt::format("ocrctl {}", tools::version()), 0); }, "Prints the version and ends");
    add_commands(app, exit_code);

    if (argc < 2) {
        fmt::print("{}", app.help());
        return kUsage;
    }
    if (!first.empty() && first[0] != '-') {
        bool known = false;
        for (auto const* command : app.get_subcommands([](CLI::App const*) { return true; })) known = known || command->check_name(first);
        if (!known) return unknown_command(app, first);
    }
    try {
        app.parse(argc, argv);
    } catch (CLI::ParseError const& problem) {
        // CLI11 prints help to stdout, problems to stderr; its own exit codes say nothing to a caller of ours.
        return app.exit(problem) == 0 ? 0 : kUsage;
    }
    return exit_code;
}

} // namespace

int main(int argc, char** argv) {
    try {
        remove_counters_file();
        return run(argc, argv);
    } catch (std::exception const& problem) {
        fmt::print(stderr, "ocrctl: internal error, please report it: {}\n", problem.what());
        return kBug;
    }
}
