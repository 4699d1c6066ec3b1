/// What the fuzz targets share: an input that is taken apart from the left, and a claim that ends the run where it does
/// not hold.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace fuzz {

/// Where it is used up, there are zeros and empty strings.
class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : rest_{reinterpret_cast<const char*>(data), size} {}

    bool empty() const noexcept { return rest_.empty(); }
    unsigned byte() noexcept {
        const std::string_view one = bytes(1);
        return one.empty() ? 0 : static_cast<unsigned char>(one.front());
    }
    unsigned below(unsigned limit) noexcept { return byte() % limit; }
    std::string_view bytes(std::size_t count) noexcept {
        const std::string_view taken = rest_.substr(0, count);
        rest_.remove_prefix(taken.size());
        return taken;
    }
    std::string_view line() noexcept {
        const std::string_view taken = bytes(rest_.find('\n'));
        bytes(1);
        return taken;
    }

private:
    std::string_view rest_;
};

inline void claim(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "This does not hold: %s\n", what);
    std::abort();
}

} // namespace fuzz
