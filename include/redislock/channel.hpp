/// A connection for renewals, on which nothing ever waits: commands go out and replies come in as the socket permits. It knows
/// nothing of when to renew.
#pragma once

#include "greeting.hpp"
#include "holding.hpp"
#include "scripts.hpp"

#include <deque>

namespace redislock::detail {

/// One extension of a lease that is under way.
struct Renewal {
    std::shared_ptr<Holding> holding;
    Token token;
    TimePoint asked, deadline;
    bool in_full = false; ///< with the whole script, and not its name

    Request request() const noexcept { return {Verb::extend, holding->key, token, holding->options.ttl, deadline}; }
};

/// Opens itself when there is something to send, and anew after a failure, with the next address. Not thread-safe.
class Channel {
public:
    Channel(const std::vector<Endpoint>& endpoints, const Greeting& greeting)
        : endpoints_{endpoints}, greeting_{greeting} {}

    int fd() const noexcept { return connection_.fd(); }
    short events() const noexcept { return static_cast<short>(wants_to_write() ? POLLIN | POLLOUT : POLLIN); }

    /// When the next answer is overdue.
    TimePoint due() const noexcept {
        TimePoint first = TimePoint::max();
        for (const Renewal& renewal : under_way_) first = std::min(first, renewal.deadline);
        return first;
    }

    void send(Renewal renewal) {
        out_ += extend_by_sha(renewal.request());
        under_way_.push_back(std::move(renewal));
    }

    /// Goes on as far as that needs no waiting. Each renewal is put before `answered`, with an Answer, once.
    template <class Answered>
    void advance(TimePoint now, Answered answered) {
        if (phase_ == Phase::closed && !under_way_.empty()) open();
        if (phase_ == Phase::connecting && wait(fd(), POLLOUT, TimePoint{}) && connection_.finish_open(endpoint()))
            phase_ = Phase::greeting;
        if (phase_ == Phase::greeting && flush(hello_) && greeted()) phase_ = Phase::ready;
        if (phase_ == Phase::ready) {
            flush(out_);
            receive(answered);
        }
        if (phase_ != Phase::closed && !connection_.good()) fail(connection_.failure(), answered);
        if (due() <= now) fail({Errc::timed_out, "renewing"}, answered);
    }

private:
    enum class Phase { closed, connecting, greeting, ready };

    const Endpoint& endpoint() const noexcept { return endpoints_[nth_ % endpoints_.size()]; }

    bool wants_to_write() const noexcept {
        return phase_ == Phase::connecting || (phase_ == Phase::greeting && !hello_.empty()) ||
               (phase_ == Phase::ready && !out_.empty());
    }

    void open() {
        connection_ = {};
        hello_ = greeting_.bytes();
        greeted_ = 0;
        phase_ = Phase::connecting;
        connection_.begin_open(endpoint());
    }

    /// False: not all could be sent, or the connection has failed.
    bool flush(std::string& bytes) {
        std::string_view rest = bytes;
        const bool good = connection_.write_some(rest);
        bytes.erase(0, bytes.size() - rest.size());
        return good && bytes.empty();
    }

    bool greeted() {
        for (; greeted_ < greeting_.awaited(); ++greeted_) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) return false;
            if (Failure objection = greeting_.objection(greeted_, *reply)) {
                connection_.refuse(std::move(objection));
                return false;
            }
        }
        if (greeting_.has_name()) connection_.owe_reply();
        return true;
    }

    template <class Answered>
    void receive(Answered& answered) {
        while (!under_way_.empty()) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) return;
            Renewal renewal = std::move(under_way_.front());
            under_way_.pop_front();
            if (reply->is_error() && reply->text.starts_with("NOSCRIPT") && !std::exchange(renewal.in_full, true)) {
                out_ += extend_by_body(renewal.request());
                under_way_.push_back(std::move(renewal));
            } else {
                answered(renewal, meaning_of(*reply));
            }
        }
        if (connection_.good() && connection_.arriving(TimePoint{})) connection_.refuse({Errc::protocol_error, {}});
        flush(out_);
    }

    Answer meaning_of(const Reply& reply) {
        if (reply.is_error()) {
            const Errc code = meaning(reply.text);
            if (code == Errc::read_only) connection_.refuse({code, {}}); // its address may lead to the primary by now
            return {Verdict::no, {code == Errc::wrong_type ? Errc::stolen : code, {}}};
        }
        const std::optional<Answer> settled = settlement(reply);
        if (!settled) connection_.refuse({Errc::protocol_error, {}});
        return settled.value_or(Answer{Verdict::unknown, {Errc::protocol_error, {}}});
    }

    template <class Answered>
    void fail(const Failure& why, Answered& answered) {
        phase_ = Phase::closed;
        connection_.close();
        ++nth_;
        out_.clear();
        for (const Renewal& renewal : std::exchange(under_way_, {})) answered(renewal, Answer{Verdict::unknown, why});
    }

    const std::vector<Endpoint>& endpoints_;
    const Greeting& greeting_;
    Connection connection_;
    Phase phase_ = Phase::closed;
    std::size_t nth_ = 0, greeted_ = 0;
    std::string hello_, out_;
    std::deque<Renewal> under_way_;
};

} // namespace redislock::detail
