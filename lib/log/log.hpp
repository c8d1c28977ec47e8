// Logging: one event per line, key=value, on stderr; stdout stays the command's result.
//   ts=2026-03-01T09:12:07.114Z level=info area=agent event=worker.started host=ocr1 pid=4711
// error: someone must act. warn: degraded, going on by ourselves. info: a state change an operator would tell a
// colleague. debug: for us. Secrets and document contents are never fields. Thread-safe.
#pragma once

#include <fmt/format.h>
#include <string>
#include <string_view>

namespace ocrctl::log {

enum class Level { Debug, Info, Warn, Error, Off };

struct Field {
    std::string_view key;
    std::string value;
};

template <class T>
Field kv(std::string_view key, T const& value) {
    return {key, fmt::format("{}", value)};
}

/// Cheap to copy: the area and the bound fields as text.
class Logger {
public:
    explicit Logger(std::string_view area) : prefix_(fmt::format("area={}", area)) {}

    template <class... F>
    void debug(std::string_view event, F const&... fields) const { write(Level::Debug, event, {fields...}); }
    template <class... F>
    void info(std::string_view event, F const&... fields) const { write(Level::Info, event, {fields...}); }
    template <class... F>
    void warn(std::string_view event, F const&... fields) const { write(Level::Warn, event, {fields...}); }
    template <class... F>
    void error(std::string_view event, F const&... fields) const { write(Level::Error, event, {fields...}); }

    /// The same logger with fields that every line carries.
    template <class... F>
    Logger with(F const&... fields) const { return bound({fields...}); }

private:
    void write(Level level, std::string_view event, std::initializer_list<Field> fields) const;
    Logger bound(std::initializer_list<Field> fields) const;
    std::string prefix_, suffix_;
};

/// Once in main. Default: info.
void set_level(Level level);
/// "debug" "info" "warn" "error" "off"; false if it is none of them.
bool set_level(std::string_view text);

} // namespace ocrctl::log
