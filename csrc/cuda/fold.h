// Folds Phi on a box: docs/tile_linear.md, "Fold", by one block of threads. The parent is Phi itself, the root, or Phi
// folded on a larger box (supertile.h).
//   1. Classify layer 1: the parent's unstable units are inactive, active or unstable on the box. List the active and
//      the unstable ones.
//   2. Newly active units are affine: fold them into the affine rows x of layer 2's pre-activations.
//   3. Bound layer 2 by a zonotope, classify it, and list its units likewise.
//   4. Fold newly active units of layer 2 into the outputs (fold_outputs.h).
// A2's unstable rows are rows of W2 whatever the parent: only panels of them are copied.
#ifndef SCP_CUDA_FOLD_H
#define SCP_CUDA_FOLD_H

#include "call.h"
#include "common/bound.h"

namespace scp {
namespace SCP_NAMESPACE {

enum UnitClass : uint8_t { kInactive = 0, kActive = 1, kUnstable = 2 };

// Binary logarithms of the columns of layer 2 per panel, where shared memory is wanted for other blocks, and else.
constexpr int kLogSmallPanel = 4, kLogPanel = 5;

// Numbers of units: in shared memory, where they take no registers. Inherited units are active on the parent's box and
// folded there already; they count as active.
struct Folded {
  int inherited1, active1, unstable1, active2, unstable2;
  bool bounded;    // layer 2 was classified; else all of it counts as unstable
  bool from_root;  // the parent is Phi itself
};

// Phi folded on a box, in global memory, for the boxes within; the root where `folded` is null.
template <class T, int D>
struct Parent {
  Folded* folded = nullptr;
  double* centre;   // [D], of the box
  T* x;             // [A, h2]
  T* cf;            // [A + unstable_capacity, nc]
  uint16_t* unit1;  // [h1]: active units, then unstable ones
  uint16_t* unit2;  // [h2]: unstable units, then active ones

  SCP_HD Parent() {}
  SCP_HD Parent(BumpAllocator& allocator, int h1, int h2, int nc, int unstable_capacity) {
    constexpr int A = kAffineTerms<D>;
    folded = allocator.allocate<Folded>(1);
    centre = allocator.allocate<double>(D);
    x = allocator.allocate<T>(int64_t(A) * h2);
    cf = allocator.allocate<T>(int64_t(A + unstable_capacity) * nc);
    unit1 = allocator.allocate<uint16_t>(h1);
    unit2 = allocator.allocate<uint16_t>(h2);
  }
};

// Shared memory of a block that folds, for K outputs at a time. `unstable_capacity` unstable units of layer 1 are
// folded exactly; where a box has more, layer 2 is evaluated pixel by pixel.
template <class T, int D, int K>
struct FoldMemory {
  static constexpr int kOutputStride = K + 4;

  int unstable_capacity, log_panel;
  Folded* folded;
  const T** parent_cf;        // the parent's, here because it would take registers for long
  T* outputs;                 // [panel(), kOutputStride]: a panel of W3
  int* offset;                // [K]: which output of Phi, -1 for none
  int* counts;                // [2, kMostWarps]
  T* line;                    // [h1, 4]: value about the centre and slopes of the listed units of layer 1
  T* chord;                   // [unstable_capacity, 2]: scale and slack of the unstable ones
  T* x;                       // [A, h2]: affine rows of z
  T* rows;                    // [A + unstable_capacity, panel_stride()]: a panel of x and W2
  T* cf;                      // [A + unstable_capacity, K]: the folded outputs
  uint16_t* unit1;            // [h1]: inherited units, other active ones, unstable ones
  uint16_t* unit2;            // [h2]: unstable units, then active ones: the first panel has both, and is loaded once
  uint16_t* index_in_parent;  // [h1]: where units that are not inherited stand among the parent's unstable ones
  T* shift;                   // [D]: from the parent's centre to the box's
  uint8_t* class1;            // [h1]
  uint8_t* class2;            // [h2]

  // folds_outputs: else there is no cf.
  SCP_HD FoldMemory(BumpAllocator& allocator, int h1, int h2, int most, int log_columns, bool folds_outputs)
      : unstable_capacity(most), log_panel(log_columns) {
    constexpr int A = kAffineTerms<D>;
    folded = allocator.allocate<Folded>(1);
    parent_cf = allocator.allocate<const T*>(1);
    outputs = allocator.allocate<T>(panel() * kOutputStride);
    offset = allocator.allocate<int>(K);
    counts = allocator.allocate<int>(2 * kMostWarps);
    line = allocator.allocate<T>(int64_t(h1) * 4);
    chord = allocator.allocate<T>(int64_t(most) * 2);
    x = allocator.allocate<T>(int64_t(A) * h2);
    rows = allocator.allocate<T>(int64_t(A + most) * panel_stride());
    cf = allocator.allocate<T>(folds_outputs ? int64_t(A + most) * K : 0);
    unit1 = allocator.allocate<uint16_t>(h1);
    unit2 = allocator.allocate<uint16_t>(h2);
    index_in_parent = allocator.allocate<uint16_t>(h1);
    shift = allocator.allocate<T>(D);
    class1 = allocator.allocate<uint8_t>(h1);
    class2 = allocator.allocate<uint8_t>(h2);
  }

  // Columns of layer 2 per panel, and the distance of its rows: 4 more, so that neighbouring rows lie in different
  // banks.
  SCP_HD int panel() const { return 1 << log_panel; }
  SCP_HD int panel_stride() const { return panel() + 4; }
};

// Where the first active and the first unstable unit of a warp go in a list: active units first, then unstable ones,
// each in ascending order.
struct Places {
  int active, unstable;
};

// Units first .. end - 1 of n are a warp's to classify and to list, each by kLanes lanes, of which the first owns it:
// what a lane knows of its units needs no barrier.
template <int kLanes, class Block>
struct WarpRange {
  static constexpr int kUnits = kWarp / kLanes;  // at a time
  int first, end;
  SCP_DEVICE WarpRange(int warp, int n) {
    const int length = (n + Block::kWarps * kUnits - 1) / (Block::kWarps * kUnits) * kUnits;
    first = warp * length, end = first + length < n ? first + length : n;
  }
};

// Classifies n units, and counts the active and the unstable ones. classify(i, owner) is called by the lanes of unit i;
// of several, which exchange values, also by those that have none, for the last unit.
template <int kLanes, class Block, class Classify>
SCP_DEVICE Places classify_units(Block& block, int n, uint8_t* classes, int* counts, int& active, int& unstable,
                                 const Classify& classify) {
  const int warp = block.thread() / kWarp, lane = block.thread() % kWarp;
  const WarpRange<kLanes, Block> range(warp, n);
  int active_here = 0, unstable_here = 0;
  SCP_NO_UNROLL
  for (int start = range.first; start < range.end; start += range.kUnits) {
    const int i = start + lane / kLanes;
    const bool owner = i < range.end && lane % kLanes == 0;
    UnitClass unit_class = kInactive;
    if (kLanes > 1 || owner) unit_class = classify(i < range.end ? i : range.end - 1, owner);
    if (owner)
      classes[i] = unit_class;
    else
      unit_class = kInactive;
    active_here += population(block.ballot(unit_class == kActive));
    unstable_here += population(block.ballot(unit_class == kUnstable));
  }
  if (lane == 0) counts[warp] = active_here, counts[Block::kWarps + warp] = unstable_here;
  block.sync();
  Places to{};
  active = unstable = 0;
  SCP_UNROLL
  for (int w = 0; w < Block::kWarps; ++w) {
    if (w == warp) to.active = active, to.unstable = unstable;
    active += counts[w], unstable += counts[Block::kWarps + w];
  }
  to.unstable += active;
  return to;
}

// Calls place(i, q) for each active or unstable unit, by the lane that owns it: unit i is number q of the list.
template <int kLanes, class Block, class Place>
SCP_DEVICE void list_units(Block& block, int n, const uint8_t* classes, Places to, const Place& place) {
  const int warp = block.thread() / kWarp, lane = block.thread() % kWarp;
  const WarpRange<kLanes, Block> range(warp, n);
  const uint32_t lanes_before = (uint32_t(1) << lane) - 1;
  SCP_NO_UNROLL
  for (int start = range.first; start < range.end; start += range.kUnits) {
    const int i = start + lane / kLanes;
    const uint8_t unit_class = i < range.end && lane % kLanes == 0 ? classes[i] : uint8_t(kInactive);
    const uint32_t actives = block.ballot(unit_class == kActive), unstables = block.ballot(unit_class == kUnstable);
    if (unit_class == kActive) place(i, to.active + population(actives & lanes_before));
    if (unit_class == kUnstable) place(i, to.unstable + population(unstables & lanes_before));
    to.active += population(actives), to.unstable += population(unstables);
  }
}

// Unit u of layer 1 about the centre. Only its value needs float64: it is what is left of large terms.
template <class T, int D>
SCP_DEVICE Affine<T, D> line_about(const double* coefficients, int dims, int u, const double (&centre)[D]) {
  const double* c = coefficients + int64_t(u) * (dims + 1);
  double value = c[dims];
  Affine<T, D> result;
  for (int axis = 0; axis < D; ++axis) {
    const double slope = axis < D - dims ? 0 : c[axis - (D - dims)];
    value = multiply_add(slope, centre[axis], value);
    result.slope[axis] = T(slope);
  }
  result.value = T(value);
  return result;
}

// Calls use(q, weight) for the units first, first + kStep .. below end of a list, with row units[q] of a column of W2
// transposed. Loads are batched, those of the remainder too: none waits for another, or for its use.
template <int kStep, class T, class Use>
SCP_DEVICE void for_each_weight(const T* column, int stride, const uint16_t* units, int first, int end,
                                const Use& use) {
  constexpr int kBatch = 8;
  SCP_NO_UNROLL
  for (int start = first; start < end; start += kBatch * kStep) {
    T weights[kBatch];
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int q = start + i * kStep;
      weights[i] = q < end ? column[int64_t(units[q]) * stride] : T(0);
    }
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i)
      if (start + i * kStep < end) use(start + i * kStep, weights[i]);
  }
}

// Steps 1 to 3. `dense`: every unit counts as unstable, and the parent must be the root. On a box of one pixel nothing
// is unstable, whatever NaN says. kInherit: inherited units are listed too, because their gradients are wanted.
// beside(folded) is called when layer 1 is listed, and layer 2 is not; a barrier follows.
template <bool kInherit, class T, int D, int K, class Block, class Beside>
SCP_DEVICE const Folded& fold(Block& block, const DeviceNetwork<T>& net, const double* coefficients, int dims,
                              const Box<D>& box, bool dense, const Parent<T, D>& parent,
                              const FoldMemory<T, D, K>& memory, const Beside& beside) {
  constexpr int A = kAffineTerms<D>;
  const int t = block.thread(), h2 = net.h2;
  double centre[D], half_extent[D];
  T half[D];
  for (int axis = 0; axis < D; ++axis) {
    centre[axis] = box.centre(axis), half_extent[axis] = box.half_extent(axis);
    half[axis] = T(half_extent[axis]);
  }
  const UnitClass unsure = box.pixels() == 1 && !dense ? kActive : kUnstable;
  const auto widened_radius = [&](const Affine<T, D>& line) { return line.radius(half) * T(kBoundWidening); };

  // Step 1. Inherited units come first, and count as active.
  Folded result;
  result.from_root = parent.folded == nullptr;
  int listed1, parent_active1;
  Affine<T, D> line;  // of the unit that this thread classified last
  Places to;
  const auto unit1_of = [&](int i) {
    return result.from_root ? i : int(parent.unit1[parent_active1 - result.inherited1 + i]);
  };
  for (;;) {
    parent_active1 = result.from_root ? 0 : parent.folded->active1;
    result.inherited1 = kInherit ? parent_active1 : 0;
    listed1 = result.inherited1 + (result.from_root ? net.h1 : parent.folded->unstable1);
    to = classify_units<1>(block, listed1, memory.class1, memory.counts, result.active1, result.unstable1,
                           [&](int i, bool) {
                             line = line_about<T, D>(coefficients, dims, unit1_of(i), centre);
                             const T radius = widened_radius(line);
                             return i < result.inherited1      ? kActive
                                    : dense                    ? kUnstable
                                    : line.value - radius > 0  ? kActive
                                    : line.value + radius <= 0 ? kInactive
                                                               : unsure;
                           });
    result.bounded = !dense && result.unstable1 <= memory.unstable_capacity;
    // What the parent folded into the outputs' unstable rows has no place where there are too many rows.
    if (result.bounded || result.from_root) break;
    result.from_root = true;
    block.sync();
  }
  list_units<1>(block, listed1, memory.class1, to, [&](int i, int q) {
    const int u = unit1_of(i);
    if (listed1 > Block::kSize)
      line = line_about<T, D>(coefficients, dims, u, centre);  // else this thread has one unit
    memory.unit1[q] = uint16_t(u);
    if (!result.from_root && q >= result.inherited1)
      memory.index_in_parent[q - result.inherited1] = uint16_t(i - result.inherited1);
    Quad<T> packed{};
    packed.v[0] = line.value;
    for (int axis = 0; axis < D; ++axis) packed.v[1 + axis] = line.slope[axis];
    quad(memory.line + q * 4) = packed;
    if (q >= result.active1 && result.bounded) {
      const T radius = widened_radius(line);
      const Chord<T> bound = chord(line.value - radius, line.value + radius);
      memory.chord[(q - result.active1) * 2] = bound.scale;
      memory.chord[(q - result.active1) * 2 + 1] = bound.slack;
    }
  });
  SCP_UNROLL
  for (int axis = 0; axis < D; ++axis)
    if (t == axis) memory.shift[axis] = result.from_root ? T(0) : T(centre[axis] - parent.centre[axis]);
  block.sync();
  beside(result);

  // Steps 2 and 3: a unit of layer 2 per thread, or per two in a large block. First the newly active units of layer 1,
  // all that changes the affine rows; then the unstable ones by their chords, for the bounds alone.
  constexpr int kLanes = Block::kSize > 2 * kThreads ? 2 : 1;
  const int part = t % kLanes;
  const auto sum_of_parts = [&](T value) {
    if constexpr (kLanes > 1) value = block.template sum_of_lanes<kLanes>(value);
    return value;
  };
  const int candidates2 = result.from_root ? h2 : parent.folded->unstable2;
  const int inherited2 = kInherit && !result.from_root ? parent.folded->active2 : 0;
  const auto unit2_of = [&](int j) { return result.from_root ? j : int(parent.unit2[j]); };
  to = classify_units<kLanes>(block, candidates2 + inherited2, memory.class2, memory.counts, result.active2,
                              result.unstable2, [&](int j, bool owner) {
                                const int k = unit2_of(j);
                                T z[A] = {};
                                if (part == 0 && result.from_root) {
                                  z[0] = net.b2[k];
                                } else if (part == 0) {
                                  for (int a = 0; a < A; ++a) z[a] = parent.x[a * h2 + k];
                                  for (int axis = 0; axis < D; ++axis)
                                    z[0] = multiply_add(memory.shift[axis], z[1 + axis], z[0]);
                                }
                                for_each_weight<kLanes>(net.w2t + k, h2, memory.unit1, result.inherited1 + part,
                                                        result.active1, [&](int q, T weight) {
                                                          const Quad<T> newly = quad(memory.line + q * 4);
                                                          for (int a = 0; a < A; ++a)
                                                            z[a] = multiply_add(weight, newly.v[a], z[a]);
                                                        });
                                for (int a = 0; a < A; ++a) {
                                  const T total = sum_of_parts(z[a]);
                                  if (owner) memory.x[a * h2 + k] = total;
                                }
                                if (j >= candidates2) return kActive;
                                if (!result.bounded) return kUnstable;
                                T radius = 0;
                                for_each_weight<kLanes>(
                                    net.w2t + k, h2, memory.unit1 + result.active1, part, result.unstable1,
                                    [&](int q, T weight) {
                                      const Quad<T> kinked = quad(memory.line + (result.active1 + q) * 4);
                                      const T scale = memory.chord[q * 2], slack = memory.chord[q * 2 + 1];
                                      const T scaled = weight * scale;
                                      for (int a = 0; a < A; ++a) z[a] = multiply_add(scaled, kinked.v[a], z[a]);
                                      z[0] = multiply_add(weight, slack, z[0]);
                                      radius = multiply_add(magnitude(weight), slack, radius);
                                    });
                                for (int a = 0; a < A; ++a) z[a] = sum_of_parts(z[a]);
                                radius = sum_of_parts(radius);
                                for (int a = 1; a < A; ++a) radius = multiply_add(magnitude(z[a]), half[a - 1], radius);
                                radius *= T(kBoundWidening);
                                return z[0] - radius > 0 ? kActive : z[0] + radius <= 0 ? kInactive : unsure;
                              });
  to.active += result.unstable2, to.unstable -= result.active2;
  list_units<kLanes>(block, candidates2 + inherited2, memory.class2, to,
                     [&](int j, int q) { memory.unit2[q] = uint16_t(unit2_of(j)); });
  if (t == 0) *memory.folded = result, *memory.parent_cf = result.from_root ? nullptr : parent.cf;
  count(block, net, SCP_REPORT_BUILD_MACS, [&] {
    const double lines =
        2.0 * D * listed1 + (listed1 > Block::kSize ? 2.0 * D * (result.active1 + result.unstable1) : 0);
    const double columns = candidates2 + inherited2, recentring = result.from_root ? 0 : D;
    return lines + columns * (recentring + A * (result.active1 - result.inherited1)) +
           (result.bounded ? double(candidates2) * (A + 2) * result.unstable1 : 0);
  });
  block.sync();
  return *memory.folded;
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
