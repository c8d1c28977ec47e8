#include "lib/store/sqlite.hpp"

#include "lib/async/on_thread.hpp"
#include "lib/base/files.hpp"
#include "lib/store/group_writer.hpp"

#include <functional>
#include <mutex>
#include <sqlite3.h>
#include <unordered_map>

namespace ocrctl::store {
namespace {

constexpr int kSchema = 1;
constexpr int kApplicationId = 0x6f637263; // "ocrc"

constexpr char kTables[] = R"sql(
CREATE TABLE ocrctl_jobs(
  id TEXT PRIMARY KEY, state INTEGER NOT NULL, processor TEXT NOT NULL, workflow TEXT,
  created INTEGER NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL);
CREATE INDEX ocrctl_jobs_state ON ocrctl_jobs(state, created);
CREATE INDEX ocrctl_jobs_workflow ON ocrctl_jobs(workflow, processor, state) WHERE workflow IS NOT NULL;
CREATE TABLE ocrctl_outcomes(
  job TEXT NOT NULL, shard INTEGER NOT NULL, attempt INTEGER NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY(job, shard, attempt)) WITHOUT ROWID;
CREATE TABLE ocrctl_callbacks(job TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE ocrctl_workflows(id TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE TABLE ocrctl_scripts(id TEXT PRIMARY KEY, hash TEXT NOT NULL, content TEXT NOT NULL);
CREATE INDEX ocrctl_scripts_hash ON ocrctl_scripts(hash);
CREATE TABLE ocrctl_values(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
)sql";

struct SqliteFree {
    void operator()(sqlite3* db) const noexcept { sqlite3_close_v2(db); }
    void operator()(sqlite3_stmt* statement) const noexcept { sqlite3_finalize(statement); }
};
using Database = std::unique_ptr<sqlite3, SqliteFree>;
using StatementPtr = std::unique_ptr<sqlite3_stmt, SqliteFree>;

ErrorKind kind_of(int code) {
    switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return ErrorKind::Invalid;
    case SQLITE_PERM:
    case SQLITE_AUTH: return ErrorKind::Denied;
    case SQLITE_FULL:
    case SQLITE_READONLY:
    case SQLITE_IOERR:
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_CANTOPEN:
    case SQLITE_NOMEM: return ErrorKind::Unavailable;
    default: return ErrorKind::Internal;
    }
}

Error db_error(sqlite3* db, std::string_view action) {
    return Error(kind_of(sqlite3_extended_errcode(db)), fmt::format("{}: {}", action, sqlite3_errmsg(db)));
}

/// A connection with its prepared statements. One thread at a time.
class Connection {
public:
    static Result<Connection> open(std::filesystem::path const& file, bool writer) {
        sqlite3* raw = nullptr;
        int flags = SQLITE_OPEN_NOMUTEX | (writer ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READWRITE);
        int code = sqlite3_open_v2(file.c_str(), &raw, flags, nullptr);
        Connection c;
        c.db_.reset(raw);
        if (code != SQLITE_OK)
            return fail(kind_of(code), "open the store {}: {}", file.native(), raw != nullptr ? sqlite3_errmsg(raw) : sqlite3_errstr(code));
        sqlite3_busy_timeout(raw, 10'000);
        for (auto const* pragma : {"PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA cache_size=-32768"})
            if (auto done = c.execute(pragma); !done) return fail(done.error().during("open the store " + file.native()));
        if (!writer)
            if (auto done = c.execute("PRAGMA query_only=1"); !done) return std::unexpected(done.error());
        return c;
    }

    Result<void> execute(char const* sql) {
        if (sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr) != SQLITE_OK) return fail(db_error(db_.get(), "store"));
        return {};
    }

    /// Prepared once per text; the texts are literals.
    Result<sqlite3_stmt*> prepare(char const* sql) {
        auto& slot = statements_[sql];
        if (!slot) {
            sqlite3_stmt* statement = nullptr;
            if (sqlite3_prepare_v3(db_.get(), sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK)
                return fail(db_error(db_.get(), "store"));
            slot.reset(statement);
        }
        return slot.get();
    }

    sqlite3* get() const noexcept { return db_.get(); }

private:
    Database db_;
    std::unordered_map<char const*, StatementPtr> statements_; // after db_: finalised before it is closed
};

/// One use of a prepared statement: bound, stepped, and reset when it leaves scope.
class Query {
public:
    Query(Connection& connection, char const* sql) : connection_(connection) {
        auto statement = connection.prepare(sql);
        if (statement) statement_ = *statement;
        else error_ = statement.error();
    }
    ~Query() {
        if (statement_ != nullptr) {
            sqlite3_reset(statement_);
            sqlite3_clear_bindings(statement_);
        }
    }
    Query(Query const&) = delete;
    Query& operator=(Query const&) = delete;

    /// The text lives until the query ends.
    Query& bind(std::string_view text) {
        if (statement_ != nullptr) sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()), SQLITE_STATIC);
        return *this;
    }
    Query& bind(std::int64_t number) {
        if (statement_ != nullptr) sqlite3_bind_int64(statement_, ++bound_, number);
        return *this;
    }
    Query& null() {
        ++bound_;
        return *this;
    }

    /// True: there is a row.
    Result<bool> step() {
        if (statement_ == nullptr) return fail(error_);
        int code = sqlite3_step(statement_);
        if (code == SQLITE_ROW) return true;
        if (code == SQLITE_DONE) return false;
        return fail(db_error(connection_.get(), "store"));
    }
    Result<void> run() {
        auto row = step();
        if (!row) return std::unexpected(row.error());
        return {};
    }

    std::string_view text(int column) const {
        auto const* data = reinterpret_cast<char const*>(sqlite3_column_text(statement_, column));
        return data == nullptr ? std::string_view{} : std::string_view(data, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
    }
    std::int64_t number(int column) const { return sqlite3_column_int64(statement_, column); }

private:
    Connection& connection_;
    sqlite3_stmt* statement_ = nullptr;
    Error error_;
    int bound_ = 0;
};

JobState state_of(std::int64_t number) {
    return number >= 0 && number <= static_cast<int>(JobState::Cancelled) ? static_cast<JobState>(number) : JobState::Unset;
}
std::int64_t number_of(JobState state) { return static_cast<int>(state); }

// Columns: state, spec, status.
Result<Job> read_job(Query const& row) {
    auto job = json_to<Job>(row.text(1));
    if (!job) return fail(job.error().during("read a Job from the store"));
    auto status = parse_json(row.text(2));
    if (!status) return fail(status.error().during("read a Job from the store"));
    try {
        apply_status(*status, *job);
    } catch (Json::exception const& problem) {
        return fail(ErrorKind::Invalid, "read Job {} from the store: {}", job->id.str(), problem.what());
    }
    job->state = state_of(row.number(0));
    return job;
}

struct Writer {
    Connection& connection;

    Result<void> operator()(Batch::PutJob const& change) const {
        auto const& job = change.job;
        auto spec = dump(Json(job));
        auto status = dump(status_json(job));
        Query q(connection, "INSERT INTO ocrctl_jobs(id,state,processor,workflow,created,spec,status) VALUES(?,?,?,?,?,?,?) "
                            "ON CONFLICT(id) DO UPDATE SET state=excluded.state,processor=excluded.processor,"
                            "workflow=excluded.workflow,created=excluded.created,spec=excluded.spec,status=excluded.status");
        q.bind(job.id.str()).bind(number_of(job.state)).bind(job.target.name);
        if (job.workflow.empty()) q.null();
        else q.bind(job.workflow.str());
        return q.bind(job.created).bind(spec).bind(status).run();
    }
    Result<void> operator()(Batch::UpdateJob const& change) const {
        Query q(connection, "UPDATE ocrctl_jobs SET state=?,status=? WHERE id=?");
        return q.bind(number_of(change.state)).bind(change.status).bind(change.id.str()).run();
    }
    Result<void> operator()(Workflow const& workflow) const {
        auto doc = dump(Json(workflow));
        Query q(connection, "INSERT INTO ocrctl_workflows(id,doc) VALUES(?,?) ON CONFLICT(id) DO UPDATE SET doc=excluded.doc");
        return q.bind(workflow.id.str()).bind(doc).run();
    }
    Result<void> operator()(Batch::PutScript const& change) const {
        auto const& script = change.script;
        if (change.only_new) {
            Query q(connection, "SELECT id FROM ocrctl_scripts WHERE hash=? AND id<>? LIMIT 1");
            auto row = q.bind(script.content_hash).bind(script.id).step();
            if (!row) return std::unexpected(row.error());
            if (*row) return fail(ErrorKind::Conflict, "the same workflow script exists already with id {}", q.text(0));
        }
        Query q(connection, "INSERT INTO ocrctl_scripts(id,hash,content) VALUES(?,?,?) "
                            "ON CONFLICT(id) DO UPDATE SET hash=excluded.hash,content=excluded.content");
        return q.bind(script.id).bind(script.content_hash).bind(script.content).run();
    }
    Result<void> operator()(Batch::PutOutcome const& change) const {
        auto doc = dump(Json(change.result));
        Query q(connection, "INSERT INTO ocrctl_outcomes(job,shard,attempt,doc) VALUES(?,?,?,?) "
                            "ON CONFLICT(job,shard,attempt) DO UPDATE SET doc=excluded.doc");
        return q.bind(change.result.job.str()).bind(std::int64_t{change.result.shard}).bind(std::int64_t{change.result.attempt}).bind(doc).run();
    }
    Result<void> operator()(Batch::DropOutcomes const& change) const {
        Query q(connection, "DELETE FROM ocrctl_outcomes WHERE job=? AND attempt<=?");
        return q.bind(change.job.str()).bind(std::int64_t{change.attempt}).run();
    }
    Result<void> operator()(Batch::PutCallback const& change) const {
        Query q(connection, "INSERT OR IGNORE INTO ocrctl_callbacks(job) VALUES(?)");
        return q.bind(change.job.str()).run();
    }
    Result<void> operator()(Batch::DropCallback const& change) const {
        Query q(connection, "DELETE FROM ocrctl_callbacks WHERE job=?");
        return q.bind(change.job.str()).run();
    }
    Result<void> operator()(Batch::SetValue const& change) const {
        Query q(connection, "INSERT INTO ocrctl_values(key,value) VALUES(?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value");
        return q.bind(change.key).bind(change.value).run();
    }
};

Result<void> check_schema(Connection& connection, std::filesystem::path const& file) {
    std::int64_t version = 0, application = 0, tables = 0;
    {
        Query q(connection, "SELECT user_version, (SELECT application_id FROM pragma_application_id), "
                            "(SELECT count(*) FROM sqlite_master) FROM pragma_user_version");
        auto row = q.step();
        if (!row) return fail(row.error().during("the store " + file.native() + " is damaged or no database"));
        version = q.number(0);
        application = q.number(1);
        tables = q.number(2);
    }
    if (tables == 0 && version == 0) {
        auto sql = fmt::format("BEGIN IMMEDIATE;{}PRAGMA application_id={};PRAGMA user_version={};COMMIT", kTables, kApplicationId, kSchema);
        return connection.execute(sql.c_str());
    }
    if (application != kApplicationId)
        return fail(ErrorKind::Invalid, "{} is a database of another program, not an ocrctl store", file.native());
    if (version > kSchema)
        return fail(ErrorKind::Invalid, "the store {} was written by a newer ocrctl (its format is {}, this program knows {}); use that version", file.native(), version, kSchema);
    std::error_code ignored;
    if (std::filesystem::file_size(file, ignored) <= (256u << 20)) {
        Query q(connection, "PRAGMA quick_check(1)");
        auto row = q.step();
        if (!row) return fail(row.error().during("the store " + file.native() + " is damaged"));
        if (*row && q.text(0) != "ok")
            return fail(ErrorKind::Invalid, "the store {} is damaged ({}); restore it from a copy, or move it away to begin anew", file.native(), q.text(0));
    }
    return {};
}

class SqliteStore final : public Store {
public:
    SqliteStore(Connection writer, std::vector<Connection> readers)
        : writer_(std::move(writer)), pool_(readers.size()), readers_(std::move(readers)),
          group_writer_([this](std::vector<GroupWriter::Request>& group) { commit(group); }) {
        for (auto& reader : readers_) free_readers_.push_back(&reader);
    }

    ~SqliteStore() override { close(); }

    void close() override {
        group_writer_.close();
        pool_.join();
    }

    awaitable<Result<void>> write(Batch batch) override { return group_writer_.write(std::move(batch)); }
    void post(Batch batch) override { group_writer_.post(std::move(batch)); }

    awaitable<Result<std::optional<Job>>> job(JobId id) override {
        return read([id](Connection& c) -> Result<std::optional<Job>> { return find_job(c, id); });
    }

    awaitable<Result<std::vector<Job>>> jobs(std::vector<JobId> ids) override {
        return read([ids = std::move(ids)](Connection& c) -> Result<std::vector<Job>> {
            std::vector<Job> found;
            for (auto const& id : ids) {
                auto job = find_job(c, id);
                if (!job) return std::unexpected(job.error());
                if (*job) found.push_back(std::move(**job));
            }
            return found;
        });
    }

    awaitable<Result<std::vector<Job>>> open_jobs() override {
        return read([](Connection& c) {
            Query q(c, "SELECT state,spec,status FROM ocrctl_jobs WHERE state IN (1,2,3) ORDER BY rowid");
            return collect(q);
        });
    }

    awaitable<Result<std::vector<Job>>> jobs_in(std::optional<JobState> state, std::size_t limit) override {
        return read([state, limit](Connection& c) {
            if (!state) {
                Query q(c, "SELECT state,spec,status FROM ocrctl_jobs ORDER BY rowid DESC LIMIT ?");
                q.bind(static_cast<std::int64_t>(limit));
                return collect(q);
            }
            Query q(c, "SELECT state,spec,status FROM ocrctl_jobs WHERE state=? ORDER BY created DESC LIMIT ?");
            q.bind(number_of(*state)).bind(static_cast<std::int64_t>(limit));
            return collect(q);
        });
    }

    awaitable<Result<std::map<JobState, std::size_t>>> counts() override {
        return read([](Connection& c) -> Result<std::map<JobState, std::size_t>> {
            std::map<JobState, std::size_t> counts;
            Query q(c, "SELECT state, count(*) FROM ocrctl_jobs GROUP BY state");
            for (;;) {
                auto row = q.step();
                if (!row) return std::unexpected(row.error());
                if (!*row) return counts;
                counts[state_of(q.number(0))] = static_cast<std::size_t>(q.number(1));
            }
        });
    }

    awaitable<Result<std::vector<TaskResult>>> outcomes() override {
        return read([](Connection& c) -> Result<std::vector<TaskResult>> {
            std::vector<TaskResult> found;
            Query q(c, "SELECT doc FROM ocrctl_outcomes ORDER BY job, attempt, shard");
            for (;;) {
                auto row = q.step();
                if (!row) return std::unexpected(row.error());
                if (!*row) return found;
                auto result = json_to<TaskResult>(q.text(0));
                if (!result) return fail(result.error().during("read an outcome from the store"));
                found.push_back(std::move(*result));
            }
        });
    }

    awaitable<Result<std::vector<Job>>> callbacks() override {
        return read([](Connection& c) {
            Query q(c, "SELECT state,spec,status FROM ocrctl_jobs WHERE id IN (SELECT job FROM ocrctl_callbacks)");
            return collect(q);
        });
    }

    awaitable<Result<std::optional<Workflow>>> workflow(WorkflowId id) override {
        return read([id](Connection& c) -> Result<std::optional<Workflow>> {
            Query q(c, "SELECT doc FROM ocrctl_workflows WHERE id=?");
            auto row = q.bind(id.str()).step();
            if (!row) return std::unexpected(row.error());
            if (!*row) return std::optional<Workflow>{};
            auto found = json_to<Workflow>(q.text(0));
            if (!found) return fail(found.error().during("read a workflow from the store"));
            return std::optional<Workflow>(std::move(*found));
        });
    }

    awaitable<Result<std::vector<StateCount>>> workflow_counts(WorkflowId id) override {
        return read([id](Connection& c) -> Result<std::vector<StateCount>> {
            std::vector<StateCount> found;
            Query q(c, "SELECT processor, state, count(*) FROM ocrctl_jobs WHERE workflow=? GROUP BY processor, state");
            q.bind(id.str());
            for (;;) {
                auto row = q.step();
                if (!row) return std::unexpected(row.error());
                if (!*row) return found;
                found.push_back(StateCount{std::string(q.text(0)), state_of(q.number(1)), static_cast<std::size_t>(q.number(2))});
            }
        });
    }

    awaitable<Result<std::vector<Job>>> workflow_failures(WorkflowId id) override {
        return read([id](Connection& c) {
            Query q(c, "SELECT state,spec,status FROM ocrctl_jobs WHERE workflow=? AND state=5 ORDER BY id");
            q.bind(id.str());
            return collect(q);
        });
    }

    awaitable<Result<std::optional<WorkflowScript>>> script(std::string id) override {
        return read([id](Connection& c) -> Result<std::optional<WorkflowScript>> {
            Query q(c, "SELECT content, hash FROM ocrctl_scripts WHERE id=?");
            auto row = q.bind(id).step();
            if (!row) return std::unexpected(row.error());
            if (!*row) return std::optional<WorkflowScript>{};
            return std::optional<WorkflowScript>(WorkflowScript{id, std::string(q.text(0)), std::string(q.text(1))});
        });
    }

    awaitable<Result<std::optional<std::string>>> value(std::string key) override {
        return read([key](Connection& c) -> Result<std::optional<std::string>> {
            Query q(c, "SELECT value FROM ocrctl_values WHERE key=?");
            auto row = q.bind(key).step();
            if (!row) return std::unexpected(row.error());
            if (!*row) return std::optional<std::string>{};
            return std::optional<std::string>(std::string(q.text(0)));
        });
    }

private:
    static Result<std::optional<Job>> find_job(Connection& c, JobId const& id) {
        Query q(c, "SELECT state,spec,status FROM ocrctl_jobs WHERE id=?");
        auto row = q.bind(id.str()).step();
        if (!row) return std::unexpected(row.error());
        if (!*row) return std::optional<Job>{};
        auto job = read_job(q);
        if (!job) return std::unexpected(job.error());
        return std::optional<Job>(std::move(*job));
    }

    static Result<std::vector<Job>> collect(Query& q) {
        std::vector<Job> found;
        for (;;) {
            auto row = q.step();
            if (!row) return std::unexpected(row.error());
            if (!*row) return found;
            auto job = read_job(q);
            if (!job) return std::unexpected(job.error());
            found.push_back(std::move(*job));
        }
    }

    // There are as many connections as pool threads, so one is always free.
    template <class Work>
    auto read(Work work) -> std::decay_t<decltype(on_thread(std::declval<asio::thread_pool&>(), std::declval<std::function<std::invoke_result_t<Work&, Connection&>()>>()))> {
        std::function<std::invoke_result_t<Work&, Connection&>()> job = [this, work = std::move(work)]() mutable {
            auto* connection = [this] {
                std::lock_guard lock(readers_mutex_);
                OCRCTL_CHECK(!free_readers_.empty());
                auto* last = free_readers_.back();
                free_readers_.pop_back();
                return last;
            }();
            auto result = work(*connection);
            std::lock_guard lock(readers_mutex_);
            free_readers_.push_back(connection);
            return result;
        };
        return on_thread(pool_, std::move(job));
    }

    // Together if it goes; alone, one after the other, if one of them spoils it.
    void commit(std::vector<GroupWriter::Request>& group) {
        if (group.size() > 1 && transact(group.begin(), group.end())) return;
        for (auto request = group.begin(); request != group.end(); ++request) {
            if (auto done = transact(request, request + 1); !done) request->result = fail(done.error().during("write to the store"));
        }
    }

    template <class Iterator>
    Result<void> transact(Iterator begin, Iterator end) {
        auto result = writer_.execute("BEGIN IMMEDIATE");
        if (!result) return result;
        for (auto request = begin; request != end && result; ++request)
            for (auto const& change : request->batch.changes()) {
                result = std::visit(Writer{writer_}, change);
                if (!result) break;
            }
        if (result) result = writer_.execute("COMMIT");
        if (!result && sqlite3_get_autocommit(writer_.get()) == 0) (void)writer_.execute("ROLLBACK");
        return result;
    }

    Connection writer_; // the writer thread's
    asio::thread_pool pool_;
    std::mutex readers_mutex_;
    std::vector<Connection> readers_;
    std::vector<Connection*> free_readers_;
    GroupWriter group_writer_; // last: its thread uses the others
};

} // namespace

Result<std::unique_ptr<Store>> open_sqlite(SqliteOptions options) {
    if (auto made = make_folder(options.file.parent_path(), 0700); !made) return std::unexpected(made.error());
    auto writer = Connection::open(options.file, true);
    if (!writer) return std::unexpected(writer.error());
    if (auto checked = check_schema(*writer, options.file); !checked) return std::unexpected(checked.error());
    std::vector<Connection> readers;
    for (int i = 0; i < std::max(1, options.readers); ++i) {
        auto reader = Connection::open(options.file, false);
        if (!reader) return std::unexpected(reader.error());
        readers.push_back(std::move(*reader));
    }
    return std::make_unique<SqliteStore>(std::move(*writer), std::move(readers));
}

} // namespace ocrctl::store
