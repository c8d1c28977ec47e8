// `ocrctl ocr`, in parts: what to do (ocr_plan.cpp), doing it here (ocr_local.cpp) or on a server (ocr_server.cpp).
#pragma once

#include "cmd/tiff_frames.hpp"
#include "lib/model/json.hpp"

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ocrctl {

struct OcrOptions {
    std::vector<std::string> images;
    std::filesystem::path out;
    std::string lang;                 // empty: eng, or what the workflow says
    std::vector<std::string> formats; // empty: text, or what the workflow's export steps say
    std::filesystem::path workflow;
    std::size_t jobs = 0;             // 0: as many as cores
    std::string server;
    bool force = false, json = false, quiet = false;
};

struct OcrPage {
    std::filesystem::path image;    // absolute
    std::string shown;              // as the user named it, with the frame: "a.tif page 3"
    std::string base;               // of its results: "a", "a.0003"
    std::string id;                 // the same as an XML id
    std::optional<TiffFrame> frame; // one of several in a TIFF
    int frame_index = 0;
    std::string problem;            // why it cannot even be begun
};

struct OcrStep {
    std::string processor;
    Json parameters; // with defaults
    std::vector<std::string> input_groups, output_groups;
};

struct OcrPlan {
    std::vector<OcrPage> pages;
    std::vector<OcrStep> chain;   // without exports
    std::string result_group;     // what is exported
    std::vector<std::string> formats;
    bool nfc = false;
    Json chain_json() const;      // for the record
    std::vector<std::string> models() const;
};

inline constexpr char kImageGroup[] = "OCR-D-IMG";

/// Checks everything that can be checked without an engine. Usage, Invalid.
Result<OcrPlan> plan_ocr(OcrOptions const& options);

/// ".txt" for text, ".alto.xml", ".page.xml", ".hocr".
std::string ending_of(std::string const& format);

/// Digests of the models by name, as far as they are found in the folders that engines look in; remembered nowhere.
Json model_digests(std::vector<std::string> const& models);

/// Exit code.
int ocr_local(OcrOptions const& options, OcrPlan plan);
int ocr_on_server(OcrOptions const& options, OcrPlan plan);

/// What is printed at the end.
struct OcrSummary {
    std::size_t pages = 0, done = 0, exported = 0, up_to_date = 0;
    std::vector<std::pair<std::string, std::string>> failed; // page, why
    std::string stopped;                                     // the signal, if any
};
/// stdout: one line or JSON; stderr: the failed pages. Exit code 0, 1 if a page failed, 130 or 143 after a signal.
int report(OcrOptions const& options, OcrSummary const& summary);

} // namespace ocrctl
