// A temporary folder that is gone with the test.
#pragma once

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"

#include <gtest/gtest.h>

namespace ocrctl::test {

class Folder : public testing::Test {
protected:
    Folder() { std::filesystem::create_directories(folder); }
    ~Folder() override { remove_tree(folder); }
    std::string file(std::string const& name, std::string_view content) {
        std::filesystem::create_directories((folder / name).parent_path());
        EXPECT_TRUE(write_file_atomically(folder / name, content));
        return (folder / name).native();
    }
    std::filesystem::path const folder = std::filesystem::temp_directory_path() / ("ocrctl-test-" + random_hex(6));
};

} // namespace ocrctl::test
