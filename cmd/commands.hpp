// The commands of the one binary, one file each: cmd/<name>.cpp. add_<name> puts the command into the app with its
// options and help; when it was chosen its callback runs and sets exit_code (docs/commands.md).
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace ocrctl {

// a deployment's life
void add_deploy(CLI::App& app, int& exit_code);
void add_kill_all(CLI::App& app, int& exit_code);
void add_plan(CLI::App& app, int& exit_code);
void add_trust(CLI::App& app, int& exit_code);
void add_validate(CLI::App& app, int& exit_code);

// work
void add_ocr(CLI::App& app, int& exit_code);
void add_job(CLI::App& app, int& exit_code);
void add_workflow(CLI::App& app, int& exit_code);
void add_ocrd_client(CLI::App& app, int& exit_code); // client: what `ocrd network client` does

// looking
void add_status(CLI::App& app, int& exit_code);
void add_wait(CLI::App& app, int& exit_code);
void add_logs(CLI::App& app, int& exit_code);

// what a deployment runs; not started by hand
void add_agent(CLI::App& app, int& exit_code);
void add_host(CLI::App& app, int& exit_code);
void add_worker(CLI::App& app, int& exit_code);
void add_tunnel(CLI::App& app, int& exit_code);
void add_serve(CLI::App& app, int& exit_code);

/// A built-in Processor in OCR-D's command-line form: `ocrd-ocrctl-NAME -m mets.xml -I ... -O ...`.
int run_processor(std::string name, std::vector<std::string> args);

} // namespace ocrctl
