// Changes of several origins in one METS in memory: none is lost, whoever saves or reads again.
#include "processing_server/workspaces.hpp"

#include "tests/support/coroutines.hpp"
#include "tests/unit/mets/workspace.hpp"

namespace ocrctl::server {
namespace {

using mets::file_ref;
using test::run;

class WorkspacesTest : public testing::Test {
protected:
    mets::Workspace files{mets::two_pages()};
    asio::io_context io;
    asio::thread_pool pool{2};
    Workspaces workspaces{io.get_executor(), pool};
    std::shared_ptr<Workspace> workspace = workspaces.open(files.folder.native(), "mets.xml");

    ~WorkspacesTest() override { pool.join(); }

    Result<void> add(std::string id, std::string page, bool force = false) {
        return run(io, workspace->with([&](mets::Mets& mets) { return workspace->add(mets, mets::Addition{file_ref("OUT", id, page), "", force}); }));
    }
    Result<std::uint64_t> apply(std::string id, std::string page) {
        mets::RunFiles outcome;
        outcome.files = {file_ref("RUN", std::move(id), std::move(page))};
        outcome.output_groups = {"RUN"};
        return run(io, workspace->with([&](mets::Mets& mets) { return workspace->apply(mets, outcome); }));
    }
    Result<void> save() {
        return run(io, workspace->with([&](mets::Mets& mets) { return workspace->save(mets); }));
    }
    std::vector<std::string> lost() {
        return *run(io, workspace->with([&](mets::Mets&) -> Result<std::vector<std::string>> { return workspace->lost(); }));
    }
    std::optional<Workspace::Settled> settled(std::uint64_t ticket) {
        return *run(io, workspace->with([&](mets::Mets&) -> Result<std::optional<Workspace::Settled>> { return workspace->settled(ticket); }));
    }
    bool in_memory(std::string group, std::string id) {
        return *run(io, workspace->with([&](mets::Mets& mets) -> Result<bool> { return mets.find(id, group) != nullptr; }));
    }
    bool on_disk(std::string const& group, std::string const& id) const { return files.load().find(id, group) != nullptr; }
    /// Somebody else's program adds a file.
    void edit(std::string group, std::string id, std::string page, std::string mimetype = std::string(mets::kPageMimetype)) {
        auto other = files.load();
        auto ref = file_ref(std::move(group), std::move(id), std::move(page));
        ref.mimetype = std::move(mimetype);
        ASSERT_TRUE(other.add_file(ref));
        ASSERT_TRUE(other.save());
    }
};

TEST_F(WorkspacesTest, AnAdditionIsInMemoryUntilItIsSaved) {
    ASSERT_TRUE(add("OUT_1", "PHYS_0001"));
    EXPECT_TRUE(workspace->unsaved());
    EXPECT_TRUE(in_memory("OUT", "OUT_1"));
    EXPECT_FALSE(on_disk("OUT", "OUT_1"));
    EXPECT_TRUE(std::filesystem::is_directory(files.folder / "OUT"));
    ASSERT_TRUE(save());
    EXPECT_FALSE(workspace->unsaved());
    EXPECT_TRUE(on_disk("OUT", "OUT_1"));
}

TEST_F(WorkspacesTest, AdditionsAndRunsSurviveAnEditBySomebodyElse) {
    ASSERT_TRUE(add("OUT_1", "PHYS_0001"));
    auto ticket = apply("RUN_1", "PHYS_0001");
    ASSERT_TRUE(ticket);
    edit("THEIRS", "T_1", "PHYS_0002");
    ASSERT_TRUE(save());
    EXPECT_TRUE(on_disk("OUT", "OUT_1"));
    EXPECT_TRUE(on_disk("RUN", "RUN_1"));
    EXPECT_TRUE(on_disk("THEIRS", "T_1"));
    EXPECT_TRUE(lost().empty());
    auto outcome = settled(*ticket);
    ASSERT_TRUE(outcome);
    EXPECT_FALSE(outcome->problem);
    EXPECT_FALSE(settled(*ticket)); // told once
}

TEST_F(WorkspacesTest, ReadingAgainLosesNothingUnsavedAndSeesWhatOthersWrote) {
    ASSERT_TRUE(add("OUT_1", "PHYS_0001"));
    ASSERT_TRUE(run(io, workspace->with([&](mets::Mets& mets) { return workspace->add(mets, mets::Agent{"a", "OTHER", "OTHER", {}, {}, {}}); })));
    edit("THEIRS", "T_1", "PHYS_0002");
    EXPECT_FALSE(in_memory("THEIRS", "T_1"));
    ASSERT_TRUE(run(io, workspace->with([&](mets::Mets& mets) { return workspace->reload(mets); })));
    EXPECT_TRUE(in_memory("THEIRS", "T_1"));
    EXPECT_TRUE(in_memory("OUT", "OUT_1"));
    EXPECT_FALSE(on_disk("OUT", "OUT_1"));
    ASSERT_TRUE(save());
    EXPECT_TRUE(on_disk("OUT", "OUT_1"));
    EXPECT_EQ(files.load().agents().size(), 1u);
}

TEST_F(WorkspacesTest, WhatDoesNotGoWithSomebodyElsesEditIsReportedAndOverwritesNothing) {
    ASSERT_TRUE(add("OUT_1", "PHYS_0001"));
    ASSERT_TRUE(add("OUT_2", "PHYS_0002"));
    auto ticket = apply("RUN_1", "PHYS_0001");
    ASSERT_TRUE(ticket);
    edit("OUT", "OUT_1", "PHYS_0001", "image/png");
    edit("RUN", "RUN_1", "PHYS_0002");
    ASSERT_TRUE(save());
    auto sentences = lost();
    ASSERT_EQ(sentences.size(), 1u);
    EXPECT_NE(sentences[0].find("OUT_1"), std::string::npos);
    EXPECT_NE(sentences[0].find("already exists"), std::string::npos);
    auto outcome = settled(*ticket);
    ASSERT_TRUE(outcome && outcome->problem);
    EXPECT_NE(outcome->problem->message().find("changed by somebody else"), std::string::npos);
    auto disk = files.load();
    EXPECT_EQ(disk.find("OUT_1", "OUT")->mimetype, "image/png");
    EXPECT_EQ(disk.find("RUN_1", "RUN")->page_id, "PHYS_0002");
    EXPECT_NE(disk.find("OUT_2", "OUT"), nullptr);
}

TEST_F(WorkspacesTest, NothingIsForgottenWhileWhatSomebodyElseWroteCannotBeRead) {
    ASSERT_TRUE(add("OUT_1", "PHYS_0001"));
    auto good = files.text();
    files.write("mets.xml", "<mets:mets");
    auto failed = save();
    ASSERT_FALSE(failed);
    EXPECT_NE(failed.error().message().find("cannot be read"), std::string::npos);
    EXPECT_TRUE(workspace->unsaved());
    workspace->forget(); // as the results' keeper does when it gives its runs up
    EXPECT_FALSE(add("OUT_2", "PHYS_0001"));
    files.write("mets.xml", good);
    EXPECT_TRUE(in_memory("OUT", "OUT_1"));
    ASSERT_TRUE(save());
    EXPECT_TRUE(on_disk("OUT", "OUT_1"));
    EXPECT_FALSE(on_disk("OUT", "OUT_2"));
}

TEST_F(WorkspacesTest, SavedAdditionsComeBackWhenSomebodyWritesAnOlderCopy) {
    auto older = files.text();
    ASSERT_TRUE(add("OUT_1", "PHYS_0001"));
    files.write("OUT/OUT_1.xml");
    ASSERT_TRUE(save());
    files.write("mets.xml", older);
    EXPECT_TRUE(in_memory("OUT", "OUT_1"));
    EXPECT_TRUE(on_disk("OUT", "OUT_1"));
}

TEST_F(WorkspacesTest, AWorkspaceWithSomethingUnsavedIsNotClosed) {
    ASSERT_TRUE(add("OUT_1", "PHYS_0001"));
    workspace.reset();
    workspaces.close_idle(std::chrono::seconds(-1));
    EXPECT_EQ(workspaces.size(), 1u);
    EXPECT_EQ(workspaces.unsaved().size(), 1u);
    workspace = workspaces.open(files.folder.native(), "mets.xml");
    ASSERT_TRUE(save());
    workspace.reset();
    // The thread that saved may hold it for a moment longer.
    for (auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10); workspaces.size() > 0 && std::chrono::steady_clock::now() < until;)
        workspaces.close_idle(std::chrono::seconds(-1));
    EXPECT_EQ(workspaces.size(), 0u);
}

TEST_F(WorkspacesTest, CheapWorkIsDoneAtOnceOnTheCallersThread) {
    auto on_this_thread = [here = std::this_thread::get_id()](mets::Mets&) -> Result<bool> { return std::this_thread::get_id() == here; };
    auto cheap = [](mets::Mets const&) { return true; };
    EXPECT_FALSE(*run(io, workspace->at_once(on_this_thread, cheap))); // loads it
    EXPECT_TRUE(*run(io, workspace->at_once(on_this_thread, cheap)));
    EXPECT_FALSE(*run(io, workspace->at_once(on_this_thread, [](mets::Mets const&) { return false; })));
}

} // namespace
} // namespace ocrctl::server
