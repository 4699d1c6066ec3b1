// What becomes of locks when there is no memory, at each allocation in turn.
#include "allocation.hpp"
#include "catch.hpp"
#include "redis_server.hpp"

#include <redislock/redislock.hpp>

using namespace redislock;
using namespace std::chrono_literals;
using test::good_for;
using test::others_good_for;
using test::spared;

namespace {

/// A lock's life with no memory for one allocation after the other, until there is enough; and another's after each.
template <class Backend>
void survive(Backend& backend, test::RedisServer& server, const Options& options) {
    for (int failing = 0;; ++failing) {
        CAPTURE(failing);
        Outcome unlocked = Outcome::not_held;
        good_for = failing;
        try {
            RedisLock lock{backend, "k", options};
            if (options.renew) static_cast<void>(lock.lost());
            static_cast<void>(lock.extend(60s));
            unlocked = lock.unlock();
        } catch (const std::bad_alloc&) {
        }
        const bool was_enough = std::exchange(good_for, -1) >= 0;
        CHECK((unlocked == Outcome::unknown || server.integer({"EXISTS", "k"}) == 0));
        server.command({"DEL", "k"});
        CHECK(RedisLock{backend, "k", options}.unlock() == Outcome::confirmed);
        if (was_enough) return;
    }
}

} // namespace

TEST_CASE("a lock for which there is no memory is not left behind, and the next one is had", "[redis][allocation]") {
    test::RedisServer server;
    const bool renew = GENERATE(false, true), fencing = GENERATE(false, true);
    Redis redis{server.unix_uri()};
    survive(redis, server, {.ttl = 60s, .renew = renew, .fencing = fencing});
}

TEST_CASE("nor where a majority is asked", "[redis][allocation]") {
    test::RedisServer server;
    const bool renew = GENERATE(false, true), fencing = GENERATE(false, true);
    Redis redis{server.unix_uri()};
    Quorum quorum{redis};
    survive(quorum, server, {.ttl = 60s, .renew = renew, .fencing = fencing});
}

TEST_CASE("a loss is told, though there is no memory for it at first", "[redis][allocation]") {
    test::RedisServer server;
    spared = true;
    for (int failing = 0; others_good_for.exchange(-1) < 0; ++failing) {
        Redis redis{server.unix_uri()}; // with threads of its own
        RedisLock lock{redis, "k", 300ms};
        const detail::StopSignal lost{lock.lost()};
        others_good_for = failing;
        server.command({"DEL", "k"});
        CHECK(detail::wait(lost.fd(), POLLIN, later(detail::now(), 10s)));
    }
    spared = false;
}
