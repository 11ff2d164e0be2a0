// The block of threads that a kernel's body sees. Bodies are templates over it, so that a GPU and a host that emulates
// one (host_emulation/block.h) compile the very same code.
//
// A block offers: kSize, its number of threads, in kWarps warps; thread(), 0 .. kSize - 1; index(), the block's number
// in its grid; sync(), a barrier of its threads; shared(), its memory; add(at, value), to a sum in global memory to
// which other blocks add too; raise(flag), which sets a flag to 1 that others may be setting too; ballot(value), by all
// threads of a warp: bit l is the value of its lane l; sum_of_lanes<N>(value), by all threads of a warp: the sum over N
// neighbouring lanes in a fixed order, the same bits in each of them.
#ifndef SCP_CUDA_BLOCK_H
#define SCP_CUDA_BLOCK_H

#include <cstddef>
#include <cstdint>

#include "common/platform.h"

#if defined(__CUDACC__)
#define SCP_DEVICE __device__ __forceinline__
#define SCP_UNROLL _Pragma("unroll")
#define SCP_NO_UNROLL _Pragma("unroll 1")
#define SCP_UNROLL_BY_4 _Pragma("unroll 4")
#define SCP_UNROLL_BY_8 _Pragma("unroll 8")
#else
#define SCP_DEVICE inline
#define SCP_UNROLL
#define SCP_NO_UNROLL
#define SCP_UNROLL_BY_4
#define SCP_UNROLL_BY_8
#endif

namespace scp {
namespace SCP_NAMESPACE {

// Threads of a block; where a block works on a tile, one for each of its pixels.
constexpr int kThreads = 128;
// Of some programs' blocks: at most kMostWarps warps.
template <class Program>
constexpr int kThreadsOf = kThreads;
constexpr int kWarp = 32, kWarps = kThreads / kWarp, kMostWarps = 16;

#if defined(__CUDACC__)
template <int kThreadsOfBlock>
class DeviceBlock {
 public:
  static constexpr int kSize = kThreadsOfBlock, kWarps = kSize / kWarp;

  __device__ __forceinline__ int thread() const { return int(threadIdx.x); }
  __device__ __forceinline__ int64_t index() const { return blockIdx.x; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ char* shared() const {
    extern __shared__ __align__(16) char memory[];
    return memory;
  }
  __device__ __forceinline__ void add(double* at, double value) const { atomicAdd(at, value); }
  __device__ __forceinline__ void raise(int* flag) const { *flag = 1; }
  __device__ __forceinline__ uint32_t ballot(bool value) const { return __ballot_sync(0xffffffff, value); }
  template <int N, class V>
  __device__ __forceinline__ V sum_of_lanes(V value) const {
    SCP_UNROLL
    for (int distance = 1; distance < N; distance *= 2) value += __shfl_xor_sync(0xffffffff, value, distance);
    return value;
  }
};
#endif

template <class T>
SCP_DEVICE T multiply_add(T a, T b, T c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#else
  return a * b + c;  // contracted, or not: a call of the library's fma is slow where the machine has none
#endif
}

SCP_DEVICE int population(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

// max(0, x) as PyTorch has it: NaN stays NaN.
template <class T>
SCP_DEVICE T relu(T x) {
  return x <= T(0) ? T(0) : x;
}

// Four neighbours in memory, moved by one or two instructions.
template <class T>
struct alignas(16) Quad {
  T v[4];
};

template <class T>
SCP_DEVICE Quad<T>& quad(T* at) {
  return *reinterpret_cast<Quad<T>*>(at);
}
template <class T>
SCP_DEVICE const Quad<T>& quad(const T* at) {
  return *reinterpret_cast<const Quad<T>*>(at);
}

// Two neighbours.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

template <class T>
SCP_DEVICE const Pair<T>& pair(const T* at) {
  return *reinterpret_cast<const Pair<T>*>(at);
}

// Hands out a region of memory from its start, in pieces aligned to 16 bytes, and frees nothing. The host measures with
// it, on a null region that nobody reads or writes, what the device then uses. (No test for null here: it would hide
// from nvcc that the memory is shared memory.)
class BumpAllocator {
 public:
  SCP_HD explicit BumpAllocator(char* memory) : memory_(memory) {}

  template <class T>
  SCP_HD T* allocate(int64_t count) {
    T* const result = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    return result;
  }
  SCP_HD int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
