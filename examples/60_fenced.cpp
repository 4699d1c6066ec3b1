// A resource that refuses who comes too late: each grant has a number, greater than that of every earlier one, and the
// resource remembers the greatest that it has seen. Here the resource is in Redis, in SQL (in words), and in this
// process.
#include <redislock/redislock.hpp>

#include <hiredis/hiredis.h>

#include <cstdlib>
#include <iostream>
#include <mutex>

using namespace std::chrono_literals;

namespace {

/// In front of what one process guards: lets nobody in who comes with a smaller number than somebody before him.
class FenceGate {
public:
    template <class Work>
    bool enter(std::uint64_t fencing_token, Work work) {
        const std::lock_guard guard{mutex_};
        if (fencing_token < highest_) return false;
        highest_ = fencing_token;
        work();
        return true;
    }

private:
    std::mutex mutex_;
    std::uint64_t highest_ = 0;
};

/// Sets KEYS[1], unless it was written with a higher number. In SQL the same is
/// UPDATE stock SET count = :count, fencing_token = :fencing_token WHERE id = :id AND fencing_token <= :fencing_token,
/// and 0 rows are a refusal.
constexpr const char* set_if_not_older = R"lua(
if tonumber(redis.call('HGET', KEYS[1], 'fence') or 0) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'fence', ARGV[2])
return 1
)lua";

bool write(redisContext* store, const char* value, std::uint64_t fencing_token) {
    const std::string number = std::to_string(fencing_token);
    void* reply = ::redisCommand(store, "EVAL %s 1 stock:value %s %s", set_if_not_older, value, number.c_str());
    const std::unique_ptr<redisReply, decltype(&::freeReplyObject)> owner{static_cast<redisReply*>(reply),
                                                                          &::freeReplyObject};
    return owner && owner->type == REDIS_REPLY_INTEGER && owner->integer == 1;
}

int run(redislock::Redis& redis, redisContext* store) {
    int failed = 0;
    const auto expect = [&](bool good, const char* what) {
        std::cout << (good ? "ok      " : "FAILED  ") << what << '\n';
        failed += good ? 0 : 1;
    };
    FenceGate gate;
    int entered = 0;

    redislock::RedisLock slow{redis, "stock", {.ttl = 1s, .renew = false, .fencing = true}};
    const std::uint64_t old_number = slow.fencing_token(); // then this process is paused for longer than its lease
    expect(gate.enter(old_number, [&] { ++entered; }), "the first holder enters");
    redislock::RedisLock next{redis, "stock", {.ttl = 10s, .fencing = true}};
    expect(write(store, "from the next holder", next.fencing_token()), "the next holder writes");
    expect(gate.enter(next.fencing_token(), [&] { ++entered; }), "and enters");
    expect(!write(store, "from the slow one", old_number), "the slow one, who does not know yet, is refused");
    expect(!gate.enter(old_number, [&] { ++entered; }) && entered == 2, "there as well");
    return failed;
}

} // namespace

int main() try {
    const char* url = std::getenv("REDIS_URL");
    const std::string uri = url ? url : "redis://127.0.0.1:6379";
    redislock::Redis redis{uri};
    const auto server = redislock::Address::parse(uri);
    const std::unique_ptr<redisContext, decltype(&::redisFree)> store{
        server.path.empty() ? ::redisConnect(server.host.c_str(), std::stoi(server.port))
                            : ::redisConnectUnix(server.path.c_str()),
        &::redisFree};
    if (!server.password.empty())
        ::freeReplyObject(::redisCommand(
            store.get(), "AUTH %s %s", server.user.empty() ? "default" : server.user.c_str(), server.password.c_str()));
    ::freeReplyObject(::redisCommand(store.get(), "SELECT %u", server.db));
    return run(redis, store.get());
} catch (const std::system_error& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
