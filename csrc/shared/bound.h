// Is a ReLU unit off, on or mixed on a box, and what may be said of its output? (tile_linear: "Notation", "Child", 1 and 3)
// Shared by the CPU backend and by device code.
#ifndef SCP_SHARED_BOUND_H
#define SCP_SHARED_BOUND_H

#include "platform.h"

namespace scp {
namespace SCP_NAMESPACE {

// Off: <= 0 on the whole box. On: > 0 on the whole box. Both strictly so, that ReLU'(0) = 0 holds for kinks on pixels.
// The comparisons are written so that a NaN bound makes a unit mixed.
enum class State { off, on, mixed };

template <class T>
SCP_HD inline State state(T lowest, T highest) {
  if (highest <= T(0)) return State::off;
  if (lowest > T(0)) return State::on;
  return State::mixed;
}

// Affine function of the pixel index: value + sum over axes of slope[axis] * (index[axis] - centre[axis]).
// Values are float64: exact enough at any image size, where float32 on absolute coordinates is not.
template <int D>
struct Affine {
  double value;
  double slope[D];

  // The same function about a centre shifted by `shift`.
  SCP_HD Affine recentred(const double (&shift)[D]) const {
    Affine moved = *this;
    for (int axis = 0; axis < D; ++axis) moved.value += slope[axis] * shift[axis];
    return moved;
  }

  // Largest deviation from `value` on a box of these half-extents.
  SCP_HD double radius(const double (&half_extent)[D]) const {
    double sum = 0;
    for (int axis = 0; axis < D; ++axis) sum += (slope[axis] < 0 ? -slope[axis] : slope[axis]) * half_extent[axis];
    return sum;
  }
};

// relu(l) for l in [lowest, highest], lowest <= 0 < highest, lies within `slack` of scale * l + slack:
// the chord from (lowest, 0) to (highest, highest), lowered by half the largest gap.
struct Chord {
  double scale;
  double slack;
};

SCP_HD inline Chord chord(double lowest, double highest) {
  if (highest == lowest) return {0, 0};
  const double scale = highest / (highest - lowest);
  return {scale, -0.5 * scale * lowest};
}

// Rounding of the bound itself must not turn a unit that touches zero into an on-unit.
constexpr double kBoundWidening = 1.00001;

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
