/// How a connection to a server comes about: its address is found, it is connected to, secured, and we introduce
/// ourselves. It never waits, and knows nothing of what is asked then. tests/session_test.cpp, tests/locator_test.cpp
/// and tests/tls_test.cpp go red if it is wrong.
#pragma once

#include "../system/wait.hpp"
#include "connect_plan.hpp"
#include "server.hpp"

namespace redislock::detail {

/// Not thread-safe.
///
/// | phase                           | event                                                  | next                 |
/// |---------------------------------|--------------------------------------------------------|----------------------|
/// | closed                          | begin()                                                | locating, connecting |
/// | locating                        | the server's addresses are looked up, or time is short | connecting           |
/// | connecting                      | connected                                              | securing, handshake  |
/// | securing                        | TLS is agreed upon                                     | handshake            |
/// | connecting, securing, handshake | failed, or its time is up: the plan goes on            | locating, connecting |
/// | handshake                       | all replies of the handshake have come                 | ready                |
/// | any                             | close()                                                | closed               |
class Connector {
public:
    enum class Phase { closed, locating, connecting, securing, handshake, ready };

    Connector(const Server& server, Connection& connection) noexcept
        : server_{server}, plan_{server.locator}, connection_{connection} {}

    Phase phase() const noexcept { return phase_; }
    bool is_opening() const noexcept { return phase_ != Phase::closed && phase_ != Phase::ready; }

    /// For an answer that is due by then. False: there is no address to connect to; see failure().
    bool begin(TimePoint now, TimePoint due) { return take(plan_.begin(now, due)); }

    /// Goes on as far as that needs no waiting. False: no address is left to be tried.
    bool advance(TimePoint now, TimePoint due) {
        if (phase_ == Phase::connecting && detail::wait(connection_.fd(), POLLOUT, TimePoint{}) &&
            connection_.finish_open(plan_.endpoint()))
            has_connected();
        if (phase_ == Phase::securing && connection_.finish_handshake()) phase_ = Phase::handshake;
        if (phase_ == Phase::handshake && connection_.flush(hello_) && is_introduced()) phase_ = Phase::ready;
        while (is_opening() && is_step_over(now))
            if (!take(plan_.next(now, due))) return false;
        return true;
    }

    /// When the present address has had its time.
    TimePoint until() const noexcept { return plan_.until(); }

    /// What is to be polled for while it is opening.
    pollfd entry() const noexcept {
        if (phase_ == Phase::locating) return {plan_.fd(), POLLIN, 0};
        const bool sends = phase_ == Phase::connecting || (phase_ == Phase::handshake && !hello_.empty());
        return {connection_.fd(), static_cast<short>(sends || connection_.wants_to_write() ? POLLIN | POLLOUT : POLLIN),
                0};
    }

    /// Why no connection has come about.
    Failure failure() const {
        if (phase_ != Phase::locating && phase_ != Phase::closed) return why_not(connection_);
        return plan_.failure() ? plan_.failure() : Failure{Errc::unresolved, {}};
    }

    /// What has not come in time.
    Failure overdue() const {
        const auto at_address = [this](const std::string& what) {
            return Failure{Errc::unreachable, plan_.endpoint().text + ": " + what};
        };
        switch (phase_) {
        case Phase::locating: return server_.locator.pending();
        case Phase::connecting: return at_address(std::system_category().message(ETIMEDOUT));
        case Phase::securing:
            return at_address("no answer to the TLS handshake: the server is stuck, or the port is not for TLS");
        default: return {Errc::timed_out, "waiting for a reply"};
        }
    }

    /// Of the handshake, what is still to be sent; and whether it has the client's name.
    const std::string& unsent() const noexcept { return hello_; }
    bool names_itself() const noexcept { return names_itself_; }

    /// Whether it leads to one that was the primary, and is not any more.
    bool has_moved() const { return phase_ >= Phase::connecting && plan_.has_moved(); }

    /// Nothing is to be acquired before: see RedisOptions::restart_delay.
    TimePoint grants_from() const noexcept { return grants_from_; }

    /// What it has led to has failed: the server may be elsewhere by now.
    void doubt() { plan_.has_failed(); }

    void close() noexcept {
        connection_.close();
        phase_ = Phase::closed;
        grants_from_ = {};
    }

private:
    bool take(ConnectPlan::Step step) {
        // Where there is nothing else to be tried, a slow one has the time that is left.
        if (step == ConnectPlan::Step::over) return phase_ >= Phase::connecting && connection_.good();
        phase_ = Phase::closed; // what throws leaves it so
        connection_ = {};
        replies_heard_ = 0;
        if (step == ConnectPlan::Step::look_up) {
            phase_ = Phase::locating;
            return true;
        }
        names_itself_ = plan_.location().handshake.has_name() && !server_.refuses_names;
        hello_ = plan_.location().handshake.bytes(names_itself_);
        phase_ = Phase::connecting;
        connection_.begin_open(plan_.endpoint());
        return true;
    }

    bool is_step_over(TimePoint now) const noexcept {
        return now >= plan_.until() || (phase_ == Phase::locating ? plan_.is_looked_up() : !connection_.good());
    }

    void has_connected() try {
        if (server_.tls) connection_.begin_handshake(*server_.tls, plan_.location().host); // which may throw
        phase_ = server_.tls ? Phase::securing : Phase::handshake;
    } catch (const std::system_error& error) { // in a forked child, a file that is not there any more
        connection_.refuse(failure_of(error));
    }

    /// Where there is no memory the connection is closed: a reply may have been read and not judged.
    bool is_introduced() try {
        const Handshake& handshake = plan_.location().handshake;
        grants_from_ = plan_.location().grants_from;
        for (; replies_heard_ < handshake.awaited(); ++replies_heard_) {
            const Reply* reply = connection_.read_some();
            if (reply == nullptr) return false;
            Failure objection = handshake.objection(replies_heard_, *reply);
            if (!objection && !server_.locator.is_service())
                objection = server_.is_another(handshake.run_id(replies_heard_, *reply), detail::now());
            if (objection) {
                connection_.refuse(objection);
                return false;
            }
            // Counted from now on, and not from when it was said.
            if (const auto cool_down = handshake.cool_down(replies_heard_, *reply); cool_down > Millis::zero())
                grants_from_ = std::max(grants_from_, later(detail::now(), *cool_down));
        }
        if (names_itself_) connection_.owe_reply();
        return true;
    } catch (...) {
        connection_.close();
        throw;
    }

    const Server& server_;
    ConnectPlan plan_;
    Connection& connection_;
    Phase phase_ = Phase::closed;
    std::size_t replies_heard_ = 0;
    TimePoint grants_from_{};
    bool names_itself_ = false;
    std::string hello_;
};

} // namespace redislock::detail
