/// The exchanges of one connection: which bytes are to be sent, whose reply comes next, what is overdue, and what is to
/// be said last. It knows no socket, no clock and no thread. tests/session_test.cpp and tests/wire_test.cpp go red if
/// it is wrong.
#pragma once

#include "command_exchange.hpp"
#include "handshake.hpp"

#include <deque>

namespace redislock::detail {

/// Replies come in the order of what was sent. Not thread-safe.
class ExchangeQueue {
public:
    /// `knows_scripts`: on each connection they are called by their names from the first time on.
    /// `release`: how the server takes one, shared by all connections to it.
    ExchangeQueue(bool knows_scripts, ServersRelease& release) : knows_scripts_{knows_scripts}, release_{release} {
        forget_connection();
    }

    std::string out; ///< what is to be sent

    /// So many bytes of it have been.
    void has_sent(std::size_t count) noexcept { sent_ += count; }

    bool has_unsent() const noexcept { return !unsent_.empty(); }

    /// Whether all that is asked for is on its way.
    bool has_asked() const noexcept {
        return unsent_.empty() && std::none_of(under_way_.begin(), under_way_.end(), [](const Slot& slot) {
                   return slot.exchange && slot.exchange->is_proving();
               });
    }
    /// Whether the next reply is one that is waited for. None can come to what has not been sent whole.
    bool awaits_reply() const noexcept {
        if (under_way_.empty()) return false;
        const Slot& next = under_way_.front();
        return next.end <= sent_ || (next.exchange && next.exchange->surplus() > 0);
    }

    /// How many exchanges have not ended.
    std::size_t size() const noexcept { return unsent_.size() + under_way_.size() + counted_.size(); }
    bool owes_an_acquire() const noexcept { return acquires_ > 0; }
    /// With this token, and so many replicas at least.
    bool owes_an_acquire(const Token& token, unsigned replicas = 0) const noexcept {
        bool owes = false;
        const auto is_it = [&](const Request& one) { return one.token == token && one.replicas >= replicas; };
        if (acquires_ > 0) visit([&](const Exchange& one) { owes |= one.may_grant() && is_it(one.request()); });
        return owes;
    }

    /// Whether the server lets us wait in line for this key, as far as is known.
    bool lets_wait(std::string_view key) const noexcept { return peer_.no_line_for != key; }

    /// When one is overdue, or earlier.
    TimePoint due() const noexcept { return due_; }

    void push(std::unique_ptr<Exchange> exchange) {
        const bool may_grant = exchange->may_grant();
        due_ = std::min(due_, exchange->due());
        unsent_.push_back(std::move(exchange));
        acquires_ += may_grant;
    }

    /// What has waited for the connection is to go out. Not so the acquires that this server must not grant before
    /// `grants_from`, or whose time is up: nobody would release what is only granted now.
    void begin(TimePoint now, TimePoint grants_from) {
        recall_release();
        for (; !unsent_.empty(); unsent_.pop_front()) {
            std::unique_ptr<Exchange>& exchange = unsent_.front();
            const Request& request = exchange->request();
            if (exchange->is_told()) continue;
            if (exchange->may_grant() && (now < grants_from || request.deadline.at <= now)) {
                --acquires_;
                const Failure late{Errc::timed_out, "connecting"};
                exchange->tell({Verdict::no, now < grants_from ? restarted(grants_from, now) : late});
                continue;
            }
            if (request.verb == Verb::release && acquires_ > 0) revoke(request.token);
            const std::size_t before = out.size();
            exchange->begin(peer_, prepared_, now, out);
            replicas_ = std::max(replicas_, exchange->counts_replicas());
            enqueue(std::move(exchange), before);
        }
        count_replicas(now);
    }

    /// What a reply has done.
    struct Taken {
        unsigned surplus = 0; ///< so many replies that nobody needs come next
        bool leaves = false;  ///< the connection is of no more use, and what is under way is to be undone
        Failure ends{};       ///< the connection ends, for this reason
    };

    Taken take(const Reply& reply, TimePoint now) {
        Exchange* const exchange = under_way_.front().exchange.get();
        if (exchange == nullptr) return take_count(reply);
        if (is_handed_on(exchange->request(), reply)) release_.contended.note(exchange->request().key, now);
        const std::size_t before = out.size();
        const bool was_proven = peer_.is_release_proven;
        const ReleaseForm form = peer_.release_form;
        const Exchange::Next next = exchange->take(peer_, reply, now, out);
        if (peer_.release_form != form) release_.form = peer_.release_form;
        if (peer_.is_release_proven && !was_proven) release_.is_proven = true;
        due_ = std::min(due_, exchange->due());
        if (next == Exchange::Next::more) return {};
        if (next == Exchange::Next::leave) return {.leaves = true, .ends = exchange->take_answer().why};
        std::unique_ptr<Exchange> own = std::move(under_way_.front().exchange);
        under_way_.pop_front();
        Taken taken;
        proceed(std::move(own), next, before, taken);
        return taken;
    }

    /// One question about the replicas does for all that go out together, and has the time of the most patient of them.
    void count_replicas(TimePoint now) {
        const unsigned replicas = std::exchange(replicas_, 0);
        if (replicas == 0) return;
        Request request = under_way_.back().exchange->request();
        for (auto slot = under_way_.rbegin(); slot != under_way_.rend() && slot->exchange; ++slot)
            if (slot->exchange->counts_replicas() > 0)
                request.deadline.at = std::max(request.deadline.at, slot->exchange->request().deadline.at);
        request.replicas = replicas;
        const std::size_t before = out.size();
        out += replicas_command(request, now);
        enqueue(nullptr, before);
    }

    enum class Overdue { none, answered_alone, all };

    /// Overdue exchanges that can be left are answered alone, with `verdict` and `why`, for others under way may have
    /// more time, and must not pay for the impatient. All: there are no others, or one that can't be left is overdue:
    /// the connection is to be given up.
    Overdue answer_overdue(TimePoint now, Verdict verdict, const Failure& why) {
        bool any = false, others = false, can_be_left = true;
        due_ = TimePoint::max();
        visit([&](Exchange& exchange) {
            if (exchange.is_told()) return;
            if (!exchange.is_overdue(now, out)) {
                others = true;
                due_ = std::min(due_, exchange.due());
            } else {
                any = true;
                can_be_left &= exchange.can_be_left();
            }
        });
        if (!any) return Overdue::none;
        if (!others || !can_be_left) return Overdue::all;
        visit([&](Exchange& exchange) {
            if (exchange.is_told() || !exchange.is_overdue(now, out)) return;
            exchange.revoke();
            exchange.tell(exchange.unanswered(verdict, why));
        });
        return Overdue::answered_alone;
    }

    /// Nobody waits any more for what is under way: its replies are skipped.
    void disown() {
        visit([](Exchange& exchange) {
            exchange.revoke();
            exchange.tell({Verdict::unknown});
        });
    }

    struct ClosingWrite {
        std::string bytes{};
        bool is_blocked = false; ///< the server blocks for one that is to be undone
    };

    /// What was not answered in time is still carried out, whenever the server comes to it: so acquires are released
    /// behind. Releases that have not been sent yet are: they do no harm wherever the connection leads to.
    ClosingWrite closing_write() {
        ClosingWrite last{out};
        sent_ += out.size();
        for (const Slot& slot : under_way_) {
            if (!slot.exchange) continue;
            // Not where WAIT follows: the server would drop the undo behind it when it finds us gone.
            const bool is_followed = slot.exchange->may_grant() && slot.exchange->request().replicas > 0;
            last.is_blocked |= slot.exchange->blocks() && !is_followed;
            if (!slot.exchange->needs_undo()) continue;
            if (!slot.exchange->may_grant() || slot.exchange->gives_up()) last.bytes += slot.exchange->undo();
        }
        for (const auto& exchange : counted_)
            if (exchange->may_grant() && exchange->gives_up()) last.bytes += exchange->undo();
        for (const auto& exchange : unsent_)
            if (exchange->request().verb == Verb::release)
                last.bytes += release_in_full(peer_.release_form, exchange->request());
        return last;
    }

    /// Nothing is left here then.
    void move_to(ExchangeQueue& other) noexcept {
        other.unsent_.swap(unsent_);
        other.counted_.swap(counted_);
        other.under_way_.swap(under_way_);
        other.sent_ = sent_;
        acquires_ = 0;
    }

    /// The connection has failed. `is_left`: closing_write() were sent; `is_refused`: the server has read nothing.
    void tell_all(const Failure& why, bool is_left, bool is_refused) {
        for (auto& exchange : counted_) exchange->tell(exchange->unanswered(Verdict::unknown, why));
        for (Slot& slot : under_way_) {
            const bool may_be_done = slot.end <= sent_ && !is_refused;
            const Verdict verdict = may_be_done ? Verdict::unknown : Verdict::no;
            if (slot.exchange) slot.exchange->tell(slot.exchange->unanswered(verdict, why));
        }
        for (auto& exchange : unsent_) {
            const bool may_be_done = is_left && exchange->request().verb == Verb::release;
            exchange->tell(exchange->unanswered(may_be_done ? Verdict::unknown : Verdict::no, why));
        }
    }

    /// With nothing under way: the next connection leads to a server of which nothing is known.
    void forget_connection() noexcept {
        peer_ = {};
        peer_.knows_script.fill(knows_scripts_);
        recall_release();
        due_ = TimePoint::max();
        replicas_ = 0;
        out.clear();
        sent_ = 0;
    }

private:
    void recall_release() noexcept {
        peer_.release_form = release_.form;
        peer_.is_release_proven = release_.is_proven;
    }

    /// Its replies are the next ones; without an exchange it is the count of replicas for all in `counted_`.
    struct Slot {
        std::unique_ptr<Exchange> exchange{};
        std::uint64_t end = 0; ///< of its bytes, counted from the beginning of the connection
    };

    Taken take_count(const Reply& reply) {
        under_way_.pop_front();
        Taken taken;
        for (auto& counted : std::exchange(counted_, {})) {
            const std::size_t before = out.size();
            const Exchange::Next next = counted->counted(reply, out);
            proceed(std::move(counted), next, before, taken);
        }
        return taken;
    }

    /// What `out` holds from `before` on is its.
    void proceed(std::unique_ptr<Exchange> exchange, Exchange::Next next, std::size_t before, Taken& taken) {
        if (next == Exchange::Next::count) return counted_.push_back(std::move(exchange));
        if (next == Exchange::Next::resent) {
            replicas_ = std::max(replicas_, exchange->counts_replicas());
            return enqueue(std::move(exchange), before);
        }
        acquires_ -= exchange->may_grant();
        taken.surplus += exchange->surplus();
        Answer answer = exchange->take_answer();
        if (ends_connection(answer)) taken.ends = answer.why;
        exchange->tell(std::move(answer));
    }

    /// What `out` holds from `before` on is its.
    void enqueue(std::unique_ptr<Exchange>&& exchange, std::size_t before) {
        try {
            under_way_.emplace_back();
        } catch (...) { // no bytes without their exchange, for its replies would be taken for the next one's
            out.resize(before);
            throw;
        }
        under_way_.back() = {std::move(exchange), sent_ + out.size()};
    }

    void revoke(const Token& token) noexcept {
        for (const Slot& slot : under_way_)
            if (slot.exchange && slot.exchange->may_grant() && slot.exchange->request().token == token)
                slot.exchange->revoke();
    }

    template <class Visit>
    void visit(Visit visit) const {
        for (const auto& exchange : unsent_) visit(*exchange);
        for (const Slot& slot : under_way_)
            if (slot.exchange) visit(*slot.exchange);
        for (const auto& exchange : counted_) visit(*exchange);
    }

    const bool knows_scripts_;
    ServersRelease& release_;
    Peer peer_{};
    PreparedCommands prepared_{};
    std::deque<std::unique_ptr<Exchange>> unsent_{}, counted_{};
    std::deque<Slot> under_way_{};
    std::uint64_t sent_ = 0;           ///< how many bytes of exchanges have been sent before what is in `out`
    unsigned acquires_ = 0;            ///< among them all
    unsigned replicas_ = 0;            ///< to be counted behind what is in `out`
    TimePoint due_ = TimePoint::max(); ///< or earlier: nothing is overdue before
};

} // namespace redislock::detail
