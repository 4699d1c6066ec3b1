// Some hundreds of simulated histories; the program tests/simulation/simulation.cpp runs as many as there is time for.
#include "catch.hpp"
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

#endif
