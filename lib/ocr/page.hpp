// A PAGE-XML document (2019-07-15; older ones are read and become that version), kept as its XML tree: what a step does
// not know about stays as it is. Prefixes are resolved by local name; new elements take the document's own prefix and
// the place that the schema's order gives them.
#pragma once

#include "lib/base/error.hpp"
#include "lib/model/json.hpp"
#include "lib/ocr/geometry.hpp"

#include <memory>
#include <optional>
#include <pugixml.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ocrctl::ocr {

std::string_view local_name(pugi::xml_node node) noexcept;
pugi::xml_node child_of(pugi::xml_node parent, std::string_view name) noexcept;
std::vector<pugi::xml_node> children_of(pugi::xml_node parent, std::string_view name);
/// Sets or adds an attribute.
void set(pugi::xml_node node, char const* name, std::string_view value);
/// Adds an element where the schema has it: after its like, before what must follow.
pugi::xml_node add_child(pugi::xml_node parent, std::string_view name);
void remove_children(pugi::xml_node parent, std::string_view name);

bool is_region(pugi::xml_node node) noexcept;
/// Regions directly below, of any kind, in document order.
std::vector<pugi::xml_node> regions_of(pugi::xml_node parent);

Polygon coords_of(pugi::xml_node segment);
void set_coords(pugi::xml_node segment, Polygon const& polygon);

/// The first TextEquiv (by index, then order); "" if there is none.
std::string text_of(pugi::xml_node segment);
std::optional<double> confidence_of(pugi::xml_node segment);
/// Replaces every TextEquiv of the segment.
void set_text(pugi::xml_node segment, std::string_view text, std::optional<double> confidence);

/// One step that made or changed the document.
struct StepRecord {
    std::string step, executable, version;
    Json parameters;
    std::vector<std::pair<std::string, std::string>> models; // name -> "sha256:..."
};

class Page {
public:
    /// A document without segments. `image` is METS-relative.
    static Page blank(std::string const& image, int width, int height);
    /// Invalid if the text is not well-formed or has no Page with an image and its size.
    static Result<Page> parse(std::string_view text);

    pugi::xml_node node() const noexcept { return page_; }
    std::string image() const { return page_.attribute("imageFilename").value(); }
    int width() const { return page_.attribute("imageWidth").as_int(); }
    int height() const { return page_.attribute("imageHeight").as_int(); }
    double orientation() const { return page_.attribute("orientation").as_double(); }
    void set_orientation(double degrees);
    /// Pixels per inch as recorded, 0 if not.
    double dpi() const;
    void set_dpi(double dpi);
    /// Which page of a multi-page file the image is, from 0: kept as custom="frame {index:2;}".
    int frame() const;
    void set_frame(int frame);

    /// Every region that has or may have text lines (TextRegion, nested ones too), in reading order; what the
    /// ReadingOrder does not name follows in document order.
    std::vector<pugi::xml_node> text_regions() const;
    /// Top-level regions of any kind in reading order.
    std::vector<pugi::xml_node> regions_in_order() const;

    /// Removes all regions and the ReadingOrder.
    void clear_regions();
    /// Appends to the one OrderedGroup of the ReadingOrder, which is made if there is none.
    void add_to_reading_order(std::string const& region_id);
    /// An id that is not in the document: "r", 7 -> "r7", or r7a, ... if taken.
    std::string fresh_id(std::string const& wanted);

    void add_alternative_image(std::string const& path, std::string const& comments);
    void add_step(StepRecord const& step);

    /// The document's text, with its id and the time of this change.
    std::string text(std::string const& pcgts_id);

private:
    Page() = default;
    std::unique_ptr<pugi::xml_document> document_;
    pugi::xml_node root_, page_;
};

} // namespace ocrctl::ocr
