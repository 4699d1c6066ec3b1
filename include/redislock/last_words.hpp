/// What becomes of a connection that was given up with something yet to be read by the server. It knows nothing of what that is;
/// tests/session_test.cpp goes red if it is closed too early.
#pragma once

#include "per_process.hpp"
#include "socket.hpp"

namespace redislock::detail {

/// Sockets on which last words were said, the latest of them, each for a while: a server that finds us gone as it writes what it owes
/// us reads no further. Thread-safe.
class LastWords {
public:
    void keep(Socket socket) noexcept try {
        constexpr std::size_t most = 64;
        Sockets& sockets = sockets_.get();
        const std::lock_guard guard{sockets.mutex};
        std::erase_if(sockets.all, [now = now()](const auto& entry) { return entry.second <= now; });
        if (!socket) return;
        if (sockets.all.size() >= most) sockets.all.erase(sockets.all.begin());
        sockets.all.emplace_back(std::move(socket), later(now(), std::chrono::seconds{10}));
    } catch (...) { // no room for it: it's closed
    }

private:
    struct Sockets : Guarded {
        std::vector<std::pair<Socket, TimePoint>> all{};
    };
    PerProcess<Sockets> sockets_;
};

} // namespace redislock::detail
