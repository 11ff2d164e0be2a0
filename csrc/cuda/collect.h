// Sums over tiles, in a fixed order: records of one round, or the sums of overflow tiles.
#ifndef SCP_CUDA_COLLECT_H
#define SCP_CUDA_COLLECT_H

#include "parameters.h"

namespace scp {
namespace SCP_NAMESPACE {

// Columns of W2 that a thread sums at a time.
constexpr int kCollected = 4;
// Records that it has under way at a time.
template <class T>
constexpr int kTogether = 32 / sizeof(T);

template <class T, int D>
struct Collect {
  Parameters<T, D> of;
  int64_t shares;        // of this round; 0: the sums of overflow tiles, which come last
  T *w2, *w3, *b2, *b3;  // gradients in the user's layouts: [h2, h1], [nc, h2], [h2], [nc]
  double* coefficients;  // [G, h1, dims + 1]

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;

  SCP_HD const Network<T>& net() const { return of.subject.net; }
  SCP_HD int64_t a_group() const { return of.subject.shares.a_group(); }
  SCP_HD static int64_t whole(int64_t count) { return (count + kThreads - 1) / kThreads; }
  SCP_HD int64_t first_group() const { return shares == 0 ? 0 : of.first_share / a_group(); }
  SCP_HD int64_t end_group() const { return shares == 0 ? of.groups : (of.first_share + shares - 1) / a_group() + 1; }
  SCP_HD int64_t w2_blocks() const { return whole(net().h1) * ((net().h2 + kCollected - 1) / kCollected); }
  SCP_HD int64_t w3_blocks() const { return whole(int64_t(net().h2) * net().nc); }
  SCP_HD int64_t bias_blocks() const { return whole(net().h2 + net().nc); }
  SCP_HD int64_t moment_blocks() const {
    return whole((end_group() - first_group()) * net().h1 * (of.subject.tiling.dims + 1));
  }
  SCP_HD int64_t blocks() const { return w2_blocks() + w3_blocks() + bias_blocks() + moment_blocks(); }
};

// Adds value(i) of each source in order to `from`: records of the shares first .. first + count - 1 of the round (those
// of overflow tiles are empty), or the sums of overflow tiles.
template <class T, int D, class OfRecord, class OfSums>
SCP_DEVICE void for_each_source(const Collect<T, D>& c, int64_t first, int64_t count, const OfRecord& of_record,
                                const OfSums& of_sums) {
  if (c.shares == 0) {
    for (int s = 0; s < c.of.sums_count; ++s) of_sums(c.of.sum(s));
    return;
  }
  SCP_UNROLL_BY_8
  for (int64_t i = first; i < first + count; ++i) of_record(c.of.record(i));
}

template <class T, int D>
template <class Block>
SCP_DEVICE void Collect<T, D>::operator()(Block& block) const {
  const Collect& c = *this;
  constexpr int A = kAffineRows<D>;
  if (c.shares == 0 && *c.of.any_overflow == 0) return;
  const int h1 = c.net().h1, h2 = c.net().h2, nc = c.net().nc, t = block.thread();
  // Earlier rounds left their sums in the gradients.
  const bool continued = c.shares == 0 || c.of.first_share > 0;
  int64_t index = block.index();
  if (index == 0) count(block, c.net(), SCP_REPORT_BUILD_MACS, [&] { return double(c.shares) * A * h1 * h2; });
  if (index < c.w2_blocks()) {
    const int u = int(index % c.whole(h1)) * kThreads + t, k = int(index / c.whole(h1)) * kCollected;
    if (u >= h1) return;
    T sum[kCollected] = {};
    constexpr int R = kTogether<T>;
    SCP_NO_UNROLL
    for (int64_t first = 0; first < c.shares; first += R) {
      const int count = c.shares - first < R ? int(c.shares - first) : R;
      add_w2<T, D, R>([&](int i) { return c.of.record(first + i); }, count, h2, u, k, sum);
    }
    for (int s = 0; c.shares == 0 && s < c.of.sums_count; ++s)
      for (int i = 0; i < kCollected; ++i)
        if (k + i < h2) sum[i] += c.of.sum(s).w2t[int64_t(u) * h2 + k + i];
    for (int i = 0; i < kCollected; ++i) {
      if (k + i >= h2) continue;
      T& to = c.w2[int64_t(k + i) * h1 + u];
      to = continued ? to + sum[i] : sum[i];
    }
    return;
  }
  index -= c.w2_blocks();
  if (index < c.w3_blocks()) {
    const int64_t i = index * kThreads + t;
    if (i >= int64_t(h2) * nc) return;
    T sum = 0;
    for_each_source(
        c, 0, c.shares, [&](const Record<T, D>& record) { sum += record.w3[i]; },
        [&](const Sums<T, D>& sums) { sum += sums.w3[i]; });
    T& to = c.w3[i % nc * h2 + i / nc];
    to = continued ? to + sum : sum;
    return;
  }
  index -= c.w3_blocks();
  if (index < c.bias_blocks()) {
    const int64_t i = index * kThreads + t;
    if (i >= h2 + nc) return;
    T sum = 0;
    for_each_source(
        c, 0, c.shares, [&](const Record<T, D>& record) { sum += i < h2 ? record.z[i] : record.b3[i - h2]; },
        [&](const Sums<T, D>& sums) { sum += i < h2 ? sums.b2[i] : sums.b3[i - h2]; });
    T& to = i < h2 ? c.b2[i] : c.b3[i - h2];
    to = continued ? to + sum : sum;
    return;
  }
  index -= c.bias_blocks();
  const int columns = c.of.subject.tiling.dims + 1;
  const int64_t i = index * kThreads + t, group = c.first_group() + i / (int64_t(h1) * columns);
  if (group >= c.end_group()) return;
  const int u = int(i / columns % h1), column = int(i % columns);
  // The coefficients' last column is that of 1; a leading axis that the user's tensors lack has none.
  const int a = column == columns - 1 ? 0 : 1 + c.of.subject.tiling.first_axis() + column;
  const int64_t start = group * c.a_group() - c.of.first_share, end = start + c.a_group();
  const int64_t first = start < 0 ? 0 : start, last = end < c.shares ? end : c.shares;
  double sum = 0;
  for_each_source(
      c, first, last - first, [&](const Record<T, D>& record) { sum += moment<T, D>(record, u, a); },
      [&](const Sums<T, D>& sums) { sum += sums.moments[(group * h1 + u) * A + a]; });
  double& to = c.coefficients[(group * h1 + u) * columns + column];
  to = c.shares == 0 || start < 0 ? to + sum : sum;
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
