// The name that CLIENT LIST shows of a redis-flock: by it an operator finds the one that holds a lock.
#pragma once

#include "settings.hpp"

#include <algorithm>
#include <map>
#include <regex>

/// How the name ends of those that have to do with this key. A name has no blanks.
inline std::string end_of_name(const std::string& key) {
    std::string end = ':' + key.substr(0, 100);
    std::replace_if(
        end.begin(), end.end(), [](unsigned char c) { return c <= ' ' || c > '~'; }, '_');
    return end;
}

inline std::string client_name(const Settings& settings) {
    const bool only_tells = settings.status || settings.check || !settings.token.empty();
    char host[65] = "";
    ::gethostname(host, sizeof host - 1);
    return "redis-flock:" + std::string{host} + ':' + std::to_string(::getpid()) +
           (only_tells ? "" : end_of_name(settings.key));
}

/// The redis-flocks that CLIENT LIST names for this key, each with what is to be told of it.
inline std::map<std::string, std::string> clients_for(const std::string& key, const std::string& client_list) {
    struct Client {
        long age = 0;
        bool waits = false;
    };
    std::map<std::string, Client> clients;
    std::istringstream lines{client_list};
    for (std::string line; std::getline(lines, line);) {
        const auto field = [&line](const std::string& name) {
            const std::size_t begin = line.find(' ' + name + '=') + name.size() + 2;
            return begin < name.size() + 2 ? "" : line.substr(begin, line.find(' ', begin) - begin);
        };
        const std::string name = field("name");
        static const std::regex form{"redis-flock:[^:]*:[0-9]+(:.*)"};
        std::smatch parts;
        if (!std::regex_match(name, parts, form) || parts[1] != end_of_name(key)) continue;
        Client& client = clients[name]; // which may have several connections
        client.age = std::max(client.age, std::strtol(field("age").c_str(), nullptr, 10));
        client.waits |= field("flags").find('b') != std::string::npos;
    }
    std::map<std::string, std::string> told;
    for (const auto& [name, client] : clients)
        told[name] = "connected for " + std::to_string(client.age) + " s" + (client.waits ? ", and waits" : "");
    return told;
}
