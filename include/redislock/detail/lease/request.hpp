/// What a lock asks of a backend, and what that answers: plain values. tests/types_test.cpp goes red if it is wrong.
#pragma once

#include "../../errors.hpp"
#include "../../token.hpp"
#include "../system/clock.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace redislock {

/// Unknown is not no: the request may have been carried out, and only its answer lost.
enum class Verdict { yes, no, unknown };

/// What a lock may ask of a backend: three verbs and no more.
enum class Verb {
    acquire, ///< take the key for this token, unless anyone has it
    extend,  ///< let the key live for at least `ttl` from now, if it holds this token
    release, ///< delete the key, if it holds this token
};

/// Some of a quorum's servers: a bit for each, by its index. No other backend need know of it.
using Nodes = std::uint32_t;
inline constexpr Nodes all_nodes = ~Nodes{0};

/// One question to a backend. It owns what it says, so that a copy of it outlives the call: late answers find it
/// unchanged.
struct Request {
    Verb verb;
    std::string key;
    Token token;
    Millis ttl;        ///< of the lease
    Deadline deadline; ///< when we stop waiting for the answer, on the backend's clock

    /// Acquire: how long it may be kept waiting for its turn before the answer is no. Above zero, a no says what time
    /// the holder has left.
    Millis patience{0};

    /// Whether that is worth a place in line: a few ms are lost to rounding.
    bool can_wait() const noexcept { return patience >= Millis{5}; }

    /// Acquire: while it's waiting, how often to look whether the key is still held, and the place still there.
    Millis recheck{500};

    /// By when there must be a sign of life: a place that lets us wait says first that it does.
    Deadline first_answer(TimePoint now) const noexcept {
        if (patience <= Millis::zero()) return deadline;
        return deadline.by(later(now, 2 * recheck));
    }

    /// Of a release: false writes it and waits for nothing. The answer is then an unknown without a reason.
    bool wants_answer = true;

    /// Of a release: an acquire with this token was answered with yes. If not, it undoes what may have been granted
    /// unknown to us.
    /// Of an extension: it takes over a lease from somebody else.
    bool was_granted = false;

    /// Of a release to a majority: who may have the key. The others are asked too if an answer is wanted, but for those
    /// known to be silent.
    Nodes nodes = all_nodes;

    /// Of a release: it is asked for again while there is trouble.
    bool is_retried = false;

    /// Of a release to a majority that was asked for before: who has carried it out. Their votes stand, and they are
    /// not asked any more: they would say that the key is gone.
    Nodes released = 0;

    /// Of a release: false: nobody in line is to be told of it. It takes back what is worth nothing to the next one
    /// either.
    bool hands_on = true;

    /// Of an acquire or an extension: how many replicas must have it by half of the time left, and `recheck`. If fewer
    /// have, a grant is undone, and an extension unknown.
    unsigned replicas = 0;

    /// Acquire: the grant is to be numbered, see Answer::fence; and to which part the time in that number is rounded
    /// down, for several places to come to the same number.
    bool fencing = false;
    std::chrono::microseconds fencing_step{1};

    /// Extend: numbers from now on are to be greater than this one.
    std::uint64_t fencing_token = 0;

    /// To the node of a cluster that is about to get the key's slot, and serves who says ASKING before each command.
    bool asking = false;
};

/// What a backend says to a Request.
/// *No* is certain: nothing was done, and `why` says for what reason (busy, expired, stolen, a server's refusal, no
/// connection). After an *unknown* acquire the backend has sent an undo behind it wherever it still could.
struct Answer {
    Verdict verdict;
    Failure why{};
    std::optional<Millis> holder_left{}; ///< acquire: what the holder had left when he was last seen, if that is known
    bool queued = false; ///< acquire: it stood in line for its turn, so that to ask again at once is right
    std::uint64_t fencing_token =
        0;                   ///< acquire, if it was to be numbered: greater than that of all earlier grants of the key
    Nodes nodes = all_nodes; ///< acquire: who has the key now, or may have it yet
    std::optional<TimePoint> asked{}; ///< acquire: when the key itself was asked for, after a turn was waited for
    Nodes released = 0;               ///< release: who has carried it out
    bool was_held = false;            ///< acquire: it waited, and saw that somebody had the key. Also beside an unknown

    /// The key is held, by whatever it may be.
    bool is_busy() const noexcept { return verdict == Verdict::no && (why.code == Errc::busy || never_ends()); }

    /// It is held in a way that no lease of ours can wait out. Beside an unknown: it was when it was last seen.
    bool never_ends() const noexcept { return why.code == Errc::no_expiry || why.code == Errc::wrong_type; }

    /// It says something of the key. If not, it says that something is the matter with the place.
    bool is_about_the_key() const noexcept {
        return verdict == Verdict::yes || is_busy() ||
               (verdict == Verdict::no && (why.code == Errc::expired || why.code == Errc::stolen));
    }

    /// No connection can be made. Those that exist may be as good as before.
    bool finds_no_connection() const noexcept { return why.code == Errc::unreachable || why.code == Errc::max_clients; }

    /// Time or a new connection may mend it, so that asking once more makes sense. (An unconfirmed release has nothing
    /// to mend.)
    bool is_trouble() const noexcept {
        if (verdict != Verdict::no || why.code.category() != category()) return verdict == Verdict::unknown && why;
        switch (static_cast<Errc>(why.code.value())) {
        case Errc::unreachable:
        case Errc::unresolved:
        case Errc::no_sentinel:
        case Errc::no_service:
        case Errc::disconnected:
        case Errc::protocol_error:
        case Errc::timed_out:
        case Errc::read_only:
        case Errc::loading:
        case Errc::script_running:
        case Errc::misconfigured:
        case Errc::cluster_down:
        case Errc::master_down:
        case Errc::no_replicas:
        case Errc::restarted:
        case Errc::max_clients: return true;
        default: return false;
        }
    }
};

namespace detail {
/// A request that is under way, and who is told its answer. Shared by all connections over which it is put, for an
/// answer may come when nobody waits for it any more.
class Question {
public:
    explicit Question(Request what) : request{std::move(what)} {}
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;
    virtual ~Question() = default;

    const Request request;

    /// The answer of one node, by its index: once for each node that was asked. Must not throw.
    virtual void answered(std::size_t node, Answer answer) = 0;

    /// An acquire was not answered in time: whether the grant that may still come is to be undone at once.
    virtual bool gives_up() noexcept { return true; }
};

/// A question that one thread waits for, until there is an answer.
struct AwaitedQuestion : Question {
    using Question::Question;
    std::optional<Answer> answer{};
    void answered(std::size_t, Answer one) override { answer = std::move(one); }

    /// Without an owner: for a channel that does not outlive it.
    std::shared_ptr<Question> shared() noexcept { return {std::shared_ptr<void>{}, this}; }
};
} // namespace detail

} // namespace redislock
