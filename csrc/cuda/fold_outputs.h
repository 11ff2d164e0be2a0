// What follows when a box's units are classified (fold.h): panels of layer 2, step 4 of folding, and layer 2 at a
// pixel.
#ifndef SCP_CUDA_FOLD_OUTPUTS_H
#define SCP_CUDA_FOLD_OUTPUTS_H

#include "fold.h"

namespace scp {
namespace SCP_NAMESPACE {

// to(i, from(i)) for i = first, first + step .. below end. Loads are batched: none waits for another, or for its use.
template <class T, class From, class To>
SCP_DEVICE void copy_in_batches(int first, int end, int step, const From& from, const To& to) {
  constexpr int kBatch = 4;
  SCP_NO_UNROLL
  for (int start = first; start < end; start += kBatch * step) {
    T values[kBatch];
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) values[i] = start + i * step < end ? from(start + i * step) : T(0);
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i)
      if (start + i * step < end) to(start + i * step, values[i]);
  }
}

// Loads the panels of columns first .. first + count - 1 (at most a panel's) of layer 2's list: the affine rows,
// unstable units row .. row + rows - 1 of layer 1, and the outputs. The rest of a panel is 0. The caller has seen to it
// that no thread reads the panel before.
template <class T, int D, int K, class Block>
SCP_DEVICE void load_panel(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                           const FoldMemory<T, D, K>& memory, int first, int count, int row, int rows) {
  constexpr int A = kAffineTerms<D>;
  static_assert(Block::kSize % (1 << kLogPanel) == 0 && Block::kSize % K == 0,
                "a thread keeps to one column of either panel");
  const int t = block.thread(), panel = memory.panel(), stride = memory.panel_stride();
  const int q = t & (panel - 1), first_row = t >> memory.log_panel, row_step = Block::kSize >> memory.log_panel;
  const int k = q < count ? memory.unit2[first + q] : -1;
  for (int r = first_row; r < A; r += row_step) memory.rows[r * stride + q] = k < 0 ? T(0) : memory.x[r * net.h2 + k];
  copy_in_batches<T>(
      first_row, rows, row_step,
      [&](int r) { return k < 0 ? T(0) : net.w2t[int64_t(memory.unit1[folded.active1 + row + r]) * net.h2 + k]; },
      [&](int r, T value) { memory.rows[(A + r) * stride + q] = value; });
  const int j = t % K, n = memory.offset[j];
  copy_in_batches<T>(
      t / K, panel, Block::kSize / K,
      [&](int p) { return p < count && n >= 0 ? net.w3t[int64_t(memory.unit2[first + p]) * net.nc + n] : T(0); },
      [&](int p, T value) { memory.outputs[p * memory.kOutputStride + j] = value; });
  block.sync();
}

// Loads the panels that have active units of layer 2, with `rows` unstable ones of layer 1, the first panel last, and
// calls use(first, from, end) for each: columns from .. end - 1 of it are active, and the panel starts at `first` of
// the list.
template <class T, int D, int K, class Block, class Use>
SCP_DEVICE void for_each_active_panel(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                                      const FoldMemory<T, D, K>& memory, int rows, const Use& use) {
  if (folded.active2 == 0) return;
  const int listed = folded.unstable2 + folded.active2, panel = memory.panel();
  const int last = (listed - 1) >> memory.log_panel << memory.log_panel;
  for (int first = last; first >= 0 && first + panel > folded.unstable2; first -= panel) {
    const int count = listed - first < panel ? listed - first : panel;
    if (first < last) block.sync();
    load_panel<T, D, K>(block, net, folded, memory, first, count, 0, rows);
    use(first, folded.unstable2 > first ? folded.unstable2 - first : 0, count);
  }
}

// Whether it has left the first panel in memory, with all unstable units of layer 2.
template <class T, int D, int K>
SCP_DEVICE bool first_panel_is_loaded(const Folded& folded, const FoldMemory<T, D, K>& memory) {
  return folded.active2 > 0 && folded.unstable2 < memory.panel();
}

// Lanes that share a sum over the columns of a panel, where sums are fewer than threads.
constexpr int kFoldLanes = 4;

// Step 4: cf of the first `width` outputs that `offset` names, w_r included. Rows beyond the affine ones only where
// layer 2 is classified. Between writing `offset` or reading cf and this there must be a barrier. Nothing is inherited.
// The panels of active units are loaded, the first one last: it stays in memory.
template <class T, int D, int K, class Block>
SCP_DEVICE void fold_outputs(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                             const FoldMemory<T, D, K>& memory, int width) {
  constexpr int A = kAffineTerms<D>;
  const int rows = folded.bounded ? A + folded.unstable1 : A, quads = (width + 3) / 4, sums = rows * quads;
  const int newly1 = folded.active1;
  count(block, net, SCP_REPORT_BUILD_MACS,
        [&] { return double(folded.active2) * sums * 4 + (folded.from_root ? 0 : width * (D + A * newly1)); });
  // The parent's cf, recentred, with the newly active units of layer 1 folded into the affine rows.
  SCP_NO_UNROLL
  for (int i = block.thread(); i < rows * K; i += Block::kSize) {
    const int n = memory.offset[i % K], r = i / K;
    T value = 0;
    if (n >= 0 && folded.from_root) {
      value = r == 0 ? net.b3[n] + net.residual[n] : T(0);
    } else if (n >= 0) {
      const T* const cf = *memory.parent_cf + n;
      const int row = r < A ? r : A + memory.index_in_parent[newly1 + r - A];
      value = cf[int64_t(row) * net.nc];
      if (r == 0)
        for (int axis = 0; axis < D; ++axis)
          value = multiply_add(memory.shift[axis], cf[int64_t(1 + axis) * net.nc], value);
      SCP_UNROLL_BY_4
      for (int q = 0; q < (r < A ? newly1 : 0); ++q)
        value = multiply_add(memory.line[q * 4 + r], cf[int64_t(A + memory.index_in_parent[q]) * net.nc], value);
    }
    memory.cf[i] = value;
  }
  for_each_active_panel(block, net, folded, memory, rows - A, [&](int, int first_active, int count) {
    const auto add_columns = [&](int sum, int lane, int lanes, Quad<T>& to) {
      const int r = sum / quads, j = sum % quads * 4;
      SCP_UNROLL_BY_8
      for (int q = first_active + lane; q < count; q += lanes) {
        const T source = memory.rows[r * memory.panel_stride() + q];
        const Quad<T> weight = quad(memory.outputs + q * memory.kOutputStride + j);
        for (int i = 0; i < 4; ++i) to.v[i] = multiply_add(source, weight.v[i], to.v[i]);
      }
    };
    const auto place = [&](int sum) { return memory.cf + sum / quads * K + sum % quads * 4; };
    if (sums * kFoldLanes <= Block::kSize) {
      const int number = block.thread() / kFoldLanes, lane = block.thread() % kFoldLanes;
      Quad<T> part{};
      if (number < sums) add_columns(number, lane, kFoldLanes, part);
      for (int i = 0; i < 4; ++i) part.v[i] = block.template sum_of_lanes<kFoldLanes>(part.v[i]);
      if (number < sums && lane == 0) {
        Quad<T> total = quad(place(number));
        for (int i = 0; i < 4; ++i) total.v[i] += part.v[i];
        quad(place(number)) = total;
      }
      return;
    }
    SCP_NO_UNROLL
    for (int number = block.thread(); number < sums; number += Block::kSize) {
      Quad<T> total = quad(place(number));
      add_columns(number, 0, 1, total);
      quad(place(number)) = total;
    }
  });
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

// relu of a unit of layer 1 at P pixels.
template <class T, int D, int P>
SCP_DEVICE void relu_at(const T* line, const T (&position)[P][D], T (&basis)[P]) {
  const Quad<T> coefficients = quad(line);
  for (int p = 0; p < P; ++p) basis[p] = relu(affine_at<T, D>(coefficients.v, position[p]));
}

// sum[p][first .. first + W - 1] += row[0 .. W - 1] * basis[p] of P pixels, for which the row is read once.
template <int W, class T, int P, int N>
SCP_DEVICE void add_row(const T* row, const T (&basis)[P], T (&sum)[P][N], int first = 0) {
  Quad<T> quads[W / 4];
  for (int i = 0; i < W / 4; ++i) quads[i] = quad(row + i * 4);
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < W; ++i) sum[p][first + i] = multiply_add(basis[p], quads[i / 4].v[i % 4], sum[p][first + i]);
}

// z of columns q .. q + N - 1 of the present panel at P pixels: the affine rows first, then unstable units
// row .. row + rows - 1 of layer 1.
template <class T, int D, int K, int P, int N>
SCP_DEVICE void start_columns(const FoldMemory<T, D, K>& memory, int q, const T (&position)[P][D], T (&z)[P][N]) {
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < N; ++i) z[p][i] = 0;
  for (int a = 0; a < kAffineTerms<D>; ++a) {
    T basis[P];
    for (int p = 0; p < P; ++p) basis[p] = a == 0 ? T(1) : position[p][a - 1];
    add_row<N>(memory.rows + a * memory.panel_stride() + q, basis, z);
  }
}
template <class T, int D, int K, int P, int N>
SCP_DEVICE void add_to_columns(const Folded& folded, const FoldMemory<T, D, K>& memory, int q, int row, int rows,
                               const T (&position)[P][D], T (&z)[P][N]) {
  constexpr int A = kAffineTerms<D>;
  for (int u = 0; u < rows; ++u) {
    T basis[P];
    relu_at(memory.line + (folded.active1 + row + u) * 4, position, basis);
    add_row<N>(memory.rows + (A + u) * memory.panel_stride() + q, basis, z);
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
