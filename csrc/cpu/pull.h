// The exact adjoint of `specialise` (fold.h): a child's gradients into its parent's. docs/tile_linear.md, "Pull".
#ifndef SCP_CPU_PULL_H
#define SCP_CPU_PULL_H

#include "node.h"
#include "product.h"

namespace scp {
namespace SCP_NAMESPACE {

// Sums over pixels that belong to no node: one set for each task.
template <class T>
struct GradientSums {
  T* W3T;           // [h2, ncp]
  double* moments;  // [h1, D + 1]: sum of g_l times index on each axis, then sum of g_l (order of the coefficients)
};

// Adds the moments of unit u about `centre` (of 1, then of index - centre) to its sums about the origin.
template <class T, int D>
SCP_INLINE void add_moments(const GradientSums<T>& sums, int u, const double (&centre)[D], const T (&about)[D + 1]) {
  double* to = sums.moments + int64_t(u) * (D + 1);
  for (int axis = 0; axis < D; ++axis) to[axis] += double(about[1 + axis]) + centre[axis] * double(about[0]);
  to[D] += double(about[0]);
}

// Adds packed columns back to their places: the adjoint of pack_columns.
template <class T>
SCP_INLINE void add_unpacked(const T* packed, const uint16_t* kept, int words, T* row) {
  for (int w = 0; w < words; ++w) {
    if (kept[w] == 0) continue;
    T* to = row + w * kLanes<T>;
    store(to, load(to) + expand(load(packed), kept[w]));
    packed += __builtin_popcount(kept[w]);
  }
}

// [rows, columns] to [columns, rows_padded]; columns is whole vectors, rows beyond `rows` become 0.
template <class T>
SCP_INLINE void transpose_matrix(const T* in, int rows, int columns, int rows_padded, T* out) {
  constexpr int L = kLanes<T>;
  alignas(64) T edge[L * L];
  for (int r = 0; r < rows_padded; r += L) {
    for (int c = 0; c < columns; c += L) {
      if (r + L <= rows) {
        transpose(in + int64_t(r) * columns + c, columns, out + int64_t(c) * rows_padded + r, rows_padded);
        continue;
      }
      for (int i = 0; i < L; ++i)
        store(edge + i * L, r + i < rows ? load(in + int64_t(r + i) * columns + c) : zero<T>());
      transpose(edge, L, out + int64_t(c) * rows_padded + r, rows_padded);
    }
  }
}

// Newly-on units of layer 2:  gW3[:, k] += sum_r src_r[k] g_cf[r, :],  gsrc_r[k] = sum_n W3[n, k] g_cf[r, n].
template <class T, int D>
SCP_INLINE void pull_on2(const Network<T>& net, const Node<T, D>& parent, const Node<T, D>& child,
                         const GradientSums<T>& sums, T* const* g_src, ScratchStack& scratch) {
  constexpr int L = kLanes<T>;
  const int ncp = net.ncp, basis = child.basis(), on2 = child.on2;
  const int *column = child.on2_column, *unit = child.on2_unit;
  const T* const* src = source_rows(parent, child, scratch);
  add_product<TallTile, T>(
      on2, ncp / L, basis, [=](int k, int r) SCP_LAMBDA_INLINE { return src[r][column[k]]; },
      [=, g_cf = child.g_cf](int r) SCP_LAMBDA_INLINE { return g_cf + int64_t(r) * ncp; },
      [=, W3T = sums.W3T](int k) SCP_LAMBDA_INLINE { return W3T + int64_t(unit[k]) * ncp; });

  const int basis_padded = padded<T>(basis);
  T* g_cfT = take<T>(scratch, int64_t(ncp) * basis_padded);
  transpose_matrix(child.g_cf, basis, ncp, basis_padded, g_cfT);
  T* found = take<T>(scratch, int64_t(on2) * basis_padded);
  product<TallTile, T>(
      on2, basis_padded / L, net.nc,
      [=, W3T = net.W3T](int k, int n) SCP_LAMBDA_INLINE { return W3T[int64_t(unit[k]) * ncp + n]; },
      [=](int n) SCP_LAMBDA_INLINE { return g_cfT + int64_t(n) * basis_padded; },
      [](int, int) SCP_LAMBDA_INLINE { return zero<T>(); },
      [=](int k, int v, Vector<T> sum) SCP_LAMBDA_INLINE { store(found + int64_t(k) * basis_padded + v * L, sum); });
  for (int r = 0; r < basis; ++r) {
    T* to = g_src[r];
    for (int k = 0; k < on2; ++k) to[column[k]] += found[int64_t(k) * basis_padded + r];
  }
}

template <class T, int D>
void pull(const Network<T>& net, const Node<T, D>& parent, const Node<T, D>& child, const GradientSums<T>& sums,
          ScratchStack& scratch, Counters& counters) {
  constexpr int A = kAffineRows<D>;
  constexpr int L = kLanes<T>;
  const ScratchStack::Mark mark = scratch.mark();
  const int ncp = net.ncp, words = parent.m2p / L;
  const int64_t stride = parent.m2p;

  // Affine rows before columns were dropped (gx), and the parent's rows of the units still mixed.
  T* gx = take<T>(scratch, A * stride);
  for (int64_t k = 0; k < A * stride; k += L) store(gx + k, zero<T>());
  T** g_src = take<T*>(scratch, child.basis());
  for (int a = 0; a < A; ++a) g_src[a] = gx + a * stride;
  for (int q = 0; q < child.m1; ++q) g_src[A + q] = parent.g_A2 + (A + child.row1[q]) * stride;
  if (child.m2 > 0)
    for (int r = 0; r < child.basis(); ++r)
      add_unpacked(child.g_A2 + int64_t(r) * child.m2p, child.kept, words, g_src[r]);
  if (child.on2 > 0) pull_on2(net, parent, child, sums, g_src, scratch);

  // Rows of cf still mixed.
  for (int q = 0; q < child.m1; ++q) {
    T* to = parent.g_cf + int64_t(A + child.row1[q]) * ncp;
    const T* from = child.g_cf + int64_t(A + q) * ncp;
    for (int n = 0; n < ncp; n += L) store(to + n, load(to + n) + load(from + n));
  }

  // For A2 (g = gx) and cf (g = g_cf) alike: recentring, then the newly-on units of layer 1, then their moments.
  T(*moments)[A] = static_cast<T(*)[A]>(scratch.allocate(size_t(child.on1 + 1) * sizeof(T[A])));
  for (int q = 0; q < child.on1; ++q)
    for (int a = 0; a < A; ++a) moments[q][a] = T(0);
  const auto pull_rows = [&](const T* g, const T* values, T* g_values, int64_t columns) SCP_LAMBDA_INLINE {
    for (int64_t k = 0; k < columns; k += L) {
      const Vector<T> g0 = load(g + k);
      store(g_values + k, load(g_values + k) + g0);
      for (int a = 1; a < A; ++a) {
        T* to = g_values + a * columns + k;
        store(to, load(to) + fma(splat(T(child.shift[a - 1])), g0, load(g + a * columns + k)));
      }
    }
    for (int q = 0; q < child.on1; ++q) {
      const T* value = values + (A + child.on1_row[q]) * columns;
      T* to = g_values + (A + child.on1_row[q]) * columns;
      Vector<T> moment[A] = {};
      for (int64_t k = 0; k < columns; k += L) {
        const Vector<T> weight = load(value + k);
        Vector<T> total = load(to + k);
        for (int a = 0; a < A; ++a) {
          const Vector<T> ga = load(g + a * columns + k);
          total = fma(splat(child.on1_line[a * int64_t(child.m1p) + q]), ga, total);
          moment[a] = fma(weight, ga, moment[a]);
        }
        store(to + k, total);
      }
      for (int a = 0; a < A; ++a) moments[q][a] += sum(moment[a]);
    }
  };
  pull_rows(gx, parent.A2, parent.g_A2, stride);
  pull_rows(child.g_cf, parent.cf, parent.g_cf, ncp);
  for (int q = 0; q < child.on1; ++q) add_moments<T, D>(sums, parent.unit1[child.on1_row[q]], child.centre, moments[q]);
  counters.build_macs +=
      (double(parent.m2) + net.nc) * (D + 2.0 * A * child.on1) + 2.0 * child.on2 * child.basis() * net.nc;
  scratch.release(mark);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
