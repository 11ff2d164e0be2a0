// A child's network from its parent's: docs/tile_linear.md, "Child", steps 1 to 5. The adjoint is in pull.h.
#ifndef SCP_CPU_FOLD_H
#define SCP_CPU_FOLD_H

#include "node.h"
#include "product.h"

namespace scp {
namespace SCP_NAMESPACE {

// Affine functions in the place of some mixed units q of the parent's layer 1, one array a coefficient.
template <class T, int D>
struct Lines {
  int count;
  const int* row;        // [count]: index of the unit among the parent's
  const T* coefficient;  // [kAffineRows (+ 1), room]: value, slopes (, slack)
  int room;

  SCP_INLINE Vector<T> at(int a, int q) const { return splat(coefficient[a * int64_t(room) + q]); }
};

// Steps 2 and 3 on V vectors of columns: the affine rows of z, then off, on or mixed. `on` are the newly-on units of
// layer 1, `mixed` the chords of the mixed ones.
template <class T, int D, int V>
SCP_INLINE void fold_columns(const Node<T, D>& parent, int column, const Lines<T, D>& on, const Lines<T, D>& mixed,
                             const double (&shift)[D], const double (&half_extent)[D], T* x, unsigned* bits_on,
                             unsigned* bits_off) {
  constexpr int A = kAffineRows<D>;
  constexpr int L = kLanes<T>;
  const int64_t stride = parent.m2p;
  const T* const A2 = parent.A2 + column;
  Vector<T> z[A][V];
  for (int v = 0; v < V; ++v) {
    for (int a = 0; a < A; ++a) z[a][v] = load(A2 + a * stride + v * L);
    for (int a = 1; a < A; ++a) z[0][v] = fma(splat(T(shift[a - 1])), z[a][v], z[0][v]);
  }
  for (int q = 0; q < on.count; ++q) {
    const T* const row = A2 + (A + on.row[q]) * stride;
    for (int v = 0; v < V; ++v) {
      const Vector<T> weight = load(row + v * L);
      for (int a = 0; a < A; ++a) z[a][v] = fma(weight, on.at(a, q), z[a][v]);
    }
  }
  Vector<T> radius[V] = {};
  for (int v = 0; v < V; ++v)
    for (int a = 0; a < A; ++a) store(x + a * stride + column + v * L, z[a][v]);
  for (int q = 0; q < mixed.count; ++q) {
    const T* const row = A2 + (A + mixed.row[q]) * stride;
    for (int v = 0; v < V; ++v) {
      const Vector<T> weight = load(row + v * L);
      for (int a = 0; a < A; ++a) z[a][v] = fma(weight, mixed.at(a, q), z[a][v]);
      radius[v] = fma(magnitude(weight), mixed.at(A, q), radius[v]);
    }
  }
  for (int v = 0; v < V; ++v) {
    for (int a = 1; a < A; ++a) radius[v] = fma(magnitude(z[a][v]), splat(T(half_extent[a - 1])), radius[v]);
    radius[v] = radius[v] * splat(T(kBoundWidening));
    bits_on[v] = positive(z[0][v] - radius[v]);
    bits_off[v] = not_positive(z[0][v] + radius[v]);
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

// Step 1: units of the parent's layer 1 that are mixed here, and those newly on. Lists are packed a vector at a time,
// never past the vector that was read. Returns the chords of the mixed ones.
template <class T, int D>
SCP_INLINE Lines<T, D> classify_layer1(const Node<T, D>& parent, const double (&half_extent)[D], ScratchStack& scratch,
                                       Node<T, D>& child) {
  constexpr int A = kAffineRows<D>;
  using Doubles = Vector<double>;
  constexpr int U = kLanes<double>;
  const int candidates = parent.m1;
  const int room = padded<double>(candidates);
  int* unit1 = take<int>(scratch, room);
  int* row1 = take<int>(scratch, room);
  int* on1_row = take<int>(scratch, room);
  T* on1_line = take<T>(scratch, room * A);
  T* chords = take<T>(scratch, room * (A + 1));
  double* line1 = take<double>(scratch, room * A);
  int m1 = 0, on1 = 0;
  for (int q0 = 0; q0 < candidates; q0 += U) {
    const Affine<Doubles, D> line = parent.template lines<Doubles>(q0).recentred(child.shift);
    const Doubles radius = line.radius(half_extent);
    const Doubles lowest = line.value - radius, highest = line.value + radius;
    const unsigned all = candidates - q0 >= U ? (1u << U) - 1 : (1u << (candidates - q0)) - 1;
    const unsigned is_on = positive(lowest) & all;
    const unsigned is_mixed = all & ~is_on & ~not_positive(highest);
    if (is_on != 0) {
      store_rounded(on1_line + on1, compress(line.value, is_on));
      for (int axis = 0; axis < D; ++axis)
        store_rounded(on1_line + (1 + axis) * room + on1, compress(line.slope[axis], is_on));
      list_lanes<double>(q0, is_on, on1_row + on1);
      on1 += __builtin_popcount(is_on);
    }
    if (is_mixed != 0) {
      const Chord<Doubles> bound = chord(lowest, highest);
      store_rounded(chords + m1, compress(bound.scale * line.value + bound.slack, is_mixed));
      store(line1 + m1, compress(line.value, is_mixed));
      for (int axis = 0; axis < D; ++axis) {
        store_rounded(chords + (1 + axis) * room + m1, compress(bound.scale * line.slope[axis], is_mixed));
        store(line1 + (1 + axis) * room + m1, compress(line.slope[axis], is_mixed));
      }
      store_rounded(chords + A * room + m1, compress(bound.slack, is_mixed));
      compress_integers<double>(parent.unit1 + q0, is_mixed, unit1 + m1);
      list_lanes<double>(q0, is_mixed, row1 + m1);
      m1 += __builtin_popcount(is_mixed);
    }
  }
  child.m1 = m1, child.unit1 = unit1, child.line1 = line1, child.m1p = room, child.row1 = row1;
  child.on1 = on1, child.on1_row = on1_row, child.on1_line = on1_line;
  return {m1, row1, chords, room};
}

// Steps 2 and 3 for all columns: x, and which units of the parent's layer 2 are kept, or newly on.
template <class T, int D>
SCP_INLINE void classify_layer2(const Node<T, D>& parent, const Lines<T, D>& on, const Lines<T, D>& mixed,
                                const double (&half_extent)[D], ScratchStack& scratch, Node<T, D>& child) {
  constexpr int L = kLanes<T>;
  const int64_t stride = parent.m2p;
  const int words = int(stride) / L;
  T* x = take<T>(scratch, kAffineRows<D> * stride);
  uint16_t* kept = take<uint16_t>(scratch, words);
  int* unit2 = take<int>(scratch, stride);
  int* on2_column = take<int>(scratch, stride);
  int* on2_unit = take<int>(scratch, stride);
  int m2 = 0, on2 = 0;
  for (int w = 0; w < words;) {
    unsigned bits_on[2], bits_off[2];
    int vectors = 1;
    if (w + 2 <= words) {
      vectors = 2;
      fold_columns<T, D, 2>(parent, w * L, on, mixed, child.shift, half_extent, x, bits_on, bits_off);
    } else {
      fold_columns<T, D, 1>(parent, w * L, on, mixed, child.shift, half_extent, x, bits_on, bits_off);
    }
    for (int v = 0; v < vectors; ++v, ++w) {
      const int column = w * L;
      const int valid = parent.m2 - column;
      const unsigned all = valid >= L ? (1u << L) - 1 : (1u << valid) - 1;
      const unsigned is_on = bits_on[v] & all;
      const unsigned is_mixed = all & ~bits_on[v] & ~bits_off[v];
      kept[w] = uint16_t(is_mixed);
      compress_integers<T>(parent.unit2 + column, is_mixed, unit2 + m2);
      m2 += __builtin_popcount(is_mixed);
      if (is_on == 0) continue;
      compress_integers<T>(parent.unit2 + column, is_on, on2_unit + on2);
      list_lanes<T>(column, is_on, on2_column + on2);
      on2 += __builtin_popcount(is_on);
    }
  }
  child.m2 = m2, child.m2p = padded<T>(m2), child.unit2 = unit2, child.x = x, child.kept = kept;
  child.on2 = on2, child.on2_column = on2_column, child.on2_unit = on2_unit;
}

// Step 4: the child's cf.
template <class T, int D>
SCP_INLINE void fold_outputs(const Network<T>& net, const Node<T, D>& parent, const Lines<T, D>& on,
                             const T* const* src, ScratchStack& scratch, Node<T, D>& child) {
  constexpr int A = kAffineRows<D>;
  constexpr int L = kLanes<T>;
  const int ncp = net.ncp, basis = child.basis();
  const int *on2_column = child.on2_column, *on2_unit = child.on2_unit;
  T* cf = take<T>(scratch, int64_t(basis) * ncp);
  for (int n = 0; n < ncp; n += L) {
    Vector<T> c[A];
    for (int a = 0; a < A; ++a) c[a] = load(parent.cf + a * ncp + n);
    for (int a = 1; a < A; ++a) c[0] = fma(splat(T(child.shift[a - 1])), c[a], c[0]);
    for (int q = 0; q < on.count; ++q) {
      const Vector<T> weight = load(parent.cf + int64_t(A + on.row[q]) * ncp + n);
      for (int a = 0; a < A; ++a) c[a] = fma(weight, on.at(a, q), c[a]);
    }
    for (int a = 0; a < A; ++a) store(cf + a * ncp + n, c[a]);
  }
  const T** from = take<const T*>(scratch, basis);
  for (int a = 0; a < A; ++a) from[a] = cf + a * ncp;
  for (int q = 0; q < child.m1; ++q) from[A + q] = parent.cf + int64_t(A + child.row1[q]) * ncp;
  product<TallTile, T>(
      basis, ncp / L, child.on2, [=](int r, int k) SCP_LAMBDA_INLINE { return src[r][on2_column[k]]; },
      [=, W3T = net.W3T](int k) SCP_LAMBDA_INLINE { return W3T + int64_t(on2_unit[k]) * ncp; },
      [=](int r, int v) SCP_LAMBDA_INLINE { return load(from[r] + v * L); },
      [=](int r, int v, Vector<T> sum) SCP_LAMBDA_INLINE { store(cf + int64_t(r) * ncp + v * L, sum); });
  child.cf = cf;
}

// Step 5: the mixed rows and columns of A2.
template <class T, int D>
SCP_INLINE void keep_mixed(const Node<T, D>& parent, const T* const* src, ScratchStack& scratch, Node<T, D>& child) {
  const int words = parent.m2p / kLanes<T>;
  T* A2 = take<T>(scratch, int64_t(child.basis()) * child.m2p + kOverhang<T>);
  for (int r = 0; r < child.basis(); ++r) pack_columns(src[r], child.kept, words, A2 + int64_t(r) * child.m2p);
  child.A2 = A2;
}

// The child of `parent` on `box`.
template <class T, int D>
void specialise(const Network<T>& net, const Node<T, D>& parent, const Box<D>& box, ScratchStack& scratch,
                Node<T, D>& child, Counters& counters) {
  constexpr int A = kAffineRows<D>;
  double half_extent[D];
  child.box = box;
  for (int axis = 0; axis < D; ++axis) {
    child.centre[axis] = box.centre(axis);
    child.shift[axis] = child.centre[axis] - parent.centre[axis];
    half_extent[axis] = box.half_extent(axis);
  }
  const Lines<T, D> mixed = classify_layer1(parent, half_extent, scratch, child);
  const Lines<T, D> on{child.on1, child.on1_row, child.on1_line, child.m1p};
  classify_layer2(parent, on, mixed, half_extent, scratch, child);
  const T* const* src = source_rows(parent, child, scratch);
  fold_outputs(net, parent, on, src, scratch, child);
  keep_mixed(parent, src, scratch, child);

  const double m1 = child.m1, on1 = child.on1, basis = child.basis();
  counters.nodes += 1;
  counters.build_macs += double(parent.m2) * (A * on1 + (A + 1) * m1) + double(net.nc) * (A * on1 + child.on2 * basis) +
                         double(parent.m1) * (2 * D);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
