#include "catch.hpp"

#include <redislock/uri.hpp>

using namespace redislock;

TEST_CASE("the parts of a redis:// URI", "[address]") {
    const Address plain = Address::parse("redis://example");
    CHECK((plain.host == "example" && plain.port == "6379" && plain.db == 0 && plain.path.empty()));
    CHECK((plain.user.empty() && plain.password.empty()));
    const Address full = Address::parse("redis://me:se%40cret@10.0.0.1:7000/12");
    CHECK((full.host == "10.0.0.1" && full.port == "7000" && full.db == 12));
    CHECK((full.user == "me" && full.password == "se@cret"));
    CHECK(Address::parse("redis://:secret@h").user.empty());
    CHECK(Address::parse("redis://:secret@h").password == "secret");
    CHECK(Address::parse("redis://:a@b@h").password == "a@b");
    CHECK(Address::parse("REDIS://h/").db == 0);
    const Address six = Address::parse("redis://[::1]:7000");
    CHECK((six.host == "::1" && six.port == "7000" && six.text() == "[::1]:7000"));
    CHECK(Address::parse("redis://[fe80::1%25eth0]").host == "fe80::1%eth0");
}

TEST_CASE("the parts of a unix:// URI", "[address]") {
    const Address plain = Address::parse("unix:///run/redis.sock");
    CHECK((plain.path == "/run/redis.sock" && plain.db == 0 && plain.host.empty()));
    const Address full = Address::parse("unix://me:secret@/run/a%20b%3F.sock?db=3");
    CHECK((full.path == "/run/a b?.sock" && full.db == 3 && full.user == "me" && full.password == "secret"));
}

TEST_CASE("what is no URI of a server is refused with the reason", "[address]") {
    struct Row {
        std::string uri, reason;
    };
    const Row rows[] = {
        {"", "it is empty"},
        {"localhost:6379", "no scheme"},
        {"http://h", "not redis:// or unix://"},
        {"rediss://h", "TLS"},
        {"redis://", "names no host"},
        {"redis://:7000", "names no host"},
        {"redis://db.example:", "\"redis://db.example:***\": its port"},
        {"redis://h:", "port is not a number"},
        {"redis://h:0", "1 to 65535"},
        {"redis://h:65536", "1 to 65535"},
        {"redis://h:99999999999999999999", "1 to 65535"},
        {"redis://h:-1", "port is not a number"},
        {"redis://h:6379x", "port is not a number"},
        {"redis://h/x", "database is not a number"},
        {"redis://h/1/2", "database is not a number"},
        {"redis://h?db=1", "query"},
        {"redis://h#1", "fragment"},
        {"redis://:a/b@h", "written %XX"},
        {"redis://:a#b@h", "written %XX"},
        {"redis://:a%b@h", "written %XX"},
        {"redis://user@h", "user needs a password"},
        {"redis://user:@h", "password is empty"},
        {"redis://::1", "brackets"},
        {"redis://[::1", "not closed"},
        {"redis://[::1]7000", "after ]"},
        {"redis://h%2", "hexadecimal"},
        {"redis://h%zz", "hexadecimal"},
        {"redis://h%00", "NUL"},
        {"unix://run/redis.sock", "absolute"},
        {"unix://", "absolute"},
        {"unix:///s?db=", "database is not a number"},
        {"unix:///s?database=1", "?db=n"},
    };
    for (const Row& row : rows) {
        try {
            Address::parse(row.uri);
            FAIL("not refused: " << row.uri);
        } catch (const std::system_error& error) {
            CHECK(error.code() == Errc::bad_uri);
            CHECK_THAT(error.what(), containing(row.reason));
        }
    }
}

TEST_CASE("who wants TLS is told how to have it", "[address]") {
    try {
        Address::parse("rediss://h");
        FAIL("not refused");
    } catch (const std::system_error& error) {
        CHECK_THAT(error.what(), containing("a TLS proxy, such as stunnel") && containing("redis:// or unix://"));
    }
}

TEST_CASE("no refusal shows a password, nor a byte that a terminal obeys", "[address]") {
    for (const std::string uri : {"redis://me:hunter2@h:x",
                                  "redis://me:hunter2@h/?x",
                                  "redis://:hunter2/1@h",
                                  "redis://me:hunter2?@h",
                                  "rediss://me:hunter2@h",
                                  "hunter2@",
                                  "redis://me:hunter2@\x1b[2J:x",
                                  "redis://:hunter2#@h",
                                  "unix://me:hunter2@x",
                                  "redis://hunter2%40h:x",
                                  "redis://h?password=hunter2",
                                  "unix:///s?password=hunter2",
                                  "redis://:hunter2",
                                  "unix://me:hunter2?@/s",
                                  "me:hunter2://@h",
                                  "redis://:hunter2:6379",
                                  "redis://me:hunter2",
                                  "unix://:hunter2/run/redis.sock",
                                  "unix://:hunter2#/s",
                                  "unix:///me:hunter2@/run/redis.sock"}) {
        try {
            Address::parse(uri);
            FAIL("not refused: " << uri);
        } catch (const std::system_error& error) {
            CHECK_THAT(error.what(), !containing("hunter2") && !containing("\x1b"));
        }
    }
    CHECK(Address::parse("redis://me:hunter2@h").text() == "h:6379");
}

TEST_CASE("a URI of any bytes is parsed or refused", "[address]") {
    std::uint32_t state = 1;
    for (int round = 0; round < 100'000; ++round) {
        std::string uri = round % 2 == 0 ? "redis://" : "unix:///";
        for (state = state * 1664525 + 1013904223; uri.size() < 8 + (state >> 28);) {
            state = state * 1664525 + 1013904223;
            uri += ":/@%[]?#=db1\xff"[(state >> 16) % 13];
        }
        try {
            Address::parse(uri);
        } catch (const std::system_error& error) {
            REQUIRE(error.code() == Errc::bad_uri);
        }
    }
}
