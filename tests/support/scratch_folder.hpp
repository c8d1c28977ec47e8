// A temporary folder for one test, with small helpers.
#pragma once

#include "lib/base/files.hpp"

#include <cstdlib>
#include <filesystem>
#include <string>

namespace ocrctl::test {

/// Made in the constructor, removed with everything in the destructor.
class ScratchFolder {
public:
    ScratchFolder() {
        char name[] = "/tmp/ocrctl-test-XXXXXX";
        if (!::mkdtemp(name)) std::abort();
        path_ = name;
    }
    ~ScratchFolder() { remove_tree(path_); }
    ScratchFolder(ScratchFolder const&) = delete;
    std::filesystem::path const& path() const noexcept { return path_; }

    std::filesystem::path put(std::string const& relative, std::string const& content, int mode = 0644) const {
        auto file = path_ / relative;
        std::filesystem::create_directories(file.parent_path());
        if (!write_file_atomically(file, content, mode)) std::abort();
        return file;
    }

private:
    std::filesystem::path path_;
};

} // namespace ocrctl::test
