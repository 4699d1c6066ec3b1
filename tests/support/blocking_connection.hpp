/// A connection whose calls wait, for tests that look at one alone.
#pragma once

#include <redislock/detail/net/connection.hpp>
#include <redislock/detail/system/wait.hpp>

namespace test {

class BlockingConnection : public redislock::detail::Connection {
public:
    /// False: see failure(). Half-open, if the other end has not answered by the deadline.
    bool open(const redislock::detail::Endpoint& endpoint, redislock::TimePoint deadline) {
        return begin_open(endpoint) && redislock::detail::wait(fd(), POLLOUT, deadline) && finish_open(endpoint);
    }

    /// False: not all of it was sent.
    bool write(std::string_view bytes, redislock::TimePoint deadline) {
        while (write_some(bytes) && !bytes.empty() && redislock::detail::wait(fd(), POLLOUT, deadline)) {
        }
        return bytes.empty();
    }

    /// Null: the connection has failed, or there is none by the deadline.
    const redislock::detail::Reply* read(redislock::TimePoint deadline) {
        for (;;) {
            if (const redislock::detail::Reply* reply = read_some()) return reply;
            if (!good() || !redislock::detail::wait(fd(), POLLIN, deadline)) return nullptr;
        }
    }
};

} // namespace test
