// float16 and bfloat16 as they lie in memory, and their conversion. Shared by the backends.
#ifndef SCP_COMMON_HALF_H
#define SCP_COMMON_HALF_H

#include <cstdint>
#include <cstring>

#include "intrinsics.h"
#include "platform.h"

namespace scp {
namespace SCP_NAMESPACE {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

SCP_HD inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
SCP_HD inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SCP_HD inline float to_float(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
SCP_HD inline void from_float(float x, BFloat16& out) {
  const uint32_t bits = float_to_bits(x);
  // To nearest, ties to even; NaN stays NaN.
  out.bits = x != x ? uint16_t(0x7fc0) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__CUDA_ARCH__)
SCP_HD inline float to_float(Half x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}
SCP_HD inline void from_float(float x, Half& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
#elif defined(__F16C__) && !defined(__CUDACC__)
inline float to_float(Half x) { return _cvtsh_ss(x.bits); }
inline void from_float(float x, Half& out) { out.bits = uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
#else
SCP_HD inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
  // Scaling by 2^112 mends the exponent, of subnormals too.
  const float scaled = bits_to_float(rest << 13) * bits_to_float(0x77800000);
  return bits_to_float(sign | float_to_bits(scaled));
}
SCP_HD inline void from_float(float x, Half& out) {
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

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
