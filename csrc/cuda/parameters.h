// The kernel of Phi's gradients: which block differentiates which box, and where the result goes.
//
// A round: a block has one share, and marks it if its tile overflows, that is, has more unstable units than a record has
// room for. After the rounds, a few blocks share the overflow tiles: each cuts them into boxes that are not, down to
// single pixels, and has sums of its own.
#ifndef SCP_CUDA_PARAMETERS_H
#define SCP_CUDA_PARAMETERS_H

#include "gradients.h"

namespace scp {
namespace SCP_NAMESPACE {

// Boxes that wait while a tile is cut: a tile can be halved seven times.
constexpr int kMostWaitingBoxes = 8;

template <class T, int D>
struct Parameters {
  Differentiated<T, D> subject;
  int64_t groups;
  int unstable_capacity;
  bool overflow_pass;   // the tiles that the rounds have marked; else a round, one share a block
  int64_t first_share;  // of the round, over all position maps
  int* overflows;       // [shares]: 1 for an overflow tile
  int* any_overflow;
  char* records;  // one for each share of a round
  int64_t record_bytes;
  char* sums;  // one for each block that works on overflow tiles
  int64_t sums_bytes;
  int sums_count;

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;

  SCP_HD Record<T, D> record(int64_t number) const {
    Carver carver(records + number * record_bytes);
    return Record<T, D>(carver, subject.net.h1, subject.net.h2, subject.net.nc, unstable_capacity);
  }
  SCP_HD Sums<T, D> sum(int64_t number) const {
    Carver carver(sums + number * sums_bytes);
    return Sums<T, D>(carver, groups, subject.net.h1, subject.net.h2, subject.net.nc);
  }
};

// Where a block is in its tiles: in shared memory, because it would take registers all the while that a box is worked
// on.
template <int D>
struct Walk {
  int64_t share;
  int waiting;                      // boxes of the tile that are still to be visited ...
  Box<D> boxes[kMostWaitingBoxes];  // ... the last one first
};

template <class T, int D>
struct ParametersMemory {
  Walk<D>* walk;
  GradientMemory<T, D> gradients;

  SCP_HD ParametersMemory(Carver& from, int h1, int h2, int most)
      : walk(from.take<Walk<D>>(1)), gradients(from, h1, h2, most) {}
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
SCP_DEVICE void Parameters<T, D>::operator()(Block& block) const {
  const Parameters& p = *this;
  const Network<T>& net = p.subject.net;
  const Shares& shares = p.subject.shares;
  const int t = block.thread();
  if (p.overflow_pass && *p.any_overflow == 0) return;
  Carver carver(block.shared());
  const ParametersMemory<T, D> memory(carver, net.h1, net.h2, p.unstable_capacity);
  const Record<T, D> record = p.record(block.index());
  if (p.overflow_pass) clear(block, net, p.groups, p.sum(block.index()));
  Walk<D>& walk = *memory.walk;
  if (t == 0) walk.share = p.overflow_pass ? block.index() : p.first_share + block.index();
  for (;;) {
    block.sync();
    if (walk.share >= (p.overflow_pass ? p.groups * shares.a_group() : p.first_share + block.index() + 1)) return;
    if (t == 0) {
      walk.waiting = !p.overflow_pass || p.overflows[walk.share] != 0 ? 1 : 0;
      walk.boxes[0] = p.subject.tiling.box(shares.tile(walk.share));
    }
    for (;;) {
      block.sync();
      if (walk.waiting == 0) break;
      const Box<D> box = walk.boxes[walk.waiting - 1];
      const bool done = differentiate(block, p.subject, walk.share, box, memory.gradients, record);
      block.sync();
      if (p.overflow_pass && done) add(block, net, record, shares.group(walk.share), p.sum(block.index()));
      if (t > 0) continue;
      if (!p.overflow_pass) p.overflows[walk.share] = !done;
      if (!p.overflow_pass && !done) block.raise(p.any_overflow);
      --walk.waiting;
      if (p.overflow_pass && !done) {
        halve(box, walk.boxes[walk.waiting + 1], walk.boxes[walk.waiting]);
        walk.waiting += 2;
      }
    }
    if (t == 0) walk.share += p.sums_count;
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
