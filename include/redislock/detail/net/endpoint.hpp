/// The addresses that a connection may be made to. It knows nothing of what is sent.
/// tests/connection_test.cpp goes red if it is wrong.
#pragma once

#include "../../uri.hpp"
#include "../system/threads.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <memory>
#include <vector>

namespace redislock::detail {

/// Where to connect to, as the kernel wants it.
struct Endpoint {
    sockaddr_storage address{};
    socklen_t size = 0;
    std::string text{};
};

/// The one of a unix socket. Throws Errc::bad_uri where its path is too long.
inline Endpoint unix_endpoint(const Address& address) {
    Endpoint endpoint{{}, sizeof(sockaddr_un), address.text()};
    auto* local = reinterpret_cast<sockaddr_un*>(&endpoint.address);
    if (address.path.size() >= sizeof local->sun_path)
        raise({Errc::bad_uri, endpoint.text + ": the path of a socket has at most " +
                                  std::to_string(sizeof local->sun_path - 1) + " bytes"});
    local->sun_family = AF_UNIX;
    std::memcpy(local->sun_path, address.path.c_str(), address.path.size() + 1);
    return endpoint;
}

/// Of a host, with these AI_ flags; `error` is getaddrinfo()'s.
inline std::vector<Endpoint> tcp_endpoints(const Address& address, int flags, int& error) {
    const Uncancelled call;
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV | flags;
    addrinfo* list = nullptr;
    error = ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &list);
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner{list, &::freeaddrinfo};
    std::vector<Endpoint> found;
    for (const addrinfo* entry = error == 0 ? list : nullptr; entry != nullptr; entry = entry->ai_next) {
        Endpoint endpoint{{}, entry->ai_addrlen, {}};
        std::memcpy(&endpoint.address, entry->ai_addr, entry->ai_addrlen);
        char host[INET6_ADDRSTRLEN + 16] = "";
        ::getnameinfo(entry->ai_addr, entry->ai_addrlen, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
        const bool bare = entry->ai_family != AF_INET6;
        endpoint.text = (bare ? std::string{host} : "[" + std::string{host} + "]") + ":" + address.port;
        found.push_back(std::move(endpoint));
    }
    return found;
}

/// Without asking anybody: of a unix socket, or a numeric host; none for a name. Throws Errc::bad_uri.
inline std::vector<Endpoint> numeric_endpoints(const Address& address) {
    if (!address.path.empty()) return {unix_endpoint(address)};
    int error = 0;
    return tcp_endpoints(address, AI_NUMERICHOST, error);
}

/// All addresses of a host. A name is looked up, which may block for as long as the system's resolver does. Throws
/// Errc::unresolved, and Errc::bad_uri.
inline std::vector<Endpoint> resolve(const Address& address) {
    if (std::vector<Endpoint> known = numeric_endpoints(address); !known.empty()) return known;
    int error = 0;
    std::vector<Endpoint> found = tcp_endpoints(address, 0, error);
    if (found.empty()) raise({Errc::unresolved, address.host + ": " + ::gai_strerror(error)});
    return found;
}

} // namespace redislock::detail
