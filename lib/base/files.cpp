#include "lib/base/files.hpp"

#include "lib/base/clock.hpp"
#include "lib/base/ids.hpp"

#include <array>
#include <cerrno>
#include <ctime>
#include <fcntl.h>
#include <memory>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ocrctl {
namespace fs = std::filesystem;

Fd& Fd::operator=(Fd&& other) noexcept {
    if (this != &other) {
        close();
        fd_ = other.release();
    }
    return *this;
}

Fd::~Fd() { close(); }

int Fd::release() noexcept {
    int fd = fd_;
    fd_ = -1;
    return fd;
}

void Fd::close() noexcept {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
}

Result<std::string> read_file(fs::path const& file) {
    Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return fail(errno_error(errno, fmt::format("read {}", file.string())));
    std::string content;
    struct stat info {};
    if (fstat(fd.get(), &info) == 0 && info.st_size > 0) content.reserve(static_cast<std::size_t>(info.st_size));
    std::array<char, 1 << 16> buffer;
    for (;;) {
        auto got = ::read(fd.get(), buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail(errno_error(errno, fmt::format("read {}", file.string())));
        if (got == 0) return content;
        content.append(buffer.data(), static_cast<std::size_t>(got));
    }
}

Result<void> write_file_atomically(fs::path const& file, std::string_view content, int mode) {
    auto temporary = file.parent_path() / fmt::format(".{}.{}.tmp", file.filename().string(), random_hex(6));
    auto action = fmt::format("write {}", file.string());
    auto give_up = [&](int error_number) -> std::unexpected<Error> {
        ::unlink(temporary.c_str());
        return fail(errno_error(error_number, action));
    };
    Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, static_cast<mode_t>(mode)));
    if (!fd) return fail(errno_error(errno, action));
    while (!content.empty()) {
        auto put = ::write(fd.get(), content.data(), content.size());
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return give_up(errno);
        content.remove_prefix(static_cast<std::size_t>(put));
    }
    if (::fchmod(fd.get(), static_cast<mode_t>(mode)) != 0) return give_up(errno); // the umask does not decide here
    if (::fsync(fd.get()) != 0) return give_up(errno);
    if (::rename(temporary.c_str(), file.c_str()) != 0) return give_up(errno);
    return flush_folder(file.parent_path());
}

Result<void> make_folder(fs::path const& folder, int mode) {
    std::error_code error;
    if (fs::is_directory(folder, error)) return {};
    for (int tries = 0;; ++tries) {
        if (folder.has_parent_path() && folder.parent_path() != folder) {
            auto parent = make_folder(folder.parent_path(), 0755);
            if (!parent) return parent;
        }
        if (::mkdir(folder.c_str(), static_cast<mode_t>(mode)) == 0 || errno == EEXIST) return {};
        // Somebody else may remove the parent meanwhile, because it is empty.
        if (errno != ENOENT || tries == 10) return fail(errno_error(errno, fmt::format("make folder {}", folder.string())));
    }
}

Result<void> flush_folder(fs::path const& folder) {
    auto const& name = folder.empty() ? fs::path(".") : folder;
    Fd fd(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return fail(errno_error(errno, fmt::format("open folder {}", name.string())));
    if (::fsync(fd.get()) != 0 && errno != EINVAL)
        return fail(errno_error(errno, fmt::format("flush folder {}", name.string())));
    return {};
}

Result<fs::path> canonical_path(fs::path const& path) {
    std::error_code error;
    auto resolved = fs::canonical(path, error);
    if (error) return fail(errno_error(error.value(), path.string()));
    return resolved;
}

namespace {

struct DigestFree {
    void operator()(EVP_MD_CTX* context) const noexcept { EVP_MD_CTX_free(context); }
};

std::string hex(unsigned char const* bytes, unsigned size) {
    static constexpr char kHex[] = "0123456789abcdef";
    std::string text;
    for (unsigned i = 0; i < size; ++i) {
        text += kHex[bytes[i] >> 4];
        text += kHex[bytes[i] & 15];
    }
    return text;
}

} // namespace

std::string sha256_hex(std::string_view content) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
    unsigned size = 0;
    OCRCTL_CHECK(EVP_Digest(content.data(), content.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1);
    return hex(digest.data(), size);
}

Result<std::string> sha256_of_file(fs::path const& file) {
    Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return fail(errno_error(errno, fmt::format("read {}", file.string())));
    std::unique_ptr<EVP_MD_CTX, DigestFree> context(EVP_MD_CTX_new());
    OCRCTL_CHECK(EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
    std::array<char, 1 << 16> buffer;
    for (;;) {
        auto got = ::read(fd.get(), buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail(errno_error(errno, fmt::format("read {}", file.string())));
        if (got == 0) break;
        EVP_DigestUpdate(context.get(), buffer.data(), static_cast<std::size_t>(got));
    }
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
    unsigned size = 0;
    EVP_DigestFinal_ex(context.get(), digest.data(), &size);
    return hex(digest.data(), size);
}

void remove_tree(fs::path const& path) noexcept {
    std::error_code error;
    fs::remove_all(path, error);
}

std::string format_time(Millis instant) {
    auto seconds = static_cast<std::time_t>(instant / 1000);
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1,
                       parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, instant % 1000);
}

} // namespace ocrctl
