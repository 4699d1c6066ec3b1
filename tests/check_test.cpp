// What a check at the start tells of servers that are out of reach, strict, forgetful, or all right.
#include "catch.hpp"
#include "redis_server.hpp"
#include "troubles.hpp"

#include <redislock/check.hpp>

using namespace redislock;
using namespace std::chrono_literals;

namespace {

std::string all_of(const std::vector<std::string>& warnings) {
    std::string all;
    for (const std::string& one : warnings) all += one + '\n';
    return all;
}

} // namespace

TEST_CASE("a server that remembers, and a user who may do all, are all right", "[redis][check]") {
    test::RedisServer server{{"--appendonly", "yes"}};
    Redis redis{server.unix_uri()};
    CHECK(all_of(check(redis, "k")).empty());
    CHECK(server.is_empty_within(5s));
}

TEST_CASE("what makes locks less than they could be is told, a sentence each", "[redis][check]") {
    test::RedisServer server;
    Redis redis{server.unix_uri()};
    CHECK_THAT(all_of(check(redis, "k")), containing("appendonly is off"));
    Redis patient{server.unix_uri(), {.restart_delay = 1s}};
    server.command({"CONFIG", "SET", "maxmemory-policy", "volatile-lru"});
    CHECK_THAT(all_of(check(redis, "k")), containing("maxmemory-policy is volatile-lru"));
    server.command({"ACL", "SETUSER", "poor", "on", ">secret", "~k:*", "+set", "+get", "+del", "+pttl", "+pexpire",
                    "+eval", "+evalsha"});
    Redis poor{"unix://poor:secret@" + server.socket_path()};
    const std::string warnings = all_of(check(poor, "k"));
    CHECK_THAT(warnings, containing("can not stand in line, and polls, without SET, RPUSH, PEXPIRE, LPOP, BLPOP"));
    CHECK_THAT(warnings, containing("no fencing tokens, without TIME") && containing("without WAIT"));
    CHECK_THAT(warnings, containing("nothing is known of eviction and persistence, without INFO"));
    CHECK_THAT(warnings, !containing("appendonly"));
}

TEST_CASE("what forbids locks is thrown, with the reason", "[redis][check]") {
    test::RedisServer server;
    const auto failure_of = [](const std::string& uri) {
        Redis redis{uri};
        return test::failure([&] { return check(redis, "k", 1s).empty(); });
    };
    CHECK(failure_of("redis://127.0.0.1:" + std::to_string(test::free_port())).code == Errc::unreachable);
    CHECK(failure_of("unix://:wrong@" + server.socket_path()).code == Errc::auth_failed);
    server.command({"ACL", "SETUSER", "few", "on", ">secret", "~k:*", "+set", "+get", "+pttl", "+eval"});
    const Failure few = failure_of("unix://few:secret@" + server.socket_path());
    CHECK(few.code == Errc::no_permission);
    CHECK_THAT(few.detail, containing("locks need PEXPIRE, EVALSHA, DEL: NOPERM"));
    server.command({"ACL", "SETUSER", "other", "on", ">secret", "~jobs:*", "+@all"});
    CHECK(failure_of("unix://other:secret@" + server.socket_path()).code == Errc::no_permission);
    CHECK(server.is_empty_within(5s));
}
