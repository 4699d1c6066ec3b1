/// What goes wrong: processes and servers that stand still or die, connections that break or fall silent, clocks that
/// go wrong.
#pragma once

#include "../support/proxy.hpp"
#include "failovers.hpp"

#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <random>

namespace chaos {

using test::Proxy;

enum class Broken { nothing, clocks, memory, replicas };

/// As in clock_shim.c.
struct ClockFile {
    std::atomic<std::int64_t> step_ns;
    std::int64_t start_ns; ///< of CLOCK_REALTIME
    double rate;
};

/// A server with a wall clock of its own and a proxy before it. What it has answered for it has written, and that
/// survives its process; only the end of the machine would need an fsync, which takes most of the time.
class Node {
public:
    Node(const std::string& folder, int number, const std::string& shim, double rate)
        : clock_path_{folder + "/clock" + std::to_string(number)}, clock_{open_clock(clock_path_, rate)},
          server_{{"--appendonly", "yes", "--appendfsync", "no"},
                  {"LD_PRELOAD=" + shim, "REDISLOCK_CLOCK=" + clock_path_}},
          proxy_{server_.socket_path()} {}

    test::RedisServer& server() { return server_; }
    Proxy& proxy() { return proxy_; }
    void step_clock(std::chrono::nanoseconds by) { clock_.step_ns += by.count(); }

    void die(bool forgets) {
        server_.kill();
        if (forgets)
            std::filesystem::remove_all(std::filesystem::path{server_.socket_path()}.parent_path() / "appendonlydir");
    }

    bool frozen = false, down = false;
    Time until = 0;                            ///< when it goes on, or comes back
    bool cut_off = false;                      ///< or else only slow
    Time disturbed_until = 0, holds_until = 0; ///< 0: all passes; no answer is held back

private:
    static ClockFile& open_clock(const std::string& path, double rate) {
        std::ofstream{path} << std::string(sizeof(ClockFile), '\0');
        const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
        void* memory = ::mmap(nullptr, sizeof(ClockFile), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        ::close(fd);
        if (memory == MAP_FAILED) throw std::runtime_error{"no clock"};
        auto& clock = *static_cast<ClockFile*>(memory);
        timespec time{};
        ::clock_gettime(CLOCK_REALTIME, &time);
        clock.start_ns = time.tv_sec * 1'000'000'000 + time.tv_nsec;
        clock.rate = rate;
        return clock;
    }

    std::string clock_path_;
    ClockFile& clock_;
    test::RedisServer server_;
    Proxy proxy_;
};

/// The worker processes.
class Workers {
public:
    Workers(std::vector<std::string> arguments, std::uint64_t seed) : arguments_{std::move(arguments)}, seed_{seed} {}
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;
    ~Workers() {
        for (Process& one : processes_) {
            if (one.pid == 0) continue;
            ::kill(one.pid, SIGKILL);
            ::waitpid(one.pid, nullptr, 0);
        }
    }

    /// Is never killed, so that what grows in a process can be seen.
    static constexpr std::size_t survivor = 0;
    pid_t survivor_pid() const { return processes_[survivor].pid; }

    std::size_t size() const { return processes_.size(); }

    void start(std::size_t n) {
        if (n == processes_.size()) processes_.emplace_back();
        // The log, the registers' server, the keys; then what tells one from another; then the rest.
        std::vector<std::string> words{"chaos", "worker"};
        words.insert(words.end(), arguments_.begin(), arguments_.begin() + 3);
        words.insert(words.end(), {std::to_string(n), std::to_string(seed_ + 1'000 * ++started_ + n)});
        words.insert(words.end(), arguments_.begin() + 3, arguments_.end());
        std::vector<char*> pointers;
        for (std::string& word : words) pointers.push_back(word.data());
        pointers.push_back(nullptr);
        const pid_t parent = ::getpid();
        const pid_t pid = ::fork();
        if (pid == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (::getppid() != parent) ::_exit(1);
            ::execv("/proc/self/exe", pointers.data());
            ::_exit(127);
        }
        if (pid < 0) throw std::runtime_error{"no process for a worker"};
        processes_[n] = {pid, false, 0};
    }
    void stop(std::size_t n, Time until) {
        Process& one = processes_[n];
        if (one.stopped || one.pid == 0) return;
        ::kill(one.pid, SIGSTOP);
        one.stopped = true;
        one.until = until;
    }
    void kill(std::size_t n) {
        Process& one = processes_[n];
        ::kill(one.pid, SIGKILL);
        ::waitpid(one.pid, nullptr, 0);
        start(n);
    }
    void go_on(Time by) {
        for (Process& one : processes_) {
            if (!one.stopped || one.until > by) continue;
            ::kill(one.pid, SIGCONT);
            one.stopped = false;
        }
    }

    /// Whether all have ended by themselves, and well, by then; `failed` counts those that have not ended well.
    bool end_by(Time limit, int& failed) {
        for (;;) {
            std::size_t left = 0;
            for (Process& one : processes_) {
                int status = 0;
                if (one.pid != 0 && ::waitpid(one.pid, &status, WNOHANG) == one.pid) {
                    failed += status != 0;
                    one.pid = 0;
                }
                left += one.pid != 0;
            }
            if (left == 0) return true;
            if (now() > limit) return false;
            std::this_thread::sleep_for(std::chrono::milliseconds{5});
        }
    }
    /// One that has ended though nobody killed it.
    bool any_has_died() {
        return std::any_of(processes_.begin(), processes_.end(), [](Process& one) {
            return one.pid != 0 && ::waitpid(one.pid, nullptr, WNOHANG) == one.pid && std::exchange(one.pid, 0) != 0;
        });
    }

private:
    struct Process {
        pid_t pid = 0;
        bool stopped = false;
        Time until = 0;
    };
    const std::vector<std::string> arguments_;
    const std::uint64_t seed_;
    std::uint64_t started_ = 0;
    std::vector<Process> processes_;
};

class Nemesis {
public:
    /// Of the nodes, or of a service instead.
    Nemesis(const Log& log, std::deque<Node>& nodes, test::Service* service, Workers& workers, Broken broken,
            std::uint64_t seed)
        : log_{log}, nodes_{nodes}, workers_{workers}, broken_{broken}, random_{seed} {
        if (service != nullptr) failovers_.emplace(*service, seed);
    }

    /// One trouble more, and what has lasted long enough ends. Returns when the next is due.
    Time act() {
        recover(now());
        if (const char* const what = failovers_ ? failovers_->act() : nullptr) note(what);
        if (broken_ == Broken::nothing || broken_ == Broken::replicas) trouble();
        if (broken_ == Broken::clocks) step_clocks();
        if (broken_ == Broken::memory) forget_all();
        return now() + between(5 * ms, 120 * ms);
    }

    void heal() {
        recover(std::numeric_limits<Time>::max());
        if (failovers_) failovers_->heal();
        for (Node& node : nodes_) node.proxy().lift();
    }

    const std::map<std::string, int>& counts() const { return counts_; }

private:
    static constexpr Time ms = 1'000'000;

    Time between(Time least, Time most) { return std::uniform_int_distribution<Time>{least, most}(random_); }

    /// Anybody, or every third time whoever holds a lock for longer than the others: it is he who could do harm.
    std::size_t victim() {
        const auto anybody = static_cast<std::size_t>(between(0, static_cast<Time>(workers_.size()) - 1));
        if (between(1, 3) > 1) return anybody;
        const std::size_t size = log_.size();
        for (std::size_t i = size - std::min<std::size_t>(size, 64); i < size; ++i) {
            const Grant& grant = log_.grants[i];
            if (grant.granted != 0 && grant.ended == 0 && grant.until > now())
                return static_cast<std::size_t>(grant.worker);
        }
        return anybody;
    }

    void trouble() {
        const std::size_t worker = victim();
        constexpr Time spans[] = {5 * ms, 50 * ms, 900 * ms};
        const Time span = between(ms, spans[between(0, 2)]);
        const Time dice = between(1, failovers_ ? 52 : 124);
        if (dice <= 40) {
            workers_.stop(worker, now() + span);
            note("worker stopped");
        } else if (dice <= 52) {
            if (worker == Workers::survivor) return;
            workers_.kill(worker);
            note("worker killed");
        } else {
            trouble(nodes_[static_cast<std::size_t>(between(0, static_cast<Time>(nodes_.size()) - 1))], dice, span);
        }
    }

    void trouble(Node& node, Time dice, Time span) {
        const bool is_up = !node.down && !node.frozen;
        if (dice <= 64) {
            node.proxy().reset();
            note("connections reset");
        } else if (dice <= 82) {
            if (node.disturbed_until != 0) return;
            using Mode = Proxy::Mode;
            const Mode mode = dice > 72 ? Mode::delay : dice % 2 == 0 ? Mode::swallow : Mode::cut;
            node.proxy().set(mode, Millis{between(1, 60)});
            node.cut_off = mode != Mode::delay;
            node.disturbed_until = now() + span;
            note(mode == Mode::delay ? "answers delayed" : "server cut off");
        } else if (dice <= 88) {
            const auto way = dice % 2 == 0 ? Proxy::Way::up : Proxy::Way::down;
            node.proxy().strike_at({Proxy::Fault::Kind::delay, way, 0, Millis{span / ms}});
            note("one message delayed");
        } else if (dice <= 96) {
            if (node.holds_until != 0) return;
            node.proxy().strike_at({Proxy::Fault::Kind::stall, Proxy::Way::down, 0});
            node.holds_until = now() + span;
            note("answer held");
        } else if (!is_up) {
            return;
        } else if (dice <= 104) {
            node.server().command({"CLIENT", "KILL", "TYPE", "normal"});
            note("clients killed");
        } else if (dice <= 112) {
            node.server().command({"SCRIPT", "FLUSH"});
            note("scripts flushed");
        } else if (dice <= 118) {
            node.server().stop();
            node.frozen = true;
            node.until = now() + span;
            note("server stopped");
        } else {
            const bool forgets = dice > 122;
            node.die(forgets);
            node.down = true; // who forgets stays away for the longest ttl, and the drift
            node.until = now() + (forgets ? longest_ttl.count() * ms * 105 / 100 : span / 2);
            note(forgets ? "server lost its memory" : "server killed");
        }
    }

    void step_clocks() {
        for (Node& node : nodes_) node.step_clock(std::chrono::seconds{1});
        note("clocks stepped");
    }

    void forget_all() {
        for (Node& node : nodes_) node.server().command({"FLUSHALL"});
        note("memories lost");
    }

    void recover(Time by) {
        workers_.go_on(by);
        for (Node& node : nodes_) {
            if (node.disturbed_until != 0 && node.disturbed_until <= by) {
                node.proxy().set(Proxy::Mode::forward);
                if (node.cut_off) node.proxy().reset(); // what was swallowed would be missing in the middle
                node.disturbed_until = 0;
            }
            if (node.holds_until != 0 && node.holds_until <= by) {
                node.proxy().lift_when_asked(); // so that it comes when something else is waited for
                node.holds_until = 0;
            }
            if (node.until > by) continue;
            if (std::exchange(node.frozen, false)) node.server().go_on();
            if (node.down) {
                while (now() < node.until) std::this_thread::sleep_for(std::chrono::milliseconds{1});
                node.server().start();
                node.down = false;
            }
        }
    }

    void note(const char* what) { ++counts_[what]; }

    const Log& log_;
    std::deque<Node>& nodes_;
    Workers& workers_;
    const Broken broken_;
    std::mt19937_64 random_;
    std::optional<Failovers> failovers_{};
    std::map<std::string, int> counts_;
};

} // namespace chaos
