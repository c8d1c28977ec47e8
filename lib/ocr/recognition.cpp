#include "lib/ocr/recognition.hpp"

#include "lib/ocr/image.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <opencv2/imgproc.hpp>
#include <tesseract/baseapi.h>
#include <tesseract/publictypes.h>
#include <tesseract/resultiterator.h>

namespace ocrctl::ocr {

namespace {

using namespace tesseract; // PT_..., RIL_..., PSM_...

struct FoundGlyph {
    cv::Rect2d box;
    std::string text;
    double confidence = 0;
};
struct FoundWord {
    cv::Rect2d box;
    std::string text;
    double confidence = 0;
    std::vector<FoundGlyph> glyphs;
};
struct FoundLine {
    cv::Rect2d box;
    Polygon baseline;
    std::vector<FoundWord> words;
};
struct FoundBlock {
    PolyBlockType type = PT_UNKNOWN;
    cv::Rect2d box;
    std::vector<FoundLine> lines;
};

bool is_text(PolyBlockType type) {
    switch (type) {
    case PT_FLOWING_TEXT:
    case PT_HEADING_TEXT:
    case PT_PULLOUT_TEXT:
    case PT_VERTICAL_TEXT:
    case PT_CAPTION_TEXT:
    case PT_TABLE:
    case PT_EQUATION:
    case PT_INLINE_EQUATION:
    case PT_UNKNOWN:
        return true;
    default:
        return false;
    }
}

cv::Rect2d box_at(tesseract::PageIterator const& it, tesseract::PageIteratorLevel level) {
    int left = 0, top = 0, right = 0, bottom = 0;
    if (!it.BoundingBox(level, &left, &top, &right, &bottom)) return {};
    return {double(left), double(top), double(right - left), double(bottom - top)};
}

std::string text_at(tesseract::ResultIterator const& it, tesseract::PageIteratorLevel level) {
    std::unique_ptr<char[]> text(it.GetUTF8Text(level));
    std::string out = text ? text.get() : "";
    auto blank = [](char c) { return c == ' ' || c == '\n' || c == '\t'; };
    while (!out.empty() && blank(out.back())) out.pop_back();
    while (!out.empty() && blank(out.front())) out.erase(out.begin());
    return out;
}

// What Tesseract found, in its reading order. `results` is null after a mere layout analysis.
std::vector<FoundBlock> collect(tesseract::PageIterator& it, tesseract::ResultIterator const* results, bool glyphs) {
    using namespace tesseract;
    std::vector<FoundBlock> blocks;
    auto step = results ? RIL_WORD : RIL_TEXTLINE;
    do {
        if (blocks.empty() || it.IsAtBeginningOf(RIL_BLOCK))
            blocks.push_back({it.BlockType(), box_at(it, RIL_BLOCK), {}});
        auto& block = blocks.back();
        if (!is_text(block.type) || it.Empty(RIL_TEXTLINE)) continue;
        if (block.lines.empty() || it.IsAtBeginningOf(RIL_TEXTLINE)) {
            FoundLine line{box_at(it, RIL_TEXTLINE), {}, {}};
            int x1 = 0, y1 = 0, x2 = 0, y2 = 0;
            if (it.Baseline(RIL_TEXTLINE, &x1, &y1, &x2, &y2))
                line.baseline = {{double(x1), double(y1)}, {double(x2), double(y2)}};
            block.lines.push_back(std::move(line));
        }
        if (!results || it.Empty(RIL_WORD)) continue;
        FoundWord word{box_at(it, RIL_WORD), text_at(*results, RIL_WORD), results->Confidence(RIL_WORD) / 100.0, {}};
        if (word.text.empty()) continue;
        if (glyphs) {
            ResultIterator symbol(*results);
            do {
                FoundGlyph glyph{box_at(symbol, RIL_SYMBOL), text_at(symbol, RIL_SYMBOL),
                                 symbol.Confidence(RIL_SYMBOL) / 100.0};
                if (!glyph.text.empty()) word.glyphs.push_back(std::move(glyph));
            } while (!symbol.IsAtFinalElement(RIL_WORD, RIL_SYMBOL) && symbol.Next(RIL_SYMBOL));
        }
        block.lines.back().words.push_back(std::move(word));
    } while (it.Next(step));
    return blocks;
}

void set_image(tesseract::TessBaseAPI& api, cv::Mat const& pixels, double dpi) {
    api.SetImage(pixels.data, pixels.cols, pixels.rows, pixels.channels(), static_cast<int>(pixels.step));
    if (dpi > 0) api.SetSourceResolution(static_cast<int>(std::lround(std::clamp(dpi, 70.0, 2400.0))));
}

Result<void> check_readable(cv::Mat const& pixels) {
    if (pixels.cols <= kTesseractSide && pixels.rows <= kTesseractSide) return {};
    return fail(ErrorKind::TooLarge, "{} x {} pixels are more than Tesseract can read ({} a side)", pixels.cols,
                pixels.rows, kTesseractSide);
}

// Frees what Tesseract holds of a page, whatever happens.
struct ClearAfter {
    tesseract::TessBaseAPI& api;
    ~ClearAfter() { api.Clear(); }
};

Result<std::vector<FoundBlock>> recognized(tesseract::TessBaseAPI& api, cv::Mat const& pixels, double dpi,
                                           tesseract::PageSegMode mode, bool glyphs, double* estimated = nullptr) {
    if (auto readable = check_readable(pixels); !readable) return fail(readable.error());
    ClearAfter clear{api};
    api.SetPageSegMode(mode);
    set_image(api, pixels, dpi);
    if (api.Recognize(nullptr) != 0) return fail(ErrorKind::Internal, "Tesseract could not recognise the image");
    if (estimated) *estimated = api.GetSourceYResolution();
    std::unique_ptr<tesseract::ResultIterator> it(api.GetIterator());
    if (!it) return std::vector<FoundBlock>{}; // an empty page
    return collect(*it, it.get(), glyphs);
}

cv::Rect2d united(cv::Rect2d a, cv::Rect2d const& b) {
    if (a.area() <= 0) return b;
    if (b.area() <= 0) return a;
    return a | b;
}

cv::Rect2d grown(cv::Rect2d box, double by) {
    return {box.x - by, box.y - by, box.width + 2 * by, box.height + 2 * by};
}

/// Writes what was found into PAGE. Parents are widened so that rounding never pushes a child out of them.
class Writer {
public:
    Writer(Page& page, View const& view, RecognitionSettings const& settings)
        : page_(page), view_(view), settings_(settings), slack_(view.from_page(0, 1) != 0 ? 1.5 : 0) {}

    void blocks(std::vector<FoundBlock> found, bool with_text) {
        for (auto& block : found) {
            if (is_text(block.type)) {
                text_block(block, with_text);
            } else {
                char const* kind = block.type == PT_HORZ_LINE || block.type == PT_VERT_LINE ? "SeparatorRegion"
                                   : block.type == PT_NOISE                                 ? "NoiseRegion"
                                                                                            : "ImageRegion";
                if (block.type == PT_NOISE) continue;
                auto outline = view_.to_page(rectangle(block.box));
                if (outline.empty()) continue;
                auto region = add_child(page_.node(), kind);
                set(region, "id", next_region());
                set_coords(region, outline);
            }
        }
    }

    /// Lines of an existing region; `clip` is the region's outline in the view.
    std::vector<pugi::xml_node> lines(pugi::xml_node region, std::vector<FoundLine>& found, Polygon const* clip,
                                      bool with_text) {
        std::vector<pugi::xml_node> written;
        std::string base = region.attribute("id").value();
        int number = 0;
        for (auto& line : found) {
            if (with_text && line.words.empty()) continue;
            for (auto const& word : line.words) line.box = united(line.box, grown(word.box, slack_));
            auto outline = place(clip ? within(grown(line.box, pad()), *clip) : rectangle(grown(line.box, pad())));
            if (outline.empty()) continue;
            auto node = add_child(region, "TextLine");
            auto id = base + "_l" + std::to_string(++number);
            set(node, "id", id);
            set_coords(node, outline);
            if (line.baseline.size() == 2) {
                auto baseline = transformed(view_.from_page.inv(), line.baseline);
                for (auto& p : baseline) {
                    p.x = std::clamp(std::round(p.x), 0.0, view_.page_width - 1.0);
                    p.y = std::clamp(std::round(p.y), 0.0, view_.page_height - 1.0);
                }
                if (baseline[0] != baseline[1]) set(add_child(node, "Baseline"), "points", format_points(baseline));
            }
            if (with_text) line_text(node, line.words, nullptr);
            written.push_back(node);
        }
        return written;
    }

    /// The text of a line, and its words at word level. `clip`: the line's outline in the view, words are cut to it.
    void line_text(pugi::xml_node line, std::vector<FoundWord> const& words, Polygon const* clip) {
        std::string text;
        double sum = 0;
        bool write_words = settings_.textequiv_level == "word" || settings_.textequiv_level == "glyph";
        remove_children(line, "Word");
        std::string base = line.attribute("id").value();
        int number = 0;
        for (auto const& word : words) {
            text += (text.empty() ? "" : " ") + word.text;
            sum += word.confidence;
            if (!write_words) continue;
            auto outline = place(clip ? within(word.box, *clip) : rectangle(word.box));
            if (outline.empty()) outline = coords_of(line);
            auto node = add_child(line, "Word");
            auto id = base + "_w" + std::to_string(++number);
            set(node, "id", id);
            set_coords(node, outline);
            glyphs(node, id, word);
            set_text(node, word.text, word.confidence);
        }
        set_text(line, text, words.empty() ? 0 : sum / static_cast<double>(words.size()));
    }

    /// The region's text out of its lines.
    void region_text(pugi::xml_node region) {
        std::string text;
        double sum = 0;
        auto lines = children_of(region, "TextLine");
        for (auto line : lines) {
            text += (line == lines.front() ? "" : "\n") + text_of(line);
            sum += confidence_of(line).value_or(0);
        }
        set_text(region, text, lines.empty() ? 0 : sum / static_cast<double>(lines.size()));
    }

private:
    void glyphs(pugi::xml_node word, std::string const& id, FoundWord const& found) {
        remove_children(word, "Glyph");
        if (settings_.textequiv_level != "glyph") return;
        std::string together;
        for (auto const& glyph : found.glyphs) together += glyph.text;
        if (together != found.text) return; // would contradict the word
        int number = 0;
        for (auto const& glyph : found.glyphs) {
            auto outline = place(rectangle(glyph.box & found.box));
            if (outline.empty()) outline = coords_of(word);
            auto node = add_child(word, "Glyph");
            set(node, "id", id + "_g" + std::to_string(++number));
            set_coords(node, outline);
            set_text(node, glyph.text, glyph.confidence);
        }
    }

    void text_block(FoundBlock& block, bool with_text) {
        if (with_text) std::erase_if(block.lines, [](FoundLine const& l) { return l.words.empty(); });
        if (block.lines.empty()) return;
        for (auto& line : block.lines) {
            for (auto const& word : line.words) line.box = united(line.box, grown(word.box, slack_));
            block.box = united(block.box, grown(line.box, pad() + slack_));
        }
        auto outline = place(rectangle(grown(block.box, pad())));
        if (outline.empty()) return;
        bool table = block.type == PT_TABLE;
        auto region = add_child(page_.node(), table ? "TableRegion" : "TextRegion");
        auto id = next_region();
        set(region, "id", id);
        set_coords(region, outline);
        page_.add_to_reading_order(id);
        auto text = region;
        if (table) { // lines can only stand in text regions
            text = add_child(region, "TextRegion");
            set(text, "id", id + "_t1");
            set_coords(text, outline);
        } else if (char const* type = block.type == PT_HEADING_TEXT   ? "heading"
                                      : block.type == PT_CAPTION_TEXT ? "caption"
                                      : block.type == PT_PULLOUT_TEXT ? "floating"
                                      : block.type == PT_FLOWING_TEXT ? "paragraph"
                                                                      : nullptr) {
            set(text, "type", type);
        }
        lines(text, block.lines, nullptr, with_text);
        if (!with_text) return;
        region_text(text);
        if (settings_.textequiv_level == "region") remove_children(text, "TextLine");
    }

    Polygon place(Polygon const& in_view) const { return view_.to_page(in_view); }

    static bool is_box(Polygon const& p) {
        if (p.size() != 4) return false;
        auto near = [](double a, double b) { return std::abs(a - b) < 1.5; };
        auto box = bounds(p);
        return std::ranges::all_of(p, [&](cv::Point2d const& q) {
            return (near(q.x, box.x) || near(q.x, box.x + box.width)) &&
                   (near(q.y, box.y) || near(q.y, box.y + box.height));
        });
    }

    // The part of a box inside an outline; the box itself if they do not meet.
    static Polygon within(cv::Rect2d const& box, Polygon const& outline) {
        if (is_box(outline)) {
            auto both = box & bounds(outline);
            return rectangle(both.area() > 0 ? both : box);
        }
        std::vector<cv::Point2f> a, b, both;
        for (auto p : rectangle(box)) a.emplace_back(static_cast<float>(p.x), static_cast<float>(p.y));
        for (auto p : outline) b.emplace_back(static_cast<float>(p.x), static_cast<float>(p.y));
        if (!cv::isContourConvex(b) || cv::intersectConvexConvex(a, b, both) <= 1 || both.size() < 3) {
            auto inside = box & bounds(outline);
            return rectangle(inside.area() > 0 ? inside : box);
        }
        Polygon result;
        for (auto p : both) result.emplace_back(p.x, p.y);
        return result;
    }

    double pad() const { return with_padding_ ? settings_.padding : 0; }

    std::string next_region() {
        std::string id;
        do id = page_.fresh_id("r" + std::to_string(++regions_));
        while (id.empty());
        return id;
    }

public:
    bool with_padding_ = false; // segment's padding widens segments, recognize's only line images

private:
    Page& page_;
    View const& view_;
    RecognitionSettings const& settings_;
    double slack_;
    int regions_ = 0;
};

// The image of one segment, alone on its background, with `padding` around it. `origin` is its place in the view.
cv::Mat cut_out(View const& view, Polygon const& outline, int padding, cv::Point2d& origin) {
    auto box = bounds(outline);
    cv::Rect whole(0, 0, view.pixels.cols, view.pixels.rows);
    cv::Rect crop = cv::Rect(cv::Point(static_cast<int>(std::floor(box.x)), static_cast<int>(std::floor(box.y))),
                             cv::Point(static_cast<int>(std::ceil(box.x + box.width)),
                                       static_cast<int>(std::ceil(box.y + box.height)))) &
                    whole;
    if (crop.width < 2 || crop.height < 2) return {};
    cv::Mat part = view.pixels(crop);
    auto background = background_of(part);
    cv::Mat image;
    cv::copyMakeBorder(part, image, padding, padding, padding, padding, cv::BORDER_CONSTANT, background);
    bool straight = outline.size() == 4 && [&] {
        for (auto const& p : outline)
            if (std::min(std::abs(p.x - box.x), std::abs(p.x - box.x - box.width)) > 1.5 ||
                std::min(std::abs(p.y - box.y), std::abs(p.y - box.y - box.height)) > 1.5)
                return false;
        return true;
    }();
    if (!straight) {
        cv::Mat outside(image.size(), CV_8UC1, cv::Scalar(255));
        std::vector<cv::Point> corners;
        for (auto p : outline)
            corners.emplace_back(static_cast<int>(std::lround(p.x)) - crop.x + padding,
                                 static_cast<int>(std::lround(p.y)) - crop.y + padding);
        cv::fillPoly(outside, std::vector<std::vector<cv::Point>>{corners}, cv::Scalar(0));
        image.setTo(background, outside);
    }
    origin = {double(crop.x - padding), double(crop.y - padding)};
    return image;
}

void move(std::vector<FoundLine>& lines, cv::Point2d by) {
    for (auto& line : lines) {
        line.box = line.box + by;
        for (auto& p : line.baseline) p += by;
        for (auto& word : line.words) {
            word.box = word.box + by;
            for (auto& glyph : word.glyphs) glyph.box = glyph.box + by;
        }
    }
}

std::vector<FoundLine> lines_of(std::vector<FoundBlock> blocks) {
    std::vector<FoundLine> lines;
    for (auto& block : blocks)
        for (auto& line : block.lines) lines.push_back(std::move(line));
    return lines;
}

Json variables_of(RecognitionSettings const& settings) {
    Json variables = settings.variables.is_object() ? settings.variables : Json::object();
    variables["debug_file"] = "/dev/null"; // its remarks go nowhere a user looks
    if (!settings.find_tables) variables["textord_tabfind_find_tables"] = "0";
    return variables;
}

double plausible(double dpi) {
    return dpi >= 70 && dpi <= 2400 ? dpi : 0;
}

} // namespace

Result<void> preload(ModelCache& models, RecognitionSettings const& settings) {
    auto api = models.get(settings.model, variables_of(settings));
    if (!api) return std::unexpected(api.error());
    return {};
}

Result<void> segment(Page& page, View const& view, ModelCache& models, RecognitionSettings const& settings) {
    auto api = models.layout(variables_of(settings));
    if (!api) return std::unexpected(api.error());
    if (auto readable = check_readable(view.pixels); !readable) return readable;
    Writer writer(page, view, settings);
    writer.with_padding_ = true;
    if (settings.overwrite_segments) page.clear_regions();
    auto analysed = [&](cv::Mat const& pixels, tesseract::PageSegMode mode) {
        ClearAfter clear{**api};
        (*api)->SetPageSegMode(mode);
        set_image(**api, pixels, settings.dpi);
        std::unique_ptr<tesseract::PageIterator> it((*api)->AnalyseLayout());
        return it ? collect(*it, nullptr, false) : std::vector<FoundBlock>{};
    };
    if (regions_of(page.node()).empty()) {
        writer.blocks(
            analysed(view.pixels, settings.sparse_text ? tesseract::PSM_SPARSE_TEXT : tesseract::PSM_AUTO_ONLY), false);
        return {};
    }
    for (auto region : page.text_regions()) {
        if (child_of(region, "TextLine") || !regions_of(region).empty()) continue;
        auto outline = transformed(view.from_page, coords_of(region));
        cv::Point2d origin;
        auto image = cut_out(view, outline, 0, origin);
        if (image.empty()) continue;
        auto lines = lines_of(analysed(image, tesseract::PSM_SINGLE_BLOCK));
        move(lines, origin);
        writer.lines(region, lines, &outline, false);
    }
    return {};
}

Result<void> recognize(Page& page, View const& view, ModelCache& models, RecognitionSettings const& settings) {
    using namespace tesseract;
    auto loaded = models.get(settings.model, variables_of(settings));
    if (!loaded) return std::unexpected(loaded.error());
    auto& api = **loaded;
    Writer writer(page, view, settings);
    bool glyphs = settings.textequiv_level == "glyph";
    bool fill = settings.segmentation_level != "none";
    bool replace = settings.overwrite_segments && fill;

    if (replace && settings.segmentation_level == "region") page.clear_regions();
    if (regions_of(page.node()).empty()) {
        if (!fill) return {};
        double estimated = 0;
        auto blocks = recognized(api, view.pixels, settings.dpi, settings.sparse_text ? PSM_SPARSE_TEXT : PSM_AUTO,
                                 glyphs, &estimated);
        if (!blocks) return std::unexpected(blocks.error());
        if (page.dpi() == 0 && plausible(estimated) > 0) page.set_dpi(estimated);
        writer.blocks(std::move(*blocks), true);
        return {};
    }

    for (auto region : page.text_regions()) {
        if (replace && settings.segmentation_level == "line") remove_children(region, "TextLine");
        auto lines = children_of(region, "TextLine");
        if (lines.empty()) {
            if (!fill || !regions_of(region).empty()) continue;
            auto outline = transformed(view.from_page, coords_of(region));
            cv::Point2d origin;
            auto image = cut_out(view, outline, settings.padding, origin);
            if (image.empty()) continue;
            auto blocks = recognized(api, image, settings.dpi, PSM_SINGLE_BLOCK, glyphs);
            if (!blocks) return std::unexpected(blocks.error());
            auto found = lines_of(std::move(*blocks));
            move(found, origin);
            writer.lines(region, found, &outline, true);
            writer.region_text(region);
            if (settings.textequiv_level == "region") remove_children(region, "TextLine");
            continue;
        }
        for (auto line : lines) {
            auto words = children_of(line, "Word");
            std::vector<FoundWord> found;
            auto outline = transformed(view.from_page, coords_of(line));
            bool keep_words = !words.empty() && !replace && (settings.textequiv_level == "word" || glyphs);
            if (keep_words) {
                std::string text;
                double sum = 0;
                for (auto word : words) {
                    cv::Point2d origin;
                    auto image = cut_out(view, transformed(view.from_page, coords_of(word)), settings.padding, origin);
                    std::string word_text;
                    double confidence = 0;
                    if (!image.empty()) {
                        auto blocks = recognized(api, image, settings.dpi, PSM_SINGLE_WORD, false);
                        if (!blocks) return std::unexpected(blocks.error());
                        int parts = 0;
                        for (auto const& l : lines_of(std::move(*blocks)))
                            for (auto const& w : l.words) word_text += w.text, confidence += w.confidence, ++parts;
                        if (parts) confidence /= parts;
                    }
                    remove_children(word, "Glyph"); // older than the new text
                    set_text(word, word_text, confidence);
                    text += (word == words.front() ? "" : " ") + word_text;
                    sum += confidence;
                }
                set_text(line, text, sum / static_cast<double>(words.size()));
                continue;
            }
            cv::Point2d origin;
            auto image = cut_out(view, outline, settings.padding, origin);
            if (!image.empty()) {
                auto blocks =
                    recognized(api, image, settings.dpi, settings.raw_lines ? PSM_RAW_LINE : PSM_SINGLE_LINE, glyphs);
                if (!blocks) return std::unexpected(blocks.error());
                auto parts = lines_of(std::move(*blocks));
                move(parts, origin);
                for (auto& part : parts) std::ranges::move(part.words, std::back_inserter(found));
            }
            writer.line_text(line, found, &outline);
        }
        writer.region_text(region);
    }
    return {};
}

} // namespace ocrctl::ocr
