// What differs between the compilers that read the shared mathematics: host C++ (once per ISA target) and nvcc.
#ifndef SCP_COMMON_PLATFORM_H
#define SCP_COMMON_PLATFORM_H

#if defined(__CUDACC__)
#define SCP_HD __host__ __device__
#else
#define SCP_HD
#endif

// Code compiled for AVX-512 must not be what the linker keeps of an inline function that a smaller machine calls too.
// So every header below the entry points lives in a namespace of its own for each ISA target.
#if defined(SCP_ISA_TARGET)
#define SCP_NAMESPACE SCP_ISA_TARGET
#else
#define SCP_NAMESPACE common
#endif

namespace scp {
namespace SCP_NAMESPACE {

// |x| of a number, or of each lane of a vector.
template <class V>
SCP_HD inline V magnitude(V x) {
  return x < V{} ? -x : x;
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
