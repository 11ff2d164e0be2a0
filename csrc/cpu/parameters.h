// Parameters in and their gradients out: between the caller's layouts and the tree's.
#ifndef SCP_CPU_PARAMETERS_H
#define SCP_CPU_PARAMETERS_H

#include <cstring>

#include "scp.h"
#include "node.h"

namespace scp {
namespace SCP_NAMESPACE {

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
bool prepare(const scp_call& call, ScratchStack& scratch, Network<T>& net) {
  constexpr int A = kAffineRows<D>;
  net.h1 = int(call.hidden1), net.h2 = int(call.hidden2), net.nc = int(call.classes * call.channels);
  net.h2p = padded<T>(net.h2), net.ncp = padded<T>(net.nc);
  const int h1 = net.h1, h2 = net.h2, nc = net.nc, h2p = net.h2p, ncp = net.ncp;
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
  net.A2 = A2, net.cf = cf, net.W3T = W3T;
  return all_finite(A2, int64_t(a2_size)) && all_finite(cf, ncp) && all_finite(W3T, int64_t(w3_size));
}

// Gradients summed over a slot's tasks: one array, so that slots are added in one loop.
template <class T>
struct SlotSums {
  T* all;
  int64_t size;
  T *A2, *cf, *W3T;
};

template <class T, int D>
SlotSums<T> make_sums(const Network<T>& net, ScratchStack& scratch) {
  constexpr int A = kAffineRows<D>;
  SlotSums<T> sums;
  const int64_t a2 = int64_t(A + net.h1) * net.h2p + kOverhang<T>, cf = int64_t(A + net.h1) * net.ncp;
  sums.size = a2 + cf + int64_t(net.h2) * net.ncp;
  sums.all = take<T>(scratch, sums.size);
  sums.A2 = sums.all;
  sums.cf = sums.A2 + a2;
  sums.W3T = sums.cf + cf;
  return sums;
}

template <class T>
void add_sums(const SlotSums<T>& from, const SlotSums<T>& to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= to.size; i += kLanes<T>) store(to.all + i, load(to.all + i) + load(from.all + i));
  for (; i < to.size; ++i) to.all[i] += from.all[i];
}

// The sums as the caller wants them (docs/tile_linear.md, the end of "Pull"): gW2 = g_A2 transposed, gb2 its row 0, and
// gb3 = gw_r = row 0 of g_cf.
template <class T, int D>
void write_gradients(const Network<T>& net, const SlotSums<T>& sums, const scp_call& call) {
  std::memcpy(call.grad_b2, sums.A2, size_t(net.h2) * sizeof(T));
  transpose_any(sums.A2 + int64_t(kAffineRows<D>) * net.h2p, net.h1, net.h2, net.h2p, static_cast<T*>(call.grad_w2),
                net.h1);
  std::memcpy(call.grad_b3, sums.cf, size_t(net.nc) * sizeof(T));
  transpose_any(sums.W3T, net.h2, net.nc, net.ncp, static_cast<T*>(call.grad_w3), net.h2);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
