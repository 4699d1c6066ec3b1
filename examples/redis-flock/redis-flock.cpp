// flock(1) for a cluster: runs a command while a lock is held, and ends the command before the lock can be another's.
// How, and with which exit status, is told in `manual`.
#include "arguments.hpp"
#include "command.hpp"
#include "looks.hpp"

#include <atomic>
#include <future>

using namespace std::chrono_literals;
using namespace std::string_literals;
using redislock::Errc;
using redislock::Outcome;
using Clock = std::chrono::steady_clock;

namespace {

/// What the lock's observer was told. Static, as an observer is to be.
struct Told {
    static const Event& lost() {
        static const Event event;
        return event;
    }
    static inline std::atomic why_lost = redislock::Loss::timed_out; ///< by the clock, if nothing else is told
    static inline const Settings* settings = nullptr;                ///< while there is a lock
    static inline std::atomic why_not_renewed = Errc::timed_out, why_unknown = Errc::timed_out;
    static inline bool is_in_trouble = false; ///< for the thread that renews

    static constexpr redislock::Observer observer{
        .waiting =
            [](void*, const redislock::Observer::Waiting& event) noexcept {
                settings->mention("waits for " + settings->name() + ": " +
                                  (event.why ? event.why.message() : "it is held by somebody else"));
            },
        .renewed =
            [](void*, const redislock::Observer::Renewed&) noexcept {
                if (std::exchange(is_in_trouble, false))
                    settings->mention("the lease of " + settings->name() + " is renewed again");
            },
        .not_renewed =
            [](void*, const redislock::Observer::NotRenewed& event) noexcept {
                why_not_renewed = Errc{event.why.value()};
                if (!std::exchange(is_in_trouble, true))
                    settings->mention("the lease of " + settings->name() + " can't be renewed: " + event.why.message() +
                                      "; it goes on trying, and " +
                                      in_ms(std::chrono::duration_cast<Millis>(event.left)) + " are left");
            },
        .lost =
            [](void*, const redislock::Observer::Lost& event) noexcept {
                why_lost = event.why;
                lost().happen();
            },
        .released =
            [](void*, const redislock::Observer::Released& event) noexcept {
                if (event.why) why_unknown = Errc{event.why.value()};
            },
        .server =
            [](void*, const redislock::Observer::Server& event) noexcept {
                settings->mention(std::string{event.server} +
                                  (event.why ? " does not vote: " + event.why.message() : " votes again"));
            },
    };

    static std::string text(redislock::Loss why) {
        if (why == redislock::Loss::deleted) return "the key is gone: deleted, evicted, or forgotten by its server";
        if (why == redislock::Loss::stolen) return "the key is another one's";
        if (why == redislock::Loss::timed_out)
            return "it was not renewed in time; perhaps this process was stopped, or the machine suspended";
        if (why == redislock::Loss::max_hold) return "it was held for as long as --max-hold says";
        return std::string{to_string(why)};
    }
    static std::string text(Errc why) { return make_error_code(why).message(); }
};

/// Says who has the lock; and in any case, if it may never be free. That can't be known is no reason to give up.
template <class Servers>
void tell_of_holder(Servers& servers, const Settings& settings) try {
    const auto holder = redislock::inspect(servers, settings.key, span_of(settings.request_timeout).value_or(1s));
    if (!holder) return;
    const auto token = holder->token();
    if (!holder->remaining)
        settings.say(settings.name() + " is held without an expiry: nobody may ever release it; --status tells "
                                       "more, and what is no lock has to be deleted by hand");
    else
        settings.mention(settings.name() + " is held " +
                         (token ? "by the token " + std::string{token->hex()} : "by a value that is no token") +
                         ", for " + in_ms(*holder->remaining) + " if it isn't renewed");
} catch (const std::system_error&) {
}

/// How the wait ended; nothing: the lock is held.
template <class Servers, class Lock>
std::optional<End> acquire(Servers& servers, Lock& lock, const Settings& settings, const Signals& signals) {
    std::stop_source stop;
    const Event over;
    auto locked = std::async(std::launch::async, [&] {
        const std::shared_ptr<const Event> at_the_end{&over, [](const Event* event) { event->happen(); }};
        if (settings.nonblock) return lock.try_lock();
        return settings.wait ? lock.try_lock_for(settings.wait->span, stop.get_token()) : lock.lock(stop.get_token());
    });
    int signal = 0;
    const auto looks_at = Clock::now() + 1s;
    bool has_looked = false;
    for (bool waiting = true; waiting && signal == 0; signal = signals.next()) {
        waiting = !signals.wait(&over, has_looked ? std::nullopt : std::optional{Millis{100}});
        if (waiting && !has_looked && Clock::now() >= looks_at) {
            tell_of_holder(servers, settings);
            has_looked = true;
        }
    }
    if (signal != 0) stop.request_stop();
    const bool has_lock = locked.get();
    if (signal != 0) return End{by_signal + signal, signal};
    if (has_lock) return {};
    settings.mention(settings.name() + " is not acquired: it is held by somebody else");
    if (!has_looked) tell_of_holder(servers, settings);
    return End{settings.conflict_status};
}

/// After a command that has succeeded: the key is left to its ttl, if it is there yet.
template <class Servers, class Lock>
End keep(Servers& servers, Lock& lock, const redislock::Token& token, const Settings& settings) {
    try {
        const auto holder = redislock::inspect(servers, settings.key, span_of(settings.request_timeout).value_or(1s));
        if (!holder || holder->token() != token) {
            if (!lock.owns_lock()) return {}; // its ttl is over meanwhile
            settings.say("the lease of " + settings.name() + " was lost before the command ended: " +
                         Told::text(holder ? redislock::Loss::stolen : redislock::Loss::deleted));
            return {lost};
        }
        settings.mention(settings.name() + " is kept for " + in_ms(holder->remaining.value_or(lock.remaining())));
    } catch (const std::system_error& error) {
        settings.say("whether " + settings.name() + " is kept is not known: " + error.what());
    }
    static_cast<void>(lock.detach());
    return {};
}

/// Until the command has ended; or its whole group, if the lease was lost: false.
template <class Lock>
bool ended_in_time(Command& command, Lock& lock, const Settings& settings, const Signals& signals) {
    std::optional<Clock::time_point> kill_at;
    for (;;) {
        while (const int signal = signals.next()) { // before we look: what comes later ends the wait below
            if (!command.signal(signal)) settings.say("the command can't be sent the signal, for it is another user's");
            if (signal != SIGUSR1 && signal != SIGUSR2) command.signal(SIGCONT); // it may be stopped
        }
        command.reap(settings);
        const bool looks_for_terminal = command.waits_for_terminal();
        if (!command.running() && !(kill_at && command.group_lives())) return !kill_at;
        const Millis left = lock.remaining();
        const bool is_over = Told::why_lost == redislock::Loss::max_hold;
        if (!kill_at && (is_over || left <= settings.grace())) {
            kill_at = Clock::now() + (left > 0ms ? std::min(left, settings.grace()) : settings.grace());
            const bool is_ended = command.signal(SIGTERM);
            command.signal(SIGCONT); // it may be stopped
            const std::string why = is_over         ? "is lost: " + Told::text(Told::why_lost)
                                    : settings.keep ? "ends: --keep does not renew it, and --ttl is too short"
                                    : left <= 0ms   ? "is lost: " + Told::text(Told::why_lost)
                                                    : "can't be renewed: " + Told::text(Told::why_not_renewed);
            settings.say("the lease of " + settings.name() + ' ' + why + "; the command " +
                         (is_ended ? "is ended" : "can't be ended, for it is another user's"));
        }
        std::optional<Millis> limit = left - settings.grace();
        if (kill_at) limit = std::chrono::ceil<Millis>(*kill_at - Clock::now());
        if (kill_at && limit <= 0ms) {
            command.signal(SIGKILL);
            limit.reset();
        }
        if (looks_for_terminal) limit = std::min(limit.value_or(100ms), Millis{100}); // nothing tells of that
        signals.wait(kill_at ? nullptr : &Told::lost(), limit);
    }
}

template <class Servers>
End run(Servers& servers, const Settings& settings, const Signals& signals, char** words) {
    Told::lost(); // may throw, where the observer may not
    Told::settings = &settings;
    const bool fencing = !settings.fence_env.empty();
    const redislock::Options options{.ttl = settings.ttl.span,
                                     .renew = !settings.keep,
                                     .max_hold = span_of(settings.max_hold),
                                     .request_timeout = span_of(settings.request_timeout),
                                     .retry_for = span_of(settings.retry_for),
                                     .fencing = fencing,
                                     .min_replicas = settings.min_replicas,
                                     .observer = &Told::observer};
    redislock::RedisLock lock{servers, settings.key, options, std::defer_lock};
    const auto asked = Clock::now();
    if (const auto end = acquire(servers, lock, settings, signals)) return *end;
    const auto waited = std::chrono::duration_cast<Millis>(Clock::now() - asked);
    settings.mention(settings.name() + " was acquired after " + in_ms(waited) + ", with the token " +
                     std::string{lock.token().hex()});
    if constexpr (requires { servers.node_errors(); })
        for (const auto& [code, name] : servers.node_errors())
            settings.mention(name + " does not vote: " + code.message());
    ::setenv("REDISLOCK_KEY", settings.key.c_str(), 1);
    ::setenv("REDISLOCK_TOKEN", lock.token().hex().c_str(), 1);
    if (fencing) good(::setenv(settings.fence_env.c_str(), std::to_string(lock.fencing_token()).c_str(), 1));

    Command command{words, signals.mask_before()};
    if (!ended_in_time(command, lock, settings, signals)) return {lost};
    if (const int error = command.failure()) {
        settings.say(words[0] + ": "s + std::strerror(error));
        return {error == ENOENT ? 127 : 126};
    }
    const redislock::Token token = lock.token();
    const bool ours = !token.is_nil();
    if (settings.keep && ours && command.end().status == 0) return keep(servers, lock, token, settings);
    const Outcome outcome = lock.unlock();
    if (outcome != Outcome::confirmed && !(outcome == Outcome::unknown && ours)) {
        settings.say("the lease of " + settings.name() + " was lost before the command ended, with status " +
                     std::to_string(command.end().status));
        return {lost};
    }
    if (outcome == Outcome::unknown)
        settings.say("the key " + settings.name() +
                     " may stay for its ttl, for the release failed: " + Told::text(Told::why_unknown));
    else
        settings.mention(settings.name() + " is released");
    return command.end();
}

} // namespace

int main(int argc, char** argv) {
    // What follows the first -- is the command's, whatever it looks like.
    char** const split = std::find(argv + 1, argv + argc, "--"s);
    char** words = *split ? split + 1 : split;

    Settings settings;
    if (const auto status = Arguments{settings}.parse(static_cast<int>(split - argv), argv, *words != nullptr))
        return *status;
    const char* const own_shell = ::getenv("SHELL");
    std::string shell = own_shell && *own_shell ? own_shell : "/bin/sh", option = "-c";
    char* by_shell[] = {shell.data(), option.data(), settings.shell_command.data(), nullptr};
    if (*words == nullptr) words = by_shell;

    End end;
    try {
        if (settings.check) return with_each(settings, [&](auto& servers) { return show_checks(servers, settings); });
        if (!settings.token.empty())
            return with_servers(settings, [&](auto& servers) { return release_by_force(servers, settings); });
        if (settings.status && (settings.watch || !settings.pattern.empty()))
            return with_each(settings, [&](auto& servers) { return show_table(servers, settings); });
        if (settings.status) return show_status(settings);
        const Signals signals; // until now they end us
        end = with_servers(settings, [&](auto& servers) { return run(servers, settings, signals, words); });
    } catch (const std::system_error& error) {
        settings.quiet &= !is_usage(error.code()); // which is told in any case
        settings.say(error.what());
        return cause(error.code(), settings);
    }
    return end();
}
