/// Makes allocations fail, in the whole program of the tests.
#pragma once

#include <atomic>

namespace test {

/// After how many allocations of this thread the next one fails, and after how many of all threads but those that ask
/// to be spared; less than 0: none.
extern thread_local constinit int good_for;
extern std::atomic<int> others_good_for;
extern thread_local constinit bool spared;

} // namespace test
