// An exact race detector for the blocks that block.h emulates: -DSCP_HOST_RACES, with -fsanitize=thread for host.cpp
// alone and without its library. GCC then calls a function of races.cpp at each access to memory.
//
// Between two barriers of a block no byte may be accessed by two threads if one of them writes it, and within a launch
// none outside of shared memory by two blocks. That does not depend on the order in which the threads happen to run.
// What is meant to be shared goes through Block::add and Block::raise, which are not instrumented. Without the macro
// nothing is.
#ifndef SCP_CUDA_HOST_RACES_H
#define SCP_CUDA_HOST_RACES_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#if defined(SCP_HOST_RACES)
#define SCP_NOT_INSTRUMENTED __attribute__((no_sanitize("thread"), noinline))
#else
#define SCP_NOT_INSTRUMENTED
#endif

namespace scp {
namespace races {

#if defined(SCP_HOST_RACES)
// Starts a launch: the threads' stacks, the memory that a block shares, and how to leave the thread that causes a race
// for good, since what comes after it may never end.
void begin(const char* stacks, size_t stacks_bytes, const char* shared, size_t shared_bytes,
           std::function<void()> leave);
void barrier();
void resume(int64_t block, int thread);
void pause();
// The race found in this launch; empty if there is none.
const std::string& description();
#else
inline void begin(const char*, size_t, const char*, size_t, const std::function<void()>&) {}
inline void barrier() {}
inline void resume(int64_t, int) {}
inline void pause() {}
inline const std::string& description() {
  static const std::string nothing;
  return nothing;
}
#endif

}  // namespace races
}  // namespace scp

#endif
