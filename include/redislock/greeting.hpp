/// What a connection says before anything else: who we are and where we want to go. What is in here neither sends it nor waits.
#pragma once

#include "address.hpp"
#include "connection.hpp"
#include "types.hpp"

namespace redislock::detail {

/// AUTH, SELECT and CLIENT SETNAME, as far as they are needed, in one write. Nothing else is sent before we know who we are and
/// where; the name is a courtesy, whose reply is skipped, for a server may forbid it.
class Greeting {
public:
    Greeting(const Address& address, const std::string& client_name)
        : auth_{!address.password.empty()}, select_{address.db != 0}, name_{!client_name.empty()} {
        if (auth_)
            bytes_ += address.user.empty() ? formatted({"AUTH", address.password})
                                           : formatted({"AUTH", address.user, address.password});
        if (select_) bytes_ += formatted({"SELECT", std::to_string(address.db)});
        if (name_) bytes_ += formatted({"CLIENT", "SETNAME", client_name});
    }

    const std::string& bytes() const noexcept { return bytes_; }

    /// How many replies are to be waited for, and whether there is another one, that is skipped.
    std::size_t awaited() const noexcept { return static_cast<std::size_t>(auth_) + static_cast<std::size_t>(select_); }
    bool has_name() const noexcept { return name_; }

    /// Why the n-th reply that is waited for, from 0, ends the connection; nothing if it does not. Of a refused AUTH nothing
    /// is repeated but the code: a server may echo the password.
    Failure objection(std::size_t nth, const Reply& reply) const {
        if (!reply.is_error()) return {};
        const Errc code = meaning(reply.text);
        if (auth_ && nth == 0)
            return Answer{Verdict::no, {code, {}}}.is_trouble() ? Failure{code, {}} : Failure{Errc::auth_failed, {}};
        return {code == Errc::server_error ? Errc::no_such_db : code, reply.text};
    }

private:
    bool auth_, select_, name_;
    std::string bytes_;
};

/// Where a server is, and what to say to it first.
struct Server {
    std::vector<Endpoint> endpoints;
    Greeting greeting;
};

} // namespace redislock::detail
