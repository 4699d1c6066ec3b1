/// The names of the keys that a lock uses beside its own. tests/waiting_test.cpp goes red if it is wrong.
#pragma once

#include "key_slot.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace redislock::detail {

/// The keys beside a lock's key, in the same slot of a cluster: `waiting` announces waiters by its presence; on the
/// list `turn` they block, and an element in it is the turn of the first; `given` tells that a turn was given just now,
/// and may not have been taken yet, though the lock's key is free. And `fencing_counter` has the number of the last
/// grant, for a day. They are passed as arguments, and not as keys, so that a user who may touch the lock's key alone
/// is not refused the whole script for their sake. Their names have the lock's key in full, so that no two keys have
/// the same: not even k and {k}.
struct AuxiliaryKeys {
    explicit AuxiliaryKeys(std::string_view key) {
        const auto open = key.find('{');
        const auto close = open == key.npos ? key.npos : key.find('}', open + 1);
        const std::string name{key};
        std::string prefix = "{" + name + "}:redislock:";
        if (close != key.npos && close > open + 1)
            prefix = name + ":redislock:tagged:";
        else if (key.find('}') != key.npos) // which would end a tag that has the key in it
            prefix = "{" + number_in_slot(hash_slot(key)) + "}" + name + ":redislock:numbered:";
        waiting = prefix + "waiting";
        turn = prefix + "turn";
        given = prefix + "given";
        fencing_counter = prefix + "fence";
    }

    std::string waiting, turn, given, fencing_counter;

private:
    /// The first one. It takes a millisecond to find.
    static std::string number_in_slot(unsigned slot) {
        std::uint32_t number = 0;
        while (hash_slot(std::to_string(number)) != slot) ++number;
        return std::to_string(number);
    }
};

} // namespace redislock::detail
