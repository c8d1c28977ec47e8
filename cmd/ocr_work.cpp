#include "cmd/ocr_work.hpp"

#include "lib/base/clock.hpp"
#include "lib/base/text.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <sys/stat.h>

namespace ocrctl {

namespace fs = std::filesystem;

namespace {

std::string escape_xml(std::string_view text) {
    std::string out;
    for (char c : text) {
        switch (c) {
        case '&': out += "&amp;"; break;
        case '<': out += "&lt;"; break;
        case '>': out += "&gt;"; break;
        case '"': out += "&quot;"; break;
        default: out += c;
        }
    }
    return out;
}

/// What work is decided from; refers to what its caller holds.
struct Ground {
    OcrOptions const& options;
    OcrPlan const& plan;
    Json const &chain, &models;
    OcrRecord const& record;
    fs::path home, state;
};

Error foreign(fs::path const& file) {
    return Error(ErrorKind::Conflict, fmt::format("{} exists and was not made by this command: use another folder, or --force", file.native()));
}

Result<OcrWork> decide(Ground const& ground, OcrPage const& page) {
    auto const& plan = ground.plan;
    OcrWork work;
    work.page = page;
    work.formats = plan.formats;
    work.record.base = page.base;
    work.record.input = page.image.native();
    work.record.frame = page.frame_index;
    work.record.chain = ground.chain;
    work.record.models = ground.models;
    work.record.version = tools::version();
    struct stat info{};
    if (::stat(page.image.c_str(), &info) != 0) return fail(errno_error(errno, page.shown));
    if (!S_ISREG(info.st_mode)) return fail(ErrorKind::Invalid, "it is not a regular file");
    work.record.size = static_cast<std::uint64_t>(info.st_size);
    work.record.mtime = static_cast<std::int64_t>(info.st_mtim.tv_sec) * 1000000000 + info.st_mtim.tv_nsec;

    auto const* before = ground.record.find(page.base);
    std::error_code ignored;
    if (before == nullptr) {
        for (auto const& format : plan.formats)
            if (auto name = page.base + ending_of(format); fs::exists(ground.home / name, ignored) && !ground.options.force)
                return fail(foreign(ground.home / name));
        return work;
    }
    if (ground.options.force) return work;

    if (before->size == work.record.size && before->mtime == work.record.mtime && before->input == work.record.input) {
        work.record.digest = before->digest;
    } else {
        auto digest = sha256_of_file(page.image);
        if (!digest) return fail(digest.error());
        work.record.digest = "sha256:" + *digest;
    }
    if (before->digest != work.record.digest || before->frame != work.record.frame)
        work.why = "the image has changed";
    else if (before->chain != ground.chain)
        work.why = "the steps or their parameters have changed";
    else if (before->models != ground.models)
        work.why = "a model has changed";
    else if (before->version != tools::version())
        work.why = fmt::format("it was made by version {}", before->version);
    else if (before->done && (before->page.empty() || !fs::exists(ground.state / before->page, ignored)))
        work.why = "its PAGE-XML is gone";
    if (!before->done) {
        work.resume = work.why.empty() && !before->digest.empty();
        work.why.clear(); // it was never finished: nothing to explain
        return work;
    }
    if (!work.why.empty()) {
        // Results of a kind that is not asked for now would be outdated: make them as well.
        for (auto const& [format, name] : before->outputs)
            if (std::ranges::find(work.formats, format) == work.formats.end()) work.formats.push_back(format);
        return work;
    }
    work.record.page = before->page;
    work.record.outputs = before->outputs;
    std::erase_if(work.formats, [&](std::string const& format) {
        auto made = before->outputs.find(format);
        return made != before->outputs.end() && fs::exists(ground.home / made->second, ignored);
    });
    for (auto const& format : work.formats)
        if (auto name = page.base + ending_of(format); !before->outputs.contains(format) && fs::exists(ground.home / name, ignored))
            return fail(foreign(ground.home / name));
    work.todo = work.formats.empty() ? Todo::Nothing : Todo::Export;
    return work;
}

} // namespace

std::string first_page_xml(OcrPage const& page, std::string const& image) {
    auto const now = format_time(now_millis()).substr(0, 19) + "Z";
    return fmt::format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                       "<pc:PcGts xmlns:pc=\"http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15\" pcGtsId=\"{}\">\n"
                       "  <pc:Metadata><pc:Creator>ocrctl {}</pc:Creator><pc:Created>{}</pc:Created><pc:LastChange>{}</pc:LastChange></pc:Metadata>\n"
                       "  <pc:Page imageFilename=\"{}\" imageWidth=\"{}\" imageHeight=\"{}\"{}/>\n"
                       "</pc:PcGts>\n",
                       page.id, tools::version(), now, now, escape_xml(image), page.frame->width, page.frame->height,
                       page.frame_index > 0 ? fmt::format(" custom=\"frame {{index:{};}}\"", page.frame_index) : "");
}

std::string mimetype_of(fs::path const& image) {
    auto ending = image.extension().native();
    std::ranges::transform(ending, ending.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (ending == ".tif" || ending == ".tiff") return "image/tiff";
    if (ending == ".jpg" || ending == ".jpeg") return "image/jpeg";
    if (ending == ".png") return "image/png";
    if (ending == ".jp2" || ending == ".jpx" || ending == ".j2k") return "image/jp2";
    if (ending == ".webp") return "image/webp";
    return "";
}

Result<std::vector<OcrWork>> decide_work(OcrOptions const& options, OcrPlan const& plan, Json const& chain, Json const& models, OcrRecord& record,
                                         OcrSummary& summary) {
    auto const home = fs::absolute(options.out).lexically_normal();
    Ground const ground{options, plan, chain, models, record, home, home / ".ocrctl"};
    summary.pages = plan.pages.size();
    std::vector<OcrWork> all;
    std::size_t conflicts = 0;
    std::string first;
    for (auto const& page : plan.pages) {
        if (!page.problem.empty()) {
            summary.failed.emplace_back(page.shown, page.problem);
            continue;
        }
        auto work = decide(ground, page);
        if (!work && work.error().kind() == ErrorKind::Conflict) {
            if (conflicts++ == 0) first = work.error().message();
        } else if (!work) {
            summary.failed.emplace_back(page.shown, work.error().message());
        } else if (work->todo == Todo::Nothing) {
            ++summary.up_to_date;
            // Touched or moved, but the same: remember that, so that its digest is not computed each time.
            auto const* before = record.find(page.base);
            if (before->mtime != work->record.mtime || before->input != work->record.input) {
                work->record.done = true;
                if (auto put = record.put(work->record); !put) return fail(put.error());
            }
        } else {
            all.push_back(std::move(*work));
        }
    }
    if (conflicts == 1) return fail(ErrorKind::Conflict, "{}", first);
    if (conflicts > 1) return fail(ErrorKind::Conflict, "{} (and so for {} more)", first, counted(conflicts - 1, "page"));
    return all;
}

} // namespace ocrctl
