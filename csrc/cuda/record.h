// What boxes add to the gradients of Phi's parameters, in global memory: a record for each box of a round, in a form
// that is small because most units of layer 1 are affine there, and whole sums for boxes that no record can hold. Both
// are then added up in a fixed order (collect.h).
#ifndef SCP_CUDA_RECORD_H
#define SCP_CUDA_RECORD_H

#include "call.h"

namespace scp {
namespace SCP_NAMESPACE {

// `slot` of a Record for units of layer 1 that are not unstable.
constexpr int kNoSlot = -1;

template <class T, int D>
struct Record {
  T* z;     // [A + unstable_capacity, h2]: gradients of the affine rows of layer 2, then of W2's rows of unstable units
  T* w3;    // [h2, nc]
  T* line;  // [h1, 4]: of active units, 0 of others
  T* moments;      // [h1, A]: of the pre-activations' gradients, about the centre
  T* b3;           // [nc]
  int* slot;       // [h1]: number of an unstable unit, or kNoSlot
  double* centre;  // [D]

  SCP_HD Record(Carver& from, int h1, int h2, int nc, int unstable_capacity) {
    z = from.take<T>(int64_t(kAffineRows<D> + unstable_capacity) * h2);
    w3 = from.take<T>(int64_t(h2) * nc);
    line = from.take<T>(int64_t(h1) * 4);
    moments = from.take<T>(int64_t(h1) * kAffineRows<D>);
    b3 = from.take<T>(nc);
    slot = from.take<int>(h1);
    centre = from.take<double>(D);
  }
};

template <class T, int D>
struct Sums {
  T* w2t;  // [h1, h2]
  T* w3;   // [h2, nc]
  T* b2;
  T* b3;
  double* moments;  // [G, h1, A], about the origin: of 1, then of the index on each axis

  SCP_HD Sums(Carver& from, int64_t groups, int h1, int h2, int nc) {
    w2t = from.take<T>(int64_t(h1) * h2);
    w3 = from.take<T>(int64_t(h2) * nc);
    b2 = from.take<T>(h2);
    b3 = from.take<T>(nc);
    moments = from.take<double>(groups * h1 * kAffineRows<D>);
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

// A record that adds nothing to any sum; `rows` of z.
template <class T, int D, class Block>
SCP_DEVICE void clear(Block& block, const Network<T>& net, const Record<T, D>& record, int rows) {
  zero(block, record.z, int64_t(rows) * net.h2);
  zero(block, record.w3, int64_t(net.h2) * net.nc);
  zero(block, record.line, int64_t(net.h1) * 4);
  zero(block, record.moments, int64_t(net.h1) * kAffineRows<D>);
  zero(block, record.b3, net.nc);
  if (block.thread() == 0)
    for (int axis = 0; axis < D; ++axis) record.centre[axis] = 0;
  SCP_NO_UNROLL
  for (int u = block.thread(); u < net.h1; u += kThreads) record.slot[u] = kNoSlot;
}

template <class T, int D, class Block>
SCP_DEVICE void clear(Block& block, const Network<T>& net, int64_t groups, const Sums<T, D>& sums) {
  zero(block, sums.w2t, int64_t(net.h1) * net.h2);
  zero(block, sums.w3, int64_t(net.h2) * net.nc);
  zero(block, sums.b2, net.h2);
  zero(block, sums.b3, net.nc);
  zero(block, sums.moments, groups * net.h1 * kAffineRows<D>);
}

// Gradient of W2's row u, columns k .. k + N - 1 (fewer at the end), from `count` records (at most R) in order;
// record(i) is the i-th. What waits for no decision is loaded of all of them at once, then the rows of unstable units.
template <class T, int D, int R, int N, class RecordAt>
SCP_DEVICE void add_w2(const RecordAt& record, int count, int h2, int u, int k, T (&sum)[N]) {
  constexpr int A = kAffineRows<D>;
  const int columns = h2 - k < N ? h2 - k : N;
  int slot[R];
  Quad<T> line[R];
  T affine[R][A][N], unstable[R][N];
  SCP_UNROLL
  for (int r = 0; r < R; ++r) {
    const Record<T, D> from = record(r < count ? r : 0);
    slot[r] = r < count ? from.slot[u] : kNoSlot;
    line[r] = r < count ? quad(from.line + u * 4) : Quad<T>{};
    for (int a = 0; a < A; ++a)
      for (int i = 0; i < N; ++i) affine[r][a][i] = r < count && i < columns ? from.z[int64_t(a) * h2 + k + i] : T(0);
  }
  SCP_UNROLL
  for (int r = 0; r < R; ++r) {
    const Record<T, D> from = record(r < count ? r : 0);
    for (int i = 0; i < N; ++i)
      unstable[r][i] = slot[r] != kNoSlot && i < columns ? from.z[int64_t(A + slot[r]) * h2 + k + i] : T(0);
  }
  SCP_UNROLL
  for (int r = 0; r < R; ++r) {
    for (int a = 0; a < A; ++a)
      for (int i = 0; i < N; ++i) sum[i] = multiply_add(line[r].v[a], affine[r][a][i], sum[i]);
    for (int i = 0; i < N; ++i) sum[i] += unstable[r][i];
  }
}

// The moment a of unit u about the origin: a = 0 of 1, then of the index on each axis.
template <class T, int D>
SCP_DEVICE double moment(const Record<T, D>& record, int u, int a) {
  const T* about = record.moments + u * kAffineRows<D>;
  return a == 0 ? double(about[0]) : double(about[a]) + record.centre[a - 1] * double(about[0]);
}

// Adds a record of position map `group` to whole sums.
template <class T, int D, class Block>
SCP_DEVICE void add(Block& block, const Network<T>& net, const Record<T, D>& record, int64_t group,
                    const Sums<T, D>& sums) {
  constexpr int A = kAffineRows<D>;
  count(block, net, SCP_REPORT_BUILD_MACS, [&] { return double(A) * net.h1 * net.h2; });
  SCP_NO_UNROLL
  for (int u = 0; u < net.h1; ++u) {
    T* const to = sums.w2t + int64_t(u) * net.h2;
    SCP_NO_UNROLL
    for (int k = block.thread(); k < net.h2; k += kThreads) {
      T sum[1] = {to[k]};
      add_w2<T, D, 1>([&](int) { return record; }, 1, net.h2, u, k, sum);
      to[k] = sum[0];
    }
  }
  add(block, sums.w3, record.w3, int64_t(net.h2) * net.nc);
  add(block, sums.b2, record.z, net.h2);
  add(block, sums.b3, record.b3, net.nc);
  double* const moments = sums.moments + group * net.h1 * A;
  SCP_NO_UNROLL
  for (int i = block.thread(); i < net.h1 * A; i += kThreads) moments[i] += moment<T, D>(record, i / A, i % A);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
