#include "lib/config/section.hpp"

#include "lib/base/text.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace ocrctl::config {

namespace {

bool is_plain(YAML::Node const& node) { return node.Tag() == "?" || node.Tag().empty(); }

bool is_digits(std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// A decimal number without leading zeros; nothing for anything else.
std::optional<std::int64_t> whole_number(std::string_view text) {
    auto digits = text;
    if (!digits.empty() && (digits.front() == '-' || digits.front() == '+')) digits.remove_prefix(1);
    if (!is_digits(digits) || (digits.size() > 1 && digits.front() == '0')) return {};
    if (text.front() == '+') text.remove_prefix(1);
    std::int64_t value = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return {};
    return value;
}

/// `010` is 8 for one YAML reader and 10 for another: nobody can mean it.
std::string leading_zero_hint(std::string_view text) {
    if (text.size() < 2 || text.front() != '0' || !is_digits(text)) return {};
    auto stripped = text;
    while (stripped.size() > 1 && stripped.front() == '0') stripped.remove_prefix(1);
    return fmt::format(" (some YAML readers take a leading zero for octal: write {})", stripped);
}

/// "12MiB" -> 12, "MiB"
std::optional<std::pair<std::int64_t, std::string>> number_and_unit(std::string_view text) {
    auto end = std::find_if(text.begin(), text.end(), [](char c) { return c < '0' || c > '9'; });
    auto number = whole_number(text.substr(0, static_cast<std::size_t>(end - text.begin())));
    if (!number) return {};
    return std::pair(*number, std::string(trim(text.substr(static_cast<std::size_t>(end - text.begin())))));
}

std::optional<std::uint64_t> scaled(std::string_view text, std::vector<std::pair<std::string_view, std::uint64_t>> const& units) {
    auto parsed = number_and_unit(text);
    if (!parsed) return {};
    for (auto const& [unit, factor] : units) {
        if (unit != parsed->second) continue;
        auto count = static_cast<std::uint64_t>(parsed->first);
        if (count > std::numeric_limits<std::int64_t>::max() / factor) return {};
        return count * factor;
    }
    return {};
}

Json scalar_to_json(YAML::Node const& node) {
    auto const& text = node.Scalar();
    if (!is_plain(node)) return text;
    if (text == "~" || text == "null" || text == "Null" || text == "NULL" || text.empty()) return nullptr;
    if (text == "true" || text == "True" || text == "TRUE") return true;
    if (text == "false" || text == "False" || text == "FALSE") return false;
    if (auto number = whole_number(text)) return *number;
    // What is left of numbers has a digit and no letter but e; from_chars would also take "inf" and "nan".
    bool has_digit = std::any_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    bool numeric = text.find_first_not_of("0123456789.eE+-") == std::string::npos;
    bool octal_trap = text.size() > 1 && text[0] == '0' && is_digits(text);
    if (has_digit && numeric && !octal_trap) {
        double value = 0;
        auto begin = text.data() + (text.front() == '+' ? 1 : 0);
        auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
        if (error == std::errc() && end == text.data() + text.size()) return value;
    }
    return text;
}

bool convert(YAML::Node const& node, Json& json, int depth, int& budget, std::string& error) {
    if (depth > 40 || --budget < 0) {
        error = depth > 40 ? "is nested too deeply" : "holds too many values";
        return false;
    }
    if (!node.IsDefined() || node.IsNull()) {
        json = nullptr;
    } else if (node.IsScalar()) {
        json = scalar_to_json(node);
    } else if (node.IsSequence()) {
        json = Json::array();
        for (auto const& item : node) {
            Json value;
            if (!convert(item, value, depth + 1, budget, error)) return false;
            json.push_back(std::move(value));
        }
    } else {
        json = Json::object();
        for (auto const& pair : node) {
            if (!pair.first.IsScalar()) {
                error = fmt::format("has {} as a key, expected text", describe(pair.first));
                return false;
            }
            auto const& key = pair.first.Scalar();
            if (json.contains(key)) {
                error = fmt::format("holds \"{}\" twice", key);
                return false;
            }
            Json value;
            if (!convert(pair.second, value, depth + 1, budget, error)) return false;
            json[key] = std::move(value);
        }
    }
    return true;
}

} // namespace

std::string describe(YAML::Node const& node) {
    if (!node.IsDefined() || node.IsNull()) return "nothing";
    if (node.IsMap()) return "a mapping";
    if (node.IsSequence()) return "a list";
    auto text = node.Scalar();
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return fmt::format("\"{}\"", text);
}

Result<Json> to_json(YAML::Node const& node) {
    Json json;
    std::string error;
    int budget = 10000; // aliases can make a small file endless
    if (!convert(node, json, 0, budget, error)) return fail(ErrorKind::Invalid, "{}", error);
    return json;
}

// ---- Reading

namespace {
/// Kept in the order of the file; of one place, in the order of finding.
void insert(std::vector<Problem>& problems, Problem problem) {
    auto before = [](Problem const& a, Problem const& b) { return std::pair(a.line, a.column) < std::pair(b.line, b.column); };
    auto at = std::upper_bound(problems.begin(), problems.end(), problem, before);
    problems.insert(at, std::move(problem));
}
} // namespace

Reading::Reading(std::filesystem::path file, std::string_view text) : file_(std::move(file)), lines_(split(text, '\n')) {}

void Reading::problem(Place place, std::string path, std::string message) {
    insert(problems_, {file_.string(), place.line, place.column, std::move(path), std::move(message)});
}

void Reading::problem(std::string const& path, std::string message) { problem(where(path), path, std::move(message)); }

void Reading::warning(std::string const& path, std::string message) {
    auto place = where(path);
    insert(warnings_, {file_.string(), place.line, place.column, path, std::move(message)});
}

Place Reading::where(std::string path) const {
    for (;;) {
        if (auto found = places_.find(path); found != places_.end()) return found->second;
        if (path.empty()) return {1, 1};
        auto cut = path.find_last_of(".[");
        path.erase(cut == std::string::npos ? 0 : cut);
    }
}

Place Reading::place(YAML::Mark const& mark) const {
    if (mark.is_null()) return {};
    Place place{mark.line + 1, mark.column + 1};
    if (static_cast<std::size_t>(mark.line) < lines_.size()) {
        auto before = std::string_view(lines_[static_cast<std::size_t>(mark.line)]).substr(0, static_cast<std::size_t>(mark.column));
        auto inside = std::count_if(before.begin(), before.end(), [](char c) { return (c & 0xC0) == 0x80; });
        place.column -= static_cast<int>(inside);
    }
    return place;
}

std::filesystem::path Reading::local_path(std::string const& text) const {
    if (text.empty()) return {};
    std::filesystem::path path = text;
    if (text == "~" || text.starts_with("~/")) {
        auto const* home = std::getenv("HOME");
        path = std::filesystem::path(home && *home ? home : "/root") / text.substr(std::min<std::size_t>(2, text.size()));
    } else if (path.is_relative()) {
        path = std::filesystem::absolute(file_).parent_path() / path;
    }
    return path.lexically_normal();
}

std::vector<Problem> Reading::take_problems() { return std::move(problems_); }
std::vector<Problem> Reading::take_warnings() { return std::move(warnings_); }

// ---- Section

Section::Section(YAML::Node const& node, std::string path, Place place, Reading& reading)
    : path_(std::move(path)), place_(place), reading_(&reading) {
    reading.remember(path_, place);
    if (!node.IsMap()) {
        broken_ = true;
        reading.problem(place, path_, fmt::format("expected a mapping, got {}", describe(node)));
        return;
    }
    std::vector<YAML::Node> merged;
    for (auto const& pair : node) {
        auto key_place = reading.place(pair.first.Mark());
        if (!pair.first.IsScalar()) {
            reading.problem(key_place, path_, fmt::format("has {} as a key, expected text", describe(pair.first)));
            continue;
        }
        auto key = pair.first.Scalar();
        if (key == "<<" && is_plain(pair.first)) { // merge keys: OCR-D's reader knows them, yaml-cpp does not
            if (pair.second.IsSequence())
                for (auto const& one : pair.second) merged.push_back(one);
            else
                merged.push_back(pair.second);
            continue;
        }
        if (auto const* first = find(key)) {
            reading.problem(key_place, path_of(key), fmt::format("is given twice, first in line {}", first->key_place.line));
            continue;
        }
        auto value_place = place_of(pair.second, key_place);
        reading.remember(path_of(key), value_place);
        entries_.push_back({key, key_place, value_place, pair.second});
    }
    for (auto const& source : merged) {
        if (!source.IsMap()) {
            reading.problem(place_of(source, place_), path_of("<<"), fmt::format("expected a mapping to merge, got {}", describe(source)));
            continue;
        }
        for (auto const& pair : source) {
            if (!pair.first.IsScalar() || find(pair.first.Scalar())) continue;
            auto key = pair.first.Scalar();
            auto key_place = reading.place(pair.first.Mark());
            auto value_place = place_of(pair.second, key_place);
            reading.remember(path_of(key), value_place);
            entries_.push_back({key, key_place, value_place, pair.second});
        }
    }
}

Place Section::place_of(YAML::Node const& value, Place key_place) const {
    if (!value.IsDefined() || value.IsNull()) return key_place; // a missing value has no mark of its own
    auto place = reading_->place(value.Mark());
    return place.line ? place : key_place;
}

Section::Entry const* Section::find(std::string_view key) const {
    auto found = std::ranges::find(entries_, key, &Entry::key);
    return found == entries_.end() ? nullptr : &*found;
}

std::string Section::path_of(std::string_view key) const { return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key); }

void Section::only(Keys known) const {
    std::vector<std::string> names(known.begin(), known.end());
    for (auto const& entry : entries_) {
        if (std::ranges::find(known, entry.key) != known.end()) continue;
        auto near = closest(entry.key, names);
        reading_->problem(entry.key_place, path_of(entry.key),
                          near.empty() ? fmt::format("unknown key; known here: {}", join(names, ", "))
                                       : fmt::format("unknown key (did you mean \"{}\"?)", near));
    }
}

bool Section::has(std::string_view key) const { return find(key) != nullptr; }

bool Section::is_section(std::string_view key) const {
    auto const* entry = find(key);
    return entry && entry->value.IsMap();
}

void Section::problem(std::string_view key, std::string message) const {
    auto const* entry = find(key);
    reading_->problem(entry ? entry->place : place_, path_of(key), std::move(message));
}

void Section::missing(std::string_view key) const {
    if (!broken_) reading_->problem(place_, path_of(key), "is required");
}

std::optional<std::string> Section::scalar(std::string_view key) const {
    auto const* entry = find(key);
    if (!entry) return {};
    if (!entry->value.IsScalar()) {
        problem(key, fmt::format("expected text, got {}", describe(entry->value)));
        return {};
    }
    return entry->value.Scalar();
}

std::string Section::text(std::string_view key) const {
    if (!has(key)) {
        missing(key);
        return {};
    }
    return text(key, {});
}

std::string Section::text(std::string_view key, std::string fallback) const {
    auto given = scalar(key);
    if (!given) return fallback;
    if (trim(*given).empty()) {
        problem(key, "must not be empty");
        return fallback;
    }
    if (given->find('\0') != std::string::npos) {
        problem(key, "holds a NUL character");
        return fallback;
    }
    return *given;
}

std::int64_t Section::number(std::string_view key, std::int64_t low, std::int64_t high, std::int64_t fallback) const {
    auto const* entry = find(key);
    if (!entry) return fallback;
    auto expected = fmt::format("expected a whole number from {} to {}, got ", low, high);
    if (!entry->value.IsScalar()) {
        problem(key, expected + describe(entry->value));
        return fallback;
    }
    auto const& text = entry->value.Scalar();
    auto value = whole_number(text);
    if (value && !is_plain(entry->value)) {
        problem(key, fmt::format("{}the text \"{}\" (leave the quotes out)", expected, text));
        return fallback;
    }
    if (!value) {
        problem(key, fmt::format("{}\"{}\"{}", expected, text, leading_zero_hint(text)));
        return fallback;
    }
    if (*value < low || *value > high) {
        problem(key, fmt::format("{}{}", expected, *value));
        return fallback;
    }
    return *value;
}

bool Section::flag(std::string_view key, bool fallback) const {
    auto const* entry = find(key);
    if (!entry) return fallback;
    if (entry->value.IsScalar() && is_plain(entry->value)) {
        auto word = entry->value.Scalar();
        std::ranges::transform(word, word.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        if (word == "true" || word == "yes" || word == "on") return true;
        if (word == "false" || word == "no" || word == "off") return false;
    }
    problem(key, fmt::format("expected true or false, got {}", describe(entry->value)));
    return fallback;
}

std::chrono::seconds Section::duration(std::string_view key, std::chrono::seconds fallback) const {
    auto const* entry = find(key);
    if (!entry) return fallback;
    if (entry->value.IsScalar()) {
        auto const& text = entry->value.Scalar();
        auto value = scaled(text, {{"", 1}, {"s", 1}, {"m", 60}, {"min", 60}, {"h", 3600}, {"d", 86400}});
        constexpr std::uint64_t kTenYears = 3650ULL * 86400;
        if (value && *value <= kTenYears) return std::chrono::seconds(*value);
    }
    problem(key, fmt::format("expected a time such as 30s, 5m, 2h or 1d, got {}{}", describe(entry->value),
                             entry->value.IsScalar() ? leading_zero_hint(entry->value.Scalar()) : ""));
    return fallback;
}

std::uint64_t Section::bytes(std::string_view key, std::uint64_t fallback) const {
    auto const* entry = find(key);
    if (!entry) return fallback;
    if (entry->value.IsScalar()) {
        auto value = scaled(entry->value.Scalar(), {{"", 1},
                                                    {"B", 1},
                                                    {"kB", 1000},
                                                    {"KiB", 1024},
                                                    {"MB", 1000 * 1000},
                                                    {"MiB", 1024 * 1024},
                                                    {"GB", 1000 * 1000 * 1000},
                                                    {"GiB", 1024 * 1024 * 1024}});
        if (value && *value > 0) return *value;
    }
    problem(key, fmt::format("expected a size such as 65536, 16MiB or 1GB, got {}", describe(entry->value)));
    return fallback;
}

std::filesystem::path Section::path(std::string_view key) const { return reading_->local_path(text(key, {})); }

std::vector<std::filesystem::path> Section::paths(std::string_view key) const {
    std::vector<std::filesystem::path> all;
    auto const* entry = find(key);
    if (!entry) return all;
    if (!entry->value.IsSequence()) {
        problem(key, fmt::format("expected a list of paths, got {}", describe(entry->value)));
        return all;
    }
    std::size_t index = 0;
    for (auto const& item : entry->value) {
        auto item_path = fmt::format("{}[{}]", path_of(key), index++);
        auto place = place_of(item, entry->place);
        reading_->remember(item_path, place);
        if (!item.IsScalar() || trim(item.Scalar()).empty())
            reading_->problem(place, item_path, fmt::format("expected a path, got {}", describe(item)));
        else
            all.push_back(reading_->local_path(item.Scalar()));
    }
    return all;
}

std::map<std::string, std::string> Section::texts(std::string_view key) const {
    std::map<std::string, std::string> all;
    if (!has(key)) return all;
    auto inner = section(key);
    for (auto const& entry : inner.entries_) {
        if (entry.value.IsScalar())
            all[entry.key] = entry.value.Scalar();
        else
            inner.problem(entry.key, fmt::format("expected text, got {}", describe(entry.value)));
    }
    return all;
}

Json Section::object(std::string_view key) const {
    auto const* entry = find(key);
    if (!entry) return Json::object();
    if (!entry->value.IsMap()) {
        problem(key, fmt::format("expected a mapping, got {}", describe(entry->value)));
        return Json::object();
    }
    auto json = to_json(entry->value);
    if (!json) {
        problem(key, json.error().message());
        return Json::object();
    }
    return std::move(*json);
}

Section Section::section(std::string_view key) const {
    auto const* entry = find(key);
    OCRCTL_CHECK(entry); // ask has() first
    return Section(entry->value, path_of(key), entry->place, *reading_);
}

std::vector<Section> Section::list(std::string_view key) const {
    std::vector<Section> all;
    auto const* entry = find(key);
    if (!entry) return all;
    if (!entry->value.IsSequence()) {
        problem(key, fmt::format("expected a list, got {}", describe(entry->value)));
        return all;
    }
    std::size_t index = 0;
    for (auto const& item : entry->value) {
        all.emplace_back(item, fmt::format("{}[{}]", path_of(key), index++), place_of(item, entry->place), *reading_);
    }
    return all;
}

void Section::wrong_choice(std::string_view key, std::string const& given, std::vector<std::string> const& names) const {
    auto near = closest(given, names);
    problem(key, fmt::format("expected {}, got \"{}\"{}", join(names, " | "), given,
                             near.empty() ? "" : fmt::format(" (did you mean \"{}\"?)", near)));
}

} // namespace ocrctl::config
