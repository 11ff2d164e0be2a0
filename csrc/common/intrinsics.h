// The compiler's vector intrinsics, where the target has any.
#ifndef SCP_COMMON_INTRINSICS_H
#define SCP_COMMON_INTRINSICS_H

#if (defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)) && !defined(__CUDACC__)
// GCC 12 reports _mm512_undefined_ps and the like in its own header as uninitialised wherever an intrinsic is inlined
// (GCC bug 105593): 2,000 lines, among which a warning about this code would be lost.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#endif
