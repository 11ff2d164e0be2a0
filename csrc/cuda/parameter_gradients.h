// The kernel of the gradients of Phi's parameters: which block differentiates which box, and where the result goes.
//
// The work items are taken in chunks, as many as there is memory for partial gradients: a block per item. An item whose
// tile overflows (has more unstable units than there is room for) is marked and contributes nothing. After all chunks,
// a few blocks share the marked items: each cuts their tiles into boxes that do not overflow, single pixels at last,
// and adds them to sums of its own.
#ifndef SCP_CUDA_PARAMETER_GRADIENTS_H
#define SCP_CUDA_PARAMETER_GRADIENTS_H

#include "gradients.h"

namespace scp {
namespace SCP_NAMESPACE {

// Boxes that wait while a tile is cut: a tile can be halved seven times.
constexpr int kMostWaitingBoxes = 8;

template <class T, int D>
struct ParameterGradients {
  GradientInputs<T, D> inputs;
  int64_t groups;
  int unstable_capacity;
  bool overflow_pass;  // the marked items; else a chunk
  int64_t first_item;  // of the chunk, over all position maps
  int* overflows;      // [items]: 1 for an overflow tile
  int* any_overflow;
  char* partials;  // one for each item of a chunk
  int64_t partial_bytes;
  char* sums;  // one for each block of the overflow pass
  int64_t sums_bytes;
  int sums_count;

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;

  SCP_HD PartialGradients<T, D> partial(int64_t number) const {
    BumpAllocator allocator(partials + number * partial_bytes);
    return PartialGradients<T, D>(allocator, inputs.net.h1, inputs.net.h2, inputs.net.nc, unstable_capacity);
  }
  SCP_HD OverflowSums<T, D> sum(int64_t number) const {
    BumpAllocator allocator(sums + number * sums_bytes);
    return OverflowSums<T, D>(allocator, groups, inputs.net.h1, inputs.net.h2, inputs.net.nc);
  }
};

// The present work item of a block and the boxes of its tile that are still to be visited. In shared memory, because it
// would occupy registers all the while that a box is differentiated.
template <int D>
struct BoxStack {
  int64_t item;
  int count;
  Box<D> boxes[kMostWaitingBoxes];
};

template <class T, int D>
struct ParameterGradientsMemory {
  BoxStack<D>* stack;
  GradientMemory<T, D> gradients;

  SCP_HD ParameterGradientsMemory(BumpAllocator& allocator, int h1, int h2, int most)
      : stack(allocator.allocate<BoxStack<D>>(1)), gradients(allocator, h1, h2, most) {}
};

// Cuts a box across its longest axis.
template <int D>
SCP_DEVICE void halve(const Box<D>& box, Box<D>& first, Box<D>& second) {
  int longest = 0, extent = box.extent(0);
  for (int axis = 1; axis < D; ++axis)
    if (box.extent(axis) > extent) longest = axis, extent = box.extent(axis);
  first = second = box;
  SCP_UNROLL
  for (int axis = 0; axis < D; ++axis)
    if (axis == longest) first.upper[axis] = second.lower[axis] = box.lower[axis] + extent / 2;
}

template <class T, int D>
template <class Block>
SCP_DEVICE void ParameterGradients<T, D>::operator()(Block& block) const {
  const ParameterGradients& p = *this;
  const DeviceNetwork<T>& net = p.inputs.net;
  const WorkPartition& partition = p.inputs.partition;
  const int t = block.thread();
  if (p.overflow_pass && *p.any_overflow == 0) return;
  BumpAllocator allocator(block.shared());
  const ParameterGradientsMemory<T, D> memory(allocator, net.h1, net.h2, p.unstable_capacity);
  const PartialGradients<T, D> partial = p.partial(block.index());
  if (p.overflow_pass) clear(block, net, p.groups, p.sum(block.index()));

  // The work items of this block: one of a chunk, a single box; or in the overflow pass every sums_count-th of all.
  // What all threads can compute is in shared memory too: they need it for long.
  BoxStack<D>& stack = *memory.stack;
  const int64_t items = p.groups * partition.items_per_group(), own = p.first_item + block.index();
  if (t == 0) {
    stack.item = p.overflow_pass ? block.index() : own;
    stack.count = 1;
    if (!p.overflow_pass) stack.boxes[0] = p.inputs.tiling.box(partition.tile(own));
  }
  for (;;) {
    if (p.overflow_pass) {
      block.sync();
      if (stack.item >= items) return;
      if (t == 0) {
        stack.count = p.overflows[stack.item] != 0 ? 1 : 0;
        stack.boxes[0] = p.inputs.tiling.box(partition.tile(stack.item));
      }
      block.sync();
    }

    // The boxes of the item, the last one first: the tile itself, or in the overflow pass parts of it.
    while (!p.overflow_pass || stack.count > 0) {
      const int64_t item = p.overflow_pass ? stack.item : own;
      const Box<D>& kept = stack.boxes[p.overflow_pass ? stack.count - 1 : 0];
      const Box<D> box = p.overflow_pass ? kept : p.inputs.tiling.box(partition.tile(own));
      const Parent<T, D> parent =
          p.overflow_pass
              ? Parent<T, D>()
              : p.inputs.supertiles.parent(net, p.inputs.tiling, partition.group(item), partition.tile(item));
      const bool fits = differentiate(block, p.inputs, item, box, kept, parent, memory.gradients, partial);
      if (!p.overflow_pass) {
        if (t == 0) p.overflows[item] = !fits;
        if (t == 0 && !fits) block.raise(p.any_overflow);
        return;
      }
      block.sync();
      if (fits) add(block, net, partial, partition.group(item), p.sum(block.index()));
      if (t == 0) {
        --stack.count;
        if (!fits) {
          halve(box, stack.boxes[stack.count + 1], stack.boxes[stack.count]);
          stack.count += 2;
        }
      }
      block.sync();
    }
    if (t == 0) stack.item += p.sums_count;
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
