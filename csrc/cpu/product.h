// Small matrix products in registers: nearly all of the work, forward and backward, is one of these.
#ifndef SCP_CPU_PRODUCT_H
#define SCP_CPU_PRODUCT_H

#include "vector.h"

namespace scp {
namespace SCP_NAMESPACE {

// Shape of the accumulator tile: as many registers as the target has, less the operands.
struct WideTile {  // short sums over long rows (the 64 pixels of a block)
#if defined(SCP_AVX512)
  static constexpr int rows = 4, vectors = 4;
#else
  static constexpr int rows = 4, vectors = 2;
#endif
};
struct TallTile {  // many rows of one or two vectors (the N*C outputs)
#if defined(SCP_AVX512)
  static constexpr int rows = 8, vectors = 2;
#else
  static constexpr int rows = 4, vectors = 2;
#endif
};

namespace detail {

template <class T, int R, int V, class Scalar, class Row, class Start, class Finish>
SCP_INLINE void product_tile(int r0, int v0, int depth, Scalar scalar, Row row, Start start, Finish finish) {
  Vector<T> sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = start(r0 + r, v0 + v);
  for (int k = 0; k < depth; ++k) {
    const T* right = row(k) + v0 * kLanes<T>;
    Vector<T> x[V];
    for (int v = 0; v < V; ++v) x[v] = load(right + v * kLanes<T>);
    for (int r = 0; r < R; ++r) {
      const Vector<T> s = splat<T>(scalar(r0 + r, k));
      for (int v = 0; v < V; ++v) sum[r][v] = fma(s, x[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) finish(r0 + r, v0 + v, sum[r][v]);
}

template <class T, int R, int V, class Scalar, class Row, class Start, class Finish>
SCP_INLINE int product_rows(int r, int rows, int v0, int depth, Scalar scalar, Row row, Start start, Finish finish) {
  for (; r + R <= rows; r += R) product_tile<T, R, V>(r, v0, depth, scalar, row, start, finish);
  return r;
}

template <class T, int R, int V, class Scalar, class Row, class Start, class Finish>
SCP_INLINE void product_column(int rows, int v0, int depth, Scalar scalar, Row row, Start start, Finish finish) {
  int r = product_rows<T, R, V>(0, rows, v0, depth, scalar, row, start, finish);
  if constexpr (R > 4) r = product_rows<T, 4, V>(r, rows, v0, depth, scalar, row, start, finish);
  switch (rows - r) {
    case 3: return product_tile<T, 3, V>(r, v0, depth, scalar, row, start, finish);
    case 2: return product_tile<T, 2, V>(r, v0, depth, scalar, row, start, finish);
    case 1: return product_tile<T, 1, V>(r, v0, depth, scalar, row, start, finish);
    default: return;
  }
}

}  // namespace detail

// For r < rows, v < vectors:  finish(r, v, start(r, v) + sum over k < depth of scalar(r, k) * row(k)[vector v]).
template <class Tile, class T, class Scalar, class Row, class Start, class Finish>
SCP_INLINE void product(int rows, int vectors, int depth, Scalar scalar, Row row, Start start, Finish finish) {
  int v = 0;
  for (; v + Tile::vectors <= vectors; v += Tile::vectors)
    detail::product_column<T, Tile::rows, Tile::vectors>(rows, v, depth, scalar, row, start, finish);
  for (; v < vectors; ++v) detail::product_column<T, Tile::rows, 1>(rows, v, depth, scalar, row, start, finish);
}

// The commonest case: out(r) += sum over k of scalar(r, k) * row(k), on rows of `vectors` vectors.
template <class Tile, class T, class Scalar, class Row, class Out>
SCP_INLINE void add_product(int rows, int vectors, int depth, Scalar scalar, Row row, Out out) {
  product<Tile, T>(
      rows, vectors, depth, scalar, row, [=](int r, int v) SCP_LAMBDA_INLINE { return load(out(r) + v * kLanes<T>); },
      [=](int r, int v, Vector<T> sum) SCP_LAMBDA_INLINE { store(out(r) + v * kLanes<T>, sum); });
}

// Inner products of rows, V vectors long: out(r)[n] += left(r) . right(n) for r < rows, n < columns. Some more columns
// are written to, up to a multiple of kLaneGroup; right(n) has to be there for them. (Sums over lanes cost about what
// the products do; transposing, so that no sum is over lanes, costs as much for 32 columns, and more for fewer.)
template <int V, class T, class Left, class Right, class Out>
SCP_INLINE void add_inner_products(int rows, int columns, Left left, Right right, Out out) {
  constexpr int L = kLanes<T>, N = kLaneGroup<T>, R = L / N;
  for (int r0 = 0; r0 < rows; r0 += R) {
    const T* a[R];
    T* to[R];
    for (int r = 0; r < R; ++r) {
      const int row = r0 + r < rows ? r0 + r : rows - 1;
      a[r] = left(row), to[r] = out(row);
    }
    for (int n = 0; n < columns; n += N) {
      Vector<T> sum[L];
      for (int v = 0; v < V; ++v) {
        Vector<T> x[R];
        for (int r = 0; r < R; ++r) x[r] = load(a[r] + v * L);
        for (int i = 0; i < N; ++i) {
          const Vector<T> y = load(right(n + i) + v * L);
          for (int r = 0; r < R; ++r) sum[r + i * R] = v == 0 ? x[r] * y : fma(x[r], y, sum[r + i * R]);
        }
      }
      alignas(64) T products[L];
      store(products, sums<T>(sum));
      for (int r = 0; r < R && r0 + r < rows; ++r) add_group(to[r] + n, products + r * N);
    }
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
