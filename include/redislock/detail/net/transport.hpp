/// The seam between bytes and a socket, for what is not sent as it is. Plain connections have none. tests/tls_test.cpp
/// goes red if it is wrong.
#pragma once

#include "../../redis_options.hpp"
#include "../system/threads.hpp"

#include <sys/types.h>

#include <atomic>
#include <memory>

namespace redislock::detail {

/// A connected socket's own. No call waits. Not thread-safe.
class Transport {
public:
    Transport() = default;
    Transport(const Transport&) = delete;
    Transport& operator=(const Transport&) = delete;
    virtual ~Transport() = default;

    enum class Step { done, waits, failed };

    /// Before anything is sent, until it is done.
    virtual Step handshake() = 0;

    /// As send(2) and recv(2); with EPROTO for what failure() tells more of.
    virtual ssize_t send(std::string_view bytes) = 0;
    virtual ssize_t receive(char* into, std::size_t size) = 0;

    /// Whether what waits is waiting to send, and not to receive.
    virtual bool wants_to_write() const noexcept = 0;

    /// Why the handshake has failed, or a call with EPROTO.
    virtual const Failure& failure() const noexcept = 0;
};

/// Thread-safe.
class TransportFactory {
public:
    TransportFactory() = default;
    TransportFactory(const TransportFactory&) = delete;
    TransportFactory& operator=(const TransportFactory&) = delete;
    virtual ~TransportFactory() = default;

    /// `host`: the server's name or address, as it is known to us.
    virtual std::unique_ptr<Transport> over(int socket, const std::string& host) const = 0;
};

using MakeTls = std::unique_ptr<const TransportFactory> (*)(const Address&, const TlsOptions&);

/// Set by tls.hpp, so that nothing else depends on OpenSSL: one for all shared libraries of a process.
[[gnu::visibility("default")]] inline constinit std::atomic<MakeTls> make_tls{nullptr};

/// Null where the address is not one for TLS. Throws std::system_error: Errc::bad_option for a file that can't be used,
/// and for options without TLS, for then something was meant to be encrypted; a service's may be for its sentinels.
inline std::unique_ptr<const TransportFactory> transport_to(const Address& address, const TlsOptions& options) {
    if (!address.tls) {
        if (options != TlsOptions{} && address.service.empty())
            refuse("tls", "set, and " + address.text() + " is not talked to by TLS", "with rediss://");
        return nullptr;
    }
    const Uncancelled call; // it reads files
    if (const MakeTls make = make_tls) return make(address, options);
    raise({Errc::bad_uri, address.text() + ": for rediss://, include <redislock/tls.hpp> and link redislock::tls"});
}

} // namespace redislock::detail
