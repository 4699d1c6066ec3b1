/// What the benchmarks make of repeated measurements.
#pragma once

#include <algorithm>
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
