// flock(1) for a cluster: runs a command while a lock is held, and ends the command before the lock can be another's.
// How, and with which exit status, is told in `manual`.
#include "status_table.hpp"

#include <redislock/cluster.hpp>
#include <redislock/redislock.hpp>

#include <CLI/CLI.hpp>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cmath>
#include <ctime>
#include <deque>
#include <fstream>
#include <future>
#include <iostream>
#include <sstream>

using namespace std::chrono_literals;
using namespace std::string_literals;
using redislock::Errc;
using redislock::Millis;
using redislock::Outcome;
using Clock = std::chrono::steady_clock;

namespace {

constexpr const char* manual =
    R"(A DURATION is a number and its unit: 500ms, 1.5s, 1m, 2h. Without a unit it is in seconds.

The lease is renewed while the command runs. When it can't be, the command's process group gets SIGTERM as long before
the lease's end as --kill-after says, and SIGKILL at its end; when it is lost without warning, because the key was
deleted, SIGTERM at once and SIGKILL after that time. The lock is released when the command itself has ended, whatever
it has left behind. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the group; before there is
a command they end the wait. A command that SIGINT, SIGQUIT, SIGTERM or SIGHUP killed ends redis-flock by that signal
as well, so that ^C ends a script. In the foreground of a terminal the command has the terminal. ^Z stops neither.

The command finds the key in REDISLOCK_KEY, and the lease's token, which proves ownership, in REDISLOCK_TOKEN; and in
the variable that --fence-env names the number of this grant, which is greater than that of every earlier one: a
resource that refuses smaller numbers than it has seen is safe from a command that goes on for too long.

As flock(1): -n, -w, -E, -c and --verbose. There is no file: the key is what is locked, on all machines.

Exit status: that of the command, 128+N if signal N killed it; or else
   64  the arguments are wrong
   69  no server answers, or it refuses
   71  the system refuses, a process for instance
   75  the key is held by somebody else: not acquired in time, see -E; with --status: held (and 0: free, or a table)
   79  the lease was lost before the command had ended, whatever became of the command
  126  the command can't be executed
  127  the command was not found
128+N  signal N ended the wait for the lock

Not covered: processes that leave the command's process group; a redis-flock that is stopped (SIGSTOP), which can end
nothing until it goes on; a redis-flock that is killed (SIGKILL) takes the command with it, but not the command's
children, nor a command that is setuid; the key then goes with its ttl.)";

enum Exit { usage = 64, no_server = 69, system_refuses = 71, held = 75, lost = 79, by_signal = 128 };

/// What a system call returned, if that isn't an error.
int good(int result) {
    if (result < 0) throw std::system_error{errno, std::generic_category()};
    return result;
}

/// As the options write it. To be read whole, or not at all.
struct Duration {
    Millis span{};

    friend std::istream& operator>>(std::istream& in, Duration& duration) {
        std::string text;
        in >> text;
        double count = -1;
        const char* const end = text.data() + text.size();
        const auto [rest, error] = std::from_chars(text.data(), end, count, std::chars_format::fixed);
        const std::string_view unit{rest, end};
        const Millis one = unit == "ms"                  ? 1ms
                           : unit == "s" || unit.empty() ? 1s
                           : unit == "m"                 ? 1min
                           : unit == "h"                 ? 1h
                                                         : 0ms;
        if (error == std::errc{} && count >= 0 && count <= 1e9 && one > 0ms)
            duration.span = Millis{std::llround(std::ceil(count * static_cast<double>(one.count())))};
        else
            in.setstate(std::ios::failbit);
        return in;
    }
};

/// What is wrong with it; empty: nothing.
std::string objection(const std::string& text) {
    std::istringstream in{text};
    Duration duration;
    return in >> duration && in.peek() == EOF ? ""
                                              : '"' + text + "\" is no number of ms, s, m or h, such as 500ms or 1.5s";
}

/// Whatever is no option may be a URL with a password.
std::string shown(const std::string& text) {
    return text.find_first_of(":@") == text.npos ? '"' + text + '"'
                                                 : "what is not shown here, for it may hold a password,";
}

std::string no_name(const std::string& text) {
    const bool is_name = !text.empty() && text.find('=') == text.npos;
    return is_name ? "" : '"' + text + "\" can't be the name of a variable";
}

struct Settings {
    std::string key{}, pattern{}, token{}, shell_command{};
    std::vector<std::string> urls{};
    std::string url_file{};
    redislock::RedisOptions server{};
    bool uses_tls = false, is_cluster = false;
    unsigned min_replicas = 0;
    std::string fence_env{};
    Duration ttl{30s};
    std::optional<Duration> wait{}, kill_after{}, restart_delay{}, request_timeout{}, retry_for{}, watch{};
    int conflict_status = 75;
    bool nonblock = false, keep = false, status = false, check = false, quiet = false, verbose = false;

    Millis grace() const { return kill_after ? kill_after->span : ttl.span / 6; }
    /// Where nobody reads, nothing: we must not be held up.
    void say(const std::string& text) const {
        pollfd err{STDERR_FILENO, POLLOUT, 0};
        if (!quiet && ::poll(&err, 1, 0) == 1) std::cerr << "redis-flock: " + text + '\n';
    }
    void mention(const std::string& text) const {
        if (verbose) say(text);
    }
};

std::optional<Millis> span_of(const std::optional<Duration>& duration) {
    return duration ? std::optional{duration->span} : std::nullopt;
}

/// How it ends: with a status, and, if there is one, by a signal; `is_typed`: by ^C or ^\, which a terminal sends to
/// the whole process group, and has sent to the command's alone.
struct End {
    int status = 0, signal = 0;
    bool is_typed = false;

    /// Returns where a signal ends nothing: in the first process of a container.
    int operator()() const {
        if (signal != SIGINT && signal != SIGQUIT && signal != SIGTERM && signal != SIGHUP) return status;
        const rlimit no_core{0, 0};
        ::setrlimit(RLIMIT_CORE, &no_core);
        ::signal(signal, SIG_DFL);
        ::kill(is_typed ? 0 : ::getpid(), signal);
        sigset_t set;
        ::sigemptyset(&set);
        ::sigaddset(&set, signal);
        ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
        return status;
    }
};

/// Can be read once something has happened, in whichever thread. This and the other descriptors stay open to the end.
struct Event {
    const int fd = good(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    void happen() const { ::eventfd_write(fd, 1); }
};

/// What the lock's observer was told. Static, as an observer is to be.
struct Told {
    static const Event& lost() {
        static const Event event;
        return event;
    }
    static inline std::atomic why_lost = redislock::Loss::timed_out; ///< by the clock, if nothing else is told
    static inline const Settings* settings = nullptr;                ///< while there is a lock
    static inline std::atomic why_not_renewed = Errc::timed_out, why_unknown = Errc::timed_out;

    static constexpr redislock::Observer observer{
        .waiting =
            [](void*, const redislock::Observer::Waiting& event) noexcept {
                settings->mention("waits for \"" + std::string{event.key} + "\": it is held by somebody else");
            },
        .not_renewed =
            [](void*, const redislock::Observer::NotRenewed& event) noexcept {
                why_not_renewed = Errc{event.why.value()};
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
    };

    static std::string text(redislock::Loss why) {
        if (why == redislock::Loss::deleted) return "the key is gone: deleted, evicted, or forgotten by its server";
        if (why == redislock::Loss::stolen) return "the key is another one's";
        if (why == redislock::Loss::timed_out)
            return "it was not renewed in time; perhaps this process was stopped, or the machine suspended";
        return std::string{to_string(why)};
    }
    static std::string text(Errc why) { return make_error_code(why).message(); }
};

/// The signals to pass on, but for those that whoever started us ignores, and the news of children: as something to
/// wait for.
class Signals {
public:
    Signals() {
        ::signal(SIGCHLD, SIG_DFL); // where it is ignored, a child leaves no status
        sigset_t set;
        ::sigemptyset(&set);
        ::sigaddset(&set, SIGCHLD);
        for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) {
            struct sigaction action {};
            ::sigaction(number, nullptr, &action);
            if (action.sa_handler != SIG_IGN) ::sigaddset(&set, number);
        }
        fd_ = good(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
        // Of what the terminal stops we go on, for nobody would renew the lease; and for what we say there is SIGPIPE.
        for (const int number : {SIGTTIN, SIGTTOU, SIGTSTP, SIGPIPE}) ::sigaddset(&set, number);
        ::pthread_sigmask(SIG_BLOCK, &set, &before_);
    }

    const sigset_t& mask_before() const { return before_; }

    /// Returns when one has come, or the event (then true), or when the time is up, if there is a limit.
    bool wait(const Event* event, std::optional<Millis> limit = {}) const {
        pollfd entries[] = {{fd_, POLLIN, 0}, {event ? event->fd : -1, POLLIN, 0}};
        ::poll(entries, 2, limit ? static_cast<int>(std::min(*limit, Millis{1h}).count()) : -1);
        return entries[1].revents != 0;
    }

    /// One that has come and is to be passed on; 0 if there is none.
    int next() const {
        signalfd_siginfo info{};
        while (::read(fd_, &info, sizeof info) == static_cast<ssize_t>(sizeof info))
            if (info.ssi_signo != SIGCHLD) return static_cast<int>(info.ssi_signo);
        return 0;
    }

private:
    int fd_ = -1;
    sigset_t before_{};
};

/// The command, in a process group of its own.
class Command {
public:
    Command(char** words, const sigset_t& mask) {
        good(::pipe2(failure_, O_CLOEXEC));
        ::prctl(PR_SET_CHILD_SUBREAPER, 1); // whom it leaves behind becomes our child: then we see the group's end
        const pid_t parent = ::getpid();
        pid_ = good(::fork());
        if (pid_ == 0) become(words, mask, parent);
        ::close(failure_[1]);
        ::setpgid(pid_, pid_); // here as in the child, for whoever comes first
    }
    Command(const Command&) = delete;
    Command& operator=(const Command&) = delete;
    ~Command() {
        if (running()) signal(SIGKILL), ::waitpid(pid_, nullptr, 0);
        if (::tcgetpgrp(terminal_) == pid_) ::tcsetpgrp(terminal_, ::getpgrp()); // else a shell has it by now
    }

    void signal(int number) const { ::kill(-pid_, number); }

    bool running() const { return !status_; }

    /// Also when the command itself has ended.
    bool group_lives() const {
        pid_t pid = 0;
        while ((pid = ::waitpid(-pid_, nullptr, WNOHANG)) > 0) {
        }
        return pid == 0;
    }

    /// Takes notice of what became of our children.
    void reap(const Settings& settings) {
        int status = 0;
        for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0;) {
            if (pid != pid_) continue;
            const int by = WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
            if (by == 0)
                status_ = status;
            else if (has_terminal_ && by == SIGTSTP)
                signal(SIGCONT); // else nobody could: no shell knows that it is stopped
            else if ((wants_terminal_ = by == SIGTTIN || by == SIGTTOU) && !is_in_foreground())
                settings.say("the command wants the terminal: bring it to the foreground; the lock stays held");
            else if (!wants_terminal_)
                settings.say("the command is stopped by signal " + std::to_string(by) + "; the lock stays held");
        }
    }

    /// Gives it the terminal that it has been stopped for, if we have that. True: we have not yet.
    bool waits_for_terminal() {
        if (!wants_terminal_ || !is_in_foreground()) return wants_terminal_;
        wants_terminal_ = false;
        has_terminal_ = ::tcsetpgrp(terminal_, pid_) == 0;
        signal(SIGCONT);
        return false;
    }

    /// Of the command that has ended: why it never began; 0 if it did.
    int failure() const {
        int error = 0;
        return ::read(failure_[0], &error, sizeof error) > 0 ? error : 0;
    }
    End end() const {
        if (!WIFSIGNALED(*status_)) return {WEXITSTATUS(*status_)};
        const int signal = WTERMSIG(*status_);
        return {by_signal + signal, signal, has_terminal_ && (signal == SIGINT || signal == SIGQUIT)};
    }

private:
    /// Other threads of ours may have held any mutex: here are only calls that a signal handler may make, too.
    [[noreturn]] void become(char** words, const sigset_t& mask, pid_t parent) const {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != parent) ::_exit(system_refuses);
        ::setpgid(0, 0);
        if (has_terminal_) ::tcsetpgrp(terminal_, ::getpid());
        ::signal(SIGTSTP, ::signal(SIGTSTP, SIG_IGN)); // a ^Z for the group that it has just left is not for it
        ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
        ::execvp(words[0], words);
        const int error = errno;
        ::_exit(::write(failure_[1], &error, sizeof error) > 0 ? 127 : 126);
    }

    bool is_in_foreground() const { return ::tcgetpgrp(terminal_) == ::getpgrp(); }

    const int terminal_ = ::open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    /// Where we have it; and not where we share it with those that we are piped to or from, unless it asks for it.
    bool has_terminal_ = ::isatty(STDIN_FILENO) && ::isatty(STDOUT_FILENO) && is_in_foreground();
    bool wants_terminal_ = false;
    int failure_[2]; ///< from the child: the errno of its exec
    pid_t pid_ = -1;
    std::optional<int> status_{};
};

/// Says for whom we wait, and that we wait in vain if so. That can't be known is no reason to give up.
template <class Servers>
void tell_of_holder(Servers& servers, const Settings& settings) try {
    const auto holder = redislock::inspect(servers, settings.key);
    if (!holder) return;
    const auto token = holder->token();
    if (!holder->remaining)
        settings.say("\"" + settings.key +
                     "\" is held without an expiry: nobody may ever release it; --status tells "
                     "more, and what is no lock has to be deleted by hand");
    else
        settings.mention("\"" + settings.key + "\" is held " +
                         (token ? "by the token " + std::string{token->hex()} : "by a value that is no token") +
                         ", for " + std::to_string(holder->remaining->count()) + " ms if it isn't renewed");
} catch (const std::system_error&) {
}

/// Returns the signal that ended the wait; 0: the lock is held. Throws if somebody else holds it to the end of the
/// wait.
template <class Servers, class Lock>
int acquire(Servers& servers, Lock& lock, const Settings& settings, const Signals& signals) {
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
    if (!locked.get() && signal == 0) redislock::raise({Errc::busy, settings.key});
    return signal;
}

/// Until the command has ended; or its whole group, if the lease was lost: false.
template <class Lock>
bool ended_in_time(Command& command, Lock& lock, const Settings& settings, const Signals& signals) {
    std::optional<Clock::time_point> kill_at;
    for (;;) {
        while (const int signal = signals.next()) { // before we look: what comes later ends the wait below
            command.signal(signal);
            if (signal != SIGUSR1 && signal != SIGUSR2) command.signal(SIGCONT); // it may be stopped
        }
        command.reap(settings);
        const bool looks_for_terminal = command.waits_for_terminal();
        if (!command.running() && !(kill_at && command.group_lives())) return !kill_at;
        const Millis left = lock.remaining();
        if (!kill_at && left <= settings.grace()) {
            kill_at = Clock::now() + (left > 0ms ? left : settings.grace());
            command.signal(SIGTERM);
            command.signal(SIGCONT); // it may be stopped
            const std::string why = settings.keep ? "ends"
                                    : left > 0ms  ? "can't be renewed: " + Told::text(Told::why_not_renewed)
                                                  : "is lost: " + Told::text(Told::why_lost);
            settings.say("the lease of \"" + settings.key + "\" " + why + "; the command is ended");
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

std::vector<redislock::Address> addresses_of(const Settings& settings) {
    std::vector<redislock::Address> all;
    for (const std::string& url : settings.urls) {
        all.push_back(redislock::Address::parse(url));
        all.back().tls |= settings.uses_tls && all.back().path.empty();
    }
    return all;
}
redislock::RedisOptions options_of(const Settings& settings) {
    redislock::RedisOptions options = settings.server;
    if (settings.restart_delay) options.restart_delay = settings.restart_delay->span;
    return options;
}

/// As an exit status.
int cause(const std::error_code& code, const Settings& settings) {
    if (code.category() != redislock::category()) return system_refuses;
    if (code == Errc::bad_key || code == Errc::bad_option || code == Errc::bad_uri) return usage;
    if (code == Errc::busy || code == Errc::no_expiry || code == Errc::wrong_type) return settings.conflict_status;
    return no_server;
}

/// Under keys beside the lock's, which may be held.
template <class Server>
void show_check(Server& server, const Settings& settings) {
    for (const std::string& warning : redislock::check(server, settings.key))
        if (!settings.quiet) std::cout << server.name() << ": " << warning << '\n';
    const redislock::Options options{.min_replicas = settings.min_replicas};
    if (settings.min_replicas > 0) const redislock::RedisLock lock{server, settings.key + ":redislock:check", options};
    if (!settings.quiet) std::cout << server.name() << ": locks can be had\n";
}
template <class Server>
int show_checks(std::deque<Server>& servers, const Settings& settings) {
    int worst = 0;
    for (Server& server : servers) {
        try {
            show_check(server, settings);
        } catch (const std::system_error& error) { // the others are looked at all the same
            settings.say(error.what());
            worst = cause(error.code(), settings);
        }
    }
    return worst;
}

/// With all servers; a cluster is one.
template <class Use>
auto with_each(const Settings& settings, Use use) {
    if (settings.is_cluster) {
        std::deque<redislock::Cluster> cluster;
        cluster.emplace_back(addresses_of(settings), options_of(settings));
        return use(cluster);
    }
    std::deque<redislock::Redis> servers;
    for (redislock::Address& address : addresses_of(settings))
        servers.emplace_back(std::move(address), options_of(settings));
    return use(servers);
}

/// With the server, the cluster, or the majority of several servers.
template <class Use>
auto with_servers(const Settings& settings, Use use) {
    return with_each(settings, [&]<class Server>(std::deque<Server>& servers) {
        if constexpr (!redislock::QuorumNode<Server>) {
            return use(servers.front());
        } else {
            if (servers.size() == 1) return use(servers.front());
            std::vector<Server*> all;
            for (Server& server : servers) all.push_back(&server);
            redislock::Quorum<Server> quorum{all};
            return use(quorum);
        }
    });
}

template <class Servers>
End run(Servers& servers, const Settings& settings, const Signals& signals, char** words) {
    Told::lost(); // may throw, where the observer may not
    Told::settings = &settings;
    const bool fencing = !settings.fence_env.empty();
    const redislock::Options options{.ttl = settings.ttl.span,
                                     .renew = !settings.keep,
                                     .request_timeout = span_of(settings.request_timeout),
                                     .retry_for = span_of(settings.retry_for),
                                     .fencing = fencing,
                                     .min_replicas = settings.min_replicas,
                                     .observer = &Told::observer};
    redislock::RedisLock lock{servers, settings.key, options, std::defer_lock};
    const auto asked = Clock::now();
    if (const int signal = acquire(servers, lock, settings, signals)) return {by_signal + signal, signal};
    const auto waited = std::chrono::duration_cast<Millis>(Clock::now() - asked);
    settings.mention("\"" + settings.key + "\" was acquired after " + std::to_string(waited.count()) +
                     " ms, with the token " + std::string{lock.token().hex()});
    ::setenv("REDISLOCK_KEY", settings.key.c_str(), 1);
    ::setenv("REDISLOCK_TOKEN", lock.token().hex().c_str(), 1);
    if (fencing) good(::setenv(settings.fence_env.c_str(), std::to_string(lock.fencing_token()).c_str(), 1));

    Command command{words, signals.mask_before()};
    if (!ended_in_time(command, lock, settings, signals)) return {lost};
    if (const int error = command.failure()) {
        settings.say(words[0] + ": "s + std::strerror(error));
        return {error == ENOENT ? 127 : 126};
    }
    const bool ours = lock.owns_lock();
    if (settings.keep && ours && command.end().status == 0) {
        settings.mention("\"" + settings.key + "\" is kept for " + std::to_string(lock.remaining().count()) + " ms");
        static_cast<void>(lock.detach());
        return {};
    }
    const Outcome outcome = lock.unlock();
    if (outcome != Outcome::confirmed && !(outcome == Outcome::unknown && ours)) {
        settings.say("the lease was lost before the command ended, with status " +
                     std::to_string(command.end().status));
        return {lost};
    }
    if (outcome == Outcome::unknown)
        settings.say("the key may stay for its ttl, for the release failed: " + Told::text(Told::why_unknown));
    else
        settings.mention("\"" + settings.key + "\" is released");
    return command.end();
}

/// Takes the lock away from its holder.
template <class Servers>
int release_by_force(Servers& servers, const Settings& settings) {
    const auto token = redislock::Token::from_hex(settings.token);
    const Outcome outcome = redislock::force_unlock(servers, settings.key, *token);
    if (!settings.quiet) std::cout << to_string(outcome) << '\n';
    return outcome == Outcome::unknown ? no_server : outcome == Outcome::stolen ? held : 0;
}

/// Asks, and takes nothing.
template <class Servers>
int show_status(Servers& servers, const Settings& settings) {
    const Millis limit = span_of(settings.request_timeout).value_or(5s);
    const auto holder = redislock::inspect(servers, settings.key, limit);
    std::string text = "free";
    if (holder)
        text = holder->remaining ? "held, for " + std::to_string(holder->remaining->count()) + " ms if it isn't renewed"
                                 : "held, without an end";
    if (holder && holder->token()) text += ", by the token " + std::string{holder->token()->hex()};
    if (!settings.quiet) std::cout << text << '\n';
    return holder ? held : 0;
}

/// Of several keys, or again and again. Returns only where it is not to watch.
template <class Server>
int show_table(std::deque<Server>& servers, const Settings& settings) {
    StatusTable<Server> table{servers, span_of(settings.request_timeout).value_or(1s)};
    const char* const clear = ::isatty(STDOUT_FILENO) ? "\x1b[H\x1b[J" : "";
    if (settings.pattern.empty()) redislock::detail::check_key(settings.key);
    for (;;) {
        const std::string text = table.text(settings.key, settings.pattern);
        if (!settings.watch && !table.trouble().empty()) {
            settings.say(table.trouble());
            return no_server;
        }
        if (!settings.watch) {
            if (!settings.quiet) std::cout << text << std::flush;
            return std::cout ? 0 : system_refuses;
        }
        const std::time_t time = std::time(nullptr);
        std::cout << clear << std::put_time(std::localtime(&time), "%T, every ") << settings.watch->span.count()
                  << " ms; ^C ends it\n"
                  << text << std::endl;
        if (!std::cout) return system_refuses;
        std::this_thread::sleep_for(settings.watch->span);
    }
}

/// Who we are, for an operator who looks for the one that holds a lock.
std::string client_name() {
    char host[65] = "";
    ::gethostname(host, sizeof host - 1);
    return "redis-flock:" + std::string{host} + ':' + std::to_string(::getpid());
}

/// Separated by white space, in a variable or a file: there is one at least.
void add_urls(std::istream&& in, const std::string& where, std::vector<std::string>& urls) {
    const std::size_t before = urls.size();
    for (std::string url; in >> url;) urls.push_back(url);
    if (urls.size() == before) throw CLI::ValidationError{where, "there is no URL, or it can't be read"};
}

} // namespace

int main(int argc, char** argv) {
    // What follows the first -- is the command's, whatever it looks like.
    char** const split = std::find(argv + 1, argv + argc, "--"s);
    char** words = *split ? split + 1 : split;

    Settings settings;
    bool as_always = true;
    settings.server.client_name = client_name();
    CLI::App app{"Runs a command while it holds a lock on a Redis server, a service with sentinels, a cluster, or a "
                 "majority of several servers, which no other client can hold then.",
                 "redis-flock"};
    app.get_formatter()->label("OPTIONS", "OPTION]... -- COMMAND [ARGUMENT"); // in the usage
    app.footer(manual);
    app.allow_extras(); // for a message of ours
    app.failure_message([](const CLI::App*, const CLI::Error& error) {
        return "redis-flock: "s + error.what() + "; --help tells the rest\n";
    });
    app.set_version_flag("--version", "redis-flock " + std::to_string(REDISLOCK_VERSION_MAJOR) + '.' +
                                          std::to_string(REDISLOCK_VERSION_MINOR) + '.' +
                                          std::to_string(REDISLOCK_VERSION_PATCH));
    const auto key = app.add_option("--key", settings.key, "what to lock; required")->type_name("KEY");
    app.add_option("--ttl", settings.ttl, "how long the lock outlives a dead redis-flock (default 30s)");
    const auto wait =
        app.add_option("-w,--wait,--timeout", settings.wait,
                       "how long to wait for the lock; 0: ask once (default: for ever, but see --retry-for)");
    app.add_flag("-n,--nonblock", settings.nonblock, "the same as --wait 0")->excludes(wait);
    app.add_option("-E,--conflict-exit-code", settings.conflict_status,
                   "the exit status where the lock was not acquired in time (default 75)")
        ->check(CLI::Range(0, 255))
        ->type_name("STATUS");
    app.add_option("-c,--command", settings.shell_command, "run this by the shell, in place of the COMMAND")
        ->type_name("STRING");
    app.add_flag(
        "--keep", settings.keep,
        "do not renew the lock, and after a command that succeeds leave it to its ttl: so it runs at most once "
        "in that time, which is to be some seconds shorter than that between two runs");
    app.add_option("--request-timeout", settings.request_timeout,
                   "how long a server may take to answer (default a third of the ttl, 1s at most; with --status 5s)");
    app.add_option("--retry-for", settings.retry_for,
                   "how long a wait rides out an outage (default: as long as --wait says, or else one "
                   "--request-timeout)");
    app.add_flag("-x,-e,--exclusive,-o,--close", as_always, "as with flock(1), where this is done in any case");
    app.add_option("--kill-after", settings.kill_after,
                   "from SIGTERM to SIGKILL, if the lease is lost (default a sixth of the ttl, at most half)");
    app.add_option("--url", settings.urls,
                   "the server (default: what REDIS_URL says, or redis://127.0.0.1:6379); given several times: a "
                   "majority of 3, 5, ... servers that know nothing of one another")
        ->type_name("URL")
        ->allow_extra_args(false);
    app.add_option("--url-file", settings.url_file,
                   "a file with one URL or several, between white space, as REDIS_URL may have them too; others "
                   "can't read it as they can a command line")
        ->check(CLI::ExistingFile)
        ->type_name("FILE");
    app.add_option("--client-name", settings.server.client_name,
                   "what CLIENT LIST shows (default redis-flock:HOST:PID)")
        ->type_name("NAME");
    app.add_flag("--cluster", settings.is_cluster,
                 "the URL is any node of a Redis Cluster; several: for when one is gone");
    app.add_option("--sentinel-user", settings.server.sentinel.credentials.user,
                   "the user for the sentinels of a redis+sentinel://host,host/service (default: none)")
        ->type_name("NAME")
        ->envname("REDIS_SENTINEL_USER");
    app.add_option("--sentinel-password", settings.server.sentinel.credentials.password,
                   "their password; others can read the command line, and not the variable")
        ->type_name("PASSWORD")
        ->envname("REDIS_SENTINEL_PASSWORD");
    app.add_option("--min-replicas", settings.min_replicas, "how many replicas must have the lock (default 0)")
        ->type_name("COUNT");
    app.add_option("--restart-delay", settings.restart_delay,
                   "for so long a server that has restarted, or was promoted, grants nothing (default 0ms)");
    redislock::TlsOptions& tls = settings.server.tls;
    app.add_flag("--tls", settings.uses_tls, "by TLS, as with rediss:// in the URL");
    app.add_option("--cacert", tls.ca_file, "the authorities to trust, in PEM (default: the system's)");
    app.add_option("--cacertdir", tls.ca_folder, "the same, a folder of hashed names");
    app.add_option("--cert", tls.certificate, "our certificate, for a server that asks for one");
    app.add_option("--cert-key", tls.key, "its key (default: in the same file)");
    app.add_option("--sni", tls.server_name, "the name in the server's certificate (default: the URL's host)");
    for (const char* name : {"--cacert", "--cert", "--cert-key"}) app.get_option(name)->type_name("FILE");
    app.get_option("--cacertdir")->type_name("FOLDER");
    app.get_option("--sni")->type_name("NAME");
    app.add_flag_callback(
        "--insecure", [&] { tls.verify = redislock::Verify::none; }, "do not verify the server's certificate");
    app.add_option("--fence-env", settings.fence_env, "the environment variable for the number of this grant")
        ->check(no_name)
        ->type_name("NAME");
    app.add_flag("--status", settings.status, "only tell whether the key is held");
    app.add_option("--watch", settings.watch,
                   "with --status: a table, so often: who holds the key, for how long yet, whether somebody waits, and "
                   "at how many servers");
    app.add_option("--pattern", settings.pattern,
                   "with --status: of all keys that are like this, such as 'jobs:*'; it walks over all that the server "
                   "has")
        ->type_name("GLOB");
    app.add_option("--force-unlock", settings.token,
                   "only delete the key, if it holds this token, which --status tells; the holder hears of it at its "
                   "next renewal: stop it first. Tells what became of it: confirmed, expired (there was none), stolen "
                   "(it holds another token) or unknown")
        ->check([](const std::string& text) {
            return redislock::Token::from_hex(text) ? "" : '"' + text + "\" is no token of 32 hexadecimal digits";
        })
        ->type_name("TOKEN");
    app.add_flag("--check", settings.check,
                 "only tell whether the server is fit for locks on keys like this one, and what it lacks");
    const auto quiet = app.add_flag("--quiet", settings.quiet, "say nothing; the exit status does");
    app.add_flag("--verbose", settings.verbose, "say when and how long it waits, and when the lock is released")
        ->excludes(quiet);
    for (const char* name :
         {"--ttl", "--wait", "--kill-after", "--restart-delay", "--request-timeout", "--retry-for", "--watch"})
        app.get_option(name)->check(objection)->type_name("DURATION");
    try {
        app.parse(static_cast<int>(split - argv), argv);
        if (const auto rest = app.remaining(); !rest.empty())
            throw CLI::ValidationError{rest[0].starts_with('-')
                                           ? "there is no option " + rest[0].substr(0, rest[0].find('='))
                                           : shown(rest[0]) + " is no option; the command follows --"};
        if (key->empty() && settings.pattern.empty())
            throw CLI::RequiredError{settings.status ? "--key or --pattern" : "--key"};
        if (!key->empty() && !settings.pattern.empty()) throw CLI::ValidationError{"--pattern", "not with --key"};
        if (!settings.status && (settings.watch || !settings.pattern.empty()))
            throw CLI::RequiredError{"--status, for --watch and --pattern,"};
        if (settings.watch && settings.watch->span < 100ms) throw CLI::ValidationError{"--watch", "at least 100ms"};
        if (settings.watch && settings.quiet) throw CLI::ValidationError{"--watch", "not with --quiet"};
        if (settings.is_cluster && !settings.pattern.empty())
            throw CLI::ValidationError{"--pattern", "not with --cluster, whose nodes have a part of the keys each"};
        const bool only_tells = settings.status || settings.check || !settings.token.empty(),
                   has_shell = !settings.shell_command.empty();
        if (has_shell && *words != nullptr) throw CLI::ValidationError{"COMMAND", "given twice, also by --command"};
        if (only_tells == (has_shell || *words != nullptr))
            throw CLI::ValidationError{"COMMAND", only_tells ? "--status, --check and --force-unlock take none"
                                                             : "none given; it follows --"};
        if (settings.status + settings.check + !settings.token.empty() > 1)
            throw CLI::ValidationError{"--status, --check, --force-unlock", "one of them at a time"};
        if (settings.grace() > settings.ttl.span / 2)
            throw CLI::ValidationError{"--kill-after", "at most half of the ttl"};
        if (!settings.url_file.empty()) add_urls(std::ifstream{settings.url_file}, settings.url_file, settings.urls);
        if (const char* const url = ::getenv("REDIS_URL"); url && settings.urls.empty())
            add_urls(std::istringstream{url}, "REDIS_URL", settings.urls);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : usage;
    }
    if (settings.urls.empty()) settings.urls.emplace_back("redis://127.0.0.1:6379");
    char shell[] = "/bin/sh", option[] = "-c";
    char* by_shell[] = {shell, option, settings.shell_command.data(), nullptr};
    if (!settings.shell_command.empty()) words = by_shell;

    End end;
    try {
        if (settings.check) return with_each(settings, [&](auto& servers) { return show_checks(servers, settings); });
        if (!settings.token.empty())
            return with_servers(settings, [&](auto& servers) { return release_by_force(servers, settings); });
        if (settings.status && (settings.watch || !settings.pattern.empty()))
            return with_each(settings, [&](auto& servers) { return show_table(servers, settings); });
        if (settings.status)
            return with_servers(settings, [&](auto& servers) { return show_status(servers, settings); });
        const Signals signals; // until now they end us
        end = with_servers(settings, [&](auto& servers) { return run(servers, settings, signals, words); });
    } catch (const std::system_error& error) {
        settings.say(error.what());
        return cause(error.code(), settings);
    }
    return end();
}
