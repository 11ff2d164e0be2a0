// Boxes of pixels and how they are cut. Shared by the CPU backend and by device code.
#ifndef SCP_COMMON_GEOMETRY_H
#define SCP_COMMON_GEOMETRY_H

#include "platform.h"

namespace scp {
namespace SCP_NAMESPACE {

// A box of pixels: lower <= index < upper on each of D axes, the last axis being the fastest in memory.
template <int D>
struct Box {
  int lower[D];
  int upper[D];

  SCP_HD int extent(int axis) const { return upper[axis] - lower[axis]; }
  SCP_HD double centre(int axis) const { return 0.5 * (lower[axis] + upper[axis] - 1); }
  // Largest distance, along an axis, of a pixel from the centre.
  SCP_HD double half_extent(int axis) const { return 0.5 * (upper[axis] - lower[axis] - 1); }
  SCP_HD long long pixels() const {
    long long count = 1;
    for (int axis = 0; axis < D; ++axis) count *= extent(axis);
    return count;
  }
};

// Where to cut an interval of `extent` pixels in two: a multiple of `grain` next to the middle, or 0 if none lies
// inside.
SCP_HD inline int cut(int extent, int grain) {
  int middle = (extent / 2 + grain - 1) / grain * grain;
  if (middle >= extent) middle = (extent - 1) / grain * grain;
  return middle;
}

// The axis to cut a box along: the one that is longest in pixels among those that span more than one grain; -1 if none.
// Boxes near a cube make a straight line cross the fewest of them.
template <int D>
SCP_HD inline int axis_to_cut(const Box<D>& box, const int (&grain)[D]) {
  int best = -1;
  for (int axis = 0; axis < D; ++axis) {
    if (box.extent(axis) <= grain[axis]) continue;
    if (best < 0 || box.extent(axis) >= box.extent(best)) best = axis;
  }
  return best;
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
