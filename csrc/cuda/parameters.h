// Gradients of Phi's parameters from the pixels of one box, by one block: tile_linear's "Leaf, backward" and "Pull",
// where the parent is the root.
//
// A mixed unit u of layer 1 is an affine function on its half of the box: relu(l_u) = 1[l_u > 0] (c_u + a_u di + b_u
// dj). So all that is needed of a quantity g over the box (gW[n], or gz_k of a mixed unit of layer 2) is, for the whole
// box and for the half of every mixed u, its sums against 1, di, dj. From these follow g_cf and gA2, and the moments of
// g_l(u), which are cf[u, :] and A2[u, :] times them.
#ifndef SCP_CUDA_PARAMETERS_H
#define SCP_CUDA_PARAMETERS_H

#include "fold.h"

namespace scp {
namespace SCP_NAMESPACE {

// Outputs of Phi whose gradients a thread holds at a time.
constexpr int kGradients = 16;
constexpr int kGradientStride = kGradients + 4;
constexpr int kPairs = kGradients / 2;
// Distance of the columns of layer 2 in shared memory, a number of pixels each.
constexpr int kColumnStride = kThreads + 1;
static_assert(kPairs == kColumns, "partial moments have one place for each pair of outputs, or column");
// Boxes that wait while a tile is cut: a tile can be halved seven times.
constexpr int kMostCuts = 8;

// `slot` of a Record for units of layer 1 that are not mixed.
constexpr int kNoSlot = -1;

// What one box contributes, in global memory: sums over many boxes are then made in a fixed order.
template <class T, int D>
struct Record {
  T* z;            // [A + most_mixed, h2]: gradients of the affine rows of layer 2, then of W2's rows of mixed units
  T* w3;           // [h2, nc]
  T* line;         // [h1, 4]: of units that are on, 0 of others
  T* moments;      // [h1, A]: of the pre-activations' gradients, about the centre
  T* b3;           // [nc]
  int* slot;       // [h1]: number of a mixed unit, or kNoSlot
  double* centre;  // [D]

  SCP_HD Record(Carver& from, int h1, int h2, int nc, int most_mixed) {
    z = from.take<T>(int64_t(kAffineRows<D> + most_mixed) * h2);
    w3 = from.take<T>(int64_t(h2) * nc);
    line = from.take<T>(int64_t(h1) * 4);
    moments = from.take<T>(int64_t(h1) * kAffineRows<D>);
    b3 = from.take<T>(nc);
    slot = from.take<int>(h1);
    centre = from.take<double>(D);
  }
};

// Sums of boxes that no record can hold: whole gradients.
template <class T, int D>
struct Sums {
  T* w2t;  // [h1, h2]
  T* w3;   // [h2, nc]
  T* b2;
  T* b3;
  double* moments;  // [G, h1, A], about the origin: of 1, then of the index on each axis

  SCP_HD Sums(Carver& from, int64_t groups, int h1, int h2, int nc) {
    w2t = from.take<T>(int64_t(h1) * h2);
    w3 = from.take<T>(int64_t(h2) * nc);
    b2 = from.take<T>(h2);
    b3 = from.take<T>(nc);
    moments = from.take<double>(groups * h1 * kAffineRows<D>);
  }
};

template <class T, int D>
struct Parameters {
  Network<T> net;
  Tiling<D> tiling;
  View<D> features, grad_logits;
  int classes, channels;
  int64_t groups;
  Shares shares;  // a record each
  int most_mixed;
  bool crowded_pass;    // the tiles that the rounds have marked as crowded; else a round, one share a block
  int64_t first_share;  // of the round, over all position maps
  int* crowded;         // [shares]: 1 where a tile has more mixed units than a record has room for
  int* any_crowded;
  char* records;  // one for each share of a round
  int64_t record_bytes;
  char* sums;  // one for each block that works on crowded tiles
  int64_t sums_bytes;
  int sums_count;

  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;

  SCP_HD Record<T, D> record(int64_t number) const {
    Carver carver(records + number * record_bytes);
    return Record<T, D>(carver, net.h1, net.h2, net.nc, most_mixed);
  }
  SCP_HD Sums<T, D> sum(int64_t number) const {
    Carver carver(sums + number * sums_bytes);
    return Sums<T, D>(carver, groups, net.h1, net.h2, net.nc);
  }
};

// Where a block is in its tiles: in shared memory, because it would take registers all the while that a box is worked
// on.
template <int D>
struct Walk {
  int64_t share;
  int waiting;              // boxes of the tile that are still to be visited ...
  Box<D> boxes[kMostCuts];  // ... the last one first
};

template <class T, int D>
struct ParametersMemory {
  T* pixels;       // [kThreads, kGradientStride]: a pixel's gW, then its index - centre on each axis
  T* hidden;       // [kColumns, kColumnStride]: relu(z) of some mixed columns ...
  T* grad_hidden;  // ... and gz
  Walk<D>* walk;
  FoldMemory<T, D, kGradients> fold;
  T* outputs;  // [A + most_mixed, kGradients]: g_cf
  T* partial;  // [most_mixed, kColumns, A]: parts of the moments of mixed units

  // What has a fixed size comes first: its address is a constant, and takes no register.
  SCP_HD ParametersMemory(Carver& from, int h1, int h2, int most)
      : pixels(from.take<T>(kThreads * kGradientStride)),
        hidden(from.take<T>(kColumns * kColumnStride)),
        grad_hidden(from.take<T>(kColumns * kColumnStride)),
        walk(from.take<Walk<D>>(1)),
        fold(from, h1, h2, most),
        outputs(from.take<T>(int64_t(kAffineRows<D> + most) * kGradients)),
        partial(from.take<T>(int64_t(most) * kColumns * kAffineRows<D>)) {}
};

// gW[n, c] = sum_b gY[b, n] X[b, c] of outputs first .. first + count - 1 at a pixel.
template <class T, int D, class S>
SCP_DEVICE void gather(const Parameters<T, D>& p, const int (&index)[D], int64_t b_first, int64_t b_end, int first,
                       int count, T (&found)[kGradients]) {
  for (int64_t b = b_first; b < b_end; ++b) {
    const S* const x = p.features.template at<S>(b, index);
    const S* g = p.grad_logits.template at<S>(b, index) + first / p.channels * p.grad_logits.channel;
    int c = first % p.channels;
    const S* next = x + c * p.features.channel;
    T grad = load_as<T>(g);
    SCP_UNROLL
    for (int j = 0; j < kGradients; ++j) {
      if (j < count) found[j] = multiply_add(grad, load_as<T>(next), found[j]);
      next += p.features.channel;
      if (++c == p.channels) {
        c = 0, next = x;
        if (j + 1 < count) g += p.grad_logits.channel, grad = load_as<T>(g);
      }
    }
  }
}

// Sums of values[pixel * stride + 0 .. N - 1] against 1 and the coordinates, over the pixels where `line` is positive.
template <class T, int D, int N>
SCP_DEVICE void sum_against_position(const T (&line)[4], const T* pixels, const T* values, int stride,
                                     T (&sum)[kAffineRows<D>][N]) {
  SCP_UNROLL_BY_4
  for (int p = 0; p < kThreads; ++p) {
    const Quad<T> packed = quad(pixels + p * kGradientStride + kGradients);
    T position[D];
    for (int axis = 0; axis < D; ++axis) position[axis] = packed.v[axis];
    const bool counts = affine_at<T, D>(line, position) > 0;
    for (int j = 0; j < N; ++j) {
      const T value = counts ? values[p * stride + j] : T(0);
      sum[0][j] += value;
      for (int axis = 0; axis < D; ++axis) sum[1 + axis][j] = multiply_add(value, position[axis], sum[1 + axis][j]);
    }
  }
}

// The line of the whole box (part 0), or of mixed unit part - 1.
template <class T, int D, int K>
SCP_DEVICE Quad<T> line_of_part(const Folded& folded, const FoldMemory<T, D, K>& memory, int part) {
  Quad<T> whole{};
  whole.v[0] = 1;
  return part == 0 ? whole : quad(memory.line + (folded.on1 + part - 1) * 4);
}

// A record that adds nothing to any sum.
template <class T, int D, class Block>
SCP_DEVICE void clear(Block& block, const Parameters<T, D>& p, const Record<T, D>& record, int rows) {
  const int t = block.thread(), h1 = p.net.h1, h2 = p.net.h2, nc = p.net.nc;
  SCP_NO_UNROLL
  for (int64_t i = t; i < int64_t(rows) * h2; i += kThreads) record.z[i] = 0;
  SCP_NO_UNROLL
  for (int64_t i = t; i < int64_t(h2) * nc; i += kThreads) record.w3[i] = 0;
  SCP_NO_UNROLL
  for (int i = t; i < h1; i += kThreads) record.slot[i] = kNoSlot, quad(record.line + i * 4) = Quad<T>{};
  SCP_NO_UNROLL
  for (int i = t; i < h1 * kAffineRows<D>; i += kThreads) record.moments[i] = 0;
  SCP_NO_UNROLL
  for (int i = t; i < nc; i += kThreads) record.b3[i] = 0;
  if (t == 0)
    for (int axis = 0; axis < D; ++axis) record.centre[axis] = 0;
}

// Multiply-adds of `differentiate` for `width` outputs, in its order; what is folded apart.
template <int D>
SCP_DEVICE double part_macs(const Folded& folded, int width) {
  constexpr double A = kAffineRows<D>, kPixels = kThreads;
  const double m1 = folded.mixed1, m2 = folded.mixed2, parts = 1 + m1,
               chunks = (folded.mixed2 + kColumns - 1) / kColumns;
  const double of_outputs = parts * kPairs * kPixels * (D + 2 * D) + m1 * kPairs * 4 * A;
  const double of_on = 2 * folded.on2 * (A + m1) * kGradients;
  const double z_and_gz = kPixels * chunks * (kColumns * (A + m1) + D * m1 + kColumns * kGradients);
  const double of_mixed = m2 * kPixels * width + m2 * parts * kPixels * 2 * D + m1 * m2 * 2 * A;
  return of_outputs + of_on + z_and_gz + of_mixed;
}

// Fills the record of a box, or clears it and returns false: the box has too many mixed units of layer 1.
template <class T, int D, class Block>
SCP_DEVICE bool differentiate(Block& block, const Parameters<T, D>& p, int64_t share, const Box<D>& box,
                              const ParametersMemory<T, D>& memory, const Record<T, D>& record) {
  constexpr int A = kAffineRows<D>;
  const Network<T>& net = p.net;
  const int t = block.thread(), h1 = net.h1, h2 = net.h2, nc = net.nc;
  const double* coefficients = net.coefficients + p.shares.group(share) * h1 * (p.tiling.dims + 1);
  const auto& fold_memory = memory.fold;
  const Folded& folded = fold<T, D, kGradients>(block, net, coefficients, p.tiling.dims, box, false, fold_memory);
  clear(block, p, record, folded.bounded ? A + folded.mixed1 : A);
  if (!folded.bounded) return false;
  const int m1 = folded.mixed1;
  int index[D];
  const bool inside = p.tiling.pixel(box, t, index);
  T position[D];
  Quad<T> packed{};
  for (int axis = 0; axis < D; ++axis) packed.v[axis] = position[axis] = T(index[axis] - box.centre(axis));
  quad(memory.pixels + t * kGradientStride + kGradients) = packed;
  if (t == 0)
    for (int axis = 0; axis < D; ++axis) record.centre[axis] = box.centre(axis);
  SCP_NO_UNROLL
  for (int i = t; i < m1 * kColumns * A; i += kThreads) memory.partial[i] = 0;
  block.sync();
  SCP_NO_UNROLL
  for (int q = t; q < folded.on1 + m1; q += kThreads) {
    const int u = fold_memory.unit1[q];
    if (q < folded.on1)
      quad(record.line + u * 4) = quad(fold_memory.line + q * 4);
    else
      record.slot[u] = q - folded.on1;
  }

  for (int first = 0; first < nc; first += kGradients) {
    const int width = nc - first < kGradients ? nc - first : kGradients;
    T grad[kGradients] = {};
    if (inside) {
      with_dtype<T>(p.features.dtype, [&](auto* type) {
        using S = typename Pointee<decltype(type)>::type;
        gather<T, D, S>(p, index, p.shares.first_sample(share), p.shares.end_sample(share), first, width, grad);
      });
    }
    for (int j = 0; j < kGradients; ++j) memory.pixels[t * kGradientStride + j] = grad[j];
    SCP_NO_UNROLL
    for (int j = t; j < kGradients; j += kThreads) fold_memory.offset[j] = j < width ? first + j : -1;
    count(block, net, SCP_REPORT_LEAF_MACS, [&] { return part_macs<D>(folded, width); });
    fold_outputs<T, D, kGradients>(block, net, folded, fold_memory);

    // g_cf, and the outputs' part of the moments.
    SCP_NO_UNROLL
    for (int task = t; task < (1 + m1) * kPairs; task += kThreads) {
      const int part = task / kPairs, pair = task % kPairs, j = pair * 2;
      const Quad<T> line = line_of_part(folded, fold_memory, part);
      T sum[A][2] = {};
      sum_against_position<T, D, 2>(line.v, memory.pixels, memory.pixels + j, kGradientStride, sum);
      if (part == 0) {
        for (int a = 0; a < A; ++a)
          for (int i = 0; i < 2; ++i) memory.outputs[a * kGradients + j + i] = sum[a][i];
      } else {
        const int row = A + part - 1;
        for (int i = 0; i < 2; ++i) {
          T total = 0;
          for (int a = 0; a < A; ++a) total = multiply_add(line.v[a], sum[a][i], total);
          memory.outputs[row * kGradients + j + i] = total;
        }
        const T* cf = fold_memory.cf + row * kGradients + j;
        T* const to = memory.partial + ((part - 1) * kColumns + pair) * A;
        for (int a = 0; a < A; ++a) to[a] += cf[0] * sum[a][0] + cf[1] * sum[a][1];
      }
    }
    block.sync();
    SCP_NO_UNROLL
    for (int j = t; j < width; j += kThreads) record.b3[first + j] = memory.outputs[j];

    // Units of layer 2 that are on.
    for (int start = 0; start < folded.on2; start += kPanel) {
      const int count = folded.on2 - start < kPanel ? folded.on2 - start : kPanel;
      load_panel<T, D, kGradients>(block, net, folded, fold_memory, start, count, 0, m1);
      SCP_NO_UNROLL
      for (int task = t; task < kPanel * (kGradients / 4); task += kThreads) {
        const int q = task % kPanel, j = task / kPanel * 4;
        if (q >= count) continue;
        Quad<T> sum{};
        SCP_UNROLL_BY_8
        for (int r = 0; r < A + m1; ++r) {
          const T source = fold_memory.rows[r * kPanelStride + q];
          const Quad<T> g = quad(memory.outputs + r * kGradients + j);
          for (int i = 0; i < 4; ++i) sum.v[i] = multiply_add(source, g.v[i], sum.v[i]);
        }
        T* const to = record.w3 + int64_t(fold_memory.unit2[start + q]) * nc + first + j;
        for (int i = 0; i < 4; ++i)
          if (j + i < width) to[i] = sum.v[i];
      }
      SCP_NO_UNROLL
      for (int task = t; task < (A + m1) * kPanel; task += kThreads) {
        const int r = task / kPanel, q = task % kPanel;
        if (q >= count) continue;
        T sum = 0;
        for (int j = 0; j < kGradients; j += 4) {
          const Quad<T> weight = quad(fold_memory.outputs + q * fold_memory.kOutputStride + j);
          const Quad<T> g = quad(memory.outputs + r * kGradients + j);
          for (int i = 0; i < 4; ++i) sum = multiply_add(weight.v[i], g.v[i], sum);
        }
        record.z[int64_t(r) * h2 + fold_memory.unit2[start + q]] += sum;
      }
    }

    // Mixed units of layer 2.
    for (int start = 0; start < folded.mixed2; start += kPanel) {
      const int count = folded.mixed2 - start < kPanel ? folded.mixed2 - start : kPanel;
      load_panel<T, D, kGradients>(block, net, folded, fold_memory, folded.on2 + start, count, 0, m1);
      for (int q = 0; q < count; q += kColumns) {
        T z[kColumns];
        start_columns(fold_memory, q, position, z);
        add_to_columns(folded, fold_memory, q, 0, m1, position, z);
        SCP_UNROLL
        for (int i = 0; i < kColumns; ++i) {
          T g = 0;
          for (int j = 0; j < kGradients; j += 4) {
            const Quad<T> weight = quad(fold_memory.outputs + (q + i) * fold_memory.kOutputStride + j);
            for (int l = 0; l < 4; ++l) g = multiply_add(weight.v[l], grad[j + l], g);
          }
          memory.hidden[i * kColumnStride + t] = relu(z[i]);
          memory.grad_hidden[i * kColumnStride + t] = z[i] > 0 ? g : T(0);
        }
        block.sync();
        SCP_NO_UNROLL
        for (int task = t; task < kColumns * kGradients; task += kThreads) {
          const int i = task / kGradients, j = task % kGradients;
          if (q + i >= count || j >= width) continue;
          T sum = 0;
          SCP_UNROLL_BY_8
          for (int pixel = 0; pixel < kThreads; ++pixel)
            sum =
                multiply_add(memory.hidden[i * kColumnStride + pixel], memory.pixels[pixel * kGradientStride + j], sum);
          record.w3[int64_t(fold_memory.unit2[folded.on2 + start + q + i]) * nc + first + j] = sum;
        }
        SCP_NO_UNROLL
        for (int task = t; task < (1 + m1) * kColumns; task += kThreads) {
          const int part = task / kColumns, i = task % kColumns;
          if (q + i >= count) continue;
          const int k = fold_memory.unit2[folded.on2 + start + q + i];
          const Quad<T> line = line_of_part(folded, fold_memory, part);
          T sum[A][1] = {};
          sum_against_position<T, D, 1>(line.v, memory.pixels, memory.grad_hidden + i * kColumnStride, 1, sum);
          if (part == 0) {
            for (int a = 0; a < A; ++a) record.z[int64_t(a) * h2 + k] += sum[a][0];
          } else {
            const int row = A + part - 1;
            const T weight = fold_memory.rows[row * kPanelStride + q + i];
            T* const to = memory.partial + ((part - 1) * kColumns + i) * A;
            T total = 0;
            for (int a = 0; a < A; ++a) {
              total = multiply_add(line.v[a], sum[a][0], total);
              to[a] = multiply_add(weight, sum[a][0], to[a]);
            }
            record.z[int64_t(row) * h2 + k] += total;
          }
        }
        block.sync();
      }
    }
  }

  count(block, net, SCP_REPORT_BUILD_MACS, [&] { return double(A) * folded.on1 * (folded.on2 + folded.mixed2); });
  // Moments: mixed units by what was gathered, those that are on by the affine rows' gradients, which take x's place.
  block.sync();
  SCP_NO_UNROLL
  for (int i = t; i < A * h2; i += kThreads) fold_memory.x[i] = record.z[i];
  SCP_NO_UNROLL
  for (int q = t; q < m1; q += kThreads) {
    T* const to = record.moments + fold_memory.unit1[folded.on1 + q] * A;
    for (int a = 0; a < A; ++a) {
      T sum = 0;
      for (int i = 0; i < kColumns; ++i) sum += memory.partial[(q * kColumns + i) * A + a];
      to[a] = sum;
    }
  }
  block.sync();
  SCP_NO_UNROLL
  for (int q = t; q < folded.on1; q += kThreads) {
    const int u = fold_memory.unit1[q];
    T sum[A] = {};
    SCP_UNROLL_BY_8
    for (int i = 0; i < folded.on2 + folded.mixed2; ++i) {
      const int k = fold_memory.unit2[i];
      const T weight = net.w2[int64_t(k) * h1 + u];
      for (int a = 0; a < A; ++a) sum[a] = multiply_add(weight, fold_memory.x[a * h2 + k], sum[a]);
    }
    for (int a = 0; a < A; ++a) record.moments[u * A + a] = sum[a];
  }
  return true;
}

// Gradient of W2's row u, columns k .. k + N - 1 (fewer at the end), from one record. Nothing is skipped for units that
// are off: loads that wait for no decision can all be under way.
template <class T, int D, int N>
SCP_DEVICE void add_w2(const Record<T, D>& record, int h2, int u, int k, T (&sum)[N]) {
  constexpr int A = kAffineRows<D>;
  const int slot = record.slot[u], count = h2 - k < N ? h2 - k : N;
  const Quad<T> line = quad(record.line + u * 4);
  for (int a = 0; a < A; ++a)
    for (int i = 0; i < N; ++i)
      if (i < count) sum[i] = multiply_add(line.v[a], record.z[int64_t(a) * h2 + k + i], sum[i]);
  if (slot == kNoSlot) return;
  for (int i = 0; i < N; ++i)
    if (i < count) sum[i] += record.z[int64_t(A + slot) * h2 + k + i];
}

// The moment a of unit u about the origin: a = 0 of 1, then of the index on each axis.
template <class T, int D>
SCP_DEVICE double moment(const Record<T, D>& record, int u, int a) {
  const T* about = record.moments + u * kAffineRows<D>;
  return a == 0 ? double(about[0]) : double(about[a]) + record.centre[a - 1] * double(about[0]);
}

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

template <class T, int D, class Block>
SCP_DEVICE void clear_sums(Block& block, const Parameters<T, D>& p, const Sums<T, D>& sums) {
  const int t = block.thread(), h1 = p.net.h1, h2 = p.net.h2, nc = p.net.nc;
  SCP_NO_UNROLL
  for (int64_t i = t; i < int64_t(h1) * h2; i += kThreads) sums.w2t[i] = 0;
  SCP_NO_UNROLL
  for (int64_t i = t; i < int64_t(h2) * nc; i += kThreads) sums.w3[i] = 0;
  SCP_NO_UNROLL
  for (int i = t; i < h2; i += kThreads) sums.b2[i] = 0;
  SCP_NO_UNROLL
  for (int i = t; i < nc; i += kThreads) sums.b3[i] = 0;
  SCP_NO_UNROLL
  for (int64_t i = t; i < p.groups * h1 * kAffineRows<D>; i += kThreads) sums.moments[i] = 0;
}

template <class T, int D, class Block>
SCP_DEVICE void add_to_sums(Block& block, const Parameters<T, D>& p, const Record<T, D>& record, int64_t group,
                            const Sums<T, D>& sums) {
  constexpr int A = kAffineRows<D>;
  const int t = block.thread(), h1 = p.net.h1, h2 = p.net.h2, nc = p.net.nc;
  count(block, p.net, SCP_REPORT_BUILD_MACS, [&] { return double(A) * h1 * h2; });
  SCP_NO_UNROLL
  for (int64_t i = t; i < int64_t(h1) * h2; i += kThreads) {
    T sum[1] = {sums.w2t[i]};
    add_w2<T, D, 1>(record, h2, int(i / h2), int(i % h2), sum);
    sums.w2t[i] = sum[0];
  }
  SCP_NO_UNROLL
  for (int64_t i = t; i < int64_t(h2) * nc; i += kThreads) sums.w3[i] += record.w3[i];
  SCP_NO_UNROLL
  for (int i = t; i < h2; i += kThreads) sums.b2[i] += record.z[i];
  SCP_NO_UNROLL
  for (int i = t; i < nc; i += kThreads) sums.b3[i] += record.b3[i];
  SCP_NO_UNROLL
  for (int i = t; i < h1 * A; i += kThreads) sums.moments[group * h1 * A + i] += moment<T, D>(record, i / A, i % A);
}

// A round: a block has one share, and marks it if its tile is crowded. After the rounds, a few blocks share the crowded
// tiles: each cuts them into boxes that are not, down to single pixels, and has sums of its own.
template <class T, int D>
template <class Block>
SCP_DEVICE void Parameters<T, D>::operator()(Block& block) const {
  const Parameters& p = *this;
  const int t = block.thread();
  if (p.crowded_pass && *p.any_crowded == 0) return;
  Carver carver(block.shared());
  const ParametersMemory<T, D> memory(carver, p.net.h1, p.net.h2, p.most_mixed);
  const Record<T, D> record = p.record(block.index());
  if (p.crowded_pass) clear_sums(block, p, p.sum(block.index()));
  Walk<D>& walk = *memory.walk;
  if (t == 0) walk.share = p.crowded_pass ? block.index() : p.first_share + block.index();
  for (;;) {
    block.sync();
    if (walk.share >= (p.crowded_pass ? p.groups * p.shares.a_group() : p.first_share + block.index() + 1)) return;
    if (t == 0) {
      walk.waiting = !p.crowded_pass || p.crowded[walk.share] != 0 ? 1 : 0;
      walk.boxes[0] = p.tiling.box(p.shares.tile(walk.share));
    }
    for (;;) {
      block.sync();
      if (walk.waiting == 0) break;
      const Box<D> box = walk.boxes[walk.waiting - 1];
      const bool done = differentiate(block, p, walk.share, box, memory, record);
      block.sync();
      if (p.crowded_pass && done) add_to_sums(block, p, record, p.shares.group(walk.share), p.sum(block.index()));
      if (t > 0) continue;
      if (!p.crowded_pass) p.crowded[walk.share] = !done;
      if (!p.crowded_pass && !done) *p.any_crowded = 1;
      --walk.waiting;
      if (p.crowded_pass && !done) {
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
