// The servers that redis-flock asks.
#pragma once

#include "settings.hpp"

#include <redislock/cluster.hpp>

#include <algorithm>
#include <deque>

inline std::vector<redislock::Address> addresses_of(const Settings& settings) {
    std::vector<redislock::Address> all;
    for (const std::string& url : settings.urls) {
        try {
            all.push_back(redislock::Address::parse(url));
        } catch (const std::system_error& error) {
            redislock::Failure why = redislock::detail::failure_of(error);
            if (!settings.urls_from.empty()) why.detail.insert(0, settings.urls_from + ": ");
            redislock::raise(why);
        }
        all.back().tls |= settings.uses_tls && all.back().path.empty();
    }
    return all;
}

/// Of several servers only those by TLS have the options for that. Where none is by TLS the library refuses them.
inline redislock::RedisOptions options_of(const Settings& settings, bool without_tls) {
    redislock::RedisOptions options = settings.server;
    if (without_tls) options.tls = {};
    if (settings.restart_delay) options.restart_delay = settings.restart_delay->span;
    return options;
}

/// With all servers; a cluster is one.
template <class Use>
auto with_each(const Settings& settings, Use use) {
    std::vector<redislock::Address> addresses = addresses_of(settings);
    const auto is_by_tls = [](const redislock::Address& one) { return one.tls; };
    const bool any_by_tls = std::any_of(addresses.begin(), addresses.end(), is_by_tls);
    if (settings.is_cluster) {
        std::deque<redislock::Cluster> cluster;
        cluster.emplace_back(addresses, options_of(settings, any_by_tls && !addresses.front().tls));
        return use(cluster);
    }
    std::deque<redislock::Redis> servers;
    for (redislock::Address& address : addresses) {
        const bool without_tls = any_by_tls && !address.tls;
        servers.emplace_back(std::move(address), options_of(settings, without_tls));
    }
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

/// Whether an error is that of the arguments.
inline bool is_usage(const std::error_code& code) {
    using redislock::Errc;
    return code == Errc::bad_key || code == Errc::bad_option || code == Errc::bad_uri;
}

/// As an exit status.
inline int cause(const std::error_code& code, const Settings& settings) {
    using redislock::Errc;
    if (code.category() != redislock::category()) return system_refuses;
    if (is_usage(code)) return usage;
    if (code == Errc::busy || code == Errc::no_expiry || code == Errc::wrong_type) return settings.conflict_status;
    return no_server;
}
