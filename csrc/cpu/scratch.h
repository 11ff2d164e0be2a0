// Scratch memory of one thread: a stack of arrays, kept between calls up to a bound.
#ifndef SCP_CPU_SCRATCH_H
#define SCP_CPU_SCRATCH_H

#include <cstddef>
#include <vector>

// Under AddressSanitizer what is not handed out is poisoned, and a gap lies between arrays.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define SCP_SCRATCH_GAP 64
#else
#define SCP_SCRATCH_GAP 0
#define ASAN_POISON_MEMORY_REGION(from, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(from, bytes) ((void)0)
#endif

namespace scp {

// Blocks are handed out in stack order and given back by `release(mark())`. Grows by whole chunks, so pointers stay
// valid. What is not inlined is compiled once, for the plainest machine (see common/platform.h).
class ScratchStack {
 public:
  struct Mark {
    int chunk;
    char* top;
  };

  ScratchStack() = default;
  ScratchStack(const ScratchStack&) = delete;
  ScratchStack& operator=(const ScratchStack&) = delete;
  ~ScratchStack();

  // 64-byte aligned, with room for whole vectors; throws std::bad_alloc.
  __attribute__((always_inline)) void* allocate(size_t bytes) {
    bytes = (bytes + kAlignment - 1) & ~(kAlignment - 1);
    if (bytes + SCP_SCRATCH_GAP > size_t(end_ - top_)) grow(bytes + SCP_SCRATCH_GAP);
    char* block = top_;
    top_ += bytes + SCP_SCRATCH_GAP;
    ASAN_UNPOISON_MEMORY_REGION(block, bytes);
    return block;
  }
  __attribute__((always_inline)) Mark mark() const { return {chunk_, top_}; }
  __attribute__((always_inline)) void release(Mark mark) {
    top_ = mark.top;
    if (mark.chunk != chunk_) return_to(mark.chunk);
    ASAN_POISON_MEMORY_REGION(top_, size_t(end_ - top_));
  }
  // Gives memory that is not handed out back to the system, as far as the whole exceeds `bytes_kept`.
  void trim(size_t bytes_kept);

 private:
  static constexpr size_t kAlignment = 64;

  struct Chunk {
    char* data;
    size_t size;
  };

  // Makes the next chunk that can hold `bytes` the current one.
  void grow(size_t bytes);
  void return_to(int chunk);

  char* top_ = nullptr;  // in the current chunk
  char* end_ = nullptr;  // of the current chunk
  int chunk_ = -1;       // the current one; -1: none yet
  std::vector<Chunk> chunks_;
};

// The calling thread's own.
ScratchStack& thread_scratch();

// What is taken from a stack while it lives goes back to it at the end, also when something throws; what the stack then
// holds beyond what it keeps goes back to the system.
class ScratchScope {
 public:
  explicit ScratchScope(ScratchStack& stack);
  ~ScratchScope();
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  ScratchStack& stack_;
  const ScratchStack::Mark mark_;
};

}  // namespace scp

#endif
