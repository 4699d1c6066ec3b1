/// The thin wrapper of hiredis: one connection, whose socket is ours and whose protocol is hiredis's.
/// It knows bytes and replies; what they mean to a lock is none of its business.
/// tests/connection_test.cpp goes red if it is wrong.
#pragma once

#include "../protocol/reply.hpp"
#include "../system/descriptors.hpp"
#include "endpoint.hpp"
#include "transport.hpp"

#include <netinet/tcp.h>

#include <memory>

namespace redislock::detail {

/// One connection. No call waits; after a failure the connection is closed and stays so, and failure() says why. Not
/// thread-safe. It raises no signal and changes no signal's handling.
class Connection {
public:
    /// A reply may have this many bytes. A lock's have fewer than 100.
    static constexpr std::size_t longest_reply = 64 * 1024;

    Connection() : reader_{::redisReaderCreateWithFunctions(ReplyBuilder::functions())} {
        if (!reader_) throw std::bad_alloc{};
    }

    /// Connects without waiting: it's under way when this is true, and come about or not when the descriptor can be
    /// written.
    bool begin_open(const Endpoint& endpoint) {
        transport_ = nullptr;
        const int family = endpoint.address.ss_family;
        socket_ = opened([family] { return ::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); });
        if (socket_.fd() < 0) return unreachable(endpoint, errno);
        if (family != AF_UNIX) tune();
        const auto* address = reinterpret_cast<const sockaddr*>(&endpoint.address);
        if (::connect(socket_.fd(), address, endpoint.size) == 0 || errno == EINPROGRESS || errno == EINTR) return true;
        return unreachable(endpoint, errno);
    }

    bool finish_open(const Endpoint& endpoint) {
        int error = 0;
        socklen_t size = sizeof error;
        ::getsockopt(socket_.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
        return error == 0 || unreachable(endpoint, error);
    }

    /// Once it is open: what is sent goes by TLS, after a handshake.
    void begin_handshake(const TransportFactory& tls, const std::string& host) {
        transport_ = tls.over(socket_.fd(), host);
    }

    /// Goes on with that. False: it is not done yet, or has failed.
    bool finish_handshake() {
        const Transport::Step step = transport_->handshake();
        return step == Transport::Step::done || (step == Transport::Step::failed && fail(transport_->failure()));
    }

    /// Whether it waits to send, for reasons of its own.
    bool wants_to_write() const noexcept { return transport_ && transport_->wants_to_write(); }

    /// Sends as much as goes without waiting, and takes it off `bytes`. False: the connection has failed.
    bool write_some(std::string_view& bytes) {
        while (socket_ && !bytes.empty()) {
            const ssize_t sent = send(bytes);
            if (sent >= 0)
                bytes.remove_prefix(static_cast<std::size_t>(sent));
            else if (errno == EAGAIN || errno == EWOULDBLOCK)
                return true;
            else if (errno != EINTR) {
                const std::string reason = sentence(errno);
                hear_out();
                return failure_.code != Errc::tls_failed && fail(Errc::disconnected, reason);
            }
        }
        return good() || (!failure_ && fail(Errc::disconnected, "not connected"));
    }

    /// The same for what is kept in a string. False: not all could be sent, or the connection has failed.
    bool flush(std::string& bytes) {
        if (bytes.empty()) return good();
        std::string_view rest = bytes;
        const bool is_good = write_some(rest);
        bytes.erase(0, bytes.size() - rest.size());
        return is_good && bytes.empty();
    }

    /// A reply that has come, without waiting for it; null: there is none yet, or the connection has failed.
    const Reply* read_some() {
        for (; next(); skip())
            if (owed_ == 0) return &reply_;
        return nullptr;
    }

    int fd() const noexcept { return socket_.fd(); }

    /// Whether something has been received that is not read yet.
    bool has_more() const noexcept { return reader_->pos < reader_->len; }

    /// Whether something has been received that is neither read nor owed to an earlier user. Never blocks.
    bool is_out_of_step() {
        while (owed_ > 0 && has_more() && next()) skip();
        return good() && owed_ == 0 && has_more();
    }

    /// The reply to the last command is left for the next user to skip.
    void owe_reply() noexcept { ++owed_; }

    /// Whether it can be handed to the next user: open, and with nothing to be read but replies that are owed, and few
    /// of these. A late or surplus reply would otherwise be taken for the answer to the next question; and a server
    /// that finds us gone drops what it has not read yet, beyond its first 16 KB. Never blocks.
    bool reusable() {
        constexpr unsigned most_owed = 16;
        if (!good() || owed_ > most_owed) return false;
        while (owed_ > 0 && next()) skip();
        if (owed_ > 0) return good();
        const bool is_surplus = has_more() || received(); // before the parser has it, which takes half a reply in
        return good() && (!is_surplus || fail(Errc::disconnected, "out of step"));
    }

    /// The last error among the replies that were skipped.
    const std::string& objection() const noexcept { return objection_; }

    bool good() const noexcept { return static_cast<bool>(socket_); }
    const Failure& failure() const noexcept { return failure_; }
    void close() noexcept {
        transport_ = nullptr;
        socket_ = {};
    }

    /// While nobody uses it: see Descriptor.
    void set_aside() noexcept { socket_.set_aside(); }
    bool take_back() { return socket_.take_back() || fail(Errc::disconnected, "given up, for want of descriptors"); }

    /// Sends last words, as far as that goes without waiting, and puts the socket aside. `half_close` tells a server
    /// that blocks for us in a line that we leave it.
    void leave(std::string_view closing_write, bool half_close) {
        while (!closing_write.empty()) {
            const ssize_t sent = send(closing_write);
            if (sent <= 0) break;
            closing_write.remove_prefix(static_cast<std::size_t>(sent));
        }
        transport_ = nullptr;
        if (half_close) ::shutdown(socket_.fd(), SHUT_WR);
        lingering_ = std::move(socket_);
    }

    /// After leave(): a socket for LingeringSockets.
    Descriptor take_lingering() noexcept { return std::move(lingering_); }

    /// Ends it, for a reason that only its user can know.
    void refuse(const Failure& why) {
        failure_ = why;
        close();
    }

private:
    /// Small messages go at once, and a peer that has vanished is noticed within a minute even on an idle connection.
    void tune() noexcept {
        const auto set = [this](int level, int name, int value) {
            ::setsockopt(socket_.fd(), level, name, &value, sizeof value);
        };
        set(IPPROTO_TCP, TCP_NODELAY, 1);
        set(SOL_SOCKET, SO_KEEPALIVE, 1);
        set(IPPROTO_TCP, TCP_KEEPIDLE, 30);
        set(IPPROTO_TCP, TCP_KEEPINTVL, 10);
        set(IPPROTO_TCP, TCP_KEEPCNT, 3);
    }

    /// Whether one more reply has come, which then is reply_.
    bool next() {
        for (bool more = true; good();) {
            if (parsed()) return true;
            if (good() && reader_->len - reader_->pos > longest_reply)
                return fail(Errc::protocol_error, "the reply is too long");
            if (!good() || !more) return false;
            more = received();
        }
        return false;
    }

    /// Hands on to the parser what has come, if anything has.
    bool received() {
        char bytes[16 * 1024];
        return fed(bytes, transport_ ? transport_->receive(bytes, sizeof bytes)
                                     : ::recv(socket_.fd(), bytes, sizeof bytes, MSG_DONTWAIT));
    }

    /// As send(2).
    ssize_t send(std::string_view bytes) {
        if (transport_) return transport_->send(bytes);
        return ::send(socket_.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }

    /// Whether the parser has another whole reply, which then is reply_.
    bool parsed() {
        reader_->privdata = &reply_;
        if (std::exchange(whole_, false)) reply_.type = 0; // else it goes on with what it has of one
        void* reply = nullptr;
        if (::redisReaderGetReply(reader_.get(), &reply) != REDIS_OK)
            return fail(Errc::protocol_error, reader_->errstr);
        whole_ = reply != nullptr;
        return whole_ && (reply_.type != 0 || fail(Errc::protocol_error, "a reply of RESP3"));
    }

    /// A reply that is owed to an earlier user.
    void skip() {
        --owed_;
        if (reply_.is_error()) objection_.swap(reply_.text);
    }

    /// One who hangs up on us may have said why.
    void hear_out() {
        if (received() && parsed() && reply_.is_error()) objection_.swap(reply_.text);
    }

    /// What recv() has returned is handed to the parser. False: there was nothing, which may be the end of the
    /// connection.
    bool fed(const char* bytes, ssize_t got) {
        if (got > 0) return ::redisReaderFeed(reader_.get(), bytes, static_cast<std::size_t>(got)), true;
        if (got == 0) return fail(Errc::disconnected, "the server closed the connection");
        const bool again = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
        if (!again && transport_ && errno == EPROTO) return fail(transport_->failure());
        return !again && fail(Errc::disconnected, sentence(errno));
    }

    bool unreachable(const Endpoint& endpoint, int error) {
        return fail(Errc::unreachable, endpoint.text + ": " + sentence(error));
    }

    /// Always false.
    bool fail(const Failure& why) {
        refuse(why);
        return false;
    }
    bool fail(Errc code, std::string detail) { return fail({code, std::move(detail)}); }

    static std::string sentence(int error) { return std::system_category().message(error); }

    struct FreeReader {
        void operator()(redisReader* reader) const noexcept { ::redisReaderFree(reader); }
    };

    Descriptor socket_, lingering_;
    std::unique_ptr<Transport> transport_; ///< null: what is sent is sent as it is
    std::unique_ptr<redisReader, FreeReader> reader_;
    Reply reply_;
    bool whole_ = false;
    unsigned owed_ = 0;
    std::string objection_;
    Failure failure_;
};

} // namespace redislock::detail
