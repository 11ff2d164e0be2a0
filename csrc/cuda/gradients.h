// Gradients of Phi's parameters from the pixels of one box, by one block: the adjoints of "Leaf" and of "Fold" in
// docs/tile_linear.md, where the parent is the root.
//
// An unstable unit u of layer 1 is an affine function on its half of the box:
//   relu(l_u) = 1[l_u > 0] (c_u + a_u di + b_u dj).
// So all that is needed of a quantity g over the box (gW[n], or gz_k of an unstable unit of layer 2) is its sums
// against 1, di, dj: over the whole box, and over the half of every unstable u. From these follow g_cf, gA2, and the
// moments of g_l(u), which are cf[u, :] and A2[u, :] times them.
#ifndef SCP_CUDA_GRADIENTS_H
#define SCP_CUDA_GRADIENTS_H

#include "partial_gradients.h"
#include "supertile.h"

namespace scp {
namespace SCP_NAMESPACE {

// Outputs of Phi whose gradients a thread holds at a time.
constexpr int kGradients = 16;
constexpr int kGradientStride = kGradients + 4;
constexpr int kPairs = kGradients / 2;
// Lanes that share a sum over pixels: sums are fewer than threads.
constexpr int kSumLanes = 8, kSumsAtATime = kThreads / kSumLanes, kPixelsPerLane = kThreads / kSumLanes;
// Distance of the columns of layer 2 in shared memory, a number of pixels each: 8 more, so that kSumLanes pixels of
// neighbouring columns lie in different banks.
constexpr int kColumnStride = kThreads + 8;
static_assert(kPairs == kColumns, "partial moments have one place for each pair of outputs, or column");

template <class T, int D>
struct GradientMemory {
  T* pixels;  // [kThreads, kGradientStride]: a pixel's gW, then its index - centre on each axis
  T* hidden;  // [kColumns, kColumnStride]: relu(z) of some unstable columns, then their gz
  FoldMemory<T, D, kGradients> fold;
  T* outputs;       // [A + unstable_capacity, kGradients]: g_cf, which takes cf's place
  T* moment_parts;  // [unstable_capacity, kColumns, A]: parts of the moments of unstable units

  // Arrays of fixed size come first: their addresses are constants, and take no register.
  SCP_HD GradientMemory(BumpAllocator& allocator, int h1, int h2, int most)
      : pixels(allocator.allocate<T>(kThreads * kGradientStride)),
        hidden(allocator.allocate<T>(kColumns * kColumnStride)),
        fold(allocator, h1, h2, most),
        outputs(fold.cf),
        moment_parts(allocator.allocate<T>(int64_t(most) * kColumns * kAffineTerms<D>)) {}
};

// What gradients are computed from: Phi and the tensors, for all boxes.
template <class T, int D>
struct GradientInputs {
  DeviceNetwork<T> net;
  Tiling<D> tiling;
  View<D> features, grad_logits;
  int channels;
  WorkPartition partition;
  Supertiles<T, D> supertiles;
};

// gW[n, c] = sum_b gY[b, n] X[b, c] of outputs first .. first + count - 1 at a pixel.
template <class T, int D, class S>
SCP_DEVICE void gather(const GradientInputs<T, D>& of, const int (&index)[D], int64_t b_first, int64_t b_end, int first,
                       int count, T (&grad)[kGradients]) {
  for (int64_t b = b_first; b < b_end; ++b) {
    const S* const x = of.features.template at<S>(b, index);
    const S* g = of.grad_logits.template at<S>(b, index) + first / of.channels * of.grad_logits.channel;
    int c = first % of.channels;
    const S* next = x + c * of.features.channel;
    SCP_UNROLL
    for (int start = 0; start < kGradients; start += 8) {
      if (start >= count) break;
      S values[8], grads[8];  // loaded before any is converted or used: no load waits for another
      SCP_UNROLL
      for (int j = 0; j < 8; ++j) {
        values[j] = grads[j] = S{};
        if (start + j < count) values[j] = *next, grads[j] = *g;
        next += of.features.channel;
        if (++c == of.channels) c = 0, next = x, g += of.grad_logits.channel;
      }
      SCP_UNROLL
      for (int j = 0; j < 8; ++j)
        grad[start + j] = multiply_add(load_as<T>(&grads[j]), load_as<T>(&values[j]), grad[start + j]);
    }
  }
}

// Sums of values[pixel * stride + 0 .. N - 1] against 1 and the coordinates, over the pixels where `line` is positive;
// by kSumLanes lanes, each of which gets the sums.
template <class T, int D, int N, class Block>
SCP_DEVICE void sum_against_position(Block& block, const T (&line)[4], const T* pixels, const T* values, int stride,
                                     T (&sum)[kAffineTerms<D>][N]) {
  const int lane = block.thread() % kSumLanes;
  SCP_UNROLL_BY_4
  for (int i = 0; i < kPixelsPerLane; ++i) {
    const int p = i * kSumLanes + lane;
    const Quad<T> packed = quad(pixels + p * kGradientStride + kGradients);
    T position[D];
    for (int axis = 0; axis < D; ++axis) position[axis] = packed.v[axis];
    const bool positive = affine_at<T, D>(line, position) > 0;
    for (int j = 0; j < N; ++j) {
      const T value = positive ? values[p * stride + j] : T(0);
      sum[0][j] += value;
      for (int axis = 0; axis < D; ++axis) sum[1 + axis][j] = multiply_add(value, position[axis], sum[1 + axis][j]);
    }
  }
  for (int a = 0; a < kAffineTerms<D>; ++a)
    for (int j = 0; j < N; ++j) sum[a][j] = block.template sum_of_lanes<kSumLanes>(sum[a][j]);
}

// Calls body(number, first) for each of `count` sums, by kSumLanes lanes; `first` is true in one of them. Lanes that
// have no sum repeat the last one, because all lanes of a warp exchange values.
template <class Block, class Body>
SCP_DEVICE void for_each_sum(Block& block, int count, const Body& body) {
  const int t = block.thread();
  SCP_NO_UNROLL
  for (int start = 0; start < count; start += kSumsAtATime) {
    const int number = start + t / kSumLanes;
    body(number < count ? number : count - 1, number < count && t % kSumLanes == 0);
  }
}

// The line of the whole box (part 0), or of unstable unit part - 1.
template <class T, int D, int K>
SCP_DEVICE Quad<T> line_of_part(const Folded& folded, const FoldMemory<T, D, K>& memory, int part) {
  Quad<T> whole{};
  whole.v[0] = 1;
  return part == 0 ? whole : quad(memory.line + (folded.active1 + part - 1) * 4);
}

// g_cf of `width` outputs, and what these add to the moments of unstable units of layer 1.
template <class T, int D, class Block>
SCP_DEVICE void differentiate_outputs(Block& block, const Folded& folded, int width,
                                      const GradientMemory<T, D>& memory) {
  constexpr int A = kAffineTerms<D>;
  const int pairs = (width + 1) / 2;
  for_each_sum(block, (1 + folded.unstable1) * pairs, [&](int number, bool first) {
    const int part = number / pairs, pair = number % pairs, j = pair * 2;
    const Quad<T> line = line_of_part(folded, memory.fold, part);
    T sum[A][2] = {};
    sum_against_position<T, D, 2>(block, line.v, memory.pixels, memory.pixels + j, kGradientStride, sum);
    if (!first) return;
    if (part == 0) {
      for (int a = 0; a < A; ++a)
        for (int i = 0; i < 2; ++i) memory.outputs[a * kGradients + j + i] = sum[a][i];
      return;
    }
    const int row = A + part - 1;
    const T* cf = memory.fold.cf + row * kGradients + j;
    T* const to = memory.moment_parts + ((part - 1) * kColumns + pair) * A;
    for (int a = 0; a < A; ++a) to[a] += cf[0] * sum[a][0] + cf[1] * sum[a][1];
    for (int i = 0; i < 2; ++i) {
      T total = 0;
      for (int a = 0; a < A; ++a) total = multiply_add(line.v[a], sum[a][i], total);
      memory.outputs[row * kGradients + j + i] = total;
    }
  });
  block.sync();
}

// Active units of layer 2, from g_cf: cf = ... + A2[:, k] W3[:, k].
template <class T, int D, class Block>
SCP_DEVICE void differentiate_active(Block& block, const DeviceNetwork<T>& net, const Folded& folded, int first,
                                     int width, const GradientMemory<T, D>& memory,
                                     const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>;
  const auto& fold_memory = memory.fold;
  const int t = block.thread(), rows = A + folded.unstable1;
  for (int start = 0; start < folded.active2; start += kPanel) {
    const int count = folded.active2 - start < kPanel ? folded.active2 - start : kPanel;
    if (start > 0) block.sync();
    load_panel<T, D, kGradients>(block, net, folded, fold_memory, start, count, 0, folded.unstable1);
    SCP_NO_UNROLL
    for (int task = t; task < kPanel * (kGradients / 4); task += kThreads) {
      const int q = task % kPanel, j = task / kPanel * 4;
      if (q >= count) continue;
      Quad<T> sum{};
      SCP_UNROLL_BY_8
      for (int r = 0; r < rows; ++r) {
        const T source = fold_memory.rows[r * kPanelStride + q];
        const Quad<T> g = quad(memory.outputs + r * kGradients + j);
        for (int i = 0; i < 4; ++i) sum.v[i] = multiply_add(source, g.v[i], sum.v[i]);
      }
      T* const to = partial.w3 + int64_t(fold_memory.unit2[start + q]) * net.nc + first + j;
      for (int i = 0; i < 4; ++i)
        if (j + i < width) to[i] = sum.v[i];
    }
    SCP_NO_UNROLL
    for (int task = t; task < rows * kPanel; task += kThreads) {
      const int r = task / kPanel, q = task % kPanel;
      if (q >= count) continue;
      T sum = 0;
      for (int j = 0; j < kGradients; j += 4) {
        const Quad<T> weight = quad(fold_memory.outputs + q * fold_memory.kOutputStride + j);
        const Quad<T> g = quad(memory.outputs + r * kGradients + j);
        for (int i = 0; i < 4; ++i) sum = multiply_add(weight.v[i], g.v[i], sum);
      }
      partial.z[int64_t(r) * partial.stride + fold_memory.unit2[start + q]] += sum;
    }
  }
}

// Unstable units of layer 2, pixel by pixel: gz = 1[z > 0] sum_n gW[n] W3[n, k], gW3[n, k] += gW[n] relu(z).
template <class T, int D, class Block>
SCP_DEVICE void differentiate_unstable(Block& block, const DeviceNetwork<T>& net, const Folded& folded, int first,
                                       int width, const T (&position)[D], const T (&grad)[kGradients],
                                       const GradientMemory<T, D>& memory, const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>;
  const auto& fold_memory = memory.fold;
  const int t = block.thread(), m1 = folded.unstable1;
  for (int start = 0; start < folded.unstable2; start += kPanel) {
    const int count = folded.unstable2 - start < kPanel ? folded.unstable2 - start : kPanel;
    if (start == 0) block.sync();
    load_panel<T, D, kGradients>(block, net, folded, fold_memory, folded.active2 + start, count, 0, m1);
    for (int q = 0; q < count; q += kColumns) {
      const uint16_t* const units = fold_memory.unit2 + folded.active2 + start + q;
      T z[kColumns], grad_z[kColumns];
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
        grad_z[i] = z[i] > 0 ? g : T(0);
      }
      block.sync();
      // gW3 of these columns, four outputs at a time.
      const int columns = count - q < kColumns ? count - q : kColumns, quads = (width + 3) / 4;
      for_each_sum(block, columns * quads, [&](int number, bool first_lane) {
        const int i = number / quads, j = number % quads * 4;
        T sum[4] = {};
        SCP_UNROLL_BY_4
        for (int p = t % kSumLanes; p < kThreads; p += kSumLanes) {
          const T value = memory.hidden[i * kColumnStride + p];
          const Quad<T> gradient = quad(memory.pixels + p * kGradientStride + j);
          for (int l = 0; l < 4; ++l) sum[l] = multiply_add(value, gradient.v[l], sum[l]);
        }
        T* const to = partial.w3 + int64_t(units[i]) * net.nc + first + j;
        for (int l = 0; l < 4; ++l) {
          const T total = block.template sum_of_lanes<kSumLanes>(sum[l]);
          if (first_lane && j + l < width) to[l] = total;
        }
      });
      block.sync();
      SCP_UNROLL
      for (int i = 0; i < kColumns; ++i) memory.hidden[i * kColumnStride + t] = grad_z[i];
      block.sync();
      // gA2 of these columns, and what they add to the moments of unstable units of layer 1.
      for_each_sum(block, (1 + m1) * columns, [&](int number, bool first_lane) {
        const int part = number / columns, i = number % columns, k = units[i];
        const Quad<T> line = line_of_part(folded, fold_memory, part);
        T sum[A][1] = {};
        sum_against_position<T, D, 1>(block, line.v, memory.pixels, memory.hidden + i * kColumnStride, 1, sum);
        if (!first_lane) return;
        if (part == 0) {
          for (int a = 0; a < A; ++a) partial.z[int64_t(a) * partial.stride + k] += sum[a][0];
          return;
        }
        const int row = A + part - 1;
        const T weight = fold_memory.rows[row * kPanelStride + q + i];
        T* const to = memory.moment_parts + ((part - 1) * kColumns + i) * A;
        T total = 0;
        for (int a = 0; a < A; ++a) {
          total = multiply_add(line.v[a], sum[a][0], total);
          to[a] = multiply_add(weight, sum[a][0], to[a]);
        }
        partial.z[int64_t(row) * partial.stride + k] += total;
      });
      block.sync();
    }
  }
}

// Moments of layer 1: those of unstable units are the sums of their parts; those of active units come from the
// gradients of the affine rows, which overwrite x.
template <class T, int D, class Block>
SCP_DEVICE void finish_moments(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                               const GradientMemory<T, D>& memory, const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>;
  const auto& fold_memory = memory.fold;
  const int t = block.thread(), h2 = net.h2;
  count(block, net, SCP_REPORT_BUILD_MACS,
        [&] { return double(A) * folded.active1 * (folded.active2 + folded.unstable2); });
  if (folded.unstable2 == 0) block.sync();  // else differentiate_unstable has ended in one
  SCP_NO_UNROLL
  for (int k = t; k < h2; k += kThreads)
    for (int a = 0; a < A; ++a) fold_memory.x[a * h2 + k] = partial.z[a * partial.stride + k];
  SCP_NO_UNROLL
  for (int q = t; q < folded.unstable1; q += kThreads) {
    T* const to = partial.moments + fold_memory.unit1[folded.active1 + q] * A;
    for (int a = 0; a < A; ++a) {
      T sum = 0;
      for (int i = 0; i < kColumns; ++i) sum += memory.moment_parts[(q * kColumns + i) * A + a];
      to[a] = sum;
    }
  }
  block.sync();
  SCP_NO_UNROLL
  for (int q = t; q < folded.active1; q += kThreads) {
    const int u = fold_memory.unit1[q];
    T sum[A] = {};
    SCP_UNROLL_BY_8
    for (int i = 0; i < folded.active2 + folded.unstable2; ++i) {
      const int k = fold_memory.unit2[i];
      const T weight = net.w2[int64_t(k) * net.h1 + u];
      for (int a = 0; a < A; ++a) sum[a] = multiply_add(weight, fold_memory.x[a * h2 + k], sum[a]);
    }
    for (int a = 0; a < A; ++a) partial.moments[u * A + a] = sum[a];
  }
}

// Multiply-adds of `differentiate` for `width` outputs, in its order, without folding.
template <int D>
SCP_DEVICE double part_macs(const Folded& folded, int width) {
  constexpr double A = kAffineTerms<D>, kPixels = kThreads;
  const double m1 = folded.unstable1, m2 = folded.unstable2, parts = 1 + m1,
               column_groups = (folded.unstable2 + kColumns - 1) / kColumns;
  const double pairs = (width + 1) / 2, of_outputs = parts * pairs * kPixels * (D + 2 * D) + m1 * pairs * 4 * A;
  const double of_active = 2 * folded.active2 * (A + m1) * kGradients;
  const double z_and_gz = kPixels * column_groups * (kColumns * (A + m1) + D * m1 + kColumns * kGradients);
  const double of_unstable = m2 * kPixels * ((width + 3) / 4 * 4) + m2 * parts * kPixels * 2 * D + m1 * m2 * 2 * A;
  return of_outputs + of_active + z_and_gz + of_unstable;
}

// Writes the partial gradients of a box: of the samples of a work item. Returns false, and leaves them zero, if the box
// has more unstable units of layer 1 than it has room for.
//   1. Fold Phi on the box (fold.h), and clear the partial gradients.
//   2. For kGradients outputs of Phi at a time:
//      a. gather gW at each pixel: X and gY are read once;
//      b. fold the outputs;
//      c. differentiate the folded outputs, then active and unstable units of layer 2.
//   3. Write down what the sums over all tiles need to know of layer 1: active lines, slots of unstable units.
//   4. Finish the moments of layer 1.
template <class T, int D, class Block>
SCP_DEVICE bool differentiate(Block& block, const GradientInputs<T, D>& of, int64_t item, const Box<D>& box,
                              const Parent<T, D>& parent, const GradientMemory<T, D>& memory,
                              const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>;
  const DeviceNetwork<T>& net = of.net;
  const int t = block.thread();
  const double* coefficients = net.coefficients + of.partition.group(item) * net.h1 * (of.tiling.dims + 1);
  const auto& fold_memory = memory.fold;
  // Step 1.
  const Folded& folded = fold<true>(block, net, coefficients, of.tiling.dims, box, false, parent, fold_memory);
  clear(block, net, partial, folded.bounded ? A + folded.unstable1 : A);
  if (!folded.bounded) return false;
  // The pixel of this thread; a pixel outside of the map has zero gradients.
  int index[D];
  const bool inside = of.tiling.pixel(box, t, index);
  T position[D];
  Quad<T> packed{};
  for (int axis = 0; axis < D; ++axis) packed.v[axis] = position[axis] = T(index[axis] - box.centre(axis));
  quad(memory.pixels + t * kGradientStride + kGradients) = packed;
  if (t == 0)
    for (int axis = 0; axis < D; ++axis) partial.centre[axis] = box.centre(axis);
  zero(block, memory.moment_parts, folded.unstable1 * kColumns * A);
  // Step 2.
  for (int first = 0; first < net.nc; first += kGradients) {
    const int width = net.nc - first < kGradients ? net.nc - first : kGradients;
    T grad[kGradients] = {};
    if (inside) {
      with_dtype<T>(of.features.dtype, [&](auto* type) {
        using S = typename Pointee<decltype(type)>::type;
        gather<T, D, S>(of, index, of.partition.first_sample(item), of.partition.end_sample(item), first, width, grad);
      });
    }
    for (int j = 0; j < kGradients; ++j) memory.pixels[t * kGradientStride + j] = grad[j];
    SCP_NO_UNROLL
    for (int j = t; j < kGradients; j += kThreads) fold_memory.offset[j] = j < width ? first + j : -1;
    count(block, net, SCP_REPORT_LEAF_MACS, [&] { return part_macs<D>(folded, width); });
    block.sync();
    fold_outputs(block, net, folded, fold_memory, width);
    differentiate_outputs(block, folded, width, memory);
    SCP_NO_UNROLL
    for (int j = t; j < width; j += kThreads) partial.b3[first + j] = memory.outputs[j];
    differentiate_active(block, net, folded, first, width, memory, partial);
    differentiate_unstable(block, net, folded, first, width, position, grad, memory, partial);
  }
  // Step 3.
  SCP_NO_UNROLL
  for (int q = t; q < folded.active1 + folded.unstable1; q += kThreads) {
    const int u = fold_memory.unit1[q];
    if (q < folded.active1)
      quad(partial.line + u * 4) = quad(fold_memory.line + q * 4);
    else
      partial.slot[u] = q - folded.active1;
  }
  // Step 4.
  finish_moments(block, net, folded, memory, partial);
  return true;
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
