// What `ocrctl ocr` has done in an output folder, and from what: DIR/.ocrctl/record.jsonl. One line per page and change, the
// last line of a page counts; a torn last line is as if it had not been written.
#pragma once

#include "lib/base/files.hpp"
#include "lib/model/json.hpp"

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace ocrctl {

/// One page: what it was made of, and what was made.
struct PageRecord {
    std::string base;      // name of the results without ending: "scan7", "volume.0003"
    std::string input;     // absolute path
    int frame = 0;
    std::uint64_t size = 0;
    std::int64_t mtime = 0; // of the input, ns: as long as both stay, the digest is not computed again
    std::string digest;    // "sha256:..." of the input
    Json chain;            // steps with all parameters
    Json models;           // name -> digest
    std::string version;   // of ocrctl
    std::string page;      // the PAGE-XML, relative to DIR/.ocrctl; "" if there is none
    std::map<std::string, std::string> outputs; // format -> file name in DIR
    bool done = false;     // false: begun, its results may be there but are not vouched for
};
void to_json(Json& json, PageRecord const& record);
void from_json(Json const& json, PageRecord& record);

/// Owns the open file. Not thread-safe, one owner; the folder's lock keeps other processes away.
class OcrRecord {
public:
    /// Reads what is there and opens it for more.
    static Result<OcrRecord> open(std::filesystem::path const& folder);

    PageRecord const* find(std::string const& base) const;
    Result<void> put(PageRecord record);

private:
    std::map<std::string, PageRecord> pages_;
    Fd fd_;
    std::filesystem::path file_;
};

} // namespace ocrctl
