#include "processing_server/settings.hpp"

#include "lib/base/files.hpp"

namespace ocrctl::server {

Result<Settings> read_settings(std::filesystem::path const& state) {
    auto file = state / "server.json";
    auto text = read_file(file);
    if (!text) return std::unexpected(text.error());
    auto parsed = parse_json(*text);
    if (!parsed) return fail(parsed.error().during(file.native()));
    auto const& json = *parsed;
    Settings s;
    s.state = state;
    try {
        s.name = json.at("name").get<std::string>();
        s.deployment = json.value("deployment", "");
        if (auto listen = json.find("listen"); listen != json.end()) {
            s.address = listen->value("address", s.address);
            s.port = listen->value("port", s.port);
        }
        auto below = [&](std::filesystem::path path) { return path.empty() || path.is_absolute() ? path : state / path; };
        s.amqp_file = below(json.at("amqp_file").get<std::string>());
        s.token_file = below(json.value("token_file", s.token_file.native()));
        for (auto const& root : json.value("workspaces", std::vector<std::string>{})) s.workspaces.emplace_back(root);
        auto existing = json.value("existing_output", "skip");
        if (existing == "overwrite") s.existing_output = ExistingOutput::Overwrite;
        else if (existing == "abort") s.existing_output = ExistingOutput::Abort;
        else if (existing != "skip") return fail(ErrorKind::Invalid, "{}: existing_output is \"{}\", not skip, overwrite or abort", file.native(), existing);
        s.consumer_timeout_s = json.value("consumer_timeout_s", s.consumer_timeout_s);
        for (auto const& [name, entry] : json.value("processors", Json::object()).items())
            s.processors[name] = ProcessorSettings{entry.value("kind", "managed"), entry.value("count", 1), entry.value("here", false), entry.value("executable", ""),
                                                   entry.value("env", std::map<std::string, std::string>())};
        s.log_level = json.value("log_level", s.log_level);
        s.max_body = json.value("max_body", s.max_body);
        s.mongo_file = below(json.value("mongo_file", ""));
        s.internal_url = json.value("internal_url", "");
        s.use_tcp_mets = json.value("use_tcp_mets", false);
        s.ocrd_durable_exchange = json.value("ocrd_durable_exchange", false);
        s.ocrd_durable_queues = json.value("ocrd_durable_queues", false);
        for (auto const& one : json.value("foreign_workers", Json::array()))
            s.foreign_workers.push_back(ForeignWorkerSettings{one.at("slot").get<std::string>(), one.at("processor").get<std::string>(), below(one.value("amqp_file", "")), one.value("internal_url", ""), one.value("agent", true)});
        for (auto const& path : json.value("tools", std::vector<std::string>{})) s.tools.push_back(below(path));
    } catch (Json::exception const& problem) {
        return fail(ErrorKind::Invalid, "{}: {}", file.native(), problem.what());
    }
    return s;
}

} // namespace ocrctl::server
