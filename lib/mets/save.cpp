// The way back to disk: what is known of the tree as it is, under a temporary name, flushed, renamed.
#include "lib/mets/document.hpp"

#include "lib/base/files.hpp"

#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <unistd.h>

namespace ocrctl::mets {

namespace {

struct StringWriter final : pugi::xml_writer {
    std::string text;
    void write(void const* data, std::size_t size) override { text.append(static_cast<char const*>(data), size); }
};

std::string serialise(pugi::xml_document& document, bool had_declaration) {
    StringWriter out;
    if (!had_declaration) out.text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    // Node by node: white space between them is not kept by the parser, and raw output would glue them together.
    for (auto node : document.children()) {
        if (node.type() == pugi::node_declaration && node.attribute("encoding")) node.attribute("encoding").set_value("UTF-8");
        node.print(out, "", pugi::format_raw, pugi::encoding_utf8);
        out.text += '\n';
    }
    return std::move(out.text);
}

std::unexpected<Error> not_saved(std::filesystem::path const& file, std::filesystem::path const& folder, int error_number) {
    switch (error_number) {
    case EACCES:
    case EPERM:
        return fail(ErrorKind::Denied, "cannot save {}: no permission to write in {}; the old METS is untouched", file.native(), folder.native());
    case EROFS:
        return fail(ErrorKind::Denied, "cannot save {}: {} is read-only; the old METS is untouched", file.native(), folder.native());
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return fail(ErrorKind::Unavailable, "cannot save {}: no space left for it in {}; the old METS is untouched", file.native(), folder.native());
    default:
        return fail(errno_error(error_number, "save " + file.native()).kind(), "cannot save {}: {}; the old METS is untouched", file.native(),
                    std::generic_category().message(error_number));
    }
}

} // namespace

bool Mets::changed_on_disk() const {
    struct stat now {};
    // Through symlinks: one that leads elsewhere now is a change too.
    return ::stat(impl_->file.c_str(), &now) != 0 || stamp_of(now) != impl_->stamp;
}

Result<void> Mets::save() {
    if (!impl_->changed) return {};
    auto const& file = impl_->file;
    auto const folder = impl_->target.parent_path();
    auto conflict = [&] {
        return fail(ErrorKind::Conflict, "{} was changed by somebody else since it was read: nothing is written", file.native());
    };
    if (changed_on_disk()) return conflict();

    auto const content = serialise(impl_->document, impl_->had_declaration);
    struct stat old {};
    if (::stat(impl_->target.c_str(), &old) != 0) return conflict();

    auto const temporary = (folder / fmt::format(".{}.{}.tmp", impl_->target.filename().native(), random_hex(6))).native();
    Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) return not_saved(file, folder, errno);
    auto abandon = [&](int error_number) {
        fd.close();
        ::unlink(temporary.c_str());
        return not_saved(file, folder, error_number);
    };
    for (std::size_t done = 0; done < content.size();) {
        auto const n = ::write(fd.get(), content.data() + done, content.size() - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return abandon(errno);
        done += static_cast<std::size_t>(n);
    }
    // The owner first: changing it clears bits of the mode. Who may not give files away keeps at least the group.
    if ((old.st_uid != ::geteuid() || old.st_gid != ::getegid()) && ::fchown(fd.get(), old.st_uid, old.st_gid) != 0)
        (void)!::fchown(fd.get(), static_cast<uid_t>(-1), old.st_gid);
    if (::fchmod(fd.get(), old.st_mode & 07777) != 0) return abandon(errno);
    if (::fsync(fd.get()) != 0) return abandon(errno);
    struct stat written {};
    if (::fstat(fd.get(), &written) != 0) return abandon(errno);
    if (changed_on_disk()) { // while we wrote
        fd.close();
        ::unlink(temporary.c_str());
        return conflict();
    }
    if (::rename(temporary.c_str(), impl_->target.c_str()) != 0) return abandon(errno);
    impl_->stamp = stamp_of(written);
    impl_->changed = false;
    return flush_folder(folder);
}

} // namespace ocrctl::mets
