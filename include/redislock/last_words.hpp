/// What becomes of a connection that was given up with something yet to be read by the server. It knows nothing of what that is;
/// tests/session_test.cpp goes red if it is closed too early.
#pragma once

#include "per_process.hpp"
#include "socket.hpp"

namespace redislock::detail {

/// Sockets on which last words were said, the latest of them, each for 10 s and then until there is another one: a server that finds us
/// gone as it writes what it owes us reads no further. Thread-safe.
class LastWords {
public:
    void keep(Socket socket) noexcept try {
        constexpr std::size_t most = 64;
        const TimePoint now = detail::now();
        auto& [mutex, sockets] = sockets_.get();
        const std::lock_guard guard{mutex};
        std::erase_if(sockets, [now](const auto& entry) { return entry.second <= now; });
        if (!socket) return;
        if (sockets.size() >= most) sockets.erase(sockets.begin());
        sockets.emplace_back(std::move(socket), later(now, std::chrono::seconds{10}));
    } catch (...) { // no room for it: it's closed
    }

private:
    PerProcess<Guarded<std::vector<std::pair<Socket, TimePoint>>>> sockets_; ///< until when
};

} // namespace redislock::detail
