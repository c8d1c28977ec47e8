// The append-only record of everything we started: one central Ledger per deployment, one on each host. JSON lines,
// each on disk before append() returns, so that whoever comes after a crash knows what may be running.
#pragma once

#include "lib/base/clock.hpp"
#include "lib/base/files.hpp"
#include "lib/model/json.hpp"
#include "lib/process/process.hpp"

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace ocrctl::ledger {

/// One line. Make it with the functions below.
struct Record {
    Millis t = 0;          // set by append()
    std::string op;        // intent identity ready exited stopped closing host path secret
    std::string entry, kind, host;
    Json spec;             // intent: argv, ports, sockets, folders; never secrets
    process::Identity identity;
    std::string status;    // exited: how
    Json config;           // host: how to reach it
    std::string path, name; // path: what to remove; secret: its name
};
void to_json(Json& json, Record const& record);
void from_json(Json const& json, Record& record);

Record intent(std::string entry, std::string kind, std::string host, Json spec);
Record identity(std::string entry, process::Identity identity);
Record ready(std::string entry);
Record exited(std::string entry, std::string status);
Record stopped(std::string entry);
Record closing();
Record host(std::string host, Json config);
Record path(std::string entry, std::string path);
Record secret(std::string name);

/// What the lines say about one entry.
struct Entry {
    std::string entry, kind, host;
    Json spec;
    bool intent = false;                       // a start was begun
    std::optional<process::Identity> identity; // and got this far; kept after its exit
    bool ready = false, exited = false, stopped = false;
    std::string status;                        // of the last exit
    std::vector<std::string> paths;            // to remove once it is gone
    Millis since = 0;                          // of the last line
    /// May something of it be running? Intent without identity counts.
    bool open() const noexcept { return intent && !stopped; }
};

struct LedgerState {
    bool closing = false;
    std::map<std::string, Entry> entries;
    std::vector<std::string> order;      // entries by their first intent
    std::map<std::string, Json> hosts;   // host name -> config
    std::vector<std::string> secrets;
    std::vector<std::string> paths;      // path records without entry
    std::size_t unreadable = 0;          // torn or foreign lines, skipped
    Entry const* find(std::string_view entry) const;
};

/// Owns the open file. Thread-safe, and safe against other processes that append to the same file (flock).
class Ledger {
public:
    /// Creates the file (0600) and its folder if need be.
    static Result<Ledger> open(std::filesystem::path file);

    /// On disk when it returns. On an error (disk full) the file is as before.
    Result<void> append(Record record);
    /// Several lines with one flush.
    Result<void> append(std::vector<Record> records);

    /// All lines so far, also those of other processes.
    Result<LedgerState> replay() const;

    std::filesystem::path const& file() const noexcept { return file_; }

private:
    Ledger(std::filesystem::path file, Fd fd);
    std::filesystem::path file_;
    Fd fd_;
    std::unique_ptr<std::mutex> mutex_;
};

/// Reads a Ledger without opening it for writing; a missing file is an empty Ledger.
Result<LedgerState> replay(std::filesystem::path const& file);

} // namespace ocrctl::ledger
