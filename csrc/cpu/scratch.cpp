#include "scratch.h"

#include <cstdlib>
#include <new>

namespace scp {

namespace {
constexpr size_t kFirstChunk = size_t(1) << 20;
constexpr size_t kLargestChunk = size_t(1) << 22;
}  // namespace

ScratchStack::~ScratchStack() {
  for (int i = 0; i < chunks_; ++i) std::free(data_[i]);
}

void ScratchStack::grow(size_t bytes) {
  int next = chunk_ + 1;
  while (next < chunks_ && size_[next] < bytes) ++next;
  if (next == chunks_) {
    if (chunks_ == kMaxChunks) throw std::bad_alloc();
    size_t size = chunks_ == 0 ? kFirstChunk : size_[chunks_ - 1] * 2;
    if (size > kLargestChunk) size = kLargestChunk;
    if (size < bytes) size = bytes;
    data_[next] = static_cast<char*>(std::aligned_alloc(kAlignment, size));
    if (data_[next] == nullptr) throw std::bad_alloc();
    size_[next] = size;
    ASAN_POISON_MEMORY_REGION(data_[next], size);
    ++chunks_;
  }
  return_to(next);
  top_ = data_[next];
}

void ScratchStack::return_to(int chunk) {
  chunk_ = chunk;
  end_ = chunk < 0 ? nullptr : data_[chunk] + size_[chunk];
}

void ScratchStack::trim(size_t bytes_kept) {
  size_t kept = 0;
  int first = 0;
  while (first < chunks_ && (first <= chunk_ || kept + size_[first] <= bytes_kept)) kept += size_[first++];
  for (int i = first; i < chunks_; ++i) {
    std::free(data_[i]);
    data_[i] = nullptr;
    size_[i] = 0;
  }
  chunks_ = first;
}

ScratchStack& thread_scratch() {
  thread_local ScratchStack scratch;
  return scratch;
}

}  // namespace scp
