// One sample per position map: W goes from registers to the features, without a field. 2-D, all rows usable in place
// (rows.h).
#ifndef SCP_CPU_SINGLE_SAMPLE_H
#define SCP_CPU_SINGLE_SAMPLE_H

#include "leaf.h"
#include "rows.h"

namespace scp {
namespace SCP_NAMESPACE {

// Where the vectors of a 2-D block lie in a tensor of rows in place, and how many of their lanes are inside the leaf.
template <class T>
struct BlockVectors {
  int lanes[kBlockVectors<T>];
  int64_t offset[kBlockVectors<T>];
};

template <class T>
SCP_INLINE BlockVectors<T> vectors_in(const Rows<T, 2>& rows, const Block<T, 2>& block, int64_t b) {
  constexpr int L = kLanes<T>, run = kRun<T, 2>;
  BlockVectors<T> vectors;
  const int64_t origin = rows.offset(b, 0, block.first);
  for (int v = 0; v < kBlockVectors<T>; ++v) {
    const int row = v * L / run, column = v * L % run;
    const int left = row < block.valid[0] ? block.valid[1] - column : 0;
    vectors.lanes[v] = left < 0 ? 0 : (left < L ? left : L);
    vectors.offset[v] = vectors.lanes[v] > 0 ? origin + row * rows.tensor.stride_spatial[0] + column : 0;
  }
  return vectors;
}

// Where the rows of X of the block that comes next begin. They are fetched one by one between the products of this one:
// asked for all at once, they would wait for each other.
template <class T>
struct NextRows {
  const T* row[kBlockVectors<T>];
  int64_t stride_channel;

  SCP_INLINE void fetch(int c, int v) const { __builtin_prefetch(row[v] + c * stride_channel); }
};

template <class T>
SCP_INLINE NextRows<T> next_rows(const Rows<T, 2>& X, const Block<T, 2>& next, int64_t b) {
  const BlockVectors<T> at = vectors_in(X, next, b);
  NextRows<T> rows;
  for (int v = 0; v < kBlockVectors<T>; ++v) rows.row[v] = X.pointer(at.offset[v]);
  rows.stride_channel = X.tensor.stride_channel;
  return rows;
}

// Y[n] = sum_c W[n, c] X[c] (+ bias[n]) on a block.
template <class T>
SCP_INLINE void single_sample_forward(const PhiParameters<T>& params, const Node<T, 2>& node, const Block<T, 2>& block,
                                      const Block<T, 2>& next, const BasisBlock<T, 2>& basis, const Rows<T, 2>& X,
                                      const Rows<T, 2>& Y, const T* bias, int64_t b, int N, int C) {
  const BlockVectors<T> x_at = vectors_in(X, block, b), y_at = vectors_in(Y, block, b);
  const NextRows<T> next_x = next_rows(X, next, b);
  evaluate_basis(node, block, basis);
  const bool whole = block.valid[0] == block_extent<T, 2>(0) && block.valid[1] == block_extent<T, 2>(1);
  for (int n = 0; n < N; ++n) {
    Vector<T> y[kBlockVectors<T>];
    for (int v = 0; v < kBlockVectors<T>; ++v) y[v] = splat(bias == nullptr ? T(0) : bias[n]);
    if (whole) {
      evaluate_weights(params, node, basis, n * C, C, [&](int c, int v, Vector<T> w) SCP_LAMBDA_INLINE {
        next_x.fetch(c, v);
        y[v] = fma(w, load(X.pointer(x_at.offset[v] + c * X.tensor.stride_channel)), y[v]);
      });
      for (int v = 0; v < kBlockVectors<T>; ++v) store(Y.pointer(y_at.offset[v] + n * Y.tensor.stride_channel), y[v]);
    } else {
      evaluate_weights(params, node, basis, n * C, C, [&](int c, int v, Vector<T> w) SCP_LAMBDA_INLINE {
        y[v] = fma(w, load_first(X.pointer(x_at.offset[v] + c * X.tensor.stride_channel), x_at.lanes[v]), y[v]);
      });
      for (int v = 0; v < kBlockVectors<T>; ++v)
        store_first(Y.pointer(y_at.offset[v] + n * Y.tensor.stride_channel), y[v], y_at.lanes[v]);
    }
  }
}

// gX[c] = sum_n gY[n] W[n, c] on a block where wanted; gW[n, c] = gY[n] X[c], [ncp, 64], 0 in the padding.
template <class T>
SCP_INLINE void single_sample_backward(const PhiParameters<T>& params, const Node<T, 2>& node, const Block<T, 2>& block,
                                       const Block<T, 2>& next, const BasisBlock<T, 2>& basis, const Rows<T, 2>& X,
                                       const Rows<T, 2>& gY, const Rows<T, 2>* gX, int64_t b, int N, int C, T* weights,
                                       T* gW) {
  constexpr int L = kLanes<T>, P = kBlockPixels;
  const BlockVectors<T> x_at = vectors_in(X, block, b), gy_at = vectors_in(gY, block, b);
  const NextRows<T> next_x = next_rows(X, next, b);
  evaluate_basis(node, block, basis);
  if (gX != nullptr) {
    evaluate_weights(params, node, basis, 0, params.nc, [&](int n, int v, Vector<T> w) SCP_LAMBDA_INLINE {
      if (n < C) next_x.fetch(n, v);
      store(weights + n * P + v * L, w);
    });
  }
  const BlockVectors<T> gx_at = gX != nullptr ? vectors_in(*gX, block, b) : x_at;
  for (int v = 0; v < kBlockVectors<T>; ++v) {
    const int lanes = x_at.lanes[v];
    if (lanes == 0) {
      for (int n = 0; n < params.nc; ++n) store(gW + n * P + v * L, zero<T>());
      continue;
    }
    for (int n = 0; n < N; ++n) {
      const Vector<T> g = load_first(gY.pointer(gy_at.offset[v] + n * gY.tensor.stride_channel), lanes);
      for (int c = 0; c < C; ++c) {
        const int output = n * C + c;
        const T* x = X.pointer(x_at.offset[v] + c * X.tensor.stride_channel);
        store(gW + output * P + v * L, g * load_first(x, lanes));
        if (gX == nullptr) continue;
        T* gx = gX->pointer(gx_at.offset[v] + c * gX->tensor.stride_channel);
        const Vector<T> w = load(weights + output * P + v * L);
        store_first(gx, n == 0 ? g * w : fma(g, w, load_first(gx, lanes)), lanes);
      }
    }
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
