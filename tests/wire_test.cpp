// A connection that breaks, lies or dribbles at each byte of each question and answer, or stalls, is late or loses
// something between any two of them: whatever is reported is true, or unknown; nobody waits beyond his time, or for
// himself; and the next one gets the lock.
#include "catch.hpp"
#include "proxy.hpp"
#include "troubles.hpp"

#include <redislock/redislock.hpp>

#include <cstdio>
#include <functional>
#include <set>

using namespace redislock;
using namespace std::chrono_literals;
using detail::now;
using test::open_descriptors;
using test::Proxy;
using Strike = Proxy::Fault;
using Kind = Strike::Kind;
using Way = Proxy::Way;

namespace {

// The sanitizers' turn is the library's memory, not each byte: they are ten times as slow.
constexpr std::size_t coarse = 11;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool is_sanitized = true;
#else
constexpr bool is_sanitized = false;
#endif

/// Over TLS a fault strikes a record. Its receiver notices whatever is not as it was sent, and ends the connection: so
/// nothing corrupt, and nothing that comes twice, can be believed by either side, and such a fault must come out as any
/// other break. Its position does not tell which question or answer it strikes, for signatures, and so handshakes, are
/// some bytes longer or shorter each time; no assertion rests on that.
bool is_tls() { return test::RedisServer::is_tls(); }

/// A case over TLS has a handshake of its own, and its length. The bytes within a record are all alike to its receiver:
/// what else there is in it is covered by its first and last ones.
std::size_t stride() {
    constexpr std::size_t sample = 97;
    if (is_tls()) return sample;
    return is_sanitized ? coarse : 1;
}

constexpr Millis enough{5'000}; // for whatever is not held up
constexpr Options plain{.ttl = 20s, .renew = false, .request_timeout = 25ms};
constexpr Options numbered{.ttl = 20s, .renew = false, .request_timeout = 25ms, .fencing = true};
constexpr Millis delay{3}, ample{2'000}; // what comes so late is in time for him who has ample time

bool within(Millis limit, const std::function<bool()>& is_so) {
    for (const TimePoint end = now() + limit; now() < end;)
        if (is_so()) return true;
    return false;
}

/// In the short time that one of its questions has a busy machine may fail: not in many.
template <class Lock>
bool gets(Lock& lock) {
    return within(enough, [&] {
        if (!lock.owns_lock()) test::failure([&] { return lock.try_lock(); });
        return lock.owns_lock();
    });
}

/// A server with a proxy before it, and how its own key is, which is the truth.
struct Node {
    test::RedisServer server;
    Proxy proxy{server};

    Node() {
        server.command({"ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all"});
        server.command({"SELECT", "1"});
    }
    std::string uri() const { return proxy.uri("u:secret@") + "/1"; }
    std::string holder(const std::string& key) { return server.text({"GET", key}); }
    Millis left(const std::string& key) { return Millis{server.integer({"PTTL", key})}; }
};

template <class Place>
struct Wire;

/// One server.
template <>
struct Wire<Redis> {
    std::deque<Node> nodes{1};
    Node& node = nodes.front();
    std::vector<Node*> faulty{&node};

    Redis connect() { return Redis{node.uri()}; }
    void disconnect() {}
    bool holds(const std::string& key, const Token& token) { return node.holder(key) == token.hex(); }
    bool is_free(const std::string& key) { return node.holder(key).empty(); }
    Millis left(const std::string& key) { return node.left(key); }
};

/// Three, of which the first `faulty` have the fault.
template <>
struct Wire<Quorum<Redis>> {
    explicit Wire(std::size_t faulty_ones) {
        for (Node& node : nodes)
            if (faulty.size() < faulty_ones) faulty.push_back(&node);
    }
    std::deque<Node> nodes{3};
    std::deque<Redis> redis;
    std::vector<Node*> faulty;

    Quorum<Redis> connect() {
        for (Node& node : nodes) redis.emplace_back(node.uri());
        return Quorum<Redis>{redis[0], redis[1], redis[2]};
    }
    void disconnect() { redis.clear(); }
    bool holds(const std::string& key, const Token& token) {
        return std::count_if(nodes.begin(), nodes.end(), [&](Node& one) { return one.holder(key) == token.hex(); }) > 1;
    }
    bool is_free(const std::string& key) {
        return std::count_if(nodes.begin(), nodes.end(), [&](Node& one) { return one.holder(key).empty(); }) > 1;
    }
    Millis left(const std::string& key) {
        std::vector<Millis> all;
        for (Node& node : nodes) all.push_back(node.left(key));
        std::sort(all.begin(), all.end());
        return all[1];
    }
};

/// One operation, with a fault at one byte of it after another.
template <class Place>
class Sweep {
public:
    using Lock = RedisLock<Place>;

    explicit Sweep(Wire<Place>& wire) : wire_{wire}, descriptors_{open_descriptors()} {}

    /// `prepare` runs before the fault is set, and `work` on the lock while it is there. With `cold`, connections are
    /// made in the work. What breaks breaks at each `step`th byte.
    void run(const char* name, const Options& options, bool cold, const std::function<void(Lock&)>& prepare,
             const std::function<void(Place&, Lock&)>& work, std::size_t step = stride()) {
        std::vector<std::size_t> boundaries[2]; // between messages, by the way
        std::size_t cases = 0;
        longest_ = {};
        const auto once = [&](const Case& what) {
            case_ = what;
            options_ = options;
            if (case_.is_harmless()) options_.request_timeout = ample;
            char key[16];
            std::snprintf(key, sizeof key, "k%06u",
                          ++keys_); // each as long as the others, so that bytes are where they were
            wire_.disconnect();
            Place place = wire_.connect();
            if (!cold) warm_up(place);
            Lock lock{place, key, options_, std::defer_lock};
            prepare(lock);
            for (Node* node : wire_.faulty) case_.strike ? node->proxy.strike_at(*case_.strike) : node->proxy.record();
            const TimePoint start = now();
            work(place, lock);
            const TimePoint::duration took = now() - start;
            if (!case_.strike) {
                detail::wait(-1, 0, now() + 20ms); // what was written without waiting for an answer is on its way
                const Proxy& proxy = wire_.faulty.front()->proxy;
                for (const Way way : {Way::up, Way::down}) boundaries[static_cast<int>(way)] = proxy.boundaries(way);
            }
            CHECK(took < enough);
            longest_ = std::max(longest_, took);
            bool has_struck = false;
            for (Node* node : wire_.faulty)
                has_struck |= case_.is_held ? node->proxy.lift_when_asked() : node->proxy.lift();
            cases += case_.strike && has_struck;
            // What could not be undone in time is, as promised, undone before the lock's own next question.
            const bool may_stay = std::exchange(may_stay_, false);
            if (!may_stay && !lock.key().empty()) CHECK(gets(lock));
            const bool is_free = lock.unlock() != Outcome::unknown; // on a busy machine its time-out may be too short
            if (case_.is_between) { // what is late, or lost, does not put the next answers out of step
                Lock other{place, std::string{"other "} + key, {.ttl = 20s, .renew = false}, std::defer_lock};
                CHECK(other.try_lock_for(enough));
                CHECK((case_.lies() || wire_.holds(std::string{other.key()}, other.token())));
            }
            Lock next{place, key, {.ttl = 20s, .renew = false}, std::defer_lock};
            if (!may_stay) CHECK(next.try_lock_for(is_free ? enough : options.ttl + enough));
            for (Node& node : wire_.nodes) node.proxy.lift(); // what is held back yet
        };
        const auto positions = [step](const std::vector<std::size_t>& messages) {
            std::set<std::size_t> all;
            for (std::size_t at = 0; at < messages.back(); at += step) all.insert(at);
            if (is_tls() && step == stride())
                for (auto record = messages.begin(); record + 1 != messages.end(); ++record)
                    for (const std::size_t at : {*record, *record + 4, record[1] - 1}) all.insert(at);
            return all;
        };
        const auto strike = [&](Kind kind, Way way, std::size_t at, bool is_between = false, bool is_held = false) {
            INFO(name << ", fault " << static_cast<int>(kind) << (is_held ? ", held," : "") << " at byte " << at
                      << " of " << boundaries[static_cast<int>(way)].back() << (way == Way::up ? " up" : " down"));
            once({Strike{kind, way, at, delay}, is_between, is_held});
        };
        once({});
        for (const Way way : {Way::up, Way::down}) {
            const std::vector<std::size_t> messages = boundaries[static_cast<int>(way)];
            const std::size_t length = messages.back();
            for (const Kind kind :
                 {Kind::reset, Kind::finish, Kind::stall, Kind::dribble, Kind::corrupt, Kind::replay}) {
                // What the server is asked is no news to it, unless it is told by TLS.
                if (kind >= Kind::corrupt && way == Way::up && !is_tls()) continue;
                if (kind == Kind::reset || kind == Kind::finish || kind == Kind::corrupt)
                    for (const std::size_t at : positions(messages)) strike(kind, way, at);
                else
                    for (std::size_t at = 0; at < length; at += std::max<std::size_t>(length / 3, 1))
                        strike(kind, way, at);
            }
            for (auto message = messages.begin(); *message < length; ++message) {
                for (const Kind kind : {Kind::stall, Kind::delay, Kind::swallow}) strike(kind, way, *message, true);
                strike(Kind::stall, way, *message, true, true);
                if (way == Way::down || is_tls()) strike(Kind::replay, way, *message, true);
            }
        }
        wire_.disconnect();
        CHECK(within(enough, [&] { return open_descriptors() <= descriptors_; }));
        if (memory_ == 0) memory_ = test::memory_in_kib(); // by now all that is kept for later has been made
        if (!is_sanitized) CHECK(test::memory_in_kib() < memory_ + 1024); // a sanitizer keeps what is freed
        std::printf("%-28s %4zu bytes up, %3zu down: %5zu cases, the longest took %4.0f ms\n", name,
                    boundaries[0].back(), boundaries[1].back(), cases,
                    std::chrono::duration<double, std::milli>{longest_}.count());
    }

    /// What the lock says, against what the server has. A server that lies is believed, or not; and where nothing is
    /// but late, all is as it would be.
    void judge_held(const Lock& lock, const Failure& failure) {
        if (case_.lies()) return;
        if (case_.is_harmless()) CHECK(lock.owns_lock());
        // Nobody else has it; but of a majority a vote that is just being taken back may be in our own way.
        if (std::is_same_v<Place, Redis>) CHECK((lock.owns_lock() || failure));
        if (!lock.owns_lock()) return;
        CHECK(wire_.holds(std::string{lock.key()}, lock.token()));
        const auto left = wire_.left(std::string{lock.key()}); // before the other: both shrink
        CHECK(left >= lock.remaining());
    }
    void judge_released(const std::string& key, Outcome outcome) {
        may_stay_ = outcome == Outcome::unknown || case_.lies();
        if (case_.lies()) return;
        if (case_.is_harmless()) CHECK(outcome == Outcome::confirmed);
        if (outcome == Outcome::confirmed)
            CHECK(wire_.is_free(key));
        else
            CHECK(outcome == Outcome::unknown);
    }
    void judge_extended(const Lock& lock, Outcome outcome, Millis to) {
        if (case_.lies()) return;
        if (case_.is_harmless()) CHECK(outcome == Outcome::confirmed);
        if (outcome == Outcome::confirmed) CHECK(wire_.left(std::string{lock.key()}) > to - 10s);
        CHECK((outcome == Outcome::confirmed || outcome == Outcome::unknown));
        CHECK(lock.owns_lock());
    }

    void judge_destroyed(const std::string& key) {
        may_stay_ = !case_.is_harmless();
        if (!may_stay_) CHECK(within(enough, [&] { return wire_.is_free(key); }));
    }

    void may_stay() { may_stay_ = true; }
    bool lies() const { return case_.lies(); }
    bool is_harmless() const { return case_.is_harmless(); }
    const Options& options() const { return options_; }

private:
    struct Case {
        std::optional<Strike> strike{};
        bool is_between = false; ///< it is at the beginning of a message
        bool is_held = false;    ///< what was stalled passes as the next operation is under way
        bool lies() const {
            return strike && !is_tls() && (strike->kind == Kind::corrupt || strike->kind == Kind::replay);
        }
        bool is_harmless() const { return !strike || strike->kind == Kind::delay; }
    };

    void warm_up(Place& place) {
        Lock lock{place, "warm" + std::to_string(keys_), {.ttl = 20s, .renew = false, .fencing = options_.fencing}};
        static_cast<void>(lock.extend(20s)); // with the time-out that is usual: a busy machine is no fault
    }

    Wire<Place>& wire_;
    const std::size_t descriptors_;
    std::size_t memory_ = 0;
    unsigned keys_ = 0;
    Case case_;
    Options options_;
    bool may_stay_ = false;
    TimePoint::duration longest_{};
};

/// What can be done with any place.
template <class Place>
void sweep_all(Wire<Place>& wire) {
    using Lock = RedisLock<Place>;
    Sweep<Place> sweep{wire};
    const auto nothing = [](Lock&) {};
    const auto lock_it = [](Lock& lock) { REQUIRE(gets(lock)); };
    const auto try_it = [&](Place&, Lock& lock) { // nobody else is there whom it could be held by
        const Failure why = test::failure([&] { return lock.try_lock(); });
        sweep.judge_held(lock, why);
    };
    const auto unlock_it = [&](Place&, Lock& lock) { sweep.judge_released(std::string{lock.key()}, lock.unlock()); };
    const auto destroy_it = [&](Place&, Lock& lock) {
        const std::string key{lock.key()};
        { const Lock gone{std::move(lock)}; }
        sweep.judge_destroyed(key);
    };
    const auto leave_in_doubt = [&](Lock& lock) {
        for (Node& node : wire.nodes) node.proxy.strike_at({Kind::stall, Way::down, 0});
        const auto why = test::failure([&] { return lock.try_lock_for(25ms); }).code;
        CHECK((why == Errc::timed_out || why == Errc::unreachable)); // where TLS had to be agreed upon anew
    };
    Options unconfirmed = plain;
    unconfirmed.confirm_release = false;
    sweep.run("connect and lock", plain, true, nothing, try_it);
    sweep.run("lock", plain, false, nothing, try_it);
    sweep.run("connect and lock, numbered", numbered, true, nothing, try_it);
    sweep.run("lock, numbered", numbered, false, nothing, try_it);
    sweep.run("undo and lock", plain, false, leave_in_doubt, try_it,
              std::max(coarse, 4 * stride())); // what else there is in it is above
    sweep.run("extend", plain, false, lock_it, [&](Place&, Lock& lock) {
        const Outcome outcome = lock.extend(60s);
        sweep.judge_extended(lock, outcome, 60s);
    });
    sweep.run("unlock", plain, false, lock_it, unlock_it);
    sweep.run("unlock by the destructor", plain, false, lock_it, destroy_it);
    sweep.run("unlock, unconfirmed", unconfirmed, false, lock_it, destroy_it);
    sweep.run("adopt", plain, false, lock_it, [&](Place& place, Lock& lock) {
        const std::string key{lock.key()};
        const Token token = lock.detach();
        const Failure why = test::failure([&] { lock = Lock{place, key, sweep.options(), std::adopt_lock, token}; });
        if (why) sweep.may_stay(); // it is the giver's yet
        sweep.judge_held(lock, why);
    });
    sweep.run("inspect", plain, false, lock_it, [&](Place& place, Lock& lock) {
        std::optional<Holder> holder;
        const Failure why =
            test::failure([&] { return holder = inspect(place, lock.key(), sweep.options().request_timeout.value()); });
        if (sweep.is_harmless()) CHECK(!why);
        if (!sweep.lies() && !why) CHECK((holder && holder->token() == lock.token()));
    });
    sweep.run("force_unlock", plain, false, lock_it, [&](Place& place, Lock& lock) {
        const std::string key{lock.key()};
        sweep.judge_released(key, force_unlock(place, key, lock.detach(), sweep.options().request_timeout.value()));
    });
}

} // namespace

TEST_CASE("whatever breaks at whatever byte between us and a server, what is reported is true or unknown",
          "[redis][wire]") {
    Wire<Redis> wire;
    sweep_all(wire);
}

TEST_CASE("whatever breaks at whatever byte while a turn is waited for, it is had, or the next one has it",
          "[redis][wire]") {
    Wire<Redis> wire;
    Redis direct{wire.node.server.unix_uri(1)};
    std::optional<RedisLock<Redis>> holder{RedisLock{direct, "first"}};
    Sweep<Redis> sweep{wire};
    const auto hold = [&](RedisLock<Redis>& lock) {
        holder.emplace(direct, lock.key(), Options{.ttl = 20s, .renew = false});
    };
    sweep.run("wait in line", plain, false, hold, [&](Redis&, RedisLock<Redis>& lock) {
        std::jthread hands_over{[&] {
            within(15ms, [&] { return wire.node.server.blocked_clients() == 1; });
            holder->unlock();
        }};
        bool locked = false;
        const Failure why =
            test::failure([&] { return locked = lock.try_lock_for(sweep.is_harmless() ? ample : 500ms); });
        hands_over.join();
        if (locked || sweep.is_harmless()) sweep.judge_held(lock, why);
    });
}

TEST_CASE("whatever breaks at whatever byte between us and one of three servers, the majority has the say",
          "[redis][wire][quorum]") {
    Wire<Quorum<Redis>> wire{1};
    sweep_all(wire);
}

TEST_CASE("whatever breaks at whatever byte between us and all of three servers, what is reported is true or unknown",
          "[redis][wire][quorum]") {
    Wire<Quorum<Redis>> wire{3};
    sweep_all(wire);
}
