// Addresses of a METS: given out, released, and nothing left behind. The calls themselves: mets_calls_test.cpp and the
// service tests.
#include "processing_server/mets_api.hpp"

#include "tests/support/coroutines.hpp"
#include "tests/unit/mets/workspace.hpp"

#include <sys/socket.h>
#include <sys/un.h>

namespace ocrctl::server {
namespace {

using test::run;
using test::run_until;

class MetsAddressTest : public testing::Test {
protected:
    mets::Workspace files{mets::two_pages()};
    mets::Workspace state;
    asio::io_context io;
    asio::thread_pool pool{1};
    Settings settings;
    Workspaces workspaces{io.get_executor(), pool};
    std::string const url = "http://127.0.0.1:1";
    std::unique_ptr<MetsApi> api;

    MetsAddressTest() { settings.state = state.folder; }
    ~MetsAddressTest() override {
        if (api) run(io, stopped());
        pool.join();
    }
    void start() { api = std::make_unique<MetsApi>(io.get_executor(), settings, workspaces, url); }
    awaitable<bool> stopped() {
        co_await api->stop();
        co_return true;
    }
    std::string address(bool other_host = false) {
        auto given = run(io, api->address_for(files.folder.native(), other_host));
        EXPECT_TRUE(given) << given.error().message();
        return given.value_or("");
    }
    void release() { api->release(files.folder.native()); }
    void add(std::string const& id) {
        auto workspace = workspaces.open(files.folder.native(), "mets.xml");
        auto added = run(io, workspace->with([&](mets::Mets& mets) {
            return workspace->add(mets, mets::Addition{mets::file_ref("OUT", id, "PHYS_0001"), "", false});
        }));
        ASSERT_TRUE(added) << added.error().message();
    }
    bool on_disk(std::string const& id) const { return files.load().find(id, "OUT") != nullptr; }
    static Fd connect(std::string const& path) {
        Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un to{};
        to.sun_family = AF_UNIX;
        path.copy(to.sun_path, sizeof to.sun_path - 1);
        if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) return {};
        return fd;
    }
};

TEST_F(MetsAddressTest, TheSocketIsClosedAndGoneAfterTheLastUserReleasedIt) {
    start();
    auto const first = address(), second = address();
    EXPECT_EQ(first, second);
    EXPECT_EQ(api->addresses(), 1u);
    release();
    EXPECT_TRUE(connect(first)) << "one still needs it";
    add("OUT_1");
    release();
    EXPECT_TRUE(run_until(io, [&] { return api->addresses() == 0; }));
    EXPECT_FALSE(std::filesystem::exists(first));
    EXPECT_FALSE(connect(first));
    EXPECT_TRUE(run_until(io, [&] { return on_disk("OUT_1"); }, std::chrono::seconds(5))) << "what is unsaved is saved";
    release(); // once too often
    EXPECT_EQ(address(), first);
    EXPECT_TRUE(connect(first));
}

TEST_F(MetsAddressTest, TheSocketStaysWhileSomebodyIsConnected) {
    start();
    auto const socket = address();
    auto client = connect(socket);
    ASSERT_TRUE(client);
    release();
    EXPECT_FALSE(run_until(io, [&] { return api->addresses() == 0; }, std::chrono::seconds(2)));
    EXPECT_TRUE(std::filesystem::exists(socket));
    client.close();
    EXPECT_TRUE(run_until(io, [&] { return api->addresses() == 0; }));
    EXPECT_FALSE(std::filesystem::exists(socket));
}

TEST_F(MetsAddressTest, OverTcpNothingIsKeptOfAWorkspaceThatNobodyNeeds) {
    settings.use_tcp_mets = true;
    start();
    EXPECT_EQ(address(), url + "/tcp_mets");
    EXPECT_EQ(address(), url + "/tcp_mets");
    add("OUT_1");
    release();
    EXPECT_EQ(api->addresses(), 1u);
    EXPECT_FALSE(on_disk("OUT_1"));
    release();
    EXPECT_EQ(api->addresses(), 0u);
    EXPECT_TRUE(run_until(io, [&] { return on_disk("OUT_1"); }));
}

TEST_F(MetsAddressTest, AWorkerOnAnotherHostKeepsNothingEither) {
    start();
    EXPECT_EQ(address(true), url + "/tcp_mets");
    release();
    EXPECT_EQ(api->addresses(), 0u);
    // Beside a Worker of this machine, whose socket lives on.
    auto const socket = address();
    EXPECT_EQ(address(true), url + "/tcp_mets");
    release();
    EXPECT_TRUE(connect(socket));
    release();
    EXPECT_TRUE(run_until(io, [&] { return api->addresses() == 0; }));
    EXPECT_FALSE(std::filesystem::exists(socket));
}

} // namespace
} // namespace ocrctl::server
