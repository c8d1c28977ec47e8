#include "cmd/ocr.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/parameters/parameters.hpp"
#include "lib/tools/catalogue.hpp"
#include "processing_server/workflow_script.hpp"

#include <algorithm>
#include <cstdlib>
#include <set>

namespace ocrctl {

namespace fs = std::filesystem;

namespace {

constexpr char kRecognize[] = "ocrd-ocrctl-recognize", kExport[] = "ocrd-ocrctl-export";

std::vector<std::string> const kFormats = {"text", "alto", "page", "hocr"};

Result<void> add_formats(std::vector<std::string>& formats, std::string const& list) {
    for (auto const& piece : split(list, ',')) {
        std::string name(trim(piece));
        if (name == "txt") name = "text";
        if (std::ranges::find(kFormats, name) == kFormats.end())
            return fail(ErrorKind::Usage, "there is no format \"{}\": use {}", name, join(kFormats, ", "));
        if (std::ranges::find(formats, name) == formats.end()) formats.push_back(name);
    }
    return {};
}

Result<void> read_workflow(OcrOptions const& options, OcrPlan& plan, std::vector<std::string>& formats) {
    auto script = read_file(options.workflow);
    if (!script) return fail(ErrorKind::Usage, "{}", script.error().message());
    auto tasks = server::parse_workflow(*script);
    if (!tasks) return fail(ErrorKind::Usage, "{}: {}", options.workflow.native(), tasks.error().message());
    std::set<std::string> written;
    std::string images; // the one group that the pages' images stand for
    for (auto const& task : *tasks) {
        auto const at = fmt::format("{}:{}", options.workflow.native(), task.line);
        auto const* tool = tools::builtin_tool(task.processor);
        if (tool == nullptr && options.server.empty()) {
            std::vector<std::string> names;
            for (auto const& [name, entry] : tools::builtin_tools().items()) names.push_back(name);
            auto near = closest(task.processor, names);
            return fail(ErrorKind::Usage, "{}: {} is not one of the built-in Processors{}; others need a deployment (--server URL)", at, task.processor,
                        near.empty() ? "" : fmt::format(" (did you mean \"{}\"?)", near));
        }
        auto parameters = task.parameters;
        if (tool != nullptr) {
            auto checked = parameters::checked_parameters(*tool, task.parameters);
            if (!checked) return fail(ErrorKind::Usage, "{}: {}", at, checked.error().message());
            parameters = std::move(*checked);
        }
        for (auto const& group : task.input_groups) {
            if (written.contains(group)) continue;
            if (images.empty()) images = group;
            if (images != group)
                return fail(ErrorKind::Usage, "{}: no step before writes the group {} (the images are the group {})", at, group, images);
        }
        if (task.processor == kExport) {
            if (auto added = add_formats(formats, parameters.value("format", "text")); !added) return added;
            plan.nfc = plan.nfc || parameters.value("nfc", false);
            continue;
        }
        for (auto const& group : task.output_groups)
            if (group == images || !written.insert(group).second)
                return fail(ErrorKind::Usage, "{}: the group {} is written twice", at, group);
        OcrStep step;
        step.processor = task.processor;
        step.parameters = std::move(parameters);
        for (auto const& group : task.input_groups) step.input_groups.push_back(group == images ? kImageGroup : group);
        step.output_groups = task.output_groups;
        plan.result_group = step.output_groups.front();
        plan.chain.push_back(std::move(step));
    }
    if (plan.chain.empty()) return fail(ErrorKind::Usage, "{}: it has no step besides exports", options.workflow.native());
    return {};
}

std::string xml_id(std::string const& base) {
    std::string id;
    for (unsigned char c : base) {
        bool fine = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.';
        if (fine)
            id += static_cast<char>(c);
        else
            id += fmt::format("_{:02x}", c);
    }
    bool letter = !id.empty() && ((id[0] >= 'a' && id[0] <= 'z') || (id[0] >= 'A' && id[0] <= 'Z') || id[0] == '_');
    return letter ? id : "p_" + id;
}

Result<void> find_pages(OcrOptions const& options, OcrPlan& plan) {
    std::map<std::string, int> stems;
    std::set<fs::path> seen;
    std::map<std::string, std::string> names; // file name -> as given
    std::vector<std::pair<std::string, fs::path>> files;
    for (auto const& text : options.images) {
        std::error_code error;
        if (fs::is_directory(text, error)) return fail(ErrorKind::Usage, "{} is a folder: name the images in it ({}/*.tif)", text, text);
        auto path = fs::absolute(text, error).lexically_normal();
        if (!seen.insert(path).second) continue;
        auto [at, fresh] = names.emplace(path.filename().native(), text);
        if (!fresh) return fail(ErrorKind::Usage, "{} and {} would have results of the same name: give them different output folders", at->second, text);
        ++stems[path.stem().native()];
        files.emplace_back(text, path);
    }
    for (auto const& [text, path] : files) {
        auto base = stems[path.stem().native()] > 1 ? path.filename().native() : path.stem().native();
        OcrPage page;
        page.image = path;
        page.shown = text;
        std::error_code error;
        if (!fs::exists(path, error)) page.problem = error ? error.message() : "there is no such file";
        else if (!fs::is_regular_file(path, error)) page.problem = "it is not a regular file"; // opening a pipe would wait for ever
        else if (!is_utf8(path.filename().native())) page.problem = "the name is not UTF-8: rename it";
        auto const frames = page.problem.empty() ? tiff_frames(path) : TiffFrames();
        bool const lost = frames.damaged && !frames.pages.empty(); // pages that were meant to follow
        if (frames.pages.size() <= 1 && !lost) {
            page.base = base;
            page.id = xml_id(base);
            plan.pages.push_back(std::move(page));
            continue;
        }
        for (std::size_t i = 0; i < frames.pages.size() + (lost ? 1 : 0); ++i) {
            auto one = page;
            if (i < frames.pages.size()) one.frame = frames.pages[i];
            else one.problem = fmt::format("the file is truncated or damaged after page {}", i);
            one.frame_index = static_cast<int>(i);
            one.base = fmt::format("{}.{:04}", base, i + 1);
            one.id = xml_id(one.base);
            one.shown = fmt::format("{} page {}", text, i + 1);
            plan.pages.push_back(std::move(one));
        }
    }
    std::set<std::string> bases;
    for (auto const& page : plan.pages)
        if (!bases.insert(page.base).second)
            return fail(ErrorKind::Usage, "{}: its results would have the same names as another image's: give it a different output folder", page.shown);
    return {};
}

} // namespace

std::string ending_of(std::string const& format) {
    if (format == "text") return ".txt";
    if (format == "hocr") return ".hocr";
    return fmt::format(".{}.xml", format);
}

Json OcrPlan::chain_json() const {
    auto list = Json::array();
    for (auto const& step : chain) {
        Json entry;
        entry["processor"] = step.processor;
        entry["parameters"] = step.parameters;
        entry["in"] = step.input_groups;
        entry["out"] = step.output_groups;
        list.push_back(std::move(entry));
    }
    return list;
}

std::vector<std::string> OcrPlan::models() const {
    std::vector<std::string> models;
    for (auto const& step : chain)
        if (step.processor == kRecognize)
            for (auto const& model : split(step.parameters.value("model", ""), '+')) models.push_back(model);
    return models;
}

Result<OcrPlan> plan_ocr(OcrOptions const& options) {
    OcrPlan plan;
    if (options.out.empty()) return fail(ErrorKind::Usage, "-o needs the name of a folder");
    if (std::error_code error; !is_utf8(fs::absolute(options.out, error).native()))
        return fail(ErrorKind::Usage, "the name of the output folder is not UTF-8: use another");
    std::vector<std::string> of_workflow;
    if (!options.workflow.empty()) {
        if (!options.lang.empty()) return fail(ErrorKind::Usage, "--lang and --workflow exclude each other: the workflow's recognition step names its model (-P model deu)");
        if (auto read = read_workflow(options, plan, of_workflow); !read) return fail(read.error());
    } else {
        OcrStep step;
        step.processor = kRecognize;
        step.parameters["model"] = options.lang.empty() ? "eng" : options.lang;
        step.parameters = tools::with_defaults(*tools::builtin_tool(kRecognize), step.parameters);
        step.input_groups = {kImageGroup};
        step.output_groups = {"OCR-D-OCR"};
        plan.result_group = "OCR-D-OCR";
        plan.chain.push_back(std::move(step));
    }
    for (auto const& list : options.formats)
        if (auto added = add_formats(plan.formats, list); !added) return fail(added.error());
    if (plan.formats.empty()) plan.formats = of_workflow;
    if (plan.formats.empty()) plan.formats = {"text"};
    if (auto found = find_pages(options, plan); !found) return fail(found.error());
    return plan;
}

Json model_digests(std::vector<std::string> const& models) {
    // The folders of lib/ocr/models.cpp, which is not linked here as it brings Tesseract along.
    auto from_environment = [](char const* name) {
        auto const* value = std::getenv(name);
        return std::string(value != nullptr ? value : "");
    };
    std::vector<fs::path> folders;
    for (auto const& folder : split(from_environment("OCRCTL_MODELS"), ':'))
        if (!folder.empty()) folders.emplace_back(folder);
    auto data = from_environment("XDG_DATA_HOME");
    if (data.empty() && !from_environment("HOME").empty()) data = from_environment("HOME") + "/.local/share";
    for (auto const* executable : {kRecognize, "ocrd-tesserocr-recognize"}) {
        if (!data.empty()) folders.push_back(fs::path(data) / "ocrd-resources" / executable);
        folders.push_back(fs::path("/usr/local/share/ocrd-resources") / executable);
    }
    if (auto prefix = from_environment("TESSDATA_PREFIX"); !prefix.empty()) {
        folders.emplace_back(prefix);
        folders.push_back(fs::path(prefix) / "tessdata");
    }
    for (auto const* folder : {"/usr/share/tesseract-ocr/5/tessdata", "/usr/share/tesseract-ocr/4.00/tessdata", "/usr/share/tessdata", "/usr/local/share/tessdata"})
        folders.emplace_back(folder);
    Json digests = Json::object();
    for (auto model : models) {
        if (model.ends_with(".traineddata")) model.erase(model.size() - 12);
        std::error_code ignored;
        for (auto const& folder : folders) {
            bool found = false;
            for (auto const& file : {folder / (model + ".traineddata"), folder / "script" / (model + ".traineddata")}) {
                if (found || !fs::is_regular_file(file, ignored)) continue;
                found = true;
                if (auto digest = sha256_of_file(file)) digests[model] = "sha256:" + *digest;
            }
            if (found) break;
        }
    }
    return digests;
}

int report(OcrOptions const& options, OcrSummary const& summary) {
    int code = summary.failed.empty() ? 0 : 1;
    if (summary.stopped == "SIGINT") code = 130;
    if (summary.stopped == "SIGTERM") code = 143;
    if (!summary.stopped.empty() && code <= 1) code = 129;
    if (options.json) {
        Json out;
        out["pages"] = summary.pages;
        out["done"] = summary.done;
        out["exported"] = summary.exported;
        out["up_to_date"] = summary.up_to_date;
        out["failed"] = Json::array();
        for (auto const& [page, why] : summary.failed) {
            Json entry;
            entry["page"] = page;
            entry["reason"] = why;
            out["failed"].push_back(std::move(entry));
        }
        out["stopped"] = summary.stopped;
        out["output"] = fs::absolute(options.out).lexically_normal().native();
        fmt::print("{}\n", dump(out));
        return code;
    }
    if (!summary.failed.empty()) {
        fmt::print(stderr, "ocrctl ocr: {} failed:\n", counted(summary.failed.size(), "page"));
        for (auto const& [page, why] : summary.failed) fmt::print(stderr, "  {}: {}\n", page, why);
    }
    std::vector<std::string> parts;
    if (summary.done > 0) parts.push_back(fmt::format("{} done", summary.done));
    if (summary.exported > 0) parts.push_back(fmt::format("{} exported", summary.exported));
    if (summary.up_to_date > 0) parts.push_back(fmt::format("{} up to date", summary.up_to_date));
    if (!summary.failed.empty()) parts.push_back(fmt::format("{} failed", summary.failed.size()));
    auto const open = summary.pages - std::min(summary.pages, summary.done + summary.exported + summary.up_to_date + summary.failed.size());
    if (open > 0) parts.push_back(fmt::format("{} not begun or stopped", open));
    if (!summary.stopped.empty()) fmt::print(stderr, "ocrctl ocr: stopped by {}; run it again to go on\n", summary.stopped);
    if (!options.quiet) fmt::print("{}: {}; results in {}\n", counted(summary.pages, "page"), parts.empty() ? "nothing done" : join(parts, ", "), options.out.native());
    return code;
}

} // namespace ocrctl
