/// What the worker processes believe and do, in memory that they share with whoever judges it: what one of them has
/// written stays when it is killed.
#pragma once

#include <redislock/redislock.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace chaos {

using redislock::Millis;
using Time = std::int64_t; ///< ns of CLOCK_BOOTTIME

/// What a worker chooses from. Who is killed, or stopped when it is his turn, blocks a key for as long.
constexpr Millis shortest_ttl{50}, longest_ttl{300};

inline std::string key_name(int key) { return "chaos:lock:" + std::to_string(key); }

inline Time now() { return redislock::detail::now().time_since_epoch().count(); }

/// One grant, and what its holder believes of it.
struct Grant {
    std::atomic<Time> granted{0}; ///< when the call returned; 0: it has not been written yet
    std::atomic<Time> owned{0};   ///< when owns_lock() was last seen to be true
    std::atomic<Time> until{0};   ///< how long it was to last then
    std::atomic<Time> ended{0};   ///< when the unlock was begun, or owns_lock() was seen to be false
    std::uint64_t fencing_token = 0;
    int key = 0, worker = 0;
    char token[redislock::Token::digits] = {};
    std::atomic<int> guarded{0}, unguarded{0}; ///< additions to the two registers that were acknowledged

    /// A holder that is killed, or stands still, ends no later than what it could rely on.
    Time believed_until() const {
        const Time limit = std::max(until.load(), owned.load());
        return ended != 0 ? std::min(ended.load(), limit) : limit;
    }
};

struct Worker {
    std::atomic<Time> last{0}; ///< when it had the lock after all was well again
};

struct Log {
    static constexpr std::size_t most_grants = 400'000, most_workers = 64;

    std::atomic<std::size_t> count;
    std::atomic<Time> healed; ///< when all was well again; 0: it isn't yet
    std::atomic<std::uint64_t> extensions, losses, refused, stale, errors, unconfirmed;
    Worker workers[most_workers];
    Grant grants[most_grants];

    /// The next free one. Whoever runs it all ends it before there is none.
    Grant& next() { return grants[std::min(count++, most_grants - 1)]; }
    bool is_nearly_full() const { return count + most_workers >= most_grants; }
    std::size_t size() const { return std::min(count.load(), most_grants); }

    static Log& open(const std::string& path, bool create) {
        const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0600);
        void* memory = MAP_FAILED;
        if (fd >= 0 && (!create || ::ftruncate(fd, sizeof(Log)) == 0))
            memory = ::mmap(nullptr, sizeof(Log), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (fd >= 0) ::close(fd);
        if (memory == MAP_FAILED) throw std::runtime_error{"no memory to share: " + path};
        return *static_cast<Log*>(memory); // zeros are what all of it begins as
    }
};

} // namespace chaos
