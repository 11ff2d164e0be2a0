// What the gradients of Phi's parameters need of a box's pixels: gW = sum_b gY X, gathered once, and sums of it, or of
// other quantities, against 1, di, dj over the box and over the halves where a unit of layer 1 is positive.
#ifndef SCP_CUDA_PIXEL_SUMS_H
#define SCP_CUDA_PIXEL_SUMS_H

#include "supertile.h"

namespace scp {
namespace SCP_NAMESPACE {

// Outputs of Phi whose gradients a block computes at a time.
constexpr int kGradients = 16;
// Unstable units of layer 2 that it evaluates at a time.
constexpr int kHidden = 4;
// Lanes that share a sum over pixels: sums are fewer than threads.
constexpr int kSumLanes = 8, kSumsAtATime = kThreads / kSumLanes, kPixelsPerLane = kThreads / kSumLanes;
// Distance of the columns of layer 2 in shared memory, a number of pixels each: 8 more, so that kSumLanes pixels of
// neighbouring columns lie in different banks.
constexpr int kColumnStride = kThreads + 8;

template <class T, int D>
struct GradientMemory {
  static constexpr int kSumRows = kAffineTerms<D> + 1;

  T* pixels;  // [kThreads, kGradients]: a pixel's gW, four by four in the order of place_of_quad
  T* sums;    // [1 + unstable_capacity, kSumRows, kGradients]: S of the whole box and of unstable units, and their g_cf
  T* hidden;  // in the same place [2, kHidden, kColumnStride]: relu(z) of unstable units of layer 2, and their gz
  FoldMemory<T, D, kGradients> fold;
  T* moment_parts;  // [unstable_capacity, kHidden, A]: parts of the moments of unstable units

  // Arrays of fixed size come first: their addresses are constants, and take no register.
  SCP_HD GradientMemory(BumpAllocator& allocator, int h1, int h2, int most)
      : pixels(allocator.allocate<T>(kThreads * kGradients)),
        sums(allocator.allocate<T>(larger(2 * kHidden * kColumnStride, (1 + most) * kSumRows * kGradients))),
        hidden(sums),
        fold(allocator, h1, h2, most, kLogPanel, false),
        moment_parts(allocator.allocate<T>(int64_t(most) * kHidden * kAffineTerms<D>)) {}

 private:
  SCP_HD static int larger(int a, int b) { return a > b ? a : b; }
};

// Where outputs j .. j + 3 of a pixel lie in `pixels`: kSumLanes neighbours have them in different banks.
SCP_DEVICE int place_of_quad(int pixel, int j) { return pixel * kGradients + ((j / 4) ^ (pixel / 2 % 4)) * 4; }

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
    S of_class{};
    SCP_UNROLL
    for (int start = 0; start < kGradients; start += 8) {
      if (start >= count) break;
      S values[8], grads[8];  // loaded before any is converted or used: no load waits for another
      SCP_UNROLL
      for (int j = 0; j < 8; ++j) {
        values[j] = grads[j] = S{};
        if (start + j < count) {
          values[j] = *next;
          if (j == 0 || c == 0) of_class = *g;
          grads[j] = of_class;
        }
        next += of.features.channel;
        if (++c == of.channels) c = 0, next = x, g += of.grad_logits.channel;
      }
      SCP_UNROLL
      for (int j = 0; j < 8; ++j)
        grad[start + j] = multiply_add(load_as<T>(&grads[j]), load_as<T>(&values[j]), grad[start + j]);
    }
  }
}

// gW of outputs first .. first + width - 1 at this thread's pixel, and which outputs these are. A pixel outside of the
// map has zero gradients.
template <class T, int D, class Block>
SCP_DEVICE void gather_outputs(Block& block, const GradientInputs<T, D>& of, int64_t item, const Box<D>& box, int first,
                               int width, const GradientMemory<T, D>& memory) {
  const int t = block.thread();
  int index[D];
  T grad[kGradients] = {};
  if (of.tiling.pixel(box, t, index)) {
    with_dtype<T>(of.features.dtype, [&](auto* type) {
      using S = typename Pointee<decltype(type)>::type;
      gather<T, D, S>(of, index, of.partition.first_sample(item), of.partition.end_sample(item), first, width, grad);
    });
  }
  SCP_UNROLL
  for (int j = 0; j < kGradients; j += 4) {
    Quad<T> four;
    for (int i = 0; i < 4; ++i) four.v[i] = grad[j + i];
    quad(memory.pixels + place_of_quad(t, j)) = four;
  }
  SCP_NO_UNROLL
  for (int j = t; j < kGradients; j += kThreads) memory.fold.offset[j] = j < width ? first + j : -1;
}

// Sums against 1 and the coordinates, over the pixels where `line` is positive, of the N values that
// values_at(pixel, to) gives; by kSumLanes lanes, each of which gets the sums.
template <int N, class T, int D, class Block, class ValuesAt>
SCP_DEVICE void sum_against_position(Block& block, const T (&line)[4], const PixelGrid<T, D>& grid,
                                     const ValuesAt& values_at, T (&sum)[kAffineTerms<D>][N]) {
  const int lane = block.thread() % kSumLanes;
  SCP_UNROLL_BY_4
  for (int i = 0; i < kPixelsPerLane; ++i) {
    const int p = i * kSumLanes + lane;
    T position[D], values[N];
    grid.position(p, position);
    values_at(p, values);
    const bool positive = affine_at<T, D>(line, position) > 0;
    for (int j = 0; j < N; ++j) {
      const T value = positive ? values[j] : T(0);
      sum[0][j] += value;
      for (int axis = 0; axis < D; ++axis) sum[1 + axis][j] = multiply_add(value, position[axis], sum[1 + axis][j]);
    }
  }
  for (int a = 0; a < kAffineTerms<D>; ++a)
    for (int j = 0; j < N; ++j) sum[a][j] = block.template sum_of_lanes<kSumLanes>(sum[a][j]);
}

// Calls body(number, first) for each of `count` sums, by kSumLanes lanes; `first` is true in one of them. The first
// warps have the first sums, or the last warps. Lanes that have no sum repeat the last one, if their warp has any,
// because all lanes of a warp exchange values.
template <bool kByLastWarps, class Block, class Body>
SCP_DEVICE void for_each_sum(Block& block, int count, const Body& body) {
  constexpr int kSumsPerWarp = kWarp / kSumLanes;
  const int t = block.thread(), warp = kByLastWarps ? kWarps - 1 - t / kWarp : t / kWarp;
  SCP_NO_UNROLL
  for (int start = warp * kSumsPerWarp; start < count; start += kSumsAtATime) {
    const int number = start + t % kWarp / kSumLanes;
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

// S and g_cf of `width` outputs.
template <class T, int D, class Block>
SCP_DEVICE void sum_outputs(Block& block, const Folded& folded, int width, const PixelGrid<T, D>& grid,
                            const GradientMemory<T, D>& memory) {
  constexpr int A = kAffineTerms<D>, kRows = GradientMemory<T, D>::kSumRows;
  const int pairs = (width + 3) / 4 * 2;  // whole fours: what is read later
  for_each_sum<true>(block, (1 + folded.unstable1) * pairs, [&](int number, bool first) {
    const int part = number / pairs, j = number % pairs * 2;
    const Quad<T> line = line_of_part(folded, memory.fold, part);
    T sum[A][2] = {};
    sum_against_position<2>(
        block, line.v, grid,
        [&](int p, T(&values)[2]) {
          const Pair<T> two = pair(memory.pixels + place_of_quad(p, j) + j % 4);
          values[0] = two.v[0], values[1] = two.v[1];
        },
        sum);
    if (!first) return;
    T* const to = memory.sums + part * kRows * kGradients + j;
    for (int i = 0; i < 2; ++i) {
      T total = 0;
      for (int a = 0; a < A; ++a) {
        to[a * kGradients + i] = sum[a][i];
        total = multiply_add(line.v[a], sum[a][i], total);
      }
      to[A * kGradients + i] = total;
    }
  });
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
