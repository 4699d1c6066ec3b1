/// Where a node of a cluster sends us. It knows nothing of nodes that we know. tests/cluster_route_test.cpp goes red if
/// it is wrong.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

namespace redislock::detail {

/// What `MOVED 3999 10.0.0.1:6381` or `ASK 3999 10.0.0.1:6381` says.
struct Redirect {
    std::string host{}; ///< a name or a numeric address; empty: the host of the node that says so
    std::string port{};
    bool asks = false; ///< for this request alone, and with ASKING: the slot is being moved there

    /// Nothing where a sentence holds none. It may stand behind the name of a server.
    static std::optional<Redirect> in(std::string_view sentence) {
        const auto moved = behind(sentence, "MOVED "), ask = behind(sentence, "ASK ");
        std::string_view rest = moved ? *moved : ask.value_or("");
        const std::string_view slot = word(rest), address = word(rest);
        const auto colon = address.rfind(':'); // an IPv6 address comes without brackets
        if (!is_number(slot) || colon == address.npos || !is_port(address.substr(colon + 1))) return {};
        std::string_view host = address.substr(0, colon);
        if (host == "?") host = {}; // as a node without a name says that is to be known by it
        if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
        return Redirect{std::string{host}, std::string{address.substr(colon + 1)}, !moved};
    }

private:
    static std::optional<std::string_view> behind(std::string_view sentence, std::string_view mark) {
        const auto at = sentence.find(mark);
        if (at == sentence.npos || (at > 0 && sentence[at - 1] != ' ' && sentence[at - 1] != '-')) return {};
        return sentence.substr(at + mark.size());
    }
    static std::string_view word(std::string_view& rest) noexcept {
        const std::string_view first = rest.substr(0, rest.find(' '));
        rest.remove_prefix(std::min(rest.size(), first.size() + 1));
        return first;
    }
    static bool is_port(std::string_view text) noexcept {
        return is_number(text) && text.front() != '0' && (text.size() < 5 || text <= "65535");
    }
    static bool is_number(std::string_view text) noexcept {
        return !text.empty() && text.size() < 6 && text.find_first_not_of("0123456789") == text.npos;
    }
};

} // namespace redislock::detail
