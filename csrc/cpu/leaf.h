// A leaf: the folded network evaluated on blocks of 64 pixels. docs/tile_linear.md, "Leaf".
#ifndef SCP_CPU_LEAF_H
#define SCP_CPU_LEAF_H

#include "fold_backward.h"
#include "product.h"

namespace scp {
namespace SCP_NAMESPACE {

constexpr int kBlockPixels = 64;

template <class T>
constexpr int kBlockVectors = kBlockPixels / kLanes<T>;

// A block's extent along an axis. 4 x 16 keeps a row of X in one 64-byte vector; 8 x 8 crosses fewer unstable units.
template <class T, int D>
constexpr int block_extent(int axis) {
  if (D == 3) return 4;
  if (kLanes<T> == 16) return axis == 0 ? 4 : 16;
  return 8;
}

// A block is kRuns runs of pixels that are neighbours in memory; a vector holds one, several, or a part of one.
template <class T, int D>
constexpr int kRun = block_extent<T, D>(D - 1);
template <class T, int D>
constexpr int kRuns = kBlockPixels / kRun<T, D>;

// The part of a block that lies inside the leaf.
template <class T, int D>
struct Block {
  int first[D];
  int valid[D];
  int run_index[kRuns<T, D>][D];  // first pixel of each run; meaningless where the run is not valid
  bool run_valid[kRuns<T, D>];
};

template <class T, int D>
SCP_INLINE Block<T, D> block_at(const Box<D>& box, const int (&first)[D]) {
  Block<T, D> block;
  for (int axis = 0; axis < D; ++axis) {
    const int left = box.upper[axis] - first[axis];
    block.first[axis] = first[axis];
    block.valid[axis] = left < block_extent<T, D>(axis) ? left : block_extent<T, D>(axis);
  }
  for (int run = 0; run < kRuns<T, D>; ++run) {
    int rest = run;
    block.run_valid[run] = true;
    block.run_index[run][D - 1] = first[D - 1];
    for (int axis = D - 2; axis >= 0; --axis) {
      const int offset = rest % block_extent<T, D>(axis);
      rest /= block_extent<T, D>(axis);
      block.run_index[run][axis] = first[axis] + offset;
      if (offset >= block.valid[axis]) block.run_valid[run] = false;
    }
  }
  return block;
}

// Calls body(block) for every block of a box.
template <class T, int D, class Body>
SCP_INLINE void for_each_block(const Box<D>& box, Body body) {
  int first[D];
  for (int axis = 0; axis < D; ++axis) first[axis] = box.lower[axis];
  for (;;) {
    body(block_at<T, D>(box, first));
    int axis = D - 1;
    for (; axis >= 0; --axis) {
      first[axis] += block_extent<T, D>(axis);
      if (first[axis] < box.upper[axis]) break;
      first[axis] = box.lower[axis];
    }
    if (axis < 0) return;
  }
}

// The basis functions on a block, one row of 64 pixels each: 1, coordinates about the node's centre, relu(l_u) for the
// unstable u, then relu(z_k) for the unstable k. `rows` holds the coefficients of W that belong to the last two.
template <class T, int D>
struct BasisBlock {
  T* values;       // [kAffineTerms + m1 + m2, 64]
  const T** rows;  // [m1 + m2], each [ncp]: cf's rows, then W3's columns

  T* affine() const { return values; }
  T* phi() const { return values + kAffineTerms<D> * kBlockPixels; }
  T* psi(const Node<T, D>& node) const { return values + (kAffineTerms<D> + node.m1) * kBlockPixels; }
};

template <class T, int D>
BasisBlock<T, D> make_basis_block(const PhiParameters<T>& params, const Node<T, D>& node, ScratchStack& scratch) {
  constexpr int A = kAffineTerms<D>;
  BasisBlock<T, D> basis;
  basis.values = take<T>(scratch, int64_t(A + node.m1 + node.m2) * kBlockPixels);
  basis.rows = take<const T*>(scratch, node.m1 + node.m2);
  for (int q = 0; q < node.m1; ++q) basis.rows[q] = node.cf + int64_t(A + q) * params.ncp;
  for (int k = 0; k < node.m2; ++k) basis.rows[node.m1 + k] = params.W3T + int64_t(node.unit2[k]) * params.ncp;
  for (int p = 0; p < kBlockPixels; ++p) basis.values[p] = T(1);
  return basis;
}

// Vector v of the affine function with coefficients c, c[stride], c[2 * stride] ... on the block's coordinates.
template <class T, int D>
SCP_INLINE Vector<T> affine_on_block(const T* coordinates, const T* c, int64_t stride, int v) {
  // Every vector of a block covers the same part of the last axis when it holds whole runs.
  const int last = kLanes<T> >= kRun<T, D> ? 0 : v;
  coordinates = kept_in_memory(coordinates);
  Vector<T> value = fma(splat(c[D * stride]), load(coordinates + D * kBlockPixels + last * kLanes<T>), splat(c[0]));
  for (int a = 1; a < D; ++a)
    value = fma(splat(c[a * stride]), load(coordinates + a * kBlockPixels + v * kLanes<T>), value);
  return value;
}

// phi and psi = relu(z) on a block.
template <class T, int D>
SCP_INLINE void evaluate_basis(const Node<T, D>& node, const Block<T, D>& block, const BasisBlock<T, D>& basis) {
  constexpr int A = kAffineTerms<D>;
  constexpr int L = kLanes<T>;
  // Coordinates about the node's centre, one run of pixels after another.
  T* const coordinates = basis.affine();
  for (int run = 0; run < kRuns<T, D>; ++run) {
    int rest = run;
    for (int axis = D - 2; axis >= 0; --axis) {
      const T x = T(block.first[axis] + rest % block_extent<T, D>(axis) - node.centre[axis]);
      rest /= block_extent<T, D>(axis);
      for (int p = 0; p < kRun<T, D>; ++p) coordinates[(1 + axis) * kBlockPixels + run * kRun<T, D> + p] = x;
    }
    const T start = T(block.first[D - 1] - node.centre[D - 1]);
    for (int p = 0; p < kRun<T, D>; ++p) coordinates[D * kBlockPixels + run * kRun<T, D> + p] = start + T(p);
  }
  // Layer 1: an affine function of the coordinates for each unstable unit.
  T* const phi = basis.phi();
  for (int q = 0; q < node.m1; ++q) {
    T c[A];
    for (int a = 0; a < A; ++a) c[a] = T(node.line1[a * node.m1p + q]);
    for (int v = 0; v < kBlockVectors<T>; ++v)
      store(phi + q * kBlockPixels + v * L, relu(affine_on_block<T, D>(coordinates, c, 1, v)));
  }
  // Layer 2: the product of A2's rows and the basis functions; the affine rows are where its sums start.
  T* const psi = basis.psi(node);
  const int64_t stride = node.m2p;
  product<WideTile, T>(
      node.m2, kBlockVectors<T>, node.m1,
      [=, A2 = node.A2 + A * stride](int k, int q) SCP_LAMBDA_INLINE { return A2[q * stride + k]; },
      [=](int q) SCP_LAMBDA_INLINE { return phi + q * kBlockPixels; },
      [=, A2 = node.A2](int k, int v)
          SCP_LAMBDA_INLINE { return affine_on_block<T, D>(coordinates, A2 + k, stride, v); },
      [=](int k, int v, Vector<T> z) SCP_LAMBDA_INLINE { store(psi + k * kBlockPixels + v * L, relu(z)); });
}

// W of outputs first .. first + count - 1 on a block: use(output - first, vector, value).
template <class T, int D, class Use>
SCP_INLINE void evaluate_weights(const PhiParameters<T>& params, const Node<T, D>& node, const BasisBlock<T, D>& basis,
                                 int first, int count, Use use) {
  const T* const phi = basis.phi();
  product<WideTile, T>(
      count, kBlockVectors<T>, node.m1 + node.m2,
      [=, rows = basis.rows](int n, int k) SCP_LAMBDA_INLINE { return rows[k][first + n]; },
      [=](int k) SCP_LAMBDA_INLINE { return phi + k * kBlockPixels; },
      [=, coordinates = basis.affine(), cf = node.cf + first, ncp = params.ncp](int n, int v)
          SCP_LAMBDA_INLINE { return affine_on_block<T, D>(coordinates, cf + n, ncp, v); },
      use);
}

// Backward on one block, given gW [ncp, 64] (0 outside the block's valid pixels and in the padding):
//   g_cf[r, n] += phi_r gW[n],   gW3[n, k] += relu(z_k) gW[n],   g_A2[r, k] += phi_r gz_k       (summed over pixels)
//   gz_k = 1[z_k > 0] sum_n W3[n, k] gW[n]
//   g_l(u) = 1[l_u > 0] (sum_n cf[u, n] gW[n] + sum_k A2[u, k] gz_k), and its moments.
//
// Not inlined: the registers that it needs would be missing where leaves are evaluated forward.
template <class T, int D>
__attribute__((noinline)) void leaf_backward(const PhiParameters<T>& params, const Node<T, D>& node,
                                             const BasisBlock<T, D>& basis, const T* gW, const GradientSums<T>& sums,
                                             ScratchStack& scratch) {
  constexpr int A = kAffineTerms<D>;
  constexpr int L = kLanes<T>;
  constexpr int P = kBlockPixels;
  const ScratchStack::Mark mark = scratch.mark();
  const int ncp = params.ncp, m1 = node.m1, m2 = node.m2, m2p = node.m2p, basis_size = node.basis_size();
  const T* const psi = basis.psi(node);

  // gz: through layer 3 backward, then the mask of relu(z).
  const int gz_rows = (m2 + kLaneGroup<T> - 1) / kLaneGroup<T> * kLaneGroup<T>;
  T* gz = take<T>(scratch, int64_t(gz_rows) * P);
  for (int k = m2; k < gz_rows; ++k)
    for (int p = 0; p < P; p += L) store(gz + k * P + p, zero<T>());
  product<WideTile, T>(
      m2, kBlockVectors<T>, params.nc,
      [=, rows = basis.rows + m1](int k, int n) SCP_LAMBDA_INLINE { return rows[k][n]; },
      [=](int n) SCP_LAMBDA_INLINE { return gW + int64_t(n) * P; },
      [](int, int) SCP_LAMBDA_INLINE { return zero<T>(); },
      [=](int k, int v, Vector<T> g)
          SCP_LAMBDA_INLINE { store(gz + k * P + v * L, where_positive(load(psi + k * P + v * L), g)); });

  // Gradients of the coefficients: inner products, over the block's pixels, of each basis function with gW and gz.
  const int functions = basis_size + m2;
  T** out = take<T*>(scratch, functions);
  for (int r = 0; r < basis_size; ++r) out[r] = node.g_cf + int64_t(r) * ncp;
  for (int k = 0; k < m2; ++k) out[basis_size + k] = sums.W3T + int64_t(node.unit2[k]) * ncp;
  const auto function = [f = basis.values](int r) SCP_LAMBDA_INLINE { return f + r * P; };
  add_inner_products<kBlockVectors<T>, T>(
      functions, params.nc, function, [=](int n) SCP_LAMBDA_INLINE { return gW + int64_t(n) * P; },
      [=](int r) SCP_LAMBDA_INLINE { return out[r]; });
  add_inner_products<kBlockVectors<T>, T>(
      basis_size, m2, function, [=](int k) SCP_LAMBDA_INLINE { return gz + k * P; },
      [=, g_A2 = node.g_A2](int r) SCP_LAMBDA_INLINE { return g_A2 + int64_t(r) * m2p; });

  // gl: what reaches relu(l) by cf and by A2, then its mask.
  T* gl = take<T>(scratch, int64_t(m1) * P);
  const T* const phi = basis.phi();
  product<WideTile, T>(
      m1, kBlockVectors<T>, params.nc, [=, rows = basis.rows](int q, int n) SCP_LAMBDA_INLINE { return rows[q][n]; },
      [=](int n) SCP_LAMBDA_INLINE { return gW + int64_t(n) * P; },
      [](int, int) SCP_LAMBDA_INLINE { return zero<T>(); },
      [=](int q, int v, Vector<T> g) SCP_LAMBDA_INLINE { store(gl + q * P + v * L, g); });
  product<WideTile, T>(
      m1, kBlockVectors<T>, m2,
      [=, A2 = node.A2 + int64_t(A) * m2p](int q, int k) SCP_LAMBDA_INLINE { return A2[int64_t(q) * m2p + k]; },
      [=](int k) SCP_LAMBDA_INLINE { return gz + k * P; },
      [=](int q, int v) SCP_LAMBDA_INLINE { return load(gl + q * P + v * L); },
      [=](int q, int v, Vector<T> g)
          SCP_LAMBDA_INLINE { store(gl + q * P + v * L, where_positive(load(phi + q * P + v * L), g)); });
  // Its moments are the gradient of layer 1's coefficients.
  for (int q = 0; q < m1; ++q) {
    Vector<T> moment[A] = {};
    for (int v = 0; v < kBlockVectors<T>; ++v) {
      const Vector<T> g = load(gl + q * P + v * L);
      moment[0] = moment[0] + g;
      for (int a = 1; a < A; ++a) moment[a] = fma(g, load(basis.affine() + a * P + v * L), moment[a]);
    }
    T about[A];
    for (int a = 0; a < A; ++a) about[a] = sum(moment[a]);
    add_moments<T, D>(sums, node.unit1[q], node.centre, about);
  }
  scratch.release(mark);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
