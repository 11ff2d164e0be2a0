// Rows of pixels in a user's tensor: any strides, any of the four dtypes, read and written in the compute type.
#ifndef SCP_CPU_ROWS_H
#define SCP_CPU_ROWS_H

#include <cstdint>

#include "common/half.h"
#include "scp.h"
#include "vector.h"

namespace scp {
namespace SCP_NAMESPACE {

template <class T, class S>
SCP_INLINE T convert_in(S x) {
  return T(to_float(x));
}
template <>
SCP_INLINE float convert_in<float, float>(float x) {
  return x;
}
template <>
SCP_INLINE float convert_in<float, double>(double x) {
  return float(x);
}
template <>
SCP_INLINE double convert_in<double, float>(float x) {
  return x;
}
template <>
SCP_INLINE double convert_in<double, double>(double x) {
  return x;
}

template <class T>
SCP_INLINE void convert_out(T x, double& out) {
  out = x;
}
template <class T>
SCP_INLINE void convert_out(T x, float& out) {
  out = float(x);
}
template <class T>
SCP_INLINE void convert_out(T x, Half& out) {
  from_float(float(x), out);
}
template <class T>
SCP_INLINE void convert_out(T x, BFloat16& out) {
  from_float(float(x), out);
}

template <class T, class S>
inline void read_strided(const S* from, int64_t stride, int count, T* to) {
  if (stride == 1) {
    for (int i = 0; i < count; ++i) to[i] = convert_in<T, S>(from[i]);
  } else {
    for (int i = 0; i < count; ++i) to[i] = convert_in<T, S>(from[i * stride]);
  }
}
template <class T, class S>
inline void write_strided(const T* from, S* to, int64_t stride, int count) {
  if (stride == 1) {
    for (int i = 0; i < count; ++i) convert_out(from[i], to[i]);
  } else {
    for (int i = 0; i < count; ++i) convert_out(from[i], to[i * stride]);
  }
}

template <class T>
constexpr int kDtypeOf = sizeof(T) == 8 ? SCP_FLOAT64 : SCP_FLOAT32;

// How rows in place are stored: through the caches, or bypassing them where they are evicted before they are read.
enum class Stores { kTemporal, kNonTemporal };

// A tensor [batch, channels, *spatial] of a dtype known only at run time, row by row.
template <class T, int D>
struct Rows {
  scp_tensor tensor;
  int dtype;
  Stores stores = Stores::kTemporal;

  // Rows can be used in place: of type T, neighbours in memory.
  bool in_place() const { return dtype == kDtypeOf<T> && tensor.stride_spatial[D - 1] == 1; }

  int64_t offset(int64_t b, int64_t c, const int (&index)[D]) const {
    int64_t at = b * tensor.stride_batch + c * tensor.stride_channel;
    for (int axis = 0; axis < D; ++axis) at += index[axis] * tensor.stride_spatial[axis];
    return at;
  }

  T* pointer(int64_t at) const { return static_cast<T*>(tensor.data) + at; }

  // `count` pixels from element `at` on: in place if they can be, else converted into `buffer`.
  const T* read(int64_t at, int count, T* buffer) const {
    if (in_place()) return pointer(at);
    const int64_t stride = tensor.stride_spatial[D - 1];
    switch (dtype) {
      case SCP_FLOAT64: read_strided(static_cast<const double*>(tensor.data) + at, stride, count, buffer); break;
      case SCP_FLOAT32: read_strided(static_cast<const float*>(tensor.data) + at, stride, count, buffer); break;
      case SCP_FLOAT16: read_strided(static_cast<const Half*>(tensor.data) + at, stride, count, buffer); break;
      default: read_strided(static_cast<const BFloat16*>(tensor.data) + at, stride, count, buffer);
    }
    return buffer;
  }

  // Where to compute `count` pixels that begin at element `at`; `finish` then brings them there.
  T* target(int64_t at, T* buffer) const { return in_place() ? pointer(at) : buffer; }
  void finish(const T* from, int64_t at, int count) const {
    if (in_place()) return;
    const int64_t stride = tensor.stride_spatial[D - 1];
    switch (dtype) {
      case SCP_FLOAT64: write_strided(from, static_cast<double*>(tensor.data) + at, stride, count); break;
      case SCP_FLOAT32: write_strided(from, static_cast<float*>(tensor.data) + at, stride, count); break;
      case SCP_FLOAT16: write_strided(from, static_cast<Half*>(tensor.data) + at, stride, count); break;
      default: write_strided(from, static_cast<BFloat16*>(tensor.data) + at, stride, count);
    }
  }
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
