// Phi folded once for several tiles. A supertile's folded network has few units left to decide, so that its tiles fold
// from it at a fraction of what the root costs them. It lies in global memory, for a window of supertiles at a time.
#ifndef SCP_CUDA_SUPERTILE_H
#define SCP_CUDA_SUPERTILE_H

#include "fold_outputs.h"

namespace scp {
namespace SCP_NAMESPACE {

// Outputs of Phi that are folded at a time.
constexpr int kSupertileOutputs = 32;

// The folded networks of a window of supertiles, counted over all position maps.
template <class T, int D>
struct Supertiles {
  char* memory;  // null: none, tiles fold from the root
  int64_t bytes_each, first;
  int unstable_capacity;

  SCP_HD Parent<T, D> at(const DeviceNetwork<T>& net, int64_t number) const {
    BumpAllocator allocator(memory + number * bytes_each);
    return Parent<T, D>(allocator, net.h1, net.h2, net.nc, unstable_capacity);
  }
  // What a tile is folded from: the root where its supertile has more unstable units than there is room for.
  SCP_DEVICE Parent<T, D> parent(const DeviceNetwork<T>& net, const Tiling<D>& tiling, int64_t group,
                                 int64_t tile) const {
    if (memory == nullptr) return Parent<T, D>();
    const Parent<T, D> result = at(net, group * tiling.supertiles + tiling.supertile(tile) - first);
    return result.folded->bounded ? result : Parent<T, D>();
  }
};

// The kernel that folds them, a supertile per block: few blocks, so that each has more threads.
template <class T, int D>
struct FoldSupertiles {
  DeviceNetwork<T> net;
  Tiling<D> tiling;
  Supertiles<T, D> supertiles;

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;
};
template <class T, int D>
constexpr int kThreadsOf<FoldSupertiles<T, D>> = 512;

template <class T, int D>
template <class Block>
SCP_DEVICE void FoldSupertiles<T, D>::operator()(Block& block) const {
  const FoldSupertiles& f = *this;
  constexpr int A = kAffineTerms<D>, K = kSupertileOutputs;
  const int t = block.thread(), h2 = f.net.h2, nc = f.net.nc;
  const Parent<T, D> result = f.supertiles.at(f.net, block.index());
  // Parameters that are not finite are not folded at all.
  if (*f.net.not_finite != 0) {
    if (t == 0) result.folded->bounded = false;
    return;
  }
  BumpAllocator allocator(block.shared());
  const FoldMemory<T, D, K> memory(allocator, f.net.h1, h2, f.supertiles.unstable_capacity, kLogPanel, true);
  const int64_t number = f.supertiles.first + block.index();
  const Box<D> box = f.tiling.supertile_box(number % f.tiling.supertiles);
  const double* coefficients = f.net.coefficients + number / f.tiling.supertiles * f.net.h1 * (f.tiling.dims + 1);
  const Parent<T, D> root;
  const Folded& folded =
      fold<false>(block, f.net, coefficients, f.tiling.dims, box, false, root, memory, [](const Folded&) {});
  if (t == 0) *result.folded = folded;
  if (!folded.bounded) return;

  SCP_UNROLL
  for (int axis = 0; axis < D; ++axis)
    if (t == axis) result.centre[axis] = box.centre(axis);
  SCP_NO_UNROLL
  for (int i = t; i < folded.active1 + folded.unstable1; i += Block::kSize) result.unit1[i] = memory.unit1[i];
  SCP_NO_UNROLL
  for (int i = t; i < folded.active2 + folded.unstable2; i += Block::kSize) result.unit2[i] = memory.unit2[i];
  SCP_NO_UNROLL
  for (int i = t; i < A * h2; i += Block::kSize) result.x[i] = memory.x[i];
  for (int first = 0; first < nc; first += K) {
    SCP_NO_UNROLL
    for (int j = t; j < K; j += Block::kSize) memory.offset[j] = first + j < nc ? first + j : -1;
    block.sync();
    fold_outputs(block, f.net, folded, memory, nc - first < K ? nc - first : K);
    SCP_NO_UNROLL
    for (int i = t; i < (A + folded.unstable1) * K; i += Block::kSize)
      if (first + i % K < nc) result.cf[int64_t(i / K) * nc + first + i % K] = memory.cf[i];
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
