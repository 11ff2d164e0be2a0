// A child's network from its parent's: tile_linear's "Child from parent", steps 1 to 5. The adjoint is in pull.h.
#ifndef SCP_CPU_FOLD_H
#define SCP_CPU_FOLD_H

#include "node.h"
#include "product.h"

namespace scp {
namespace SCP_NAMESPACE {

// Bound of one mixed unit of layer 1, for step 3: relu(l) = value + slopes . (index - centre) +- slack.
template <class T, int D>
struct ChordRow {
  const T* row;  // the parent's row of A2
  T line[kAffineRows<D>];
  T slack;
};

template <class T, int D>
struct OnRow {
  const T* row;  // the parent's row of A2
  const T* line;
};

// Steps 2 and 3 on V vectors of columns: the affine rows of z, then off, on or mixed.
template <class T, int D, int V>
SCP_INLINE void fold_columns(const Node<T, D>& parent, int column, const OnRow<T, D>* on, int on_count,
                             const ChordRow<T, D>* mixed, int mixed_count, const double (&shift)[D],
                             const double (&half_extent)[D], T* x, unsigned* bits_on, unsigned* bits_off) {
  constexpr int A = kAffineRows<D>;
  constexpr int L = kLanes<T>;
  const int64_t stride = parent.m2p;
  Vector<T> z[A][V];
  for (int v = 0; v < V; ++v) {
    for (int a = 0; a < A; ++a) z[a][v] = load(parent.A2 + a * stride + column + v * L);
    for (int a = 1; a < A; ++a) z[0][v] = fma(splat(T(shift[a - 1])), z[a][v], z[0][v]);
  }
  for (int q = 0; q < on_count; ++q) {
    for (int v = 0; v < V; ++v) {
      const Vector<T> weight = load(on[q].row + column + v * L);
      for (int a = 0; a < A; ++a) z[a][v] = fma(weight, splat(on[q].line[a]), z[a][v]);
    }
  }
  Vector<T> radius[V] = {};
  for (int v = 0; v < V; ++v)
    for (int a = 0; a < A; ++a) store(x + a * stride + column + v * L, z[a][v]);
  for (int q = 0; q < mixed_count; ++q) {
    for (int v = 0; v < V; ++v) {
      const Vector<T> weight = load(mixed[q].row + column + v * L);
      for (int a = 0; a < A; ++a) z[a][v] = fma(weight, splat(mixed[q].line[a]), z[a][v]);
      radius[v] = fma(magnitude(weight), splat(mixed[q].slack), radius[v]);
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

template <class T, int D>
void specialise(const Network<T>& net, const Node<T, D>& parent, const Box<D>& box, ScratchStack& scratch,
                Node<T, D>& child, Counters& counters) {
  constexpr int A = kAffineRows<D>;
  constexpr int L = kLanes<T>;
  const int64_t stride = parent.m2p;
  double half_extent[D];
  child.box = box;
  for (int axis = 0; axis < D; ++axis) {
    child.centre[axis] = box.centre(axis);
    child.shift[axis] = child.centre[axis] - parent.centre[axis];
    half_extent[axis] = box.half_extent(axis);
  }

  // 1. Layer 1: off, on or mixed.
  using Doubles = Vector<double>;
  constexpr int U = kLanes<double>;
  const int candidates = parent.m1;
  const int room = padded<double>(candidates);
  int* unit1 = take<int>(scratch, room);
  int* row1 = take<int>(scratch, room);
  int* on1_row = take<int>(scratch, room);
  T* on1_line = take<T>(scratch, room * A);
  auto* on = take<OnRow<T, D>>(scratch, room);
  auto* mixed = take<ChordRow<T, D>>(scratch, room);
  double* line1 = take<double>(scratch, room * A);
  int m1 = 0, on1 = 0;
  for (int q0 = 0; q0 < candidates; q0 += U) {
    const Affine<Doubles, D> line = parent.template lines<Doubles>(q0).recentred(child.shift);
    const Doubles radius = line.radius(half_extent);
    const Doubles lowest = line.value - radius, highest = line.value + radius;
    const unsigned all = candidates - q0 >= U ? (1u << U) - 1 : (1u << (candidates - q0)) - 1;
    unsigned is_on = positive(lowest) & all;
    unsigned is_mixed = all & ~is_on & ~not_positive(highest);
    if ((is_on | is_mixed) == 0) continue;
    const Chord<Doubles> bound = chord(lowest, highest);
    double lines[A][U], chords[A + 1][U];
    store(lines[0], line.value);
    store(chords[0], bound.scale * line.value + bound.slack);
    for (int axis = 0; axis < D; ++axis) {
      store(lines[1 + axis], line.slope[axis]);
      store(chords[1 + axis], bound.scale * line.slope[axis]);
    }
    store(chords[A], bound.slack);
    for (; is_on; is_on &= is_on - 1) {
      const int lane = __builtin_ctz(is_on);
      T* to = on1_line + on1 * A;
      for (int a = 0; a < A; ++a) to[a] = T(lines[a][lane]);
      on[on1] = {parent.A2 + (A + q0 + lane) * stride, to};
      on1_row[on1++] = q0 + lane;
    }
    for (; is_mixed; is_mixed &= is_mixed - 1) {
      const int lane = __builtin_ctz(is_mixed);
      ChordRow<T, D>& to = mixed[m1];
      to.row = parent.A2 + (A + q0 + lane) * stride;
      for (int a = 0; a < A; ++a) to.line[a] = T(chords[a][lane]);
      to.slack = T(chords[A][lane]);
      for (int a = 0; a < A; ++a) line1[a * room + m1] = lines[a][lane];
      unit1[m1] = parent.unit1[q0 + lane];
      row1[m1++] = q0 + lane;
    }
  }
  child.m1 = m1, child.unit1 = unit1, child.line1 = line1, child.m1p = room, child.row1 = row1;
  child.on1 = on1, child.on1_row = on1_row, child.on1_line = on1_line;

  // 2 and 3. Layer 2: affine rows, then off, on or mixed.
  const int words = int(stride) / L;
  T* x = take<T>(scratch, A * stride);
  uint16_t* kept = take<uint16_t>(scratch, words);
  int* unit2 = take<int>(scratch, stride + L);  // lists are packed a vector at a time, so they need room for one more
  int* on2_column = take<int>(scratch, stride + L);
  int* on2_unit = take<int>(scratch, stride + L);
  int m2 = 0, on2 = 0;
  for (int w = 0; w < words;) {
    unsigned bits_on[2], bits_off[2];
    int vectors = 1;
    if (w + 2 <= words) {
      vectors = 2;
      fold_columns<T, D, 2>(parent, w * L, on, on1, mixed, m1, child.shift, half_extent, x, bits_on, bits_off);
    } else {
      fold_columns<T, D, 1>(parent, w * L, on, on1, mixed, m1, child.shift, half_extent, x, bits_on, bits_off);
    }
    for (int v = 0; v < vectors; ++v, ++w) {
      const int column = w * L;
      const int valid = parent.m2 - column;
      const unsigned all = valid >= L ? (1u << L) - 1 : (1u << valid) - 1;
      unsigned is_on = bits_on[v] & all;
      const unsigned is_mixed = all & ~bits_on[v] & ~bits_off[v];
      kept[w] = uint16_t(is_mixed);
      compress_integers<T>(parent.unit2 + column, is_mixed, unit2 + m2);
      m2 += __builtin_popcount(is_mixed);
      compress_integers<T>(parent.unit2 + column, is_on, on2_unit + on2);
      for (; is_on; is_on &= is_on - 1) on2_column[on2++] = column + __builtin_ctz(is_on);
    }
  }
  child.m2 = m2, child.m2p = padded<T>(m2), child.unit2 = unit2, child.x = x, child.kept = kept;
  child.on2 = on2, child.on2_column = on2_column, child.on2_unit = on2_unit;

  // Rows of layer 2 before columns are dropped: src in tile_linear.
  const int basis = A + m1;
  const T** src = take<const T*>(scratch, basis);
  for (int a = 0; a < A; ++a) src[a] = x + a * stride;
  for (int q = 0; q < m1; ++q) src[A + q] = mixed[q].row;

  // 4. Output: recentre, fold the newly-on units of layer 1, then those of layer 2 for good.
  const int ncp = net.ncp;
  T* cf = take<T>(scratch, int64_t(basis) * ncp);
  for (int n = 0; n < ncp; n += L) {
    Vector<T> c[A];
    for (int a = 0; a < A; ++a) c[a] = load(parent.cf + a * ncp + n);
    for (int a = 1; a < A; ++a) c[0] = fma(splat(T(child.shift[a - 1])), c[a], c[0]);
    for (int q = 0; q < on1; ++q) {
      const Vector<T> weight = load(parent.cf + int64_t(A + on1_row[q]) * ncp + n);
      for (int a = 0; a < A; ++a) c[a] = fma(weight, splat(on1_line[q * A + a]), c[a]);
    }
    for (int a = 0; a < A; ++a) store(cf + a * ncp + n, c[a]);
    for (int q = 0; q < m1; ++q)
      store(cf + int64_t(A + q) * ncp + n, load(parent.cf + int64_t(A + row1[q]) * ncp + n));
  }
  if (on2 > 0) {
    add_product<TallTile, T>(
        basis, ncp / L, on2, [=](int r, int k) SCP_LAMBDA_INLINE { return src[r][on2_column[k]]; },
        [=, W3T = net.W3T](int k) SCP_LAMBDA_INLINE { return W3T + int64_t(on2_unit[k]) * ncp; },
        [=](int r) SCP_LAMBDA_INLINE { return cf + int64_t(r) * ncp; });
  }
  child.cf = cf;

  // 5. Keep the mixed rows and columns of A2.
  T* A2 = take<T>(scratch, int64_t(basis) * child.m2p + 2 * L);
  if (m2 > 0)
    for (int r = 0; r < basis; ++r) pack_columns(src[r], kept, words, A2 + int64_t(r) * child.m2p);
  child.A2 = A2;

  counters.nodes += 1;
  counters.build_macs += double(parent.m2) * (A * on1 + (A + 1) * m1) + double(net.nc) * (A * on1 + double(on2) * basis) +
                         double(candidates) * (2 * D);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
