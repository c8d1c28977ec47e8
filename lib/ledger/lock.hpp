// A lock file with the name of its holder in it: two deploys at once, two agents on one host folder. The kernel lets
// go of it when its holder ends, however it ends.
#pragma once

#include "lib/base/clock.hpp"
#include "lib/base/files.hpp"
#include "lib/process/process.hpp"

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

namespace ocrctl::ledger {

struct LockHolder {
    process::Identity identity;
    std::string user, command; // "deploy config.yml"
    Millis since = 0;
};

/// Owns the lock until destroyed. Not inherited by children.
class LockFile {
public:
    /// Conflict if somebody has it: "pid 4711 (deploy config.yml) of user anna has it since 2026-...".
    static Result<LockFile> take(std::filesystem::path const& file, std::string command);
    /// Ends the holder by its identity (TERM, `grace`, KILL), then takes it. Blocks.
    static Result<LockFile> take_over(std::filesystem::path const& file, std::string command,
                                      std::chrono::milliseconds grace = std::chrono::seconds(5));
    LockFile(LockFile&&) = default;
    LockFile& operator=(LockFile&&) = default;
    ~LockFile();

private:
    explicit LockFile(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
};

/// Who has it now; nothing if nobody does.
std::optional<LockHolder> lock_holder(std::filesystem::path const& file);

} // namespace ocrctl::ledger
