#include "deployer/converge.hpp"

#include "deployer/host_setup.hpp"
#include "lib/base/files.hpp"
#include "lib/ledger/ledger.hpp"
#include "lib/ledger/lock.hpp"

#include <mutex>

namespace ocrctl::deployer {

namespace fs = std::filesystem;

struct Converge::Impl {
    ledger::StatePaths paths;
    std::mutex mutex;
    std::weak_ptr<ledger::LockFile> lock; // shared by the calls at work

    Result<std::shared_ptr<ledger::LockFile>> take_lock(std::string const& host) {
        std::lock_guard guard(mutex);
        if (auto held = lock.lock()) return held;
        auto taken = ledger::LockFile::take(paths.lock(), fmt::format("serve (brings back {})", host));
        if (!taken) return std::unexpected(taken.error());
        auto shared = std::make_shared<ledger::LockFile>(std::move(*taken));
        lock = shared;
        return shared;
    }
};

Converge::Converge(fs::path state) : impl_(std::make_unique<Impl>()) { impl_->paths.root = std::move(state); }
Converge::~Converge() = default;

Result<void> Converge::bring_back(std::string const& host) {
    auto const& paths = impl_->paths;
    auto closing = [&] { return fs::exists(paths.closing()); };
    auto refused = [&] { return fail(ErrorKind::Conflict, "{}: the deployment is closing", host); };
    if (closing()) return refused();
    auto lock = impl_->take_lock(host);
    if (!lock) return fail(lock.error().during(host));
    if (closing()) return refused();

    auto deployment = load_deployment(paths);
    if (!deployment) return std::unexpected(deployment.error());
    auto text = read_file(paths.config());
    if (!text) return std::unexpected(text.error());
    auto loaded = config::load_text(*text, deployment->config);
    if (!loaded.problems.empty()) return fail(ErrorKind::Invalid, "{}", loaded.problems.front().text());
    auto ledger = ledger::Ledger::open(paths.ledger());
    if (!ledger) return std::unexpected(ledger.error());
    auto token = read_file(paths.secrets() / kAgentToken);
    if (!token) return std::unexpected(token.error());

    Facts facts;
    facts.state = paths;
    facts.deployment = *deployment;
    facts.build = deployment->build;
    facts.rabbitmq = find_rabbitmq();
    auto build = own_build();
    if (!build) return std::unexpected(build.error());
    if (*build != deployment->build) return fail(ErrorKind::Conflict, "{}: this server is of build {}, the deployment of {}: a deploy is due", host, *build, deployment->build);
    auto plan = Plan::from(loaded.config, facts);
    if (auto const* wanted = plan.host(host); wanted && !wanted->desired.agent)
        return fail(ErrorKind::Conflict,
                    "{} has no agent (agent: false): its Workers are started by ocrctl deploy alone", host);

    SetupContext context;
    context.paths = paths;
    context.ledger = &*ledger;
    context.config = &loaded.config;
    context.facts = &facts;
    std::mutex facts_mutex;
    context.mutex = &facts_mutex;
    context.token = *token;
    context.queue_user = plan.queue_user;
    if (loaded.config.process_queue.credentials) context.queue_password = loaded.config.process_queue.credentials->password;
    else if (plan.queue_kind == "external") context.queue_password = Secret("guest");
    else {
        auto password = read_file(paths.secrets() / kQueuePassword);
        if (!password) return std::unexpected(password.error());
        context.queue_password = Secret(*password);
    }
    if (auto key = read_file(paths.secrets() / kWorkerKey)) context.worker_key = Secret(*key);
    else if (!plan.foreign.empty()) return std::unexpected(key.error());
    auto done = setup_host(context, host);
    if (!done) return std::unexpected(done.error());
    return {};
}

} // namespace ocrctl::deployer
