#include "lib/log/log.hpp"

#include "lib/base/clock.hpp"

#include <memory>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace ocrctl::log {
namespace {

spdlog::logger& sink() {
    static auto logger = [] {
        auto made = std::make_shared<spdlog::logger>("ocrctl", std::make_shared<spdlog::sinks::stderr_sink_mt>());
        made->set_formatter(std::make_unique<spdlog::pattern_formatter>("ts=%Y-%m-%dT%H:%M:%S.%eZ level=%l %v",
                                                                        spdlog::pattern_time_type::utc));
        made->set_level(spdlog::level::info);
        made->flush_on(spdlog::level::debug);
        return made;
    }();
    return *logger;
}

spdlog::level::level_enum spdlog_level(Level level) {
    switch (level) {
    case Level::Debug: return spdlog::level::debug;
    case Level::Info: return spdlog::level::info;
    case Level::Warn: return spdlog::level::warn;
    case Level::Error: return spdlog::level::err;
    case Level::Off: return spdlog::level::off;
    }
    return spdlog::level::off;
}

void append(std::string& line, Field const& field) {
    line += ' ';
    line += field.key;
    line += '=';
    bool plain = !field.value.empty() && field.value.find_first_of(" \t\n\"=") == std::string::npos;
    if (plain) {
        line += field.value;
        return;
    }
    line += '"';
    for (char c : field.value) {
        if (c == '"' || c == '\\') line += '\\';
        if (c == '\n') line += "\\n";
        else line += c;
    }
    line += '"';
}

} // namespace

void Logger::write(Level level, std::string_view event, std::initializer_list<Field> fields) const {
    auto& out = sink();
    if (!out.should_log(spdlog_level(level))) return;
    std::string line = prefix_;
    line += " event=";
    line += event;
    line += suffix_;
    for (auto const& field : fields) append(line, field);
    out.log(spdlog_level(level), "{}", line);
}

Logger Logger::bound(std::initializer_list<Field> fields) const {
    auto copy = *this;
    for (auto const& field : fields) append(copy.suffix_, field);
    return copy;
}

void set_level(Level level) { sink().set_level(spdlog_level(level)); }

bool set_level(std::string_view text) {
    if (text == "debug") set_level(Level::Debug);
    else if (text == "info") set_level(Level::Info);
    else if (text == "warn") set_level(Level::Warn);
    else if (text == "error") set_level(Level::Error);
    else if (text == "off") set_level(Level::Off);
    else return false;
    return true;
}

} // namespace ocrctl::log
