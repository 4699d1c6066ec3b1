/// TLS by OpenSSL, 1.1.1 or later, for rediss:// and valkeys://. Include it in one file of a program, which links
/// `redislock::tls`; redislock.hpp includes it where that target says so. tests/tls_test.cpp goes red if it is wrong.
#pragma once

#include "detail/net/transport.hpp"
#include "detail/system/per_process.hpp"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdint>

#if OPENSSL_VERSION_NUMBER < 0x10101000L
#error "redislock needs OpenSSL 1.1.1 or later"
#endif

namespace redislock::detail {

struct FreeSsl {
    void operator()(SSL_CTX* context) const noexcept { ::SSL_CTX_free(context); }
    void operator()(SSL* session) const noexcept { ::SSL_free(session); }
};

/// What the last call had to object, in OpenSSL's words.
inline std::string openssl_objection() {
    const char* const reason = ::ERR_reason_error_string(::ERR_peek_last_error());
    return reason != nullptr ? reason : "failed";
}

/// A BIO that raises no SIGPIPE, as OpenSSL's own would (openssl/openssl #16399), and never blocks.
class SocketBio {
public:
    /// Throws std::bad_alloc.
    static BIO* over(int socket) {
        BIO* const bio = method() != nullptr ? ::BIO_new(method()) : nullptr;
        if (bio == nullptr) throw std::bad_alloc{};
        ::BIO_set_data(bio, reinterpret_cast<void*>(static_cast<std::intptr_t>(socket)));
        ::BIO_set_init(bio, 1);
        return bio;
    }

    /// Made by the first call, which is a constructor's, before there can be a fork that interrupts it.
    static BIO_METHOD* method() noexcept {
        static BIO_METHOD* const made_once = made();
        return made_once;
    }

private:
    static BIO_METHOD* made() noexcept {
        BIO_METHOD* const method = ::BIO_meth_new(::BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "redislock socket");
        if (method == nullptr) return nullptr;
        ::BIO_meth_set_write(method, write);
        ::BIO_meth_set_read(method, read);
        ::BIO_meth_set_ctrl(method, control);
        return method;
    }

    static int socket_of(BIO* bio) noexcept {
        return static_cast<int>(reinterpret_cast<std::intptr_t>(::BIO_get_data(bio)));
    }
    static int write(BIO* bio, const char* bytes, int size) noexcept {
        ::BIO_clear_retry_flags(bio);
        const auto sent = ::send(socket_of(bio), bytes, static_cast<std::size_t>(size), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && is_to_retry()) BIO_set_retry_write(bio);
        return static_cast<int>(sent);
    }
    static int read(BIO* bio, char* into, int size) noexcept {
        ::BIO_clear_retry_flags(bio);
        const auto got = ::recv(socket_of(bio), into, static_cast<std::size_t>(size), MSG_DONTWAIT);
        if (got < 0 && is_to_retry()) BIO_set_retry_read(bio);
        if (got == 0) ::BIO_set_flags(bio, at_end);
        return static_cast<int>(got);
    }
    static long control(BIO* bio, int what, long, void*) noexcept {
        if (what == BIO_CTRL_EOF) return ::BIO_test_flags(bio, at_end) != 0;
        return what == BIO_CTRL_FLUSH;
    }
    static bool is_to_retry() noexcept { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

    static constexpr int at_end = 0x800; // BIO_FLAGS_IN_EOF, which 1.1.1 has no name for in public
};

/// One connection. Nothing is sent at its end: a server needs no farewell, and a forked child must not say it.
class TlsTransport final : public Transport {
public:
    explicit TlsTransport(std::unique_ptr<SSL, FreeSsl> session) noexcept : session_{std::move(session)} {}
    ~TlsTransport() override {
        ::SSL_set_shutdown(session_.get(), SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        // In a child the locks of its parent's context may be locked for ever.
        if (generation_ != generation()) static_cast<void>(session_.release());
    }

    Step handshake() override {
        begin_call();
        const int result = ::SSL_connect(session_.get());
        if (result == 1) return Step::done;
        const int error = finished(result) < 0 ? errno : 0;
        if (error == EAGAIN) return Step::waits;
        const bool is_verified = ::SSL_get_verify_mode(session_.get()) != SSL_VERIFY_NONE;
        const long verdict = is_verified ? ::SSL_get_verify_result(session_.get()) : X509_V_OK;
        if (error != EPROTO) // as a server with no room for another client does: nothing was asked yet
            failure_ = {Errc::unreachable, "the server hung up in the TLS handshake"};
        else if (verdict != X509_V_OK)
            failure_ = {Errc::tls_failed, ::X509_verify_cert_error_string(verdict) + hint(verdict)};
        return Step::failed;
    }

    ssize_t send(std::string_view bytes) override {
        begin_call();
        const int size = static_cast<int>(std::min<std::size_t>(bytes.size(), INT_MAX));
        const ssize_t sent = finished(::SSL_write(session_.get(), bytes.data(), size));
        if (sent == 0) errno = EPIPE;
        return sent == 0 ? -1 : sent;
    }

    ssize_t receive(char* into, std::size_t size) override {
        begin_call();
        return finished(::SSL_read(session_.get(), into, static_cast<int>(std::min<std::size_t>(size, INT_MAX))));
    }

    bool wants_to_write() const noexcept override { return wants_to_write_; }
    const Failure& failure() const noexcept override { return failure_; }

private:
    /// What earlier calls have left, of OpenSSL's or the program's, is not this one's.
    static void begin_call() noexcept {
        ::ERR_clear_error();
        errno = 0;
    }

    /// Which option is for that.
    static std::string hint(long verdict) {
        switch (verdict) {
        case X509_V_ERR_HOSTNAME_MISMATCH:
        case X509_V_ERR_IP_ADDRESS_MISMATCH: return " (see TlsOptions::server_name)";
        case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
        case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
        case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: return " (see TlsOptions::ca_file)";
        default: return {};
        }
    }

    /// As recv(2) says it: what a call has done, 0 for the end of the connection, or -1 and errno.
    ssize_t finished(int result) {
        const int system = errno;
        const int error = ::SSL_get_error(session_.get(), result);
        wants_to_write_ = error == SSL_ERROR_WANT_WRITE;
        switch (error) {
        case SSL_ERROR_NONE: return result;
        case SSL_ERROR_WANT_READ:
        case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
        case SSL_ERROR_ZERO_RETURN: errno = 0; return 0;
        case SSL_ERROR_SYSCALL: errno = system; return system == 0 ? 0 : -1;
        default: break;
        }
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING // an end without a farewell; 1.1.1 has no error for it
        if (ERR_GET_REASON(::ERR_peek_last_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
            ::ERR_clear_error();
            errno = 0;
            return 0;
        }
#endif
        failure_ = {Errc::tls_failed, openssl_objection()};
        ::ERR_clear_error(); // the program may use OpenSSL, too
        errno = EPROTO;
        return -1;
    }

    std::unique_ptr<SSL, FreeSsl> session_;
    const Generation generation_ = detail::generation();
    bool wants_to_write_ = false;
    Failure failure_{};
};

/// What is the same for all connections of a Redis: it reads the authorities once, and again in a forked child, since
/// another thread of the parent may have had a lock of its context at the fork.
class TlsContext final : public TransportFactory {
public:
    /// Throws Errc::bad_option for a file or a name that can't be used.
    TlsContext(const Address& address, TlsOptions options) : options_{std::move(options)} {
        const std::string& name = options_.server_name.empty() ? address.host : options_.server_name;
        if (options_.verify == Verify::full && address.service.empty() && (name.empty() || name.front() == '.'))
            raise({Errc::bad_option, "the server's name for TLS is \"" + printable(name) + "\""});
        SocketBio::method();
        static_cast<void>(context());
    }

    std::unique_ptr<Transport> over(int socket, const std::string& host) const override {
        const std::string& name = options_.server_name.empty() ? host : options_.server_name;
        std::unique_ptr<SSL, FreeSsl> session{::SSL_new(context())};
        if (!session) throw std::bad_alloc{};
        BIO* const bio = SocketBio::over(socket);
        ::SSL_set_bio(session.get(), bio, bio);
        // A numeric address is no name: it is in the certificate as an address, and not said beforehand.
        X509_VERIFY_PARAM* const expected = ::SSL_get0_param(session.get());
        const bool is_numeric = ::X509_VERIFY_PARAM_set1_ip_asc(expected, name.c_str()) == 1;
        if (options_.verify != Verify::full) ::X509_VERIFY_PARAM_set1_ip(expected, nullptr, 0);
        if (!is_numeric && options_.verify == Verify::full) {
            ::SSL_set_hostflags(session.get(), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
            if (::SSL_set1_host(session.get(), name.c_str()) != 1) throw std::bad_alloc{};
        }
        if (!is_numeric) SSL_set_tlsext_host_name(session.get(), name.c_str());
        return std::make_unique<TlsTransport>(std::move(session));
    }

    static std::unique_ptr<const TransportFactory> make(const Address& address, const TlsOptions& options) {
        return std::make_unique<const TlsContext>(address, options);
    }

private:
    struct Own {
        std::mutex mutex{};
        std::unique_ptr<SSL_CTX, FreeSsl> context{};
        bool abandon() noexcept { return false; } // see the class
    };

    SSL_CTX* context() const {
        Own& own = own_.get();
        const std::lock_guard guard{own.mutex};
        if (!own.context) own.context = made();
        return own.context.get();
    }

    std::unique_ptr<SSL_CTX, FreeSsl> made() const {
        std::unique_ptr<SSL_CTX, FreeSsl> made{::SSL_CTX_new(::TLS_client_method())};
        SSL_CTX* const context = made.get();
        if (context == nullptr) throw std::bad_alloc{};
        ::SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
        ::SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION);
        ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                        SSL_MODE_RELEASE_BUFFERS);
        ::SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
        ::SSL_CTX_set_read_ahead(context, 1);
        ::SSL_CTX_set_default_passwd_cb(context, [](char*, int, int, void*) { return -1; }); // nobody is asked for it
        const bool verifies = options_.verify != Verify::none;
        ::SSL_CTX_set_verify(context, verifies ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, nullptr);
        ::ERR_clear_error();
        if (verifies) load_authorities(context);
        if (!options_.certificate.empty()) load_certificate(context);
        ::ERR_clear_error();
        return made;
    }

    void load_authorities(SSL_CTX* context) const {
        const char* const file = options_.ca_file.empty() ? nullptr : options_.ca_file.c_str();
        const char* const folder = options_.ca_folder.empty() ? nullptr : options_.ca_folder.c_str();
        if (file == nullptr && folder == nullptr)
            ::SSL_CTX_set_default_verify_paths(context);
        else if (::SSL_CTX_load_verify_locations(context, file, folder) != 1)
            refuse_file("tls.ca_file", options_.ca_file.empty() ? options_.ca_folder : options_.ca_file);
    }

    void load_certificate(SSL_CTX* context) const {
        const std::string& key = options_.key.empty() ? options_.certificate : options_.key;
        if (::SSL_CTX_use_certificate_chain_file(context, options_.certificate.c_str()) != 1)
            refuse_file("tls.certificate", options_.certificate);
        if (::SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1 ||
            ::SSL_CTX_check_private_key(context) != 1)
            refuse_file("tls.key", key);
    }

    [[noreturn]] static void refuse_file(const char* option, const std::string& path) {
        const int error = ::access(path.c_str(), R_OK) == 0 ? 0 : errno;
        const std::string why = error == 0 ? openssl_objection() : std::system_category().message(error);
        ::ERR_clear_error();
        raise({Errc::bad_option, std::string{option} + " \"" + printable(path) + "\": " + why});
    }

    const TlsOptions options_;
    mutable PerProcess<Own> own_{};
};

inline const bool has_tls = (make_tls = &TlsContext::make, true);

} // namespace redislock::detail
