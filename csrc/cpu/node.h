// Phi specialised to a box of pixels: a node of the tree. Symbols as in docs/tile_linear.md, "Node".
#ifndef SCP_CPU_NODE_H
#define SCP_CPU_NODE_H

#include <cstdint>
#include <cstring>

#include "common/bound.h"
#include "common/geometry.h"
#include "scratch.h"
#include "vector.h"

namespace scp {
namespace SCP_NAMESPACE {

template <class T>
SCP_INLINE T* take(ScratchStack& scratch, int64_t count) {
  return static_cast<T*>(scratch.allocate(size_t(count) * sizeof(T)));
}

// pack_columns stores, and add_unpacked loads, up to one vector behind a matrix's last column.
template <class T>
constexpr int kOverhang = kLanes<T>;

// The basis functions phi on a box are 1, index - centre on each axis (the affine rows), then relu(l_u) for the
// unstable units u of layer 1. On the whole box,
//   z_k  = sum_r A2[r, k] phi_r                                          for the unstable units k of layer 2,
//   W[n] = sum_r cf[r, n] phi_r + sum_{k unstable} W3[n, k] relu(z_k)    for every output n (w_r included).
template <class T, int D>
struct Node {
  Box<D> box;
  double centre[D];

  int m1;               // unstable units of layer 1 ...
  const int* unit1;     // ... their numbers, [m1] ...
  const double* line1;  // ... and pre-activations about the centre: values, then slopes on each axis, [D + 1, m1p]
  int m1p;              // distance between them: whole vectors of doubles
  int m2;               // unstable units of layer 2 ...
  const int* unit2;     // ... and their numbers, [m2], room for whole vectors
  int m2p;              // m2 padded to whole vectors: the distance between rows of A2
  const T* A2;          // [kAffineTerms + m1, m2p], columns in the order of unit2, padding 0
  const T* cf;          // [kAffineTerms + m1, ncp]

  T* g_A2;  // gradients of the two above (backward only)
  T* g_cf;

  // How this node came from its parent p: what `fold_backward` needs to take the same steps backwards.
  double shift[D];  // centre - p.centre
  const int* row1;  // [m1]: index of unit1 among p's unstable units
  int active1;  // units of layer 1 newly active here: index among p's unstable units, and (value, slopes) about centre
  const int* active1_row;     // [active1]
  const T* active1_line;      // [kAffineTerms, m1p]
  int active2;                // units of layer 2 newly active here: p's column, and number
  const int* active2_column;  // [active2]
  const int* active2_unit;    // [active2]
  const T* x;                 // [kAffineTerms, p.m2p]: p's affine rows recentred, newly active units of layer 1 added
  const uint16_t* kept;       // [p.m2p / lanes]: one bit for each of p's columns kept

  template <class V>
  SCP_INLINE Affine<V, D> lines(int q) const {
    Affine<V, D> line;
    std::memcpy(&line.value, line1 + q, sizeof(V));
    for (int axis = 0; axis < D; ++axis) std::memcpy(&line.slope[axis], line1 + (1 + axis) * m1p + q, sizeof(V));
    return line;
  }

  int basis_size() const { return kAffineTerms<D> + m1; }
};

// src in docs/tile_linear.md: the child's rows of layer 2 before columns are dropped, as the parent has them.
// [basis_size]
template <class T, int D>
SCP_INLINE const T* const* source_rows(const Node<T, D>& parent, const Node<T, D>& child, ScratchStack& scratch) {
  constexpr int A = kAffineTerms<D>;
  const int64_t stride = parent.m2p;
  const T** src = take<const T*>(scratch, child.basis_size());
  for (int a = 0; a < A; ++a) src[a] = child.x + a * stride;
  for (int q = 0; q < child.m1; ++q) src[A + q] = parent.A2 + (A + child.row1[q]) * stride;
  return src;
}

// What a call did, for its report: counted as the work is done.
struct Counters {
  double nodes, leaves, pixels;
  double unstable1, unstable2;  // sums over pixels
  double most_unstable1, most_unstable2;
  double build_macs, leaf_macs;  // multiply-adds

  void add(const Counters& other) {
    nodes += other.nodes;
    leaves += other.leaves;
    pixels += other.pixels;
    unstable1 += other.unstable1;
    unstable2 += other.unstable2;
    most_unstable1 = most_unstable1 > other.most_unstable1 ? most_unstable1 : other.most_unstable1;
    most_unstable2 = most_unstable2 > other.most_unstable2 ? most_unstable2 : other.most_unstable2;
    build_macs += other.build_macs;
    leaf_macs += other.leaf_macs;
  }
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
