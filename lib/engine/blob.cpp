#include "lib/engine/blob.hpp"

#include "lib/base/files.hpp"

#include <cstdlib>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

extern "C" {
[[gnu::weak]] extern char const ocrctl_engine_blob_begin[];
[[gnu::weak]] extern char const ocrctl_engine_blob_end[];
}

namespace ocrctl::engine {

Result<std::filesystem::path> engine_program(std::filesystem::path const& wanted) {
    if (!wanted.empty()) return wanted;
    if (auto* named = std::getenv("OCRCTL_ENGINE"); named && *named) return named;
    char const* begin = ocrctl_engine_blob_begin;
    char const* end = ocrctl_engine_blob_end;
    if (!begin || end <= begin)
        return fail(ErrorKind::Unavailable, "this program has no OCR engine inside: set OCRCTL_ENGINE to the ocrctl-engine program");
    static std::mutex mutex;
    static Fd file; // lives as long as the process: engines are started from it again and again
    std::lock_guard lock(mutex);
    if (!file) {
        Fd made(::memfd_create("ocrctl-engine", MFD_CLOEXEC));
        if (!made) return fail(errno_error(errno, "make a memory file for the engine"));
        for (auto* at = begin; at < end;) {
            auto put = ::write(made.get(), at, static_cast<std::size_t>(end - at));
            if (put <= 0) return fail(errno_error(errno, "copy the engine into memory"));
            at += put;
        }
        file = std::move(made);
    }
    // Through our own entry in /proc: the child's descriptors are closed by then.
    return fmt::format("/proc/{}/fd/{}", ::getpid(), file.get());
}

} // namespace ocrctl::engine
