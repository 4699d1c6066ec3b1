/// What a server's reply to a request means. It knows no socket and no clock. tests/redis_test.cpp goes red if it is
/// wrong.
#pragma once

#include "../../options.hpp"
#include "../lease/request.hpp"
#include "reply.hpp"

#include <algorithm>
#include <string>

namespace redislock::detail {

/// The key is held, for what PTTL says: -1 without an expiry, -2 gone by now; and -2 - n as of announce_script.
inline Answer busy_for(long long pttl) {
    if (pttl == -1) return {.verdict = Verdict::no, .why = {Errc::no_expiry, {}}, .was_held = true};
    return {.verdict = Verdict::no,
            .why = {Errc::busy, {}},
            .holder_left = std::clamp(Millis{pttl < 0 ? -2 - pttl : pttl}, Millis::zero(), Options::longest_ttl),
            .was_held = pttl >= 0};
}

/// Whether an acquire is a SET, which can't tell more of a key that is held.
inline bool is_plain(const Request& request) noexcept { return request.patience <= Millis::zero() && !request.fencing; }

/// Whether the reply to a release says that it is the turn of one who waits in line.
inline bool is_handed_on(const Request& request, const Reply& reply) noexcept {
    return request.verb == Verb::release && reply.type == REDIS_REPLY_INTEGER && reply.integer == 2;
}

/// What a server's reply to a question means. It echoes arguments in some errors: neither they nor the token get any
/// further.
inline Answer meaning_of(const Request& request, const Reply& reply) {
    const auto busy = [](Errc why, std::string detail = {}) { return Answer{Verdict::no, {why, std::move(detail)}}; };
    if (reply.is_error()) {
        std::string sentence = printable(reply.text.substr(0, reply.text.find(", with args beginning with")));
        for (auto at = sentence.find(request.token.hex()); at != sentence.npos; at = sentence.find(request.token.hex()))
            sentence.replace(at, Token::digits, "<token>");
        const Errc code = meaning(reply.text);
        const bool theirs = code == Errc::wrong_type && request.verb != Verb::acquire;
        return {Verdict::no, {theirs ? Errc::stolen : code, std::move(sentence)}};
    }
    const long long number = reply.integer;
    if (request.verb != Verb::acquire) {
        if (reply.type == REDIS_REPLY_INTEGER && number == 1) return {Verdict::yes};
        if (is_handed_on(request, reply)) return {Verdict::yes};
        if (reply.type == REDIS_REPLY_INTEGER && number == 0) return {Verdict::no, {Errc::stolen, {}}};
        if (reply.type == REDIS_REPLY_INTEGER && number == -1) return {Verdict::no, {Errc::expired, {}}};
    } else if (reply.type == REDIS_REPLY_NIL) {
        return busy(Errc::busy);
    } else if (reply.type == REDIS_REPLY_STATUS) {
        if (reply.text == "OK") return {Verdict::yes};
        if (!is_plain(request)) return busy(Errc::wrong_type, "the key holds a " + reply.text);
    } else if (reply.type == REDIS_REPLY_INTEGER && !is_plain(request)) { // to a SET it would be another question's
        if (number > 0 && request.fencing)
            return {.verdict = Verdict::yes, .fencing_token = static_cast<std::uint64_t>(number)};
        if (number <= 0) return busy_for(-1 - number);
    }
    return {Verdict::unknown, {Errc::protocol_error, {}}};
}

/// Whether the connection is of no more use: it is out of step, or leads to one that has become a replica, while a new
/// one to the same address may lead to the primary.
inline bool ends_connection(const Answer& answer) noexcept {
    return answer.why.code == Errc::protocol_error || answer.why.code == Errc::read_only;
}

/// Why that many replicas are not enough; nothing if they are.
inline Failure shortage(const Request& request, const Reply& reply) {
    if (reply.is_error()) return {meaning(reply.text), reply.text};
    if (reply.type != REDIS_REPLY_INTEGER) return {Errc::protocol_error, {}};
    if (reply.integer >= static_cast<long long>(request.replicas)) return {};
    return {Errc::no_replicas,
            std::to_string(reply.integer) + " replicas have it, wanted are " + std::to_string(request.replicas)};
}

inline bool is_noscript(const Reply& reply) { return reply.is_error() && reply.text.starts_with("NOSCRIPT"); }

} // namespace redislock::detail
