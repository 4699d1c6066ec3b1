// What must hold at compile time, of the types that users see.
#include "catch.hpp"
#include "child.hpp"

#include <redislock/redislock.hpp>

#include <optional>

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

#if !defined(NDEBUG)
namespace {

/// Whether a process that does this is aborted, with a sentence that says so.
bool is_aborted(const std::function<void()>& action) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(ends[1], STDERR_FILENO);
        ::signal(SIGABRT, SIG_DFL);
        action();
        ::_exit(0);
    }
    ::close(ends[1]);
    std::string said(512, '\0');
    const ssize_t size = ::read(ends[0], said.data(), said.size());
    ::close(ends[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    said.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && said.find("is destroyed before its user") != said.npos;
}

} // namespace

TEST_CASE("a debug build ends with a sentence where a backend is used that is gone", "[contracts]") {
    const Options options{.renew = false};
    CHECK(is_aborted([&] {
        std::optional<Redis> redis{std::in_place, "redis://127.0.0.1:1"};
        RedisLock lock{*redis, "k", options, std::defer_lock};
        redis.reset();
        static_cast<void>(lock.try_lock());
    }));
    CHECK(is_aborted([&] {
        std::optional<Memory> memory{std::in_place};
        RedisLock lock{*memory, "k", options};
        RedisLock moved{std::move(lock)};
        memory.reset();
    }));
    CHECK(is_aborted([&] {
        std::optional<Redis> redis{std::in_place, "redis://127.0.0.1:1"};
        Quorum quorum{*redis};
        redis.reset();
        RedisLock lock{quorum, "k", options};
    }));
    CHECK_FALSE(is_aborted([&] {
        std::optional<Memory> memory{std::in_place};
        { RedisLock lock{*memory, "k", options}; }
        memory.reset();
    }));
}
#endif
