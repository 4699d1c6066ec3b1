/// A conversation with the node of a cluster that is about to get a slot, and has yet to be told that we know.
/// tests/exchange_test.cpp goes red if it is wrong.
#pragma once

#include "exchange.hpp"

namespace redislock::detail {

/// Any other exchange, with ASKING before each of its commands: it holds for one, so that a script that is sent again
/// in full needs another one. The replies to ASKING come by turns with those that the other one waits for.
class AskingExchange final : public Exchange {
public:
    explicit AskingExchange(std::unique_ptr<Exchange> inner)
        : Exchange{inner->question(), inner->node()}, inner_{std::move(inner)} {}

    void begin(Peer& peer, PreparedCommands& prepared, TimePoint now, std::string& out) override {
        const std::size_t before = out.size();
        inner_->begin(peer, prepared, now, out);
        ask_before_each(out, before);
    }

    Next take(Peer& peer, const Reply& reply, TimePoint now, std::string& out) override {
        if (is_asked_ = !is_asked_; is_asked_) {
            if (reply.is_error()) refusal_ = {meaning(reply.text), reply.text};
            return Next::more;
        }
        const std::size_t before = out.size();
        return goes_on(inner_->take(peer, reply, now, out), out, before);
    }

    Next counted(const Reply& reply, std::string& out) override {
        const std::size_t before = out.size();
        return goes_on(inner_->counted(reply, out), out, before);
    }

    unsigned counts_replicas() const noexcept override { return inner_->counts_replicas(); }
    bool may_grant() const noexcept override { return inner_->may_grant(); }
    bool needs_undo() const noexcept override { return inner_->needs_undo(); }
    bool is_proving() const noexcept override { return inner_->is_proving(); }
    bool blocks() const noexcept override { return inner_->blocks(); }
    void revoke() noexcept override { inner_->revoke(); }
    TimePoint due() const noexcept override { return inner_->due(); }
    unsigned surplus() const noexcept override { return 2 * inner_->surplus(); }

    bool is_overdue(TimePoint now, std::string& out) override {
        const std::size_t before = out.size();
        const bool is_over = inner_->is_overdue(now, out);
        ask_before_each(out, before);
        return is_over;
    }

    std::string undo() const override {
        std::string bytes = inner_->undo();
        ask_before_each(bytes, 0);
        return bytes;
    }
    Answer unanswered(Verdict verdict, const Failure& why) const override { return inner_->unanswered(verdict, why); }

private:
    /// Before each command that `out` holds from `before` on.
    static void ask_before_each(std::string& out, std::size_t before) {
        static const std::string asking = formatted({"ASKING"});
        for (std::size_t at = before; at < out.size();) {
            out.insert(at, asking);
            at += asking.size();
            at += command_size(std::string_view{out}.substr(at));
        }
    }

    /// A user who may not say ASKING is sent back.
    Next goes_on(Next next, std::string& out, std::size_t before) {
        ask_before_each(out, before);
        if (next != Next::done && next != Next::leave) return next;
        Answer answer = inner_->take_answer();
        if (answer.why.code == Errc::moved && refusal_) answer.why = refusal_;
        return done(std::move(answer), next);
    }

    const std::unique_ptr<Exchange> inner_;
    bool is_asked_ = false; ///< the last reply was one to ASKING
    Failure refusal_{};
};

} // namespace redislock::detail
