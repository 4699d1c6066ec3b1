// Two translation units with the whole library, in one program: what is not inline is defined twice, and won't link.
#include <redislock/redislock.hpp>

const std::error_category& others_category();

int main() { return &others_category() == &redislock::category() ? 0 : 1; }
