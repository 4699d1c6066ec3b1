/// Where a server is, and what is known of a connection to it that has failed. tests/session_test.cpp goes red if it is
/// wrong.
#pragma once

#include "../protocol/release_form.hpp"
#include "connection.hpp"
#include "lingering.hpp"
#include "locator.hpp"

namespace redislock::detail {

/// Why the connection has failed. A server that won't have us says so before it is asked, in place of the first reply,
/// and hangs up.
inline Failure why_not(const Connection& connection) {
    const std::string& said = connection.objection();
    const bool refused = said.starts_with("DENIED") || meaning(said) == Errc::max_clients;
    if (connection.failure().code == Errc::disconnected && refused) return {meaning(said), said};
    return connection.failure();
}

/// Which runs of a server have been heard of. One that was replaced, by a restart or a failover, does not come back so
/// soon: if it does, there are two. Thread-safe.
class Runs {
public:
    Failure heard(std::string_view id, TimePoint now, Millis within) {
        auto& [mutex, own] = own_.get();
        const std::lock_guard guard{mutex};
        if (id.empty() || id == own.last) return {};
        if (id == own.before && now < later(own.changed, within))
            return {Errc::two_servers, "run ids " + own.last + " and " + own.before + " by turns"};
        own.before = std::exchange(own.last, std::string{id});
        own.changed = now;
        return {};
    }

private:
    struct Own {
        std::string last{}, before{};
        TimePoint changed{};
    };
    PerProcess<Guarded<Own>> own_;
};

/// Where a server is, what to say to it first, and what becomes of sockets that it has not read from yet.
struct Server {
    /// `find_primary`: of a service.
    Server(const Address& address, const RedisOptions& options, FindPrimary find_primary = {})
        : locator{address, options, std::move(find_primary)}, tls{transport_to(address, options.tls)},
          restart_delay{options.restart_delay} {}
    Server(std::vector<Endpoint> endpoints, Handshake handshake)
        : locator{Location{std::move(endpoints), std::move(handshake)}} {}

    /// Why this run of a server is not the one that is talked to otherwise; nothing if it is.
    Failure is_another(std::string_view run_id, TimePoint now) const { return runs.heard(run_id, now, restart_delay); }

    const Locator locator;
    const std::unique_ptr<const TransportFactory> tls{}; ///< null: not by TLS
    const Millis restart_delay{0};
    mutable Runs runs{};
    mutable std::atomic<bool> refuses_names{false}; ///< it has hung up on one who gave it
    mutable ServersRelease release{};
    mutable PerProcess<LingeringShare> lingering{};
};

} // namespace redislock::detail
