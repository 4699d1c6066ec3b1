// What must hold at compile time, of the types that users see.
#include "catch.hpp"

#include <redislock/redislock.hpp>

using namespace redislock;
using Lock = RedisLock<Memory>;
template <class... Arguments>
constexpr bool makes_lock = std::is_constructible_v<Lock, Memory&, Arguments...>;

static_assert(std::is_nothrow_move_constructible_v<Lock> && std::is_nothrow_move_assignable_v<Lock>);
static_assert(std::is_nothrow_swappable_v<Lock> && std::is_nothrow_destructible_v<Lock>);
static_assert(!std::is_copy_constructible_v<Lock> && !std::is_copy_assignable_v<Lock>);
static_assert(!std::is_default_constructible_v<Lock> && !std::is_polymorphic_v<Lock>);
static_assert(std::is_constructible_v<bool, Lock> && !std::is_convertible_v<Lock, bool>);
static_assert(noexcept(std::declval<Lock&>().unlock()) && noexcept(std::declval<const Lock&>().owns_lock()));
static_assert(noexcept(std::declval<const Lock&>().remaining()) && noexcept(std::declval<const Lock&>().token()));
static_assert(!std::is_constructible_v<Lock, Memory, std::string>, "a backend that dies with the statement");

static_assert(makes_lock<const char*> && makes_lock<std::string> && makes_lock<std::string, std::chrono::seconds>);
static_assert(makes_lock<const char*, std::chrono::hours, std::defer_lock_t> && makes_lock<const char*, Options>);
static_assert(makes_lock<const char*, Options, std::try_to_lock_t>);
static_assert(makes_lock<const char*, Options, std::adopt_lock_t, Token>);
static_assert(!makes_lock<const char*, std::chrono::microseconds>, "a ttl finer than the server's");
static_assert(!makes_lock<const char*, int> && !makes_lock<const char*, double>, "a ttl without a unit");
static_assert(!makes_lock<Token> && !makes_lock<const char*, Options, std::adopt_lock_t, std::string>);
static_assert(!makes_lock<const char*, Options, std::adopt_lock_t>, "a lease without its proof");

static_assert(!std::is_constructible_v<Token, std::string> && !std::is_constructible_v<Token, const char*>);
static_assert(!std::is_convertible_v<Token, std::string> && !std::is_convertible_v<Token, std::string_view>);
static_assert(!std::is_constructible_v<std::string, Token> && !std::is_constructible_v<std::string_view, Token>);

static_assert(FencingBackend<Redis> && FencingBackend<Quorum<Redis>> && FencingBackend<Memory>);
static_assert(std::is_aggregate_v<Options> && std::is_aggregate_v<RedisOptions> && std::is_aggregate_v<Request>);
static_assert(std::is_error_code_enum_v<Errc>);
static_assert(Backend<Redis> && Backend<Memory> && !Backend<int> && !Backend<Token>);
static_assert(!std::is_copy_constructible_v<Redis> && !std::is_move_constructible_v<Redis>);
static_assert(!std::is_copy_constructible_v<detail::Connection> && std::is_move_constructible_v<detail::Connection>);
static_assert(std::is_nothrow_move_constructible_v<detail::Descriptor> &&
              std::is_nothrow_move_assignable_v<detail::Descriptor>);

TEST_CASE("a lock's backend is deduced", "[contracts]") {
    Memory memory;
    RedisLock lock{memory, "k"};
    static_assert(std::is_same_v<decltype(lock), Lock>);
    CHECK(lock.owns_lock());
}
