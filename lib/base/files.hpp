// Files, whole. Nothing here is asynchronous: call it from a thread that may block.
#pragma once

#include "lib/base/error.hpp"

#include <filesystem>
#include <string>
#include <string_view>

namespace ocrctl {

/// Owns a descriptor.
class Fd {
public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(other.release()) {}
    Fd& operator=(Fd&& other) noexcept;
    ~Fd();
    int get() const noexcept { return fd_; }
    int release() noexcept;
    void close() noexcept;
    explicit operator bool() const noexcept { return fd_ >= 0; }

private:
    int fd_ = -1;
};

Result<std::string> read_file(std::filesystem::path const& file);

/// Temporary name beside it, written, flushed, renamed, folder flushed: the file is the old one or the new one.
/// On an error the temporary file is removed and the old file is untouched.
Result<void> write_file_atomically(std::filesystem::path const& file, std::string_view content, int mode = 0644);

/// Makes a folder and its parents; an existing folder is success. `mode` goes to the last one.
Result<void> make_folder(std::filesystem::path const& folder, int mode = 0755);

/// Flushes a folder's entries to disk, so that renames in it survive a power cut.
Result<void> flush_folder(std::filesystem::path const& folder);

/// The path with symlinks and dots resolved: the key of a Workspace everywhere. NotFound if it does not exist.
Result<std::filesystem::path> canonical_path(std::filesystem::path const& path);

std::string sha256_hex(std::string_view content);
/// Streams the file; NotFound, Denied as errno says.
Result<std::string> sha256_of_file(std::filesystem::path const& file);

/// Removes a folder tree; what is not there is success.
void remove_tree(std::filesystem::path const& path) noexcept;

} // namespace ocrctl
