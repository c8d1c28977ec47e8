// ocrctl ocr IMAGE... -o DIR: pages in, text out, without a deployment.
#include "cmd/ocr.hpp"

#include "cmd/commands.hpp"
#include "lib/log/log.hpp"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>

namespace ocrctl {

namespace {

std::string not_empty(std::string const& text) { return text.empty() ? "must not be empty" : ""; }

} // namespace

void add_ocr(CLI::App& app, int& exit_code) {
    auto* command = app.add_subcommand("ocr", "Reads page images and writes their text into a folder");
    auto options = std::make_shared<OcrOptions>();
    command->add_option("images", options->images, "Page images: TIFF (each page of it), JPEG, PNG, JPEG 2000, WebP")->required()->type_name("IMAGE")->check(not_empty);
    command->add_option("-o,--output", options->out, "Folder for the results; made if it is not there")->required()->type_name("DIR")->check(not_empty);
    command->add_option("-l,--lang", options->lang, "Tesseract model, or several joined by +: deu, Fraktur+deu [eng]")->type_name("MODEL")->check(not_empty);
    command->add_option("-f,--format", options->formats, "text, alto, page, hocr; several joined by commas [text]")->expected(1)->take_all()->type_name("FORMATS")->check(not_empty);
    command->add_option("-w,--workflow", options->workflow, "Steps to run instead of plain recognition, in OCR-D's workflow syntax")->type_name("FILE")->check(not_empty);
    command->add_option("-j,--jobs", options->jobs, "Pages at once [as many as cores]")->type_name("N")->check(CLI::Range(1, 1024));
    command->add_option("--server", options->server, "Let this processing server do the work")->type_name("URL")->check(not_empty);
    command->add_flag("--force", options->force, "Do everything again, and replace files of the results' names that are not ours");
    command->add_flag("-q,--quiet", options->quiet, "No progress, no summary");
    command->add_flag("--json", options->json, "Print the summary as JSON");
    command->footer("examples:\n"
                    "  ocrctl ocr scans/*.tif -o out/ --lang deu --format text,alto\n"
                    "  ocrctl ocr page.jpg -o out/ --workflow steps.txt\n"
                    "Run again, it does what is missing or has changed. Exit code: 0 all pages done, 1 some failed, 2 wrong use.");
    command->callback([options, &exit_code] {
        // Warnings of our own machinery would tear the progress bar; failures are reported by page.
        if (std::getenv("OCRCTL_LOG") == nullptr) log::set_level(log::Level::Error);
        auto plan = plan_ocr(*options);
        if (!plan) {
            fmt::print(stderr, "ocrctl ocr: {}\n", plan.error().message());
            exit_code = plan.error().exit_code();
            return;
        }
        exit_code = options->server.empty() ? ocr_local(*options, std::move(*plan)) : ocr_on_server(*options, std::move(*plan));
    });
}

} // namespace ocrctl
