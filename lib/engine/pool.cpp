#include "lib/async/within.hpp"
#include "lib/engine/engine.hpp"

#include <algorithm>
#include <set>

namespace ocrctl::engine {

struct EnginePool::Impl {
    struct Seat {
        std::unique_ptr<Engine> engine;
        std::set<std::string> loaded; // processor and parameters
        bool taken = false;
    };
    asio::any_io_executor executor;
    EngineOptions options;
    std::vector<Seat> seats;
    Event freed;
    std::map<std::string, Provenance> provenance;

    Impl(asio::any_io_executor e, std::size_t size, EngineOptions o)
        : executor(e), options(std::move(o)), seats(std::max<std::size_t>(size, 1)), freed(e) {}

    static std::string key(std::string const& processor, Json const& parameters) { return processor + ' ' + dump(parameters); }

    /// A free seat: with this loaded, else with an engine that has least loaded, else an empty one. nullptr: none free.
    Seat* choose(std::string const& what) {
        Seat *idle = nullptr, *empty = nullptr;
        for (auto& seat : seats) {
            if (seat.taken) continue;
            if (seat.engine && !seat.engine->alive()) {
                seat.engine.reset();
                seat.loaded.clear();
            }
            if (seat.engine && seat.loaded.contains(what)) return &seat;
            if (!seat.engine) empty = empty ? empty : &seat;
            else if (!idle || seat.loaded.size() < idle->loaded.size()) idle = &seat;
        }
        return idle ? idle : empty;
    }

    struct Hold {
        Impl* pool;
        Seat* seat;
        Hold(Impl* p, Seat* s) : pool(p), seat(s) { seat->taken = true; }
        Hold(Hold const&) = delete;
        ~Hold() {
            seat->taken = false;
            pool->freed.notify_all();
        }
    };

    Result<void> start(Seat& seat) {
        if (seat.engine && seat.engine->alive()) return {};
        seat.loaded.clear();
        auto started = Engine::start(executor, options);
        if (!started) return fail(started.error());
        seat.engine = std::move(*started);
        return {};
    }

    awaitable<Result<Provenance>> prepare(Seat& seat, std::string processor, Json parameters) {
        auto what = key(processor, parameters);
        if (seat.engine && seat.engine->alive() && seat.loaded.contains(what)) co_return provenance[what];
        if (auto started = start(seat); !started) co_return fail(started.error());
        auto loaded = co_await seat.engine->load(processor, parameters);
        if (!loaded) co_return fail(loaded.error());
        seat.loaded.insert(what);
        provenance[what] = *loaded;
        co_return loaded;
    }

    awaitable<Seat*> take(std::string what) {
        for (;;) {
            if (auto* seat = choose(what)) co_return seat;
            co_await freed.wait();
        }
    }
};

EnginePool::EnginePool(asio::any_io_executor executor, std::size_t size, EngineOptions options)
    : impl_(std::make_unique<Impl>(std::move(executor), size, std::move(options))) {}
EnginePool::~EnginePool() = default;

std::size_t EnginePool::size() const noexcept { return impl_->seats.size(); }

void EnginePool::kill() {
    for (auto& seat : impl_->seats)
        if (seat.engine) seat.engine->kill();
}

awaitable<Result<Provenance>> EnginePool::load(std::string processor, Json parameters) {
    auto* seat = co_await impl_->take(Impl::key(processor, parameters));
    Impl::Hold hold(impl_.get(), seat);
    co_return co_await impl_->prepare(*seat, std::move(processor), std::move(parameters));
}

awaitable<Result<std::size_t>> EnginePool::frames(std::filesystem::path image) {
    auto* seat = co_await impl_->take("");
    Impl::Hold hold(impl_.get(), seat);
    if (auto started = impl_->start(*seat); !started) co_return fail(started.error());
    co_return co_await seat->engine->frames(std::move(image));
}

awaitable<Result<EngineReply>> EnginePool::page(PageRequest request, std::chrono::milliseconds limit) {
    auto* seat = co_await impl_->take(Impl::key(request.processor, request.parameters));
    Impl::Hold hold(impl_.get(), seat);
    auto loaded = co_await impl_->prepare(*seat, request.processor, request.parameters);
    if (!loaded) co_return fail(loaded.error());
    auto page = request.page.page_id;
    auto work = seat->engine->page(std::move(request));
    if (limit.count() <= 0) co_return co_await std::move(work);
    auto reply = co_await within(limit, std::move(work));
    if (reply) co_return std::move(*reply);
    co_return fail(ErrorKind::Timeout, "page {} took longer than {} s", page, limit.count() / 1000.0);
}

} // namespace ocrctl::engine
