#include "lib/ocr/export.hpp"

#include "lib/base/text.hpp"
#include "lib/tools/catalogue.hpp"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <functional>
#include <unicode/normalizer2.h>
#include <unicode/unistr.h>

namespace ocrctl::ocr {

std::string composed(std::string const& text) {
    UErrorCode status = U_ZERO_ERROR;
    auto const* nfc = icu::Normalizer2::getNFCInstance(status);
    if (U_FAILURE(status)) return text;
    auto done = nfc->normalize(icu::UnicodeString::fromUTF8(text), status);
    if (U_FAILURE(status)) return text;
    std::string out;
    done.toUTF8String(out);
    return out;
}

namespace {

using Normalise = std::function<std::string(std::string)>;

Normalise normalise(bool nfc) {
    return [nfc](std::string text) { return nfc ? composed(text) : text; };
}

struct Box {
    long x = 0, y = 0, w = 0, h = 0;
};

Box box_of(Polygon const& polygon) {
    auto b = bounds(polygon);
    return {std::lround(b.x), std::lround(b.y), std::lround(b.width), std::lround(b.height)};
}

struct Piece { // a word with its place
    std::string text;
    Box box;
    double confidence = 0;
};

std::size_t letters(std::string_view text) {
    return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
}

// The words of a line; where it only has text, they share the line's box by their length.
std::vector<Piece> pieces_of(pugi::xml_node line, Normalise const& norm) {
    std::vector<Piece> pieces;
    double line_confidence = confidence_of(line).value_or(0);
    for (auto word : children_of(line, "Word")) {
        auto text = norm(text_of(word));
        if (!trim(text).empty())
            pieces.push_back(
                {std::string(trim(text)), box_of(coords_of(word)), confidence_of(word).value_or(line_confidence)});
    }
    if (!pieces.empty()) return pieces;
    auto text = norm(text_of(line));
    std::ranges::replace(text, '\n', ' ');
    auto box = box_of(coords_of(line));
    auto all = static_cast<double>(std::max<std::size_t>(1, letters(text)));
    std::size_t done = 0;
    for (auto const& word : split(text, ' ')) {
        auto length = letters(word);
        if (length > 0) {
            auto from = box.x + std::lround(static_cast<double>(box.w) * static_cast<double>(done) / all);
            auto to = box.x + std::lround(static_cast<double>(box.w) * static_cast<double>(done + length) / all);
            pieces.push_back({word, {from, box.y, std::max(1L, to - from), box.h}, line_confidence});
        }
        done += length + 1;
    }
    return pieces;
}

// "Auf⸗" -> "⸗"; a dash that stands alone is no hyphen.
std::string_view hyphen_of(std::string_view word) {
    for (std::string_view hyphen : {"-", "⸗", "¬", "\xc2\xad"})
        if (word.size() > hyphen.size() && word.ends_with(hyphen)) {
            auto before = word[word.size() - hyphen.size() - 1];
            bool letter = (before & 0x80) != 0 || std::isalpha(static_cast<unsigned char>(before));
            if (letter) return hyphen;
        }
    return {};
}

// Text regions below a region, it included, in document order.
std::vector<pugi::xml_node> texts_below(pugi::xml_node region) {
    std::vector<pugi::xml_node> found;
    if (local_name(region) == "TextRegion") found.push_back(region);
    for (auto inner : regions_of(region))
        for (auto node : texts_below(inner)) found.push_back(node);
    return found;
}

std::string save(pugi::xml_document const& document, unsigned flags) {
    struct Writer : pugi::xml_writer {
        std::string text;
        void write(void const* data, std::size_t size) override { text.append(static_cast<char const*>(data), size); }
    } writer;
    document.save(writer, "  ", flags, pugi::encoding_utf8);
    return std::move(writer.text);
}

void set_box(pugi::xml_node node, Box const& box) {
    node.append_attribute("HPOS") = box.x;
    node.append_attribute("VPOS") = box.y;
    node.append_attribute("WIDTH") = box.w;
    node.append_attribute("HEIGHT") = box.h;
}

std::string xml_id(std::string id, std::string_view prefix) {
    for (char& c : id)
        if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-' && c != '.' && (c & 0x80) == 0)
            c = '_';
    if (id.empty() || std::isdigit(static_cast<unsigned char>(id[0])) || id[0] == '-' || id[0] == '.')
        id = std::string(prefix) + id;
    return id;
}

} // namespace

std::string to_text(Page const& page, bool nfc) {
    auto norm = normalise(nfc);
    std::string out;
    for (auto region : page.text_regions()) {
        std::string text;
        auto lines = children_of(region, "TextLine");
        for (auto line : lines) {
            auto line_text = text_of(line);
            if (line_text.empty())
                for (auto word : children_of(line, "Word")) line_text += (line_text.empty() ? "" : " ") + text_of(word);
            if (!line_text.empty()) text += line_text + "\n";
        }
        if (text.empty())
            if (auto whole = text_of(region); !whole.empty()) text = whole + "\n";
        if (text.empty()) continue;
        if (!out.empty()) out += "\n";
        out += norm(text);
    }
    return out;
}

std::string to_alto(Page const& page, ExportNames const& names) {
    auto norm = normalise(names.nfc);
    pugi::xml_document document;
    auto alto = document.append_child("alto");
    alto.append_attribute("xmlns") = "http://www.loc.gov/standards/alto/ns-v4#";
    alto.append_attribute("xmlns:xsi") = "http://www.w3.org/2001/XMLSchema-instance";
    alto.append_attribute("xsi:schemaLocation") =
        "http://www.loc.gov/standards/alto/ns-v4# http://www.loc.gov/standards/alto/v4/alto-4-2.xsd";
    alto.append_attribute("SCHEMAVERSION") = "4.2";
    auto description = alto.append_child("Description");
    description.append_child("MeasurementUnit").text().set("pixel");
    auto source = description.append_child("sourceImageInformation");
    source.append_child("fileName").text().set(page.image().c_str());
    auto processing = description.append_child("Processing");
    processing.append_attribute("ID") = "processing_1";
    auto software = processing.append_child("processingSoftware");
    software.append_child("softwareName").text().set("ocrctl");
    software.append_child("softwareVersion").text().set(std::string(tools::version()).c_str());

    auto node = alto.append_child("Layout").append_child("Page");
    node.append_attribute("ID") = xml_id(names.page_id.empty() ? "page_1" : names.page_id, "p_").c_str();
    node.append_attribute("PHYSICAL_IMG_NR") = page.frame() + 1;
    node.append_attribute("WIDTH") = page.width();
    node.append_attribute("HEIGHT") = page.height();
    auto space = node.append_child("PrintSpace");
    set_box(space, {0, 0, page.width(), page.height()});

    auto shape = [](pugi::xml_node to, Polygon const& polygon) {
        std::string points;
        for (auto p : polygon)
            points += fmt::format("{}{},{}", points.empty() ? "" : " ", std::lround(p.x), std::lround(p.y));
        to.append_child("Shape").append_child("Polygon").append_attribute("POINTS") = points.c_str();
    };

    auto text_block = [&](pugi::xml_node parent, pugi::xml_node region) {
        auto block = parent.append_child("TextBlock");
        block.append_attribute("ID") = xml_id(region.attribute("id").value(), "b_").c_str();
        set_box(block, box_of(coords_of(region)));
        if (auto outline = coords_of(region); outline.size() >= 3) shape(block, outline);
        std::string carried; // the whole word whose first part ended the line before
        std::string second;
        auto lines = children_of(region, "TextLine");
        for (std::size_t l = 0; l < lines.size(); ++l) {
            auto pieces = pieces_of(lines[l], norm);
            if (pieces.empty()) {
                carried.clear();
                continue;
            }
            auto line = block.append_child("TextLine");
            line.append_attribute("ID") = xml_id(lines[l].attribute("id").value(), "l_").c_str();
            if (auto baseline = parse_points(child_of(lines[l], "Baseline").attribute("points").value());
                baseline.size() >= 2)
                line.append_attribute("BASELINE") = format_points(baseline).c_str();
            set_box(line, box_of(coords_of(lines[l])));
            auto hyphen = hyphen_of(pieces.back().text);
            std::string whole;
            if (!hyphen.empty() && l + 1 < lines.size()) {
                auto next = pieces_of(lines[l + 1], norm);
                if (!next.empty()) {
                    auto const& last = pieces.back().text;
                    whole = last.substr(0, last.size() - hyphen.size()) + next.front().text;
                }
            }
            for (std::size_t i = 0; i < pieces.size(); ++i) {
                auto const& piece = pieces[i];
                if (i > 0) {
                    auto const& before = pieces[i - 1].box;
                    auto gap = line.append_child("SP");
                    long from = before.x + before.w, to = piece.box.x;
                    gap.append_attribute("WIDTH") = std::max(0L, to - from);
                    gap.append_attribute("HPOS") = std::min(from, to);
                    gap.append_attribute("VPOS") = piece.box.y;
                }
                auto string = line.append_child("String");
                string.append_attribute("ID") =
                    xml_id(fmt::format("{}_s{}", lines[l].attribute("id").value(), i + 1), "s_").c_str();
                set_box(string, piece.box);
                string.append_attribute("WC") = fmt::format("{:.4g}", piece.confidence).c_str();
                bool last = i + 1 == pieces.size();
                std::string content = piece.text;
                if (last && !hyphen.empty()) content.resize(content.size() - hyphen.size());
                string.append_attribute("CONTENT") = content.c_str();
                if (i == 0 && !carried.empty()) {
                    string.append_attribute("SUBS_TYPE") = "HypPart2";
                    string.append_attribute("SUBS_CONTENT") = carried.c_str();
                } else if (last && !whole.empty()) {
                    string.append_attribute("SUBS_TYPE") = "HypPart1";
                    string.append_attribute("SUBS_CONTENT") = whole.c_str();
                }
                if (last && !hyphen.empty())
                    line.append_child("HYP").append_attribute("CONTENT") = std::string(hyphen).c_str();
            }
            carried = whole;
        }
        // A block without lines has text that ALTO has no place for but a line of its own.
        if (lines.empty() && !text_of(region).empty()) {
            auto line = block.append_child("TextLine");
            line.append_attribute("ID") = xml_id(fmt::format("{}_text", region.attribute("id").value()), "l_").c_str();
            set_box(line, box_of(coords_of(region)));
            auto pieces = pieces_of(region, norm);
            for (std::size_t i = 0; i < pieces.size(); ++i) {
                if (i > 0) line.append_child("SP");
                auto string = line.append_child("String");
                set_box(string, pieces[i].box);
                string.append_attribute("WC") = fmt::format("{:.4g}", pieces[i].confidence).c_str();
                string.append_attribute("CONTENT") = pieces[i].text.c_str();
            }
        }
    };

    for (auto region : page.regions_in_order()) {
        auto kind = local_name(region);
        auto texts = texts_below(region);
        if (kind == "TextRegion" && texts.size() == 1) {
            text_block(space, region);
            continue;
        }
        if (!texts.empty()) { // a table, or text regions inside one another
            auto composed_block = space.append_child("ComposedBlock");
            composed_block.append_attribute("ID") =
                xml_id(fmt::format("{}_c", region.attribute("id").value()), "c_").c_str();
            set_box(composed_block, box_of(coords_of(region)));
            if (kind == "TableRegion") composed_block.append_attribute("TYPE") = "table";
            for (auto text : texts) text_block(composed_block, text);
            continue;
        }
        auto block = space.append_child(kind == "SeparatorRegion" ? "GraphicalElement" : "Illustration");
        block.append_attribute("ID") = xml_id(region.attribute("id").value(), "b_").c_str();
        set_box(block, box_of(coords_of(region)));
        if (kind == "TableRegion") block.append_attribute("TYPE") = "table";
    }
    return save(document, pugi::format_indent);
}

std::string to_hocr(Page const& page, ExportNames const& names) {
    auto norm = normalise(names.nfc);
    pugi::xml_document document;
    auto declaration = document.append_child(pugi::node_declaration);
    declaration.append_attribute("version") = "1.0";
    declaration.append_attribute("encoding") = "UTF-8";
    auto doctype = document.append_child(pugi::node_doctype);
    doctype.set_value("html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\" "
                      "\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\"");
    auto html = document.append_child("html");
    html.append_attribute("xmlns") = "http://www.w3.org/1999/xhtml";
    auto head = html.append_child("head");
    head.append_child("title").text().set(names.page_id.c_str());
    auto meta = [&](char const* name, std::string const& content) {
        auto node = head.append_child("meta");
        node.append_attribute("name") = name;
        node.append_attribute("content") = content.c_str();
    };
    auto type = head.append_child("meta");
    type.append_attribute("http-equiv") = "Content-Type";
    type.append_attribute("content") = "text/html; charset=utf-8";
    meta("ocr-system", fmt::format("ocrctl {}", tools::version()));
    meta("ocr-capabilities", "ocr_page ocr_carea ocr_par ocr_line ocrx_word ocr_separator ocr_photo ocr_table");

    auto element = [](pugi::xml_node parent, char const* tag, char const* kind, std::string const& id,
                      std::string const& title) {
        auto node = parent.append_child(tag);
        node.append_attribute("class") = kind;
        if (!id.empty()) node.append_attribute("id") = id.c_str();
        node.append_attribute("title") = title.c_str();
        return node;
    };
    auto bbox = [](Box const& b) { return fmt::format("bbox {} {} {} {}", b.x, b.y, b.x + b.w, b.y + b.h); };
    auto image = page.image();
    std::ranges::replace(image, '"', '\'');
    auto title =
        fmt::format("image \"{}\"; bbox 0 0 {} {}; ppageno {}", image, page.width(), page.height(), page.frame());
    if (page.dpi() > 0) title += fmt::format("; scan_res {0:.0f} {0:.0f}", page.dpi());
    auto body = element(html.append_child("body"), "div", "ocr_page",
                        xml_id(names.page_id.empty() ? "page_1" : names.page_id, "p_"), title);

    for (auto region : page.regions_in_order()) {
        auto texts = texts_below(region);
        std::string id = xml_id(region.attribute("id").value(), "b_");
        auto box = box_of(coords_of(region));
        if (texts.empty()) {
            auto kind = local_name(region);
            element(body, "div",
                    kind == "SeparatorRegion" ? "ocr_separator"
                    : kind == "TableRegion"   ? "ocr_table"
                                              : "ocr_photo",
                    id, bbox(box));
            continue;
        }
        auto area = element(body, "div", "ocr_carea", id, bbox(box));
        for (auto text : texts) {
            auto par = element(area, "p", "ocr_par", id + "_par_" + text.attribute("id").value(),
                               bbox(box_of(coords_of(text))));
            for (auto line : children_of(text, "TextLine")) {
                auto pieces = pieces_of(line, norm);
                if (pieces.empty()) continue;
                auto line_box = box_of(coords_of(line));
                auto line_title = bbox(line_box);
                auto baseline = parse_points(child_of(line, "Baseline").attribute("points").value());
                if (baseline.size() >= 2 && std::abs(baseline.back().x - baseline.front().x) > 1) {
                    double slope = (baseline.back().y - baseline.front().y) / (baseline.back().x - baseline.front().x);
                    double at_left =
                        baseline.front().y - slope * (baseline.front().x - static_cast<double>(line_box.x));
                    line_title +=
                        fmt::format("; baseline {:.3f} {}", slope, std::lround(at_left) - (line_box.y + line_box.h));
                }
                std::string line_id = xml_id(line.attribute("id").value(), "l_");
                auto span = element(par, "span", "ocr_line", line_id, line_title);
                int number = 0;
                for (auto const& piece : pieces) {
                    auto word =
                        element(span, "span", "ocrx_word", fmt::format("{}_x{}", line_id, ++number),
                                fmt::format("{}; x_wconf {}", bbox(piece.box), std::lround(piece.confidence * 100)));
                    word.append_child(pugi::node_pcdata).set_value(piece.text.c_str());
                    if (&piece != &pieces.back()) span.append_child(pugi::node_pcdata).set_value(" ");
                }
            }
        }
    }
    return save(document, pugi::format_indent);
}

} // namespace ocrctl::ocr
