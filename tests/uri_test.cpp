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
        {"redis://h:6379 ", "ends with a space"},
        {"redis://h:6379/1\n", "line break"},
        {" redis://h", "begins or ends with a space"},
        {"redis://a,redis://b,redis://c", "more than one URI"},
        {"redis://a:1 redis://b:2 redis://c:3", "more than one URI"},
        {"redis://user:pass@a/1,redis://b", "more than one URI"},
        {"http://h", "not redis://, rediss://"},
        {"unix+sentinel://h/service", "not redis://, rediss://"},
        {"redis-sentinel://h/service", "nor redis+sentinel://"},
        {"redis+sentinel://h", "names no service"},
        {"redis+sentinel://h/", "names no service"},
        {"redis+sentinel://h//1", "names no service"},
        {"redis+sentinel://h/a%0ab", "printable"},
        {"redis+sentinel:///service", "names no host"},
        {"redis+sentinel://a,/service", "names no host"},
        {"redis+sentinel://a,b:x/service", "port is not a number"},
        {"redis+sentinel://h/service/x", "database is not a number"},
        {"redis+sentinel://h/service?db=1", "query"},
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

TEST_CASE("servers by TLS, and by Valkey's names, are understood", "[address]") {
    CHECK(Address::parse("rediss://h").tls);
    CHECK(Address::parse("VALKEYS://me:secret@h:7000/2").tls);
    CHECK(Address::parse("valkeys://me:secret@h:7000/2").db == 2);
    CHECK_FALSE(Address::parse("valkey://h").tls);
    CHECK_FALSE(Address::parse("redis://h").tls);
}

TEST_CASE("the parts of a redis+sentinel:// URI", "[address]") {
    const Address plain = Address::parse("redis+sentinel://a/main");
    CHECK((plain.service == "main" && plain.host.empty() && plain.db == 0 && !plain.tls));
    CHECK(plain.text() == "service main at a:26379");
    const Address full = Address::parse("REDISS+Sentinel://me:secret@a:1,b,[::1]:2/my%2Fmain/3");
    CHECK((full.service == "my/main" && full.db == 3 && full.tls && full.user == "me" && full.password == "secret"));
    CHECK(full.text() == "service my/main at a:1,b:26379,[::1]:2");
    CHECK(Address::parse("valkeys+sentinel://a/main").tls);
    CHECK_FALSE(Address::parse("valkey+sentinel://a/main").tls);
}

TEST_CASE("a service without a sentinel is refused", "[address]") {
    try {
        Redis redis{Address{.service = "main"}};
        FAIL("not refused");
    } catch (const std::system_error& error) {
        CHECK(error.code() == Errc::bad_uri);
        CHECK_THAT(error.what(), containing("service main: it has no sentinels"));
    }
}

TEST_CASE("who wants TLS and has not included it is told how to have it", "[address]") {
    Address address = Address::parse("rediss://h");
    const auto made = detail::make_tls.exchange(nullptr);
    try {
        Redis redis{address};
        FAIL("not refused");
    } catch (const std::system_error& error) {
        CHECK(error.code() == Errc::bad_uri);
        CHECK_THAT(error.what(), containing("<redislock/tls.hpp>") && containing("redislock::tls"));
    }
    detail::make_tls = made;
}

TEST_CASE("no refusal shows a password, nor a byte that a terminal obeys", "[address]") {
    for (const std::string uri : {"redis://me:hunter2@h:x",
                                  "redis://me:hunter2@h/?x",
                                  "redis://:hunter2/1@h",
                                  "redis://me:hunter2?@h",
                                  "rediss://me:hunter2@h:x",
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

TEST_CASE("what is printable has nothing that a terminal obeys, and keeps what people write", "[address]") {
    CHECK(detail::printable("schön, 5 €, 鍵, 🔒") == "schön, 5 €, 鍵, 🔒");
    CHECK(detail::printable("a\x1b[2J\n\x7f") == "a?[2J??");
    CHECK(detail::printable("a\x9b\x9bz") == "a??z");
    CHECK(detail::printable("\xc2\x9b") == "\xc2?");
    CHECK(detail::printable("\xe2\x82\xac\x9b") == "\xe2\x82\xac?");
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
