// Some hundreds of simulated histories; the program tests/simulation/simulation.cpp runs as many as there is time for.
#include "catch.hpp"
#include "redis_server.hpp"
#include "simulation/world.hpp"

// The sanitizers lose their way where stacks are switched.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)

using simulation::Broken;
using simulation::Report;

namespace {
Report run(std::uint64_t seed, Broken broken = Broken::nothing) { return simulation::World{seed, broken}.run(); }

/// How many of so many histories break a rule in these words.
unsigned detected(Broken broken, const std::string& words, std::uint64_t histories) {
    unsigned found = 0;
    for (std::uint64_t seed = 1; seed <= histories; ++seed)
        found += run(seed, broken).violation.find(words) != std::string::npos;
    return found;
}
} // namespace

TEST_CASE("simulated histories break no rule", "[simulation]") {
    std::uint64_t grants = 0, faults = 0;
    for (std::uint64_t seed = 1; seed <= 500; ++seed) {
        const Report report = run(seed);
        grants += report.grants;
        faults += report.faults;
        INFO("seed " << seed);
        CHECK(report.violation == "");
    }
    CHECK(grants > 2'000);
    CHECK(faults > 2'000);
}

TEST_CASE("a seed is a history, the same one each time", "[simulation]") {
    for (std::uint64_t seed = 1; seed <= 20; ++seed) CHECK(run(seed).trace == run(seed).trace);
    CHECK(run(1).trace != run(2).trace);
}

TEST_CASE("clocks that differ by far more than the drift are detected", "[simulation]") {
    CHECK(detected(Broken::clocks, "have the lock", 200) > 0);
}

TEST_CASE("a server that comes back at once without its memory is detected", "[simulation]") {
    CHECK(detected(Broken::memory, "have the lock", 200) > 0);
}

TEST_CASE("a primary that is replaced by a replica without its last grants is detected", "[simulation]") {
    CHECK(detected(Broken::replicas, "have the lock", 200) > 0);
}

TEST_CASE("a token that comes again is detected where requests are carried out twice", "[simulation]") {
    CHECK(detected(Broken::tokens, "is being released", 200) > 0);
}

namespace {

/// One key on a simulated server and on a real one, to which the same things happen.
class Twins {
public:
    void start_anew() {
        model_ = {};
        model_.wall = 1'700'000'000 * simulation::s / simulation::us;
        server_.command({"FLUSHALL"});
    }
    void forget() {
        model_.forget();
        server_.command({"FLUSHALL"});
    }
    void outlive_the_lease() {
        time_ += 3600 * simulation::s;
        server_.command({"DEL", "k"});
    }

    /// What both answer: it must be the same, but for numbers and times, which come from their clocks.
    std::pair<redislock::Answer, redislock::Answer> ask(redislock::Request request) {
        using redislock::Answer;
        request.deadline = redislock::later(redis_.now(), std::chrono::seconds{10});
        const Answer real = redis_.ask(request);
        const Answer model = model_.act({simulation::Kind::command, request.verb, request.token, request.ttl,
                                         request.patience, request.fencing, request.fencing_step, request.fencing_token,
                                         request.replicas, request.recheck, request.hands_on},
                                        time_ += simulation::ms);
        CHECK(model.verdict == real.verdict);
        CHECK(model.why.code == real.why.code);
        CHECK(model.holder_left.has_value() == real.holder_left.has_value());
        CHECK((model.fencing_token > 0) == (real.fencing_token > 0));
        return {model, real};
    }
    std::string real_holder() { return server_.text({"GET", "k"}); }
    std::string model_holder() const { return std::string{model_.holder ? model_.holder->hex() : ""}; }

private:
    test::RedisServer server_;
    redislock::Redis redis_{server_.unix_uri()};
    simulation::Server model_{};
    simulation::Time time_ = 3600 * simulation::s;
};

} // namespace

TEST_CASE("a simulated server answers as a real one, whatever it is asked", "[redis][simulation]") {
    using namespace redislock;
    constexpr std::uint64_t far_ahead = 1'000'000'000'000; // us
    Twins twins;
    simulation::Random random{1};
    const Token tokens[] = {Token::from_bits(1, 1), Token::from_bits(2, 2), Token::from_bits(3, 3)};
    unsigned answers[3] = {};
    for (int script = 0; script < 300; ++script) {
        twins.start_anew();
        std::uint64_t model_fence = 0, real_fence = 0; // the last ones
        bool are_ahead = false;
        for (int step = 0; step < 20; ++step) {
            const auto event = random.between(0, 20);
            if (event == 0) twins.outlive_the_lease();
            if (event == 1) {
                twins.forget();
                model_fence = real_fence = 0;
                are_ahead = false;
            }
            if (event <= 1) continue;
            Request request{random.one_of({Verb::acquire, Verb::extend, Verb::release}), "k", tokens[random.bits() % 3],
                            Millis{random.between(60'000, 600'000)}, TimePoint{}};
            request.fencing = request.verb == Verb::acquire && random.chance(0.7);
            const bool writes = request.verb == Verb::extend && real_fence > 0 && random.chance(0.5);
            if (writes) request.fencing_token = std::max(model_fence, real_fence) + far_ahead;
            const auto [model, real] = twins.ask(request);
            ++answers[static_cast<int>(real.verdict)];
            if (real.fencing_token > 0) {
                CHECK(model.fencing_token > model_fence);
                CHECK(real.fencing_token > real_fence);
                if (are_ahead) CHECK(model.fencing_token == real.fencing_token);
                model_fence = model.fencing_token;
                real_fence = real.fencing_token;
            }
            if (writes && real.verdict == Verdict::yes) {
                model_fence = real_fence = request.fencing_token;
                are_ahead = true;
            }
            REQUIRE(twins.model_holder() == twins.real_holder());
        }
    }
    CHECK(answers[static_cast<int>(Verdict::yes)] > 500);
    CHECK(answers[static_cast<int>(Verdict::no)] > 500);
    CHECK(answers[static_cast<int>(Verdict::unknown)] == 0);
}

#endif
