/// What may befall a request to a simulated server, and what befalls the next one. tests/memory_test.cpp goes red if it
/// is wrong.
#pragma once

#include "request.hpp"

#include <deque>
#include <optional>

namespace redislock {

/// What may befall a request on its way to a Memory and back. What else can be made to happen there, and what a lock
/// makes of it:
///
/// | what happens                          | how                                          | what a lock does         |
/// |---------------------------------------|----------------------------------------------|--------------------------|
/// | the server is silent                  | `set_fault(Fault::request_lost)`             | `timed_out`; is lost     |
/// | it acts, and its answers are lost     | `set_fault(Fault::reply_lost)`               | the same, and undoes it  |
/// | a connection breaks, once             | `inject(Fault::reset_before)`, `reset_after` | asks again               |
/// | the network is slow; a request late   | `set_latency(20ms)`; `delay_next(5s)`        | waits for it, in time    |
/// | the server is down, or can't serve    | `refuse(Errc::unreachable)`, `loading`, ...  | asks again; that error   |
/// | it refuses us                         | `refuse(Errc::auth_failed)`, ...             | that error, at once      |
/// | replicas are missing                  | `set_replicas(0)`                            | `no_replicas`, if wanted |
/// | somebody deletes the key              | `erase(key)`                                 | is lost: `deleted`       |
/// | somebody else has it, or takes it     | `put(key, value, ttl)`                       | waits; is lost: `stolen` |
enum class Fault {
    none,
    request_lost, ///< it never arrives, and nobody answers
    reply_lost,   ///< it is carried out, and nobody answers
    reset_before, ///< the connection breaks before it is carried out
    reset_after,  ///< the connection breaks after it is carried out
};

namespace detail {

/// Not thread-safe.
struct Faults {
    std::deque<Fault> once{};
    Fault lasting = Fault::none;
    std::optional<Answer> refusal{}; ///< none: the server serves

    Fault next() {
        if (once.empty()) return lasting;
        const Fault fault = once.front();
        once.pop_front();
        return fault;
    }

    /// Whether it does not arrive.
    static bool is_lost(Fault fault) noexcept { return fault == Fault::request_lost || fault == Fault::reset_before; }
};

} // namespace detail
} // namespace redislock
