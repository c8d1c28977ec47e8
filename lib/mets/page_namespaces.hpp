// OCR-D's rules about PAGE-XML and ALTO: what the files of a METS are, by MIME type and by namespace.
#pragma once

#include <string_view>

namespace ocrctl::mets {

inline constexpr std::string_view kPageMimetype = "application/vnd.prima.page+xml";
inline constexpr std::string_view kAltoMimetype = "application/alto+xml";
inline constexpr std::string_view kHocrMimetype = "text/vnd.hocr+html";
inline constexpr std::string_view kTextMimetype = "text/plain";
inline constexpr std::string_view kPdfMimetype = "application/pdf";
inline constexpr std::string_view kTiffMimetype = "image/tiff";
inline constexpr std::string_view kPngMimetype = "image/png";
inline constexpr std::string_view kJpegMimetype = "image/jpeg";

/// The PAGE version that we write.
inline constexpr std::string_view kPageNamespace = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15";
/// Every PAGE content namespace starts so; older versions (2013-07-15, ...) are read.
inline constexpr std::string_view kPageNamespacePrefix = "http://schema.primaresearch.org/PAGE/gts/pagecontent/";
inline constexpr std::string_view kAltoNamespace = "http://www.loc.gov/standards/alto/ns-v4#";
inline constexpr std::string_view kAltoNamespacePrefix = "http://www.loc.gov/standards/alto/ns-v";

inline constexpr std::string_view kMetsNamespace = "http://www.loc.gov/METS/";
inline constexpr std::string_view kXlinkNamespace = "http://www.w3.org/1999/xlink";
inline constexpr std::string_view kModsNamespace = "http://www.loc.gov/mods/v3";
inline constexpr std::string_view kOcrdNamespace = "https://ocr-d.de";

inline bool is_page(std::string_view mimetype) noexcept { return mimetype == kPageMimetype; }
inline bool is_image(std::string_view mimetype) noexcept { return mimetype.starts_with("image/"); }

/// ".xml", ".tif", ...: the file name extension that OCR-D gives the MIME type; "" where it knows none.
std::string_view extension_of(std::string_view mimetype) noexcept;
/// The MIME type by file name extension, upper or lower case; "application/octet-stream" where unknown. ".xml" is PAGE.
std::string_view mimetype_of(std::string_view file_name) noexcept;

} // namespace ocrctl::mets
