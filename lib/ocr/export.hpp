// PAGE-XML in other forms, in reading order. Nothing is invented: no styles, no fonts.
#pragma once

#include "lib/ocr/page.hpp"

#include <string>

namespace ocrctl::ocr {

struct ExportNames {
    std::string file_id, page_id;
    bool nfc = false;
};

/// Lines as they are, a blank line between regions, a newline at the end.
std::string to_text(Page const& page, bool nfc = false);
/// ALTO 4: each String with box and confidence, hyphens at line ends as HYP with SUBS_CONTENT.
std::string to_alto(Page const& page, ExportNames const& names);
/// hOCR: ocr_page, ocr_carea, ocr_par, ocr_line (baseline), ocrx_word (x_wconf).
std::string to_hocr(Page const& page, ExportNames const& names);

/// Unicode's composed form.
std::string composed(std::string const& text);

} // namespace ocrctl::ocr
