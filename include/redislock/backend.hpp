/// The seam between a lock and the place where its lease is kept: what a type must offer to be locked with, and what
/// it must honour. It knows nothing of how a backend does it.
#pragma once

#include "detail/lease/worker_task.hpp"

#include <concepts>

namespace redislock {

/// A place where leases are kept: one server, a majority of servers, a map in memory. A model is thread-safe, outlives
/// its locks, and honours these sentences; tests/conformance.hpp checks them:
///
/// - `now()` is the clock of its deadlines: monotonic, running on while the machine sleeps.
/// - `fresh()` is a token that nobody has seen before.
/// - `pause(t)` blocks until `t`, or until it is stopped.
/// - `ask(r)` returns by `r.deadline`, whatever happens, but for scheduling; a *yes* was given by the place itself, a
///   *no* means that nothing was done, and all else is *unknown*.
/// - An acquire is granted at most once per token. A granted key lives for `r.ttl` from the moment the place acts, so
///   at least until `r.ttl` after it was asked.
/// - An acquire that has patience, and finds the key held, may stand in line: it is granted in order of arrival, when a
///   release of ours hands the key on, or soon after the key has gone otherwise. `queued` says whether it did.
/// - Where it says `static constexpr bool has_fencing_tokens = true`, an acquire with `fencing` that is granted has a
///   fencing token that is greater than those of all earlier grants of the key, and a question that wants replicas is
///   not *yes* before they have it.
/// - Where it has a `check_ttl(ttl)`, that throws for a lease that is too long for it.
/// - An extension never shortens, never re-creates, never takes over. A release deletes the token's own key alone.
/// - When an acquire ends *unknown* and its grant may still come, a release of the token follows it on the same way
///   wherever there still is one, and can't overtake it.
/// - From `keep(task, t)` on, until `drop(task)`, what `task.step()` demands is done when it is time, first at `t`: its
///   requests are asked, without ever holding up another's, and their answers handed to it; and its listeners are told
///   of a loss. `drop` does not wait.
// clang-format off
template <class B>
concept Backend = requires(B& backend, const Request& request, Deadline until,
                           const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) {
    { backend.now() } noexcept -> std::same_as<TimePoint>;
    { backend.fresh() } -> std::same_as<Token>;
    { backend.pause(until) } noexcept;
    { backend.ask(request) } -> std::same_as<Answer>;
    backend.keep(task, when);
    { backend.drop(*task) } noexcept;
};
// clang-format on

/// Whether it numbers grants, for RedisLock::fencing_token(), and counts replicas, for Options::min_replicas.
template <class B>
concept FencingBackend = Backend<B> && B::has_fencing_tokens;

namespace detail {
template <class Place>
void check_ttl(Place& place, Millis ttl) {
    if constexpr (requires { place.check_ttl(ttl); }) place.check_ttl(ttl);
}

/// Whether it may become another server, so that leases are watched whether they are renewed or not.
template <class Place>
bool may_move(const Place& place) noexcept {
    if constexpr (requires { place.may_move(); }) return place.may_move();
    return false;
}

/// Whether somebody stood in line when the key was released there, of late.
template <class Place>
bool is_contended(const Place& place, std::string_view key) noexcept {
    if constexpr (requires { place.is_contended(key); }) return place.is_contended(key);
    return false;
}
} // namespace detail

} // namespace redislock
