// Phi's parameters in and their gradients out: between the caller's layouts and the tree's.
#ifndef SCP_CPU_PHI_PARAMETERS_H
#define SCP_CPU_PHI_PARAMETERS_H

#include <cstring>

#include "node.h"
#include "scp.h"

namespace scp {
namespace SCP_NAMESPACE {

// The parameters of Phi beyond the first layer, in the layouts the tree works on. Made once per call.
template <class T>
struct PhiParameters {
  int h1, h2;
  int nc;        // N*C, outputs of Phi: n*C + c is W[n, c]
  int ncp;       // nc padded to whole vectors; the padding is 0 everywhere
  int h2p;       // h2 padded
  const T* A2;   // [basis of the root, h2p]: b2, zeros for the slopes, W2 transposed
  const T* cf;   // [basis of the root, ncp]: b3 + w_r, zeros
  const T* W3T;  // [h2, ncp]
};

// out[c][r] = in[r][c]: whole squares by vectors, the edges one by one.
template <class T>
void transpose_any(const T* in, int rows, int columns, int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int L = kLanes<T>;
  const int whole_rows = rows / L * L, whole_columns = columns / L * L;
  for (int r = 0; r < whole_rows; r += L)
    for (int c = 0; c < whole_columns; c += L)
      transpose(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
  for (int r = 0; r < rows; ++r)
    for (int c = r < whole_rows ? whole_columns : 0; c < columns; ++c) out[c * out_stride + r] = in[r * in_stride + c];
}

// 0 * x is 0 unless x is infinite or NaN.
template <class T>
bool all_finite(const T* values, int64_t count) {
  Vector<T> sum = zero<T>();
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) sum = fma(load(values + i), zero<T>(), sum);
  T rest = T(0);
  for (; i < count; ++i) rest += values[i] * T(0);
  for (int lane = 0; lane < kLanes<T>; ++lane) rest += sum[lane];
  return rest == T(0);
}

// W2 [h2, h1] and W3 [nc, h2] as the tree wants them; false if some parameter is not finite.
template <class T, int D>
bool pack_parameters(const scp_call& call, ScratchStack& scratch, PhiParameters<T>& params) {
  constexpr int A = kAffineTerms<D>;
  params.h1 = int(call.hidden1), params.h2 = int(call.hidden2), params.nc = int(call.classes * call.channels);
  params.h2p = padded<T>(params.h2), params.ncp = padded<T>(params.nc);
  const int h1 = params.h1, h2 = params.h2, nc = params.nc, h2p = params.h2p, ncp = params.ncp;
  const T *w2 = static_cast<const T*>(call.w2), *b2 = static_cast<const T*>(call.b2);
  const T *w3 = static_cast<const T*>(call.w3), *b3 = static_cast<const T*>(call.b3);
  const T* residual = static_cast<const T*>(call.residual);
  const size_t a2_size = size_t(A + h1) * h2p + kOverhang<T>, cf_size = size_t(A + h1) * ncp,
               w3_size = size_t(h2) * ncp;
  T* A2 = take<T>(scratch, int64_t(a2_size));
  T* cf = take<T>(scratch, int64_t(cf_size));
  T* W3T = take<T>(scratch, int64_t(w3_size));
  std::memset(A2, 0, a2_size * sizeof(T));
  std::memset(cf, 0, cf_size * sizeof(T));
  std::memset(W3T, 0, w3_size * sizeof(T));
  std::memcpy(A2, b2, size_t(h2) * sizeof(T));
  transpose_any(w2, h2, h1, h1, A2 + int64_t(A) * h2p, h2p);
  transpose_any(w3, nc, h2, h2, W3T, ncp);
  for (int n = 0; n < nc; ++n) cf[n] = b3[n] + residual[n];
  params.A2 = A2, params.cf = cf, params.W3T = W3T;
  return all_finite(A2, int64_t(a2_size)) && all_finite(cf, ncp) && all_finite(W3T, int64_t(w3_size));
}

// Gradients summed over a range of tasks: one array, so that those of two ranges are added in one loop.
template <class T>
struct RangeSums {
  T* all;
  int64_t size;
  T *A2, *cf, *W3T;
};

template <class T, int D>
RangeSums<T> make_sums(const PhiParameters<T>& params, ScratchStack& scratch) {
  constexpr int A = kAffineTerms<D>;
  RangeSums<T> sums;
  const int64_t a2 = int64_t(A + params.h1) * params.h2p + kOverhang<T>, cf = int64_t(A + params.h1) * params.ncp;
  sums.size = a2 + cf + int64_t(params.h2) * params.ncp;
  sums.all = take<T>(scratch, sums.size);
  sums.A2 = sums.all;
  sums.cf = sums.A2 + a2;
  sums.W3T = sums.cf + cf;
  return sums;
}

template <class T>
void add_sums(const RangeSums<T>& from, const RangeSums<T>& to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= to.size; i += kLanes<T>) store(to.all + i, load(to.all + i) + load(from.all + i));
  for (; i < to.size; ++i) to.all[i] += from.all[i];
}

// The sums as the caller wants them (docs/tile_linear.md, the end of "Fold, backward"): gW2 = g_A2 transposed, gb2 its
// row 0, and gb3 = gw_r = row 0 of g_cf.
template <class T, int D>
void write_gradients(const PhiParameters<T>& params, const RangeSums<T>& sums, const scp_call& call) {
  std::memcpy(call.grad_b2, sums.A2, size_t(params.h2) * sizeof(T));
  transpose_any(sums.A2 + int64_t(kAffineTerms<D>) * params.h2p, params.h1, params.h2, params.h2p,
                static_cast<T*>(call.grad_w2), params.h1);
  std::memcpy(call.grad_b3, sums.cf, size_t(params.nc) * sizeof(T));
  transpose_any(sums.W3T, params.h2, params.nc, params.ncp, static_cast<T*>(call.grad_w3), params.h2);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
