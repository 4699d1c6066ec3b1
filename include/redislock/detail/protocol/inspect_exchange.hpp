/// Who has a key, as a conversation. tests/exchange_test.cpp goes red if it is wrong.
#pragma once

#include "../../outcome.hpp"
#include "auxiliary_keys.hpp"
#include "exchange.hpp"

namespace redislock::detail {

/// Who has the key. Yes: somebody, who is then in `holder`; expired: nobody; all else is why that is not known. Who may
/// not run scripts asks for the value in full, which may be more than a reply may have. Whether somebody stands in line
/// is not known to who may not ask.
class InspectExchange final : public Exchange {
public:
    /// `holder` must live until the question is answered.
    InspectExchange(std::shared_ptr<Question> question, Holder& holder) noexcept
        : Exchange{std::move(question), 0}, holder_{holder} {}

    void begin(Peer&, PreparedCommands&, TimePoint, std::string& out) override {
        ask(inspect_command(request().key), out);
    }

    Next take(Peer&, const Reply& reply, TimePoint, std::string& out) override {
        switch (replies_++) {
        case 0: take_value(reply); return Next::more;
        case 1: take_time(reply); return Next::more;
        default: holder_.is_awaited = reply.type == REDIS_REPLY_INTEGER && reply.integer > 0;
        }
        if (is_script_refused_ && !std::exchange(in_full_, true)) {
            ask(formatted({"GET", request().key}), out);
            return Next::resent;
        }
        if (refusal_.why) return done(std::move(refusal_));
        return done(is_free_ ? Answer{Verdict::no, {Errc::expired, {}}} : Answer{Verdict::yes});
    }

private:
    void ask(const std::string& value_command, std::string& out) {
        replies_ = 0;
        refusal_ = {Verdict::no};
        is_free_ = false;
        out += value_command;
        out += formatted({"PTTL", request().key});
        out += formatted({"PTTL", AuxiliaryKeys{request().key}.waiting});
    }

    void take_value(const Reply& reply) {
        const bool is_other_type = reply.is_error() && meaning(reply.text) == Errc::wrong_type;
        if (reply.type == REDIS_REPLY_STRING)
            holder_.value = reply.text;
        else if (!reply.is_error())
            is_free_ = true;
        else if (!is_other_type)
            refusal_.why = {meaning(reply.text), reply.text};
        is_script_refused_ = refusal_.why.code == Errc::no_permission;
    }

    void take_time(const Reply& reply) {
        if (refusal_.why) return;
        if (reply.is_error())
            refusal_.why = {meaning(reply.text), reply.text};
        else if (reply.type != REDIS_REPLY_INTEGER)
            refusal_ = {Verdict::unknown, {Errc::protocol_error, {}}};
        else if (reply.integer == -2)
            is_free_ = true;
        else if (reply.integer >= 0)
            holder_.remaining = Millis{reply.integer};
    }

    Holder& holder_;
    Answer refusal_{Verdict::no}; ///< why it is not known
    unsigned replies_ = 0;
    bool is_free_ = false, is_script_refused_ = false, in_full_ = false;
};

} // namespace redislock::detail
