/// Where a server is, and what is known of a connection to it that has failed. tests/session_test.cpp goes red if it is
/// wrong.
#pragma once

#include "../protocol/handshake.hpp"
#include "connection.hpp"
#include "lingering.hpp"

#include <vector>

namespace redislock::detail {

/// Why the connection has failed. A server that won't have us says so before it is asked, in place of the first reply,
/// and hangs up.
inline Failure why_not(const Connection& connection) {
    const std::string& said = connection.objection();
    const bool refused = said.starts_with("DENIED") || meaning(said) == Errc::max_clients;
    if (connection.failure().code == Errc::disconnected && refused) return {meaning(said), said};
    return connection.failure();
}

/// Where a server is, what to say to it first, and what becomes of sockets that it has not read from yet.
struct Server {
    std::vector<Endpoint> endpoints;
    Handshake handshake;
    mutable PerProcess<LingeringShare> lingering{};
};

} // namespace redislock::detail
