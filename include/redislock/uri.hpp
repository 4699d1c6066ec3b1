/// Where a server is and who we are to it, as its URI says. It resolves no name and opens no connection.
/// tests/uri_test.cpp goes red if it is wrong.
#pragma once

#include "errors.hpp"

#include <charconv>
#include <vector>

namespace redislock {

/// `redis://[[user]:password@]host[:port][/db]`, `rediss://` for the same over TLS, `valkey://` and `valkeys://` as
/// other names for the two, or `unix:///path[?db=n]` (also with `user:password@`); parts may be percent-encoded, and an
/// IPv6 address stands in brackets. The scheme's case does not matter.
///
/// `redis+sentinel://[[user]:password@]sentinel[:26379][,sentinel...]/service[/db]`, also with rediss, valkey and
/// valkeys: the primary of that service, which its sentinels name. User and password are the primary's: see
/// SentinelOptions for the sentinels'.
struct Address {
    std::string host{}; ///< a name or a numeric address; empty for a unix socket
    std::string port{"6379"};
    std::string path{}; ///< of a unix socket; empty for TCP
    std::string user{};
    std::string password{};
    unsigned db = 0;
    bool tls = false;
    std::string service{};            ///< that sentinels watch over; if there is one, it has no host of its own
    std::vector<Address> sentinels{}; ///< of the service: hosts and ports

    /// For messages: without user and password.
    std::string text() const {
        if (!path.empty()) return "unix:" + path;
        if (service.empty()) return (host.find(':') == host.npos ? host : "[" + host + "]") + ":" + port;
        std::string text = "service " + service;
        for (const Address& sentinel : sentinels)
            text += (&sentinel == &sentinels.front() ? " at " : ",") + sentinel.text();
        return text;
    }

    /// Throws std::system_error with Errc::bad_uri; the message shows of the URI only what can't be a password.
    static Address parse(std::string_view uri);
};

namespace detail {

/// One URI on its way to an Address: takes it apart from the left, and says what it could not understand.
class UriParser {
public:
    explicit UriParser(std::string_view uri) : uri_{uri}, rest_{uri} {}

    Address parse() {
        const auto scheme_end = rest_.find("://");
        if (rest_.empty()) refuse("it is empty");
        if (is_blank(rest_.front()) || is_blank(rest_.back())) refuse("it begins or ends with a space or a line break");
        if (scheme_end == rest_.npos)
            refuse("it has no scheme; expected redis://, rediss://, redis+sentinel:// or unix://");
        std::string scheme{rest_.substr(0, scheme_end)};
        for (char& c : scheme) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        rest_.remove_prefix(scheme_end + 3);
        constexpr std::string_view by_sentinel = "+sentinel";
        const bool has_sentinels = scheme.ends_with(by_sentinel) && scheme != "unix+sentinel";
        if (has_sentinels) scheme.resize(scheme.size() - by_sentinel.size());
        address_.tls = scheme == "rediss" || scheme == "valkeys";
        if (!address_.tls && scheme != "redis" && scheme != "valkey" && scheme != "unix")
            refuse("its scheme is not redis://, rediss://, valkey://, valkeys:// or unix://, nor redis+sentinel:// or "
                   "rediss+sentinel://");
        if (scheme != "unix" && rest_.find("://") != rest_.npos)
            refuse("it holds more than one URI, and a server has one");
        const std::string_view query = split_off('?');
        if (rest_.find('#') != rest_.npos || query.find('#') != query.npos) refuse("it has a fragment");
        credentials();
        if (scheme == "unix")
            unix_socket(query);
        else if (!query.empty())
            refuse("it has a query; only unix:// has one, ?db=n");
        else
            has_sentinels ? service() : tcp();
        return std::move(address_);
    }

private:
    void credentials() {
        const auto authority_end = std::min(rest_.find('/'), rest_.size());
        const auto at = rest_.substr(0, authority_end).rfind('@');
        if (at == rest_.npos) return;
        const std::string_view user_info = rest_.substr(0, at);
        rest_.remove_prefix(at + 1);
        const auto colon = user_info.find(':');
        if (colon == user_info.npos) refuse("a user needs a password: user:password@, or :password@");
        address_.user = decoded(user_info.substr(0, colon));
        address_.password = decoded(user_info.substr(colon + 1));
        if (address_.password.empty()) refuse("its password is empty");
    }

    void tcp() {
        database(split_off('/'));
        host_and_port(rest_, address_);
    }

    void service() {
        const std::string_view service_and_db = split_off('/');
        const auto slash = std::min(service_and_db.find('/'), service_and_db.size());
        address_.service = decoded(service_and_db.substr(0, slash));
        if (address_.service.empty()) refuse("it names no service; expected redis+sentinel://sentinel/service");
        for (const char c : address_.service)
            if (c <= ' ' || c >= 127) refuse("its service is not of printable ASCII, without spaces");
        database(service_and_db.substr(std::min(slash + 1, service_and_db.size())));
        for (auto comma = rest_.find(',');; rest_.remove_prefix(comma + 1), comma = rest_.find(',')) {
            host_and_port(rest_.substr(0, comma), address_.sentinels.emplace_back(Address{.port = "26379"}));
            if (comma == rest_.npos) return;
        }
    }

    void database(std::string_view text) {
        if (!text.empty()) address_.db = number(text, 0, 1'000'000, "database");
    }

    void host_and_port(std::string_view text, Address& address) const {
        if (text.starts_with('[')) {
            const auto close = text.find(']');
            if (close == text.npos) refuse("its [ is not closed");
            address.host = decoded(text.substr(1, close - 1));
            text.remove_prefix(close + 1);
            if (!text.empty() && !text.starts_with(':')) refuse("after ] comes :port or nothing");
        } else {
            const std::string_view host = text.substr(0, text.find(':'));
            if (text.rfind(':') != text.find(':')) refuse("an IPv6 address needs brackets: [::1]");
            address.host = decoded(host);
            text.remove_prefix(host.size());
        }
        if (address.host.empty()) refuse("it names no host");
        if (text.starts_with(':')) address.port = std::to_string(number(text.substr(1), 1, 65'535, "port"));
    }

    void unix_socket(std::string_view query) {
        address_.path = decoded(rest_);
        if (!address_.path.starts_with('/')) refuse("a socket's path is absolute: unix:///run/redis.sock");
        if (rest_.find('@') != rest_.npos) refuse("user:password@ comes before the path, in which @ is written %40");
        if (query.empty()) return;
        if (!query.starts_with("db=")) refuse("its query is not ?db=n");
        address_.db = number(query.substr(3), 0, 1'000'000, "database");
    }

    /// What stands behind `mark`, which is cut off with it.
    std::string_view split_off(char mark) {
        const auto at = rest_.find(mark);
        if (at == rest_.npos) return {};
        const std::string_view behind = rest_.substr(at + 1);
        rest_ = rest_.substr(0, at);
        return behind;
    }

    unsigned number(std::string_view text, unsigned least, unsigned most, const char* what) const {
        unsigned value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most)
            refuse(std::string{"its "} + what + " is not a number from " + std::to_string(least) + " to " +
                   std::to_string(most));
        return value;
    }

    std::string decoded(std::string_view text) const {
        std::string plain;
        for (std::size_t i = 0; i < text.size(); ++i) {
            char c = text[i];
            if (c == '%') {
                unsigned value = 0;
                const std::string_view digits = text.substr(i + 1, 2);
                const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
                if (digits.size() != 2 || error != std::errc{} || end != digits.data() + 2)
                    refuse("a % is not followed by two hexadecimal digits");
                c = static_cast<char>(value);
                i += 2;
            }
            if (c == '\0') refuse("it holds a NUL byte");
            plain += c;
        }
        return plain;
    }

    /// Of a URI that isn't understood, any part may be a password; but for the path of a socket, or the host, where no
    /// @ is.
    [[noreturn]] void refuse(const std::string& why) const {
        constexpr std::string_view hosts = "0123456789-.ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
        const auto scheme_end = uri_.substr(0, 20).find("://");
        const bool is_scheme = scheme_end != uri_.npos && uri_.find_first_of(":@") == scheme_end;
        const std::string_view scheme = is_scheme ? uri_.substr(0, scheme_end + 3) : "";
        const std::string_view behind = uri_.substr(scheme.size(), uri_.find('?') - scheme.size());
        const bool has_user = uri_.find('@') != uri_.npos || uri_.find("%40") != uri_.npos;
        std::string shown{scheme};
        if (scheme == "unix://" && behind.starts_with('/') && !has_user && behind.size() < 200)
            shown += behind;
        else if (is_tcp(scheme) && !has_user)
            shown.append(behind.substr(0, std::min<std::size_t>(behind.find_first_not_of(hosts), 200))).append(":***");
        else
            shown += "***";
        const std::string hint = "; in a user or password, all but letters, digits, - . _ ~ is written %XX";
        raise({Errc::bad_uri, std::string{"\""}.append(printable(shown)) + "\": " + why +
                                  (has_user && (is_tcp(scheme) || scheme == "unix://") ? hint : "")});
    }

    static bool is_blank(char c) noexcept { return c == ' ' || (c >= '\t' && c <= '\r'); }

    static bool is_tcp(std::string_view scheme) noexcept {
        scheme.remove_suffix(std::min<std::size_t>(scheme.size(), 3));
        if (scheme.ends_with("+sentinel")) scheme.remove_suffix(std::string_view{"+sentinel"}.size());
        return scheme == "redis" || scheme == "rediss" || scheme == "valkey" || scheme == "valkeys";
    }

    std::string_view uri_;
    std::string_view rest_;
    Address address_;
};

} // namespace detail

inline Address Address::parse(std::string_view uri) { return detail::UriParser{uri}.parse(); }

} // namespace redislock
