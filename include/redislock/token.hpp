/// The token of a lease. It knows no server and no key. tests/types_test.cpp goes red if it is wrong.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace redislock {

/// The proof of ownership: 128 random bits, as 32 hexadecimal digits, fresh for every attempt to acquire.
/// It converts neither from nor to a string, so that it can't be passed where a key belongs; from_hex() and hex() are
/// for handing a lease to another process. A default-constructed token is nil and proves nothing.
class Token {
public:
    static constexpr std::size_t digits = 32;

    constexpr Token() noexcept { hex_.fill('0'); }

    static constexpr Token from_bits(std::uint64_t high, std::uint64_t low) noexcept {
        Token token;
        for (std::size_t i = 0; i < digits / 2; ++i) {
            token.hex_[digits / 2 - 1 - i] = alphabet[(high >> (4 * i)) & 15];
            token.hex_[digits - 1 - i] = alphabet[(low >> (4 * i)) & 15];
        }
        return token;
    }

    /// The token that hex() printed; nothing if `text` isn't 32 lower-case hexadecimal digits.
    static constexpr std::optional<Token> from_hex(std::string_view text) noexcept {
        if (text.size() != digits || text.find_first_not_of(alphabet) != text.npos) return std::nullopt;
        Token token;
        std::copy(text.begin(), text.end(), token.hex_.begin());
        return token;
    }

    /// As the server stores it. The view lives as long as the token; of a temporary one there is a copy.
    constexpr std::string_view hex() const& noexcept { return {hex_.data(), hex_.size()}; }
    std::string hex() && { return {hex_.data(), hex_.size()}; }
    constexpr bool is_nil() const noexcept { return *this == Token{}; }

    friend constexpr bool operator==(const Token&, const Token&) noexcept = default;

private:
    static constexpr std::string_view alphabet = "0123456789abcdef";
    std::array<char, digits> hex_{};
};

} // namespace redislock
