// Children of all kinds of fork, and what they may not do to their parent.
#include "catch.hpp"
#include "child.hpp"
#include "redis_server.hpp"
#include "until.hpp"

#include <redislock/redislock.hpp>

#include <dlfcn.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <thread>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::Child;
using test::Pipe;

namespace {

/// What a child does in a handler of fork() that the program has registered: one before the library was used for the
/// first time, and another one after.
std::function<void()> early, late; // NOLINT
void run(std::function<void()>& act) {
    if (act) std::exchange(act, nullptr)();
}
[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, [] { run(early); });

void register_late() {
    static_cast<void>(detail::Signal{}); // by now ours is registered
    [[maybe_unused]] static const int once = ::pthread_atfork(nullptr, nullptr, [] { run(late); });
}

enum class Kind { early_handler, late_handler, plain, without_handlers, system_call };

std::vector<Kind> kinds() {
    std::vector<Kind> all{Kind::early_handler, Kind::late_handler, Kind::plain, Kind::system_call};
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    all.push_back(Kind::without_handlers);
#endif
#if defined(__SANITIZE_THREAD__) // which learns of fork() alone
    all.resize(3);
#endif
    return all;
}

pid_t forked(Kind kind) {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    if (kind == Kind::without_handlers) return ::_Fork();
#endif
    if (kind == Kind::system_call) return static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    return ::fork();
}

/// Does it in a child of that kind, which must end by itself: whether it has. It is killed after 20 s.
bool done_in_child(Kind kind, const std::function<void()>& act) {
    const auto guarded = [&act] {
        ::alarm(20);
        act();
    };
    if (kind == Kind::early_handler) early = guarded;
    if (kind == Kind::late_handler) late = guarded;
    const pid_t pid = forked(kind);
    if (pid == 0) {
        if (kind > Kind::late_handler) guarded();
        ::_exit(0);
    }
    early = late = nullptr;
    int status = -1;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1; }

/// The sockets of this process.
std::vector<int> open_sockets() {
    std::vector<int> all;
    for (int fd = 0; fd < 1024; ++fd) {
        struct stat status {};
        if (::fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode)) all.push_back(fd);
    }
    return all;
}

} // namespace

TEST_CASE("a child of any kind of fork ends what it inherited without a word for its parent", "[redis][process]") {
    register_late();
    test::RedisServer server;
    for (const Kind kind : kinds())
        for (const bool renew : {false, true})
            for (const int what : {1, 2, 3}) { // the lock, the Redis, both
                CAPTURE(static_cast<int>(kind), renew, what);
                auto redis = std::make_unique<Redis>(server.unix_uri());
                auto lock = std::make_unique<RedisLock<Redis>>(*redis, "k", Options{.ttl = 60s, .renew = renew});
                CHECK(done_in_child(kind, [&] {
                    if (what & 1) lock.reset();
                    if (what & 2) redis.reset();
                }));
                CHECK(server.text({"GET", "k"}) == lock->token().hex());
                CHECK(lock->owns_lock());
                CHECK(lock->extend(60s) == Outcome::confirmed); // over the connection that it had
                CHECK(lock->unlock() == Outcome::confirmed);
            }
}

TEST_CASE("a child of any kind of fork holds nothing, and has locks of its own", "[redis][process]") {
    register_late();
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    for (const Kind kind : kinds()) {
        CAPTURE(static_cast<int>(kind));
        RedisLock lock{redis, "k", 60s};
        CHECK(done_in_child(kind, [&] {
            bool well = !lock.owns_lock() && lock.token().is_nil() && lock.unlock() == Outcome::not_held;
            well = well && !lock.try_lock() && RedisLock(redis, "childs", 60s).unlock() == Outcome::confirmed;
            if (!well) ::_exit(1);
        }));
        CHECK(lock.unlock() == Outcome::confirmed);
    }
}

TEST_CASE("what is run by vfork() takes nothing from its parent", "[redis][process]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    RedisLock lock{redis, "k", 60s};
    const pid_t pid = ::vfork();
    if (pid == 0) {
        ::execl("/bin/true", "true", nullptr);
        ::_exit(1);
    }
    int status = -1;
    ::waitpid(pid, &status, 0);
    CHECK(status == 0);
    CHECK(lock.owns_lock());
    CHECK(lock.unlock() == Outcome::confirmed);
}

TEST_CASE("a child that is forked while threads wait in line ends at once, and they go on waiting",
          "[redis][process]") {
    register_late();
    test::RedisServer server;
    auto redis = std::make_unique<Redis>(server.unix_uri());
    auto holder = std::make_unique<RedisLock<Redis>>(*redis, "k", 60s);
    std::vector<std::thread> waiters;
    std::atomic<int> had{0};
    for (int i = 0; i < 3; ++i)
        waiters.emplace_back([&] { had += RedisLock(*redis, "k", 60s).unlock() == Outcome::confirmed; });
    test::until([&] { return server.blocked_clients() == 3; });
    for (const Kind kind : kinds())
        CHECK(done_in_child(kind, [&] {
            holder.reset();
            redis.reset();
        }));
    CHECK(server.blocked_clients() == 3);
    holder->unlock();
    for (std::thread& waiter : waiters) waiter.join();
    CHECK(had == 3);
}

// The address sanitizer of gcc 12 takes no care of its allocator's mutexes in fork(): a child may get stuck in operator
// new.
#if !defined(__SANITIZE_ADDRESS__)
TEST_CASE("a child in whose parent other threads ask all the time ends its Redis", "[redis][process]") {
    register_late();
    test::RedisServer server;
    auto redis = std::make_unique<Redis>(server.unix_uri());
    auto lock = std::make_unique<RedisLock<Redis>>(*redis, "k", 60s);
    std::atomic<bool> done{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&, i] {
            while (!done) RedisLock one{*redis, "thread" + std::to_string(i), 60s};
        });
    for (int round = 0; round < 100; ++round) {
        const Kind kind = round % 2 ? Kind::early_handler : Kind::late_handler;
        CHECK(done_in_child(kind, [&] {
            lock.reset();
            redis.reset();
        }));
    }
    done = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(lock->unlock() == Outcome::confirmed);
}
#endif

#if !defined(__SANITIZE_THREAD__) // which ends a child that was forked by another thread than the first
TEST_CASE("a child forked by an observer does not renew its parent's leases", "[redis][process]") {
    test::RedisServer server;
    struct Context {
        std::atomic<pid_t> child{0};
        std::atomic<bool> forks{true};
    } context;
    static const Observer table{.renewed = nullptr};
    Observer observer = table;
    observer.context = &context;
    observer.renewed = [](void* where, const Observer::Renewed&) noexcept {
        auto& it = *static_cast<Context*>(where);
        if (!it.forks.exchange(false)) return;
        const pid_t pid = ::fork();
        if (pid != 0) {
            it.child = pid;
            return;
        }
        sigset_t all; // of a thread of ours all are blocked
        ::sigfillset(&all);
        ::pthread_sigmask(SIG_UNBLOCK, &all, nullptr);
        ::alarm(20); // the child returns from here
    };
    Redis redis{server.unix_uri()};
    RedisLock lock{redis, "k", {.ttl = 6s, .observer = &observer}};
    test::until([&] { return context.child != 0; });
    int status = -1;
    CHECK(::waitpid(context.child, &status, 0) == context.child); // its only thread has ended
    CHECK(WIFEXITED(status));
    CHECK(lock.unlock() == Outcome::confirmed);
}
#endif

TEST_CASE("a fork is noticed with and without the kernel's help", "[process]") {
    const bool can_wipe = GENERATE(true, false);
    detail::Forks forks{can_wipe};
    const auto number = [&] {
        const detail::Generation known = forks.known();
        return known != 0 ? known : forks.look().generation;
    };
    const detail::Generation parents = number();
    CHECK(number() == parents);
    CHECK((forks.known() != 0) == can_wipe);
    for (const Kind kind : kinds())
        CHECK(done_in_child(kind, [&] {
            const detail::Generation childs = number();
            const bool well = childs != parents && number() == childs;
            const bool below = done_in_child(Kind::plain, [&] {
                if (number() == childs || number() == parents) ::_exit(1);
            });
            if (!well || !below || number() != childs) ::_exit(1);
        }));
    CHECK(number() == parents);
}

TEST_CASE("without the kernel's help a child with its parent's pid is noticed if fork() made it", "[process]") {
    detail::Forks forks{false};
    const detail::Generation parents = forks.look().generation;
    CHECK(forks.look().generation == parents);
    forks.forked(); // as its handler does, in the child
    const auto [generation, is_new] = forks.look();
    CHECK(generation != parents);
    CHECK(is_new);
}

TEST_CASE("copies of the library agree on a process, and one that comes with a child takes it for no other",
          "[process]") {
    const bool can_wipe = GENERATE(true, false);
    detail::Forks one{can_wipe}, other{can_wipe};
    const detail::Generation parents = one.look().generation;
    CHECK(parents == other.look().generation);
    Child child{[&] {
        detail::Forks latest{can_wipe};
        return one.look().generation == other.look().generation && latest.look().generation != parents;
    }};
    CHECK(child.was_well());
}

TEST_CASE("the threads of a child that notice it at once agree on its number", "[process]") {
    const bool can_wipe = GENERATE(true, false);
    detail::Forks forks{can_wipe};
    const detail::Generation parents = forks.look().generation;
    for (int round = 0; round < 20; ++round) {
        Child child{[&] {
            constexpr int count = 4;
            std::atomic<int> ready{0}, first{0};
            std::array<detail::Generation, count> numbers{};
            std::vector<std::thread> threads;
            for (detail::Generation& number : numbers)
                threads.emplace_back([&] {
                    for (++ready; ready < count;) std::this_thread::yield();
                    const auto [generation, is_new] = forks.look();
                    number = generation;
                    first += is_new;
                });
            for (std::thread& thread : threads) thread.join();
            const bool agree =
                std::all_of(numbers.begin(), numbers.end(), [&](detail::Generation n) { return n == numbers[0]; });
            return agree && first == 1 && numbers[0] != parents;
        }};
        CHECK(child.was_well());
    }
}

TEST_CASE("a forked child has its parent's sockets closed, at once or when it first looks", "[redis][process]") {
    register_late();
    test::RedisServer server;
    const std::vector<int> before = open_sockets();
    Redis redis{server.unix_uri()};
    const RedisLock lock{redis, "k", 60s};
    for (const Kind kind : kinds()) {
        CAPTURE(static_cast<int>(kind));
        CHECK(done_in_child(kind, [&] {
            if (kind > Kind::plain) static_cast<void>(lock.owns_lock());
            if (kind == Kind::early_handler) static_cast<void>(lock.owns_lock());
            if (open_sockets() != before) ::_exit(1);
        }));
    }
    CHECK(lock.owns_lock());
}

TEST_CASE("a child that has closed all descriptors and opened others keeps these", "[redis][process]") {
    test::RedisServer server;
    auto redis = std::make_unique<Redis>(server.unix_uri());
    auto lock = std::make_unique<RedisLock<Redis>>(*redis, "k", 60s);
    std::vector<Kind> all = kinds();
    for (const Kind kind : all) {
        CAPTURE(static_cast<int>(kind));
        CHECK(done_in_child(kind, [&] {
            int highest = 0;
            for (int fd = 3; fd < 256; ++fd)
                if (is_open(fd)) highest = fd;
            for (int fd = 3; fd < 256; ++fd) ::close(fd);
            for (int opens = 0, fd = 0; fd <= highest; ++opens) { // by turns what could be taken for ours
                if (opens % 3 == 0) fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
                if (opens % 3 == 1) fd = ::eventfd(0, 0);
                if (opens % 3 == 2) fd = ::open("/dev/null", O_RDONLY);
            }
            static_cast<void>(lock->owns_lock());
            lock.reset();
            redis.reset();
            for (int fd = 3; fd <= highest; ++fd)
                if (!is_open(fd)) ::_exit(1);
        }));
    }
    CHECK(lock->unlock() == Outcome::confirmed);
}

TEST_CASE("a waiter that is killed costs those behind it nothing, though a worker that it forked lives on",
          "[redis][process]") {
    test::RedisServer server;
    const Options looks_seldom{.ttl = 60s, .renew = false, .request_timeout = 20s}; // no thread before the fork
    Redis redis{server.unix_uri()};
    RedisLock holder{redis, "k", looks_seldom};
    Pipe forked, worker_ends;
    Child supervisor{[&] {
        Redis own{server.unix_uri()};
        std::thread waits{[&] { RedisLock lock{own, "k", looks_seldom}; }};
        while (server.blocked_clients() != 1) std::this_thread::yield();
        if (::fork() == 0) {
            ::alarm(120);
            forked.say('!');
            worker_ends.hear();
            ::_exit(0);
        }
        waits.join();
        return false;
    }};
    forked.hear();
    RedisLock next{redis, "k", looks_seldom, std::defer_lock};
    std::thread waits{[&] { next.lock(); }};
    test::until([&] { return server.blocked_clients() == 2; });
    supervisor.signal(SIGKILL);
    test::until([&] { return server.blocked_clients() == 1; });
    const TimePoint start = now();
    holder.unlock();
    waits.join();
    CHECK(now() < start + 15s);
    CHECK(next.owns_lock());
    worker_ends.say('!');
}

TEST_CASE("libraries whose symbols are hidden have one category and one idea of a fork", "[redis][process]") {
    if (test::is_over_tls("these libraries do not include it")) return;
    test::RedisServer server;
    using Holds = bool (*)(const void* lock);
    void* const libraries[] = {::dlopen(REDISLOCK_HIDDEN_1, RTLD_NOW | RTLD_LOCAL),
                               ::dlopen(REDISLOCK_HIDDEN_2, RTLD_NOW | RTLD_LOCAL)};
    REQUIRE((libraries[0] != nullptr && libraries[1] != nullptr));
    const auto find = [&](int library, const char* name) { return ::dlsym(libraries[library], name); };
    for (const int thrower : {0, 1}) {
        const auto fail = reinterpret_cast<void (*)()>(find(thrower, "refuse_a_key"));
        const auto is_bad_key = reinterpret_cast<bool (*)(void (*)())>(find(1 - thrower, "is_bad_key"));
        CHECK(is_bad_key(fail));
        try {
            fail();
        } catch (const std::system_error& error) {
            CHECK(error.code() == Errc::bad_key);
        }
    }
    const auto lock = reinterpret_cast<void* (*)(const char*)>(find(0, "lock"))(server.unix_uri().c_str());
    const auto holds = reinterpret_cast<Holds>(find(1, "holds"));
    CHECK(holds(lock));
    for (const Kind kind : kinds())
        CHECK(done_in_child(kind, [&] {
            if (holds(lock) || reinterpret_cast<Holds>(find(0, "holds"))(lock)) ::_exit(1);
            reinterpret_cast<void (*)(void*)>(find(1, "unlock"))(lock);
        }));
    CHECK(holds(lock));
    CHECK(server.integer({"EXISTS", "k"}) == 1);
    reinterpret_cast<void (*)(void*)>(find(1, "unlock"))(lock);
    CHECK(server.integer({"EXISTS", "k"}) == 0);
    for (void* library : libraries) ::dlclose(library);
}
