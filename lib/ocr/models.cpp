#include "lib/ocr/models.hpp"

#include "lib/base/files.hpp"
#include "lib/base/text.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <tesseract/baseapi.h>
#include <unistd.h>

namespace ocrctl::ocr {

namespace fs = std::filesystem;

namespace {

// An engine holds this many model sets; a larger one has about 80 MB.
constexpr std::size_t kLoadedModels = 4;

void add_folder(std::vector<fs::path>& folders, fs::path const& folder) {
    if (!folder.empty() && std::ranges::find(folders, folder) == folders.end()) folders.push_back(folder);
}

std::string from_environment(char const* name) {
    char const* value = std::getenv(name);
    return value ? value : "";
}

std::string package_of(std::string name) {
    if (name.starts_with("script/")) name.erase(0, 7);
    static std::map<std::string, std::string, std::less<>> const scripts = {
        {"Fraktur", "frak"},  {"Latin", "latn"},  {"Cyrillic", "cyrl"}, {"Greek", "grek"},
        {"Arabic", "arab"},   {"Hebrew", "hebr"}, {"HanS", "hans"},     {"HanT", "hant"},
        {"Japanese", "jpan"}, {"Hangul", "hang"}, {"Armenian", "armn"}, {"Georgian", "geor"}};
    if (auto known = scripts.find(name); known != scripts.end()) return "tesseract-ocr-script-" + known->second;
    std::ranges::replace(name, '_', '-');
    return "tesseract-ocr-" + name;
}

} // namespace

std::vector<fs::path> model_folders() {
    std::vector<fs::path> folders;
    for (auto const& folder : split(from_environment("OCRCTL_MODELS"), ':')) add_folder(folders, folder);
    auto data = from_environment("XDG_DATA_HOME");
    if (data.empty() && !from_environment("HOME").empty()) data = from_environment("HOME") + "/.local/share";
    for (char const* executable : {"ocrd-ocrctl-recognize", "ocrd-tesserocr-recognize"}) {
        if (!data.empty()) add_folder(folders, fs::path(data) / "ocrd-resources" / executable);
        add_folder(folders, fs::path("/usr/local/share/ocrd-resources") / executable);
    }
    if (auto prefix = from_environment("TESSDATA_PREFIX"); !prefix.empty()) {
        add_folder(folders, prefix);
        add_folder(folders, fs::path(prefix) / "tessdata");
    }
    for (char const* folder : {"/usr/share/tesseract-ocr/5/tessdata", "/usr/share/tesseract-ocr/4.00/tessdata",
                               "/usr/share/tessdata", "/usr/local/share/tessdata"})
        add_folder(folders, folder);
    return folders;
}

Result<std::vector<ModelPart>> find_model(std::string const& model) {
    std::vector<ModelPart> parts;
    auto names = split(model, '+');
    if (names.empty()) return fail(ErrorKind::Invalid, "no model is named");
    auto folders = model_folders();
    for (auto name : names) {
        if (name.ends_with(".traineddata")) name.erase(name.size() - 12);
        if (name.empty() || name.starts_with("/") || name.find("..") != std::string::npos)
            return fail(ErrorKind::Invalid, "\"{}\" is no name of a model", name);
        ModelPart part{name, {}};
        std::error_code ignored;
        for (auto const& folder : folders)
            for (auto const& file : {folder / (name + ".traineddata"), folder / "script" / (name + ".traineddata")})
                if (part.file.empty() && fs::is_regular_file(file, ignored)) part.file = file;
        if (part.file.empty()) {
            std::vector<std::string> looked;
            for (auto const& folder : folders)
                if (fs::is_directory(folder, ignored)) looked.push_back(folder.string());
            return fail(ErrorKind::NotFound,
                        "there is no Tesseract model \"{}\": install the package {}, or put {}.traineddata into a "
                        "folder of `models:` "
                        "(or of OCRCTL_MODELS); looked in {}",
                        name, package_of(name), name,
                        looked.empty() ? "no folder, as none exists" : join(looked, ", "));
        }
        parts.push_back(std::move(part));
    }
    return parts;
}

Result<std::string> digest_of_model(fs::path const& file) {
    struct Known {
        std::uintmax_t size;
        fs::file_time_type time;
        std::string digest;
    };
    static std::map<fs::path, Known> known;
    std::error_code ignored;
    auto size = fs::file_size(file, ignored);
    auto time = fs::last_write_time(file, ignored);
    if (auto found = known.find(file); found != known.end() && found->second.size == size && found->second.time == time)
        return found->second.digest;
    auto digest = sha256_of_file(file);
    if (!digest) return digest;
    known[file] = {size, time, "sha256:" + *digest};
    return known[file].digest;
}

void TessDelete::operator()(tesseract::TessBaseAPI* api) const noexcept {
    delete api;
}

tesseract::TessBaseAPI* ModelCache::use(std::string const& key) {
    auto found = std::ranges::find(entries_, key, &Entry::key);
    if (found == entries_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found);
    return entries_.front().api.get();
}

Result<tesseract::TessBaseAPI*> ModelCache::keep(std::string key, TessPtr api) {
    entries_.push_front({std::move(key), std::move(api)});
    while (entries_.size() > kLoadedModels) entries_.pop_back();
    return entries_.front().api.get();
}

namespace {

// Tesseract wants all parts of a model in one folder. Where they are not, this folder of links stands in for it while
// the models are read.
class LinkFolder {
public:
    static Result<LinkFolder> make(std::vector<ModelPart> const& parts) {
        auto pattern = (fs::temp_directory_path() / "ocrctl-models-XXXXXX").string();
        if (!::mkdtemp(pattern.data())) return fail(errno_error(errno, "make a folder for models"));
        LinkFolder folder;
        folder.path_ = pattern;
        for (std::size_t i = 0; i < parts.size(); ++i) {
            std::error_code error;
            fs::create_symlink(fs::absolute(parts[i].file),
                               folder.path_ / (parts[i].file.stem().string() + ".traineddata"), error);
            if (error && error != std::errc::file_exists)
                return fail(ErrorKind::Internal, "link {}: {}", parts[i].file.string(), error.message());
        }
        return folder;
    }
    LinkFolder(LinkFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
    LinkFolder& operator=(LinkFolder&&) = delete;
    ~LinkFolder() {
        if (!path_.empty()) remove_tree(path_);
    }
    fs::path const& path() const noexcept { return path_; }

private:
    LinkFolder() = default;
    fs::path path_;
};

Result<void> set_variables(tesseract::TessBaseAPI& api, Json const& variables) {
    for (auto const& [name, value] : variables.items()) {
        std::string text = value.is_string()    ? value.get<std::string>()
                           : value.is_boolean() ? (value.get<bool>() ? "1" : "0")
                                                : value.dump();
        if (!api.SetVariable(name.c_str(), text.c_str()))
            return fail(ErrorKind::Invalid, "Tesseract has no variable \"{}\" that takes \"{}\"", name, text);
    }
    return {};
}

} // namespace

Result<tesseract::TessBaseAPI*> ModelCache::get(std::string const& model, Json const& variables) {
    auto parts = find_model(model);
    if (!parts) return std::unexpected(parts.error());
    std::string key;
    for (auto const& part : *parts) key += part.file.string() + "+";
    key += dump(variables);
    if (auto* api = use(key)) return api;

    auto folder = parts->front().file.parent_path();
    bool together = std::ranges::all_of(*parts, [&](ModelPart const& p) { return p.file.parent_path() == folder; });
    std::optional<LinkFolder> links;
    if (!together) {
        auto made = LinkFolder::make(*parts);
        if (!made) return std::unexpected(made.error());
        links.emplace(std::move(*made));
        folder = links->path();
    }
    std::vector<std::string> names;
    for (auto const& part : *parts) names.push_back(part.file.stem().string());
    TessPtr api(new tesseract::TessBaseAPI);
    if (api->Init(folder.c_str(), join(names, "+").c_str(), tesseract::OEM_DEFAULT) != 0)
        return fail(ErrorKind::Invalid,
                    "Tesseract cannot load the model \"{}\" from {}: the file is damaged or made for another version",
                    model, parts->front().file.string());
    if (auto set = set_variables(*api, variables); !set) return std::unexpected(set.error());
    return keep(std::move(key), std::move(api));
}

Result<tesseract::TessBaseAPI*> ModelCache::layout(Json const& variables) {
    auto key = "layout:" + dump(variables);
    if (auto* api = use(key)) return api;
    TessPtr api(new tesseract::TessBaseAPI);
    api->InitForAnalysePage();
    if (auto set = set_variables(*api, variables); !set) return std::unexpected(set.error());
    return keep(std::move(key), std::move(api));
}

} // namespace ocrctl::ocr
