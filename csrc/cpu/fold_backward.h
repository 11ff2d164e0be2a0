// The exact adjoint of `fold` (fold.h): a child's gradients into its parent's. docs/tile_linear.md, "Fold, backward".
#ifndef SCP_CPU_FOLD_BACKWARD_H
#define SCP_CPU_FOLD_BACKWARD_H

#include "phi_parameters.h"
#include "product.h"

namespace scp {
namespace SCP_NAMESPACE {

// Sums over pixels that belong to no node: one set per task.
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

// Newly active units k of layer 2:  gW3[:, k] += sum_r src_r[k] g_cf[r, :],  gsrc_r[k] = sum_n W3[n, k] g_cf[r, n].
template <class T, int D>
SCP_INLINE void fold_outputs_backward(const PhiParameters<T>& params, const Node<T, D>& parent, const Node<T, D>& child,
                                      const GradientSums<T>& sums, T* const* g_src, ScratchStack& scratch) {
  constexpr int L = kLanes<T>;
  const int ncp = params.ncp, basis_size = child.basis_size(), active2 = child.active2;
  const int *column = child.active2_column, *unit = child.active2_unit;
  const T* const* src = source_rows(parent, child, scratch);
  add_product<TallTile, T>(
      active2, ncp / L, basis_size, [=](int k, int r) SCP_LAMBDA_INLINE { return src[r][column[k]]; },
      [=, g_cf = child.g_cf](int r) SCP_LAMBDA_INLINE { return g_cf + int64_t(r) * ncp; },
      [=, W3T = sums.W3T](int k) SCP_LAMBDA_INLINE { return W3T + int64_t(unit[k]) * ncp; });

  // Over n, with g_cf transposed: the sums are then not over lanes.
  const int padded_size = padded<T>(basis_size);
  T* g_cfT = take<T>(scratch, int64_t(ncp) * padded_size);
  transpose_matrix(child.g_cf, basis_size, ncp, padded_size, g_cfT);
  T* g_rows = take<T>(scratch, int64_t(active2) * padded_size);
  product<TallTile, T>(
      active2, padded_size / L, params.nc,
      [=, W3T = params.W3T](int k, int n) SCP_LAMBDA_INLINE { return W3T[int64_t(unit[k]) * ncp + n]; },
      [=](int n) SCP_LAMBDA_INLINE { return g_cfT + int64_t(n) * padded_size; },
      [](int, int) SCP_LAMBDA_INLINE { return zero<T>(); },
      [=](int k, int v, Vector<T> sum) SCP_LAMBDA_INLINE { store(g_rows + int64_t(k) * padded_size + v * L, sum); });
  for (int r = 0; r < basis_size; ++r) {
    T* to = g_src[r];
    for (int k = 0; k < active2; ++k) to[column[k]] += g_rows[int64_t(k) * padded_size + r];
  }
}

// Adds to the parent's g_A2 and g_cf, and to `sums` what belongs to units that are newly active in the child.
template <class T, int D>
void fold_backward(const PhiParameters<T>& params, const Node<T, D>& parent, const Node<T, D>& child,
                   const GradientSums<T>& sums, ScratchStack& scratch, Counters& counters) {
  constexpr int A = kAffineTerms<D>;
  constexpr int L = kLanes<T>;
  const ScratchStack::Mark mark = scratch.mark();
  const int ncp = params.ncp, words = parent.m2p / L;
  const int64_t stride = parent.m2p;

  // Affine rows before columns were dropped (gx), and the parent's rows of the units that are still unstable.
  T* gx = take<T>(scratch, A * stride);
  for (int64_t k = 0; k < A * stride; k += L) store(gx + k, zero<T>());
  T** g_src = take<T*>(scratch, child.basis_size());
  for (int a = 0; a < A; ++a) g_src[a] = gx + a * stride;
  for (int q = 0; q < child.m1; ++q) g_src[A + q] = parent.g_A2 + (A + child.row1[q]) * stride;
  // What both have of layer 2: columns that are still unstable, then those that are newly active.
  if (child.m2 > 0)
    for (int r = 0; r < child.basis_size(); ++r)
      add_unpacked(child.g_A2 + int64_t(r) * child.m2p, child.kept, words, g_src[r]);
  if (child.active2 > 0) fold_outputs_backward(params, parent, child, sums, g_src, scratch);

  // Rows of cf of units that are still unstable.
  for (int q = 0; q < child.m1; ++q) {
    T* to = parent.g_cf + int64_t(A + child.row1[q]) * ncp;
    const T* from = child.g_cf + int64_t(A + q) * ncp;
    for (int n = 0; n < ncp; n += L) store(to + n, load(to + n) + load(from + n));
  }

  // For A2 (g = gx) and cf (g = g_cf) alike: recentring, then the newly active units of layer 1, then their moments.
  T(*moments)[A] = static_cast<T(*)[A]>(scratch.allocate(size_t(child.active1 + 1) * sizeof(T[A])));
  for (int q = 0; q < child.active1; ++q)
    for (int a = 0; a < A; ++a) moments[q][a] = T(0);
  const auto fold_rows_backward = [&](const T* g, const T* values, T* g_values, int64_t columns) SCP_LAMBDA_INLINE {
    for (int64_t k = 0; k < columns; k += L) {
      const Vector<T> g0 = load(g + k);
      store(g_values + k, load(g_values + k) + g0);
      for (int a = 1; a < A; ++a) {
        T* to = g_values + a * columns + k;
        store(to, load(to) + fma(splat(T(child.shift[a - 1])), g0, load(g + a * columns + k)));
      }
    }
    for (int q = 0; q < child.active1; ++q) {
      const T* value = values + (A + child.active1_row[q]) * columns;
      T* to = g_values + (A + child.active1_row[q]) * columns;
      Vector<T> moment[A] = {};
      for (int64_t k = 0; k < columns; k += L) {
        const Vector<T> weight = load(value + k);
        Vector<T> total = load(to + k);
        for (int a = 0; a < A; ++a) {
          const Vector<T> ga = load(g + a * columns + k);
          total = fma(splat(child.active1_line[a * int64_t(child.m1p) + q]), ga, total);
          moment[a] = fma(weight, ga, moment[a]);
        }
        store(to + k, total);
      }
      for (int a = 0; a < A; ++a) moments[q][a] += sum(moment[a]);
    }
  };
  fold_rows_backward(gx, parent.A2, parent.g_A2, stride);
  fold_rows_backward(child.g_cf, parent.cf, parent.g_cf, ncp);
  for (int q = 0; q < child.active1; ++q)
    add_moments<T, D>(sums, parent.unit1[child.active1_row[q]], child.centre, moments[q]);
  counters.build_macs += (double(parent.m2) + params.nc) * (D + 2.0 * A * child.active1) +
                         2.0 * child.active2 * child.basis_size() * params.nc;
  scratch.release(mark);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
