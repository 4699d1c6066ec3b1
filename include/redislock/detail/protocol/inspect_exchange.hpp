/// Who has a key, as a conversation. tests/exchange_test.cpp goes red if it is wrong.
#pragma once

#include "../../outcome.hpp"
#include "exchange.hpp"

namespace redislock::detail {

/// Who has the key. Yes: somebody, who is then in `holder`; expired: nobody; all else is why that is not known. Who may
/// not run scripts asks for the value in full, which may be more than a reply may have.
class InspectExchange final : public Exchange {
public:
    /// `holder` must live until the question is answered.
    InspectExchange(std::shared_ptr<Question> question, Holder& holder) noexcept
        : Exchange{std::move(question), 0}, holder_{holder} {}

    void begin(Peer&, PreparedCommands&, TimePoint, std::string& out) override {
        out += inspect_command(request().key);
        out += formatted({"PTTL", request().key});
    }

    Next take(Peer&, const Reply& reply, TimePoint, std::string& out) override {
        if (!std::exchange(has_value_, true)) return take_value(reply);
        if (value_.why.code == Errc::no_permission && !std::exchange(in_full_, true)) {
            value_ = {Verdict::yes};
            has_value_ = false;
            out += formatted({"GET", request().key});
            out += formatted({"PTTL", request().key});
            return Next::resent;
        }
        if (value_.verdict != Verdict::yes) return done(std::move(value_));
        if (reply.is_error()) return done({Verdict::no, {meaning(reply.text), reply.text}});
        if (reply.type != REDIS_REPLY_INTEGER) return done({Verdict::unknown, {Errc::protocol_error, {}}});
        if (reply.integer == -2 || is_nil_) return done({Verdict::no, {Errc::expired, {}}});
        if (reply.integer >= 0) holder_.remaining = Millis{reply.integer};
        return done(std::move(value_));
    }

private:
    Next take_value(const Reply& reply) {
        const bool is_other_type = reply.is_error() && meaning(reply.text) == Errc::wrong_type;
        is_nil_ = reply.type != REDIS_REPLY_STRING && !is_other_type;
        if (reply.type == REDIS_REPLY_STRING)
            holder_.value = reply.text;
        else if (reply.is_error() && !is_other_type)
            value_ = {Verdict::no, {meaning(reply.text), reply.text}};
        return Next::more;
    }

    Holder& holder_;
    Answer value_{Verdict::yes};
    bool has_value_ = false, is_nil_ = false, in_full_ = false;
};

} // namespace redislock::detail
