/// What a connection says before anything else: who we are and where we want to go. What is in here neither sends it nor waits.
#pragma once

#include "address.hpp"
#include "connection.hpp"
#include "types.hpp"

namespace redislock::detail {

/// AUTH, SELECT, INFO and CLIENT SETNAME, as far as they are needed, in one write. Nothing else is sent before we know who we are,
/// and where; the name is a courtesy, whose reply is skipped, for a server may forbid it.
class Greeting {
public:
    /// INFO is for a delay of more than 0: see RedisOptions::restart_delay.
    Greeting(const Address& address, const std::string& client_name, Millis restart_delay = {})
        : name_{!client_name.empty()}, restart_delay_{restart_delay} {
        if (!address.password.empty())
            await(Errc::auth_failed, address.user.empty() ? formatted({"AUTH", address.password})
                                                          : formatted({"AUTH", address.user, address.password}));
        if (address.db != 0) await(Errc::no_such_db, formatted({"SELECT", std::to_string(address.db)}));
        if (restart_delay > Millis::zero()) await(Errc::restarted, formatted({"INFO"}));
        if (name_) bytes_ += formatted({"CLIENT", "SETNAME", client_name});
    }

    const std::string& bytes() const noexcept { return bytes_; }

    /// How many replies are to be waited for, and whether there is another one, that is skipped.
    std::size_t awaited() const noexcept { return awaited_.size(); }
    bool has_name() const noexcept { return name_; }

    /// Why the n-th reply that is waited for, from 0, ends the connection; nothing if it does not. Of a refused AUTH nothing
    /// is repeated but the code: a server may echo the password.
    Failure objection(std::size_t nth, const Reply& reply) const {
        const Errc refusal = awaited_[nth];
        if (!reply.is_error()) return refusal == Errc::restarted ? lost_memory(reply.text) : Failure{};
        const Errc code = meaning(reply.text);
        if (refusal == Errc::auth_failed)
            return Answer{Verdict::no, {code, {}}}.is_trouble() ? Failure{code, {}} : Failure{Errc::auth_failed, {}};
        return {code == Errc::server_error ? refusal : code, reply.text};
    }

private:
    void await(Errc refusal, const std::string& command) {
        awaited_.push_back(refusal);
        bytes_ += command;
    }

    /// Whether one who says this of himself may have forgotten what he granted to someone within the delay.
    Failure lost_memory(std::string_view info) const {
        const auto value = [info](std::string_view name) {
            const auto at = info.find(name);
            return at == info.npos ? std::string_view{} : info.substr(at + name.size());
        };
        if (value("\naof_enabled:").starts_with('1')) return {};
        const std::string_view digits = value("\nuptime_in_seconds:");
        std::int64_t seconds = -1;
        std::from_chars(digits.data(), digits.data() + digits.size(), seconds);
        if (seconds < 0) return {Errc::unsupported, "INFO does not tell uptime_in_seconds"};
        if (std::chrono::seconds{seconds - 1} >= restart_delay_) return {}; // it counts seconds that have begun
        return {Errc::restarted, "it is up for " + std::to_string(seconds) + " s, and without an append-only file"};
    }

    bool name_;
    Millis restart_delay_;
    std::vector<Errc> awaited_; ///< what it is called if one is refused, for each
    std::string bytes_;
};

/// Why the connection has failed. A server that won't have us says so before it is asked, in place of the first reply, and hangs up.
inline Failure why_not(const Connection& connection) {
    const std::string& said = connection.objection();
    const bool refused = said.starts_with("DENIED") || meaning(said) == Errc::max_clients;
    if (connection.failure().code == Errc::disconnected && refused) return {meaning(said), said};
    return connection.failure();
}

/// Where a server is, and what to say to it first.
struct Server {
    std::vector<Endpoint> endpoints;
    Greeting greeting;
};

} // namespace redislock::detail
