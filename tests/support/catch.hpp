/// Catch2 3 where there is one, and the last Catch2 2, which Debian 12 and Ubuntu 22.04 have.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <cstdio>
#include <string>

/// A matcher that both have, under different names.
inline auto containing(const std::string& text) {
#if __has_include(<catch2/catch_all.hpp>)
    return Catch::Matchers::ContainsSubstring(text);
#else
    return Catch::Contains(text);
#endif
}

namespace test {

/// Says why a test that returns now can not be run here. CTest tells such a test from one that has passed.
inline void skip(const char* reason) { std::printf("skipped: %s\n", reason); }

} // namespace test
