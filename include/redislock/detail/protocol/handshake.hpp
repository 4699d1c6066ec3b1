/// What a connection says before anything else: who we are and where we want to go. It neither sends nor waits.
/// tests/session_test.cpp goes red if it is wrong.
#pragma once

#include "../../options.hpp"
#include "../../uri.hpp"
#include "../lease/request.hpp"
#include "command.hpp"
#include "reply.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <vector>

namespace redislock::detail {

/// AUTH, SELECT, INFO and CLIENT SETNAME, as far as they are needed, in one write. Nothing else is sent before we know
/// who we are, and where; the name is a courtesy, whose reply is skipped, for a server may forbid it.
class Handshake {
public:
    /// INFO is for a delay of more than 0: see RedisOptions::restart_delay.
    Handshake(const Address& address, const std::string& client_name, Millis restart_delay = {})
        : name_{!client_name.empty()}, restart_delay_{restart_delay} {
        if (!address.password.empty())
            await(Errc::auth_failed, address.user.empty() ? formatted({"AUTH", address.password})
                                                          : formatted({"AUTH", address.user, address.password}));
        if (address.db != 0) await(Errc::no_such_db, formatted({"SELECT", std::to_string(address.db)}));
        if (restart_delay > Millis::zero()) await(Errc::restarted, formatted({"INFO", "server"}));
        if (name_) bytes_ += formatted({"CLIENT", "SETNAME", client_name});
    }

    const std::string& bytes() const noexcept { return bytes_; }

    /// How many replies are to be waited for, and whether there is another one, that is skipped.
    std::size_t awaited() const noexcept { return awaited_.size(); }
    bool has_name() const noexcept { return name_; }

    /// Why the n-th reply that is waited for, from 0, ends the connection; nothing if it does not. Of a refused AUTH
    /// nothing is repeated but the code: a server may echo the password.
    Failure objection(std::size_t nth, const Reply& reply) const {
        const Errc refusal = awaited_[nth];
        if (refusal == Errc::restarted && !reply.is_error() && reply.text.find(uptime) == reply.text.npos)
            return {Errc::unsupported, "INFO does not tell the uptime"};
        if (!reply.is_error()) return {};
        const Errc code = meaning(reply.text);
        if (refusal == Errc::auth_failed)
            return Answer{Verdict::no, {code, {}}}.is_trouble() ? Failure{code, {}} : Failure{Errc::auth_failed, {}};
        return {code == Errc::server_error && refusal == Errc::no_such_db ? refusal : code, reply.text};
    }

    /// For how long yet one who says this may have forgotten what he granted: nothing is to be acquired there. What is
    /// held can be extended and released, for only who remembers it says yes to that. Nothing: the reply does not say.
    std::optional<Millis> cool_down(std::size_t nth, const Reply& reply) const {
        const auto at = reply.text.find(uptime);
        if (awaited_[nth] != Errc::restarted || at == reply.text.npos) return std::nullopt;
        const char* const digits = reply.text.c_str() + at + uptime.size();
        std::int64_t up = 0;
        std::from_chars(digits, reply.text.c_str() + reply.text.size(), up);
        const std::chrono::seconds seconds{std::clamp<std::int64_t>(up, 1, 1'000'000) - 1}; // the last has only begun
        const Millis for_drift = restart_delay_ / 50; // the holder's clock may be slow, and ours fast
        return std::max(restart_delay_ + for_drift - seconds, Millis::zero());
    }

private:
    static constexpr std::string_view uptime = "\nuptime_in_seconds:";

    void await(Errc refusal, const std::string& command) {
        awaited_.push_back(refusal);
        bytes_ += command;
    }

    bool name_;
    Millis restart_delay_;
    std::vector<Errc> awaited_; ///< what it is called if one is refused, for each
    std::string bytes_;
};

/// Why nothing is to be acquired before `grants_from`: see Handshake::cool_down.
inline Failure restarted(TimePoint grants_from, TimePoint now) {
    const auto left = std::max(std::chrono::ceil<Millis>(grants_from - now), Millis::zero());
    return {Errc::restarted, "by its restart_delay it grants nothing for another " + in_ms(left)};
}

} // namespace redislock::detail
