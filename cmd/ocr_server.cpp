// `ocrctl ocr --server URL`: the same work as a page-wise workflow on a processing server that reaches the output folder by
// the same path.
//
//   DIR/.ocrctl/workspace/     a METS workspace: the images as links, what the steps write
//   DIR/.ocrctl/server.json    the workflow under way, for a second run to follow
#include "cmd/client.hpp"
#include "cmd/ocr_work.hpp"
#include "lib/base/text.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/mets/mets.hpp"
#include "lib/net/url.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <unistd.h>

namespace ocrctl {

namespace fs = std::filesystem;

namespace {

constexpr char kEmptyMets[] = R"(<?xml version="1.0" encoding="UTF-8"?>
<mets:mets xmlns:mets="http://www.loc.gov/METS/" xmlns:mods="http://www.loc.gov/mods/v3" xmlns:xlink="http://www.w3.org/1999/xlink">
  <mets:metsHdr/>
  <mets:fileSec/>
  <mets:structMap TYPE="PHYSICAL">
    <mets:div TYPE="physSequence"/>
  </mets:structMap>
</mets:mets>
)";

std::string export_group(std::string format) {
    std::ranges::transform(format, format.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return "OCRCTL-" + format;
}

/// One word of a POSIX shell, whatever is in it.
std::string quoted(std::string const& text) {
    std::string out = "'";
    for (char c : text) {
        if (c == '\'') out += "'\\''";
        else out += c;
    }
    return out + "'";
}

class ServerRun {
public:
    ServerRun(OcrOptions const& options, OcrPlan plan)
        : options_(options), plan_(std::move(plan)), home_(fs::absolute(options.out).lexically_normal()), api_("") {}

    int run();

private:
    fs::path state() const { return home_ / ".ocrctl"; }
    fs::path workspace() const { return state() / "workspace"; }
    fs::path mets_file() const { return workspace() / "mets.xml"; }
    fs::path under_way() const { return state() / "server.json"; }

    Result<void> reattach();
    Result<void> prepare();
    Result<void> submit_and_follow();
    void take_what_is_there();
    Result<void> collect();
    Result<void> collect_page(mets::Mets const& mets, OcrWork& work);
    std::string script() const;
    void note_failures(Json const& workflow);

    OcrOptions const& options_;
    OcrPlan plan_;
    fs::path home_;
    Api api_;
    std::optional<OcrRecord> record_;
    std::vector<OcrWork> work_;
    OcrSummary summary_;
    std::map<std::string, std::string> reasons_; // page id -> why it failed
};

/// A workflow of an earlier run that has not ended yet: its results are wanted first.
Result<void> ServerRun::reattach() {
    std::error_code ignored;
    if (!fs::exists(under_way(), ignored)) return {};
    auto text = read_file(under_way());
    auto json = text ? parse_json(*text) : Result<Json>(fail(text.error()));
    if (json && json->is_object() && json->value("server", "") == api_.url()) {
        auto const id = json->value("workflow", "");
        auto workflow = api_.get("/v1/workflows/" + net::percent_encode(id));
        if (workflow) {
            if (!options_.quiet) fmt::print(stderr, "following workflow {} of an earlier run\n", id);
            workflow = follow_workflow(api_, id, std::nullopt, options_.quiet);
        }
        if (!workflow && workflow.error().kind() != ErrorKind::NotFound) return fail(workflow.error());
    }
    fs::remove(under_way(), ignored);
    return {};
}

/// The METS holds each page's image, and of pages to be made anew nothing else.
Result<void> ServerRun::prepare() {
    if (auto made = make_folder(workspace() / kImageGroup); !made) return made;
    std::error_code error;
    if (!fs::exists(mets_file(), error))
        if (auto written = write_file_atomically(mets_file(), kEmptyMets); !written) return written;
    auto mets = mets::Mets::load(mets_file());
    if (!mets) return fail(mets.error());
    std::vector<fs::path> outdated;
    for (auto& work : work_) {
        auto const& page = work.page;
        if (work.record.digest.empty()) {
            auto digest = sha256_of_file(page.image);
            if (!digest) return fail(digest.error());
            work.record.digest = "sha256:" + *digest;
        }
        auto const link = workspace() / kImageGroup / page.image.filename();
        if (fs::read_symlink(link, error) != page.image) {
            fs::remove(link, error);
            fs::create_symlink(page.image, link, error);
            if (error) return fail(errno_error(error.value(), "link " + link.native()));
        }
        FileRef file;
        file.group = kImageGroup;
        file.id = fmt::format("{}_{}", kImageGroup, page.id);
        file.page_id = page.id;
        file.mimetype = mimetype_of(page.image);
        file.path = fmt::format("{}/{}", kImageGroup, page.image.filename().native());
        if (page.frame) {
            auto const image = file.path;
            file.mimetype = kPageType;
            file.path = fmt::format("{}/{}.xml", kImageGroup, file.id);
            if (auto written = write_file_atomically(workspace() / file.path, first_page_xml(page, image)); !written) return written;
        }
        if (work.todo == Todo::Everything && !work.resume) {
            for (auto const& group : mets->groups()) {
                if (group.name == kImageGroup) continue;
                std::vector<std::string> ids;
                for (auto const* old : mets->files_of(page.id, group.name)) {
                    ids.push_back(old->id);
                    if (!old->path.empty()) outdated.push_back(workspace() / old->path);
                }
                for (auto const& id : ids)
                    if (auto removed = mets->remove_file(id, group.name); !removed) return removed;
            }
        }
        if (mets->find(file.id, kImageGroup) == nullptr)
            if (auto added = mets->add_file(file); !added) return fail(added.error().during(page.shown));
    }
    if (auto saved = mets->save(); !saved) return saved;
    for (auto const& file : outdated) fs::remove(file, error);
    for (auto& work : work_) {
        auto begun = work.record;
        begun.done = work.todo == Todo::Export;
        if (begun.done)
            for (auto const& format : work.formats) begun.outputs[format] = work.page.base + ending_of(format);
        if (auto put = record_->put(begun); !put) return put;
    }
    return {};
}

std::string ServerRun::script() const {
    std::string text;
    auto line = [&](std::string name, std::vector<std::string> const& in, std::vector<std::string> const& out, Json const& parameters) {
        if (name.starts_with("ocrd-")) name.erase(0, 5);
        text += fmt::format("{} -I {} -O {}{}\n", name, join(in, ","), join(out, ","), parameters.empty() ? "" : " -p " + quoted(dump(parameters)));
    };
    for (auto const& step : plan_.chain) line(step.processor, step.input_groups, step.output_groups, step.parameters);
    std::set<std::string> formats;
    for (auto const& work : work_) formats.insert(work.formats.begin(), work.formats.end());
    for (auto const& format : formats) {
        Json parameters;
        parameters["format"] = format;
        parameters["nfc"] = plan_.nfc;
        line("ocrd-ocrctl-export", {plan_.result_group}, {export_group(format)}, parameters);
    }
    return text;
}

void ServerRun::note_failures(Json const& workflow) {
    auto const failed = workflow.value("failed", Json::object());
    std::size_t asked = 0;
    for (auto const& [processor, jobs] : failed.items())
        for (auto const& one : jobs) {
            if (!one.contains("page_id") || !one["page_id"].is_string()) continue;
            auto const page = one["page_id"].get<std::string>();
            auto& reason = reasons_[page];
            if (!reason.empty()) continue;
            reason = fmt::format("{} failed, Job {}", processor, one.value("job_id", ""));
            if (++asked > 200) continue; // the rest is in the log
            auto job = api_.get("/v1/jobs/" + net::percent_encode(one.value("job_id", "")));
            if (!job) continue;
            auto pages = job->value("pages_failed", Json::object());
            std::string why = pages.contains(page) && pages[page].is_string() ? pages[page].get<std::string>() : job->value("reason", "");
            if (!why.empty()) reason = why;
        }
}

Result<void> ServerRun::submit_and_follow() {
    auto target = fmt::format("/workflow/run?mets_path={}&page_wise=true&existing_output=skip", net::percent_encode(mets_file().native()));
    // Only the pages of this run, where the METS has more.
    auto mets = mets::Mets::load(mets_file());
    if (!mets) return fail(mets.error());
    if (mets->pages().size() > work_.size()) {
        std::vector<std::string> ids;
        for (auto const& work : work_) ids.push_back(work.page.id);
        auto list = net::percent_encode(join(ids, ","));
        // A longer list does not fit into a request; pages that are done are skipped by the server anyway.
        if (list.size() < 30000 && list.find("..") == std::string::npos) target += "&page_id=" + list;
    }
    auto const text = script();
    auto started = api_.upload(target, "ocr.txt", text);
    if (!started) {
        if (started.error().kind() == ErrorKind::NotFound)
            return fail(ErrorKind::NotFound, "{} (the server must reach the output folder by the same path)", started.error().message());
        return fail(started.error());
    }
    auto const id = started->value("job_id", "");
    Json note;
    note["server"] = api_.url();
    note["workflow"] = id;
    if (auto written = write_file_atomically(under_way(), dump(note)); !written) return written;
    if (!options_.quiet) fmt::print(stderr, "workflow {} on {}; Ctrl-C leaves it running, run this again to follow it\n", id, api_.url());
    auto workflow = follow_workflow(api_, id, std::nullopt, options_.quiet);
    if (!workflow) return fail(workflow.error());
    note_failures(*workflow);
    std::error_code ignored;
    fs::remove(under_way(), ignored);
    return {};
}

Result<void> ServerRun::collect_page(mets::Mets const& mets, OcrWork& work) {
    auto const& page = work.page;
    auto file_in = [&](std::string const& group) -> mets::File const* {
        for (auto const* file : mets.files_of(page.id, group))
            if (!file->path.empty() && (group != plan_.result_group || file->mimetype == kPageType)) return file;
        return nullptr;
    };
    for (auto const& format : work.formats) {
        auto const* made = file_in(export_group(format));
        if (made == nullptr) {
            auto reason = reasons_.find(page.id);
            return fail(ErrorKind::Invalid, "{}", reason != reasons_.end() ? reason->second : fmt::format("the server made no {}", format));
        }
        auto content = read_file(workspace() / made->path);
        if (!content) return fail(content.error());
        auto const name = page.base + ending_of(format);
        if (auto written = write_file_atomically(home_ / name, *content); !written) return written;
        work.record.outputs[format] = name;
    }
    if (work.todo == Todo::Everything) {
        // A copy that later runs, also ones without the server, export from.
        auto const* made = file_in(plan_.result_group);
        if (made == nullptr) return fail(ErrorKind::Invalid, "the server made no PAGE-XML");
        auto content = read_file(workspace() / made->path);
        if (!content) return fail(content.error());
        auto const copy = fmt::format("pages/{}/{}/{}", page.base, plan_.result_group, fs::path(made->path).filename().native());
        if (auto folder = make_folder((state() / copy).parent_path()); !folder) return folder;
        if (auto written = write_file_atomically(state() / copy, *content); !written) return written;
        work.record.page = copy;
    }
    work.record.done = true;
    return record_->put(work.record);
}

/// Pages that an earlier run had begun and the server has finished meanwhile: only their results are missing here.
void ServerRun::take_what_is_there() {
    std::error_code ignored;
    if (std::ranges::none_of(work_, &OcrWork::resume) || !fs::exists(mets_file(), ignored)) return;
    auto mets = mets::Mets::load(mets_file());
    if (!mets) return; // prepare() says why
    std::erase_if(work_, [&](OcrWork& work) {
        if (!work.resume) return false;
        work.record.digest = record_->find(work.page.base)->digest;
        if (!collect_page(*mets, work)) return false;
        ++summary_.done;
        return true;
    });
}

Result<void> ServerRun::collect() {
    auto mets = mets::Mets::load(mets_file());
    if (!mets) return fail(mets.error());
    for (auto& work : work_) {
        auto collected = collect_page(*mets, work);
        if (!collected) summary_.failed.emplace_back(work.page.shown, collected.error().message());
        else ++(work.todo == Todo::Export ? summary_.exported : summary_.done);
    }
    return {};
}

int ServerRun::run() {
    auto const failed = [](Error const& error) { return complain("ocr", error); };
    Where where;
    where.server = options_.server;
    auto url = find_server(where);
    if (!url) return failed(url.error());
    api_ = Api(*url);
    auto answers = api_.get("/v1", std::chrono::seconds(10));
    if (!answers && answers.error().kind() == ErrorKind::NotFound) return failed(Error(ErrorKind::Invalid, fmt::format("{} is not an ocrctl processing server", *url)));
    if (!answers) return failed(answers.error());
    if (auto made = make_folder(state() / "pages"); !made) return failed(made.error());
    auto lock = ledger::LockFile::take(state() / "lock", "ocr -o " + options_.out.native());
    if (!lock) return failed(lock.error().during(fmt::format("another run writes to {}", options_.out.native())));
    auto record = OcrRecord::open(state());
    if (!record) return failed(record.error());
    record_.emplace(std::move(*record));
    if (auto before = reattach(); !before) return failed(before.error());
    // Which model files the server's hosts have is theirs to say (they are in each PAGE): here it counts where it was done.
    Json models;
    models["server"] = api_.url();
    auto const chain = plan_.chain_json();
    auto work = decide_work(options_, plan_, chain, models, *record_, summary_);
    if (!work) return failed(work.error());
    work_ = std::move(*work);
    take_what_is_there();
    if (!work_.empty()) {
        for (auto const& one : work_)
            if (!one.why.empty() && !options_.quiet) fmt::print(stderr, "{}: again, as {}\n", one.page.shown, one.why);
        if (auto prepared = prepare(); !prepared) return failed(prepared.error());
        if (auto done = submit_and_follow(); !done) return failed(done.error());
        if (auto collected = collect(); !collected) return failed(collected.error());
    }
    return report(options_, summary_);
}

} // namespace

int ocr_on_server(OcrOptions const& options, OcrPlan plan) { return ServerRun(options, std::move(plan)).run(); }

} // namespace ocrctl
