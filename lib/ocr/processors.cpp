#include "lib/ocr/processors.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/ocr/binarize.hpp"
#include "lib/ocr/deskew.hpp"
#include "lib/ocr/export.hpp"
#include "lib/ocr/recognition.hpp"
#include "lib/tools/catalogue.hpp"

#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <fcntl.h>
#include <optional>
#include <regex>
#include <thread>
#include <unistd.h>

namespace ocrctl::ocr {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPageMimetype = "application/vnd.prima.page+xml";

/// What one page's run has: its input, its output so far.
class Run {
public:
    Run(PageJob const& job, Json parameters, std::string& log)
        : job(job), parameters(std::move(parameters)), files(job.workspace, job.staging), log_(log) {}

    PageJob const& job;
    Json const parameters;
    Files const files;
    PageOutcome outcome;

    std::string text(char const* name) const { return parameters.value(name, std::string()); }
    double number(char const* name) const { return parameters.value(name, 0.0); }
    bool flag(char const* name) const { return parameters.value(name, false); }

    FileRef const& input() const { return job.page.files.front(); }
    std::string const& output_id(std::size_t group = 0) const { return job.page.output_ids[group]; }

    void say(std::string const& line) {
        log_ += line;
        log_ += '\n';
    }
    void warn(std::string const& line) {
        outcome.warnings.push_back(line);
        say("warning: " + line);
    }

    /// The page's PAGE-XML: read, or made for an image. An image that had to be decoded for that stays in `image`.
    Result<Page> open_page(bool decode);
    std::optional<Image> image;

    /// Records the step and writes the document as the output of the first group.
    Result<void> write_page(Page& page);
    Result<void> write(std::size_t group, std::string const& extension, std::string_view mimetype,
                       std::string const& content);
    /// An image derived from the page, named after the output; gives its METS-relative path.
    Result<std::string> write_image(cv::Mat const& pixels, bool bilevel, double dpi, std::string const& suffix);

private:
    /// Makes the group's folder in staging. Invalid: a group or an id that is no plain file name.
    Result<void> make_group(std::size_t group, std::string const& id);
    Result<void> record(std::size_t group, std::string const& id, std::string const& path, std::string_view mimetype);
    std::string& log_;
};

// "scan.tif?frame=2" -> "scan.tif" and 2.
std::pair<std::string, int> frame_of(std::string const& path) {
    auto at = path.rfind("?frame=");
    if (at == std::string::npos) return {path, 0};
    int frame = 0;
    auto [end, error] = std::from_chars(path.data() + at + 7, path.data() + path.size(), frame);
    if (error != std::errc{} || end != path.data() + path.size() || frame < 0) return {path, 0};
    return {path.substr(0, at), frame};
}

Result<Page> Run::open_page(bool decode) {
    auto [path, frame] = frame_of(input().path);
    bool named = path != input().path;
    auto file = files.find(path);
    if (!file) return std::unexpected(file.error());

    Fd fd(::open(file->c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return fail(errno_error(errno, "open " + path));
    char head[64] = {};
    auto got = ::read(fd.get(), head, sizeof head);
    if (got < 0) return fail(errno_error(errno, "read " + path));
    std::string_view start(head, static_cast<std::size_t>(got));
    if (start.starts_with("\xef\xbb\xbf")) start.remove_prefix(3);
    bool xml = trim(start).starts_with("<") || start.starts_with("\xff\xfe<") || start.starts_with("\xfe\xff");
    bool declared_page = input().mimetype == kPageMimetype;
    if (declared_page && got == 0) return fail(ErrorKind::Invalid, "PAGE-XML {} is empty (0 bytes)", path);
    if (declared_page && !xml) return fail(ErrorKind::Invalid, "{} is declared to be PAGE-XML, but is no XML", path);
    if (xml) {
        if (input().mimetype.starts_with("image/"))
            return fail(ErrorKind::Invalid, "{} is XML, but is declared to be an image ({})", path, input().mimetype);
        auto content = read_file(*file);
        if (!content) return std::unexpected(content.error());
        auto page = Page::parse(*content);
        if (!page) return fail(page.error().during(path));
        return page;
    }

    auto read = decode ? read_image(*file, frame, input().mimetype) : probe_image(*file, frame, input().mimetype);
    if (!read) return std::unexpected(read.error());
    for (auto const& warning : read->warnings)
        if (!named) warn(warning);
    auto page = Page::blank(path, read->width, read->height);
    page.set_frame(frame);
    if (read->dpi > 0) page.set_dpi(read->dpi);
    if (read->orientation != 0) page.set_orientation(read->orientation);
    if (decode) image = std::move(*read);
    return page;
}

Result<void> Run::record(std::size_t group, std::string const& id, std::string const& path, std::string_view mimetype) {
    auto file = files.staging() / path;
    auto digest = sha256_of_file(file);
    if (!digest) return std::unexpected(digest.error());
    FileRef ref;
    ref.group = job.output_groups[group];
    ref.id = id;
    ref.page_id = job.page.page_id;
    ref.mimetype = mimetype;
    ref.path = path;
    std::error_code ignored;
    ref.size = fs::file_size(file, ignored);
    ref.digest = "sha256:" + *digest;
    outcome.files.push_back(std::move(ref));
    return {};
}

// Names are checked where Jobs come in; whoever gets past that still writes nothing outside staging.
bool plain_name(std::string_view name) {
    return !name.empty() && !name.starts_with('.') && name.find_first_of(std::string_view("/\0", 2)) == std::string_view::npos;
}

Result<void> Run::make_group(std::size_t group, std::string const& id) {
    for (auto const& name : {job.output_groups[group], id})
        if (!plain_name(name)) return fail(ErrorKind::Invalid, "\"{}\" cannot be the name of an output group or file", name);
    return make_folder(files.staging() / job.output_groups[group]);
}

Result<void> Run::write(std::size_t group, std::string const& extension, std::string_view mimetype,
                        std::string const& content) {
    auto const& name = job.output_groups[group];
    if (auto made = make_group(group, output_id(group)); !made) return made;
    auto path = name + "/" + output_id(group) + extension;
    if (auto wrote = write_file_atomically(files.staging() / path, content); !wrote) return wrote;
    return record(group, output_id(group), path, mimetype);
}

Result<void> Run::write_page(Page& page) {
    auto const& tool = *tools::builtin_tool(job.processor);
    StepRecord step{tool["steps"][0], job.processor, std::string(tools::version()), parameters, {}};
    if (parameters.contains("model")) {
        auto parts = find_model(text("model"));
        for (auto const& part : parts ? *parts : std::vector<ModelPart>{})
            if (auto digest = digest_of_model(part.file)) step.models.emplace_back(part.name, *digest);
    }
    page.add_step(step);
    return write(0, ".xml", kPageMimetype, page.text(output_id()));
}

Result<std::string> Run::write_image(cv::Mat const& pixels, bool bilevel, double dpi, std::string const& suffix) {
    auto const& group = job.output_groups[0];
    auto id = output_id() + suffix;
    if (auto made = make_group(0, id); !made) return std::unexpected(made.error());
    auto path = group + "/" + id + ".png";
    if (auto wrote = write_png(files.staging() / path, pixels, bilevel, dpi); !wrote)
        return std::unexpected(wrote.error());
    if (auto noted = record(0, id, path, "image/png"); !noted) return std::unexpected(noted.error());
    return path;
}

Image const* known(Run const& run) {
    return run.image ? &*run.image : nullptr;
}

// What is known about the resolution of a view: parameter, PAGE, metadata; else what the letters' height suggests. It
// is recorded in PAGE where that says nothing.
double resolution(Run& run, Page& page, View const& view) {
    double dpi = run.number("dpi");
    if (dpi <= 0) dpi = page.dpi();
    if (dpi <= 0 && view.dpi >= 70 && view.dpi <= 2400) dpi = view.dpi;
    if (dpi <= 0) {
        dpi = estimate_dpi(view.pixels);
        run.say(fmt::format("no resolution is known, estimated {:.0f} dpi by the height of letters", dpi));
    }
    if (page.dpi() == 0 || run.number("dpi") > 0) page.set_dpi(dpi);
    return dpi;
}

std::string with_feature(std::string const& features, std::string const& feature) {
    return features.empty() ? feature : features + "," + feature;
}

Result<void> binarize(Run& run, Page& page) {
    auto view = view_of(page, run.files, "", "binarized", known(run));
    if (!view) return std::unexpected(view.error());
    double dpi = resolution(run, page, *view);
    auto gray = to_gray(view->pixels);
    cv::Mat bilevel;
    if (run.text("method") == "otsu") {
        bilevel = binarize_otsu(gray);
    } else {
        int window = static_cast<int>(run.number("window"));
        if (window <= 0) window = static_cast<int>(std::lround(dpi / 6));
        bilevel = binarize_sauvola(gray, std::clamp(window / 2, 3, 127), run.number("k"));
    }
    auto path = run.write_image(bilevel, true, dpi, ".IMG-BIN");
    if (!path) return std::unexpected(path.error());
    page.add_alternative_image(*path, with_feature(view->features, "binarized"));
    return run.write_page(page);
}

Result<void> deskew(Run& run, Page& page) {
    auto view = view_of(page, run.files, "", "deskewed", known(run));
    if (!view) return std::unexpected(view.error());
    double dpi = resolution(run, page, *view);
    double skew = skew_of(to_gray(view->pixels), dpi, run.number("max_angle"));
    if (std::abs(skew) < run.number("min_angle")) skew = 0;
    // The quarters that the page is known to be turned by stay; the rest is what was measured now.
    double quarters = std::round(page.orientation() / 90) * 90;
    double orientation = quarters - skew;
    if (orientation > 180) orientation -= 360;
    if (orientation <= -180) orientation += 360;
    page.set_orientation(orientation);
    run.say(fmt::format("skew {:.2f} degrees, orientation {:.2f}", skew, orientation));
    auto pixels = skew == 0 ? view->pixels : turned(view->pixels, view->bilevel, skew, view->from_page);
    auto path = run.write_image(pixels, view->bilevel, dpi, ".IMG-DESKEW");
    if (!path) return std::unexpected(path.error());
    page.add_alternative_image(*path, with_feature(view->features, "deskewed"));
    return run.write_page(page);
}

RecognitionSettings settings_of(Run const& run) {
    RecognitionSettings s;
    s.model = run.text("model");
    if (run.parameters.contains("tesseract_parameters")) s.variables = run.parameters["tesseract_parameters"];
    for (auto [name, variable] :
         {std::pair{"char_whitelist", "tessedit_char_whitelist"}, {"char_blacklist", "tessedit_char_blacklist"}})
        if (!run.text(name).empty()) s.variables[variable] = run.text(name);
    s.segmentation_level =
        run.text("segmentation_level").empty() ? s.segmentation_level : run.text("segmentation_level");
    s.textequiv_level = run.text("textequiv_level").empty() ? s.textequiv_level : run.text("textequiv_level");
    s.overwrite_segments = run.flag("overwrite_segments");
    s.raw_lines = run.flag("raw_lines");
    s.find_tables = run.flag("find_tables");
    s.sparse_text = run.flag("sparse_text");
    s.padding = static_cast<int>(run.number("padding"));
    return s;
}

Result<void> segment_page(Run& run, Page& page, ModelCache& models) {
    auto view = view_of(page, run.files, "", "", known(run));
    if (!view) return std::unexpected(view.error());
    auto settings = settings_of(run);
    settings.dpi = resolution(run, page, *view);
    if (auto done = segment(page, *view, models, settings); !done) return done;
    if (regions_of(page.node()).empty()) run.warn("no region was found on the page");
    return run.write_page(page);
}

Result<void> recognize_page(Run& run, Page& page, ModelCache& models) {
    auto view = view_of(page, run.files, "", "", known(run));
    if (!view) return std::unexpected(view.error());
    auto settings = settings_of(run);
    // For a whole page Tesseract's own estimate is the better one: it comes from the lines that it finds.
    bool whole = regions_of(page.node()).empty() || settings.overwrite_segments;
    settings.dpi = run.number("dpi") > 0 ? run.number("dpi") : page.dpi() > 0 ? page.dpi() : view->dpi;
    if (settings.dpi <= 0 && !whole) settings.dpi = resolution(run, page, *view);
    if (run.number("dpi") > 0) page.set_dpi(run.number("dpi"));
    if (auto done = recognize(page, *view, models, settings); !done) return done;
    bool any = std::ranges::any_of(page.text_regions(), [](pugi::xml_node r) { return !text_of(r).empty(); });
    if (!any) run.warn("no text was found on the page");
    return run.write_page(page);
}

Result<void> export_page(Run& run, Page& page) {
    auto formats = split(run.text("format"), ',');
    for (auto& format : formats) format = trim(format);
    if (formats.size() != run.job.output_groups.size())
        return fail(ErrorKind::Invalid, "{} asked for ({}), but {} named: there must be one group per format",
                    counted(formats.size(), "format"), run.text("format"),
                    counted(run.job.output_groups.size(), "output group"));
    bool nfc = run.flag("nfc");
    for (std::size_t i = 0; i < formats.size(); ++i) {
        auto const& format = formats[i];
        ExportNames names{run.output_id(i), run.job.page.page_id, nfc};
        Result<void> wrote;
        if (format == "text")
            wrote = run.write(i, ".txt", "text/plain", to_text(page, nfc));
        else if (format == "alto")
            wrote = run.write(i, ".xml", "application/alto+xml", to_alto(page, names));
        else if (format == "hocr")
            wrote = run.write(i, ".hocr", "text/vnd.hocr+html", to_hocr(page, names));
        else if (format == "page")
            wrote = run.write(i, ".xml", kPageMimetype, page.text(run.output_id(i)));
        else
            return fail(ErrorKind::Invalid, "there is no format \"{}\": text, alto, hocr and page are known", format);
        if (!wrote) return wrote;
    }
    return {};
}

Result<void> dummy(Run& run) {
    auto const& page_id = run.job.page.page_id;
    auto pattern = run.text("pages");
    bool meant = true;
    if (!pattern.empty()) {
        try {
            meant = std::regex_match(page_id, std::regex(pattern, std::regex::ECMAScript));
        } catch (std::regex_error const&) {
            return fail(ErrorKind::Invalid, "`pages` is no regular expression: {}", pattern);
        }
    }
    if (double wait = run.number("delay_ms"); wait > 0)
        std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(wait));
    if (meant && run.flag("crash")) {
        ::signal(SIGSEGV, SIG_DFL); // not the sanitizer's handler: this is to look like a crash
        ::raise(SIGSEGV);
    }
    while (meant && run.flag("hang")) ::pause();
    if (meant && run.flag("fail"))
        return fail(run.flag("transient") ? ErrorKind::Unavailable : ErrorKind::Invalid,
                    "page {} fails, as the parameter `fail` asks", page_id);

    auto [path, frame] = frame_of(run.input().path);
    bool image = run.input().mimetype.starts_with("image/");
    if (run.flag("copy_files") && image) {
        auto file = run.files.find(path);
        if (!file) return std::unexpected(file.error());
        auto content = read_file(*file);
        if (!content) return std::unexpected(content.error());
        return run.write(0, fs::path(path).extension().string(), run.input().mimetype, *content);
    }
    auto page = run.open_page(false);
    if (!page) return std::unexpected(page.error());
    return run.write_page(*page);
}

Result<void> dispatch(Run& run, ModelCache& models) {
    auto const& job = run.job;
    if (job.page.files.size() != 1)
        return fail(ErrorKind::Invalid, "{} takes one input file per page, page {} has {}", job.processor,
                    job.page.page_id, job.page.files.size());
    if (job.output_groups.empty() || job.page.output_ids.size() != job.output_groups.size())
        return fail(ErrorKind::Invalid, "{} needs an output group and an output id for each", job.processor);
    if (job.processor == "ocrd-ocrctl-dummy") return dummy(run);
    auto page = run.open_page(job.processor != "ocrd-ocrctl-export");
    if (!page) return std::unexpected(page.error());
    if (job.processor == "ocrd-ocrctl-binarize") return binarize(run, *page);
    if (job.processor == "ocrd-ocrctl-deskew") return deskew(run, *page);
    if (job.processor == "ocrd-ocrctl-segment") return segment_page(run, *page, models);
    if (job.processor == "ocrd-ocrctl-recognize") return recognize_page(run, *page, models);
    return export_page(run, *page);
}

// Worth another try: the machine's trouble, not the data's.
bool transient(ErrorKind kind) {
    return kind == ErrorKind::Unavailable || kind == ErrorKind::TooLarge || kind == ErrorKind::Timeout;
}

Result<Json const*> tool_of(std::string const& processor) {
    auto const* tool = tools::builtin_tool(processor);
    if (!tool) return fail(ErrorKind::NotFound, "{} is no built-in processor", processor);
    return tool;
}

} // namespace

Result<Provenance> Processors::load(std::string const& processor, Json const& parameters) {
    auto tool = tool_of(processor);
    if (!tool) return std::unexpected(tool.error());
    Provenance provenance{tools::agent_name(processor), (**tool)["steps"][0], tools::with_defaults(**tool, parameters)};
    try {
        if (processor == "ocrd-ocrctl-recognize") {
            std::string log;
            PageJob none;
            Run run(none, provenance.parameters, log);
            auto settings = settings_of(run);
            if (auto found = preload(models_, settings); !found) return std::unexpected(found.error());
        }
    } catch (std::exception const& problem) {
        return fail(ErrorKind::Invalid, "parameters of {}: {}", processor, problem.what());
    }
    return provenance;
}

PageOutcome Processors::page(PageJob const& job, std::string& log) {
    PageOutcome failed;
    failed.page_id = job.page.page_id;
    auto tool = tool_of(job.processor);
    if (!tool) {
        failed.error = tool.error().message();
        return failed;
    }
    Run run(job, tools::with_defaults(**tool, job.parameters), log);
    Result<void> done;
    try {
        done = dispatch(run, models_);
    } catch (std::bad_alloc const&) {
        done = fail(ErrorKind::TooLarge, "not enough memory for page {}", job.page.page_id);
    } catch (cv::Exception const& problem) {
        done = fail(problem.code == cv::Error::StsNoMem ? ErrorKind::TooLarge : ErrorKind::Internal, "OpenCV: {}",
                    problem.err);
    } catch (std::exception const& problem) {
        done = fail(ErrorKind::Internal, "{}", problem.what());
    }
    run.outcome.page_id = job.page.page_id;
    run.outcome.ok = done.has_value();
    if (!done) {
        run.outcome.error = done.error().message();
        run.outcome.retry = transient(done.error().kind());
        // What was written before the trouble is no result.
        std::error_code ignored;
        for (auto const& file : run.outcome.files) fs::remove(job.staging / file.path, ignored);
        run.outcome.files.clear();
        run.say("error: " + run.outcome.error);
    }
    return std::move(run.outcome);
}

} // namespace ocrctl::ocr
