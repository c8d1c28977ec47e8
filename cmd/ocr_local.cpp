// `ocrctl ocr` on this machine: pages through an engine pool, results renamed into place, a record of it all.
//
//   DIR/scan7.txt                        results
//   DIR/.ocrctl/record.jsonl             what was made from what (cmd/ocr_record.hpp)
//   DIR/.ocrctl/pages/scan7/             the page's private workspace: a link to its image, its PAGE-XML
//   DIR/.ocrctl/lock                     one run at a time
#include "cmd/ocr.hpp"
#include "cmd/ocr_work.hpp"
#include "cmd/progress.hpp"
#include "lib/async/on_thread.hpp"
#include "lib/async/task_group.hpp"
#include "lib/async/within.hpp"
#include "lib/base/text.hpp"
#include "lib/engine/engine.hpp"
#include "lib/ledger/lock.hpp"
#include "lib/mets/page_namespaces.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>
#include <set>
#include <thread>

namespace ocrctl {

namespace fs = std::filesystem;

namespace {

constexpr char kPageType[] = "application/vnd.prima.page+xml";
constexpr char kExport[] = "ocrd-ocrctl-export";

class LocalRun {
public:
    LocalRun(OcrOptions const& options, OcrPlan plan)
        : options_(options), plan_(std::move(plan)), home_(fs::absolute(options.out).lexically_normal()), tasks_(io_.get_executor(), "ocr"),
          pool_(io_.get_executor(), jobs(options)), signals_(io_, SIGINT, SIGTERM, SIGHUP) {}

    int run();

private:
    static std::size_t jobs(OcrOptions const& options) {
        return options.jobs > 0 ? options.jobs : std::max(1u, std::thread::hardware_concurrency());
    }

    awaitable<void> drive();
    awaitable<void> take_pages();
    awaitable<Result<void>> one_page(OcrWork& work);
    awaitable<Result<void>> make_page(OcrWork& work, fs::path const& folder);
    awaitable<Result<void>> export_page(OcrWork& work, fs::path const& folder);
    awaitable<Result<PageOutcome>> in_engine(engine::PageRequest request);
    awaitable<void> wait_for_signal();
    awaitable<void> keep_drawing();

    fs::path state() const { return home_ / ".ocrctl"; }
    fs::path folder_of(std::string const& base) const { return state() / "pages" / base; }

    OcrOptions const& options_;
    OcrPlan plan_;
    fs::path home_;
    Json chain_, models_;
    std::optional<OcrRecord> record_;
    std::vector<OcrWork> work_;
    std::size_t next_ = 0;
    std::set<std::string> under_way_;
    OcrSummary summary_;
    std::optional<Progress> progress_;
    std::optional<Error> stopped_by_; // nothing can go on: no model, no engine
    bool stopping_ = false;
    asio::thread_pool digests_{1};
    asio::io_context io_{1};
    TaskGroup tasks_;
    engine::EnginePool pool_;
    asio::signal_set signals_;
};

awaitable<Result<PageOutcome>> LocalRun::in_engine(engine::PageRequest request) {
    for (int attempt = 1;; ++attempt) {
        if (stopping_) co_return fail(ErrorKind::Unavailable, "stopped");
        auto again = request;
        auto reply = co_await pool_.page(std::move(again));
        if (!reply) co_return fail(reply.error());
        if (reply->outcome.ok) co_return std::move(reply->outcome);
        if (!reply->outcome.retry || attempt == 3 || stopping_) co_return fail(ErrorKind::Invalid, "{}", reply->outcome.error);
        co_await pause(std::chrono::milliseconds(200) * attempt);
    }
}

awaitable<Result<void>> LocalRun::make_page(OcrWork& work, fs::path const& folder) {
    auto const& page = work.page;
    remove_tree(folder);
    if (auto made = make_folder(folder); !made) co_return made;
    if (work.record.digest.empty()) {
        auto image = page.image;
        auto digest = co_await on_thread(digests_, [image] { return sha256_of_file(image); });
        if (!digest) co_return fail(digest.error());
        work.record.digest = "sha256:" + *digest;
    }
    std::error_code error;
    auto const image = page.image.filename();
    fs::create_symlink(page.image, folder / image, error);
    if (error) co_return fail(errno_error(error.value(), fmt::format("link {}", (folder / image).native())));

    std::map<std::string, FileRef> files; // group -> what the page has there
    FileRef start;
    start.group = kImageGroup;
    start.id = fmt::format("{}_{}", kImageGroup, page.id);
    start.page_id = page.id;
    start.mimetype = mimetype_of(image);
    start.path = image.native();
    if (page.frame) {
        start.mimetype = kPageType;
        start.path = fmt::format("{}/{}.xml", kImageGroup, start.id);
        if (auto made = make_folder(folder / kImageGroup); !made) co_return made;
        if (auto written = write_file_atomically(folder / start.path, first_page_xml(page, image.native())); !written) co_return written;
    }
    files[kImageGroup] = start;
    for (auto const& step : plan_.chain) {
        engine::PageRequest request;
        request.processor = step.processor;
        request.parameters = step.parameters;
        request.workspace = folder;
        request.staging = folder;
        request.input_groups = step.input_groups;
        request.output_groups = step.output_groups;
        request.page.page_id = page.id;
        for (auto const& group : step.input_groups) request.page.files.push_back(files.at(group));
        for (auto const& group : step.output_groups) request.page.output_ids.push_back(fmt::format("{}_{}", group, page.id));
        auto outcome = co_await in_engine(std::move(request));
        if (!outcome) co_return fail(outcome.error());
        for (auto const& file : outcome->files)
            if (auto known = files.find(file.group); known == files.end() || file.mimetype == kPageType) files[file.group] = file;
        for (auto const& group : step.output_groups)
            if (!files.contains(group)) co_return fail(ErrorKind::Internal, "{} wrote nothing for the group {}", step.processor, group);
    }
    work.record.page = fmt::format("pages/{}/{}", page.base, files.at(plan_.result_group).path);
    work.record.outputs.clear();
    co_return Result<void>();
}

awaitable<Result<void>> LocalRun::export_page(OcrWork& work, fs::path const& folder) {
    engine::PageRequest request;
    request.processor = kExport;
    request.parameters["format"] = join(work.formats, ",");
    request.parameters["nfc"] = plan_.nfc;
    request.workspace = folder;
    request.staging = folder / "results";
    request.input_groups = {plan_.result_group};
    request.page.page_id = work.page.id;
    FileRef input;
    input.group = plan_.result_group;
    input.id = fmt::format("{}_{}", input.group, work.page.id);
    input.page_id = work.page.id;
    input.mimetype = kPageType;
    input.path = fs::path(state() / work.record.page).lexically_relative(folder).native();
    request.page.files.push_back(std::move(input));
    for (auto const& format : work.formats) {
        request.output_groups.push_back(format);
        request.page.output_ids.push_back(work.page.id);
    }
    remove_tree(request.staging);
    auto const staging = request.staging;
    auto outcome = co_await in_engine(std::move(request));
    if (!outcome) co_return fail(outcome.error());
    std::map<std::string, std::string> made;
    for (auto const& file : outcome->files) made[file.group] = file.path;
    for (auto const& format : work.formats)
        if (!made.contains(format)) co_return fail(ErrorKind::Internal, "the export wrote no {}", format);
    for (auto const& format : work.formats) {
        auto const name = work.page.base + ending_of(format);
        if (std::rename((staging / made[format]).c_str(), (home_ / name).c_str()) != 0)
            co_return fail(errno_error(errno, fmt::format("write {}", (home_ / name).native())));
        work.record.outputs[format] = name;
    }
    remove_tree(staging);
    co_return Result<void>();
}

awaitable<Result<void>> LocalRun::one_page(OcrWork& work) {
    auto const folder = folder_of(work.page.base);
    // From here on files of its results' names are ours, whatever happens.
    auto begun = work.record;
    begun.done = work.todo == Todo::Export;
    if (begun.done)
        for (auto const& format : work.formats) begun.outputs[format] = work.page.base + ending_of(format);
    if (auto put = record_->put(begun); !put) co_return put;
    if (work.todo == Todo::Everything) {
        auto made = co_await make_page(work, folder);
        if (!made) co_return made;
    }
    auto exported = co_await export_page(work, folder);
    if (!exported) co_return exported;
    if (work.todo == Todo::Everything) {
        // Of all that the steps wrote only the last PAGE-XML is needed again.
        auto const keep = fs::path(work.record.page).lexically_relative(fs::path("pages") / work.page.base);
        std::error_code ignored;
        for (auto const& entry : fs::directory_iterator(folder, ignored))
            if (entry.path().filename() != *keep.begin()) remove_tree(entry.path());
        for (auto const& entry : fs::directory_iterator((folder / keep).parent_path(), ignored))
            if (entry.path().filename() != keep.filename()) remove_tree(entry.path());
    }
    work.record.done = true;
    co_return record_->put(work.record);
}

awaitable<void> LocalRun::take_pages() {
    while (next_ < work_.size() && !stopping_) {
        auto& work = work_[next_++];
        auto const begun = std::chrono::steady_clock::now();
        under_way_.insert(work.page.base);
        auto result = co_await one_page(work);
        if (stopping_) co_return; // what failed now failed because of that
        under_way_.erase(work.page.base);
        if (!result) {
            if (work.todo == Todo::Everything) remove_tree(folder_of(work.page.base));
            else remove_tree(folder_of(work.page.base) / "results");
            summary_.failed.emplace_back(work.page.shown, result.error().message());
            progress_->failed(fmt::format("{}: failed: {}", work.page.shown, result.error().message()));
            continue;
        }
        ++(work.todo == Todo::Export ? summary_.exported : summary_.done);
        auto const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
        progress_->done(fmt::format("{}: {} in {:.1f} s{}", work.page.shown, work.todo == Todo::Export ? "exported" : "done", seconds,
                                    work.why.empty() ? "" : fmt::format(" (again: {})", work.why)));
    }
}

awaitable<void> LocalRun::wait_for_signal() {
    auto [error, number] = co_await signals_.async_wait(as_tuple);
    if (error) co_return;
    stopping_ = true;
    summary_.stopped = number == SIGINT ? "SIGINT" : number == SIGTERM ? "SIGTERM" : "SIGHUP";
    pool_.kill();
}

awaitable<void> LocalRun::keep_drawing() {
    while (co_await pause(std::chrono::milliseconds(500))) progress_->tick();
}

awaitable<void> LocalRun::drive() {
    bool all = std::ranges::any_of(work_, [](OcrWork const& work) { return work.todo == Todo::Everything; });
    // A model or engine that is missing is said once, before the first page.
    std::vector<OcrStep> needed;
    if (all) needed = plan_.chain;
    for (auto const& step : needed) {
        auto loaded = co_await pool_.load(step.processor, step.parameters);
        if (stopping_) break;
        if (!loaded) {
            stopped_by_ = loaded.error();
            break;
        }
    }
    if (!stopped_by_ && !stopping_) {
        for (auto const& work : work_)
            if (!work.why.empty() && stderr_is_terminal() && !options_.quiet) fmt::print(stderr, "{}: again, as {}\n", work.page.shown, work.why);
        progress_.emplace(work_.size(), stderr_is_terminal(), options_.quiet);
        TaskGroup pages(io_.get_executor(), "ocr");
        auto const workers = std::min(pool_.size(), work_.size());
        for (std::size_t i = 0; i < workers; ++i) pages.spawn("pages", take_pages());
        tasks_.spawn("progress", keep_drawing());
        co_await pages.join();
        progress_.reset();
    }
    boost::system::error_code ignored;
    signals_.cancel(ignored);
    tasks_.cancel();
}

int LocalRun::run() {
    auto const failed = [&](Error const& error) {
        fmt::print(stderr, "ocrctl ocr: {}\n", error.message());
        return error.exit_code();
    };
    std::error_code error;
    if (fs::exists(home_, error) && !fs::is_directory(home_, error)) return failed(Error(ErrorKind::Usage, fmt::format("{} is no folder", options_.out.native())));
    if (auto made = make_folder(state() / "pages"); !made) return failed(made.error());
    auto lock = ledger::LockFile::take(state() / "lock", "ocr -o " + options_.out.native());
    if (!lock) return failed(lock.error().during(fmt::format("another run writes to {}", options_.out.native())));
    auto record = OcrRecord::open(state());
    if (!record) return failed(record.error());
    record_.emplace(std::move(*record));
    chain_ = plan_.chain_json();
    models_ = model_digests(plan_.models());
    auto decided = decide_work(options_, plan_, chain_, models_, *record_, summary_);
    if (!decided) return failed(decided.error());
    work_ = std::move(*decided);
    if (!work_.empty()) {
        tasks_.spawn("signals", wait_for_signal());
        std::exception_ptr problem;
        bool driven = false;
        asio::co_spawn(io_, drive(), [&](std::exception_ptr p) {
            problem = p;
            driven = true;
        });
        while (!driven && io_.run_one() > 0) {}
        pool_.kill();
        io_.run_for(std::chrono::seconds(5)); // until the engines are reaped
        digests_.join();
        for (auto const& base : under_way_) {
            // Stopped in the middle: its files are not vouched for.
            auto const* before = record_->find(base);
            if (before == nullptr || !before->done) remove_tree(folder_of(base));
            else remove_tree(folder_of(base) / "results");
        }
        if (problem) std::rethrow_exception(problem);
        if (stopped_by_) return failed(*stopped_by_);
    }
    return report(options_, summary_);
}

} // namespace

int ocr_local(OcrOptions const& options, OcrPlan plan) { return LocalRun(options, std::move(plan)).run(); }

} // namespace ocrctl
