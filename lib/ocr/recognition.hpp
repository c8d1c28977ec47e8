// Layout analysis and text recognition with Tesseract, from and into PAGE-XML.
#pragma once

#include "lib/ocr/models.hpp"
#include "lib/ocr/page.hpp"
#include "lib/ocr/view.hpp"

namespace ocrctl::ocr {

struct RecognitionSettings {
    std::string model = "eng";
    Json variables = Json::object(); // Tesseract's own
    std::string segmentation_level = "region", textequiv_level = "word";
    bool overwrite_segments = false, raw_lines = false, find_tables = true, sparse_text = false;
    int padding = 5;
    double dpi = 0; // of the view; 0: unknown, Tesseract estimates it by the height of lines
};

/// Loads the model that recognize() will use. NotFound, Invalid.
Result<void> preload(ModelCache& models, RecognitionSettings const& settings);

/// Finds regions, reading order and lines in the view. Keeps regions that are there unless `overwrite_segments`, and
/// then only gives lines to the text regions that have none.
Result<void> segment(Page& page, View const& view, ModelCache& models, RecognitionSettings const& settings);

/// Recognises text: in one pass over the whole view if the page has no regions, else in the regions, lines and words
/// that are there. Records the resolution if the page has none.
Result<void> recognize(Page& page, View const& view, ModelCache& models, RecognitionSettings const& settings);

} // namespace ocrctl::ocr
