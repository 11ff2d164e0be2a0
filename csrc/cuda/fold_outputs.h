// What follows when a box's units are classified (fold.h): panels of layer 2, step 4 of folding, and layer 2 at a
// pixel.
#ifndef SCP_CUDA_FOLD_OUTPUTS_H
#define SCP_CUDA_FOLD_OUTPUTS_H

#include "fold.h"

namespace scp {
namespace SCP_NAMESPACE {

// Loads the panels of columns first .. first + count - 1 (at most kPanel) of layer 2's list: the affine rows, unstable
// units row .. row + rows - 1 of layer 1, and the outputs. The rest of a panel is 0. The caller has seen to it that no thread
// reads the panel before.
template <class T, int D, int K, class Block>
SCP_DEVICE void load_panel(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                           const FoldMemory<T, D, K>& memory, int first, int count, int row, int rows) {
  constexpr int A = kAffineTerms<D>;
  static_assert(kThreads % kPanel == 0 && kThreads % K == 0, "a thread keeps to one column of either panel");
  // Loads are batched: none waits for another, or for its use.
  constexpr int kBatch = 4, kRowStep = kThreads / kPanel, kOutputStep = kThreads / K;
  const int t = block.thread(), q = t % kPanel, k = q < count ? memory.unit2[first + q] : -1;
  for (int r = t / kPanel; r < A; r += kRowStep)
    memory.rows[r * kPanelStride + q] = k < 0 ? T(0) : memory.x[r * net.h2 + k];
  SCP_NO_UNROLL
  for (int start = t / kPanel; start < rows; start += kBatch * kRowStep) {
    T values[kBatch];
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int r = start + i * kRowStep;
      values[i] = 0;
      if (r < rows && k >= 0) values[i] = net.w2t[int64_t(memory.unit1[folded.active1 + row + r]) * net.h2 + k];
    }
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int r = start + i * kRowStep;
      if (r < rows) memory.rows[(A + r) * kPanelStride + q] = values[i];
    }
  }
  const int j = t % K, n = memory.offset[j];
  SCP_NO_UNROLL
  for (int start = t / K; start < kPanel; start += kBatch * kOutputStep) {
    T values[kBatch];
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int p = start + i * kOutputStep;
      values[i] = 0;
      if (p < count && n >= 0) values[i] = net.w3t[int64_t(memory.unit2[first + p]) * net.nc + n];
    }
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) memory.outputs[(start + i * kOutputStep) * memory.kOutputStride + j] = values[i];
  }
  block.sync();
}

// Lanes that share a sum over the columns of a panel, where sums are fewer than threads.
constexpr int kFoldLanes = 4;

// Step 4: cf of the first `width` outputs that `offset` names, w_r included. Rows beyond the affine ones only where layer 2 is
// classified. Between writing `offset` or reading cf and this there must be a barrier.
template <class T, int D, int K, class Block>
SCP_DEVICE void fold_outputs(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                             const FoldMemory<T, D, K>& memory, int width) {
  constexpr int A = kAffineTerms<D>;
  const int rows = folded.bounded ? A + folded.unstable1 : A, quads = (width + 3) / 4, sums = rows * quads;
  const int newly1 = folded.active1 - folded.inherited1;
  count(block, net, SCP_REPORT_BUILD_MACS, [&] {
    return double(folded.active2 - folded.inherited2) * sums * 4 + (folded.from_root ? 0 : width * (D + A * newly1));
  });
  // The parent's cf, recentred, with the newly active units of layer 1 folded into the affine rows.
  SCP_NO_UNROLL
  for (int i = block.thread(); i < rows * K; i += kThreads) {
    const int n = memory.offset[i % K], r = i / K;
    T value = 0;
    if (n >= 0 && folded.from_root) {
      value = r == 0 ? net.b3[n] + net.residual[n] : T(0);
    } else if (n >= 0) {
      const T* const cf = *memory.parent_cf + n;
      const int row = r < A ? r : A + memory.place1[newly1 + r - A];
      value = cf[int64_t(row) * net.nc];
      if (r == 0)
        for (int axis = 0; axis < D; ++axis)
          value = multiply_add(memory.shift[axis], cf[int64_t(1 + axis) * net.nc], value);
      SCP_UNROLL_BY_4
      for (int q = 0; q < (r < A ? newly1 : 0); ++q)
        value = multiply_add(memory.line[(folded.inherited1 + q) * 4 + r], cf[int64_t(A + memory.place1[q]) * net.nc],
                             value);
    }
    memory.cf[i] = value;
  }
  for (int first = folded.inherited2; first < folded.active2; first += kPanel) {
    const int count = folded.active2 - first < kPanel ? folded.active2 - first : kPanel;
    if (first > folded.inherited2) block.sync();
    load_panel<T, D, K>(block, net, folded, memory, first, count, 0, rows - A);
    const auto add_columns = [&](int sum, int lane, int lanes, Quad<T>& to) {
      const int r = sum / quads, j = sum % quads * 4;
      SCP_UNROLL_BY_8
      for (int q = lane; q < count; q += lanes) {
        const T source = memory.rows[r * kPanelStride + q];
        const Quad<T> weight = quad(memory.outputs + q * memory.kOutputStride + j);
        for (int i = 0; i < 4; ++i) to.v[i] = multiply_add(source, weight.v[i], to.v[i]);
      }
    };
    const auto place = [&](int sum) { return memory.cf + sum / quads * K + sum % quads * 4; };
    if (sums * kFoldLanes <= kThreads) {
      const int number = block.thread() / kFoldLanes, lane = block.thread() % kFoldLanes;
      Quad<T> part{};
      if (number < sums) add_columns(number, lane, kFoldLanes, part);
      for (int i = 0; i < 4; ++i) part.v[i] = block.template sum_of_lanes<kFoldLanes>(part.v[i]);
      if (number < sums && lane == 0) {
        Quad<T> total = quad(place(number));
        for (int i = 0; i < 4; ++i) total.v[i] += part.v[i];
        quad(place(number)) = total;
      }
      continue;
    }
    SCP_NO_UNROLL
    for (int number = block.thread(); number < sums; number += kThreads) {
      Quad<T> total = quad(place(number));
      add_columns(number, 0, 1, total);
      quad(place(number)) = total;
    }
  }
  block.sync();
}

// The affine function with coefficients c[0 .. D] at a pixel: the same rounding wherever it is evaluated, because the
// sign of its value decides.
template <class T, int D>
SCP_DEVICE T affine_at(const T (&c)[4], const T (&position)[D]) {
  T value = c[0];
  for (int axis = 0; axis < D; ++axis) value = multiply_add(c[1 + axis], position[axis], value);
  return value;
}

// sum[first .. first + 7] += row[0 .. 7] * basis.
template <class T, int N>
SCP_DEVICE void add_row(const T* row, T basis, T (&sum)[N], int first = 0) {
  const Quad<T> low = quad(row), high = quad(row + 4);
  for (int i = 0; i < 4; ++i) sum[first + i] = multiply_add(basis, low.v[i], sum[first + i]);
  for (int i = 0; i < 4; ++i) sum[first + 4 + i] = multiply_add(basis, high.v[i], sum[first + 4 + i]);
}

// z of columns q .. q + kColumns - 1 of the present panel at a pixel: the affine rows first, then unstable units
// row .. row + rows - 1 of layer 1.
template <class T, int D, int K>
SCP_DEVICE void start_columns(const FoldMemory<T, D, K>& memory, int q, const T (&position)[D], T (&z)[kColumns]) {
  for (int i = 0; i < kColumns; ++i) z[i] = 0;
  for (int a = 0; a < kAffineTerms<D>; ++a)
    add_row(memory.rows + a * kPanelStride + q, a == 0 ? T(1) : position[a - 1], z);
}
template <class T, int D, int K>
SCP_DEVICE void add_to_columns(const Folded& folded, const FoldMemory<T, D, K>& memory, int q, int row, int rows,
                               const T (&position)[D], T (&z)[kColumns]) {
  constexpr int A = kAffineTerms<D>;
  for (int u = 0; u < rows; ++u) {
    const T basis = relu(affine_at<T, D>(quad(memory.line + (folded.active1 + row + u) * 4).v, position));
    add_row(memory.rows + (A + u) * kPanelStride + q, basis, z);
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
