#include "scratch.h"

#include <cstdlib>
#include <new>

namespace scp {

namespace {
constexpr size_t kFirstChunk = size_t(1) << 20;
constexpr size_t kLargestChunk = size_t(1) << 22;
// Scratch that a thread keeps between calls, so that small calls do not wait for fresh pages.
constexpr size_t kScratchKept = size_t(8) << 20;
}  // namespace

ScratchStack::~ScratchStack() {
  for (const Chunk& chunk : chunks_) std::free(chunk.data);
}

void ScratchStack::grow(size_t bytes) {
  const int count = int(chunks_.size());
  int next = chunk_ + 1;
  while (next < count && chunks_[next].size < bytes) ++next;
  if (next == count) {
    size_t size = count == 0 ? kFirstChunk : chunks_.back().size * 2;
    if (size > kLargestChunk) size = kLargestChunk;
    if (size < bytes) size = bytes;
    chunks_.reserve(count + 1);  // throws before there is memory to lose
    auto* data = static_cast<char*>(std::aligned_alloc(kAlignment, size));
    if (data == nullptr) throw std::bad_alloc();
    ASAN_POISON_MEMORY_REGION(data, size);
    chunks_.push_back({data, size});
  }
  return_to(next);
  top_ = chunks_[next].data;
}

void ScratchStack::return_to(int chunk) {
  chunk_ = chunk;
  end_ = chunk < 0 ? nullptr : chunks_[chunk].data + chunks_[chunk].size;
}

void ScratchStack::trim(size_t bytes_kept) {
  size_t kept = 0;
  int first = 0;
  const int count = int(chunks_.size());
  while (first < count && (first <= chunk_ || kept + chunks_[first].size <= bytes_kept)) kept += chunks_[first++].size;
  for (int i = first; i < count; ++i) std::free(chunks_[i].data);
  chunks_.resize(first);
}

ScratchStack& thread_scratch() {
  thread_local ScratchStack scratch;
  return scratch;
}

ScratchScope::ScratchScope(ScratchStack& stack) : stack_(stack), mark_(stack.mark()) {}

ScratchScope::~ScratchScope() {
  stack_.release(mark_);
  stack_.trim(kScratchKept);
}

}  // namespace scp
