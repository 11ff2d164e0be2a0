// Rows of pixels in a user's tensor: any strides, any of the four dtypes, read and written in the compute type.
#ifndef SCP_CPU_ROWS_H
#define SCP_CPU_ROWS_H

#include <cstdint>
#include <cstring>

#include "../scp.h"
#include "vector.h"

namespace scp {
namespace SCP_NAMESPACE {

SCP_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
SCP_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

SCP_INLINE float to_float(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
SCP_INLINE void from_float(float x, BFloat16& out) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) {
    out.bits = 0x7fc0;
    return;
  }
  out.bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}

#if defined(__F16C__)
SCP_INLINE float to_float(Half x) { return _cvtsh_ss(x.bits); }
SCP_INLINE void from_float(float x, Half& out) { out.bits = uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
#else
SCP_INLINE float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
  // Scaling by 2^112 mends the exponent, of subnormals too.
  const float scaled = bits_to_float(rest << 13) * bits_to_float(0x77800000);
  return bits_to_float(sign | float_to_bits(scaled));
}
SCP_INLINE void from_float(float x, Half& out) {
  const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    out.bits = uint16_t(sign | 0x7e00);
  } else if (rest >= 0x477ff000) {  // rounds to 65536 or more
    out.bits = uint16_t(sign | 0x7c00);
  } else if (rest < 0x38800000) {  // subnormal or zero: the addition rounds at the right place
    out.bits = uint16_t(sign | (float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000));
  } else {
    out.bits = uint16_t(sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13));
  }
}
#endif

template <class T, class S>
SCP_INLINE T convert_in(S x) {
  return T(to_float(x));
}
template <>
SCP_INLINE float convert_in<float, float>(float x) { return x; }
template <>
SCP_INLINE float convert_in<float, double>(double x) { return float(x); }
template <>
SCP_INLINE double convert_in<double, float>(float x) { return x; }
template <>
SCP_INLINE double convert_in<double, double>(double x) { return x; }

template <class T>
SCP_INLINE void convert_out(T x, double& out) { out = x; }
template <class T>
SCP_INLINE void convert_out(T x, float& out) { out = float(x); }
template <class T>
SCP_INLINE void convert_out(T x, Half& out) { from_float(float(x), out); }
template <class T>
SCP_INLINE void convert_out(T x, BFloat16& out) { from_float(float(x), out); }

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

// A tensor [batch, channels, *spatial] of a dtype known only at run time, row by row.
template <class T, int D>
struct Rows {
  scp_tensor tensor;
  int dtype;

  // Rows can be used in place: of type T, neighbours in memory.
  bool direct() const { return dtype == kDtypeOf<T> && tensor.stride_spatial[D - 1] == 1; }

  int64_t offset(int64_t b, int64_t c, const int (&index)[D]) const {
    int64_t at = b * tensor.stride_batch + c * tensor.stride_channel;
    for (int axis = 0; axis < D; ++axis) at += index[axis] * tensor.stride_spatial[axis];
    return at;
  }

  T* in_place(int64_t at) const { return static_cast<T*>(tensor.data) + at; }

  // `count` pixels from element `at` on: in place if they can be, else converted into `buffer`.
  const T* read(int64_t at, int count, T* buffer) const {
    if (direct()) return in_place(at);
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
  T* target(int64_t at, T* buffer) const { return direct() ? in_place(at) : buffer; }
  void finish(const T* from, int64_t at, int count) const {
    if (direct()) return;
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
