#include "catch.hpp"

#include <redislock/detail/protocol/contended_keys.hpp>
#include <redislock/observer.hpp>

#include <sstream>

using namespace redislock;
using namespace std::chrono_literals;

TEST_CASE("a token is its 128 bits in 32 hexadecimal digits, and back", "[types]") {
    const Token token = Token::from_bits(0x0123456789abcdef, 0xfedcba9876543210);
    CHECK(token.hex() == "0123456789abcdeffedcba9876543210");
    CHECK(Token::from_hex(token.hex()) == token);
    CHECK_FALSE(token.is_nil());
    CHECK(Token{}.is_nil());
}

TEST_CASE("what is not 32 lower-case hexadecimal digits is no token", "[types]") {
    for (const std::string_view text : {"", "0123", "0123456789abcdef0123456789abcdeg",
                                        "0123456789ABCDEF0123456789abcdef", "0123456789abcdef0123456789abcdef0"})
        CHECK_FALSE(Token::from_hex(text).has_value());
}

TEST_CASE("a moment that would lie beyond the end of time is the end of time", "[types]") {
    const TimePoint start{5s};
    CHECK(later(start, 2ms) == TimePoint{5s + 2ms});
    CHECK(later(start, -2ms) == start);
    CHECK(later(start, Millis::max()) == TimePoint::max());
    CHECK(later(start, std::chrono::hours::max()) == TimePoint::max());
    CHECK(later(start, std::chrono::duration<double>{0.5}) == TimePoint{5500ms});
}

TEST_CASE("the request timeout follows the ttl, whenever that is set, and is a second at most", "[types]") {
    CHECK(Options{.ttl = 305ms}.effective_request_timeout() == 99ms);
    CHECK(Options{.ttl = 60s}.effective_request_timeout() == 1s);
    CHECK(Options{.ttl = 300ms, .request_timeout = 7ms}.effective_request_timeout() == 7ms);
    Options options;
    options.ttl = 500ms;
    CHECK_NOTHROW(detail::check(options));
    CHECK_NOTHROW(detail::check({.ttl = 10ms, .drift = 0.5}));
}

TEST_CASE("the allowance is the drift rounded up, and 2 ms", "[types]") {
    CHECK(allowance(10s, 0.01) == 102ms);
    CHECK(allowance(10ms, 0.01) == 3ms);
    CHECK(allowance(101ms, 0.01) == 4ms);
    CHECK(allowance(10s, 0) == 2ms);
}

TEST_CASE("an option out of its bounds is refused with its value and the bound", "[types]") {
    struct Row {
        Options options;
        std::string value, bound;
    };
    const auto days = std::chrono::hours{25};
    const Row rows[] = {
        {{.ttl = 0ms}, "ttl is 0 ms", "10 ms to 86400000 ms"},
        {{.ttl = -1ms}, "ttl is -1 ms", "10 ms"},
        {{.ttl = 9ms}, "ttl is 9 ms", "10 ms"},
        {{.ttl = days}, "ttl is 90000000 ms", "86400000 ms"},
        {{.ttl = Millis::max()}, "ttl is 9223372036854775807 ms", "86400000 ms"},
        {{.ttl = Millis::min()}, "ttl is -9223372036854775808 ms", "86400000 ms"},
        {{.ttl = 1s, .request_timeout = 0ms}, "request_timeout is 0 ms", "1 ms to less than 988 ms"},
        {{.ttl = 1s, .retry_for = -1ms}, "retry_for is -1 ms", "0 ms or more"},
        {{.ttl = 1s, .request_timeout = 988ms}, "request_timeout is 988 ms", "less than 988 ms"},
        {{.ttl = 1s, .drift = -0.1}, "drift is -0.1", "0 to 0.5"},
        {{.ttl = 1s, .drift = 0.51}, "drift is 0.51", "0 to 0.5"},
        {{.ttl = 1s, .drift = std::numeric_limits<double>::quiet_NaN()}, "drift is", "0 to 0.5"},
        {{.ttl = 1s, .max_retry_delay = 0ms}, "max_retry_delay is 0 ms", "1 ms to 3600000 ms"},
    };
    for (const Row& row : rows) {
        try {
            detail::check(row.options);
            FAIL("not refused: " << row.value);
        } catch (const std::system_error& error) {
            CHECK(error.code() == Errc::bad_option);
            CHECK_THAT(error.what(), containing(row.value) && containing(row.bound));
        }
    }
    CHECK_NOTHROW(detail::check({.ttl = 10ms}));
    CHECK_NOTHROW(detail::check({.ttl = 24h}));
    CHECK_NOTHROW(detail::check({.ttl = 1s, .request_timeout = 987ms}));
}

TEST_CASE("an empty key and one of 600 MB are refused, and every byte may stand in one", "[types]") {
    CHECK_THROWS_AS(detail::check_key(""), std::system_error);
    CHECK_THROWS_AS(detail::check_key(std::string(513, 'k')), std::system_error);
    CHECK_THROWS_AS(detail::check_key(std::string(600'000'000, 'k')), std::system_error);
    CHECK_NOTHROW(detail::check_key(std::string(512, 'k')));
    CHECK_NOTHROW(detail::check_key(std::string_view{"\0\r\n \xff", 5}));
}

TEST_CASE("every error has a sentence of its own", "[types]") {
    std::vector<std::string> sentences;
    for (int value = static_cast<int>(Errc::busy); value <= static_cast<int>(Errc::bad_uri); ++value)
        sentences.push_back(category().message(value));
    std::sort(sentences.begin(), sentences.end());
    CHECK(std::adjacent_find(sentences.begin(), sentences.end()) == sentences.end());
    CHECK(std::find(sentences.begin(), sentences.end(), category().message(12345)) == sentences.end());
    CHECK(std::string{category().name()} == "redislock");
}

TEST_CASE("what became of a lease can be printed, even if it is no value of its type", "[types]") {
    std::ostringstream text;
    for (const Outcome outcome :
         {Outcome::confirmed, Outcome::expired, Outcome::stolen, Outcome::unknown, Outcome::not_held, Outcome{99}})
        text << to_string(outcome) << ' ';
    for (const Loss loss : {Loss::deleted, Loss::stolen, Loss::timed_out, Loss::max_hold, Loss{99}})
        text << to_string(loss) << ' ';
    CHECK(text.str() == "confirmed expired stolen unknown not_held (no outcome) "
                        "deleted stolen timed_out max_hold (no loss) ");
}

TEST_CASE("busy, trouble and refusal are told apart", "[types]") {
    const auto no = [](Errc code) { return Answer{Verdict::no, {code, {}}}; };
    for (const Errc code : {Errc::busy, Errc::no_expiry, Errc::wrong_type})
        CHECK((no(code).is_busy() && !no(code).is_trouble()));
    for (const Errc code : {Errc::unreachable, Errc::read_only, Errc::loading, Errc::script_running, Errc::max_clients})
        CHECK((no(code).is_trouble() && !no(code).is_busy()));
    for (const Errc code : {Errc::auth_failed, Errc::no_permission, Errc::out_of_memory, Errc::moved})
        CHECK_FALSE((no(code).is_trouble() || no(code).is_busy()));
    CHECK(Answer{Verdict::unknown, {Errc::timed_out, {}}}.is_trouble());
    CHECK_FALSE(Answer{Verdict::unknown}.is_trouble());
    CHECK_FALSE(Answer{Verdict::yes}.is_trouble());
}

TEST_CASE("a key that somebody was in line for is contended for a while", "[types]") {
    detail::ContendedKeys keys;
    const TimePoint now{1h};
    CHECK_FALSE(keys.has("k", now));
    keys.note("k", now);
    CHECK(keys.has("k", now + 999ms));
    CHECK_FALSE(keys.has("k", now + 1s));
}
