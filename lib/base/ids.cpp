#include "lib/base/ids.hpp"

#include "lib/base/error.hpp"

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <sys/random.h>

namespace ocrctl {
namespace {

void fill_random(void* out, std::size_t size) {
    auto* bytes = static_cast<unsigned char*>(out);
    while (size > 0) {
        auto got = getrandom(bytes, size, 0);
        OCRCTL_CHECK(got > 0);
        bytes += got;
        size -= static_cast<std::size_t>(got);
    }
}

std::uint64_t now_ms() {
    using namespace std::chrono;
    return static_cast<std::uint64_t>(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
}

// Milliseconds and a 12-bit counter that only grow within this process, also when the clock is set back.
std::pair<std::uint64_t, unsigned> next_stamp() {
    static std::mutex mutex;
    static std::uint64_t last_ms = 0;
    static unsigned counter = 0;
    std::lock_guard lock(mutex);
    auto ms = now_ms();
    if (ms > last_ms) {
        last_ms = ms;
        counter = 0;
    } else if (++counter > 0xfff) {
        ++last_ms;
        counter = 0;
    }
    return {last_ms, counter};
}

} // namespace

std::string new_uuid() {
    auto [ms, counter] = next_stamp();
    std::array<unsigned char, 16> b;
    fill_random(b.data(), b.size());
    for (int i = 0; i < 6; ++i) b[static_cast<std::size_t>(i)] = static_cast<unsigned char>(ms >> (40 - 8 * i));
    b[6] = static_cast<unsigned char>(0x70 | (counter >> 8));
    b[7] = static_cast<unsigned char>(counter & 0xff);
    b[8] = static_cast<unsigned char>(0x80 | (b[8] & 0x3f));
    std::string text;
    text.reserve(36);
    static constexpr char kHex[] = "0123456789abcdef";
    for (std::size_t i = 0; i < b.size(); ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
        text += kHex[b[i] >> 4];
        text += kHex[b[i] & 15];
    }
    return text;
}

std::string new_ulid() {
    static constexpr char kAlphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    auto [ms, counter] = next_stamp();
    std::string text(26, '0');
    for (int i = 9; i >= 0; --i) {
        text[static_cast<std::size_t>(i)] = kAlphabet[ms & 31];
        ms >>= 5;
    }
    text[10] = kAlphabet[(counter >> 10) & 31];
    text[11] = kAlphabet[(counter >> 5) & 31];
    text[12] = kAlphabet[counter & 31];
    std::array<unsigned char, 13> random;
    fill_random(random.data(), random.size());
    for (std::size_t i = 0; i < random.size(); ++i) text[13 + i] = kAlphabet[random[i] & 31];
    return text;
}

std::string random_hex(std::size_t bytes) {
    static constexpr char kHex[] = "0123456789abcdef";
    std::string raw(bytes, '\0');
    fill_random(raw.data(), raw.size());
    std::string text;
    for (unsigned char c : raw) {
        text += kHex[c >> 4];
        text += kHex[c & 15];
    }
    return text;
}

} // namespace ocrctl
