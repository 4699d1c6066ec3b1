/// Whether an object is still there that is to outlive its users. tests/contracts_test.cpp goes red if it is wrong.
#pragma once

#include <cassert>
#include <memory>

namespace redislock::detail {

/// What a user keeps: it tells whether the object is there, without touching it.
class Life {
public:
    Life() = default;
    explicit Life(const std::shared_ptr<const void>& object) noexcept : object_{object} {}

    /// For debug builds: before the object is used.
    void check() const noexcept {
        assert(!object_.expired() &&
               "the backend of a RedisLock, or a server of a Quorum, is destroyed before its user");
    }

private:
    std::weak_ptr<const void> object_;
};

/// A member of the object.
class Lifetime {
public:
    Lifetime() = default;
    Lifetime(const Lifetime&) = delete;
    Lifetime& operator=(const Lifetime&) = delete;

    Life life() const noexcept { return Life{alive_}; }

private:
    const std::shared_ptr<const void> alive_ = std::make_shared<char>();
};

/// Where a place does not tell, it is taken to be there.
template <class Place>
void check_life(const Place& place, const Life& life) noexcept {
    if constexpr (requires { place.life(); }) life.check();
}
template <class Place>
Life life_of(const Place& place) noexcept {
    if constexpr (requires { place.life(); })
        return place.life();
    else
        return {};
}

} // namespace redislock::detail
