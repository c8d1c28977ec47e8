#include "processing_server/mets_api.hpp"

#include "lib/async/task_group.hpp"
#include "lib/async/within.hpp"
#include "lib/base/files.hpp"
#include "lib/base/text.hpp"
#include "lib/log/fields.hpp"
#include "lib/net/form.hpp"
#include "lib/net/server.hpp"
#include "lib/net/url.hpp"
#include "processing_server/mets_calls.hpp"

#include <map>
#include <set>

namespace ocrctl::server {

namespace field = log::field;
using log::kv;
using net::Request;
using net::Response;
using namespace std::chrono_literals;
using What = MetsCall::What;

namespace {

constexpr std::size_t kLongestSocket = 107; // of a Unix socket's address
constexpr auto kLinger = 1s;    // a socket that nobody wants stays that long: the next Job often wants it again
constexpr auto kPlaceGood = 2s; // how long a resolved path is believed
constexpr char kUsualName[] = "mets.xml";

/// For work: writes everything, and says what was given up.
Result<void> save_all(Workspace& workspace, mets::Mets& mets) {
    if (auto saved = workspace.save(mets); !saved) return saved;
    auto lost = workspace.lost();
    if (!lost.empty())
        return fail(ErrorKind::Conflict, "{} was changed by somebody else meanwhile, and this does not go with it: {}",
                    mets.file().native(), join(lost, "; "));
    return {};
}

MetsRequest plain(Request&& request) {
    MetsRequest plain;
    plain.method = std::move(request.method);
    plain.path = request.path.substr(std::min<std::size_t>(1, request.path.size()));
    if (plain.method == "GET") {
        plain.fields = std::move(request.query);
    } else if (plain.path == "file") {
        if (auto form = net::parse_form(request))
            for (auto& part : *form) plain.fields.emplace_back(std::move(part.name), std::move(part.body));
    } else if (!request.body.empty()) {
        if (auto body = request.json()) plain.body = std::move(*body);
    }
    return plain;
}

bool good_name(std::string const& name) {
    return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos;
}

} // namespace

struct MetsApi::Impl {
    Impl(asio::any_io_executor executor, Settings const& s, Workspaces& w, std::string const& u)
        : io(executor), log("mets"), settings(s), workspaces(w), url(u), tasks(executor, "mets") {}

    using Key = std::pair<std::string, std::string>; // folder, METS name
    /// One Unix socket: a listener and routes of its own, for its Workspace is known by the socket alone.
    struct Door {
        net::Router router;
        std::filesystem::path path;
        std::unique_ptr<net::HttpServer> http;
    };
    struct Place {
        int wanted = 0;       // address_for minus release
        bool by_hand = false; // asked for by /v1/mets
        std::shared_ptr<Door> door;
        std::chrono::steady_clock::time_point released{};
        bool needed() const noexcept { return wanted > 0 || by_hand; }
    };
    using Places = std::map<Key, Place>;
    struct Found {
        std::string folder;
        std::chrono::steady_clock::time_point at;
    };

    asio::any_io_executor io;
    log::Logger log;
    Settings const& settings;
    Workspaces& workspaces;
    std::string const& url;
    std::filesystem::path sockets;
    Places places;
    std::unordered_map<std::string, Found> found;
    TaskGroup tasks;
    bool tidying = false, stopping = false;

    Result<std::string> locate(std::string const& folder);
    awaitable<Response> packed(Request request);
    awaitable<Response> by_hand(Request request);
    awaitable<Response> call(Key key, Request request);
    awaitable<Response> perform(Key key, MetsRequest request);
    awaitable<Result<std::string>> address(Key key, bool other_host, bool hand);
    awaitable<Result<void>> save(std::shared_ptr<Workspace> workspace);
    awaitable<void> save_unsaved(Key key);
    awaitable<void> close(std::shared_ptr<Door> door);
    awaitable<void> tidy();
    std::string tcp_address(std::string const& mets_basename) const;
    Result<std::shared_ptr<Door>> open(Key const& key);
    void leave(Places::iterator place);
};

MetsApi::MetsApi(asio::any_io_executor io, Settings const& settings, Workspaces& workspaces, std::string const& url)
    : impl_(std::make_unique<Impl>(std::move(io), settings, workspaces, url)) {
    impl_->sockets = settings.state / "mets";
    remove_tree(impl_->sockets); // nobody answers on what an earlier server left: there is one on this state
}

MetsApi::~MetsApi() = default;

void MetsApi::add_routes(net::Router& router) {
    // Also while the Jobs are being recovered: a METS does not depend on them, and a Worker that is refused fails its
    // Job.
    router.add("POST", "/tcp_mets", [impl = impl_.get()](Request request) { return impl->packed(std::move(request)); });
    router.add("POST", "/v1/mets", [impl = impl_.get()](Request request) { return impl->by_hand(std::move(request)); });
}

Result<std::string> MetsApi::Impl::locate(std::string const& folder) {
    auto now = std::chrono::steady_clock::now();
    if (auto known = found.find(folder); known != found.end() && now - known->second.at < kPlaceGood)
        return known->second.folder;
    if (found.size() > 10'000) found.clear();
    std::filesystem::path path(folder);
    if (!path.is_absolute()) return fail(ErrorKind::Invalid, "the workspace path {} is not absolute", folder);
    path = path.lexically_normal();
    auto forbidden = [&] {
        return fail(ErrorKind::Denied, "{} is not below one of the configured workspace roots", folder);
    };
    if (!below_roots(settings.workspaces, path / "x")) return forbidden();
    auto real = canonical_path(path);
    if (!real) return fail(ErrorKind::NotFound, "there is no workspace at {}", folder);
    if (!below_roots(settings.workspaces, *real / "x")) return forbidden();
    found[folder] = Found{real->native(), now};
    return real->native();
}

awaitable<Response> MetsApi::Impl::packed(Request request) {
    auto body = request.json();
    if (!body) co_return Response::error(422, "body: " + body.error().message());
    auto packed = unpack(*body);
    if (!packed) co_return packed.error();
    auto folder = locate(packed->workspace_path);
    if (!folder) co_return Response::error(folder.error());
    auto name = request.query_or("mets", kUsualName);
    if (!good_name(name)) co_return Response::error(422, "mets: expected the name of a file");
    auto type = std::move(packed->response_type);
    auto addition = adds_file(packed->request);
    auto answer = co_await perform(Key{std::move(*folder), std::move(name)}, std::move(packed->request));
    co_return pack(std::move(answer), type, addition);
}

awaitable<Response> MetsApi::Impl::by_hand(Request request) {
    auto body = request.json();
    if (!body || !body->is_object() || !body->contains("path_to_mets") || !(*body)["path_to_mets"].is_string())
        co_return Response::error(422, "path_to_mets: expected a string");
    auto path = std::filesystem::path((*body)["path_to_mets"].get<std::string>());
    if (!good_name(path.filename().native()))
        co_return Response::error(422, "path_to_mets: expected the path of a METS file");
    auto folder = locate(path.parent_path().native());
    if (!folder) co_return Response::error(folder.error());
    Key key{std::move(*folder), path.filename().native()};
    auto there = [](mets::Mets&) -> Result<void> { return {}; };
    auto loaded = co_await workspaces.open(key.first, key.second)->with(there);
    if (!loaded) co_return Response::error(loaded.error());
    auto told = co_await address(key, false, true);
    if (!told) co_return Response::error(told.error());
    co_return Response::json(200, Json{{"mets_server_url", *told}, {"workspace_path", key.first}});
}

awaitable<Response> MetsApi::Impl::call(Key key, Request request) {
    return perform(std::move(key), plain(std::move(request)));
}

awaitable<Response> MetsApi::Impl::perform(Key key, MetsRequest request) {
    auto call = read_call(std::move(request));
    if (!call) co_return std::move(call.error());
    auto workspace = workspaces.open(key.first, key.second);
    auto what = call->what;
    auto shared = std::make_shared<MetsCall>(std::move(*call));

    if (what == What::Save || what == What::Stop) {
        auto saved = co_await save(workspace);
        if (!saved) co_return Response::error(saved.error());
        if (what == What::Save) co_return Response::text(200, "The Mets Server is writing changes to disk.");
        if (auto place = places.find(key); place != places.end() && place->second.by_hand) {
            place->second.by_hand = false;
            auto door = place->second.door;
            if (!place->second.needed()) {
                door->http->close_unix(door->path);
                tasks.spawn("close", close(std::move(door)));
                places.erase(place);
            }
        }
        co_return Response::text(200, "The Mets Server will shut down soon...");
    }
    Result<Response> answer;
    if (what == What::Reload) {
        auto work = [workspace](mets::Mets& mets) -> Result<Response> {
            if (auto again = workspace->reload(mets); !again) return std::unexpected(again.error());
            return Response::text(200, "Reloaded from " + workspace->folder().native());
        };
        answer = co_await workspace->with(std::move(work));
    } else if (what == What::AddFile) {
        auto work = [workspace, shared](mets::Mets& mets) -> Result<Response> {
            if (auto added = workspace->add(mets, shared->addition); !added) return refused_call(added.error());
            return Response::json(200, shared->given);
        };
        auto cheap = [workspace, shared](mets::Mets const&) {
            return workspace->folder_known(shared->addition.file.path);
        };
        answer = co_await workspace->at_once(std::move(work), std::move(cheap));
        if (answer && !answer->ok())
            log.info("mets.refused", kv(field::kWorkspace, workspace->folder().native()),
                     kv("file", shared->addition.file.id), kv(field::kError, answer->body));
    } else if (what == What::AddAgent) {
        auto work = [workspace, shared](mets::Mets& mets) -> Result<Response> {
            if (auto added = workspace->add(mets, shared->agent); !added) return refused_call(added.error());
            return Response::json(200, shared->given);
        };
        answer = co_await workspace->at_once(std::move(work), [](mets::Mets const&) { return true; });
    } else {
        auto work = [workspace, shared](mets::Mets& mets) -> Result<Response> {
            return look_up(*shared, mets, workspace->folder().native());
        };
        auto cheap = [shared](mets::Mets const& mets) {
            return shared->what == What::WorkspacePath || shared->what == What::Groups ||
                   (shared->what == What::Find && mets.is_quick(shared->query));
        };
        answer = co_await workspace->at_once(std::move(work), std::move(cheap));
    }
    if (!answer) co_return Response::error(answer.error());
    co_return std::move(*answer);
}

awaitable<Result<void>> MetsApi::Impl::save(std::shared_ptr<Workspace> workspace) {
    auto work = [workspace](mets::Mets& mets) { return save_all(*workspace, mets); };
    auto saved = co_await workspace->with(std::move(work));
    if (!saved)
        log.error("mets.not-saved", kv(field::kWorkspace, workspace->folder().native()),
                  kv(field::kError, saved.error().message()));
    co_return saved;
}

std::string MetsApi::Impl::tcp_address(std::string const& mets_basename) const {
    auto address = (settings.internal_url.empty() ? url : settings.internal_url) + "/tcp_mets";
    return mets_basename == kUsualName ? address : address + "?mets=" + net::percent_encode(mets_basename);
}

Result<std::shared_ptr<MetsApi::Impl::Door>> MetsApi::Impl::open(Key const& key) {
    auto door = std::make_shared<Door>();
    door->path = sockets / (sha256_hex(key.first + '\n' + key.second).substr(0, 16) + ".sock");
    if (door->path.native().size() > kLongestSocket) return nullptr;
    if (auto made = make_folder(sockets); !made) return std::unexpected(made.error());
    for (auto const* path : {"/", "/reload", "/unique_identifier", "/workspace_path", "/physical_pages", "/file_groups",
                             "/agent", "/file"})
        for (auto const* method : {"GET", "POST", "PUT", "DELETE"}) // which of them there is, read_call says
            door->router.add(method, path, [this, key](Request request) { return call(key, std::move(request)); });
    net::ServerOptions options;
    options.max_body = settings.max_body;
    door->http = std::make_unique<net::HttpServer>(io, door->router, options);
    if (auto listening = door->http->listen_unix(door->path, 0666); !listening)
        return std::unexpected(listening.error());
    log.info("mets.listening", kv(field::kWorkspace, key.first), kv(field::kPath, door->path.native()));
    return door;
}

awaitable<Result<std::string>> MetsApi::Impl::address(Key key, bool other_host, bool hand) {
    if (stopping) co_return fail(ErrorKind::Unavailable, "the server is stopping");
    auto known = places.find(key);
    auto door = known == places.end() ? nullptr : known->second.door;
    auto tcp = settings.use_tcp_mets || other_host;
    if (!tcp && !door) {
        auto opened = open(key);
        if (!opened) co_return std::unexpected(opened.error());
        door = std::move(*opened);
        tcp = door == nullptr;
    }
    if (hand && tcp) co_return tcp_address(key.second); // nothing is kept open for it
    auto& place = places[key];
    place.door = door;
    if (hand)
        place.by_hand = true;
    else
        ++place.wanted;
    co_return tcp ? tcp_address(key.second) : door->path.native();
}

awaitable<Result<std::string>> MetsApi::address_for(std::string folder, bool other_host, std::string mets_basename) {
    return impl_->address(Impl::Key{std::move(folder), std::move(mets_basename)}, other_host, false);
}

void MetsApi::release(std::string const& folder, std::string const& mets_basename) {
    auto place = impl_->places.find(Impl::Key{folder, mets_basename});
    if (place == impl_->places.end() || place->second.wanted == 0) return;
    if (--place->second.wanted == 0) impl_->leave(place);
}

std::size_t MetsApi::addresses() const noexcept {
    return impl_->places.size();
}

void MetsApi::Impl::leave(Places::iterator place) {
    tasks.spawn("save", save_unsaved(place->first));
    if (!place->second.door) { // over TCP: nothing to close
        places.erase(place);
        return;
    }
    place->second.released = std::chrono::steady_clock::now();
    if (tidying) return;
    tidying = true;
    tasks.spawn("tidy", tidy());
}

awaitable<void> MetsApi::Impl::save_unsaved(Key key) {
    auto workspace = workspaces.open(key.first, key.second);
    if (workspace->unsaved()) (void)co_await save(workspace);
}

awaitable<void> MetsApi::Impl::tidy() {
    for (auto left = true; left && !stopping;) {
        if (!co_await pause(250ms)) break;
        left = false;
        auto now = std::chrono::steady_clock::now();
        for (auto place = places.begin(); place != places.end();) {
            auto const& door = place->second.door;
            if (place->second.needed()) {
                ++place;
                continue;
            }
            if (now - place->second.released < kLinger || door->http->connections() > 0) {
                left = true;
                ++place;
                continue;
            }
            door->http->close_unix(door->path);
            tasks.spawn("close", close(door));
            place = places.erase(place);
        }
    }
    tidying = false;
}

awaitable<void> MetsApi::Impl::close(std::shared_ptr<Door> door) {
    co_await door->http->stop(2s);
}

awaitable<Result<void>> MetsApi::save(std::string folder, std::string mets_basename) {
    return impl_->save(impl_->workspaces.open(folder, mets_basename));
}

awaitable<void> MetsApi::stop() {
    auto& impl = *impl_;
    impl.stopping = true;
    for (auto& [key, place] : impl.places)
        if (place.door) impl.tasks.spawn("close", impl.close(place.door));
    co_await impl.tasks.join();
    impl.places.clear();
    remove_tree(impl.sockets);
    for (auto const& workspace : impl.workspaces.unsaved()) {
        auto saving = impl.save(workspace);
        (void)co_await std::move(saving);
    }
}

} // namespace ocrctl::server
