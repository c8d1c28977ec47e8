// What is left to do for the pages of `ocrctl ocr`, by the record of the output folder. The same here and on a server.
#pragma once

#include "cmd/ocr.hpp"
#include "cmd/ocr_record.hpp"

namespace ocrctl {

inline constexpr char kPageType[] = "application/vnd.prima.page+xml";

enum class Todo { Nothing, Export, Everything };

struct OcrWork {
    OcrPage page;
    PageRecord record;                // as it will be written
    std::vector<std::string> formats; // to export
    Todo todo = Todo::Everything;
    bool resume = false;              // begun before from the same image, with the same steps
    std::string why;                  // a redo that needs a word
};

/// What is to be done, in page order; what is up to date or cannot be begun is counted in the summary. Conflict: files of the
/// results' names that are not ours.
Result<std::vector<OcrWork>> decide_work(OcrOptions const& options, OcrPlan const& plan, Json const& chain, Json const& models, OcrRecord& record,
                                         OcrSummary& summary);

/// A PAGE without segments that says which page of the TIFF it is.
std::string first_page_xml(OcrPage const& page, std::string const& image);

/// By the file's ending; "" lets the engine look.
std::string mimetype_of(std::filesystem::path const& image);

} // namespace ocrctl
