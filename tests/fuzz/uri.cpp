// Any bytes as a server's URI: they are understood or refused, what is understood can be written down and read again,
// and no password is ever shown.
#include "fuzz.hpp"

#include <redislock/uri.hpp>

#include <algorithm>

using namespace redislock;
using fuzz::claim;

namespace {

/// With every byte of every part encoded, so that nothing in it can be taken for a mark.
std::string encoded(std::string_view text) {
    std::string all;
    for (const char c : text) {
        constexpr std::string_view digits = "0123456789abcdef";
        const auto value = static_cast<unsigned char>(c);
        all.append("%").append(1, digits[value / 16]).append(1, digits[value % 16]);
    }
    return all;
}

std::string host_and_port(const Address& address) { return "[" + encoded(address.host) + "]:" + address.port; }

std::string uri_of(const Address& address) {
    std::string uri = !address.path.empty() ? "unix" : address.tls ? "rediss" : "redis";
    if (!address.service.empty()) uri += "+sentinel";
    uri += "://";
    if (!address.password.empty()) uri += encoded(address.user) + ":" + encoded(address.password) + "@";
    if (!address.path.empty()) return uri + encoded(address.path) + "?db=" + std::to_string(address.db);
    if (address.service.empty()) return uri + host_and_port(address) + "/" + std::to_string(address.db);
    for (const Address& sentinel : address.sentinels)
        uri += (&sentinel == &address.sentinels.front() ? "" : ",") + host_and_port(sentinel);
    return uri + "/" + encoded(address.service) + "/" + std::to_string(address.db);
}

bool same(const Address& a, const Address& b) {
    return a.host == b.host && a.port == b.port && a.path == b.path && a.user == b.user && a.password == b.password &&
           a.db == b.db && a.tls == b.tls && a.service == b.service &&
           std::equal(a.sentinels.begin(), a.sentinels.end(), b.sentinels.begin(), b.sentinels.end(), same);
}

void read_and_written(std::string_view uri) try {
    const Address address = Address::parse(uri);
    claim(!address.host.empty() + !address.path.empty() + !address.service.empty() == 1,
          "it has a host, a path or a service");
    claim(address.service.empty() == address.sentinels.empty(), "a service has sentinels, and nothing else has");
    claim(address.user.empty() || !address.password.empty(), "a user has a password");
    claim(same(Address::parse(uri_of(address)), address), "what is written down reads the same");
    Address other = address;
    other.user = other.password = "another";
    claim(other.text() == address.text(), "the text does not depend on user and password");
} catch (const std::system_error& error) {
    claim(error.code() == Errc::bad_uri, "a URI is refused as such");
}

/// A password that stands before an @ and behind a colon, whatever is around it.
void not_shown(std::string_view before, std::string_view between, std::string_view behind) {
    constexpr std::string_view password = "sesame";
    for (const std::string_view part : {before, between, behind})
        if (part.find(password) != part.npos) return;
    std::string uri{before};
    uri.append(":").append(password).append(between).append("@").append(behind);
    try {
        const Address address = Address::parse(uri);
        claim(address.password.find(password) == address.password.npos ||
                  address.text().find(password) == std::string::npos,
              "the text shows no password");
    } catch (const std::system_error& error) {
        claim(std::string_view{error.what()}.find(password) == std::string_view::npos, "no message shows a password");
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input{data, size};
    read_and_written(input.bytes(size));
    fuzz::Input parts{data, size};
    const std::string_view before = parts.line(), between = parts.line();
    not_shown(before, between, parts.line());
    return 0;
}
