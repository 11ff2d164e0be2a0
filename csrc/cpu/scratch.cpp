#include "scratch.h"

#include <cstdlib>
#include <new>

namespace scp {

namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kFirstChunk = size_t(1) << 20;

size_t rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
}  // namespace

ScratchStack::~ScratchStack() {
  for (int i = 0; i < chunks_used_; ++i) std::free(chunks_[i]);
}

void* ScratchStack::allocate(size_t bytes) {
  bytes = rounded(bytes + 1);
  while (chunk_ < 0 || used_ + bytes > sizes_[chunk_]) {
    ++chunk_;
    used_ = 0;
    if (chunk_ < chunks_used_) continue;
    if (chunk_ == kMaxChunks) {
      step_back();
      throw std::bad_alloc();
    }
    size_t size = chunk_ == 0 ? kFirstChunk : sizes_[chunk_ - 1] * 2;
    if (chunk_ > 0 && size > kFirstChunk * 4) size = kFirstChunk * 4;
    if (size < bytes) size = bytes;
    chunks_[chunk_] = static_cast<char*>(std::aligned_alloc(kAlignment, rounded(size)));
    if (chunks_[chunk_] == nullptr) {
      step_back();
      throw std::bad_alloc();
    }
    sizes_[chunk_] = rounded(size);
    ++chunks_used_;
  }
  void* block = chunks_[chunk_] + used_;
  used_ += bytes;
  return block;
}

void ScratchStack::step_back() {
  --chunk_;
  used_ = chunk_ >= 0 ? sizes_[chunk_] : 0;
}

ScratchStack::Mark ScratchStack::mark() const { return {chunk_, used_}; }

void ScratchStack::release(Mark mark) {
  chunk_ = mark.chunk;
  used_ = mark.used;
}

void ScratchStack::trim(size_t bytes_kept) {
  size_t kept = 0;
  int first = 0;
  while (first < chunks_used_ && (first <= chunk_ || kept + sizes_[first] <= bytes_kept)) kept += sizes_[first++];
  for (int i = first; i < chunks_used_; ++i) {
    std::free(chunks_[i]);
    chunks_[i] = nullptr;
    sizes_[i] = 0;
  }
  chunks_used_ = first;
}

ScratchStack& thread_scratch() {
  thread_local ScratchStack scratch;
  return scratch;
}

}  // namespace scp
