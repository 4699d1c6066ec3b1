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

/// All addresses of a host, or the one of a unix socket. A numeric host is not looked up; a name is, which may block
/// for as long as the system's resolver does. Throws std::system_error: Errc::unresolved, Errc::bad_uri.
inline std::vector<Endpoint> resolve(const Address& address) {
    std::vector<Endpoint> found;
    if (!address.path.empty()) {
        Endpoint endpoint{{}, sizeof(sockaddr_un), address.text()};
        auto* local = reinterpret_cast<sockaddr_un*>(&endpoint.address);
        if (address.path.size() >= sizeof local->sun_path)
            raise({Errc::bad_uri, endpoint.text + ": the path of a socket has at most " +
                                      std::to_string(sizeof local->sun_path - 1) + " bytes"});
        local->sun_family = AF_UNIX;
        std::memcpy(local->sun_path, address.path.c_str(), address.path.size() + 1);
        found.push_back(std::move(endpoint));
        return found;
    }
    const Uncancelled call;
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV | AI_NUMERICHOST;
    addrinfo* list = nullptr;
    int error = ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &list);
    if (error == EAI_NONAME) {
        hints.ai_flags = AI_NUMERICSERV;
        error = ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &list);
    }
    if (error != 0) raise({Errc::unresolved, address.host + ": " + ::gai_strerror(error)});
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner{list, &::freeaddrinfo};
    for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
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

} // namespace redislock::detail
