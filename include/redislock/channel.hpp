/// A connection on which nothing ever waits: questions go out and answers come in as the socket permits, any number of
/// them under way, each with a deadline of its own. It knows nothing of why they are asked.
/// tests/session_test.cpp goes red if it is wrong.
#pragma once

#include "greeting.hpp"
#include "scripts.hpp"

#include <array>
#include <deque>

namespace redislock::detail {

/// What a question becomes on the wire: a script by its name, or `in_full`.
inline std::string command_of(const Request& request, bool in_full) {
    switch (request.verb) {
    case Verb::acquire:
        if (is_plain(request)) return set_command(request);
        return in_full ? acquire_by_body(request) : acquire_by_sha(request);
    case Verb::extend: return in_full ? extend_by_body(request) : extend_by_sha(request);
    default: return in_full ? release_by_body(request) : release_by_sha(request);
    }
}

/// Opens itself when there is something to send, and anew after a failure, with the next address. Not thread-safe.
/// Errand: whatever has a `request()`, and owns what that refers to; its deadline is when it is to be answered. It can
/// be copied where it asks for replicas.
template <class Errand>
class Channel {
public:
    explicit Channel(const Server& server) : server_{server} {}

    /// Blocks until one of them can go on, one of their answers is overdue, or the deadline. One that is idle is not
    /// waited for, whatever becomes of it.
    template <class Channels>
    static void wait(const Deadline& deadline, const Channels& channels) {
        std::array<pollfd, 64> entries{{{deadline.stop, POLLIN, 0}}};
        std::size_t count = 1;
        TimePoint until = deadline.at;
        for (const Channel& channel : channels) {
            if (channel.owed() == 0) continue;
            until = std::min(until, channel.due());
            if (count < entries.size())
                entries[count++] = channel.entry();
            else
                until = std::min(until, now() + Millis{1});
        }
        detail::wait(std::span{entries}.first(count), until);
    }

    /// When to come back even if nothing has arrived by then, for the next answer may be overdue.
    TimePoint due() const noexcept {
        if (owed() == 0) return TimePoint::max();
        if (pausing_ || !refused_.empty()) return TimePoint{};
        return is_opening() && tried_ < server_.endpoints.size() ? std::min(due_, open_by_) : due_;
    }

    bool is_closed() const noexcept { return phase_ == Phase::closed; }
    bool is_opening() const noexcept { return phase_ == Phase::connecting || phase_ == Phase::greeting; }

    /// Whether an extension was not answered in time, and nothing was heard since: the connection may be dead. It is
    /// kept for those who have more time; a new question had better take another one.
    bool in_doubt() const noexcept { return in_doubt_; }

    /// How many answers are still to come, also to extensions that are overdue; and whether one to a question with this
    /// token, or to any acquire.
    std::size_t owed() const noexcept { return under_way_.size() + durable_.size() + refused_.size(); }
    bool owes_an_acquire() const noexcept { return acquires_ > 0; }
    bool owes_an_acquire(const Token& token) const noexcept {
        return acquires_ > 0 && owes([&](const Request& r) { return r.token == token && r.verb == Verb::acquire; });
    }

    /// Goes out with the next advance().
    void send(Errand errand) {
        // With nothing under way there is nothing to be read, unless the server has hung up, or is out of step.
        const Request& request = errand.request();
        if (phase_ == Phase::ready && owed() == 0 && readable(connection_.fd())) hang_up();
        if (phase_ == Phase::ready && request.verb == Verb::acquire && now() < votes_from_)
            return refused_.push_back(std::move(errand));
        const bool is_script = request.verb != Verb::acquire || !is_plain(request);
        // A name that the server has forgotten costs another way to and fro: here the first use of a script teaches it.
        // And where nobody waits for the answer, there may be nobody to send it again.
        const bool knows = !is_script || std::exchange(knows_[static_cast<std::size_t>(request.verb)], true);
        const bool in_full = !knows || !request.wants_answer;
        const std::size_t before = out_.size();
        if (in_full || !append_prepared(request)) out_ += command_of(request, in_full);
        try {
            under_way_.push_back({std::move(errand)});
        } catch (...) { // no question without an errand, for its answer would be taken for the next one's
            out_.resize(before);
            throw;
        }
        acquires_ += request.verb == Verb::acquire;
        waits_for_ = std::max(waits_for_, request.replicas);
        due_ = std::min(due_, request.deadline.at);
    }

    /// Goes on as far as that needs no waiting. Each errand is put before `answered`, with an Answer, once: a *no* for
    /// one that was never sent, an *unknown* for one whose answer does not come in time.
    template <class Answered>
    void advance(TimePoint now, Answered&& answered) {
        for (Errand& errand : std::exchange(refused_, {}))
            answered(errand, Answer{Verdict::no, restarted(votes_from_, now)});
        if (phase_ == Phase::closed && !under_way_.empty()) open(now, 0);
        if (phase_ == Phase::connecting && detail::wait(connection_.fd(), POLLOUT, TimePoint{}) &&
            connection_.finish_open(endpoint()))
            phase_ = Phase::greeting;
        if (phase_ == Phase::greeting && flush(hello_) && greeted()) begin(answered);
        if (phase_ == Phase::ready) {
            flush_questions(now);
            receive(now, answered);
        }
        while (is_opening() && tried_ < server_.endpoints.size() && (!connection_.good() || now >= open_by_))
            open(now, tried_);
        if (phase_ != Phase::closed && !connection_.good()) fail(why_not(connection_), answered);
        if (!pausing_ && due_ <= now && !outlasts_overdue(now, answered)) fail(too_late(), answered);
    }

private:
    enum class Phase { closed, connecting, greeting, ready };

    /// A question under way; or one about the replicas, for all durable ones before it.
    struct Sent {
        Errand errand;
        bool in_full = false, is_wait = false;
        bool is_answered = false; ///< for it was overdue: its reply is skipped
    };

    pollfd entry() const noexcept {
        return {connection_.fd(), static_cast<short>(wants_to_write() ? POLLIN | POLLOUT : POLLIN), 0};
    }

    void hang_up() noexcept {
        connection_.close();
        pausing_ = false;
        phase_ = Phase::closed;
        knows_ = {};
        votes_from_ = {};
        in_doubt_ = false;
        due_ = TimePoint::max();
    }

    template <class Which>
    bool owes(Which which) const noexcept {
        return std::any_of(under_way_.begin(), under_way_.end(),
                           [&](const Sent& sent) { return which(sent.errand.request()); });
    }

    const Endpoint& endpoint() const noexcept { return server_.endpoints[nth_ % server_.endpoints.size()]; }

    bool wants_to_write() const noexcept {
        return phase_ == Phase::connecting || (phase_ == Phase::greeting && !hello_.empty()) ||
               (phase_ == Phase::ready && !out_.empty());
    }

    /// The next address, after `tried` others; each has its share of the time.
    void open(TimePoint now, std::size_t tried) {
        if (tried > 0) ++nth_;
        open_by_ = now + (std::max(due_, now) - now) / static_cast<int>(server_.endpoints.size() - tried);
        tried_ = tried + 1;
        connection_ = {};
        hello_ = server_.greeting.bytes();
        greeted_ = 0;
        phase_ = Phase::connecting;
        connection_.begin_open(endpoint());
    }

    /// A release of it has been sent behind, so that it must not be sent once more.
    bool is_undone(const Request& request) const noexcept {
        return request.verb == Verb::acquire &&
               owes([&](const Request& r) { return r.token == request.token && r.verb == Verb::release; });
    }

    static unsigned counts(const Sent& sent) noexcept {
        return !sent.is_wait && sent.errand.request().verb == Verb::acquire;
    }

    /// The two that are sent for one key again and again.
    bool append_prepared(const Request& request) {
        const bool is_release = request.verb == Verb::release;
        if (!is_release && (request.verb != Verb::acquire || !is_plain(request))) return false;
        out_ += is_release ? release_(request, release_by_sha) : acquire_(request, set_command);
        return true;
    }

    static Failure too_late() { return {Errc::timed_out, "waiting for a reply"}; }

    /// Somebody waits for the answer. A question about replicas is nobody's own: its answer is for those in durable_.
    static bool is_awaited(const Sent& sent) noexcept { return !sent.is_wait && !sent.is_answered; }

    /// Overdue extensions are answered alone, for others under way may have more time, and must not pay for the
    /// impatient. False: there are no others, or an acquire or a release is overdue, behind which there is something to
    /// be sent: the connection is to be given up.
    template <class Answered>
    bool outlasts_overdue(TimePoint now, Answered& answered) {
        bool any = false, others = false, only_extensions = true;
        due_ = TimePoint::max();
        const auto look_at = [&](const Request& request) {
            const bool is_overdue = request.deadline.at <= now;
            if (!is_overdue) due_ = std::min(due_, request.deadline.at);
            if (is_overdue && request.verb != Verb::extend) only_extensions = false;
            (is_overdue ? any : others) = true;
        };
        for (const auto& [errand, answer] : durable_) look_at(errand.request());
        for (const Sent& sent : under_way_)
            if (is_awaited(sent)) look_at(sent.errand.request());
        if (!any) return true;
        if (!others || !only_extensions) return false;
        in_doubt_ = true;
        answer_overdue(now, answered);
        return true;
    }

    template <class Answered>
    void answer_overdue(TimePoint now, Answered& answered) {
        const auto is_overdue = [now](const Errand& errand) { return errand.request().deadline.at <= now; };
        const Answer answer{phase_ == Phase::ready ? Verdict::unknown : Verdict::no, too_late()};
        for (Sent& sent : under_way_)
            if (is_awaited(sent) && is_overdue(sent.errand)) {
                sent.is_answered = true;
                answered(sent.errand, answer);
            }
        for (auto one = durable_.begin(); one != durable_.end();) {
            if (!is_overdue(one->first)) {
                ++one;
                continue;
            }
            const Errand errand = std::move(one->first);
            one = durable_.erase(one);
            answered(errand, answer);
        }
    }

    /// False: not all could be sent, or the connection has failed.
    bool flush(std::string& bytes) {
        if (bytes.empty()) return connection_.good();
        std::string_view rest = bytes;
        const bool good = connection_.write_some(rest);
        bytes.erase(0, bytes.size() - rest.size());
        return good && bytes.empty();
    }

    /// One question about the replicas does for all that go out together, and has the time of the most patient of them.
    void flush_questions(TimePoint now) {
        if (const unsigned replicas = std::exchange(waits_for_, 0)) {
            Sent wait{most_patient(), false, true};
            Request request = wait.errand.request();
            request.replicas = replicas;
            const std::string command = replicas_command(request, now);
            out_.reserve(out_.size() + command.size()); // both, or none
            under_way_.push_back(std::move(wait));
            out_ += command;
        }
        flush(out_);
    }

    /// Of those that want replicas and have gone out since the last question about them.
    const Errand& most_patient() const {
        auto sent = under_way_.rbegin();
        const Errand* most = &sent->errand;
        for (; sent != under_way_.rend() && !sent->is_wait; ++sent) {
            const Request request = sent->errand.request(), other = most->request();
            if (request.replicas > 0 && (other.replicas == 0 || request.deadline.at > other.deadline.at))
                most = &sent->errand;
        }
        return *most;
    }

    bool greeted() {
        for (; greeted_ < server_.greeting.awaited(); ++greeted_) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) return false;
            if (Failure objection = server_.greeting.objection(greeted_, *reply)) {
                connection_.refuse(std::move(objection));
                return false;
            }
            votes_from_ = later(now(), server_.greeting.probation(greeted_, *reply)); // not from before it was said
        }
        return true;
    }

    /// What has waited for the connection goes out. Not so what nobody waits for any more, nor the acquires that are
    /// refused, or whose time is up: nobody would release what is only granted now.
    template <class Answered>
    void begin(Answered& answered) {
        const TimePoint time = detail::now();
        const auto is_dropped = [&](const Sent& sent) {
            const Request& request = sent.errand.request();
            return sent.is_answered ||
                   (request.verb == Verb::acquire && (time < votes_from_ || request.deadline.at <= time));
        };
        if (std::any_of(under_way_.begin(), under_way_.end(), is_dropped)) {
            std::string rest;
            for (const Sent& sent : under_way_)
                if (!is_dropped(sent)) rest += command_of(sent.errand.request(), true);
            out_ = std::move(rest);
            waits_for_ = 0;
            for (auto sent = under_way_.begin(); sent != under_way_.end();) {
                sent->in_full = true;
                if (!is_dropped(*sent)) {
                    waits_for_ = std::max(waits_for_, sent->errand.request().replicas);
                    ++sent;
                    continue;
                }
                const Sent dropped = std::move(*sent);
                sent = under_way_.erase(sent);
                acquires_ -= counts(dropped);
                if (dropped.is_answered) continue;
                const Failure late{Errc::timed_out, "connecting"};
                answered(dropped.errand, Answer{Verdict::no, time < votes_from_ ? restarted(votes_from_, time) : late});
            }
        }
        phase_ = Phase::ready;
        if (server_.greeting.has_name()) connection_.owe_reply();
    }

    /// As many answers as others can wait for meanwhile.
    template <class Answered>
    void receive(TimePoint now, Answered& answered) {
        constexpr int most = 256;
        bool again = false;
        pausing_ = false;
        for (int received = 0; !under_way_.empty() && !pausing_; pausing_ = ++received == most) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) break;
            Sent sent = std::move(under_way_.front());
            under_way_.pop_front();
            acquires_ -= counts(sent);
            in_doubt_ = false;
            if (sent.is_wait) {
                settle(*reply, answered);
            } else if (is_noscript(*reply) && !sent.is_answered && !is_undone(sent.errand.request()) &&
                       !std::exchange(sent.in_full, true)) {
                const std::string command = command_of(sent.errand.request(), true);
                out_.reserve(out_.size() + command.size());
                waits_for_ = std::max(waits_for_, sent.errand.request().replicas);
                acquires_ += counts(sent);
                under_way_.push_back(std::move(sent));
                out_ += command;
                again = true;
            } else {
                const Request& request = sent.errand.request();
                Answer answer = meaning_of(request, *reply);
                if (ends_connection(answer)) connection_.refuse(answer.why);
                if (sent.is_answered) continue;
                if (answer.verdict == Verdict::yes && request.replicas > 0)
                    durable_.emplace_back(std::move(sent.errand), std::move(answer));
                else
                    answered(sent.errand, answer);
            }
        }
        if (under_way_.empty() && connection_.has_more()) connection_.refuse({Errc::protocol_error, {}});
        if (again) flush_questions(now);
    }

    template <class Answered>
    void settle(const Reply& reply, Answered& answered) {
        for (auto& [errand, answer] : std::exchange(durable_, {})) {
            if (Failure objection = shortage(errand.request(), reply)) {
                answer = {Verdict::unknown, std::move(objection)};
                if (ends_connection(answer)) connection_.refuse(answer.why);
            }
            answered(errand, answer);
        }
    }

    template <class Answered>
    void fail(const Failure& why, Answered& answered) {
        const bool was_ready = phase_ == Phase::ready, leaves = phase_ >= Phase::greeting && connection_.good();
        if (leaves) leave();
        hang_up();
        ++nth_;
        out_.clear();
        acquires_ = 0;
        waits_for_ = 0;
        for (auto& [errand, answer] : std::exchange(durable_, {})) answered(errand, Answer{Verdict::unknown, why});
        for (Sent& sent : std::exchange(under_way_, {}))
            if (is_awaited(sent)) {
                const bool may_be_done = was_ready || (leaves && is_release(sent));
                answered(sent.errand, Answer{may_be_done ? Verdict::unknown : Verdict::no, why});
            }
    }

    static bool is_release(const Sent& sent) noexcept { return sent.errand.request().verb == Verb::release; }

    static bool gives_up(const Errand& errand) noexcept {
        if constexpr (requires { errand.gives_up(); }) return errand.gives_up();
        return true;
    }

    /// What was not answered in time is still carried out, whenever the server comes to it; acquires are released
    /// behind. Of what waits for the end of the greeting the releases are sent, for they do no harm wherever it leads
    /// to.
    void leave() {
        const bool ready = phase_ == Phase::ready;
        std::string last_words = ready ? out_ : hello_;
        for (const Sent& sent : under_way_)
            if (ready ? counts(sent) && gives_up(sent.errand) : is_release(sent))
                last_words += release_by_body(sent.errand.request());
        connection_.leave(last_words);
        server_.lingering.get().keep(connection_.take_lingering());
    }

    const Server& server_;
    Connection connection_;
    TimePoint votes_from_{}; ///< nothing is to be acquired before
    Phase phase_ = Phase::closed;
    std::size_t nth_ = 0, tried_ = 0, greeted_ = 0;
    TimePoint open_by_{};
    bool pausing_ = false; ///< more may have been received than was read
    bool in_doubt_ = false;
    TimePoint due_ = TimePoint::max(); ///< or earlier: nothing is overdue before
    std::string hello_, out_;
    std::array<bool, 3> knows_{}; ///< which scripts, by their verbs
    PreparedCommand acquire_, release_;
    std::deque<Sent> under_way_;
    unsigned acquires_ = 0;                         ///< among them
    std::vector<Errand> refused_;                   ///< acquires, for it may have forgotten leases
    std::deque<std::pair<Errand, Answer>> durable_; ///< granted by the server itself, and perhaps by its replicas
    unsigned waits_for_ = 0;                        ///< replicas, of what has not gone out yet
};

} // namespace redislock::detail
