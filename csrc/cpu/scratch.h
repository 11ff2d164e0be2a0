// Scratch memory of one thread: a stack of arrays, kept between calls up to a bound.
#ifndef SCP_CPU_SCRATCH_H
#define SCP_CPU_SCRATCH_H

#include <cstddef>

namespace scp {

// Blocks are handed out in stack order and given back by `release(mark())`. Grows by whole chunks, so pointers stay
// valid. Compiled once, for the plainest machine: see shared/platform.h.
class ScratchStack {
 public:
  struct Mark {
    int chunk;
    size_t used;
  };

  ScratchStack() = default;
  ScratchStack(const ScratchStack&) = delete;
  ScratchStack& operator=(const ScratchStack&) = delete;
  ~ScratchStack();

  // 64-byte aligned; throws std::bad_alloc.
  void* allocate(size_t bytes);
  Mark mark() const;
  void release(Mark mark);
  // Gives memory that is not handed out back to the system, as far as the whole exceeds `bytes_kept`.
  void trim(size_t bytes_kept);

 private:
  void step_back();

  static constexpr int kMaxChunks = 64;
  char* chunks_[kMaxChunks] = {};
  size_t sizes_[kMaxChunks] = {};
  int chunks_used_ = 0;
  int chunk_ = -1;     // the one being filled
  size_t used_ = 0;    // bytes handed out of it
};

// The calling thread's own.
ScratchStack& thread_scratch();

}  // namespace scp

#endif
