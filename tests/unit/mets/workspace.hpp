// A workspace in a temporary folder for the tests of lib/mets, and METS texts made piece by piece.
#pragma once

#include "lib/base/files.hpp"
#include "lib/base/ids.hpp"
#include "lib/mets/mets.hpp"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <string>

namespace ocrctl::mets {

/// Owns the folder; removes it.
struct Workspace {
    std::filesystem::path folder = std::filesystem::temp_directory_path() / ("ocrctl-mets-" + random_hex(6));
    std::filesystem::path mets = folder / "mets.xml";

    Workspace() { std::filesystem::create_directories(folder); }
    explicit Workspace(std::string const& text) : Workspace() { write("mets.xml", text); }
    ~Workspace() { std::filesystem::remove_all(folder); }
    Workspace(Workspace const&) = delete;
    Workspace& operator=(Workspace const&) = delete;

    void write(std::string const& name, std::string const& content = "x") const {
        std::filesystem::create_directories((folder / name).parent_path());
        std::ofstream(folder / name, std::ios::binary) << content;
    }
    std::string text() const { return read_file(mets).value(); }
    Mets load() const {
        auto loaded = Mets::load(mets);
        if (!loaded) throw std::runtime_error(loaded.error().message());
        return std::move(*loaded);
    }
};

inline std::string file_xml(std::string const& id, std::string const& href, std::string const& mimetype = "image/tiff") {
    return "      <mets:file ID=\"" + id + "\" MIMETYPE=\"" + mimetype +
           "\">\n        <mets:FLocat LOCTYPE=\"OTHER\" OTHERLOCTYPE=\"FILE\" xlink:href=\"" + href + "\"/>\n      </mets:file>\n";
}
inline std::string group_xml(std::string const& name, std::string const& files) {
    return "    <mets:fileGrp USE=\"" + name + "\">\n" + files + "    </mets:fileGrp>\n";
}
inline std::string page_xml(std::string const& id, std::vector<std::string> const& files, std::string const& more = "") {
    std::string text = "      <mets:div TYPE=\"page\" ID=\"" + id + "\"" + more + ">\n";
    for (auto const& file : files) text += "        <mets:fptr FILEID=\"" + file + "\"/>\n";
    return text + "      </mets:div>\n";
}
inline std::string mets_xml(std::string const& groups, std::string const& pages, std::string const& before = "", std::string const& after = "") {
    return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
           "<mets:mets xmlns:mets=\"http://www.loc.gov/METS/\" xmlns:xlink=\"http://www.w3.org/1999/xlink\">\n" +
           before + "  <mets:fileSec>\n" + groups +
           "  </mets:fileSec>\n  <mets:structMap TYPE=\"PHYSICAL\">\n    <mets:div TYPE=\"physSequence\">\n" + pages +
           "    </mets:div>\n  </mets:structMap>\n" + after + "</mets:mets>\n";
}

/// Two pages with an image each in group IMG.
inline std::string two_pages() {
    return mets_xml(group_xml("IMG", file_xml("IMG_0001", "IMG/IMG_0001.tif") + file_xml("IMG_0002", "IMG/IMG_0002.tif")),
                    page_xml("PHYS_0001", {"IMG_0001"}) + page_xml("PHYS_0002", {"IMG_0002"}));
}

inline FileRef file_ref(std::string group, std::string id, std::string page, std::string path = "") {
    if (path.empty()) path = group + "/" + id + ".xml";
    return {std::move(group), std::move(id), std::move(page), std::string(kPageMimetype), std::move(path), 0, ""};
}

inline std::vector<std::string> ids(std::vector<File const*> const& files) {
    std::vector<std::string> list;
    for (auto const* f : files) list.push_back(f->id);
    return list;
}

using Strings = std::vector<std::string>;

} // namespace ocrctl::mets
