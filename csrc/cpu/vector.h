// A vector of floats or doubles, as wide as this ISA target's registers, and the few operations the kernels need.
//
// Arithmetic (+ - *) is the compilers' vector extension, so the same source serves AVX-512, AVX2, SSE2, NEON and
// others. Only what the extension cannot say well (masks, compression, relu with PyTorch's NaN) has a version per
// target.
#ifndef SCP_CPU_VECTOR_H
#define SCP_CPU_VECTOR_H

#include <cstdint>
#include <utility>

#include "common/intrinsics.h"
#include "common/platform.h"

#define SCP_INLINE inline __attribute__((always_inline))
#define SCP_LAMBDA_INLINE __attribute__((always_inline))

namespace scp {
namespace SCP_NAMESPACE {

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512BW__)
#define SCP_AVX512 1
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__) && defined(__FMA__)
#define SCP_AVX2 1
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

namespace detail {
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
}  // namespace detail

template <class T>
using Vector = typename detail::VectorOf<T>::type;

template <class T>
constexpr int padded(int count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
SCP_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename detail::VectorOf<T>::unaligned*>(p);
}
template <class T>
SCP_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename detail::VectorOf<T>::unaligned*>(p) = v;
}
template <class T>
SCP_INLINE bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}
// Bypasses the caches, for what is not read again soon; p is aligned. Other threads see it after the fence below.
template <class T>
SCP_INLINE void store_non_temporal(T* p, Vector<T> v) {
#if defined(SCP_AVX512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(SCP_AVX2)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#else
  store(p, v);
#endif
}
SCP_INLINE void fence_non_temporal_stores() {
#if defined(SCP_AVX512) || defined(SCP_AVX2)
  _mm_sfence();
#endif
}
template <class T>
SCP_INLINE Vector<T> splat(T x) {
  return x - Vector<T>{};
}
template <class T>
SCP_INLINE Vector<T> zero() {
  return Vector<T>{};
}

// The same pointer, but the compiler does not know it: loads through it stay inside the loop where they are written.
// Hoisted operands would push a product's sums out of the registers.
template <class P>
SCP_INLINE P* kept_in_memory(P* p) {
  asm("" : "+r"(p));
  return p;
}

// A vector of doubles rounded to T, into as many places.
template <class T>
SCP_INLINE void store_rounded(T* p, Vector<double> v) {
  typedef T Rounded __attribute__((vector_size(kLanes<double> * sizeof(T))));
  typedef T InMemory __attribute__((vector_size(kLanes<double> * sizeof(T)), aligned(alignof(T)), may_alias));
  *reinterpret_cast<InMemory*>(p) = __builtin_convertvector(v, Rounded);
}

#if defined(SCP_AVX512)

SCP_INLINE Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) { return _mm512_fmadd_ps(a, b, c); }
SCP_INLINE Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) { return _mm512_fmadd_pd(a, b, c); }
// max(0, x) with x as the second operand: NaN passes, as in PyTorch.
SCP_INLINE Vector<float> relu(Vector<float> x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }
SCP_INLINE Vector<double> relu(Vector<double> x) { return _mm512_max_pd(_mm512_setzero_pd(), x); }
SCP_INLINE Vector<float> magnitude(Vector<float> x) { return _mm512_abs_ps(x); }
SCP_INLINE Vector<double> magnitude(Vector<double> x) { return _mm512_abs_pd(x); }
// x where gate > 0, else 0.
SCP_INLINE Vector<float> where_positive(Vector<float> gate, Vector<float> x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(gate, _mm512_setzero_ps(), _CMP_GT_OQ), x);
}
SCP_INLINE Vector<double> where_positive(Vector<double> gate, Vector<double> x) {
  return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(gate, _mm512_setzero_pd(), _CMP_GT_OQ), x);
}
// One bit per lane: a > 0, a <= 0 (both false for NaN).
SCP_INLINE unsigned positive(Vector<float> a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GT_OQ); }
SCP_INLINE unsigned positive(Vector<double> a) { return _mm512_cmp_pd_mask(a, _mm512_setzero_pd(), _CMP_GT_OQ); }
SCP_INLINE unsigned not_positive(Vector<float> a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LE_OQ); }
SCP_INLINE unsigned not_positive(Vector<double> a) { return _mm512_cmp_pd_mask(a, _mm512_setzero_pd(), _CMP_LE_OQ); }
// The first n lanes, the others 0; and a store that touches only the first n.
SCP_INLINE Vector<float> load_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
SCP_INLINE Vector<double> load_first(const double* p, int n) {
  return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
SCP_INLINE void store_first(float* p, Vector<float> v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v); }
SCP_INLINE void store_first(double* p, Vector<double> v, int n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
}
// The lanes whose bit is set, moved to the front (the rest is 0), and back to their places.
SCP_INLINE Vector<float> compress(Vector<float> v, unsigned bits) {
  return _mm512_maskz_compress_ps(__mmask16(bits), v);
}
SCP_INLINE Vector<double> compress(Vector<double> v, unsigned bits) {
  return _mm512_maskz_compress_pd(__mmask8(bits), v);
}
SCP_INLINE Vector<float> expand(Vector<float> v, unsigned bits) { return _mm512_maskz_expand_ps(__mmask16(bits), v); }
SCP_INLINE Vector<double> expand(Vector<double> v, unsigned bits) { return _mm512_maskz_expand_pd(__mmask8(bits), v); }
// The same for as many integers as T has lanes, in memory; may write them all.
template <class T>
SCP_INLINE void compress_integers(const int* from, unsigned bits, int* to) {
  if constexpr (kLanes<T> == 16) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(bits), _mm512_loadu_si512(from)));
  } else {
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(to),
        _mm256_maskz_compress_epi32(__mmask8(bits), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
}
// first + lane of the lanes whose bit is set; may write as many integers as T has lanes.
template <class T>
SCP_INLINE void list_lanes(int first, unsigned bits, int* to) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i listed =
      _mm512_maskz_compress_epi32(__mmask16(bits), _mm512_add_epi32(lanes, _mm512_set1_epi32(first)));
  if constexpr (kLanes<T> == 16)
    _mm512_storeu_si512(to, listed);
  else
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(listed));
}
SCP_INLINE float sum(Vector<float> v) { return _mm512_reduce_add_ps(v); }
SCP_INLINE double sum(Vector<double> v) { return _mm512_reduce_add_pd(v); }

#else

template <class V>
SCP_INLINE V fma(V a, V b, V c) {
  return a * b + c;  // contracted by the compiler where the machine has the instruction
}

#if defined(SCP_AVX2)
SCP_INLINE Vector<float> relu(Vector<float> x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
SCP_INLINE Vector<double> relu(Vector<double> x) { return _mm256_max_pd(_mm256_setzero_pd(), x); }
SCP_INLINE Vector<float> magnitude(Vector<float> x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
SCP_INLINE Vector<double> magnitude(Vector<double> x) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), x); }
SCP_INLINE unsigned positive(Vector<float> a) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GT_OQ)));
}
SCP_INLINE unsigned positive(Vector<double> a) {
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, _mm256_setzero_pd(), _CMP_GT_OQ)));
}
SCP_INLINE unsigned not_positive(Vector<float> a) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_LE_OQ)));
}
SCP_INLINE unsigned not_positive(Vector<double> a) {
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, _mm256_setzero_pd(), _CMP_LE_OQ)));
}
#else
// max(0, x) with x as the second operand: NaN passes, as in PyTorch.
template <class V>
SCP_INLINE V relu(V x) {
  return V{} > x ? V{} : x;
}
// One bit per lane: a > 0, a <= 0 (both false for NaN).
template <class V>
SCP_INLINE unsigned positive(V a) {
  unsigned bits = 0;
  for (unsigned lane = 0; lane < sizeof(V) / sizeof(a[0]); ++lane) bits |= unsigned(a[lane] > 0) << lane;
  return bits;
}
template <class V>
SCP_INLINE unsigned not_positive(V a) {
  unsigned bits = 0;
  for (unsigned lane = 0; lane < sizeof(V) / sizeof(a[0]); ++lane) bits |= unsigned(a[lane] <= 0) << lane;
  return bits;
}
#endif

// x where gate > 0, else 0.
template <class V>
SCP_INLINE V where_positive(V gate, V x) {
  return gate > V{} ? x : V{};
}
// The first n lanes, the others 0; and a store that touches only the first n.
template <class T>
SCP_INLINE Vector<T> load_first(const T* p, int n) {
  if (n == kLanes<T>) return load(p);
  Vector<T> v{};
  for (int lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
}
template <class V, class T>
SCP_INLINE void store_first(T* p, V v, int n) {
  if (n == kLanes<T>) return store(p, v);
  for (int lane = 0; lane < n; ++lane) p[lane] = v[lane];
}
// The lanes whose bit is set, moved to the front (the rest is 0), and back to their places.
template <class V>
SCP_INLINE V compress(V v, unsigned bits) {
  V packed{};
  for (int to = 0; bits; bits &= bits - 1) packed[to++] = v[__builtin_ctz(bits)];
  return packed;
}
// The same for as many integers as T has lanes, in memory; may write them all.
template <class T>
SCP_INLINE void compress_integers(const int* from, unsigned bits, int* to) {
  for (; bits; bits &= bits - 1) *to++ = from[__builtin_ctz(bits)];
}
// first + lane of the lanes whose bit is set; may write as many integers as T has lanes.
template <class T>
SCP_INLINE void list_lanes(int first, unsigned bits, int* to) {
  for (; bits; bits &= bits - 1) *to++ = first + __builtin_ctz(bits);
}
template <class V>
SCP_INLINE V expand(V v, unsigned bits) {
  V spread{};
  for (int from = 0; bits; bits &= bits - 1) spread[__builtin_ctz(bits)] = v[from++];
  return spread;
}
template <class V>
SCP_INLINE auto sum(V v) {
  auto total = v[0];
  for (unsigned lane = 1; lane < sizeof(V) / sizeof(v[0]); ++lane) total += v[lane];
  return total;
}

#endif

namespace detail {
// Lanes of a and b taken in turn, from the lower or the upper halves.
template <class V, int... I>
SCP_INLINE V zip_lower(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return __builtin_shufflevector(a, b, (I % 2 ? lanes + I / 2 : I / 2)...);
}
template <class V, int... I>
SCP_INLINE V zip_upper(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return __builtin_shufflevector(a, b, ((I % 2 ? lanes + I / 2 : I / 2) + lanes / 2)...);
}
// Within each group of G lanes, those of a and b in turn, from its lower or upper half.
template <int G, int kHalf, class V, int... I>
SCP_INLINE V zip_groups(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return __builtin_shufflevector(a, b, ((I % 2 ? lanes : 0) + I / G * G + kHalf * (G / 2) + I % G / 2)...);
}
// The even or odd groups of a, then those of b.
template <int G, int kOdd, class V, int... I>
SCP_INLINE V every_other_group(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I), half = lanes / 2;
  return __builtin_shufflevector(a, b, ((I < half ? 0 : lanes) + (2 * (I % half / G) + kOdd) * G + I % G)...);
}
}  // namespace detail

// Lanes in 16 bytes.
template <class T>
constexpr int kLaneGroup = 16 / int(sizeof(T));

// to += from, a group of lanes.
template <class T>
SCP_INLINE void add_group(T* to, const T* from) {
  typedef T Group __attribute__((vector_size(16), aligned(alignof(T)), may_alias));
  *reinterpret_cast<Group*>(to) += *reinterpret_cast<const Group*>(from);
}

// The sums of as many vectors as each has lanes: lane g * kLaneGroup + i is that of vector g + i * (lanes /
// kLaneGroup). Shuffles within groups come first, then those of whole groups: each is one instruction.
template <class T>
SCP_INLINE Vector<T> sums(Vector<T> (&v)[kLanes<T>]) {
  using Lanes = std::make_integer_sequence<int, kLanes<T>>;
  int count = kLanes<T>;
  for (int rest = kLaneGroup<T>; rest > 1; rest /= 2) {
    count /= 2;
    for (int i = 0; i < count; ++i)
      v[i] = detail::zip_groups<kLaneGroup<T>, 0>(v[i], v[i + count], Lanes{}) +
             detail::zip_groups<kLaneGroup<T>, 1>(v[i], v[i + count], Lanes{});
  }
  if constexpr (kLanes<T> > kLaneGroup<T>) {
    for (; count > 1; count /= 2)
      for (int i = 0; i < count / 2; ++i)
        v[i] = detail::every_other_group<kLaneGroup<T>, 0>(v[2 * i], v[2 * i + 1], Lanes{}) +
               detail::every_other_group<kLaneGroup<T>, 1>(v[2 * i], v[2 * i + 1], Lanes{});
  }
  return v[0];
}

// Transposes a square of vectors from rows `stride_in` apart to rows `stride_out` apart: log2(lanes) perfect shuffles.
template <class T>
SCP_INLINE void transpose(const T* in, int64_t stride_in, T* out, int64_t stride_out) {
  constexpr int n = kLanes<T>;
  using Lanes = std::make_integer_sequence<int, n>;
  Vector<T> rows[n];
  for (int r = 0; r < n; ++r) rows[r] = load(in + r * stride_in);
  for (int round = 1; round < n; round *= 2) {
    Vector<T> zipped[n];
    for (int r = 0; r < n / 2; ++r) {
      zipped[2 * r] = detail::zip_lower(rows[r], rows[r + n / 2], Lanes{});
      zipped[2 * r + 1] = detail::zip_upper(rows[r], rows[r + n / 2], Lanes{});
    }
    for (int r = 0; r < n; ++r) rows[r] = zipped[r];
  }
  for (int r = 0; r < n; ++r) store(out + r * stride_out, rows[r]);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
