// Is a ReLU unit off, on or mixed on a box, and what may be said of its output? (docs/tile_linear.md: "Notation",
// "Child", 1 and 3) Shared by the CPU backend and by device code.
#ifndef SCP_SHARED_BOUND_H
#define SCP_SHARED_BOUND_H

#include "platform.h"

namespace scp {
namespace SCP_NAMESPACE {

// A unit with pre-activation in [lowest, highest] on a box is off if highest <= 0, on if lowest > 0, else mixed:
// strictly so, that ReLU'(0) = 0 holds for kinks on pixels, and written so that a NaN bound makes it mixed.
//
// V is double, or a vector of doubles: the same formulas for one unit or several.

// Affine function of the pixel index: value + sum over axes of slope[axis] * (index[axis] - centre[axis]).
// Values are float64: exact enough at any image size, where float32 on absolute coordinates is not.
template <class V, int D>
struct Affine {
  V value;
  V slope[D];

  // The same function about a centre shifted by `shift`.
  SCP_HD Affine recentred(const double (&shift)[D]) const {
    Affine moved = *this;
    for (int axis = 0; axis < D; ++axis) moved.value = moved.value + slope[axis] * shift[axis];
    return moved;
  }

  // Largest deviation from `value` on a box of these half-extents.
  SCP_HD V radius(const double (&half_extent)[D]) const {
    V sum = magnitude(slope[0]) * half_extent[0];
    for (int axis = 1; axis < D; ++axis) sum = sum + magnitude(slope[axis]) * half_extent[axis];
    return sum;
  }
};

// relu(l) of a mixed unit, l in [lowest, highest], lies within `slack` of scale * l + slack: the chord from (lowest, 0)
// to (highest, highest), lowered by half the largest gap.
template <class V>
struct Chord {
  V scale;
  V slack;
};

template <class V>
SCP_HD inline Chord<V> chord(V lowest, V highest) {
  const V scale = highest / (highest - lowest);
  return {scale, scale * lowest / -2};
}

// Rounding of the bound itself must not turn a unit that touches zero into an on-unit.
constexpr double kBoundWidening = 1.00001;

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
