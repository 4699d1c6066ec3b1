/// What became of a lease, and who has a key, as the interface tells it. tests/types_test.cpp goes red if it is wrong.
#pragma once

#include "detail/system/clock.hpp"
#include "token.hpp"

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace redislock {

/// What became of a lease when it was to be extended or released.
enum class Outcome {
    confirmed, ///< the server did it, and the key had been ours until then
    expired,   ///< too late: the lease had ended
    stolen,    ///< too late: the key holds another's token
    unknown,   ///< nobody said, or the server refused; a key that is left behind goes when its ttl has run out
    not_held,  ///< there was no lease; an unlock() undoes what an attempt may have left behind
};

/// The name of the enumerator.
constexpr std::string_view to_string(Outcome outcome) noexcept {
    switch (outcome) {
    case Outcome::confirmed: return "confirmed";
    case Outcome::expired: return "expired";
    case Outcome::stolen: return "stolen";
    case Outcome::unknown: return "unknown";
    case Outcome::not_held: return "not_held";
    }
    return "(no outcome)";
}

/// Who has a key, as inspect() tells it.
struct Holder {
    static constexpr std::size_t longest_value = 1024;

    std::string value; ///< what the key holds, cut to `longest_value` bytes; binary, and empty if it is no string
    std::optional<Millis> remaining; ///< until the key goes by itself; nothing: it does not
    bool is_awaited = false;         ///< somebody stands in line for it, or did so until a moment ago

    /// The proof of ownership, if the value can be one: for force_unlock(), or to be compared with a lock's own.
    std::optional<Token> token() const noexcept { return Token::from_hex(value); }
};

} // namespace redislock
