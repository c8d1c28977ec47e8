#include "lib/store/mongo_store.hpp"

#include "lib/async/on_thread.hpp"
#include "lib/log/fields.hpp"
#include "lib/store/group_writer.hpp"

#include <algorithm>
#include <unordered_set>

namespace ocrctl::store {
namespace {

namespace field = log::field;
using log::kv;
using Kind = MongoWrite::Kind;
using Steady = std::chrono::steady_clock;

constexpr std::int64_t kFormat = 1;
constexpr char kJobs[] = "ocrctl_jobs", kOutcomes[] = "ocrctl_outcomes", kCallbacks[] = "ocrctl_callbacks", kWorkflows[] = "ocrctl_workflows",
               kScripts[] = "ocrctl_scripts", kValues[] = "ocrctl_values", kMeta[] = "ocrctl_meta";
constexpr int kTries = 3;                // of a write whose end is unknown
constexpr std::size_t kIdsAtOnce = 5'000; // in one question

/// What one command does: the place of a change's type in Batch::Change. Changes of one type go together.
using Lane = std::size_t;
template <class T>
constexpr Lane lane_of() {
    return []<class... All>(std::variant<All...>*) {
        Lane at = 0;
        (void)((std::is_same_v<T, All> ? true : (++at, false)) || ...);
        return at;
    }(static_cast<Batch::Change*>(nullptr));
}

// Changes with the same key are made in their order.
struct KeyOf {
    std::string operator()(Batch::PutJob const& change) const { return "j" + change.job.id.str(); }
    std::string operator()(Batch::UpdateJob const& change) const { return "j" + change.id.str(); }
    std::string operator()(Workflow const& change) const { return "w" + change.id.str(); }
    std::string operator()(Batch::PutScript const&) const { return "s"; } // their hashes are compared
    std::string operator()(Batch::PutOutcome const& change) const { return "o" + change.result.job.str(); }
    std::string operator()(Batch::DropOutcomes const& change) const { return "o" + change.job.str(); }
    std::string operator()(Batch::PutCallback const& change) const { return "c" + change.job.str(); }
    std::string operator()(Batch::DropCallback const& change) const { return "c" + change.job.str(); }
    std::string operator()(Batch::SetValue const& change) const { return "v" + change.key; }
};

Bson with_id(std::string_view id) {
    Bson filter;
    filter.text("_id", id);
    return filter;
}
Bson set(Bson const& fields) {
    Bson update;
    update.document("$set", fields);
    return update;
}
Bson condition(std::string_view key, std::string_view operation, std::int64_t value) {
    Bson inner, filter;
    inner.number(operation, value);
    filter.document(key, inner);
    return filter;
}
Bson one_of(std::string_view key, std::span<std::string const> values) {
    Bson inner, filter;
    inner.texts("$in", values);
    filter.document(key, inner);
    return filter;
}
Bson sorted(std::string_view key, int direction) {
    Bson order;
    order.number(key, direction);
    return order;
}

/// A change as writes: the first one, and what is done instead if the document exists already.
struct Planned {
    MongoWrite write;
    std::optional<MongoWrite> if_there;
};

struct Plan {
    std::int64_t seq;

    Planned operator()(Batch::PutJob const& change) const {
        auto const& job = change.job;
        auto fields = [&](Bson& doc) {
            doc.text("state", wire(job.state)).text("processor", job.target.name);
            if (!job.workflow.empty()) doc.text("workflow", job.workflow.str());
            doc.long_number("created", job.created).text("spec", dump(Json(job))).text("status", dump(status_json(job)));
        };
        Planned planned;
        planned.write.document.text("_id", job.id.str()).long_number("seq", seq);
        fields(planned.write.document);
        // Written again after a failure, everything from the first that failed on is: its new place keeps that order.
        Bson changed;
        changed.long_number("seq", seq);
        fields(changed);
        planned.if_there = MongoWrite{Kind::Update, with_id(job.id.str()), set(changed)};
        return planned;
    }
    Planned operator()(Batch::UpdateJob const& change) const {
        Bson changed;
        changed.text("state", wire(change.state)).text("status", change.status);
        return {{Kind::Update, with_id(change.id.str()), set(changed)}, std::nullopt};
    }
    Planned operator()(Workflow const& workflow) const {
        auto doc = dump(Json(workflow));
        Planned planned;
        planned.write.document.text("_id", workflow.id.str()).long_number("seq", seq).text("doc", doc);
        Bson changed;
        changed.text("doc", doc);
        planned.if_there = MongoWrite{Kind::Update, with_id(workflow.id.str()), set(changed)};
        return planned;
    }
    Planned operator()(Batch::PutScript const& change) const {
        auto const& script = change.script;
        Planned planned;
        planned.write.document.text("_id", script.id).text("hash", script.content_hash).text("content", script.content);
        Bson changed;
        changed.text("hash", script.content_hash).text("content", script.content);
        planned.if_there = MongoWrite{Kind::Update, with_id(script.id), set(changed)};
        return planned;
    }
    Planned operator()(Batch::PutOutcome const& change) const {
        auto const& result = change.result;
        auto id = fmt::format("{}/{}/{}", result.job.str(), result.attempt, result.shard);
        auto doc = dump(Json(result));
        Planned planned;
        planned.write.document.text("_id", id).text("job", result.job.str()).number("attempt", result.attempt).number("shard", result.shard).text("doc", doc);
        Bson changed;
        changed.text("doc", doc);
        planned.if_there = MongoWrite{Kind::Update, with_id(id), set(changed)};
        return planned;
    }
    Planned operator()(Batch::DropOutcomes const& change) const {
        auto filter = condition("attempt", "$lte", change.attempt);
        filter.text("job", change.job.str());
        return {{Kind::Remove, std::move(filter), {}}, std::nullopt};
    }
    Planned operator()(Batch::PutCallback const& change) const { return {{Kind::Insert, {}, with_id(change.job.str())}, std::nullopt}; }
    Planned operator()(Batch::DropCallback const& change) const { return {{Kind::Remove, with_id(change.job.str()), {}}, std::nullopt}; }
    Planned operator()(Batch::SetValue const& change) const {
        Bson changed;
        changed.text("value", change.value);
        return {{Kind::UpdateOrInsert, with_id(change.key), set(changed)}, std::nullopt};
    }
};

char const* collection_of(Lane lane) {
    if (lane == lane_of<Batch::PutJob>() || lane == lane_of<Batch::UpdateJob>()) return kJobs;
    if (lane == lane_of<Workflow>()) return kWorkflows;
    if (lane == lane_of<Batch::PutScript>()) return kScripts;
    if (lane == lane_of<Batch::PutOutcome>() || lane == lane_of<Batch::DropOutcomes>()) return kOutcomes;
    if (lane == lane_of<Batch::SetValue>()) return kValues;
    return kCallbacks;
}

template <class T>
Result<T> read_json(Bson const& document, std::string_view key) {
    auto text = document.text(key).value_or("");
    return json_to<T>(std::string_view(text));
}

Result<Job> read_job(Bson const& document) {
    auto job = read_json<Job>(document, "spec");
    if (!job) return fail(job.error().during("read a Job from the store"));
    auto status = parse_json(document.text("status").value_or(""));
    if (!status) return fail(status.error().during("read a Job from the store"));
    try {
        apply_status(*status, *job);
    } catch (Json::exception const& problem) {
        return fail(ErrorKind::Invalid, "read Job {} from the store: {}", job->id.str(), problem.what());
    }
    job->state = job_state(document.text("state").value_or("")).value_or(JobState::Unset);
    return job;
}

Result<std::vector<Job>> read_jobs(Result<std::vector<Bson>> const& documents) {
    if (!documents) return std::unexpected(documents.error());
    std::vector<Job> found;
    for (auto const& document : *documents) {
        auto job = read_job(document);
        if (!job) return std::unexpected(job.error());
        found.push_back(std::move(*job));
    }
    return found;
}

Result<std::optional<Bson>> first_of(Result<std::vector<Bson>> documents) {
    if (!documents) return std::unexpected(documents.error());
    if (documents->empty()) return std::optional<Bson>{};
    return std::optional<Bson>(std::move(documents->front()));
}

class MongoStore final : public Store {
public:
    MongoStore(std::shared_ptr<MongoConnection> connection, std::int64_t next_seq, int readers, std::chrono::milliseconds patience)
        : connection_(std::move(connection)), patience_(patience), next_seq_(next_seq), pool_(static_cast<std::size_t>(std::max(1, readers))),
          group_writer_([this](std::vector<GroupWriter::Request>& group) { commit(group); }) {}
    ~MongoStore() override { close(); }

    void close() override {
        group_writer_.close();
        pool_.join();
    }

    awaitable<Result<void>> write(Batch batch) override { return group_writer_.write(std::move(batch)); }
    void post(Batch batch) override { group_writer_.post(std::move(batch)); }

    awaitable<Result<std::optional<Job>>> job(JobId id) override {
        return read([id](MongoConnection& c) -> Result<std::optional<Job>> {
            auto document = first_of(c.find(kJobs, {.filter = with_id(id.str())}));
            if (!document) return std::unexpected(document.error());
            if (!*document) return std::optional<Job>{};
            auto job = read_job(**document);
            if (!job) return std::unexpected(job.error());
            return std::optional<Job>(std::move(*job));
        });
    }

    awaitable<Result<std::vector<Job>>> jobs(std::vector<JobId> ids) override {
        return read([ids = std::move(ids)](MongoConnection& c) { return jobs_of(c, ids); });
    }

    awaitable<Result<std::vector<Job>>> open_jobs() override {
        return read([](MongoConnection& c) {
            std::vector<std::string> open;
            for (auto state : {JobState::Cached, JobState::Queued, JobState::Running}) open.emplace_back(wire(state));
            return read_jobs(c.find(kJobs, {.filter = one_of("state", open), .sort = sorted("seq", 1)}));
        });
    }

    awaitable<Result<std::vector<Job>>> jobs_in(std::optional<JobState> state, std::size_t limit) override {
        return read([state, limit](MongoConnection& c) -> Result<std::vector<Job>> {
            if (limit == 0) return std::vector<Job>{};
            MongoQuery query{.sort = sorted("seq", -1), .limit = static_cast<std::int64_t>(limit)};
            if (state) query.filter.text("state", wire(*state));
            return read_jobs(c.find(kJobs, query));
        });
    }

    awaitable<Result<std::map<JobState, std::size_t>>> counts() override {
        return read([](MongoConnection& c) -> Result<std::map<JobState, std::size_t>> {
            std::map<JobState, std::size_t> counts;
            for (auto state : {JobState::Cached, JobState::Queued, JobState::Running, JobState::Success, JobState::Failed, JobState::Cancelled}) {
                Bson filter;
                filter.text("state", wire(state));
                auto n = c.count(kJobs, filter);
                if (!n) return std::unexpected(n.error());
                if (*n > 0) counts[state] = static_cast<std::size_t>(*n);
            }
            return counts;
        });
    }

    awaitable<Result<std::vector<TaskResult>>> outcomes() override {
        return read([](MongoConnection& c) -> Result<std::vector<TaskResult>> {
            auto documents = c.find(kOutcomes, {});
            if (!documents) return std::unexpected(documents.error());
            std::vector<TaskResult> found;
            for (auto const& document : *documents) {
                auto result = read_json<TaskResult>(document, "doc");
                if (!result) return fail(result.error().during("read an outcome from the store"));
                found.push_back(std::move(*result));
            }
            std::ranges::sort(found, {}, [](TaskResult const& r) { return std::tuple(r.job.str(), r.attempt, r.shard); });
            return found;
        });
    }

    awaitable<Result<std::vector<Job>>> callbacks() override {
        return read([](MongoConnection& c) -> Result<std::vector<Job>> {
            auto documents = c.find(kCallbacks, {});
            if (!documents) return std::unexpected(documents.error());
            std::vector<JobId> ids;
            for (auto const& document : *documents) ids.emplace_back(document.text("_id").value_or(""));
            return jobs_of(c, ids);
        });
    }

    awaitable<Result<std::optional<Workflow>>> workflow(WorkflowId id) override {
        return read([id](MongoConnection& c) -> Result<std::optional<Workflow>> {
            auto document = first_of(c.find(kWorkflows, {.filter = with_id(id.str())}));
            if (!document) return std::unexpected(document.error());
            if (!*document) return std::optional<Workflow>{};
            auto found = read_json<Workflow>(**document, "doc");
            if (!found) return fail(found.error().during("read a workflow from the store"));
            return std::optional<Workflow>(std::move(*found));
        });
    }

    awaitable<Result<std::vector<StateCount>>> workflow_counts(WorkflowId id) override {
        return read([id](MongoConnection& c) -> Result<std::vector<StateCount>> {
            // Counted here: the index answers it without a document, and not every stand-in groups by two fields.
            Bson filter, fields;
            filter.text("workflow", id.str());
            fields.number("_id", 0).number("processor", 1).number("state", 1);
            auto documents = c.find(kJobs, {.filter = std::move(filter), .fields = std::move(fields)});
            if (!documents) return std::unexpected(documents.error());
            std::map<std::pair<std::string, JobState>, std::size_t> counted;
            for (auto const& document : *documents)
                ++counted[{document.text("processor").value_or(""), job_state(document.text("state").value_or("")).value_or(JobState::Unset)}];
            std::vector<StateCount> found;
            for (auto const& [key, count] : counted) found.push_back(StateCount{key.first, key.second, count});
            return found;
        });
    }

    awaitable<Result<std::vector<Job>>> workflow_failures(WorkflowId id) override {
        return read([id](MongoConnection& c) {
            MongoQuery query{.sort = sorted("_id", 1)};
            query.filter.text("workflow", id.str()).text("state", wire(JobState::Failed));
            return read_jobs(c.find(kJobs, query));
        });
    }

    awaitable<Result<std::optional<WorkflowScript>>> script(std::string id) override {
        return read([id](MongoConnection& c) -> Result<std::optional<WorkflowScript>> {
            auto document = first_of(c.find(kScripts, {.filter = with_id(id)}));
            if (!document) return std::unexpected(document.error());
            if (!*document) return std::optional<WorkflowScript>{};
            return std::optional<WorkflowScript>(WorkflowScript{id, (*document)->text("content").value_or(""), (*document)->text("hash").value_or("")});
        });
    }

    awaitable<Result<std::optional<std::string>>> value(std::string key) override {
        return read([key](MongoConnection& c) -> Result<std::optional<std::string>> {
            auto document = first_of(c.find(kValues, {.filter = with_id(key)}));
            if (!document) return std::unexpected(document.error());
            if (!*document) return std::optional<std::string>{};
            return (*document)->text("value");
        });
    }

private:
    using Request = GroupWriter::Request;

    /// A change on its way, of one request.
    struct Item {
        Request* request;
        Planned planned;
    };
    /// A Job or Workflow that may have been written by a batch that was reported as failed.
    struct Doubtful {
        char const* collection;
        std::string id;
        std::int64_t seq;
    };

    static Result<std::vector<Job>> jobs_of(MongoConnection& c, std::vector<JobId> const& ids) {
        std::vector<Job> found;
        for (std::size_t at = 0; at < ids.size(); at += kIdsAtOnce) {
            std::vector<std::string> some;
            for (auto i = at; i < std::min(ids.size(), at + kIdsAtOnce); ++i) some.push_back(ids[i].str());
            MongoQuery query;
            query.filter = some.size() == 1 ? with_id(some.front()) : one_of("_id", some);
            auto jobs = read_jobs(c.find(kJobs, query));
            if (!jobs) return jobs;
            std::ranges::move(*jobs, std::back_inserter(found));
        }
        return found;
    }

    template <class Work>
    auto read(Work work) -> awaitable<std::invoke_result_t<Work&, MongoConnection&>> {
        std::function<std::invoke_result_t<Work&, MongoConnection&>()> job = [this, work = std::move(work)]() mutable { return work(*connection_); };
        return on_thread(pool_, std::move(job));
    }

    /// Not the fault of this request: the same again later.
    static std::unexpected<Error> unavailable(Error const& error) { return fail(ErrorKind::Unavailable, "{}", error.during("write to the store").message()); }

    // What is the same type goes into one command, as long as each batch's changes and each document's keep their order.
    void commit(std::vector<Request>& group) {
        if (auto cleared = remove_doubtful(); !cleared) {
            for (auto& request : group) request.result = unavailable(cleared.error());
            return went_wrong(cleared.error());
        }
        struct Pending {
            Request* request;
            std::vector<std::string> keys;
            std::size_t next = 0;
        };
        std::vector<Pending> pending;
        for (auto& request : group) {
            Pending one{&request, {}, 0};
            for (auto const& change : request.batch.changes()) one.keys.push_back(std::visit(KeyOf{}, change));
            pending.push_back(std::move(one));
        }
        std::optional<Error> trouble;
        while (!pending.empty() && !trouble) {
            auto const lane = pending.front().request->batch.changes()[pending.front().next].index();
            std::unordered_set<std::string> waiting; // keys that have an earlier change in another lane
            std::vector<Item> items;
            for (auto& one : pending) {
                auto const& changes = one.request->batch.changes();
                while (one.next < changes.size() && changes[one.next].index() == lane && !waiting.contains(one.keys[one.next]))
                    items.push_back(plan(one.request, changes[one.next++]));
                waiting.insert(one.keys.begin() + static_cast<std::ptrdiff_t>(one.next), one.keys.end());
            }
            if (auto done = run(lane, items); !done) trouble = done.error();
            std::erase_if(pending, [&](Pending const& one) {
                // In trouble those that had no part in it stay: they are reported below, unless they are complete.
                auto complete = one.next == one.request->batch.size();
                if (trouble) return complete && std::ranges::none_of(items, [&](Item const& item) { return item.request == one.request; });
                return complete || !one.request->result;
            });
        }
        if (trouble)
            for (auto& one : pending)
                if (one.request->result) one.request->result = unavailable(*trouble);
        for (auto const& request : group)
            if (!request.result) doubt(request);
        seqs_.clear();
        if (trouble) return went_wrong(*trouble);
        went_well();
        (void)remove_doubtful(); // else before the next write
    }

    Item plan(Request* request, Batch::Change const& change) {
        auto seq = next_seq_++;
        if (auto const* put = std::get_if<Batch::PutJob>(&change)) seqs_.push_back({kJobs, put->job.id.str(), seq});
        if (auto const* put = std::get_if<Workflow>(&change)) seqs_.push_back({kWorkflows, put->id.str(), seq});
        return Item{request, std::visit(Plan{seq}, change)};
    }

    void doubt(Request const& request) {
        std::unordered_set<std::string> ids;
        for (auto const& change : request.batch.changes()) {
            if (auto const* put = std::get_if<Batch::PutJob>(&change)) ids.insert(put->job.id.str());
            if (auto const* put = std::get_if<Workflow>(&change)) ids.insert(put->id.str());
        }
        for (auto const& one : seqs_)
            if (ids.contains(one.id)) doubtful_.push_back(one);
    }

    Result<void> remove_doubtful() {
        for (auto const* collection : {kJobs, kWorkflows}) {
            std::vector<MongoWrite> writes;
            for (auto const& one : doubtful_) {
                if (one.collection != collection) continue;
                auto filter = with_id(one.id);
                filter.long_number("seq", one.seq);
                writes.push_back(MongoWrite{Kind::Remove, std::move(filter), {}});
            }
            if (auto done = connection_->write(collection, writes, false); !done) return std::unexpected(done.error());
        }
        doubtful_.clear();
        return {};
    }

    // An error: the end of it is unknown, or the server is away. Refused changes spoil their own request only.
    Result<void> run(Lane lane, std::vector<Item>& items) {
        if (lane == lane_of<Batch::PutScript>() && items.size() > 1) { // each is compared with those before it
            for (auto& item : items) {
                std::vector<Item> one;
                one.push_back(std::move(item));
                if (auto done = run(lane, one); !done) return done;
            }
            return {};
        }
        if (lane == lane_of<Batch::PutScript>())
            if (auto done = check_script(items.front()); !done) return done;
        std::erase_if(items, [](Item const& item) { return !item.request->result; });
        auto inserts = !items.empty() && items.front().planned.write.kind == Kind::Insert;
        auto removes = !items.empty() && items.front().planned.write.kind == Kind::Remove;
        std::vector<MongoWrite> writes;
        std::vector<std::size_t> owners(items.size());
        for (std::size_t i = 0; i < items.size(); ++i) {
            writes.push_back(std::move(items[i].planned.write));
            owners[i] = i;
        }
        std::vector<MongoWrite> instead;
        std::vector<std::size_t> instead_owners;
        auto refused = [&](std::size_t owner, Error const& error) {
            auto& item = items[owner];
            if (inserts && error.kind() == ErrorKind::Conflict) {
                if (item.planned.if_there) {
                    instead.push_back(std::move(*item.planned.if_there));
                    instead_owners.push_back(owner);
                }
            } else if (item.request->result) item.request->result = fail(error.during("write to the store"));
        };
        if (auto done = execute(collection_of(lane), std::move(writes), owners, !inserts && !removes, refused); !done) return done;
        if (instead.empty()) return {};
        inserts = false;
        return execute(collection_of(lane), std::move(instead), instead_owners, true, refused);
    }

    template <class Refused>
    Result<void> execute(char const* collection, std::vector<MongoWrite> writes, std::vector<std::size_t> owners, bool ordered, Refused const& refused) {
        while (!writes.empty()) {
            auto done = write_surely(collection, writes, ordered);
            if (!done && (done.error().kind() == ErrorKind::Invalid || done.error().kind() == ErrorKind::Internal)) {
                // Refused as a whole: whose fault it is shows when they go one by one.
                if (writes.size() == 1) {
                    refused(owners.front(), done.error());
                    return {};
                }
                for (std::size_t i = 0; i < writes.size(); ++i) {
                    std::vector<MongoWrite> one;
                    one.push_back(std::move(writes[i]));
                    if (auto alone = execute(collection, std::move(one), {owners[i]}, ordered, refused); !alone) return alone;
                }
                return {};
            }
            if (!done) return std::unexpected(done.error());
            for (auto const& problem : *done) refused(owners.at(problem.index), problem.error);
            if (!ordered || done->empty()) return {};
            auto rest = static_cast<std::ptrdiff_t>(done->front().index) + 1;
            writes.erase(writes.begin(), writes.begin() + rest);
            owners.erase(owners.begin(), owners.begin() + rest);
        }
        return {};
    }

    // Repeated until its end is known, for a while: everything we write may be written again.
    Result<std::vector<MongoProblem>> write_surely(char const* collection, std::vector<MongoWrite> const& writes, bool ordered) {
        auto limit = Steady::now() + patience_;
        for (int tries = 1;; ++tries) {
            auto done = connection_->write(collection, writes, ordered);
            if (done || done.error().kind() != ErrorKind::Unavailable || tries == kTries || down_since_ || Steady::now() > limit) return done;
        }
    }

    // Only this thread writes, so what is looked up stays true.
    Result<void> check_script(Item& item) {
        auto const& change = item.request->batch.changes();
        for (auto const& one : change) {
            auto const* put = std::get_if<Batch::PutScript>(&one);
            if (put == nullptr || !put->only_new || item.planned.write.document.text("_id") != put->script.id) continue;
            Bson filter;
            filter.text("hash", put->script.content_hash);
            auto found = connection_->find(kScripts, {.filter = std::move(filter)});
            if (!found) return std::unexpected(found.error());
            for (auto const& other : *found)
                if (auto id = other.text("_id"); id && *id != put->script.id) {
                    item.request->result = fail(ErrorKind::Conflict, "the same workflow script exists already with id {}", *id);
                    return {};
                }
        }
        return {};
    }

    void went_well() {
        if (!down_since_) return;
        auto after = std::chrono::duration_cast<std::chrono::milliseconds>(Steady::now() - *down_since_);
        log_.info("mongo.back", kv(field::kAddress, connection_->place()), kv(field::kAfterMs, after.count()));
        down_since_.reset();
    }
    void went_wrong(Error const& error) {
        if (down_since_) return;
        down_since_ = Steady::now();
        log_.error("mongo.lost", kv(field::kError, error.message()));
    }

    log::Logger log_{"store"};
    std::shared_ptr<MongoConnection> connection_;
    std::chrono::milliseconds patience_;
    // The writer thread's:
    std::int64_t next_seq_;
    std::vector<Doubtful> seqs_, doubtful_; // of this group; of failed ones
    std::optional<Steady::time_point> down_since_;
    asio::thread_pool pool_;
    GroupWriter group_writer_; // last: its thread uses the others
};

// The deployment's name beside the format: a database has one owner.
Result<void> take_possession(MongoConnection& connection, std::string const& deployment) {
    auto found = first_of(connection.find(kMeta, {.filter = with_id("store")}));
    if (!found) return std::unexpected(found.error());
    if (!*found) {
        std::vector<MongoWrite> writes(1);
        writes[0].document.text("_id", "store").number("format", kFormat).text("deployment", deployment);
        auto written = connection.write(kMeta, writes, true);
        if (!written) return std::unexpected(written.error());
        if (!written->empty() && written->front().error.kind() != ErrorKind::Conflict) return fail(written->front().error);
        return {};
    }
    if (auto format = (*found)->number("format").value_or(0); format > kFormat)
        return fail(ErrorKind::Invalid, "the store in MongoDB at {} was written by a newer ocrctl (its format is {}, this program knows {}); use that version", connection.place(), format, kFormat);
    auto owner = (*found)->text("deployment").value_or("");
    if (!deployment.empty() && !owner.empty() && owner != deployment)
        return fail(ErrorKind::Conflict, "MongoDB at {} holds the store of the deployment \"{}\"; give \"{}\" a database of its own", connection.place(), owner, deployment);
    return {};
}

} // namespace

Result<void> make_index(MongoConnection& connection, std::string_view collection, std::initializer_list<std::pair<std::string_view, int>> keys, bool unique) {
    Bson key, index, list, command;
    std::string name;
    for (auto const& [field, direction] : keys) {
        key.number(field, direction);
        name += fmt::format("{}{}_{}", name.empty() ? "" : "_", field, direction);
    }
    index.document("key", key).text("name", name);
    if (unique) index.flag("unique", true);
    list.document("0", index);
    command.text("createIndexes", collection).array("indexes", list);
    auto made = connection.command(command);
    if (!made) return fail(made.error().during(fmt::format("make the index {} of {}", name, collection)));
    return {};
}

Result<std::unique_ptr<Store>> make_mongo_store(std::shared_ptr<MongoConnection> connection, std::string const& deployment, int readers, std::chrono::milliseconds patience) {
    if (auto mine = take_possession(*connection, deployment); !mine) return std::unexpected(mine.error());
    if (auto made = make_index(*connection, kJobs, {{"state", 1}, {"seq", 1}}); !made) return std::unexpected(made.error());
    if (auto made = make_index(*connection, kJobs, {{"seq", 1}}); !made) return std::unexpected(made.error());
    if (auto made = make_index(*connection, kJobs, {{"workflow", 1}, {"processor", 1}, {"state", 1}}); !made) return std::unexpected(made.error());
    if (auto made = make_index(*connection, kOutcomes, {{"job", 1}}); !made) return std::unexpected(made.error());
    if (auto made = make_index(*connection, kScripts, {{"hash", 1}}); !made) return std::unexpected(made.error());
    Bson only_seq;
    only_seq.number("seq", 1);
    auto newest = first_of(connection->find(kJobs, {.sort = sorted("seq", -1), .fields = std::move(only_seq), .limit = 1}));
    if (!newest) return std::unexpected(newest.error());
    auto last = *newest ? (*newest)->number("seq").value_or(0) : 0;
    return std::make_unique<MongoStore>(std::move(connection), last + 1, readers, patience);
}

} // namespace ocrctl::store
