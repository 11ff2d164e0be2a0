// What boxes contribute to the gradients of Phi's parameters, in global memory: partial gradients for each work item of
// a chunk, in a form that is small because most units of layer 1 are affine on a box, and sums of full size for the
// boxes of overflow tiles. Both are then added up in a fixed order (collect.h).
#ifndef SCP_CUDA_PARTIAL_GRADIENTS_H
#define SCP_CUDA_PARTIAL_GRADIENTS_H

#include "call.h"

namespace scp {
namespace SCP_NAMESPACE {

// `unstable_row` for units of layer 1 that are not unstable.
constexpr int kNoRow = -1;

template <class T, int D>
struct PartialGradients {
  int stride;  // of z's rows: h2 and what makes it a multiple of 4
  T* z;     // [A + unstable_capacity, stride]: gradients of layer 2's affine rows, then of W2's rows of unstable units
  T* w3;    // [h2, nc]
  T* line;  // [h1, 4]: of active units, 0 of others
  T* moments;         // [h1, A]: sums of g_l(u) against 1, di, dj
  T* b3;              // [nc]
  int* unstable_row;  // [h1]: which of the unstable units, or kNoRow
  double* centre;     // [D]

  SCP_HD PartialGradients(BumpAllocator& allocator, int h1, int h2, int nc, int unstable_capacity)
      : stride((h2 + 3) / 4 * 4) {
    z = allocator.allocate<T>(int64_t(kAffineTerms<D> + unstable_capacity) * stride);
    w3 = allocator.allocate<T>(int64_t(h2) * nc);
    line = allocator.allocate<T>(int64_t(h1) * 4);
    moments = allocator.allocate<T>(int64_t(h1) * kAffineTerms<D>);
    b3 = allocator.allocate<T>(nc);
    unstable_row = allocator.allocate<int>(h1);
    centre = allocator.allocate<double>(D);
  }
};

template <class T, int D>
struct OverflowSums {
  T* w2t;  // [h1, h2]
  T* w3;   // [h2, nc]
  T* b2;
  T* b3;
  double* moments;  // [G, h1, A]: sums of g_l(u) against 1 and the index on each axis

  SCP_HD OverflowSums(BumpAllocator& allocator, int64_t groups, int h1, int h2, int nc) {
    w2t = allocator.allocate<T>(int64_t(h1) * h2);
    w3 = allocator.allocate<T>(int64_t(h2) * nc);
    b2 = allocator.allocate<T>(h2);
    b3 = allocator.allocate<T>(nc);
    moments = allocator.allocate<double>(groups * h1 * kAffineTerms<D>);
  }
};

// memory[0 .. count - 1] = 0, by all threads of a block.
template <class Block, class E>
SCP_DEVICE void zero(Block& block, E* memory, int64_t count) {
  SCP_NO_UNROLL
  for (int64_t i = block.thread(); i < count; i += kThreads) memory[i] = 0;
}

// to[0 .. count - 1] += from[..].
template <class Block, class E>
SCP_DEVICE void add(Block& block, E* to, const E* from, int64_t count) {
  SCP_NO_UNROLL
  for (int64_t i = block.thread(); i < count; i += kThreads) to[i] += from[i];
}

// Partial gradients that add nothing to any sum; `rows` of z.
template <class T, int D, class Block>
SCP_DEVICE void clear(Block& block, const DeviceNetwork<T>& net, const PartialGradients<T, D>& partial, int rows) {
  zero(block, partial.z, int64_t(rows) * partial.stride);
  zero(block, partial.w3, int64_t(net.h2) * net.nc);
  zero(block, partial.line, int64_t(net.h1) * 4);
  zero(block, partial.moments, int64_t(net.h1) * kAffineTerms<D>);
  zero(block, partial.b3, net.nc);
  if (block.thread() == 0)
    for (int axis = 0; axis < D; ++axis) partial.centre[axis] = 0;
  SCP_NO_UNROLL
  for (int u = block.thread(); u < net.h1; u += kThreads) partial.unstable_row[u] = kNoRow;
}

template <class T, int D, class Block>
SCP_DEVICE void clear(Block& block, const DeviceNetwork<T>& net, int64_t groups, const OverflowSums<T, D>& sums) {
  zero(block, sums.w2t, int64_t(net.h1) * net.h2);
  zero(block, sums.w3, int64_t(net.h2) * net.nc);
  zero(block, sums.b2, net.h2);
  zero(block, sums.b3, net.nc);
  zero(block, sums.moments, groups * net.h1 * kAffineTerms<D>);
}

// Gradient of W2's row u, columns k .. k + 3 (k is a multiple of 4, and what lies beyond h2 is 0), from `count` partial
// gradients (at most R) in order; partial(i) is the i-th. Loads that depend on nothing are issued for all of them at
// once, then those that depend on a row.
template <class T, int D, int R, class PartialAt>
SCP_DEVICE void add_w2(const PartialAt& partial, int count, int u, int k, T (&sum)[4]) {
  constexpr int A = kAffineTerms<D>;
  int unstable_row[R];
  Quad<T> line[R], affine[R][A], unstable[R];
  SCP_UNROLL
  for (int r = 0; r < R; ++r) {
    const PartialGradients<T, D> from = partial(r < count ? r : 0);
    unstable_row[r] = r < count ? from.unstable_row[u] : kNoRow;
    line[r] = r < count ? quad(from.line + u * 4) : Quad<T>{};
    for (int a = 0; a < A; ++a) affine[r][a] = r < count ? quad(from.z + int64_t(a) * from.stride + k) : Quad<T>{};
  }
  SCP_UNROLL
  for (int r = 0; r < R; ++r) {
    const PartialGradients<T, D> from = partial(r < count ? r : 0);
    unstable[r] = unstable_row[r] != kNoRow ? quad(from.z + int64_t(A + unstable_row[r]) * from.stride + k) : Quad<T>{};
  }
  SCP_UNROLL
  for (int r = 0; r < R; ++r) {
    for (int a = 0; a < A; ++a)
      for (int i = 0; i < 4; ++i) sum[i] = multiply_add(line[r].v[a], affine[r][a].v[i], sum[i]);
    for (int i = 0; i < 4; ++i) sum[i] += unstable[r].v[i];
  }
}

// Moment a of unit u: the sum of g_l(u) against 1 (a = 0) or the index on axis a - 1.
template <class T, int D>
SCP_DEVICE double moment(const PartialGradients<T, D>& partial, int u, int a) {
  const T* about = partial.moments + u * kAffineTerms<D>;
  return a == 0 ? double(about[0]) : double(about[a]) + partial.centre[a - 1] * double(about[0]);
}

// Adds partial gradients of position map `group` to sums of full size.
template <class T, int D, class Block>
SCP_DEVICE void add(Block& block, const DeviceNetwork<T>& net, const PartialGradients<T, D>& partial, int64_t group,
                    const OverflowSums<T, D>& sums) {
  constexpr int A = kAffineTerms<D>;
  count(block, net, SCP_REPORT_BUILD_MACS, [&] { return double(A) * net.h1 * net.h2; });
  SCP_NO_UNROLL
  for (int i = block.thread(); i < net.h1 * (partial.stride / 4); i += kThreads) {
    const int u = i / (partial.stride / 4), k = i % (partial.stride / 4) * 4;
    T sum[4] = {};
    add_w2<T, D, 1>([&](int) { return partial; }, 1, u, k, sum);
    T* const to = sums.w2t + int64_t(u) * net.h2 + k;
    for (int j = 0; j < 4; ++j)
      if (k + j < net.h2) to[j] += sum[j];
  }
  add(block, sums.w3, partial.w3, int64_t(net.h2) * net.nc);
  add(block, sums.b2, partial.z, net.h2);
  add(block, sums.b3, partial.b3, net.nc);
  double* const moments = sums.moments + group * net.h1 * A;
  SCP_NO_UNROLL
  for (int i = block.thread(); i < net.h1 * A; i += kThreads) moments[i] += moment<T, D>(partial, i / A, i % A);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
