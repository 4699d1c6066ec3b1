/// How a test waits for what another thread or process does.
#pragma once

#include <chrono>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <thread>

namespace test {

/// For any thread: it throws after a minute, where an assertion would belong to the test's own thread.
inline void until(const std::function<bool()>& condition,
                  const std::source_location& where = std::source_location::current()) {
    using namespace std::chrono;
    for (const auto limit = steady_clock::now() + seconds{60}; !condition(); std::this_thread::yield())
        if (steady_clock::now() >= limit)
            throw std::runtime_error{std::string{"waited in vain, at "} + where.file_name() + ':' +
                                     std::to_string(where.line())};
}

} // namespace test
