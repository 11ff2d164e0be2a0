// Folds Phi on a box: docs/tile_linear.md, "Fold", by one block of threads. The parent is Phi itself, the root, or Phi
// folded on a larger box (supertile.h).
//   1. Classify layer 1: the parent's unstable units are inactive, active or unstable on the box. List the active and the
//      unstable ones.
//   2. Newly active units are affine: fold them into the affine rows x of layer 2's pre-activations.
//   3. Bound layer 2 by a zonotope, classify it, and list its units likewise.
//   4. Fold newly active units of layer 2 into the outputs.
// A2's unstable rows are rows of W2 whatever the parent: only panels of them are copied.
#ifndef SCP_CUDA_FOLD_H
#define SCP_CUDA_FOLD_H

#include "call.h"
#include "common/bound.h"

namespace scp {
namespace SCP_NAMESPACE {

enum UnitClass : uint8_t { kInactive = 0, kActive = 1, kUnstable = 2 };

// Columns of layer 2 per panel, and the distance of its rows: 4 more, so that neighbouring rows lie in different banks.
constexpr int kPanel = 32;
constexpr int kPanelStride = kPanel + 4;
// Columns whose z a thread holds at a time.
constexpr int kColumns = 8;
// Threads that list units; each has a range of them.
constexpr int kCompactionThreads = 32;

// Numbers of units: in shared memory, where they take no registers. Lists have inherited units first, which are active
// on the parent's box and folded there already; they count as active.
struct Folded {
  int inherited1, active1, unstable1, inherited2, active2, unstable2;
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
  uint16_t* unit2;  // [h2]

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

  int unstable_capacity;
  Folded* folded;
  T* outputs;        // [kPanel, kOutputStride]: a panel of W3
  int* offset;       // [K]: which output of Phi, -1 for none
  int* counts;       // [2, kCompactionThreads]
  T* line;           // [h1, 4]: value about the centre and slopes of the listed units of layer 1
  T* chord;          // [unstable_capacity, 2]: scale and slack of the unstable ones
  T* x;              // [A, h2]: affine rows of z
  T* rows;           // [A + unstable_capacity, kPanelStride]: a panel of x and W2
  T* cf;             // [A + unstable_capacity, K]: the folded outputs
  uint16_t* unit1;   // [h1]: active units, then unstable ones
  uint16_t* unit2;   // [h2]
  uint16_t* place1;  // [h1]: where units that are not inherited stand among the parent's unstable ones
  T* shift;          // [D]: from the parent's centre to the box's
  uint8_t* class1;   // [h1]
  uint8_t* class2;   // [h2]

  SCP_HD FoldMemory(BumpAllocator& allocator, int h1, int h2, int most) : unstable_capacity(most) {
    constexpr int A = kAffineTerms<D>;
    folded = allocator.allocate<Folded>(1);
    outputs = allocator.allocate<T>(kPanel * kOutputStride);
    offset = allocator.allocate<int>(K);
    counts = allocator.allocate<int>(2 * kCompactionThreads);
    line = allocator.allocate<T>(int64_t(h1) * 4);
    chord = allocator.allocate<T>(int64_t(most) * 2);
    x = allocator.allocate<T>(int64_t(A) * h2);
    rows = allocator.allocate<T>(int64_t(A + most) * kPanelStride);
    cf = allocator.allocate<T>(int64_t(A + most) * K);
    unit1 = allocator.allocate<uint16_t>(h1);
    unit2 = allocator.allocate<uint16_t>(h2);
    place1 = allocator.allocate<uint16_t>(h1);
    shift = allocator.allocate<T>(D);
    class1 = allocator.allocate<uint8_t>(h1);
    class2 = allocator.allocate<uint8_t>(h2);
  }
};

// Lists the active units, then the unstable ones, each in ascending order, by their places in `classes`.
template <class Block>
SCP_DEVICE void list_units(Block& block, const uint8_t* classes, int n, uint16_t* list, int* counts, int& active,
                           int& unstable) {
  const int t = block.thread(), length = (n + kCompactionThreads - 1) / kCompactionThreads;
  const int first = t * length < n ? t * length : n, end = first + length < n ? first + length : n;
  if (t < kCompactionThreads) {
    int active_here = 0, unstable_here = 0;
    for (int i = first; i < end; ++i) active_here += classes[i] == kActive, unstable_here += classes[i] == kUnstable;
    counts[t] = active_here, counts[kCompactionThreads + t] = unstable_here;
  }
  block.sync();
  int active_to = 0, unstable_to = 0;
  active = unstable = 0;
  for (int s = 0; s < kCompactionThreads; ++s) {
    if (s == t) active_to = active, unstable_to = unstable;
    active += counts[s], unstable += counts[kCompactionThreads + s];
  }
  if (t < kCompactionThreads) {
    unstable_to += active;
    for (int i = first; i < end; ++i) {
      if (classes[i] == kActive) list[active_to++] = uint16_t(i);
      if (classes[i] == kUnstable) list[unstable_to++] = uint16_t(i);
    }
  }
  block.sync();
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

// Steps 1 to 3. `dense`: every unit counts as unstable, and the parent must be the root. On a box of one pixel nothing
// is unstable, whatever NaN says. kInherit: inherited units are listed too, because their gradients are wanted.
template <bool kInherit, class T, int D, int K, class Block>
SCP_DEVICE const Folded& fold(Block& block, const DeviceNetwork<T>& net, const double* coefficients, int dims,
                              const Box<D>& box, bool dense, const Parent<T, D>& parent,
                              const FoldMemory<T, D, K>& memory) {
  constexpr int A = kAffineTerms<D>;
  const int t = block.thread(), h2 = net.h2;
  double centre[D], half_extent[D];
  T half[D];
  for (int axis = 0; axis < D; ++axis) {
    centre[axis] = box.centre(axis), half_extent[axis] = box.half_extent(axis);
    half[axis] = T(half_extent[axis]);
  }
  const UnitClass unsure = box.pixels() == 1 && !dense ? kActive : kUnstable;
  const auto radius_of = [&](const Affine<T, D>& line) {
    T sum = 0;
    for (int axis = 0; axis < D; ++axis) sum = multiply_add(magnitude(line.slope[axis]), half[axis], sum);
    return sum * T(kBoundWidening);
  };

  Folded result;
  result.from_root = parent.folded == nullptr;
  int candidates1, parent_active1;
  for (;;) {
    candidates1 = result.from_root ? net.h1 : parent.folded->unstable1;
    parent_active1 = result.from_root ? 0 : parent.folded->active1;
    result.inherited1 = kInherit ? parent_active1 : 0;
    // Step 1: a unit per thread.
    SCP_NO_UNROLL
    for (int i = t; i < result.inherited1; i += kThreads) memory.unit1[i] = parent.unit1[i];
    SCP_NO_UNROLL
    for (int i = t; i < candidates1; i += kThreads) {
      const int u = result.from_root ? i : parent.unit1[parent_active1 + i];
      const Affine<T, D> line = line_about<T, D>(coefficients, dims, u, centre);
      const T radius = radius_of(line);
      memory.class1[i] = dense                      ? kUnstable
                         : line.value - radius > 0  ? kActive
                         : line.value + radius <= 0 ? kInactive
                                                    : unsure;
    }
    block.sync();
    list_units(block, memory.class1, candidates1, memory.unit1 + result.inherited1, memory.counts, result.active1,
               result.unstable1);
    result.active1 += result.inherited1;
    result.bounded = !dense && result.unstable1 <= memory.unstable_capacity;
    // What the parent folded into the outputs' unstable rows has no place where there are too many rows.
    if (result.bounded || result.from_root) break;
    result.from_root = true;
  }
  SCP_NO_UNROLL
  for (int q = t; q < result.active1 + result.unstable1; q += kThreads) {
    if (!result.from_root && q >= result.inherited1) {
      const int place = memory.unit1[q];
      memory.place1[q - result.inherited1] = uint16_t(place);
      memory.unit1[q] = parent.unit1[parent_active1 + place];
    }
    const Affine<T, D> line = line_about<T, D>(coefficients, dims, memory.unit1[q], centre);
    Quad<T> packed{};
    packed.v[0] = line.value;
    for (int axis = 0; axis < D; ++axis) packed.v[1 + axis] = line.slope[axis];
    quad(memory.line + q * 4) = packed;
    if (q >= result.active1 && result.bounded) {
      const T radius = radius_of(line);
      const Chord<T> bound = chord(line.value - radius, line.value + radius);
      memory.chord[(q - result.active1) * 2] = bound.scale;
      memory.chord[(q - result.active1) * 2 + 1] = bound.slack;
    }
  }
  SCP_UNROLL
  for (int axis = 0; axis < D; ++axis)
    if (t == axis) memory.shift[axis] = result.from_root ? T(0) : T(centre[axis] - parent.centre[axis]);
  block.sync();

  // Steps 2 and 3: a unit of layer 2 per thread. First the newly active units of layer 1, all that changes the affine
  // rows; then the unstable ones by their chords, for the bounds alone.
  const int candidates2 = result.from_root ? h2 : parent.folded->unstable2;
  const int parent_active2 = result.from_root ? 0 : parent.folded->active2;
  result.inherited2 = kInherit ? parent_active2 : 0;
  SCP_NO_UNROLL
  for (int j = t; j < result.inherited2 + candidates2; j += kThreads) {
    const int k = result.from_root ? j : parent.unit2[parent_active2 - result.inherited2 + j];
    T z[A] = {};
    if (result.from_root) {
      z[0] = net.b2[k];
    } else {
      for (int a = 0; a < A; ++a) z[a] = parent.x[a * h2 + k];
      for (int axis = 0; axis < D; ++axis) z[0] = multiply_add(memory.shift[axis], z[1 + axis], z[0]);
    }
    SCP_UNROLL_BY_8
    for (int q = result.inherited1; q < result.active1; ++q) {
      const T weight = net.w2t[int64_t(memory.unit1[q]) * h2 + k];
      const Quad<T> line = quad(memory.line + q * 4);
      for (int a = 0; a < A; ++a) z[a] = multiply_add(weight, line.v[a], z[a]);
    }
    for (int a = 0; a < A; ++a) memory.x[a * h2 + k] = z[a];
    if (j < result.inherited2) {
      memory.unit2[j] = uint16_t(k);
      continue;
    }
    if (!result.bounded) {
      memory.class2[j - result.inherited2] = kUnstable;
      continue;
    }
    T radius = 0;
    SCP_UNROLL_BY_8
    for (int q = 0; q < result.unstable1; ++q) {
      const T weight = net.w2t[int64_t(memory.unit1[result.active1 + q]) * h2 + k];
      const Quad<T> line = quad(memory.line + (result.active1 + q) * 4);
      const T scale = memory.chord[q * 2], slack = memory.chord[q * 2 + 1];
      const T scaled = weight * scale;
      for (int a = 0; a < A; ++a) z[a] = multiply_add(scaled, line.v[a], z[a]);
      z[0] = multiply_add(weight, slack, z[0]);
      radius = multiply_add(magnitude(weight), slack, radius);
    }
    for (int a = 1; a < A; ++a) radius = multiply_add(magnitude(z[a]), half[a - 1], radius);
    radius *= T(kBoundWidening);
    memory.class2[j - result.inherited2] = z[0] - radius > 0 ? kActive : z[0] + radius <= 0 ? kInactive : unsure;
  }
  block.sync();
  list_units(block, memory.class2, candidates2, memory.unit2 + result.inherited2, memory.counts, result.active2,
             result.unstable2);
  result.active2 += result.inherited2;
  if (!result.from_root) {
    SCP_NO_UNROLL
    for (int q = result.inherited2 + t; q < result.active2 + result.unstable2; q += kThreads)
      memory.unit2[q] = parent.unit2[parent_active2 + memory.unit2[q]];
  }
  if (t == 0) *memory.folded = result;
  count(block, net, SCP_REPORT_BUILD_MACS, [&] {
    const double lines = 2.0 * D * candidates1 + 2.0 * D * (result.active1 + result.unstable1);
    const double columns = result.inherited2 + candidates2, recentring = result.from_root ? 0 : D;
    return lines + columns * (recentring + A * (result.active1 - result.inherited1)) +
           (result.bounded ? double(candidates2) * (A + 2) * result.unstable1 : 0);
  });
  block.sync();
  return *memory.folded;
}

// Loads the panels of columns first .. first + count - 1 (at most kPanel) of layer 2's list: the affine rows, unstable
// units row .. row + rows - 1 of layer 1, and the outputs. The rest of a panel is 0.
template <class T, int D, int K, class Block>
SCP_DEVICE void load_panel(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                           const FoldMemory<T, D, K>& memory, int first, int count, int row, int rows) {
  constexpr int A = kAffineTerms<D>;
  static_assert(kThreads % kPanel == 0 && kThreads % K == 0, "a thread keeps to one column of either panel");
  // Loads are batched: none waits for another, or for its use.
  constexpr int kBatch = 4, kRowStep = kThreads / kPanel, kOutputStep = kThreads / K;
  block.sync();
  const int t = block.thread(), q = t % kPanel, k = q < count ? memory.unit2[first + q] : -1;
  for (int r = t / kPanel; r < A; r += kRowStep)
    memory.rows[r * kPanelStride + q] = k < 0 ? T(0) : memory.x[r * net.h2 + k];
  SCP_NO_UNROLL
  for (int start = t / kPanel; start < rows; start += kBatch * kRowStep) {
    T values[kBatch];
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int r = start + i * kRowStep;
      values[i] = 0;
      if (r < rows && k >= 0) values[i] = net.w2t[int64_t(memory.unit1[folded.active1 + row + r]) * net.h2 + k];
    }
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int r = start + i * kRowStep;
      if (r < rows) memory.rows[(A + r) * kPanelStride + q] = values[i];
    }
  }
  const int j = t % K, n = memory.offset[j];
  SCP_NO_UNROLL
  for (int start = t / K; start < kPanel; start += kBatch * kOutputStep) {
    T values[kBatch];
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int p = start + i * kOutputStep;
      values[i] = 0;
      if (p < count && n >= 0) values[i] = net.w3t[int64_t(memory.unit2[first + p]) * net.nc + n];
    }
    SCP_UNROLL
    for (int i = 0; i < kBatch; ++i) memory.outputs[(start + i * kOutputStep) * memory.kOutputStride + j] = values[i];
  }
  block.sync();
}

// Step 4: cf of the outputs that `offset` names, w_r included. Rows beyond the affine ones only where layer 2 is
// classified.
template <class T, int D, int K, class Block>
SCP_DEVICE void fold_outputs(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                             const Parent<T, D>& parent, const FoldMemory<T, D, K>& memory) {
  constexpr int A = kAffineTerms<D>;
  constexpr int kQuads = K / 4;
  const int rows = folded.bounded ? A + folded.unstable1 : A;
  const int newly1 = folded.active1 - folded.inherited1;
  count(block, net, SCP_REPORT_BUILD_MACS, [&] {
    return double(folded.active2 - folded.inherited2) * rows * K + (folded.from_root ? 0 : K * (D + A * newly1));
  });
  block.sync();
  // The parent's cf, recentred, with the newly active units of layer 1 folded into the affine rows.
  SCP_NO_UNROLL
  for (int i = block.thread(); i < rows * K; i += kThreads) {
    const int n = memory.offset[i % K], r = i / K;
    T value = 0;
    if (n >= 0 && folded.from_root) {
      value = r == 0 ? net.b3[n] + net.residual[n] : T(0);
    } else if (n >= 0) {
      const T* const cf = parent.cf + n;
      const int row = r < A ? r : A + memory.place1[newly1 + r - A];
      value = cf[int64_t(row) * net.nc];
      if (r == 0)
        for (int axis = 0; axis < D; ++axis)
          value = multiply_add(memory.shift[axis], cf[int64_t(1 + axis) * net.nc], value);
      SCP_UNROLL_BY_4
      for (int q = 0; q < (r < A ? newly1 : 0); ++q)
        value = multiply_add(memory.line[(folded.inherited1 + q) * 4 + r], cf[int64_t(A + memory.place1[q]) * net.nc],
                             value);
    }
    memory.cf[i] = value;
  }
  for (int first = folded.inherited2; first < folded.active2; first += kPanel) {
    const int count = folded.active2 - first < kPanel ? folded.active2 - first : kPanel;
    load_panel<T, D, K>(block, net, folded, memory, first, count, 0, rows - A);
    SCP_NO_UNROLL
    for (int task = block.thread(); task < rows * kQuads; task += kThreads) {
      const int r = task / kQuads, j = task % kQuads * 4;
      Quad<T> sum = quad(memory.cf + r * K + j);
      SCP_UNROLL_BY_8
      for (int q = 0; q < count; ++q) {
        const T source = memory.rows[r * kPanelStride + q];
        const Quad<T> weight = quad(memory.outputs + q * memory.kOutputStride + j);
        for (int i = 0; i < 4; ++i) sum.v[i] = multiply_add(source, weight.v[i], sum.v[i]);
      }
      quad(memory.cf + r * K + j) = sum;
    }
  }
  block.sync();
}

// The affine function with coefficients c[0 .. D] at a pixel: the same rounding wherever it is evaluated, because the
// sign of its value decides.
template <class T, int D>
SCP_DEVICE T affine_at(const T (&c)[4], const T (&position)[D]) {
  T value = c[0];
  for (int axis = 0; axis < D; ++axis) value = multiply_add(c[1 + axis], position[axis], value);
  return value;
}

// sum[first .. first + 7] += row[0 .. 7] * basis.
template <class T, int N>
SCP_DEVICE void add_row(const T* row, T basis, T (&sum)[N], int first = 0) {
  const Quad<T> low = quad(row), high = quad(row + 4);
  for (int i = 0; i < 4; ++i) sum[first + i] = multiply_add(basis, low.v[i], sum[first + i]);
  for (int i = 0; i < 4; ++i) sum[first + 4 + i] = multiply_add(basis, high.v[i], sum[first + 4 + i]);
}

// z of columns q .. q + kColumns - 1 of the present panel at a pixel: the affine rows first, then unstable units
// row .. row + rows - 1 of layer 1.
template <class T, int D, int K>
SCP_DEVICE void start_columns(const FoldMemory<T, D, K>& memory, int q, const T (&position)[D], T (&z)[kColumns]) {
  for (int i = 0; i < kColumns; ++i) z[i] = 0;
  for (int a = 0; a < kAffineTerms<D>; ++a)
    add_row(memory.rows + a * kPanelStride + q, a == 0 ? T(1) : position[a - 1], z);
}
template <class T, int D, int K>
SCP_DEVICE void add_to_columns(const Folded& folded, const FoldMemory<T, D, K>& memory, int q, int row, int rows,
                               const T (&position)[D], T (&z)[kColumns]) {
  constexpr int A = kAffineTerms<D>;
  for (int u = 0; u < rows; ++u) {
    const T basis = relu(affine_at<T, D>(quad(memory.line + (folded.active1 + row + u) * 4).v, position));
    add_row(memory.rows + (A + u) * kPanelStride + q, basis, z);
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
