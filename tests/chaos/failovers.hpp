/// Failovers of a service that sentinels watch over, one after another. For some 8 s after each there are not all
/// replicas, until the sentinels have made one of the old primary.
#pragma once

#include "../support/sentinels.hpp"
#include "log.hpp"

#include <random>

namespace chaos {

/// A failover is planned, or the primary stands still or is killed until a replica is promoted, and comes back. The
/// replicas may have been cut off before: then the one that is promoted has not received the last grants.
class Failovers {
public:
    Failovers(test::Service& service, std::uint64_t seed) : service_{service}, random_{seed} {}

    /// Goes on as far as that needs no waiting. Returns what has begun, or null.
    const char* act() {
        switch (state_) {
        case State::settling:
            if (!service_.is_settled()) break;
            due_ = now() + between(0, 5'000 * ms);
            state_ = State::settled;
            break;
        case State::settled: return now() < due_ ? nullptr : begin();
        case State::cut_off:
            if (now() < due_) break;
            kills_ ? before_->kill() : before_->stop();
            promote();
            break;
        case State::promoting: {
            const test::RedisServer* const primary = service_.primary();
            if ((primary == nullptr || primary == before_) && now() < due_) break;
            due_ = now() + between(0, 300 * ms); // for as long the old primary is away yet
            state_ = State::returning;
            break;
        }
        case State::returning:
            if (now() >= due_) come_back();
        }
        return nullptr;
    }

    /// All servers are back, and agree.
    void heal() {
        if (before_ != nullptr) come_back();
        service_.settle();
    }

private:
    static constexpr Time ms = 1'000'000;

    enum class State { settling, settled, cut_off, promoting, returning };

    Time between(Time least, Time most) { return std::uniform_int_distribution<Time>{least, most}(random_); }

    const char* begin() {
        before_ = service_.primary();
        const Time kind = between(1, 4);
        if (before_ == nullptr || (kind == 1 && !service_.begin_failover())) return nullptr;
        kills_ = kind == 2;
        due_ = now();
        if (kind == 1) {
            promote();
            return "failover planned";
        }
        state_ = State::cut_off;
        if (between(0, 2) > 0) {
            cut_off_replicas();
            due_ += between(20 * ms, 300 * ms);
        }
        return kills_ ? "primary killed" : "primary stopped";
    }

    /// One that is called off by the sentinels, as it may be, is not waited for.
    void promote() {
        due_ = now() + 20'000 * ms;
        state_ = State::promoting;
    }

    void cut_off_replicas() {
        for (std::size_t n = 0; n < service_.servers(); ++n)
            if (test::RedisServer& server = service_.server(n); &server != before_)
                server.command({"REPLICAOF", "127.0.0.1", "1"});
    }

    void come_back() {
        before_->go_on();
        before_->start(); // which does nothing where it runs
        state_ = State::settling;
    }

    test::Service& service_;
    std::mt19937_64 random_;
    State state_ = State::settling;
    test::RedisServer* before_ = nullptr; ///< the primary until then
    bool kills_ = false;
    Time due_ = 0;
};

} // namespace chaos
