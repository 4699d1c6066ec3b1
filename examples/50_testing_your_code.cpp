// Your own code, tested without a server: what is written for any backend runs on Memory, whose time is simulated.
#include <redislock/redislock.hpp>

#include <iostream>

using namespace std::chrono_literals;

// [testing]
/// The code under test. True: the backup was made, by us. False: others were at it for as long as we cared to wait.
bool backup(redislock::AnyBackend& backend, int& made) {
    redislock::RedisLock lock{backend, "backup", 10s, std::defer_lock};
    if (!lock.try_lock_for(30s)) return false;
    ++made;
    return lock.unlock() == redislock::Outcome::confirmed;
}

int main() {
    int made = 0, failed = 0;
    const auto expect = [&](bool good, const char* what) {
        std::cout << (good ? "ok      " : "FAILED  ") << what << '\n';
        failed += good ? 0 : 1;
    };
    redislock::Memory memory;              // a whole test takes microseconds: waiting moves the simulated time on
    redislock::AnyBackend backend{memory}; // where the program has a Redis
    expect(backup(backend, made) && made == 1, "it is made when nobody else is at it");

    {
        redislock::RedisLock other{memory, "backup", {.ttl = 20s, .renew = false}};
        expect(backup(backend, made) && made == 2, "it waits for the lease of one that has stopped to end");
        expect(!other.owns_lock(), "and that other can see that its lease is over");
    }
    {
        redislock::RedisLock other{memory, "backup", 60s};
        expect(!backup(backend, made) && made == 2, "it gives up after 30 s");
    }
    memory.inject(redislock::Fault::reset_after); // granted, and then the connection breaks
    expect(backup(backend, made) && made == 3, "it survives a broken connection");

    memory.set_fault(redislock::Fault::reply_lost); // the server acts, and nothing is heard of it
    try {
        backup(backend, made);
        expect(false, "a mute server is an error, and no backup");
    } catch (const std::system_error& error) {
        expect(error.code() == redislock::Errc::timed_out && made == 3, "a mute server is an error, and no backup");
    }
    memory.set_fault(redislock::Fault::none);
    memory.refuse(redislock::Errc::read_only); // as a replica does
    try {
        backup(backend, made);
        expect(false, "so is one that refuses, when 30 s are over");
    } catch (const std::system_error& error) {
        expect(error.code() == redislock::Errc::read_only, "so is one that refuses, when 30 s are over");
    }
    expect(made == 3 && !memory.get("backup"), "and no lock is left behind");
    return failed;
}
// [testing]
