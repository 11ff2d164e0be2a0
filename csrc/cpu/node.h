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

// The parameters of Phi beyond the first layer, in the layouts the tree works on. Made once a call.
template <class T>
struct Network {
  int h1, h2;
  int nc;        // N*C, outputs of Phi: n*C + c is W[n, c]
  int ncp;       // nc padded to whole vectors; the padding is 0 everywhere
  int h2p;       // h2 padded
  const T* A2;   // [basis of the root, h2p]: b2, zeros for the slopes, W2 transposed
  const T* cf;   // [basis of the root, ncp]: b3 + w_r, zeros
  const T* W3T;  // [h2, ncp]
};

// Basis functions on a box: 1, index - centre on each axis, then relu(l_u) of the mixed units of layer 1.
template <int D>
constexpr int kAffineRows = D + 1;

// On the whole box, with phi the basis functions:
//   z_k  = sum_r A2[r, k] phi_r                                          for the mixed units k of layer 2,
//   W[n] = sum_r cf[r, n] phi_r + sum_{k mixed} W3[n, k] relu(z_k)       for every output n (w_r included).
template <class T, int D>
struct Node {
  Box<D> box;
  double centre[D];

  int m1;               // mixed units of layer 1 ...
  const int* unit1;     // ... their numbers, [m1] ...
  const double* line1;  // ... and pre-activations about the centre: values, then slopes on each axis, [D + 1, m1p]
  int m1p;              // distance between them: whole vectors of doubles
  int m2;               // mixed units of layer 2 ...
  const int* unit2;     // ... and their numbers, [m2], room for whole vectors
  int m2p;              // m2 padded to whole vectors: the distance between rows of A2
  const T* A2;          // [kAffineRows + m1, m2p], columns in the order of unit2, padding 0
  const T* cf;          // [kAffineRows + m1, ncp]

  T* g_A2;  // gradients of the two above (backward only)
  T* g_cf;

  // How this node came from its parent p: what `pull` needs to take the same steps backwards.
  double shift[D];     // centre - p.centre
  const int* row1;     // [m1]: index of unit1 among p's mixed units
  int on1;             // units of layer 1 newly on here: index among p's mixed units, and (value, slopes) about centre
  const int* on1_row;  // [on1]
  const T* on1_line;   // [kAffineRows, m1p]
  int on2;             // units of layer 2 newly on here: p's column, and number
  const int* on2_column;  // [on2]
  const int* on2_unit;    // [on2]
  const T* x;             // [kAffineRows, p.m2p]: p's affine rows recentred, newly-on units of layer 1 added
  const uint16_t* kept;   // [p.m2p / lanes]: one bit for each of p's columns kept

  template <class V>
  SCP_INLINE Affine<V, D> lines(int q) const {
    Affine<V, D> found;
    std::memcpy(&found.value, line1 + q, sizeof(V));
    for (int axis = 0; axis < D; ++axis) std::memcpy(&found.slope[axis], line1 + (1 + axis) * m1p + q, sizeof(V));
    return found;
  }

  int basis() const { return kAffineRows<D> + m1; }
};

// src in docs/tile_linear.md: the child's rows of layer 2 before columns are dropped, as the parent has them. [basis]
template <class T, int D>
SCP_INLINE const T* const* source_rows(const Node<T, D>& parent, const Node<T, D>& child, ScratchStack& scratch) {
  constexpr int A = kAffineRows<D>;
  const int64_t stride = parent.m2p;
  const T** src = take<const T*>(scratch, child.basis());
  for (int a = 0; a < A; ++a) src[a] = child.x + a * stride;
  for (int q = 0; q < child.m1; ++q) src[A + q] = parent.A2 + (A + child.row1[q]) * stride;
  return src;
}

// What a plan did, for introspection: counted as the work is done.
struct Counters {
  double nodes, leaves, pixels;
  double mixed1, mixed2;  // sums over pixels
  double most_mixed1, most_mixed2;
  double build_macs, leaf_macs;  // multiply-adds

  void add(const Counters& other) {
    nodes += other.nodes;
    leaves += other.leaves;
    pixels += other.pixels;
    mixed1 += other.mixed1;
    mixed2 += other.mixed2;
    most_mixed1 = most_mixed1 > other.most_mixed1 ? most_mixed1 : other.most_mixed1;
    most_mixed2 = most_mixed2 > other.most_mixed2 ? most_mixed2 : other.most_mixed2;
    build_macs += other.build_macs;
    leaf_macs += other.leaf_macs;
  }
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
