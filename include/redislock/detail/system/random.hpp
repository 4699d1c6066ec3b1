/// Random bits from the operating system. tests/process_test.cpp goes red if it is wrong.
#pragma once

#include "../../errors.hpp"
#include "../../token.hpp"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstdint>

namespace redislock::detail {

/// 128 bits from the operating system's generator, at each call: a forked child or a restored snapshot has no state to
/// repeat. Throws std::system_error if there are none to be had; it never makes do with less.
inline Token random_token() {
    std::array<std::uint64_t, 2> bits{};
    auto* bytes = reinterpret_cast<unsigned char*>(bits.data());
    for (std::size_t have = 0; have < sizeof bits;) {
        const ssize_t got = ::getrandom(bytes + have, sizeof bits - have, 0);
        if (got > 0) have += static_cast<std::size_t>(got);
        if (got < 0 && errno != EINTR) raise({{errno, std::generic_category()}, "no random bits for a token"});
    }
    return Token::from_bits(bits[0], bits[1]);
}

/// Numbers that look random, and are the same for the same `x`: splitmix64's finaliser (Vigna 2015).
constexpr std::uint64_t scrambled(std::uint64_t x) noexcept {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

} // namespace redislock::detail
