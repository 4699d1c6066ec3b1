// What redis-flock was told to do.
#pragma once

#include <redislock/redislock.hpp>

#include <poll.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

using redislock::Millis;

enum Exit { usage = 64, no_server = 69, system_refuses = 71, held = 75, lost = 79, by_signal = 128 };

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
        const Millis one{unit == "ms"                  ? 1
                         : unit == "s" || unit.empty() ? 1'000
                         : unit == "m"                 ? 60'000
                         : unit == "h"                 ? 3'600'000
                                                       : 0};
        if (error == std::errc{} && count >= 0 && count <= 1e9 && one > Millis::zero())
            duration.span = Millis{std::llround(std::ceil(count * static_cast<double>(one.count())))};
        else
            in.setstate(std::ios::failbit);
        return in;
    }
};

inline std::optional<Millis> span_of(const std::optional<Duration>& duration) {
    return duration ? std::optional{duration->span} : std::nullopt;
}

inline std::string in_ms(Millis span) { return std::to_string(span.count()) + " ms"; }

struct Settings {
    std::string key{}, pattern{}, token{}, shell_command{};
    std::vector<std::string> urls{};
    std::string url_file{}, urls_from{}; ///< for messages: where the URLs are from, if not from the command line
    redislock::RedisOptions server{};
    bool uses_tls = false, is_cluster = false;
    unsigned min_replicas = 0;
    std::string fence_env{};
    Duration ttl{Millis{30'000}};
    std::optional<Duration> wait{}, kill_after{}, restart_delay{}, request_timeout{}, retry_for{}, max_hold{}, watch{};
    int conflict_status = held;
    bool nonblock = false, keep = false, status = false, check = false, quiet = false, verbose = false;

    Millis grace() const { return kill_after ? kill_after->span : ttl.span / 6; }

    /// The key, for messages.
    std::string name() const { return '"' + redislock::detail::printable(key) + '"'; }

    /// Where nobody reads, nothing: we must not be held up.
    void say(const std::string& text) const {
        pollfd err{STDERR_FILENO, POLLOUT, 0};
        if (!quiet && ::poll(&err, 1, 0) == 1) std::cerr << "redis-flock: " + text + '\n';
    }
    void mention(const std::string& text) const {
        if (verbose) say(text);
    }
};
