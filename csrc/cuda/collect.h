// Gradients of Phi's parameters as sums over tiles, in a fixed order: of the partial gradients of one chunk, or of the
// sums of overflow tiles. Four functions, one for each kind of gradient; each has blocks of its own.
#ifndef SCP_CUDA_COLLECT_H
#define SCP_CUDA_COLLECT_H

#include "parameter_gradients.h"

namespace scp {
namespace SCP_NAMESPACE {

// Columns of W2 that a thread sums at a time.
constexpr int kColumnsPerThread = 4;
// Partial gradients that it has in flight at a time.
template <class T>
constexpr int kPartialsAtATime = 32 / sizeof(T);

template <class T, int D>
struct Collect {
  ParameterGradients<T, D> of;
  int64_t items;         // of this chunk; 0: the sums of overflow tiles, which come last
  T *w2, *w3, *b2, *b3;  // gradients in the user's layouts: [h2, h1], [nc, h2], [h2], [nc]
  double* coefficients;  // [G, h1, dims + 1]

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;
  SCP_DEVICE void sum_w2(int64_t index, int thread) const;
  SCP_DEVICE void sum_w3(int64_t index, int thread) const;
  SCP_DEVICE void sum_biases(int64_t index, int thread) const;
  SCP_DEVICE void sum_coefficients(int64_t index, int thread) const;

  SCP_HD const DeviceNetwork<T>& net() const { return of.inputs.net; }
  SCP_HD bool of_overflows() const { return items == 0; }
  // Earlier chunks left their sums in the gradients.
  SCP_HD bool continued() const { return of_overflows() || of.first_item > 0; }

  SCP_HD static int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }
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
  // Calls of_partial or of_sums with each source in order: partial gradients of the chunk's items first .. end - 1
  // (those of overflow tiles are zero), or the sums of overflow tiles.
  template <class OfPartial, class OfSums>
  SCP_DEVICE void for_each_source(int64_t first, int64_t end, const OfPartial& of_partial,
                                  const OfSums& of_sums) const {
    if (of_overflows()) {
      for (int s = 0; s < of.sums_count; ++s) of_sums(of.sum(s));
      return;
    }
    SCP_UNROLL_BY_8
    for (int64_t i = first; i < end; ++i) of_partial(of.partial(i));
  }
};

// A thread has one unit of layer 1 and kColumnsPerThread units of layer 2.
template <class T, int D>
SCP_DEVICE void Collect<T, D>::sum_w2(int64_t index, int thread) const {
  const int h1 = net().h1, h2 = net().h2;
  const int u = int(index % blocks_for(h1)) * kThreads + thread;
  const int k = int(index / blocks_for(h1)) * kColumnsPerThread;
  if (u >= h1) return;
  T sum[kColumnsPerThread] = {};
  constexpr int R = kPartialsAtATime<T>;
  SCP_NO_UNROLL
  for (int64_t first = 0; first < items; first += R) {
    const int count = items - first < R ? int(items - first) : R;
    add_w2<T, D, R>([&](int i) { return of.partial(first + i); }, count, h2, u, k, sum);
  }
  for (int s = 0; of_overflows() && s < of.sums_count; ++s)
    for (int i = 0; i < kColumnsPerThread; ++i)
      if (k + i < h2) sum[i] += of.sum(s).w2t[int64_t(u) * h2 + k + i];
  for (int i = 0; i < kColumnsPerThread; ++i) {
    if (k + i >= h2) continue;
    T& to = w2[int64_t(k + i) * h1 + u];
    to = continued() ? to + sum[i] : sum[i];
  }
}

template <class T, int D>
SCP_DEVICE void Collect<T, D>::sum_w3(int64_t index, int thread) const {
  const int h2 = net().h2, nc = net().nc;
  const int64_t i = index * kThreads + thread;
  if (i >= int64_t(h2) * nc) return;
  T sum = 0;
  for_each_source(
      0, items, [&](const PartialGradients<T, D>& partial) { sum += partial.w3[i]; },
      [&](const OverflowSums<T, D>& sums) { sum += sums.w3[i]; });
  T& to = w3[i % nc * h2 + i / nc];
  to = continued() ? to + sum : sum;
}

template <class T, int D>
SCP_DEVICE void Collect<T, D>::sum_biases(int64_t index, int thread) const {
  const int h2 = net().h2;
  const int64_t i = index * kThreads + thread;
  if (i >= h2 + net().nc) return;
  T sum = 0;
  for_each_source(
      0, items, [&](const PartialGradients<T, D>& partial) { sum += i < h2 ? partial.z[i] : partial.b3[i - h2]; },
      [&](const OverflowSums<T, D>& sums) { sum += i < h2 ? sums.b2[i] : sums.b3[i - h2]; });
  T& to = i < h2 ? b2[i] : b3[i - h2];
  to = continued() ? to + sum : sum;
}

// The gradients of layer 1's coefficients are the moments, in float64, summed over the items of each position map
// apart.
template <class T, int D>
SCP_DEVICE void Collect<T, D>::sum_coefficients(int64_t index, int thread) const {
  constexpr int A = kAffineTerms<D>;
  const int h1 = net().h1, columns = of.inputs.tiling.dims + 1;
  const int64_t i = index * kThreads + thread, group = first_group() + i / (int64_t(h1) * columns);
  if (group >= end_group()) return;
  const int u = int(i / columns % h1), column = int(i % columns);
  // The coefficients' last column is that of 1; a leading axis that the user's tensors lack has none.
  const int a = column == columns - 1 ? 0 : 1 + of.inputs.tiling.first_axis() + column;
  const int64_t start = group * items_per_group() - of.first_item, end = start + items_per_group();
  double sum = 0;
  for_each_source(
      start < 0 ? 0 : start, end < items ? end : items,
      [&](const PartialGradients<T, D>& partial) { sum += moment<T, D>(partial, u, a); },
      [&](const OverflowSums<T, D>& sums) { sum += sums.moments[(group * h1 + u) * A + a]; });
  double& to = coefficients[(group * h1 + u) * columns + column];
  to = of_overflows() || start < 0 ? to + sum : sum;
}

template <class T, int D>
template <class Block>
SCP_DEVICE void Collect<T, D>::operator()(Block& block) const {
  if (of_overflows() && *of.any_overflow == 0) return;
  const int t = block.thread();
  int64_t index = block.index();
  if (index == 0)
    count(block, net(), SCP_REPORT_BUILD_MACS, [&] { return double(items) * kAffineTerms<D> * net().h1 * net().h2; });
  if (index < w2_blocks()) return sum_w2(index, t);
  index -= w2_blocks();
  if (index < w3_blocks()) return sum_w3(index, t);
  index -= w3_blocks();
  if (index < bias_blocks()) return sum_biases(index, t);
  sum_coefficients(index - bias_blocks(), t);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
