/// Simulated histories, one for each seed, until one of them is wrong or all are done.
#include "world.hpp"

#include <CLI/CLI.hpp>

#include <chrono>

int main(int argc, char** argv) {
    CLI::App app{
        "Locks of several simulated processes over a majority of simulated servers, with faults of all kinds.\n"
        "Each seed is a history of its own, and the same one each time. Exits with 1 if one breaks a rule."};
    std::uint64_t seeds = 10'000, first = 1;
    bool tells = false;
    std::string broken = "nothing";
    app.add_option("--seeds", seeds, "how many histories")->capture_default_str();
    app.add_option("--first", first, "the first seed; the others follow it")->capture_default_str();
    app.add_flag("--trace", tells, "tell what happens in each history");
    app.add_option("--break", broken, "an assumption that the library needs, to see that it does")
        ->check(CLI::IsMember({"nothing", "clocks", "memory", "tokens", "replicas"}))
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    using simulation::Broken;
    const Broken how = broken == "clocks"     ? Broken::clocks
                       : broken == "memory"   ? Broken::memory
                       : broken == "tokens"   ? Broken::tokens
                       : broken == "replicas" ? Broken::replicas
                                              : Broken::nothing;
    std::uint64_t grants = 0, faults = 0, events = 0, violations = 0;
    const auto started = std::chrono::steady_clock::now();
    for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
        const simulation::Report report = simulation::World{seed, how, tells}.run();
        grants += report.grants;
        faults += report.faults;
        events += report.events;
        if (report.violation.empty()) continue;
        if (++violations <= 20)
            std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), report.violation.c_str());
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    std::printf("%llu histories, %.0f/s: %llu grants, %llu faults, %llu events, %llu violations\n",
                static_cast<unsigned long long>(seeds), static_cast<double>(seeds) / took.count(),
                static_cast<unsigned long long>(grants), static_cast<unsigned long long>(faults),
                static_cast<unsigned long long>(events), static_cast<unsigned long long>(violations));
    return violations == 0 ? 0 : 1;
}
