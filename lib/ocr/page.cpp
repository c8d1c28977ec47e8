#include "lib/ocr/page.hpp"

#include "lib/base/clock.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fmt/format.h>
#include <functional>
#include <map>

namespace ocrctl::ocr {

namespace {

constexpr std::string_view kNamespace = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15";
constexpr std::string_view kNamespacePrefix = "http://schema.primaresearch.org/PAGE/gts/pagecontent/";

constexpr std::array<std::string_view, 15> kRegions = {
    "TextRegion",  "ImageRegion",  "LineDrawingRegion", "GraphicRegion", "TableRegion",
    "ChartRegion", "MapRegion",    "SeparatorRegion",   "MathsRegion",   "ChemRegion",
    "MusicRegion", "AdvertRegion", "NoiseRegion",       "UnknownRegion", "CustomRegion"};

bool is_region_name(std::string_view name) noexcept {
    return std::ranges::find(kRegions, name) != kRegions.end();
}

// Place of an element among its siblings, by the schema's sequences.
int rank(std::string_view parent, std::string_view name) {
    static std::vector<std::string_view> const page = {"AlternativeImage", "Border",    "PrintSpace", "ReadingOrder",
                                                       "Layers",           "Relations", "TextStyle",  "UserDefined",
                                                       "Labels",           "*region"};
    static std::vector<std::string_view> const region = {
        "AlternativeImage", "Coords",   "UserDefined", "Labels",   "Roles", "Grid",
        "*region",          "TextLine", "TextEquiv",   "TextStyle"};
    static std::vector<std::string_view> const line = {
        "AlternativeImage", "Coords",    "Baseline",  "Word",        "Glyph",
        "Graphemes",        "TextEquiv", "TextStyle", "UserDefined", "Labels"};
    static std::vector<std::string_view> const metadata = {"Creator",  "Created",     "LastChange",
                                                           "Comments", "UserDefined", "MetadataItem"};
    static std::vector<std::string_view> const none;
    auto const& order = parent == "Page"                                                ? page
                        : is_region_name(parent)                                        ? region
                        : parent == "TextLine" || parent == "Word" || parent == "Glyph" ? line
                        : parent == "Metadata"                                          ? metadata
                                                                                        : none;
    auto at = std::ranges::find(order, is_region_name(name) ? std::string_view("*region") : name);
    return static_cast<int>(at - order.begin());
}

std::string qualified(pugi::xml_node like, std::string_view name) {
    std::string_view whole = like.name();
    auto colon = whole.find(':');
    if (colon == std::string_view::npos) return std::string(name);
    return std::string(whole.substr(0, colon + 1)) + std::string(name);
}

// xs:dateTime in UTC, to the second, as OCR-D writes it.
std::string now_text() {
    auto text = format_time(now_millis());
    return text.substr(0, 19);
}

// Gives a text only what XML 1.0 may hold.
std::string legal(std::string_view text) {
    std::string out;
    for (char c : text)
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') out += c;
    return out;
}

std::string value_text(Json const& value) {
    return value.is_string() ? value.get<std::string>() : dump(value);
}

} // namespace

std::string_view local_name(pugi::xml_node node) noexcept {
    std::string_view whole = node.name();
    auto colon = whole.find(':');
    return colon == std::string_view::npos ? whole : whole.substr(colon + 1);
}

pugi::xml_node child_of(pugi::xml_node parent, std::string_view name) noexcept {
    for (auto node : parent.children())
        if (local_name(node) == name) return node;
    return {};
}

std::vector<pugi::xml_node> children_of(pugi::xml_node parent, std::string_view name) {
    std::vector<pugi::xml_node> found;
    for (auto node : parent.children())
        if (local_name(node) == name) found.push_back(node);
    return found;
}

void set(pugi::xml_node node, char const* name, std::string_view value) {
    auto attribute = node.attribute(name);
    if (!attribute) attribute = node.append_attribute(name);
    attribute.set_value(std::string(value).c_str());
}

pugi::xml_node add_child(pugi::xml_node parent, std::string_view name) {
    auto own = local_name(parent);
    int mine = rank(own, name);
    pugi::xml_node before;
    // From the end: appending many lines or words looks at one sibling only.
    for (auto node = parent.last_child(); node; node = node.previous_sibling()) {
        if (node.type() != pugi::node_element) continue;
        if (rank(own, local_name(node)) <= mine) break;
        before = node;
    }
    auto full = qualified(parent, name);
    return before ? parent.insert_child_before(full.c_str(), before) : parent.append_child(full.c_str());
}

void remove_children(pugi::xml_node parent, std::string_view name) {
    for (auto node : children_of(parent, name)) parent.remove_child(node);
}

bool is_region(pugi::xml_node node) noexcept {
    return is_region_name(local_name(node));
}

std::vector<pugi::xml_node> regions_of(pugi::xml_node parent) {
    std::vector<pugi::xml_node> found;
    for (auto node : parent.children())
        if (is_region(node)) found.push_back(node);
    return found;
}

Polygon coords_of(pugi::xml_node segment) {
    auto coords = child_of(segment, "Coords");
    if (auto points = coords.attribute("points")) return parse_points(points.value());
    Polygon polygon; // 2010-03-19 has elements instead
    for (auto point : children_of(coords, "Point"))
        polygon.emplace_back(point.attribute("x").as_double(), point.attribute("y").as_double());
    return polygon;
}

void set_coords(pugi::xml_node segment, Polygon const& polygon) {
    auto coords = child_of(segment, "Coords");
    if (!coords) coords = add_child(segment, "Coords");
    set(coords, "points", format_points(polygon));
}

namespace {

pugi::xml_node best_equiv(pugi::xml_node segment) {
    pugi::xml_node best;
    for (auto node : children_of(segment, "TextEquiv"))
        if (!best || node.attribute("index").as_int(1 << 20) < best.attribute("index").as_int(1 << 20)) best = node;
    return best;
}

} // namespace

std::string text_of(pugi::xml_node segment) {
    return child_of(best_equiv(segment), "Unicode").text().get();
}

std::optional<double> confidence_of(pugi::xml_node segment) {
    auto conf = best_equiv(segment).attribute("conf");
    if (!conf) return std::nullopt;
    return std::clamp(conf.as_double(), 0.0, 1.0);
}

void set_text(pugi::xml_node segment, std::string_view text, std::optional<double> confidence) {
    remove_children(segment, "TextEquiv");
    auto equiv = add_child(segment, "TextEquiv");
    if (confidence) set(equiv, "conf", fmt::format("{:.4g}", std::clamp(*confidence, 0.0, 1.0)));
    equiv.append_child(qualified(equiv, "Unicode").c_str()).text().set(legal(text).c_str());
}

Page Page::blank(std::string const& image, int width, int height) {
    Page page;
    page.document_ = std::make_unique<pugi::xml_document>();
    auto declaration = page.document_->append_child(pugi::node_declaration);
    declaration.append_attribute("version") = "1.0";
    declaration.append_attribute("encoding") = "UTF-8";
    page.root_ = page.document_->append_child("pc:PcGts");
    set(page.root_, "xmlns:pc", kNamespace);
    set(page.root_, "xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance");
    set(page.root_, "xsi:schemaLocation", fmt::format("{0} {0}/pagecontent.xsd", kNamespace));
    set(page.root_, "pcGtsId", "");
    auto metadata = page.root_.append_child("pc:Metadata");
    auto now = now_text();
    add_child(metadata, "Creator").text().set(fmt::format("ocrctl {}", tools::version()).c_str());
    add_child(metadata, "Created").text().set(now.c_str());
    add_child(metadata, "LastChange").text().set(now.c_str());
    page.page_ = page.root_.append_child("pc:Page");
    set(page.page_, "imageFilename", image);
    set(page.page_, "imageWidth", std::to_string(width));
    set(page.page_, "imageHeight", std::to_string(height));
    return page;
}

Result<Page> Page::parse(std::string_view text) {
    Page page;
    page.document_ = std::make_unique<pugi::xml_document>();
    auto parsed = page.document_->load_buffer(text.data(), text.size(), pugi::parse_full);
    if (!parsed)
        return fail(ErrorKind::Invalid, "is not well-formed XML: {} at byte {}", parsed.description(), parsed.offset);
    page.root_ = page.document_->document_element();
    page.page_ = child_of(page.root_, "Page");
    if (local_name(page.root_) != "PcGts" || !page.page_)
        return fail(ErrorKind::Invalid, "is no PAGE-XML: its root is <{}>", page.root_.name());
    if (page.image().empty() || page.width() <= 0 || page.height() <= 0)
        return fail(ErrorKind::Invalid, "names no image with its size (imageFilename, imageWidth, imageHeight)");
    // An older version of the schema becomes ours; the elements that we touch are the same in all of them.
    for (auto attribute : page.root_.attributes()) {
        std::string_view name = attribute.name(), value = attribute.value();
        if ((name == "xmlns" || name.starts_with("xmlns:")) && value.starts_with(kNamespacePrefix))
            attribute.set_value(std::string(kNamespace).c_str());
        if (name.ends_with(":schemaLocation"))
            attribute.set_value(fmt::format("{0} {0}/pagecontent.xsd", kNamespace).c_str());
    }
    return page;
}

void Page::set_orientation(double degrees) {
    set(page_, "orientation", fmt::format("{:.4g}", degrees));
}

double Page::dpi() const {
    double value = page_.attribute("imageXResolution").as_double();
    if (std::string_view(page_.attribute("imageResolutionUnit").value()) == "PPCM") value *= 2.54;
    return value >= 70 && value <= 4800 ? value : 0;
}

void Page::set_dpi(double dpi) {
    auto text = fmt::format("{:.6g}", dpi);
    set(page_, "imageXResolution", text);
    set(page_, "imageYResolution", text);
    set(page_, "imageResolutionUnit", "PPI");
}

int Page::frame() const {
    std::string_view custom = page_.attribute("custom").value();
    auto at = custom.find("frame {index:");
    return at == std::string_view::npos ? 0 : std::atoi(custom.data() + at + 13);
}

void Page::set_frame(int frame) {
    if (frame > 0) set(page_, "custom", fmt::format("frame {{index:{};}}", frame));
}

std::vector<pugi::xml_node> Page::regions_in_order() const {
    std::map<std::string, pugi::xml_node, std::less<>> by_id;
    std::vector<pugi::xml_node> all = regions_of(page_), ordered;
    for (auto region : all) by_id[region.attribute("id").value()] = region;

    std::function<void(pugi::xml_node)> walk = [&](pugi::xml_node group) {
        // Indexed members by index; others stay as they stand.
        std::map<std::pair<int, std::size_t>, pugi::xml_node> items;
        for (auto node : group.children())
            if (node.type() == pugi::node_element &&
                (node.attribute("regionRef") || local_name(node).find("Group") != std::string_view::npos))
                items[{node.attribute("index").as_int(0), items.size()}] = node;
        for (auto const& [place, node] : items) {
            auto found = by_id.find(node.attribute("regionRef").value());
            if (found != by_id.end()) {
                ordered.push_back(found->second);
                by_id.erase(found); // named twice: counts once
            }
            walk(node);
        }
    };
    walk(child_of(page_, "ReadingOrder"));
    for (auto region : all)
        if (by_id.contains(region.attribute("id").value()) &&
            by_id.find(region.attribute("id").value())->second == region)
            ordered.push_back(region);
    return ordered;
}

std::vector<pugi::xml_node> Page::text_regions() const {
    std::vector<pugi::xml_node> found;
    std::function<void(pugi::xml_node)> add = [&](pugi::xml_node region) {
        if (local_name(region) == "TextRegion") found.push_back(region);
        for (auto inner : regions_of(region)) add(inner);
    };
    for (auto region : regions_in_order()) add(region);
    return found;
}

void Page::clear_regions() {
    remove_children(page_, "ReadingOrder");
    remove_children(page_, "Relations");
    for (auto region : regions_of(page_)) page_.remove_child(region);
}

void Page::add_to_reading_order(std::string const& region_id) {
    auto order = child_of(page_, "ReadingOrder");
    if (!order) order = add_child(page_, "ReadingOrder");
    auto group = child_of(order, "OrderedGroup");
    if (!group) {
        group = order.append_child(qualified(order, "OrderedGroup").c_str());
        set(group, "id", fresh_id("reading_order"));
    }
    int next = 0;
    if (auto last = group.last_child()) next = last.attribute("index").as_int(-1) + 1;
    auto ref = group.append_child(qualified(group, "RegionRefIndexed").c_str());
    set(ref, "index", std::to_string(next));
    set(ref, "regionRef", region_id);
}

std::string Page::fresh_id(std::string const& wanted) {
    auto taken = [&](std::string const& id) {
        return !root_.find_node([&](pugi::xml_node node) { return id == node.attribute("id").value(); }).empty();
    };
    if (!taken(wanted)) return wanted;
    for (int i = 1;; ++i) {
        auto id = fmt::format("{}_{}", wanted, i);
        if (!taken(id)) return id;
    }
}

void Page::add_alternative_image(std::string const& path, std::string const& comments) {
    auto node = add_child(page_, "AlternativeImage");
    set(node, "filename", path);
    set(node, "comments", comments);
}

void Page::add_step(StepRecord const& step) {
    auto metadata = child_of(root_, "Metadata");
    if (!metadata) {
        metadata = root_.prepend_child(qualified(root_, "Metadata").c_str());
        add_child(metadata, "Creator").text().set("ocrctl");
        add_child(metadata, "Created").text().set(now_text().c_str());
        add_child(metadata, "LastChange").text().set(now_text().c_str());
    }
    auto item = add_child(metadata, "MetadataItem");
    set(item, "type", "processingStep");
    set(item, "name", step.step);
    set(item, "value", step.executable);
    auto labels = [&](std::string_view id) {
        auto node = item.append_child(qualified(item, "Labels").c_str());
        set(node, "externalModel", "ocrd-tool");
        set(node, "externalId", id);
        return node;
    };
    auto label = [](pugi::xml_node parent, std::string_view type, std::string_view value) {
        auto node = parent.append_child(qualified(parent, "Label").c_str());
        set(node, "value", legal(value));
        set(node, "type", type);
    };
    if (!step.parameters.empty()) {
        auto parameters = labels("parameters");
        for (auto const& [name, value] : step.parameters.items()) label(parameters, name, value_text(value));
    }
    label(labels("version"), step.executable, step.version);
    if (!step.models.empty()) {
        auto models = labels("model");
        for (auto const& [name, digest] : step.models) label(models, name, digest);
    }
}

std::string Page::text(std::string const& pcgts_id) {
    set(root_, "pcGtsId", pcgts_id);
    if (auto change = child_of(child_of(root_, "Metadata"), "LastChange")) change.text().set(now_text().c_str());
    struct Writer : pugi::xml_writer {
        std::string text;
        void write(void const* data, std::size_t size) override { text.append(static_cast<char const*>(data), size); }
    } writer;
    document_->save(writer, "  ", pugi::format_indent, pugi::encoding_utf8);
    return std::move(writer.text);
}

} // namespace ocrctl::ocr
