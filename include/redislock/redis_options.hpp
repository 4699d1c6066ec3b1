/// How to talk to a server, beyond its URI. tests/redis_test.cpp and tests/locator_test.cpp go red if it is wrong.
#pragma once

#include "options.hpp"
#include "uri.hpp"

#include <functional>
#include <optional>
#include <vector>

namespace redislock {

/// Who we are to a server.
struct Credentials {
    std::string user{}; ///< empty: the default user
    std::string password{};
};

/// How far a server's certificate is verified.
enum class Verify {
    full, ///< its chain, and that it is for the server's name or address
    ca,   ///< its chain alone: for tunnels, and for servers that are announced by their address
    none, ///< not at all: whoever is in between can read and change everything
};

/// For rediss:// and valkeys://. Files are in PEM. TLS is 1.2 or later.
struct TlsOptions {
    std::string ca_file{};     ///< the authorities to trust; without this and a folder, the system's
    std::string ca_folder{};   ///< the same, by hashed names, as `openssl rehash` makes them
    std::string certificate{}; ///< ours and its chain, for a server that asks for one
    std::string key{};         ///< of our certificate, without a passphrase; empty: it is in the same file
    std::string server_name{}; ///< the name in the server's certificate, where it is not the URI's host
    Verify verify = Verify::full;

    friend bool operator==(const TlsOptions&, const TlsOptions&) = default;
};

/// For redis+sentinel:// and rediss+sentinel://: how to talk to the sentinels.
struct SentinelOptions {
    Credentials credentials{};       ///< theirs: the URI's user and password are not said to them
    std::optional<bool> uses_tls{};  ///< empty: if the URI's scheme says so for the servers
    std::optional<TlsOptions> tls{}; ///< empty: as for the servers
};

/// An aggregate, for designated initialisers: `{.client_name = "billing"}`.
struct RedisOptions {
    /// What CLIENT LIST shows; printable, without spaces. Empty: not set. A server that forbids it is used all the
    /// same.
    std::string client_name = "redislock";

    /// Connections kept open while nobody uses them. More are opened as more threads ask at once.
    std::size_t idle_connections = 16;

    /// For a server that may lose its data when it ends: the longest ttl of any client, up to 24 h. A server that has
    /// been up for less, and for up to a second and 2 % more, may have forgotten leases that go on: it grants nothing
    /// (Errc::restarted), and in a Quorum it has no vote. A longer ttl is refused. Each new connection asks the server
    /// by INFO how long it has been up; a proxy that keeps connections over a restart hides it. 0: not asked.
    ///
    /// The same holds for a server that sentinels have promoted, from its promotion on, and for 2 s and 2 % more: it
    /// may not have received the last grants of the primary before it.
    Millis restart_delay{0};

    /// Asked for each new connection, in place of the URI's user and password: for passwords that rotate, and tokens
    /// that expire (AWS IAM, Microsoft Entra). It is called in a thread of the library's, once for connections that are
    /// made at the same time. It may block: a request waits for it no longer than a quarter of its time, and uses the
    /// last credentials then. It may throw: what it throws is told, where no earlier credentials are known. A call that
    /// is under way outlives the Redis: what the function refers to must be its own, by a shared_ptr for instance.
    std::function<Credentials()> credentials{};

    /// For rediss://, and refused where nothing is talked to by TLS: see tls.hpp.
    TlsOptions tls{};

    SentinelOptions sentinel{};

    /// Finds the server's addresses, numeric or of unix sockets, in place of the system's resolver: for service
    /// discovery. It is called as `credentials` is, where the URI's host is a name, and for each primary that sentinels
    /// name.
    std::function<std::vector<Address>(const Address&)> resolver{};
};

namespace detail {
/// Throws Errc::bad_option.
inline RedisOptions checked(RedisOptions options) {
    for (const char c : options.client_name)
        if (c <= ' ' || c >= 127)
            refuse("client_name", "\"" + options.client_name + "\"", "ASCII that is printable, without spaces");
    if (options.restart_delay < Millis::zero() || options.restart_delay > Options::longest_ttl)
        refuse("restart_delay", in_ms(options.restart_delay), "0 to " + in_ms(Options::longest_ttl));
    return options;
}
} // namespace detail

} // namespace redislock
