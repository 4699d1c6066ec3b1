/// The words of the library: token, verdict, request, answer, outcome and options, all of them plain values.
/// What is in here knows no server, no clock and no thread.
/// tests/types_test.cpp goes red if it is wrong.
#pragma once

#include "errors.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace redislock {

/// Every duration of the interface. A finer one (900us) does not compile, so no lease is ever cut down to 0 ms.
using Millis = std::chrono::milliseconds;

/// The time scale on which leases are judged. It has no now(): a backend owns its clock, the judgement is told the time.
struct LeaseClock {
    using duration = std::chrono::nanoseconds;
    using rep = duration::rep;
    using period = duration::period;
    using time_point = std::chrono::time_point<LeaseClock>;
    static constexpr bool is_steady = true;
};

using TimePoint = LeaseClock::time_point;

namespace detail {
inline constexpr std::chrono::duration<double> a_century{3.15e9};

/// A parameter that takes any duration that is no finer than milliseconds. Where that would overflow it is the longest: to be refused, not
/// to be wrapped around.
struct ClampedMillis : Millis {
    template <class Rep, class Period>
    requires std::convertible_to<std::chrono::duration<Rep, Period>, Millis>
    constexpr ClampedMillis(std::chrono::duration<Rep, Period> span) noexcept : Millis{clamped(span)} {}

private:
    template <class Span>
    static constexpr Millis clamped(Span span) noexcept {
        const std::chrono::duration<double> seconds{span};
        if (seconds > a_century) return Millis::max();
        return seconds < -a_century ? Millis::min() : Millis{span};
    }
};
} // namespace detail

/// `start + span`, or the end of time where that would overflow.
template <class Rep, class Period>
constexpr TimePoint later(TimePoint start, std::chrono::duration<Rep, Period> span) noexcept {
    if (std::chrono::duration<double>{span} > detail::a_century) return TimePoint::max();
    return start + std::chrono::ceil<TimePoint::duration>(std::max(span, std::chrono::duration<Rep, Period>::zero()));
}

/// When a wait is over: at a moment, or as soon as the descriptor `stop` can be read. A wait that is stopped ends like one
/// whose time is up.
struct Deadline {
    constexpr Deadline(TimePoint moment, int stop_descriptor = -1) noexcept : at{moment}, stop{stop_descriptor} {}

    /// The same, but no later than `moment`.
    constexpr Deadline by(TimePoint moment) const noexcept { return {std::min(at, moment), stop}; }

    TimePoint at;
    int stop; ///< -1: there is none
};

/// The proof of ownership: 128 random bits, as 32 hexadecimal digits, fresh for every attempt to acquire.
/// It converts neither from nor to a string, so that it can't be passed where a key belongs; from_hex() and hex() are
/// for handing a lease to another process. A default-constructed token is nil and proves nothing.
class Token {
public:
    static constexpr std::size_t digits = 32;

    constexpr Token() noexcept { hex_.fill('0'); }

    static constexpr Token from_bits(std::uint64_t high, std::uint64_t low) noexcept {
        Token token;
        for (std::size_t i = 0; i < digits / 2; ++i) {
            token.hex_[digits / 2 - 1 - i] = alphabet[(high >> (4 * i)) & 15];
            token.hex_[digits - 1 - i] = alphabet[(low >> (4 * i)) & 15];
        }
        return token;
    }

    /// The token that hex() printed; nothing if `text` isn't 32 lower-case hexadecimal digits.
    static constexpr std::optional<Token> from_hex(std::string_view text) noexcept {
        if (text.size() != digits || text.find_first_not_of(alphabet) != text.npos) return std::nullopt;
        Token token;
        std::copy(text.begin(), text.end(), token.hex_.begin());
        return token;
    }

    /// As the server stores it. The view lives as long as the token; of a temporary one there is a copy.
    constexpr std::string_view hex() const& noexcept { return {hex_.data(), hex_.size()}; }
    std::string hex() && { return {hex_.data(), hex_.size()}; }
    constexpr bool is_nil() const noexcept { return *this == Token{}; }

    friend constexpr bool operator==(const Token&, const Token&) noexcept = default;

private:
    static constexpr std::string_view alphabet = "0123456789abcdef";
    std::array<char, digits> hex_{};
};

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

/// One question to a backend. It owns what it says, so that a copy of it outlives the call: late answers find it unchanged.
struct Request {
    Verb verb;
    std::string key;
    Token token;
    Millis ttl;        ///< of the lease
    Deadline deadline; ///< when we stop waiting for the answer, on the backend's clock

    /// Acquire: how long it may be kept waiting for its turn before the answer is no. Above zero, a no says what time the
    /// holder has left.
    Millis patience{0};

    /// Acquire: while it's waiting, how often to look whether the key is still held, and the place still there.
    Millis recheck{500};

    /// By when there must be a sign of life: a place that lets us wait says first that it does.
    Deadline first_answer(TimePoint now) const noexcept {
        if (patience <= Millis::zero()) return deadline;
        return deadline.by(later(now, 2 * recheck));
    }

    /// Of a release: false writes it and waits for nothing. The answer is then an unknown without a reason.
    bool wants_answer = true;

    /// Of a release to a majority: who may have the key. The others are asked too if an answer is wanted, but for those known to be
    /// silent.
    Nodes nodes = all_nodes;

    /// Of an acquire or an extension: how many replicas must have it by half of the time left, and `recheck`. If fewer have, a
    /// grant is undone, and an extension unknown.
    unsigned replicas = 0;

    /// Acquire: the grant is to be numbered, see Answer::fence; and to which part the time in that number is rounded down, for
    /// several places to come to the same number.
    bool fenced = false;
    std::chrono::microseconds fence_step{1};

    /// Extend: numbers from now on are to be greater than this one.
    std::uint64_t fence = 0;
};

/// What a backend says to a Request.
/// *No* is certain: nothing was done, and `why` says for what reason (busy, expired, stolen, a server's refusal, no
/// connection). After an *unknown* acquire the backend has sent an undo behind it wherever it still could.
struct Answer {
    Verdict verdict;
    Failure why{};
    std::optional<Millis> holder_left{}; ///< acquire: what the holder had left when he was last seen, if that is known
    bool queued = false;     ///< acquire: it stood in line for its turn, so that to ask again at once is right
    std::uint64_t fence = 0; ///< acquire, if it was to be numbered: greater than that of all earlier grants of the key
    Nodes nodes = all_nodes; ///< acquire: who has the key now, or may have it yet
    bool was_held = false;   ///< acquire: it waited, and saw that somebody had the key. Also beside an unknown

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

    /// Time or a new connection may mend it, so that asking once more makes sense. (An unconfirmed release has nothing to mend.)
    bool is_trouble() const noexcept {
        if (verdict != Verdict::no || why.code.category() != category()) return verdict == Verdict::unknown && why;
        switch (static_cast<Errc>(why.code.value())) {
        case Errc::unreachable:
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
/// A request that is under way, and who is told its answer. Shared by all connections over which it is put, for an answer may come
/// when nobody waits for it any more.
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

    /// As what an exchange holds; it must not outlive this.
    std::shared_ptr<Question> shared() noexcept { return {std::shared_ptr<void>{}, this}; }
};
} // namespace detail

/// What became of a lease when it was to be extended or released.
enum class Outcome {
    confirmed, ///< the server did it, and the key had been ours until then
    expired,   ///< too late: the lease had ended
    stolen,    ///< too late: the key holds another's token
    unknown,   ///< nobody said, or the server refused; a key that is left behind goes when its ttl has run out
    not_held,  ///< there was no lease; an unlock() undoes what an attempt may have left behind
};

using Unlocked = Outcome;

/// The name of the enumerator.
constexpr std::string_view to_string(Outcome outcome) noexcept {
    switch (outcome) {
    case Outcome::confirmed: return "confirmed";
    case Outcome::expired: return "expired";
    case Outcome::stolen: return "stolen";
    case Outcome::unknown: return "unknown";
    case Outcome::not_held: return "not_held";
    }
    return "(no outcome)";
}

struct Observer;

/// The part of a lease that can't be relied upon: `drift` of it, and 2 ms for the server's and our own rounding.
inline Millis allowance(Millis lease, double drift) noexcept {
    const std::chrono::duration<double, std::milli> part{static_cast<double>(lease.count()) * drift};
    return std::chrono::ceil<Millis>(part) + Millis{2};
}

/// How a lock behaves. An aggregate, for designated initialisers: `{.ttl = 30s, .confirm_release = false}`.
struct Options {
    static constexpr Millis shortest_ttl{10};
    static constexpr Millis longest_ttl{std::chrono::hours{24}};

    /// How long the server keeps the key for us: 10 ms to 24 h. It bounds how long a dead holder blocks the others.
    Millis ttl{10'000};

    /// Whether the lease is renewed in the background, every third of its usable part, until the lock is unlocked.
    bool renew = true;

    /// For how long a lease is renewed at most, from its asking; then lost() is requested, and the lease ends by itself. Not
    /// set: for as long as the lock is held. At least 1 ms.
    std::optional<Millis> max_hold{};

    /// How long one question may stay unanswered, and how long trouble with the server may last once it is noticed,
    /// before that is an error. At least 1 ms, and less than the usable lease. Not set: a third of that, 1 s at most.
    std::optional<Millis> answer_timeout{};

    /// The part of a ttl, 0 to 0.5, by which the clocks of client and server may differ while a lease lasts.
    double drift = 0.01;

    /// Where a waiter can't stand in line for its turn, it asks again and again: the longest pause between two attempts,
    /// 1 ms to 1 h. Pauses are random, to scatter the waiters.
    Millis longest_pause{50};

    /// False: the destructor writes the release and does not wait for its answer. Faster; but if the server or the
    /// connection fails just then, nobody learns that the key stays until its ttl has run out.
    bool confirm_release = true;

    /// Whether each grant is numbered, for RedisLock::fence(). A lock that is free costs a script instead of a SET then.
    bool fenced = false;

    /// How many replicas of the server must have a grant, and each extension of it, before it counts (WAIT): 0 to 100. A
    /// grant that too few have in time is undone, and is Errc::no_replicas when the answer time-out is over.
    unsigned min_replicas = 0;

    /// Whom to tell what becomes of the lock; static, as a rule: see observer.hpp.
    const Observer* observer = nullptr;

    /// What can be relied upon of a lease of `ttl`.
    Millis usable() const noexcept { return ttl - allowance(ttl, drift); }
    Millis answers_within() const noexcept { return answer_timeout.value_or(std::min(usable() / 3, Millis{1'000})); }

    /// How often a waiter looks whether the key is still held, and the server still there: half the answer time-out, but
    /// not more often than is any good.
    Millis recheck() const noexcept { return std::max(answers_within() / 2, std::min(ttl / 2, Millis{10})); }
};

/// Who has a key, as inspect() tells it.
struct Holder {
    static constexpr std::size_t longest_value = 1024;

    std::string value; ///< what the key holds, cut to `longest_value` bytes; binary, and empty if it is no string
    std::optional<Millis> remaining; ///< until the key goes by itself; nothing: it does not

    /// The proof of ownership, if the value can be one: for force_unlock(), or to be compared with a lock's own.
    std::optional<Token> token() const noexcept { return Token::from_hex(value); }
};

namespace detail {
inline std::string in_ms(Millis value) { return std::to_string(value.count()) + " ms"; }

/// What is out of bounds is refused, never repaired, and the message names the value and the bound.
[[noreturn]] inline void refuse(const char* what, const std::string& value, const std::string& allowed) {
    raise({Errc::bad_option, std::string{what} + " is " + value + ", allowed is " + allowed});
}

inline void check_ttl(Millis ttl) {
    if (ttl < Options::shortest_ttl || ttl > Options::longest_ttl)
        refuse("ttl", in_ms(ttl), in_ms(Options::shortest_ttl) + " to " + in_ms(Options::longest_ttl));
}

inline void check(const Options& options) {
    check_ttl(options.ttl);
    if (!(options.drift >= 0 && options.drift <= 0.5)) refuse("drift", std::to_string(options.drift), "0 to 0.5");
    if (options.answers_within() < Millis{1} || options.answers_within() >= options.usable())
        refuse("answer_timeout", in_ms(options.answers_within()),
               "1 ms to less than " + in_ms(options.usable()) + ", the usable part of the ttl of " +
                   in_ms(options.ttl));
    if (options.max_hold && *options.max_hold < Millis{1}) refuse("max_hold", in_ms(*options.max_hold), "1 ms or more");
    if (options.min_replicas > 100) refuse("min_replicas", std::to_string(options.min_replicas), "0 to 100");
    if (options.longest_pause < Millis{1} || options.longest_pause > std::chrono::hours{1})
        refuse("longest_pause", in_ms(options.longest_pause), "1 ms to 3600000 ms");
}

inline constexpr std::size_t longest_key = 512;

inline void check_key(std::string_view key) {
    if (key.empty() || key.size() > longest_key)
        raise({Errc::bad_key, "the key has " + std::to_string(key.size()) + " bytes, allowed are 1 to " +
                                  std::to_string(longest_key)});
}
} // namespace detail

} // namespace redislock
