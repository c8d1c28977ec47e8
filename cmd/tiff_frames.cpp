#include "cmd/tiff_frames.hpp"

#include <fstream>
#include <set>

namespace ocrctl {

namespace {

class Reader {
public:
    explicit Reader(std::filesystem::path const& file) : in_(file, std::ios::binary) {}
    bool big_endian = false;

    bool seek(std::uint64_t at) { return static_cast<bool>(in_.seekg(static_cast<std::streamoff>(at))); }
    std::uint64_t number(int bytes) {
        unsigned char raw[8] = {};
        if (!in_.read(reinterpret_cast<char*>(raw), bytes)) return 0;
        std::uint64_t value = 0;
        for (int i = 0; i < bytes; ++i) value = value << 8 | raw[big_endian ? i : bytes - 1 - i];
        return value;
    }
    bool good() const { return static_cast<bool>(in_); }

private:
    std::ifstream in_;
};

constexpr std::uint64_t kMaxFrames = 100000;

} // namespace

TiffFrames tiff_frames(std::filesystem::path const& file) {
    TiffFrames frames;
    Reader in(file);
    auto const order = in.number(2);
    if (order != 0x4949 && order != 0x4d4d) return frames;
    in.big_endian = order == 0x4d4d;
    auto const magic = in.number(2);
    if (magic != 42 && magic != 43) return frames;
    bool const big = magic == 43;
    if (big) {
        if (in.number(2) != 8) return frames;
        in.number(2);
    }
    auto next = in.number(big ? 8 : 4);
    frames.damaged = true; // unless the last directory says that it is the last
    std::set<std::uint64_t> seen; // a directory that points back to itself
    while (next != 0 && in.good() && seen.insert(next).second && seen.size() < kMaxFrames) {
        if (!in.seek(next)) break;
        auto const entries = in.number(big ? 8 : 2);
        if (entries > 65535) break;
        TiffFrame frame;
        bool page = true;
        for (std::uint64_t i = 0; i < entries && in.good(); ++i) {
            auto const at = next + (big ? 8 : 2) + i * (big ? 20 : 12);
            if (!in.seek(at)) break;
            auto const tag = in.number(2);
            auto const type = in.number(2);
            in.number(big ? 8 : 4);
            auto const value = in.number(type == 3 ? 2 : type == 16 ? 8 : 4);
            if (tag == 254 && (value & 5) != 0) page = false; // 1: reduced, 4: mask
            if (tag == 255 && value == 2) page = false;       // the old way to say reduced
            if (tag == 256) frame.width = static_cast<std::uint32_t>(value);
            if (tag == 257) frame.height = static_cast<std::uint32_t>(value);
        }
        if (!in.good()) break;
        if (page && (frame.width == 0 || frame.height == 0)) break; // the engine does not get past it either
        if (page) frames.pages.push_back(frame);
        if (!in.seek(next + (big ? 8 : 2) + entries * (big ? 20 : 12))) break;
        next = in.number(big ? 8 : 4);
    }
    if (next == 0 && in.good()) frames.damaged = false;
    return frames;
}

} // namespace ocrctl
