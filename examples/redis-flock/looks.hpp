// What redis-flock tells of servers and locks without taking one: --status, --check and --force-unlock.
#pragma once

#include "client_name.hpp"
#include "servers.hpp"
#include "status_table.hpp"

#include <ctime>
#include <thread>

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
    std::size_t fit = 0;
    for (Server& server : servers) {
        try {
            show_check(server, settings);
            ++fit;
        } catch (const std::system_error& error) { // the others are looked at all the same
            settings.say(error.what());
            worst = cause(error.code(), settings);
        }
    }
    if (servers.size() > 1 && !settings.quiet)
        std::cout << fit << " of " << servers.size() << " servers are fit for locks: "
                  << (fit > servers.size() / 2 ? "that is a majority" : "that is no majority") << '\n';
    return worst;
}

/// Takes the lock away from its holder.
template <class Servers>
int release_by_force(Servers& servers, const Settings& settings) {
    const auto token = redislock::Token::from_hex(settings.token);
    const redislock::Outcome outcome = redislock::force_unlock(servers, settings.key, *token);
    const char* const meaning = outcome == redislock::Outcome::confirmed ? "the key is deleted"
                                : outcome == redislock::Outcome::expired ? "there is no such key"
                                : outcome == redislock::Outcome::stolen
                                    ? "the key holds another token, and is left alone"
                                    : "it is not known whether the key is deleted";
    if (!settings.quiet) std::cout << to_string(outcome) << ": " << meaning << '\n';
    return outcome == redislock::Outcome::unknown ? no_server : outcome == redislock::Outcome::stolen ? held : 0;
}

template <class Servers>
int show_holder(Servers& servers, const Settings& settings) {
    const Millis limit = span_of(settings.request_timeout).value_or(Millis{5'000});
    const auto holder = redislock::inspect(servers, settings.key, limit);
    std::string text = "free";
    if (holder)
        text = holder->remaining ? "held, for " + in_ms(*holder->remaining) + " if it isn't renewed"
                                 : "held, without an end";
    if (holder && holder->token()) text += ", by the token " + std::string{holder->token()->hex()};
    if (!settings.quiet) std::cout << text << '\n';
    return holder ? held : 0;
}

/// The redis-flocks that have to do with the key, as far as each server tells.
template <class Server>
void show_clients([[maybe_unused]] std::deque<Server>& servers, [[maybe_unused]] const Settings& settings) {
    if constexpr (std::same_as<Server, redislock::Redis>)
        for (redislock::Redis& server : servers) try {
                const Millis limit = span_of(settings.request_timeout).value_or(Millis{1'000});
                const std::string list = run(server, "to list clients", {"CLIENT", "LIST"}, limit);
                for (const auto& [name, told] : clients_for(settings.key, list))
                    std::cout << server.name() << ": " << name << " is " << told << '\n';
            } catch (const std::system_error& error) {
                std::cout << "which redis-flocks have to do with it is not known: " << error.what() << '\n';
            }
}

inline int show_status(const Settings& settings) {
    const int status = with_servers(settings, [&](auto& servers) { return show_holder(servers, settings); });
    if (status == held && !settings.quiet)
        with_each(settings, [&](auto& servers) { return show_clients(servers, settings); });
    return status;
}

/// Of several keys, or again and again. Returns only where it is not to watch.
template <class Server>
int show_table(std::deque<Server>& servers, const Settings& settings) {
    StatusTable<Server> table{servers, span_of(settings.request_timeout).value_or(Millis{1'000})};
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
