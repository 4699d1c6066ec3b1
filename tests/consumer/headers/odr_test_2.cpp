#include <redislock/redislock.hpp>

const std::error_category& others_category();

const std::error_category& others_category() { return redislock::category(); }
