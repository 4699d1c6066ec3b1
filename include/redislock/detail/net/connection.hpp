/// The thin wrapper of hiredis: one connection whose socket and deadlines are ours and whose protocol is hiredis's.
/// It knows bytes and replies; what they mean to a lock is none of its business.
/// tests/connection_test.cpp goes red if it is wrong.
#pragma once

#include "../protocol/reply.hpp"
#include "../system/spin_wait.hpp"
#include "../system/wait.hpp"
#include "endpoint.hpp"

#include <netinet/tcp.h>

#include <memory>
#include <vector>

namespace redislock::detail {

/// One connection. Every call takes an absolute deadline, and waits in poll(2) alone; after a failure the connection is
/// closed and stays so, and failure() says why. Not thread-safe. It raises no signal and changes no signal's handling.
class Connection {
public:
    /// A reply may have this many bytes. A lock's have fewer than 100.
    static constexpr std::size_t longest_reply = 64 * 1024;

    Connection() : reader_{::redisReaderCreateWithFunctions(ReplyBuilder::functions())} {
        if (!reader_) throw std::bad_alloc{};
    }

    /// Tries each endpoint in turn, the last one until the deadline and the others for their share of the time.
    bool open(const std::vector<Endpoint>& endpoints, const Deadline& deadline) {
        failure_ = {Errc::unreachable, "no address"};
        for (auto left = static_cast<int>(endpoints.size()); const Endpoint& endpoint : endpoints) {
            const TimePoint time = now();
            const TimePoint share = time < deadline.at ? time + (deadline.at - time) / left-- : deadline.at;
            if (open(endpoint, deadline.by(share))) return true;
        }
        return false;
    }

    /// Connects without waiting: it's under way when this is true, and come about or not when the descriptor can be
    /// written.
    bool begin_open(const Endpoint& endpoint) {
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

    /// Sends as much as goes without waiting, and takes it off `bytes`. False: the connection has failed.
    bool write_some(std::string_view& bytes) {
        while (socket_ && !bytes.empty()) {
            const ssize_t sent = ::send(socket_.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent >= 0)
                bytes.remove_prefix(static_cast<std::size_t>(sent));
            else if (errno == EAGAIN || errno == EWOULDBLOCK)
                return true;
            else if (errno != EINTR) {
                const std::string reason = sentence(errno);
                hear_out();
                return fail(Errc::disconnected, reason);
            }
        }
        return good() || fail(Errc::disconnected, "not connected");
    }

    /// Sends all of `bytes`. False: not all were sent, so that the server will not run the last command; but perhaps
    /// those before it. Tries once even if the deadline has passed.
    bool write(std::string_view bytes, const Deadline& deadline) {
        while (write_some(bytes)) {
            if (bytes.empty()) return true;
            if (!wait(socket_.fd(), POLLOUT, deadline)) return fail(Errc::timed_out, "sending");
        }
        return false;
    }

    /// The next reply that isn't owed to an earlier user; null: see failure(). It is overwritten by the next call.
    /// Where the time is up, `last_words` are written behind the unanswered command, as far as that goes without
    /// waiting: the server reads them in this order, whenever it may be.
    const Reply* read(const Deadline& deadline, std::string_view last_words = {}) {
        while (owed_ > 0) {
            if (!next(deadline, last_words)) return nullptr;
            skip();
        }
        return next(deadline, last_words) ? &reply_ : nullptr;
    }

    /// A reply that has come, without waiting for it; null: there is none yet, or the connection has failed.
    const Reply* read_some() {
        for (bool more = true; good();) {
            if (parsed()) {
                if (owed_ == 0) return &reply_;
                skip();
            } else if (good() && reader_->len - reader_->pos > longest_reply) {
                fail(Errc::protocol_error, "the reply is too long");
            } else if (more && good()) {
                char bytes[16 * 1024];
                more = fed(bytes, ::recv(socket_.fd(), bytes, sizeof bytes, MSG_DONTWAIT));
            } else {
                return nullptr;
            }
        }
        return nullptr;
    }

    int fd() const noexcept { return socket_.fd(); }

    /// Whether something has been received that is not read yet.
    bool has_more() const noexcept { return reader_->pos < reader_->len; }

    /// Whether something has been received that is neither read nor owed to an earlier user. Never blocks.
    bool is_out_of_step() {
        if (owed_ > 0 && has_more() && read_some() != nullptr) return true;
        return good() && owed_ == 0 && has_more();
    }

    /// Blocks until there is something to read (then true) or the time is up.
    bool arriving(const Deadline& deadline) const noexcept {
        return has_more() || wait(socket_.fd(), POLLIN, deadline);
    }

    /// The reply to the last command is left for the next user to skip.
    void owe_reply() noexcept { ++owed_; }

    /// Whether it can be handed to the next user: open, and with nothing to be read but replies that are owed, and few
    /// of these. A late or surplus reply would otherwise be taken for the answer to the next question; and a server
    /// that finds us gone drops what it has not read yet, beyond its first 16 KB. Never blocks.
    bool reusable() {
        constexpr unsigned most_owed = 16;
        if (!good() || owed_ > most_owed) return false;
        for (; owed_ > 0 && arriving(TimePoint{}); --owed_)
            if (!next(TimePoint{}, {})) return false;
        if (owed_ > 0) return true;
        return !arriving(TimePoint{}) || fail(Errc::disconnected, "closed by the server, or out of step");
    }

    /// The last error among the replies that were skipped.
    const std::string& objection() const noexcept { return objection_; }

    bool good() const noexcept { return static_cast<bool>(socket_); }
    const Failure& failure() const noexcept { return failure_; }
    void close() noexcept { socket_ = {}; }

    /// While nobody uses it: see Descriptor.
    void set_aside() noexcept { socket_.set_aside(); }
    bool take_back() { return socket_.take_back() || fail(Errc::disconnected, "given up, for want of descriptors"); }

    /// Sends last words, as far as that goes without waiting, and puts the socket aside. `half_close` tells a server
    /// that blocks for us in a line that we leave it.
    void leave(std::string_view last_words, bool half_close = false) noexcept {
        ::send(socket_.fd(), last_words.data(), last_words.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (half_close) ::shutdown(socket_.fd(), SHUT_WR);
        lingering_ = std::move(socket_);
    }

    /// After leave(): a socket for LingeringSockets.
    Descriptor take_lingering() noexcept { return std::move(lingering_); }

    /// Ends it, for a reason that only its user can know.
    void refuse(Failure why) {
        failure_ = std::move(why);
        close();
    }

private:
    bool open(const Endpoint& endpoint, const Deadline& deadline) {
        if (!begin_open(endpoint)) return false;
        if (!wait(socket_.fd(), POLLOUT, deadline)) return unreachable(endpoint, ETIMEDOUT);
        return finish_open(endpoint);
    }

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

    /// Parses one more reply into reply_, reading as long as there isn't a whole one.
    bool next(const Deadline& deadline, std::string_view last_words) {
        for (std::size_t received = 0; good();) {
            if (parsed()) return true;
            if (!good()) return false;
            if (received > longest_reply) return fail(Errc::protocol_error, "the reply is too long");
            char bytes[4096];
            const ssize_t got = receive(bytes, sizeof bytes, deadline);
            if (got < 0 && errno == ETIMEDOUT) {
                if (!last_words.empty()) leave(last_words);
                return fail(Errc::timed_out, "waiting for a reply");
            }
            if (fed(bytes, got))
                received += static_cast<std::size_t>(got);
            else if (!good())
                return false; // and that has said why
        }
        return fail(Errc::disconnected, "not connected");
    }

    /// Whether what has come holds another whole reply, which then is reply_.
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
        char bytes[1024];
        if (fed(bytes, ::recv(socket_.fd(), bytes, sizeof bytes, MSG_DONTWAIT)) && parsed() && reply_.is_error())
            objection_.swap(reply_.text);
    }

    /// What recv() has returned is handed to the parser. False: there was nothing, which may be the end of the
    /// connection.
    bool fed(const char* bytes, ssize_t got) {
        if (got > 0) return ::redisReaderFeed(reader_.get(), bytes, static_cast<std::size_t>(got)), true;
        if (got == 0) return fail(Errc::disconnected, "the server closed the connection");
        const bool again = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
        return !again && fail(Errc::disconnected, sentence(errno));
    }

    /// As recv(), with ETIMEDOUT when the deadline has passed.
    ssize_t receive(char* into, std::size_t size, const Deadline& deadline) noexcept {
        ssize_t got = -1;
        const auto arrived = [&] {
            got = ::recv(socket_.fd(), into, size, MSG_DONTWAIT);
            return got >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
        };
        if (spin_wait_(arrived)) return got;
        if (wait(socket_.fd(), POLLIN, deadline)) return ::recv(socket_.fd(), into, size, MSG_DONTWAIT);
        errno = ETIMEDOUT;
        return -1;
    }

    bool unreachable(const Endpoint& endpoint, int error) {
        return fail(Errc::unreachable, endpoint.text + ": " + sentence(error));
    }

    /// Always false.
    bool fail(Errc code, std::string detail) {
        failure_ = {code, std::move(detail)};
        close();
        return false;
    }

    static std::string sentence(int error) { return std::system_category().message(error); }

    struct FreeReader {
        void operator()(redisReader* reader) const noexcept { ::redisReaderFree(reader); }
    };

    Descriptor socket_, lingering_;
    std::unique_ptr<redisReader, FreeReader> reader_;
    Reply reply_;
    bool whole_ = false;
    unsigned owed_ = 0;
    std::string objection_;
    SpinWait spin_wait_;
    Failure failure_;
};

} // namespace redislock::detail
