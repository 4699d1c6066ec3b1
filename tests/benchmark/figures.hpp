/// What the benchmarks make of repeated measurements.
#pragma once

#include <algorithm>
#include <thread>
#include <vector>

/// 0 of none.
inline double median(std::vector<double> values) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

/// The median of the ratios within each repeat.
inline double ratio(const std::vector<double>& values, const std::vector<double>& floor) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < values.size(); ++i) ratios.push_back(values[i] / floor[i]);
    return median(ratios);
}

/// Threads that never rest, for as long as the object lives: a busy machine.
class Spinning {
public:
    explicit Spinning(unsigned count) {
        for (unsigned i = 0; i < count; ++i)
            threads_.emplace_back([](std::stop_token stop) {
                while (!stop.stop_requested()) {
                }
            });
    }
    std::size_t count() const { return threads_.size(); }

private:
    std::vector<std::jthread> threads_;
};
