/// How a test waits for what another thread or process does.
#pragma once

#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

namespace test {

/// For any thread: it throws after a minute, where an assertion would belong to the test's own thread.
inline void until(const std::function<bool()>& condition, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
    using namespace std::chrono;
    for (const auto limit = steady_clock::now() + seconds{60}; !condition(); std::this_thread::yield())
        if (steady_clock::now() >= limit)
            throw std::runtime_error{std::string{"waited in vain, at "} + file + ':' + std::to_string(line)};
}

} // namespace test
