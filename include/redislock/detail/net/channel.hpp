/// One connection to a server, and the exchanges that are under way on it. It connects, introduces itself, sends,
/// receives and fails; it never waits. What is asked and what replies mean the exchanges know. tests/session_test.cpp
/// and tests/wire_test.cpp go red if it is wrong.
#pragma once

#include "../protocol/exchange.hpp"
#include "server.hpp"

#include <deque>

namespace redislock::detail {

/// Opens itself when there is something to send, and again after a failure, with the server's next address. Not
/// thread-safe.
///
/// | phase      | event                                  | next       |
/// |------------|----------------------------------------|------------|
/// | closed     | there is something to send             | connecting |
/// | connecting | connected                              | handshake   |
/// | connecting, handshake | failed, or its time is up; there is another address | connecting |
/// | handshake   | all replies of the handshake have come | ready      |
/// | any        | failed; an answer is overdue           | closed     |
class Channel {
public:
    /// `knows_scripts`: they are called by their names from the first time on. Where the server does not know one, that
    /// costs another way to and fro; else its first use on each connection is sent in full, which costs the server
    /// more.
    explicit Channel(const Server& server, bool knows_scripts = false)
        : server_{server}, knows_scripts_{knows_scripts} {
        peer_.knows_script.fill(knows_scripts);
    }
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    /// When to come back even if nothing has arrived by then, for the next answer may be overdue.
    TimePoint due() const noexcept {
        if (owed() == 0) return TimePoint::max();
        if (is_pausing_ || (phase_ == Phase::ready && !unsent_.empty())) return TimePoint{};
        return is_opening() && tried_ < server_.endpoints.size() ? std::min(due_, open_by_) : due_;
    }

    bool is_closed() const noexcept { return phase_ == Phase::closed; }
    bool is_ready() const noexcept { return phase_ == Phase::ready; }
    bool is_opening() const noexcept { return phase_ == Phase::connecting || phase_ == Phase::handshake; }

    /// Whether the server has answered a question since a connection was made last.
    bool was_heard() const noexcept { return was_heard_; }

    /// Whether it was closed by the other end, or for its silence.
    bool has_died() const noexcept { return is_closed() && was_heard_ && !is_given_up_; }

    /// Whether an extension was not answered in time, and nothing was heard since: the connection may be dead. It is
    /// kept for those who have more time; a new question had better take another one.
    bool in_doubt() const noexcept { return is_in_doubt_; }

    /// How many answers are still to come, also to extensions that are overdue; and whether one to an acquire, with
    /// this token or with any.
    std::size_t owed() const noexcept { return unsent_.size() + under_way_.size() + counted_.size(); }
    bool owes_an_acquire() const noexcept { return acquires_ > 0; }
    bool owes_an_acquire(const Token& token) const noexcept {
        bool owes = false;
        if (acquires_ > 0) visit([&](const Exchange& one) { owes |= one.may_grant() && one.request().token == token; });
        return owes;
    }

    /// Whether all that was sent has left this process.
    bool is_flushed() const noexcept { return phase_ == Phase::ready && unsent_.empty() && out_.empty(); }

    /// Whether the server lets us wait in line for this key, as far as is known.
    bool lets_wait(std::string_view key) const noexcept { return peer_.no_line_for != key; }

    /// It goes out with the next advance(). Its question is answered once: with a *no* if it was never sent, with an
    /// *unknown* if its answer will not come.
    void send(std::unique_ptr<Exchange> exchange) {
        // With nothing under way there is nothing to be read, unless the server has hung up, or is out of step.
        if (phase_ == Phase::ready && owed() == 0 && !connection_.reusable()) hang_up();
        const bool may_grant = exchange->may_grant();
        due_ = std::min(due_, exchange->due());
        unsent_.push_back(std::move(exchange));
        acquires_ += may_grant;
    }
    void send(std::shared_ptr<Question> question, std::size_t node = 0) {
        send(std::make_unique<CommandExchange>(std::move(question), node));
    }

    /// Goes on as far as that needs no waiting.
    void advance(TimePoint now) {
        if (phase_ == Phase::closed && !unsent_.empty()) open(now, 0);
        if (phase_ == Phase::connecting && detail::wait(connection_.fd(), POLLOUT, TimePoint{}) &&
            connection_.finish_open(endpoint()))
            phase_ = Phase::handshake;
        if (phase_ == Phase::handshake && flush(hello_) && is_introduced()) phase_ = Phase::ready;
        if (phase_ == Phase::ready) exchange(now);
        while (is_opening() && tried_ < server_.endpoints.size() && (!connection_.good() || now >= open_by_))
            open(now, tried_);
        if (phase_ != Phase::closed && !connection_.good()) fail(why_not(connection_));
        if (!is_pausing_ && due_ <= now && !outlasts_overdue(now)) fail(why_overdue());
        if (phase_ != Phase::closed && !connection_.good()) fail(why_not(connection_));
    }

    /// What its connection is to be polled for.
    pollfd entry() const noexcept {
        return {connection_.fd(), static_cast<short>(wants_to_write() ? POLLIN | POLLOUT : POLLIN), 0};
    }

    /// While nobody uses it: see Descriptor. False: it was closed meanwhile, or is now.
    void set_aside() noexcept { connection_.set_aside(); }
    [[nodiscard]] bool take_back(TimePoint now) {
        if (phase_ == Phase::ready && connection_.take_back()) advance(now); // what was answered meanwhile
        return phase_ == Phase::ready && connection_.good();
    }

    /// Nobody waits any more for what is under way: its replies are skipped.
    void disown() {
        visit([](Exchange& exchange) {
            exchange.revoke();
            exchange.tell({Verdict::unknown});
        });
    }

    /// Gives up all that is under way: as when its time is up.
    void abandon(const Failure& why) {
        is_given_up_ = true;
        if (owed() > 0) fail(why);
    }

    /// A look for the reply before it is waited for: see SpinWait.
    template <class Arrived>
    bool spin_wait(Arrived arrived) {
        return spin_wait_(arrived);
    }

private:
    enum class Phase { closed, connecting, handshake, ready };
    using Exchanges = std::deque<std::unique_ptr<Exchange>>;

    /// Its replies are the next ones; without an exchange it is the count of replicas for all in `counted_`.
    struct Slot {
        std::unique_ptr<Exchange> exchange{};
        std::uint64_t end = 0; ///< of its bytes, counted from the beginning of the connection
    };

    bool wants_to_write() const noexcept {
        return phase_ == Phase::connecting || (phase_ == Phase::handshake && !hello_.empty()) ||
               (phase_ == Phase::ready && !out_.empty());
    }

    const Endpoint& endpoint() const noexcept { return server_.endpoints[nth_ % server_.endpoints.size()]; }

    /// The next address, after `tried` others; each has its share of the time.
    void open(TimePoint now, std::size_t tried) {
        if (tried > 0) ++nth_;
        open_by_ = now + (std::max(due_, now) - now) / static_cast<int>(server_.endpoints.size() - tried);
        tried_ = tried + 1;
        connection_ = {};
        hello_ = server_.handshake.bytes();
        replies_heard_ = 0;
        was_heard_ = is_given_up_ = false;
        phase_ = Phase::connecting;
        connection_.begin_open(endpoint());
    }

    bool is_introduced() {
        for (; replies_heard_ < server_.handshake.awaited(); ++replies_heard_) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) return false;
            if (Failure objection = server_.handshake.objection(replies_heard_, *reply)) {
                connection_.refuse(std::move(objection));
                return false;
            }
            // Counted from now on, and not from when it was said.
            if (const auto cool_down = server_.handshake.cool_down(replies_heard_, *reply); cool_down > Millis::zero())
                grants_from_ = later(detail::now(), *cool_down);
        }
        if (server_.handshake.has_name()) connection_.owe_reply();
        return true;
    }

    /// Where there is no memory the connection is closed: a reply may have been read and not judged.
    void exchange(TimePoint now) try {
        begin(now);
        receive(now);
    } catch (...) {
        connection_.close();
        throw;
    }

    /// What has waited for the connection goes out. Not so the acquires that this server must not grant yet, or whose
    /// time is up: nobody would release what is only granted now.
    void begin(TimePoint now) {
        unsigned replicas = 0;
        for (; !unsent_.empty(); unsent_.pop_front()) {
            std::unique_ptr<Exchange>& exchange = unsent_.front();
            const Request& request = exchange->request();
            if (exchange->is_told()) continue;
            if (exchange->may_grant() && (now < grants_from_ || request.deadline.at <= now)) {
                --acquires_;
                const Failure late{Errc::timed_out, "connecting"};
                exchange->tell({Verdict::no, now < grants_from_ ? restarted(grants_from_, now) : late});
                continue;
            }
            if (request.verb == Verb::release && acquires_ > 0) revoke(request.token);
            const std::size_t before = out_.size();
            exchange->begin(peer_, prepared_, now, out_);
            replicas = std::max(replicas, exchange->counts_replicas());
            push(std::move(exchange), before);
        }
        count_replicas(replicas, now);
        flush();
    }

    /// What `out_` holds from `before` on is its.
    void push(std::unique_ptr<Exchange>&& exchange, std::size_t before) {
        try {
            under_way_.emplace_back();
        } catch (...) { // no bytes without their exchange, for its replies would be taken for the next one's
            out_.resize(before);
            throw;
        }
        under_way_.back() = {std::move(exchange), sent_ + out_.size()};
    }

    /// One question about the replicas does for all that go out together, and has the time of the most patient of them.
    void count_replicas(unsigned replicas, TimePoint now) {
        if (replicas == 0) return;
        Request request = under_way_.back().exchange->request();
        for (auto slot = under_way_.rbegin(); slot != under_way_.rend() && slot->exchange; ++slot)
            if (slot->exchange->counts_replicas() > 0)
                request.deadline.at = std::max(request.deadline.at, slot->exchange->request().deadline.at);
        request.replicas = replicas;
        const std::size_t before = out_.size();
        out_ += replicas_command(request, now);
        push(nullptr, before);
    }

    void revoke(const Token& token) noexcept {
        for (const Slot& slot : under_way_)
            if (slot.exchange && slot.exchange->may_grant() && slot.exchange->request().token == token)
                slot.exchange->revoke();
    }

    bool flush() {
        const std::size_t before = out_.size();
        const bool all = flush(out_);
        sent_ += before - out_.size();
        return all;
    }

    /// False: not all could be sent, or the connection has failed.
    bool flush(std::string& bytes) {
        if (bytes.empty()) return connection_.good();
        std::string_view rest = bytes;
        const bool good = connection_.write_some(rest);
        bytes.erase(0, bytes.size() - rest.size());
        return good && bytes.empty();
    }

    /// As many answers as others can wait for meanwhile.
    void receive(TimePoint now) {
        constexpr int most = 256;
        unsigned replicas = 0;
        is_pausing_ = false;
        for (int received = 0; !under_way_.empty() && !is_pausing_; is_pausing_ = ++received == most) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) break;
            is_in_doubt_ = false;
            was_heard_ = true;
            Exchange* const exchange = under_way_.front().exchange.get();
            if (exchange == nullptr) {
                under_way_.pop_front();
                for (auto& counted : std::exchange(counted_, {})) {
                    const std::size_t before = out_.size();
                    const Exchange::Next next = counted->counted(*reply, out_);
                    proceed(std::move(counted), next, before, replicas);
                }
                continue;
            }
            const std::size_t before = out_.size();
            const Exchange::Next next = exchange->take(peer_, *reply, now, out_);
            due_ = std::min(due_, exchange->due());
            if (next == Exchange::Next::more) continue;
            if (next == Exchange::Next::leave) return fail(exchange->take_answer().why);
            std::unique_ptr<Exchange> own = std::move(under_way_.front().exchange);
            under_way_.pop_front();
            proceed(std::move(own), next, before, replicas);
        }
        if (under_way_.empty() && connection_.is_out_of_step()) connection_.refuse({Errc::protocol_error, {}});
        count_replicas(replicas, now);
        if (!out_.empty()) flush();
    }

    /// What `out_` holds from `before` on is its.
    void proceed(std::unique_ptr<Exchange> exchange, Exchange::Next next, std::size_t before, unsigned& replicas) {
        if (next == Exchange::Next::count) return counted_.push_back(std::move(exchange));
        if (next == Exchange::Next::resent) {
            replicas = std::max(replicas, exchange->counts_replicas());
            return push(std::move(exchange), before);
        }
        acquires_ -= exchange->may_grant();
        for (unsigned surplus = exchange->surplus(); surplus > 0; --surplus) connection_.owe_reply();
        Answer answer = exchange->take_answer();
        if (ends_connection(answer)) connection_.refuse(answer.why);
        exchange->tell(std::move(answer));
    }

    template <class Visit>
    void visit(Visit visit) const {
        for (const auto& exchange : unsent_) visit(*exchange);
        for (const Slot& slot : under_way_)
            if (slot.exchange) visit(*slot.exchange);
        for (const auto& exchange : counted_) visit(*exchange);
    }

    /// Overdue extensions are answered alone, for others under way may have more time, and must not pay for the
    /// impatient. False: there are no others, or an acquire or a release is overdue, behind which there is something to
    /// be sent: the connection is to be given up.
    bool outlasts_overdue(TimePoint now) {
        bool any = false, others = false, only_extensions = true;
        due_ = TimePoint::max();
        visit([&](Exchange& exchange) {
            if (exchange.is_told()) return;
            if (!exchange.is_overdue(now, out_)) {
                others = true;
                due_ = std::min(due_, exchange.due());
            } else {
                any = true;
                only_extensions = only_extensions && exchange.request().verb == Verb::extend;
            }
        });
        if (!any) flush();
        if (!any || !others || !only_extensions) return !any;
        is_in_doubt_ = true;
        visit([&](Exchange& exchange) {
            if (exchange.is_told() || !exchange.is_overdue(now, out_)) return;
            exchange.revoke();
            exchange.tell(exchange.unanswered(phase_ == Phase::ready ? Verdict::unknown : Verdict::no, why_overdue()));
        });
        return true;
    }

    Failure why_overdue() const {
        if (phase_ == Phase::connecting)
            return {Errc::unreachable, endpoint().text + ": " + std::system_category().message(ETIMEDOUT)};
        return {Errc::timed_out, "waiting for a reply"};
    }

    void fail(const Failure& why) {
        Exchanges counted, unsent; // what may throw comes first
        std::deque<Slot> under_way;
        const bool is_refused = why.code == Errc::max_clients && !was_heard_; // the server has read nothing
        const bool is_left = phase_ >= Phase::handshake && connection_.good();
        if (is_left) leave();
        const std::uint64_t sent = sent_;
        hang_up();
        ++nth_;
        acquires_ = 0;
        counted.swap(counted_);
        under_way.swap(under_way_);
        unsent.swap(unsent_);
        for (auto& exchange : counted) exchange->tell(exchange->unanswered(Verdict::unknown, why));
        for (Slot& slot : under_way) {
            const bool may_be_done = slot.end <= sent && !is_refused;
            const Verdict verdict = may_be_done ? Verdict::unknown : Verdict::no;
            if (slot.exchange) slot.exchange->tell(slot.exchange->unanswered(verdict, why));
        }
        for (auto& exchange : unsent) {
            const bool may_be_done = is_left && exchange->request().verb == Verb::release;
            exchange->tell(exchange->unanswered(may_be_done ? Verdict::unknown : Verdict::no, why));
        }
    }

    /// What was not answered in time is still carried out, whenever the server comes to it: so acquires are released
    /// behind. Releases that have not been sent yet are: they do no harm wherever the connection leads to.
    void leave() {
        std::string last = phase_ == Phase::ready ? out_ : hello_;
        sent_ += out_.size();
        bool is_blocked = false;
        for (const Slot& slot : under_way_) {
            if (!slot.exchange || !slot.exchange->needs_undo()) continue;
            // Not where WAIT follows: the server would drop the undo behind it when it finds us gone.
            is_blocked |= slot.exchange->blocks() && slot.exchange->request().replicas == 0;
            if (!slot.exchange->may_grant() || slot.exchange->gives_up()) last += slot.exchange->undo();
        }
        for (const auto& exchange : counted_)
            if (exchange->may_grant() && exchange->gives_up()) last += exchange->undo();
        for (const auto& exchange : unsent_)
            if (exchange->request().verb == Verb::release) last += release_by_body(exchange->request());
        connection_.leave(last, is_blocked);
        server_.lingering.get().keep(connection_.take_lingering());
    }

    void hang_up() noexcept {
        connection_.close();
        phase_ = Phase::closed;
        is_pausing_ = is_in_doubt_ = false;
        peer_ = {};
        peer_.knows_script.fill(knows_scripts_);
        grants_from_ = {};
        due_ = TimePoint::max();
        out_.clear();
        sent_ = 0;
    }

    const Server& server_;
    const bool knows_scripts_;
    Connection connection_;
    SpinWait spin_wait_;
    Phase phase_ = Phase::closed;
    std::size_t nth_ = 0, tried_ = 0, replies_heard_ = 0;
    TimePoint open_by_{};
    TimePoint grants_from_{};          ///< nothing is to be acquired before: see RedisOptions::restart_delay
    TimePoint due_ = TimePoint::max(); ///< or earlier: nothing is overdue before
    bool is_pausing_ = false;          ///< more may have been received than was read
    bool is_in_doubt_ = false;
    bool was_heard_ = false, is_given_up_ = false;
    Peer peer_;
    PreparedCommands prepared_;
    std::string hello_, out_;
    std::uint64_t sent_ = 0; ///< how many bytes of exchanges have been sent before what is in `out_`
    Exchanges unsent_, counted_;
    std::deque<Slot> under_way_;
    unsigned acquires_ = 0; ///< among them all
};

} // namespace redislock::detail
