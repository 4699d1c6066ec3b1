/// A majority of independent servers as a backend: the Redlock algorithm (S. Sanfilippo,
/// redis.io/docs/latest/develop/use/patterns/distributed-locks), with all servers asked at once. How they are asked is
/// the FanOut's affair, how votes are counted the VoteCount's, and what a lease is worth the Lease judges, counting
/// from the asking, as of a single server.
///
/// It is safe as far as this holds: each server's clock runs no faster than `Options::drift` allows; a holder asks
/// owns_lock(), or listens to lost(), before it acts, and a pause between that and the act is covered by a fencing
/// token; and a server that comes back without its memory stays away for the longest ttl, for else its vote is given
/// twice. A majority of the servers must be right in this, and no more.
///
/// Fencing tokens: each server numbers its own grants, rising; the grant's number is the highest one among a majority
/// that granted it, and before the lock is reported as held, a majority of those who granted it knows that number or a
/// higher one: because they said it, or because it was written back to them, under the condition that they still hold
/// the token (a write to a quorum register, as in Attiya, Bar-Noy, Dolev 1995). Any later grant is given by a majority
/// too; the two have a server in common, whose number rises from there, and the highest counts. This needs servers that
/// remember. One that has lost its counter begins anew at its clock; that is above all earlier numbers, unless the
/// server that gave the highest one has a clock that is further ahead than that grant is ago. So clocks alone, or
/// memories alone, are enough. tests/quorum_test.cpp and tests/simulation_test.cpp go red if it is wrong.
#pragma once

#include "backend.hpp"
#include "detail/net/fan_out_pool.hpp"
#include "detail/renewal/quorum_port.hpp"
#include "detail/system/lifetime.hpp"
#include "detail/system/threads.hpp"
#include "options.hpp"

namespace redislock {

/// What votes in a Quorum: an object for each server, as a Redis is one, and not its URI. Its Link asks it, as a
/// Channel does; its Engine has the clock and the threads, as System has.
// clang-format off
template <class Node>
concept QuorumNode = requires(Node& node, std::string_view key, Deadline until, Holder& holder) {
    typename Node::Engine;
    typename Node::Link;
    { node.name() } -> std::convertible_to<std::string>;
    { node.now() } noexcept -> std::same_as<TimePoint>;
    { node.has_line() } noexcept -> std::same_as<bool>;
    { node.fresh() } -> std::same_as<Token>;
    { node.pause(until) } noexcept;
    { node.inspect(key, until, holder) } -> std::same_as<Answer>;
};
// clang-format on

/// A majority of an odd number of servers, 1 to 15, each independent of the others: no replicas of one another.
/// Thread-safe; neither copied nor moved; to be destroyed after its locks, and before its servers. A server that does
/// not answer has no vote, and is asked again ever more seldom, up to every second. A release to one that may have the
/// key is waited for until it is sent, up to the request timeout where a connection has to be made first.
template <QuorumNode Node>
class Quorum {
public:
    /// Throws Errc::bad_option for an even number of servers, more than 15, one that is named twice, or a null pointer.
    template <std::same_as<Node>... More>
    explicit Quorum(Node& first, More&... more) : Quorum{std::vector<Node*>{&first, &more...}} {}

    explicit Quorum(std::vector<Node*> nodes) : node_set_{checked(std::move(nodes))} {
        for (const Node* node : nodes_) lives_.push_back(detail::life_of(*node));
    }
    Quorum(const Quorum&) = delete;
    Quorum& operator=(const Quorum&) = delete;
    ~Quorum() { at_the_end_.begin(); }

    static constexpr bool has_fencing_tokens = true;

    /// Throws Errc::bad_option for a ttl that one of its servers refuses.
    void check_ttl(Millis ttl) const {
        for (Node* node : nodes_) detail::check_ttl(*node, ttl);
    }

    /// Whether one of its servers may become another one: see Redis.
    bool may_move() const noexcept {
        return std::any_of(nodes_.begin(), nodes_.end(), [](Node* node) { return detail::may_move(*node); });
    }

    /// For those that it must outlive.
    detail::Life life() const noexcept { return lifetime_.life(); }

    TimePoint now() const noexcept { return nodes_.front()->now(); }
    Token fresh() const { return nodes_.front()->fresh(); }
    void pause(const Deadline& until) noexcept { nodes_.front()->pause(until); }

    /// Blocks until `request.deadline` at the latest, and not for those whose vote makes no difference. An acquire that
    /// has patience stands in line at one of the servers first, which is the same one for all who wait for the key:
    /// from there comes the turn, and the key from a majority.
    Answer ask(const Request& request) {
        for (std::size_t n = 0; n < nodes_.size(); ++n) detail::check_life(*nodes_[n], lives_[n]);
        if (request.verb == Verb::acquire && node_set_.identities.twins()) return {Verdict::no, same_server()};
        const Answer turn = wait_in_line(request);
        if (turn.verdict != Verdict::yes && (turn.is_busy() || detail::over(request.deadline))) return turn;
        std::unique_ptr<detail::FanOut<Node>> fan_out = fan_outs_.take(request.token);
        const TimePoint asked = now();
        Request question = request;
        const Deadline end = request.first_answer(asked);    // else patience would be waited for
        if (turn.queued) question.patience = Millis::zero(); // the line has said what the holder had left
        question.deadline = request.wants_answer || end.at > asked ? end : in_its_own_time();
        question.fencing_step = std::chrono::seconds{1};
        const auto votes = fan_out->vote(question, end);
        Answer answer = request.wants_answer ? votes->result() : Answer{Verdict::unknown};
        if (request.verb == Verb::acquire) {
            if (answer.verdict == Verdict::yes && request.fencing && !votes->agrees_on_fencing_token()) {
                question.verb = Verb::extend;
                question.fencing_token = answer.fencing_token;
                const Answer written = fan_out->vote(question, end)->result();
                if (written.verdict != Verdict::yes) answer = {Verdict::unknown, written.why};
            }
            if (node_set_.identities.twins()) answer = {Verdict::unknown, same_server()};
            answer.nodes = votes->may_have();
            answer.queued = turn.queued;
            answer.asked = asked;
            if (turn.holder_left) answer.holder_left = turn.holder_left;
            if (answer.verdict != Verdict::yes) {
                question.verb = Verb::release;
                question.nodes = answer.nodes;
                question.replicas = 0;
                question.wants_answer = false;
                // Else all in line would be woken, one after another.
                question.hands_on = !turn.queued || !answer.is_busy();
                question.deadline = in_its_own_time();
                fan_out->vote(question, TimePoint{}); // behind the acquire, on the same connections
                // Whoever stands in line again before that is done finds the key held, by himself, and sleeps.
                const auto at = node_set_.line_of(request.key, now());
                if (at && turn.queued && answer.is_busy()) fan_out->settle(*at, end);
            }
        }
        fan_outs_.give_back(std::move(fan_out), answer.is_about_the_key() || !request.wants_answer);
        return answer;
    }

    /// Whether somebody stood in line when the key was released, of late.
    bool is_contended(std::string_view key) const noexcept {
        return std::any_of(nodes_.begin(), nodes_.end(), [&](Node* node) { return detail::is_contended(*node, key); });
    }

    /// Who has the key at a majority of them; nothing if nobody has. They are asked one after another, each for its
    /// share of the time.
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) {
        std::vector<Holder> holders;
        bool is_awaited = false; // at the server where the line is
        std::size_t silent = 0, most_alike = 0;
        Answer trouble{Verdict::unknown};
        for (auto left = static_cast<int>(nodes_.size()); Node * node : nodes_) {
            const TimePoint time = now();
            Holder one{};
            Answer answer = node->inspect(key, {time + (deadline.at - time) / left--, deadline.stop}, one);
            const bool is_free = answer.verdict == Verdict::no && answer.why.code == Errc::expired;
            if (answer.verdict == Verdict::yes) {
                is_awaited |= one.is_awaited;
                holders.push_back(std::move(one));
            } else if (!is_free) {
                ++silent;
                trouble.verdict = answer.verdict;
                detail::add_trouble(trouble.why, answer.why);
            }
        }
        for (const Holder& one : holders) {
            const auto same = std::count_if(holders.begin(), holders.end(),
                                            [&](const Holder& other) { return other.value == one.value; });
            most_alike = std::max(most_alike, static_cast<std::size_t>(same));
            if (most_alike <= nodes_.size() / 2) continue;
            holder = one;
            holder.is_awaited = is_awaited;
            return {Verdict::yes};
        }
        if (most_alike + silent <= nodes_.size() / 2) return {Verdict::no, {Errc::expired, {}}};
        return {trouble.verdict, detail::no_majority(silent, nodes_.size(), trouble.why)};
    }

    /// The servers whose last answer to an acquire or a release was an error, or did not come: which error, and the
    /// server's name. A majority is enough for a lock, so that nothing else tells of the others. Thread-safe; asks
    /// nobody.
    std::vector<Failure> node_errors() const {
        std::vector<Failure> all;
        for (std::size_t n = 0; n < nodes_.size(); ++n)
            if (const Errc trouble = node_set_.health[n].trouble; trouble != Errc{})
                all.push_back({trouble, nodes_[n]->name()});
        return all;
    }

    /// Renewals travel on connections of their own, in a thread that is started with the first of them; where none can
    /// be made, on those that nobody uses at the moment.
    void keep(const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) {
        renewers_.keep(task, when, node_set_, fan_outs_);
    }
    void drop(detail::WorkerTask& task) noexcept { renewers_.drop(task); }

private:
    static constexpr std::size_t most = 15;

    static std::vector<Node*> checked(std::vector<Node*> nodes) {
        if (nodes.size() % 2 == 0 || nodes.size() > most)
            detail::refuse("the number of servers", std::to_string(nodes.size()),
                           "an odd one, 1 to " + std::to_string(most));
        if (std::count(nodes.begin(), nodes.end(), nullptr) > 0)
            detail::refuse("a server", "a null pointer", "a Redis that outlives the Quorum");
        for (auto one = nodes.begin(); one != nodes.end(); ++one)
            for (auto other = nodes.begin(); other != one; ++other)
                if ((*one)->name() == (*other)->name())
                    detail::refuse("a server", (*one)->name() + " twice", "each of them once, for it has one vote");
        return nodes;
    }

    /// For what nobody waits for: a connection may have to be made for it.
    Deadline in_its_own_time() const noexcept { return later(now(), Millis{1'000}); }

    Failure same_server() const {
        const auto [one, other] = *node_set_.identities.twins();
        return {Errc::bad_option,
                nodes_[one]->name() + " and " + nodes_[other]->name() + " are the same server, which has one vote"};
    }

    /// At one server after another, until one of them says that it is our turn, or that our patience is over; a yes
    /// also for who has none. Where it can be had nowhere the answer is anything else: who waits polls then.
    Answer wait_in_line(const Request& request) {
        Answer turn{Verdict::yes};
        if (!request.can_wait()) return turn;
        Request place = request;
        for (const TimePoint started = now();;) {
            const TimePoint time = now();
            place.patience = request.patience - std::chrono::floor<Millis>(time - started);
            const auto at = node_set_.line_of(request.key, time);
            if (!at || !place.can_wait()) return turn;
            turn = fan_outs_.wait_for_turn(place, *at);
            if (turn.verdict == Verdict::yes || turn.is_busy() || detail::over(request.deadline)) return turn;
        }
    }

    detail::Uncancelled at_the_end_{std::defer_lock};
    const detail::Lifetime lifetime_{};
    std::vector<detail::Life> lives_{}; ///< of its servers
    detail::NodeSet<Node> node_set_;
    const std::vector<Node*>& nodes_ = node_set_.nodes;
    detail::FanOutPool<Node> fan_outs_{node_set_};
    detail::Renewers<detail::QuorumPort<Node>> renewers_;
};

} // namespace redislock
