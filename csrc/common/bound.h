// Is a ReLU unit inactive, active or unstable on a box, and what bounds its output? (docs/tile_linear.md: "Notation",
// "Fold", 1 and 3) Shared by the CPU backend and by device code. The bounds are the ReLU relaxations of neural-network
// verification (DeepZ's zonotopes; CROWN's and LiRPA's linear bounds).
#ifndef SCP_COMMON_BOUND_H
#define SCP_COMMON_BOUND_H

#include "platform.h"

namespace scp {
namespace SCP_NAMESPACE {

// A unit with pre-activation in [lowest, highest] on a box is inactive if highest <= 0, active if lowest > 0, else
// unstable: strictly so, that ReLU'(0) = 0 holds for kinks on pixels, and written so that a NaN bound makes it
// unstable.
//
// V is a number or a vector of them: the same formulas for one unit or several.

// Basis functions that every box has: 1, and index - centre on each axis.
template <int D>
constexpr int kAffineTerms = D + 1;

// Affine function of the pixel index: value + sum over axes of slope[axis] * (index[axis] - centre[axis]).
// `value` comes from absolute coordinates: it has to be computed in float64, which is exact enough at any image size.
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
  template <class Number>
  SCP_HD V radius(const Number (&half_extent)[D]) const {
    V sum = magnitude(slope[0]) * half_extent[0];
    for (int axis = 1; axis < D; ++axis) sum = sum + magnitude(slope[axis]) * half_extent[axis];
    return sum;
  }
};

// relu(l) of an unstable unit, l in [lowest, highest], lies within `slack` of scale * l + slack: the chord from
// (lowest, 0) to (highest, highest), lowered by half the largest gap.
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

// Factor on a radius that was computed in float32: its own rounding must not turn a unit that touches zero into an
// active one. A sum of n magnitudes is off by at most n * 2^-24 of itself: 1e-5 covers n = 160 in the worst case, and
// n = 28,000 where roundings are independent.
constexpr double kBoundWidening = 1.00001;

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
