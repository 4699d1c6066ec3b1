/// Which of a Redis Cluster's slots a key is in (redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec). It
/// knows nothing of who has the slot. tests/cluster_route_test.cpp goes red if it is wrong.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace redislock::detail {

inline constexpr std::size_t slot_count = 16'384;

/// CRC-16/XMODEM of each byte.
inline constexpr auto crc16_table = [] {
    std::array<std::uint16_t, 256> table{};
    for (unsigned byte = 0; byte < table.size(); ++byte) {
        unsigned crc = byte << 8;
        for (int bit = 0; bit < 8; ++bit) crc = crc << 1 ^ ((crc & 0x8000) != 0 ? 0x1021U : 0U);
        table[byte] = static_cast<std::uint16_t>(crc);
    }
    return table;
}();

/// Of a text that is hashed as a whole.
constexpr unsigned hash_slot(std::string_view text) noexcept {
    unsigned crc = 0;
    for (const char c : text)
        crc = (crc << 8 & 0xffff) ^ crc16_table[(crc >> 8 ^ static_cast<unsigned char>(c)) & 0xff];
    return crc % slot_count;
}

/// What of a key is hashed: what stands between the first { and the next }, if that is anything; else all of it.
constexpr std::string_view hash_tag(std::string_view key) noexcept {
    const auto open = key.find('{');
    const auto close = open == key.npos ? key.npos : key.find('}', open + 1);
    return close == key.npos || close == open + 1 ? key : key.substr(open + 1, close - open - 1);
}

constexpr unsigned key_slot(std::string_view key) noexcept { return hash_slot(hash_tag(key)); }

} // namespace redislock::detail
