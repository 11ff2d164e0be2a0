// A child's network from its parent's: docs/tile_linear.md, "Fold", steps 1 to 5. The adjoint is in fold_backward.h.
#ifndef SCP_CPU_FOLD_H
#define SCP_CPU_FOLD_H

#include "phi_parameters.h"
#include "product.h"

namespace scp {
namespace SCP_NAMESPACE {

// Affine functions in the place of some unstable units q of the parent's layer 1, one array per coefficient.
template <class T, int D>
struct Lines {
  int count;
  const int* row;        // [count]: index of the unit among the parent's
  const T* coefficient;  // [kAffineTerms (+ 1), room]: value, slopes (, slack)
  int room;

  SCP_INLINE Vector<T> at(int a, int q) const { return splat(coefficient[a * int64_t(room) + q]); }
};

// Steps 2 and 3 on V vectors of columns: the affine rows x of z, then which columns are active or inactive. `active`
// are the newly active units of layer 1, `unstable` the chords of the unstable ones.
template <class T, int D, int V>
SCP_INLINE void fold_columns(const Node<T, D>& parent, int column, const Lines<T, D>& active,
                             const Lines<T, D>& unstable, const double (&shift)[D], const double (&half_extent)[D],
                             T* x, unsigned* active_bits, unsigned* inactive_bits) {
  constexpr int A = kAffineTerms<D>;
  constexpr int L = kLanes<T>;
  const int64_t stride = parent.m2p;
  const T* const A2 = parent.A2 + column;
  // Recentre the parent's affine rows: z about the child's centre.
  Vector<T> z[A][V];
  for (int v = 0; v < V; ++v) {
    for (int a = 0; a < A; ++a) z[a][v] = load(A2 + a * stride + v * L);
    for (int a = 1; a < A; ++a) z[0][v] = fma(splat(T(shift[a - 1])), z[a][v], z[0][v]);
  }
  // Newly active units are affine on the box: they fold into the affine rows, which are then the child's.
  for (int q = 0; q < active.count; ++q) {
    const T* const row = A2 + (A + active.row[q]) * stride;
    for (int v = 0; v < V; ++v) {
      const Vector<T> weight = load(row + v * L);
      for (int a = 0; a < A; ++a) z[a][v] = fma(weight, active.at(a, q), z[a][v]);
    }
  }
  for (int v = 0; v < V; ++v)
    for (int a = 0; a < A; ++a) store(x + a * stride + column + v * L, z[a][v]);
  // For the bounds alone, replace each unstable unit by its chord. What the chord is off by adds up in the radius.
  Vector<T> radius[V] = {};
  for (int q = 0; q < unstable.count; ++q) {
    const T* const row = A2 + (A + unstable.row[q]) * stride;
    for (int v = 0; v < V; ++v) {
      const Vector<T> weight = load(row + v * L);
      for (int a = 0; a < A; ++a) z[a][v] = fma(weight, unstable.at(a, q), z[a][v]);
      radius[v] = fma(magnitude(weight), unstable.at(A, q), radius[v]);
    }
  }
  // The range of that affine function over the box: z lies within `radius` of its value at the centre.
  for (int v = 0; v < V; ++v) {
    for (int a = 1; a < A; ++a) radius[v] = fma(magnitude(z[a][v]), splat(T(half_extent[a - 1])), radius[v]);
    radius[v] = radius[v] * splat(T(kBoundWidening));
    active_bits[v] = positive(z[0][v] - radius[v]);
    inactive_bits[v] = not_positive(z[0][v] + radius[v]);
  }
}

// Columns of `row` whose bit is set, packed; the rest of the last vector is 0. Writes up to one vector past the end.
template <class T>
SCP_INLINE void pack_columns(const T* row, const uint16_t* kept, int words, T* packed) {
  for (int w = 0; w < words; ++w) {
    if (kept[w] == 0) continue;
    store(packed, compress(load(row + w * kLanes<T>), kept[w]));
    packed += __builtin_popcount(kept[w]);
  }
  store(packed, zero<T>());
}

// Step 1: units of the parent's layer 1 that are unstable here, and those newly active. Lists are packed vector by
// vector, never past the vector that was read. Returns the chords of the unstable ones.
template <class T, int D>
SCP_INLINE Lines<T, D> classify_layer1(const Node<T, D>& parent, const double (&half_extent)[D], ScratchStack& scratch,
                                       Node<T, D>& child) {
  constexpr int A = kAffineTerms<D>;
  using Doubles = Vector<double>;
  constexpr int U = kLanes<double>;
  const int candidates = parent.m1;
  const int room = padded<double>(candidates);
  int* unit1 = take<int>(scratch, room);
  int* row1 = take<int>(scratch, room);
  int* active1_row = take<int>(scratch, room);
  T* active1_line = take<T>(scratch, room * A);
  T* chords = take<T>(scratch, room * (A + 1));
  double* line1 = take<double>(scratch, room * A);
  // A vector of units at a time: recentre, bound, and append each unit's numbers to the list of its class.
  int m1 = 0, active1 = 0;
  for (int q0 = 0; q0 < candidates; q0 += U) {
    const Affine<Doubles, D> line = parent.template lines<Doubles>(q0).recentred(child.shift);
    const Doubles radius = line.radius(half_extent);
    const Doubles lowest = line.value - radius, highest = line.value + radius;
    const unsigned all = candidates - q0 >= U ? (1u << U) - 1 : (1u << (candidates - q0)) - 1;
    const unsigned is_active = positive(lowest) & all;
    const unsigned is_unstable = all & ~is_active & ~not_positive(highest);
    if (is_active != 0) {
      store_rounded(active1_line + active1, compress(line.value, is_active));
      for (int axis = 0; axis < D; ++axis)
        store_rounded(active1_line + (1 + axis) * room + active1, compress(line.slope[axis], is_active));
      list_lanes<double>(q0, is_active, active1_row + active1);
      active1 += __builtin_popcount(is_active);
    }
    if (is_unstable != 0) {
      const Chord<Doubles> bound = chord(lowest, highest);
      store_rounded(chords + m1, compress(bound.scale * line.value + bound.slack, is_unstable));
      store(line1 + m1, compress(line.value, is_unstable));
      for (int axis = 0; axis < D; ++axis) {
        store_rounded(chords + (1 + axis) * room + m1, compress(bound.scale * line.slope[axis], is_unstable));
        store(line1 + (1 + axis) * room + m1, compress(line.slope[axis], is_unstable));
      }
      store_rounded(chords + A * room + m1, compress(bound.slack, is_unstable));
      compress_integers<double>(parent.unit1 + q0, is_unstable, unit1 + m1);
      list_lanes<double>(q0, is_unstable, row1 + m1);
      m1 += __builtin_popcount(is_unstable);
    }
  }
  child.m1 = m1, child.unit1 = unit1, child.line1 = line1, child.m1p = room, child.row1 = row1;
  child.active1 = active1, child.active1_row = active1_row, child.active1_line = active1_line;
  return {m1, row1, chords, room};
}

// Steps 2 and 3 for all columns: x, and which units of the parent's layer 2 are kept, or newly active.
template <class T, int D>
SCP_INLINE void classify_layer2(const Node<T, D>& parent, const Lines<T, D>& active, const Lines<T, D>& unstable,
                                const double (&half_extent)[D], ScratchStack& scratch, Node<T, D>& child) {
  constexpr int L = kLanes<T>;
  const int64_t stride = parent.m2p;
  const int words = int(stride) / L;
  T* x = take<T>(scratch, kAffineTerms<D> * stride);
  uint16_t* kept = take<uint16_t>(scratch, words);
  int* unit2 = take<int>(scratch, stride);
  int* active2_column = take<int>(scratch, stride);
  int* active2_unit = take<int>(scratch, stride);
  int m2 = 0, active2 = 0;
  for (int w = 0; w < words;) {
    unsigned active_bits[2], inactive_bits[2];
    int vectors = 1;
    if (w + 2 <= words) {
      vectors = 2;
      fold_columns<T, D, 2>(parent, w * L, active, unstable, child.shift, half_extent, x, active_bits, inactive_bits);
    } else {
      fold_columns<T, D, 1>(parent, w * L, active, unstable, child.shift, half_extent, x, active_bits, inactive_bits);
    }
    for (int v = 0; v < vectors; ++v, ++w) {
      const int column = w * L;
      const int valid = parent.m2 - column;
      const unsigned all = valid >= L ? (1u << L) - 1 : (1u << valid) - 1;
      const unsigned is_active = active_bits[v] & all;
      const unsigned is_unstable = all & ~active_bits[v] & ~inactive_bits[v];
      kept[w] = uint16_t(is_unstable);
      compress_integers<T>(parent.unit2 + column, is_unstable, unit2 + m2);
      m2 += __builtin_popcount(is_unstable);
      if (is_active == 0) continue;
      compress_integers<T>(parent.unit2 + column, is_active, active2_unit + active2);
      list_lanes<T>(column, is_active, active2_column + active2);
      active2 += __builtin_popcount(is_active);
    }
  }
  child.m2 = m2, child.m2p = padded<T>(m2), child.unit2 = unit2, child.x = x, child.kept = kept;
  child.active2 = active2, child.active2_column = active2_column, child.active2_unit = active2_unit;
}

// Step 4: the child's cf.
template <class T, int D>
SCP_INLINE void fold_outputs(const PhiParameters<T>& params, const Node<T, D>& parent, const Lines<T, D>& active,
                             const T* const* src, ScratchStack& scratch, Node<T, D>& child) {
  constexpr int A = kAffineTerms<D>;
  constexpr int L = kLanes<T>;
  const int ncp = params.ncp, basis_size = child.basis_size();
  const int *active2_column = child.active2_column, *active2_unit = child.active2_unit;
  T* cf = take<T>(scratch, int64_t(basis_size) * ncp);
  // The affine rows, recentred, with the newly active units of layer 1.
  for (int n = 0; n < ncp; n += L) {
    Vector<T> c[A];
    for (int a = 0; a < A; ++a) c[a] = load(parent.cf + a * ncp + n);
    for (int a = 1; a < A; ++a) c[0] = fma(splat(T(child.shift[a - 1])), c[a], c[0]);
    for (int q = 0; q < active.count; ++q) {
      const Vector<T> weight = load(parent.cf + int64_t(A + active.row[q]) * ncp + n);
      for (int a = 0; a < A; ++a) c[a] = fma(weight, active.at(a, q), c[a]);
    }
    for (int a = 0; a < A; ++a) store(cf + a * ncp + n, c[a]);
  }
  // Newly active units of layer 2: a product of their rows and W3's columns, added to the affine rows above and to the
  // parent's rows of units that stay unstable.
  const T** from = take<const T*>(scratch, basis_size);
  for (int a = 0; a < A; ++a) from[a] = cf + a * ncp;
  for (int q = 0; q < child.m1; ++q) from[A + q] = parent.cf + int64_t(A + child.row1[q]) * ncp;
  product<TallTile, T>(
      basis_size, ncp / L, child.active2, [=](int r, int k) SCP_LAMBDA_INLINE { return src[r][active2_column[k]]; },
      [=, W3T = params.W3T](int k) SCP_LAMBDA_INLINE { return W3T + int64_t(active2_unit[k]) * ncp; },
      [=](int r, int v) SCP_LAMBDA_INLINE { return load(from[r] + v * L); },
      [=](int r, int v, Vector<T> sum) SCP_LAMBDA_INLINE { store(cf + int64_t(r) * ncp + v * L, sum); });
  child.cf = cf;
}

// Step 5: the rows and columns of A2 that belong to unstable units.
template <class T, int D>
SCP_INLINE void keep_unstable(const Node<T, D>& parent, const T* const* src, ScratchStack& scratch, Node<T, D>& child) {
  const int words = parent.m2p / kLanes<T>;
  T* A2 = take<T>(scratch, int64_t(child.basis_size()) * child.m2p + kOverhang<T>);
  for (int r = 0; r < child.basis_size(); ++r) pack_columns(src[r], child.kept, words, A2 + int64_t(r) * child.m2p);
  child.A2 = A2;
}

// The child of `parent` on `box`.
template <class T, int D>
void fold(const PhiParameters<T>& params, const Node<T, D>& parent, const Box<D>& box, ScratchStack& scratch,
          Node<T, D>& child, Counters& counters) {
  constexpr int A = kAffineTerms<D>;
  double half_extent[D];
  child.box = box;
  for (int axis = 0; axis < D; ++axis) {
    child.centre[axis] = box.centre(axis);
    child.shift[axis] = child.centre[axis] - parent.centre[axis];
    half_extent[axis] = box.half_extent(axis);
  }
  const Lines<T, D> unstable = classify_layer1(parent, half_extent, scratch, child);
  const Lines<T, D> active{child.active1, child.active1_row, child.active1_line, child.m1p};
  classify_layer2(parent, active, unstable, half_extent, scratch, child);
  const T* const* src = source_rows(parent, child, scratch);
  fold_outputs(params, parent, active, src, scratch, child);
  keep_unstable(parent, src, scratch, child);

  const double m1 = child.m1, active1 = child.active1, basis_size = child.basis_size();
  counters.nodes += 1;
  counters.build_macs += double(parent.m2) * (A * active1 + (A + 1) * m1) +
                         double(params.nc) * (A * active1 + child.active2 * basis_size) + double(parent.m1) * (2 * D);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
