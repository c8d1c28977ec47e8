// The only place that touches YAML nodes: typed access to a mapping that collects problems instead of stopping at the
// first. Private to lib/config.
#pragma once

#include "lib/config/config.hpp"

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>
#include <yaml-cpp/yaml.h>

namespace ocrctl::config {

/// A place in the file, counted from 1; {0, 0} is the whole file.
struct Place {
    int line = 0, column = 0;
};

/// What all Sections of one file share. Remembers where each value stands, so that checks across fields, made after
/// the reading, point at lines as well.
class Reading {
public:
    Reading(std::filesystem::path file, std::string_view text);

    void problem(Place place, std::string path, std::string message);
    /// At the value of that path, or at the nearest thing around it that is in the file.
    void problem(std::string const& path, std::string message);
    void warning(std::string const& path, std::string message);
    void remember(std::string const& path, Place place) { places_[path] = place; }
    Place where(std::string path) const;

    /// yaml-cpp's marks count bytes from zero; ours count characters from one.
    Place place(YAML::Mark const& mark) const;

    /// A path on this machine: `~` expanded, relative ones from the folder of the file.
    std::filesystem::path local_path(std::string const& text) const;

    std::vector<Problem> take_problems();
    std::vector<Problem> take_warnings();

private:
    std::filesystem::path file_;
    std::vector<std::string> lines_;
    std::map<std::string, Place> places_;
    std::vector<Problem> problems_, warnings_;
};

using Keys = std::span<std::string_view const>;

/// A mapping of the file with its path. Getters without a default are for required keys; each reports what is wrong
/// and then returns the default, so that reading goes on. Cheap to copy; must not outlive the Reading.
class Section {
public:
    /// A value that is no mapping is reported here; the Section then is empty and silent.
    Section(YAML::Node const& node, std::string path, Place place, Reading& reading);

    /// Reports every key that is not listed.
    void only(Keys known) const;
    bool has(std::string_view key) const;

    std::string text(std::string_view key) const;
    std::string text(std::string_view key, std::string fallback) const;
    std::int64_t number(std::string_view key, std::int64_t low, std::int64_t high, std::int64_t fallback) const;
    int port(std::string_view key, int fallback) const { return static_cast<int>(number(key, 1, 65535, fallback)); }
    bool flag(std::string_view key, bool fallback) const;
    /// `30`, `30s`, `5m`, `2h`, `1d`
    std::chrono::seconds duration(std::string_view key, std::chrono::seconds fallback) const;
    /// `4096`, `16MiB`, `1GB`
    std::uint64_t bytes(std::string_view key, std::uint64_t fallback) const;
    std::filesystem::path path(std::string_view key) const; // "" if absent
    std::vector<std::filesystem::path> paths(std::string_view key) const;
    std::map<std::string, std::string> texts(std::string_view key) const;
    Json object(std::string_view key) const;
    Section section(std::string_view key) const;
    std::vector<Section> list(std::string_view key) const;

    template <class Enum>
    Enum choice(std::string_view key, std::vector<std::pair<std::string_view, Enum>> const& choices, Enum fallback) const {
        auto given = scalar(key);
        if (!given) return fallback;
        std::vector<std::string> names;
        for (auto const& [name, value] : choices) {
            if (name == *given) return value;
            names.emplace_back(name);
        }
        wrong_choice(key, *given, names);
        return fallback;
    }

    /// Whether the value of the key is a mapping (auth: none, or auth: {...}).
    bool is_section(std::string_view key) const;
    void problem(std::string_view key, std::string message) const;
    void missing(std::string_view key) const;
    std::string path_of(std::string_view key) const;
    std::string const& path() const noexcept { return path_; }
    Reading& reading() const noexcept { return *reading_; }

private:
    struct Entry {
        std::string key;
        Place key_place, place; // of the key, of the value
        YAML::Node value;
    };

    Entry const* find(std::string_view key) const;
    /// The text of a scalar, reported if it is something else; nothing if the key is absent.
    std::optional<std::string> scalar(std::string_view key) const;
    void wrong_choice(std::string_view key, std::string const& given, std::vector<std::string> const& names) const;
    Place place_of(YAML::Node const& value, Place key_place) const;

    std::string path_;
    Place place_;
    Reading* reading_;
    bool broken_ = false; // no mapping at all: reported once, missing keys are not
    std::vector<Entry> entries_;
};

/// "a mapping", "a list", "\"two\"", "nothing"
std::string describe(YAML::Node const& node);
/// The YAML value as JSON by the rules of YAML 1.2's core schema; an error sentence if it is too deep or too big.
Result<Json> to_json(YAML::Node const& node);

} // namespace ocrctl::config
