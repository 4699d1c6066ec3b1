#include "allocation.hpp"

#include <cstdlib>
#include <new>

namespace test {

thread_local constinit int good_for = -1;
std::atomic<int> others_good_for = -1;
thread_local constinit bool spared = false;

namespace {
bool is_to_fail() noexcept {
    if (good_for >= 0) return good_for-- == 0;
    return !spared && others_good_for.load() >= 0 && others_good_for.fetch_sub(1) == 0;
}
} // namespace

} // namespace test

void* operator new(std::size_t size) {
    if (test::is_to_fail()) throw std::bad_alloc{};
    if (void* memory = std::malloc(size)) return memory;
    throw std::bad_alloc{};
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
