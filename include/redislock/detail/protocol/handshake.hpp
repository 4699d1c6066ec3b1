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
    /// INFO server is for a delay of more than 0: see RedisOptions::restart_delay; INFO replication for one who is
    /// asked, by sentinels, to be a primary.
    Handshake(const Address& address, const std::string& client_name, Millis restart_delay = {})
        : name_{!client_name.empty()}, restart_delay_{restart_delay} {
        if (!address.password.empty())
            await(Errc::auth_failed, address.user.empty() ? formatted({"AUTH", address.password})
                                                          : formatted({"AUTH", address.user, address.password}));
        if (address.db != 0) await(Errc::no_such_db, formatted({"SELECT", std::to_string(address.db)}));
        if (!address.service.empty()) await(Errc::read_only, formatted({"INFO", "replication"}));
        if (restart_delay > Millis::zero()) await(Errc::restarted, formatted({"INFO", "server"}));
        unnamed_ = bytes_.size();
        if (name_) bytes_ += formatted({"CLIENT", "SETNAME", client_name});
    }

    std::string_view bytes(bool with_name) const noexcept {
        return std::string_view{bytes_}.substr(0, with_name ? bytes_.size() : unnamed_);
    }

    /// How many replies are to be waited for; and whether there is a name, whose reply is skipped.
    std::size_t awaited() const noexcept { return awaited_.size(); }
    bool has_name() const noexcept { return name_; }

    /// Why the n-th reply that is waited for, from 0, ends the connection; nothing if it does not. Of a refused AUTH
    /// nothing is repeated but the code: a server may echo the password.
    Failure objection(std::size_t nth, const Reply& reply) const {
        const Errc refusal = awaited_[nth];
        if (refusal == Errc::restarted && !reply.is_error() && field(reply.text, uptime).empty())
            return {Errc::unsupported, "INFO does not tell the uptime"};
        if (refusal == Errc::read_only && !reply.is_error() && field(reply.text, "role:") != "master")
            return {Errc::read_only, "its role is " + printable(std::string{field(reply.text, "role:")})};
        if (!reply.is_error()) return {};
        const Errc code = meaning(reply.text);
        if (refusal == Errc::auth_failed)
            return Answer{Verdict::no, {code, {}}}.is_trouble() ? Failure{code, {}} : Failure{Errc::auth_failed, {}};
        return {code == Errc::server_error && refusal == Errc::no_such_db ? refusal : code, reply.text};
    }

    /// For how long yet one who says this may have forgotten what he granted: nothing is to be acquired there. What is
    /// held can be extended and released, for only who remembers it says yes to that. Nothing: the reply does not say.
    std::optional<Millis> cool_down(std::size_t nth, const Reply& reply) const {
        const std::string_view digits = field(reply.text, uptime);
        if (awaited_[nth] != Errc::restarted || digits.empty()) return std::nullopt;
        std::int64_t up = 0;
        std::from_chars(digits.data(), digits.data() + digits.size(), up);
        const std::chrono::seconds seconds{std::clamp<std::int64_t>(up, 1, 1'000'000) - 1}; // the last has only begun
        return std::max(cool_down(restart_delay_) - seconds, Millis::zero());
    }

    /// From the end of what a server may have forgotten. The holder's clock may be slow, and ours fast.
    static constexpr Millis cool_down(Millis restart_delay) noexcept { return restart_delay + restart_delay / 50; }

    /// Which run of which server says this; empty where the reply does not tell.
    std::string_view run_id(std::size_t nth, const Reply& reply) const {
        return awaited_[nth] == Errc::restarted ? field(reply.text, "run_id:") : std::string_view{};
    }

private:
    static constexpr std::string_view uptime = "uptime_in_seconds:";

    void await(Errc refusal, const std::string& command) {
        awaited_.push_back(refusal);
        bytes_ += command;
    }

    bool name_;
    Millis restart_delay_;
    std::vector<Errc> awaited_; ///< what it is called if one is refused, for each
    std::string bytes_;
    std::size_t unnamed_ = 0; ///< so many of them come before the name
};

/// Why nothing is to be acquired before `grants_from`: see Handshake::cool_down.
inline Failure restarted(TimePoint grants_from, TimePoint now) {
    const auto left = std::max(std::chrono::ceil<Millis>(grants_from - now), Millis::zero());
    return {Errc::restarted, "by its restart_delay it grants nothing for another " + in_ms(left)};
}

} // namespace redislock::detail
