/// Where a server is, and who we are to it, as far as is known. What may take long, the look-up of a name, a question
/// to sentinels or a function of the user's, happens in a thread beside, and nobody waits for it beyond a deadline.
/// tests/locator_test.cpp and tests/sentinel_test.cpp go red if it is wrong.
#pragma once

#include "../../redis_options.hpp"
#include "../protocol/handshake.hpp"
#include "../system/per_process.hpp"
#include "../system/timers.hpp"
#include "endpoint.hpp"

namespace redislock::detail {

/// The server that sentinels name.
struct Primary {
    std::string host, port;
    TimePoint since{}; ///< it has been seen as the primary; or longer

    std::string text() const { return host + " " + port; }

    /// For how long after its promotion it may not know what the primary before it has granted. Those who watch the
    /// service hear of the promotion within a second or so, and use the old primary until then.
    static constexpr Millis cool_down(Millis restart_delay) noexcept {
        return restart_delay > Millis::zero() ? Handshake::cool_down(restart_delay) + Millis{2'000} : Millis{0};
    }
};

/// Asks the sentinels of a service. `is_in_doubt`: the primary that was named last is none, or can't be reached. May
/// block. Throws std::system_error.
using FindPrimary = std::function<Primary(bool is_in_doubt)>;

/// What it takes to connect.
struct Location {
    std::vector<Endpoint> endpoints{};
    Handshake handshake{Address{}, {}};
    std::string host{};      ///< as a certificate names it
    std::string primary{};   ///< of a service: its host and port, as sentinels name it
    TimePoint grants_from{}; ///< of a service: before, what the primary before it has granted may go on
};

/// A look-up in a thread of its own, which outlives whoever began it: a resolver can't be interrupted. Thread-safe.
class LookUp {
public:
    using Find = std::function<Location()>;

    /// Throws std::system_error where there is no thread, or no descriptor.
    static std::shared_ptr<const LookUp> begin(Find find) {
        const auto own = std::make_shared<LookUp>();
        System::Thread thread;
        thread.start([own, find = std::move(find), engine = System{}] { own->run(find, engine); });
        thread.detach();
        return own;
    }

    /// Can be read when it has ended.
    int fd() const noexcept { return ended_.fd(); }
    bool has_ended() const noexcept { return has_ended_.load(); }

    /// Once it has ended. Null: see failure().
    const std::shared_ptr<const Location>& found() const noexcept { return found_; }
    const Failure& failure() const noexcept { return failure_; }

private:
    void run(const Find& find, const System& engine) noexcept {
        engine.as_program([&] {
            try {
                found_ = std::make_shared<const Location>(find());
            } catch (const std::exception& error) {
                has_thrown(error);
            } catch (...) {
                failure_.code = Errc::unresolved;
            }
        });
        has_ended_ = true;
        ended_.set();
    }

    /// Whatever a user's function throws, what is told is that the server is not found, or not who we are.
    void has_thrown(const std::exception& error) noexcept try {
        failure_.code = Errc::unresolved;
        const auto* const own = dynamic_cast<const std::system_error*>(&error);
        failure_ = own != nullptr ? failure_of(*own) : Failure{Errc::unresolved, error.what()};
        for (const Errc known : {Errc::auth_failed, Errc::bad_uri, Errc::no_sentinel, Errc::no_service})
            if (failure_.code == known) return;
        failure_.code = Errc::unresolved;
    } catch (...) { // no memory for the sentence
    }

    Signal ended_{};
    std::atomic<bool> has_ended_{false};
    std::shared_ptr<const Location> found_{};
    Failure failure_{};
};

/// Thread-safe. A forked child looks up anew.
class Locator {
public:
    /// A socket, or a numeric address, without a function for credentials, is known at once, and never looked up. A
    /// service has a function that finds its primary.
    Locator(const Address& address, const RedisOptions& options, FindPrimary find_primary = {})
        : each_time_{static_cast<bool>(options.credentials)}, is_service_{!address.service.empty()} {
        std::vector<Endpoint> endpoints = is_service_ ? std::vector<Endpoint>{} : numeric_endpoints(address);
        find_primary_ = find_primary;
        if (endpoints.empty() || each_time_)
            find_ = [=](bool is_in_doubt) { return find(address, options, endpoints, find_primary, is_in_doubt); };
        else
            fixed_ = std::make_shared<const Location>(
                Location{std::move(endpoints), handshake_for(address, options), address.host});
    }
    explicit Locator(Location fixed) : fixed_{std::make_shared<const Location>(std::move(fixed))} {}

    bool may_change() const noexcept { return !fixed_; }

    /// What is being waited for while there is a look-up.
    Failure pending() const {
        if (each_time_) return {Errc::timed_out, "no answer from the function for credentials"};
        if (is_service_) return {Errc::no_sentinel, "no answer from the sentinels"};
        return {Errc::unresolved, "no answer from the resolver"};
    }

    /// Whether there are sentinels, who may name another primary at any time.
    bool is_service() const noexcept { return is_service_; }

    /// While leases of a service are held or awaited: asks the sentinels once a second, in a thread beside. Where they
    /// name another primary, no more is found out about it here: what may block for long must not hold up the news. One
    /// that was never found is the next connection's affair. Returns when to come back, which is later than `now`.
    TimePoint watch(TimePoint now) const {
        if (!is_service_) return TimePoint::max();
        return with_own([&](Own& own) {
            if (!own.known.location) return TimePoint::max();
            if (!own.look_up && now >= own.next_watch()) {
                own.begin(
                    [before = own.known.location, find_primary = find_primary_](bool is_in_doubt) {
                        const Primary primary = find_primary(is_in_doubt);
                        return before->primary == primary.text() ? *before : Location{.primary = primary.text()};
                    },
                    now);
                own.doubts_before = 0; // it settles none
            }
            return own.look_up ? later(now, Millis{20}) : own.next_watch();
        });
    }

    /// Whether sentinels were not asked of late.
    bool is_old(TimePoint now) const {
        return is_service_ && with_own([&](const Own& own) { return own.is_old(now); });
    }

    /// How often the sentinels have named another primary. Never of what is no service.
    unsigned moves() const {
        return is_service_ ? with_own([](const Own& own) { return own.moves; }) : 0U;
    }

    /// Whether they name another one now.
    bool has_moved(const Location& from) const {
        return is_service_ && with_own([&](const Own& own) {
                   return own.known.location && own.known.location->primary != from.primary;
               });
    }

    /// For a new connection.
    struct Known {
        std::shared_ptr<const Location> location{}; ///< null: there has been no look-up yet that found one
        std::shared_ptr<const LookUp> look_up{};    ///< to wait for, since the location is in doubt, or unknown
        Failure failure{};                          ///< of the last look-up
        TimePoint begun{};                          ///< when the look-up to wait for began
    };

    /// Begins a look-up where one is needed.
    Known ask(TimePoint now) const {
        if (fixed_) return {fixed_};
        return with_own([&](Own& own) -> Known {
            const bool is_wanted = own.doubts > 0 || !own.is_found() || each_time_ || (is_service_ && own.is_old(now));
            const bool is_due =
                is_wanted ? each_time_ || now >= later(own.begun, shortest_pause) : now >= later(own.begun, valid_for);
            if (is_due && !own.look_up) own.begin(find_, now);
            return {own.is_found() ? own.known.location : nullptr, is_wanted ? own.look_up : nullptr, own.known.failure,
                    own.begun};
        });
    }

    /// A connection has failed: the next one waits for a look-up.
    void doubt() const {
        if (!fixed_) with_own([](Own& own) { ++own.doubts; });
    }

private:
    static constexpr Millis shortest_pause{100}; ///< between two look-ups, where the first did not help
    static constexpr Millis valid_for{5'000};    ///< then it is looked up again, though nobody waits for that
    static constexpr Millis watched_every{1'000};
    using Find = std::function<Location(bool is_in_doubt)>;

    struct Own {
        Known known{};
        std::shared_ptr<const LookUp> look_up{}; ///< that is under way
        unsigned doubts = 0, doubts_before = 0;  ///< since the last look-up that found one began; and before this one
        TimePoint begun{}, known_at{};           ///< the last look-up, and the last that has ended
        TimePoint ended{};                       ///< when that was noticed
        unsigned moves = 0;                      ///< of a service, to another primary

        bool is_found() const noexcept { return known.location && !known.location->endpoints.empty(); }
        bool is_old(TimePoint now) const noexcept { return now >= known_at + 2 * watched_every; }

        TimePoint next_watch() const noexcept { return later(std::max(begun, ended), watched_every); }

        void take_result() {
            if (!look_up || !look_up->has_ended()) return;
            known_at = begun;
            ended = detail::now();
            known.failure = look_up->failure();
            if (look_up->found()) {
                moves += known.location && known.location->primary != look_up->found()->primary;
                known.location = look_up->found();
                if (known.location->endpoints.empty()) begun = {}; // the rest is found out at once
                doubts -= doubts_before; // what has failed since this one began may be another story
            }
            look_up = nullptr;
        }

        void begin(const Find& find, TimePoint now) try {
            begun = now;
            doubts_before = doubts;
            look_up = LookUp::begin([find, is_in_doubt = doubts > 0] { return find(is_in_doubt); });
        } catch (const std::system_error& error) {
            known.failure = failure_of(error);
        }
    };

    static Credentials ask_for(const std::function<Credentials()>& credentials) try {
        Credentials own = credentials();
        if (own.password.empty() && !own.user.empty()) throw std::invalid_argument{"a user without a password"};
        return own;
    } catch (const std::exception& error) {
        raise({Errc::auth_failed, std::string{"the function for credentials: "} + error.what()});
    }

    static Handshake handshake_for(const Address& address, const RedisOptions& options) {
        return {address, options.client_name, options.restart_delay};
    }

    /// May block for long.
    static Location find(Address address, const RedisOptions& options, std::vector<Endpoint> endpoints,
                         const FindPrimary& find_primary, bool is_in_doubt) {
        Primary primary;
        if (find_primary) {
            primary = find_primary(is_in_doubt);
            address.host = primary.host;
            address.port = primary.port;
        }
        if (endpoints.empty() && options.resolver) {
            for (const Address& one : options.resolver(address))
                for (Endpoint& endpoint : numeric_endpoints(one)) endpoints.push_back(std::move(endpoint));
            if (endpoints.empty())
                raise({Errc::unresolved, address.host + ": the resolver has found no numeric address"});
        } else if (endpoints.empty()) {
            endpoints = resolve(address);
        }
        if (options.credentials) {
            Credentials own = ask_for(options.credentials);
            address.user = std::move(own.user);
            address.password = std::move(own.password);
        }
        Location found{std::move(endpoints), handshake_for(address, options), address.host};
        if (!find_primary) return found;
        found.primary = primary.text();
        found.grants_from = primary.since + Primary::cool_down(options.restart_delay);
        return found;
    }

    /// With what has been found by now.
    template <class Use>
    std::invoke_result_t<Use, Own&> with_own(Use use) const {
        auto& [mutex, own] = own_.get();
        const std::lock_guard guard{mutex};
        own.take_result();
        return use(own);
    }

    const bool each_time_ = false, is_service_ = false;
    std::shared_ptr<const Location> fixed_{};
    FindPrimary find_primary_{};
    Find find_{};
    mutable PerProcess<Guarded<Own>> own_;
};

} // namespace redislock::detail
