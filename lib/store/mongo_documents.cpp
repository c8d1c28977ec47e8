#include "lib/async/on_thread.hpp"
#include "lib/base/ids.hpp"
#include "lib/log/fields.hpp"
#include "lib/log/log.hpp"
#include "lib/store/mongo_store.hpp"

namespace ocrctl::store {
namespace {

using Kind = MongoWrite::Kind;

constexpr char kJobs[] = "DBProcessorJob", kWorkflows[] = "DBWorkflowJob", kScripts[] = "DBWorkflowScript", kWorkspaces[] = "workspace";

std::optional<std::string> if_any(std::string const& text) { return text.empty() ? std::nullopt : std::optional(text); }

std::vector<std::string> strings(std::vector<JobId> const& ids) {
    std::vector<std::string> texts;
    for (auto const& id : ids) texts.push_back(id.str());
    return texts;
}

Bson filter_of(std::string_view key, std::string_view value) {
    Bson filter;
    filter.text(key, value);
    return filter;
}

// In the order in which OCR-D's models name their fields; what is absent is null.
Result<Bson> row_of(Job const& job) {
    Bson row;
    row.text("job_id", job.id.str()).text("processor_name", job.target.name).text_or_null("path_to_mets", if_any(job.path_to_mets)).null("workspace_id");
    row.text_or_null("description", if_any(job.description)).text("state", wire(JobState::Queued)).texts("input_file_grps", job.input_groups);
    if (job.output_groups.empty()) row.null("output_file_grps");
    else row.texts("output_file_grps", job.output_groups);
    row.text_or_null("page_id", job.page_id);
    if (!row.json("parameters", job.parameters.is_object() ? job.parameters : Json::object()))
        return fail(ErrorKind::Invalid, "the parameters of Job {} cannot be stored in MongoDB: a key with a NUL in it, or nested too deep", job.id.str());
    // A workflow's first task has an empty list, a Job that was submitted without any has none.
    if (job.depends_on.empty() && job.workflow.empty()) row.null("depends_on");
    else row.texts("depends_on", strings(job.depends_on));
    row.text_or_null("result_queue_name", if_any(job.result_queue_name)).text_or_null("callback_url", if_any(job.callback_url));
    row.text_or_null("internal_callback_url", if_any(job.internal_callback_url)).null("start_time").null("end_time").null("exec_time").null("log_file_path");
    return row;
}

class MongoDocuments final : public OcrdDocuments {
public:
    MongoDocuments(std::shared_ptr<MongoConnection> connection, bool unique) : connection_(std::move(connection)), unique_(unique) {}
    ~MongoDocuments() override {
        writer_.join();
        reader_.join();
    }

    awaitable<Result<void>> put_workspace(std::string path_to_mets, std::string mets_server_url) override {
        return on_writer([path = std::move(path_to_mets), url = std::move(mets_server_url)](MongoConnection& c) -> Result<void> {
            // Upserts of the same path by several at once could both insert: there is one writer, so look, then write.
            auto found = c.find(kWorkspaces, {.filter = filter_of("workspace_mets_path", path), .limit = 1});
            if (!found) return std::unexpected(found.error());
            std::vector<MongoWrite> writes(1);
            auto server = if_any(url);
            if (!found->empty()) {
                if (found->front().text("mets_server_url") == server && found->front().text("workspace_id")) return {};
                Bson fields, update;
                fields.text_or_null("mets_server_url", server);
                update.document("$set", fields);
                writes[0] = {Kind::Update, filter_of("workspace_mets_path", path), std::move(update)};
            } else {
                auto& row = writes[0].document;
                row.text("workspace_id", new_uuid()).text("workspace_mets_path", path).text("ocrd_identifier", "").text("bagit_profile_identifier", "");
                row.null("ocrd_base_version_checksum").null("ocrd_mets").null("bag_info_adds").text_or_null("mets_server_url", server).flag("deleted", false);
            }
            return all_of(c.write(kWorkspaces, writes, true));
        });
    }

    awaitable<Result<std::optional<std::string>>> path_of_workspace(std::string workspace_id) override {
        return on_reader([id = std::move(workspace_id)](MongoConnection& c) -> Result<std::optional<std::string>> {
            auto found = c.find(kWorkspaces, {.filter = filter_of("workspace_id", id), .limit = 1});
            if (!found) return std::unexpected(found.error());
            if (found->empty()) return std::optional<std::string>{};
            return found->front().text("workspace_mets_path");
        });
    }

    awaitable<Result<void>> put_jobs(std::vector<Job> jobs) override {
        return on_writer([jobs = std::move(jobs), unique = unique_](MongoConnection& c) -> Result<void> {
            std::vector<MongoWrite> inserts, replaces;
            std::vector<std::size_t> inserted;
            auto replace = [&](Job const& job, Bson row) { replaces.push_back({Kind::ReplaceOrInsert, filter_of("job_id", job.id.str()), std::move(row)}); };
            for (std::size_t i = 0; i < jobs.size(); ++i) {
                auto row = row_of(jobs[i]);
                if (!row) return std::unexpected(row.error());
                if (jobs[i].attempt > 1 || !unique) {
                    replace(jobs[i], std::move(*row));
                } else {
                    inserted.push_back(i);
                    inserts.push_back({Kind::Insert, {}, std::move(*row)});
                }
            }
            auto done = c.write(kJobs, inserts, false);
            if (!done) return std::unexpected(done.error());
            for (auto const& problem : *done) {
                if (problem.error.kind() != ErrorKind::Conflict) return fail(problem.error);
                auto const& job = jobs[inserted[problem.index]];
                replace(job, std::move(*row_of(job)));
            }
            return all_of(c.write(kJobs, replaces, true));
        });
    }

    awaitable<Result<void>> set_state(JobId id, JobState state) override {
        return on_writer([id, state](MongoConnection& c) -> Result<void> {
            Bson fields, update;
            fields.text("state", wire(state));
            update.document("$set", fields);
            std::vector<MongoWrite> writes;
            writes.push_back({Kind::Update, filter_of("job_id", id.str()), std::move(update)});
            return all_of(c.write(kJobs, writes, true));
        });
    }

    awaitable<Result<std::vector<OcrdJobRow>>> jobs(std::vector<JobId> ids) override {
        return on_reader([ids = std::move(ids)](MongoConnection& c) -> Result<std::vector<OcrdJobRow>> {
            std::vector<OcrdJobRow> rows;
            if (ids.empty()) return rows;
            MongoQuery query;
            if (ids.size() == 1) {
                query.filter.text("job_id", ids.front().str());
            } else {
                Bson among;
                among.texts("$in", strings(ids));
                query.filter.document("job_id", among);
            }
            auto found = c.find(kJobs, query);
            if (!found) return std::unexpected(found.error());
            for (auto const& row : *found)
                rows.push_back(OcrdJobRow{JobId(row.text("job_id").value_or("")), job_state(row.text("state").value_or("")).value_or(JobState::Unset),
                                          row.text("log_file_path").value_or(""), row.date("start_time").value_or(0), row.date("end_time").value_or(0),
                                          row.text("exec_time").value_or("")});
            return rows;
        });
    }

    awaitable<Result<void>> put_workflow(Workflow workflow) override {
        return on_writer([workflow = std::move(workflow)](MongoConnection& c) -> Result<void> {
            Bson jobs, row;
            for (auto const& [page, ids] : workflow.jobs) jobs.texts(page, strings(ids));
            row.text("job_id", workflow.id.str()).text("page_id", workflow.page_id).flag("page_wise", workflow.page_wise).document("processing_job_ids", jobs);
            row.text("path_to_mets", workflow.path_to_mets).null("workspace_id").null("description").text_or_null("workflow_callback_url", if_any(workflow.callback_url));
            return put(c, kWorkflows, "job_id", workflow.id.str(), std::move(row));
        });
    }

    awaitable<Result<void>> put_script(WorkflowScript script) override {
        return on_writer([script = std::move(script)](MongoConnection& c) -> Result<void> {
            Bson row;
            row.text("workflow_id", script.id).text("content", script.content).text("content_hash", script.content_hash);
            return put(c, kScripts, "workflow_id", script.id, std::move(row));
        });
    }

private:
    static Result<void> all_of(Result<std::vector<MongoProblem>> done) {
        if (!done) return std::unexpected(done.error());
        if (!done->empty()) return fail(done->front().error);
        return {};
    }

    static Result<void> put(MongoConnection& c, char const* collection, std::string_view key, std::string_view id, Bson row) {
        std::vector<MongoWrite> writes;
        writes.push_back({Kind::ReplaceOrInsert, filter_of(key, id), std::move(row)});
        return all_of(c.write(collection, writes, true));
    }

    // What was cut off is done once more: everything here may be.
    auto on_writer(std::function<Result<void>(MongoConnection&)> work) -> awaitable<Result<void>> {
        std::function<Result<void>()> job = [this, work = std::move(work)] {
            auto done = work(*connection_);
            if (!done && done.error().kind() == ErrorKind::Unavailable) done = work(*connection_);
            return done;
        };
        return on_thread(writer_, std::move(job));
    }
    template <class Work>
    auto on_reader(Work work) -> awaitable<std::invoke_result_t<Work&, MongoConnection&>> {
        std::function<std::invoke_result_t<Work&, MongoConnection&>()> job = [this, work = std::move(work)]() mutable { return work(*connection_); };
        return on_thread(reader_, std::move(job));
    }

    std::shared_ptr<MongoConnection> connection_;
    bool unique_; // job_id has its index: a second row of a Job is refused
    asio::thread_pool writer_{1}, reader_{1};
};

} // namespace

Result<std::unique_ptr<OcrdDocuments>> make_ocrd_documents(std::shared_ptr<MongoConnection> connection) {
    log::Logger log("store");
    auto unique = true;
    // Rows that somebody else wrote may be there twice; then the index is not a unique one.
    for (auto [collection, key] : {std::pair{kJobs, "job_id"}, {kWorkflows, "job_id"}, {kScripts, "workflow_id"}}) {
        auto made = make_index(*connection, collection, {{key, 1}}, true);
        if (made) continue;
        if (made.error().kind() == ErrorKind::Unavailable || made.error().kind() == ErrorKind::Denied) return std::unexpected(made.error());
        log.warn("mongo.no-unique-index", log::kv("collection", collection), log::kv(log::field::kError, made.error().message()));
        if (std::string_view(collection) == kJobs) unique = false;
        if (auto plain = make_index(*connection, collection, {{key, 1}}); !plain) return std::unexpected(plain.error());
    }
    for (auto const* key : {"workspace_mets_path", "workspace_id"})
        if (auto made = make_index(*connection, kWorkspaces, {{key, 1}}); !made) return std::unexpected(made.error());
    return std::make_unique<MongoDocuments>(std::move(connection), unique);
}

} // namespace ocrctl::store
