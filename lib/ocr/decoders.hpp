// One decoder per kind of image, private to lib/ocr. Each returns the stored pixels as 8-bit gray or RGB, alpha laid on
// white, with what the file says about resolution and orientation; with `header_only` all but the pixels. Errors lack
// the file's name, read_image adds it.
#pragma once

#include "lib/ocr/image.hpp"

#include <cstdint>

namespace ocrctl::ocr {

Result<Image> decode_tiff(std::filesystem::path const& file, int frame, bool header_only);
Result<int> count_tiff_frames(std::filesystem::path const& file);
Result<Image> decode_jpeg(std::string_view bytes, bool header_only);
Result<Image> decode_png(std::string_view bytes, bool header_only);
Result<Image> decode_jpeg2000(std::string_view bytes, bool header_only);
Result<Image> decode_webp(std::string_view bytes, bool header_only);
/// BMP, GIF, PNM: through leptonica.
Result<Image> decode_other(std::filesystem::path const& file);

/// Before memory is taken for the pixels. Invalid: no pixels at all; TooLarge: more than any page has.
Result<void> check_size(std::uint64_t width, std::uint64_t height);

/// Resolution and orientation of an EXIF block (TIFF structure, without the "Exif\0\0" in front); what it does not say
/// stays as it is. Never fails: a damaged block says nothing.
void read_exif(std::string_view block, Image& image);
/// EXIF's orientation number to PAGE's degrees; mirrored ones add a warning.
void set_orientation(int exif, Image& image);

} // namespace ocrctl::ocr
