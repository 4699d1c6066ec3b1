/// Everything that can go wrong, as one error category, and the two ways to say so: a value and an exception.
/// It knows nothing of what the library does.
/// tests/redis_test.cpp goes red if it is wrong, and tests/uri_test.cpp.
#pragma once

#if __cplusplus < 202002L
#error "redislock needs C++20: -std=c++20"
#endif

#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

namespace redislock {

/// Everything that can go wrong, as values of one std::error_category. All exceptions of the library are
/// std::system_error with one of these codes, with the standard's EPERM or EDEADLK for misuse of a lock object, or with
/// the system's where it has no descriptor, thread or random bits for us; and std::bad_alloc.
enum class Errc {
    busy = 1,       ///< somebody else holds the key
    no_expiry,      ///< the key is held without an expiry: no lease of it will ever end by itself
    wrong_type,     ///< the key isn't a string: some other program's data, or a lock of another kind
    expired,        ///< the lease has ended: the key is gone
    stolen,         ///< the key holds another token
    unreachable,    ///< no connection could be made; nothing was sent
    unresolved,     ///< the host's name has no address
    no_sentinel,    ///< none of the sentinels answers
    no_service,     ///< no sentinel knows the service
    timed_out,      ///< no answer by the deadline
    disconnected,   ///< the connection ended before the answer
    protocol_error, ///< what the server sent is no reply to what it was asked
    out_of_memory,  ///< -OOM
    read_only,      ///< -READONLY, or INFO says so: this server is a replica
    loading,        ///< -LOADING: the server is reading its data set
    auth_required,  ///< -NOAUTH
    auth_failed,    ///< -WRONGPASS, or AUTH refused in any other way
    no_permission,  ///< -NOPERM, also from inside a script
    script_running, ///< -BUSY: the server is stuck in someone's script
    misconfigured,  ///< -MISCONF: the server can't persist, and refuses to write
    moved,          ///< -MOVED, -ASK: another node of a cluster has the key
    cluster_down,   ///< -CLUSTERDOWN, -TRYAGAIN
    master_down,    ///< -MASTERDOWN: a replica without its primary
    no_replicas,    ///< -NOREPLICAS: fewer replicas than the server demands
    restarted,      ///< the server has restarted, and may have forgotten leases: see RedisOptions::restart_delay
    tls_failed,     ///< the TLS handshake: a certificate that is not trusted, is for another name, or is missing
    two_servers,    ///< the name stands for two servers, each of which would grant the lock: see
                    ///< RedisOptions::restart_delay
    max_clients,    ///< the server has no room for another client
    no_such_db,     ///< SELECT was refused
    unsupported,    ///< the server doesn't know a command that we need
    server_error,   ///< any other error reply
    bad_key,        ///< a key that is empty or too long
    bad_option,     ///< an option outside its bounds
    bad_uri,        ///< a server's URI that can't be understood
};

} // namespace redislock

template <>
struct std::is_error_code_enum<redislock::Errc> : std::true_type {};

namespace redislock {

namespace detail {
class ErrorCategory final : public std::error_category {
public:
    const char* name() const noexcept override { return "redislock"; }

    std::string message(int value) const override {
        switch (static_cast<Errc>(value)) {
        case Errc::busy: return "the lock is held by somebody else";
        case Errc::no_expiry: return "the key is held without an expiry";
        case Errc::wrong_type: return "the key is not a lock: its value is not a string";
        case Errc::expired: return "the key is gone: its lease has ended, or it was deleted";
        case Errc::stolen: return "the key is held by another token";
        case Errc::unreachable: return "the server can not be reached";
        case Errc::unresolved: return "the host name can not be resolved";
        case Errc::no_sentinel: return "no sentinel answers";
        case Errc::no_service: return "no sentinel knows the service";
        case Errc::timed_out: return "the server has not answered in time";
        case Errc::disconnected: return "the connection was lost before the answer";
        case Errc::protocol_error: return "the server's answer is not understood";
        case Errc::out_of_memory: return "the server is out of memory";
        case Errc::read_only: return "the server is a read-only replica";
        case Errc::loading: return "the server is loading its data set";
        case Errc::auth_required: return "the server asks for a password";
        case Errc::auth_failed: return "the server refused the user or the password";
        case Errc::no_permission: return "the user may not do this on the server";
        case Errc::script_running: return "the server is busy with a script";
        case Errc::misconfigured: return "the server can not persist and refuses to write";
        case Errc::moved: return "another node of the cluster has the key: see redislock::Cluster, or --cluster";
        case Errc::cluster_down: return "the cluster can not serve the key now";
        case Errc::master_down: return "the replica has lost its primary";
        case Errc::no_replicas: return "the server has too few replicas to write";
        case Errc::restarted: return "the server has restarted and may have forgotten leases";
        case Errc::tls_failed: return "TLS has failed";
        case Errc::two_servers: return "the name stands for two independent servers";
        case Errc::max_clients: return "the server has reached its maximum of clients";
        case Errc::no_such_db: return "the server refused the database number";
        case Errc::unsupported: return "the server does not know the command";
        case Errc::server_error: return "the server answered with an error";
        case Errc::bad_key: return "this can not be the key of a lock";
        case Errc::bad_option: return "an option can not be used as it is";
        case Errc::bad_uri: return "this is not the URI of a Redis server";
        }
        return "unknown error of redislock";
    }
};
} // namespace detail

namespace detail {
/// Never destroyed: the shared library that was the first to need it may be unloaded before the others.
union CategoryInstance {
    constexpr CategoryInstance() noexcept : value{} {}
    ~CategoryInstance() {}
    ErrorCategory value;
};
[[gnu::visibility("default")]] inline constinit CategoryInstance category_instance{};
} // namespace detail

/// One for all shared libraries of a process, whatever visibility they are built with.
inline const std::error_category& category() noexcept { return detail::category_instance.value; }

inline std::error_code make_error_code(Errc code) noexcept { return {static_cast<int>(code), category()}; }

/// By the category's name: a program, and a library that it loads by dlopen(), may have a category each.
inline bool operator==(const std::error_code& code, Errc expected) noexcept {
    return code.value() == static_cast<int>(expected) && std::string_view{code.category().name()} == category().name();
}

/// What went wrong, and the sentence that the server or the system had for it. False where nothing did.
/// The sentence never holds a password or a token.
struct Failure {
    std::error_code code{};
    std::string detail{};

    explicit operator bool() const noexcept { return static_cast<bool>(code); }
};

[[noreturn]] inline void raise(const Failure& failure) { throw std::system_error{failure.code, failure.detail}; }

namespace detail {
/// What was raised: what() ends with the code's own sentence.
inline Failure failure_of(const std::system_error& error) {
    std::string detail = error.what();
    for (const std::string& end : {error.code().message(), std::string{": "}})
        if (detail.ends_with(end)) detail.resize(detail.size() - end.size());
    return {error.code(), std::move(detail)};
}

/// For messages: without what a terminal obeys, also of UTF-8, or not of it.
inline std::string printable(std::string text) {
    int expected = 0; // bytes of a character that has begun
    unsigned char before = 0;
    for (char& c : text) {
        const auto byte = static_cast<unsigned char>(c);
        const bool goes_on = byte >= 0x80 && byte < 0xc0, is_control = before == 0xc2 && byte < 0xa0;
        if (byte < ' ' || byte == 127 || (goes_on && (expected == 0 || is_control))) c = '?';
        if (goes_on)
            expected -= expected > 0;
        else
            expected = byte < 0xc0 ? 0 : byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
        before = byte;
    }
    return text;
}

/// Tells which server it was, once.
template <class Node>
void locate(Failure& why, const Node& node) {
    if (!why) return;
    const std::string name = node.name();
    if (!why.detail.starts_with(name)) why.detail.insert(0, why.detail.empty() ? name : name + ": ");
}
} // namespace detail

} // namespace redislock
