// Gradients of Phi's parameters as sums over tiles, in a fixed order: of the partial gradients of one chunk, or of the
// sums of overflow tiles. Four functions, one for each kind of gradient; each has blocks of its own.
//
// A sum has two levels, or a few threads would walk through all sources one by one: kSumParts threads add up a part of
// the sources each, then one thread adds up the parts.
#ifndef SCP_CUDA_COLLECT_H
#define SCP_CUDA_COLLECT_H

#include "parameter_gradients.h"

namespace scp {
namespace SCP_NAMESPACE {

// Parts of the sources, and numbers (or groups of columns of W2) that a block sums.
constexpr int kSumParts = 8, kSumsPerBlock = kThreads / kSumParts;
// Columns of W2 that a thread sums at a time: four, which are loaded at once.
constexpr int kColumnsPerThread = 4;
// Partial gradients that it has in flight at a time: with few, a multiprocessor holds more blocks.
template <class T>
constexpr int kPartialsAtATime = 16 / sizeof(T);

template <class T, int D>
struct Collect {
  ParameterGradients<T, D> of;
  int64_t items;         // of this chunk; 0: the sums of overflow tiles, which come last
  T *w2, *w3, *b2, *b3;  // gradients in the user's layouts: [h2, h1], [nc, h2], [h2], [nc]
  double* coefficients;  // [G, h1, dims + 1]

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;
  template <class Block>
  SCP_DEVICE void sum_w2(Block& block, int64_t index) const;
  template <class Block>
  SCP_DEVICE void sum_w3(Block& block, int64_t index) const;
  template <class Block>
  SCP_DEVICE void sum_biases(Block& block, int64_t index) const;
  template <class Block>
  SCP_DEVICE void sum_coefficients(Block& block, int64_t index) const;

  SCP_HD const DeviceNetwork<T>& net() const { return of.inputs.net; }
  SCP_HD bool of_overflows() const { return items == 0; }
  // Earlier chunks left their sums in the gradients.
  SCP_HD bool continued() const { return of_overflows() || of.first_item > 0; }

  SCP_HD static int64_t blocks_for(int64_t sums) { return (sums + kSumsPerBlock - 1) / kSumsPerBlock; }
  SCP_HD int64_t items_per_group() const { return of.inputs.partition.items_per_group(); }
  SCP_HD int64_t first_group() const { return of_overflows() ? 0 : of.first_item / items_per_group(); }
  SCP_HD int64_t end_group() const {
    return of_overflows() ? of.groups : (of.first_item + items - 1) / items_per_group() + 1;
  }
  SCP_HD int64_t w2_blocks() const {
    return blocks_for(net().h1) * ((net().h2 + kColumnsPerThread - 1) / kColumnsPerThread);
  }
  SCP_HD int64_t w3_blocks() const { return blocks_for(int64_t(net().h2) * net().nc); }
  SCP_HD int64_t bias_blocks() const { return blocks_for(net().h2 + net().nc); }
  SCP_HD int64_t coefficient_blocks() const {
    return blocks_for((end_group() - first_group()) * net().h1 * (of.inputs.tiling.dims + 1));
  }
  SCP_HD int64_t blocks() const { return w2_blocks() + w3_blocks() + bias_blocks() + coefficient_blocks(); }

 private:
  // Of the sources first .. end - 1, those that a thread adds up.
  struct Range {
    int64_t first, end;
  };
  SCP_DEVICE static Range part_of(int64_t first, int64_t end, int thread) {
    const int64_t length = (end - first + kSumParts - 1) / kSumParts, from = first + thread / kSumsPerBlock * length;
    return {from, from + length < end ? from + length : end};
  }

  // Calls of_partial or of_sums with each source of a thread in order: partial gradients of the chunk's items first ..
  // end - 1 (those of overflow tiles are zero), or the sums of overflow tiles.
  template <class OfPartial, class OfSums>
  SCP_DEVICE void for_each_source(int64_t first, int64_t end, int thread, const OfPartial& of_partial,
                                  const OfSums& of_sums) const {
    if (of_overflows()) {
      const Range part = part_of(0, of.sums_count, thread);
      for (int64_t s = part.first; s < part.end; ++s) of_sums(of.sum(s));
      return;
    }
    const Range part = part_of(first, end, thread);
    SCP_UNROLL_BY_8
    for (int64_t i = part.first; i < part.end; ++i) of_partial(of.partial(i));
  }
};

template <class T>
constexpr int64_t kCollectShared = kThreads * kColumnsPerThread * sizeof(T);

// Adds up the parts, each thread's `sum` of N numbers, and calls write(s, i, total) for the number i of sum s, by a
// thread of its own.
template <int N, class Block, class E, class Write>
SCP_DEVICE void add_parts(Block& block, const E (&sum)[N], const Write& write) {
  static_assert(N <= kSumParts, "a thread for each total");
  E* const parts = reinterpret_cast<E*>(block.shared());  // [kSumParts, N, kSumsPerBlock]
  const int t = block.thread(), s = t % kSumsPerBlock, row = t / kSumsPerBlock;
  for (int i = 0; i < N; ++i) parts[(row * N + i) * kSumsPerBlock + s] = sum[i];
  block.sync();
  if (row >= N) return;
  E total = 0;
  SCP_UNROLL
  for (int part = 0; part < kSumParts; ++part) total += parts[(part * N + row) * kSumsPerBlock + s];
  write(s, row, total);
}

// A sum is one unit of layer 1 and kColumnsPerThread units of layer 2.
template <class T, int D>
template <class Block>
SCP_DEVICE void Collect<T, D>::sum_w2(Block& block, int64_t index) const {
  const int h1 = net().h1, h2 = net().h2, t = block.thread();
  const int u_first = int(index % blocks_for(h1)) * kSumsPerBlock, u = u_first + t % kSumsPerBlock;
  const int k = int(index / blocks_for(h1)) * kColumnsPerThread;
  T sum[kColumnsPerThread] = {};
  if (u < h1 && !of_overflows()) {
    constexpr int R = kPartialsAtATime<T>;
    const Range part = part_of(0, items, t);
    SCP_NO_UNROLL
    for (int64_t first = part.first; first < part.end; first += R) {
      const int count = part.end - first < R ? int(part.end - first) : R;
      add_w2<T, D, R>([&](int i) { return of.partial(first + i); }, count, u, k, sum);
    }
  } else if (u < h1) {
    const Range part = part_of(0, of.sums_count, t);
    for (int64_t s = part.first; s < part.end; ++s)
      for (int i = 0; i < kColumnsPerThread; ++i)
        if (k + i < h2) sum[i] += of.sum(s).w2t[int64_t(u) * h2 + k + i];
  }
  add_parts(block, sum, [&](int s, int i, T total) {
    if (u_first + s >= h1 || k + i >= h2) return;
    T& to = w2[int64_t(k + i) * h1 + u_first + s];
    to = continued() ? to + total : total;
  });
}

template <class T, int D>
template <class Block>
SCP_DEVICE void Collect<T, D>::sum_w3(Block& block, int64_t index) const {
  const int h2 = net().h2, nc = net().nc, t = block.thread();
  const int64_t i = index * kSumsPerBlock + t % kSumsPerBlock;
  const bool inside = i < int64_t(h2) * nc;
  T sum[1] = {};
  if (inside) {
    for_each_source(
        0, items, t, [&](const PartialGradients<T, D>& partial) { sum[0] += partial.w3[i]; },
        [&](const OverflowSums<T, D>& sums) { sum[0] += sums.w3[i]; });
  }
  add_parts(block, sum, [&](int, int, T total) {
    if (!inside) return;
    T& to = w3[i % nc * h2 + i / nc];
    to = continued() ? to + total : total;
  });
}

template <class T, int D>
template <class Block>
SCP_DEVICE void Collect<T, D>::sum_biases(Block& block, int64_t index) const {
  const int h2 = net().h2, t = block.thread();
  const int64_t i = index * kSumsPerBlock + t % kSumsPerBlock;
  const bool inside = i < h2 + net().nc;
  T sum[1] = {};
  if (inside) {
    for_each_source(
        0, items, t,
        [&](const PartialGradients<T, D>& partial) { sum[0] += i < h2 ? partial.z[i] : partial.b3[i - h2]; },
        [&](const OverflowSums<T, D>& sums) { sum[0] += i < h2 ? sums.b2[i] : sums.b3[i - h2]; });
  }
  add_parts(block, sum, [&](int, int, T total) {
    if (!inside) return;
    T& to = i < h2 ? b2[i] : b3[i - h2];
    to = continued() ? to + total : total;
  });
}

// The gradients of layer 1's coefficients are the moments, in float64, summed over the items of each position map
// apart.
template <class T, int D>
template <class Block>
SCP_DEVICE void Collect<T, D>::sum_coefficients(Block& block, int64_t index) const {
  constexpr int A = kAffineTerms<D>;
  const int h1 = net().h1, columns = of.inputs.tiling.dims + 1, t = block.thread();
  const int64_t i = index * kSumsPerBlock + t % kSumsPerBlock, group = first_group() + i / (int64_t(h1) * columns);
  const bool inside = group < end_group();
  const int u = int(i / columns % h1), column = int(i % columns);
  // The coefficients' last column is that of 1; a leading axis that the user's tensors lack has none.
  const int a = column == columns - 1 ? 0 : 1 + of.inputs.tiling.first_axis() + column;
  const int64_t start = group * items_per_group() - of.first_item, end = start + items_per_group();
  double sum[1] = {};
  if (inside) {
    for_each_source(
        start < 0 ? 0 : start, end < items ? end : items, t,
        [&](const PartialGradients<T, D>& partial) { sum[0] += moment<T, D>(partial, u, a); },
        [&](const OverflowSums<T, D>& sums) { sum[0] += sums.moments[(group * h1 + u) * A + a]; });
  }
  add_parts(block, sum, [&](int, int, double total) {
    if (!inside) return;
    double& to = coefficients[(group * h1 + u) * columns + column];
    to = of_overflows() || start < 0 ? to + total : total;
  });
}

template <class T, int D>
template <class Block>
SCP_DEVICE void Collect<T, D>::operator()(Block& block) const {
  if (of_overflows() && *of.any_overflow == 0) return;
  int64_t index = block.index();
  if (index == 0)
    count(block, net(), SCP_REPORT_BUILD_MACS, [&] { return double(items) * kAffineTerms<D> * net().h1 * net().h2; });
  if (index < w2_blocks()) return sum_w2(block, index);
  index -= w2_blocks();
  if (index < w3_blocks()) return sum_w3(block, index);
  index -= w3_blocks();
  if (index < bias_blocks()) return sum_biases(block, index);
  sum_coefficients(block, index - bias_blocks());
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
