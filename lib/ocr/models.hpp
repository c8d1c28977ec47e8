// Tesseract's models: where they are looked for, and the loaded ones.
#pragma once

#include "lib/base/error.hpp"
#include "lib/model/json.hpp"

#include <filesystem>
#include <list>
#include <memory>
#include <string>
#include <vector>

namespace tesseract {
class TessBaseAPI;
}

namespace ocrctl::ocr {

struct ModelPart {
    std::string name;           // as asked for: "Fraktur"
    std::filesystem::path file; // /usr/share/tesseract-ocr/5/tessdata/script/Fraktur.traineddata
};

/// Folders in which models are looked for, first one first: OCRCTL_MODELS (colon-separated), OCR-D's resource
/// locations, TESSDATA_PREFIX, Debian's and Ubuntu's packages.
std::vector<std::filesystem::path> model_folders();

/// Finds each part of "Fraktur+deu". NotFound names what is missing, how to get it, and where it was looked for.
Result<std::vector<ModelPart>> find_model(std::string const& model);

/// "sha256:..." of a model file; remembered as long as the file keeps its size and time.
Result<std::string> digest_of_model(std::filesystem::path const& file);

struct TessDelete {
    void operator()(tesseract::TessBaseAPI* api) const noexcept;
};
using TessPtr = std::unique_ptr<tesseract::TessBaseAPI, TessDelete>;

/// Loaded models, the least recently used one goes when there are too many. Not thread-safe, one owner.
class ModelCache {
public:
    /// A recogniser with these models and Tesseract variables set; valid until the next call. NotFound, Invalid (a
    /// damaged model, an unknown variable).
    Result<tesseract::TessBaseAPI*> get(std::string const& model, Json const& variables);
    /// For layout analysis only: needs no model.
    Result<tesseract::TessBaseAPI*> layout(Json const& variables);

private:
    struct Entry {
        std::string key;
        TessPtr api;
    };
    Result<tesseract::TessBaseAPI*> keep(std::string key, TessPtr api);
    tesseract::TessBaseAPI* use(std::string const& key);
    std::list<Entry> entries_; // most recent first
};

} // namespace ocrctl::ocr
