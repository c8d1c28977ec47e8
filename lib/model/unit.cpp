#include "lib/model/unit.hpp"

#include <array>
#include <utility>

namespace ocrctl {
namespace {

constexpr std::array<std::pair<UnitKind, std::string_view>, 7> kKinds{{{UnitKind::Tunnel, "tunnel"},
                                                                      {UnitKind::Queue, "queue"},
                                                                      {UnitKind::Database, "database"},
                                                                      {UnitKind::Server, "server"},
                                                                      {UnitKind::Agent, "agent"},
                                                                      {UnitKind::Worker, "worker"},
                                                                      {UnitKind::ForeignWorker, "foreign-worker"}}};

constexpr std::array<std::pair<UnitState, std::string_view>, 7> kStates{{{UnitState::Waiting, "waiting"},
                                                                        {UnitState::Starting, "starting"},
                                                                        {UnitState::Ready, "ready"},
                                                                        {UnitState::BackOff, "back-off"},
                                                                        {UnitState::Stopping, "stopping"},
                                                                        {UnitState::Stopped, "stopped"},
                                                                        {UnitState::Failed, "failed"}}};

template <class Table, class Value>
std::string_view text_of(Table const& table, Value value) noexcept {
    for (auto const& [candidate, text] : table)
        if (candidate == value) return text;
    return "";
}

template <class Table, class Value>
void value_of(Table const& table, std::string_view text, Value& value) noexcept {
    for (auto const& [candidate, name] : table)
        if (name == text) value = candidate;
}

} // namespace

std::string_view wire(UnitKind kind) noexcept { return text_of(kKinds, kind); }
std::string_view wire(UnitState state) noexcept { return text_of(kStates, state); }
void to_json(Json& json, UnitKind const& kind) { json = wire(kind); }
void from_json(Json const& json, UnitKind& kind) { value_of(kKinds, json.get<std::string>(), kind); }
void to_json(Json& json, UnitState const& state) { json = wire(state); }
void from_json(Json const& json, UnitState& state) { value_of(kStates, json.get<std::string>(), state); }

std::string file_word(std::string_view file) { return "{file:" + std::string(file) + "}"; }

std::optional<std::string> file_of_word(std::string_view word) {
    constexpr std::string_view kBegin = "{file:";
    if (!word.starts_with(kBegin) || !word.ends_with('}')) return std::nullopt;
    return std::string(word.substr(kBegin.size(), word.size() - kBegin.size() - 1));
}

OCRCTL_JSON_FIELDS(Readiness, kind, address, argv, timeout_s)
OCRCTL_JSON_FIELDS(UnitSpec, entry, kind, argv, env, env_files, cwd, log, ready, needs, needs_tcp,
                                                stop_argv, grace_s, restart, also, remove, assignment)
OCRCTL_JSON_FIELDS(DesiredState, deployment, host, generation, agent, lease_s, server, token_file, units)
OCRCTL_JSON_FIELDS(UnitReport, entry, kind, state, pid, since, restarts, detail, last_exit, job,
                                                processor, jobs_done)
OCRCTL_JSON_FIELDS(HostReport, deployment, host, agent_build, boot_id, agent_pid,
                                                generation, closing, units)

} // namespace ocrctl
