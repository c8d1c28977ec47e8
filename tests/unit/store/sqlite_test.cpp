#include "tests/unit/store/stores.hpp"

#include <fstream>

namespace ocrctl::store {
namespace {

TEST(SqliteStore, SaysThatAFileIsNoDatabase) {
    TempFolder folder;
    auto file = folder.path() / "ocrctl.sqlite";
    std::ofstream(file) << std::string(8192, 'x');
    auto opened = open_sqlite({.file = file});
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().kind(), ErrorKind::Invalid);
    EXPECT_NE(opened.error().message().find(file.native()), std::string::npos);
}

TEST(SqliteStore, SaysThatADatabaseIsDamaged) {
    TempFolder folder;
    auto file = folder.path() / "ocrctl.sqlite";
    {
        asio::io_context io;
        auto store = open_sqlite({.file = file});
        ASSERT_TRUE(store);
        Batch batch;
        for (int i = 0; i < 500; ++i) batch.put(make_job("j" + std::to_string(i)));
        ASSERT_TRUE(run(io, (*store)->write(std::move(batch))));
        (*store)->close();
    }
    std::filesystem::remove(file.native() + "-wal");
    {
        std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
        f.seekp(4096 * 20);
        f << std::string(4096 * 4, '\xee');
    }
    auto opened = open_sqlite({.file = file});
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().kind(), ErrorKind::Invalid);
    EXPECT_NE(opened.error().message().find("damaged"), std::string::npos) << opened.error().message();
}

TEST(SqliteStore, RefusesADatabaseOfANewerVersion) {
    TempFolder folder;
    auto file = folder.path() / "ocrctl.sqlite";
    (*open_sqlite({.file = file}))->close();
    {
        std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
        f.seekp(60); // user_version, big-endian
        f.write("\0\0\0\x63", 4);
    }
    auto opened = open_sqlite({.file = file});
    ASSERT_FALSE(opened);
    EXPECT_NE(opened.error().message().find("newer ocrctl"), std::string::npos) << opened.error().message();
}

TEST(SqliteStore, CommitsManyWaitingCallersTogether) {
    TempFolder folder;
    asio::io_context io;
    auto store = open_sqlite({.file = folder.path() / "ocrctl.sqlite"});
    int done = 0;
    for (int i = 0; i < 2000; ++i) {
        Batch batch;
        batch.put(make_job(new_uuid()));
        asio::co_spawn(io, (*store)->write(std::move(batch)), [&](std::exception_ptr, Result<void> r) { done += r.has_value(); });
    }
    io.run();
    EXPECT_EQ(done, 2000);
    (*store)->close();
}

} // namespace
} // namespace ocrctl::store
