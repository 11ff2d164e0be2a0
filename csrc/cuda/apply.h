// Y[b, n] = sum_c W[n, c] X[b, c] (+ bias), and its adjoint gX[b, c] = sum_n W[n, c] gY[b, n]: one kernel, in which the
// index that is summed over ("inner") and the one that is kept ("outer") change places.
//
// A block has a tile, and each thread one of its pixels, or two, which what is read from shared memory then serves. It
//   1. folds Phi on the tile's box (fold.h);
//   2. evaluates W at each pixel into registers, kWeights outputs at a time;
//   3. streams the samples: each is read, multiplied with W and written once.
// W never reaches memory.
#ifndef SCP_CUDA_APPLY_H
#define SCP_CUDA_APPLY_H

#include "supertile.h"

namespace scp {
namespace SCP_NAMESPACE {

// Outputs of Phi that a thread holds at a time, of each of its pixels.
constexpr int kWeights = 32;
// Columns of layer 2 whose z it holds at a time, of each of its P pixels.
template <int P>
constexpr int kColumnsAtATime = 8 / P;
// Blocks of Apply that a multiprocessor holds at once, unless shared memory is short: it limits the registers.
template <class T, int D, int P>
constexpr int kApplyBlocksAtOnce = sizeof(T) == 8 ? 2
                                   : D == 2       ? 4
                                                  : 3;  // in volumes four would spill
// Samples whose partial sums are carried over where the inner index does not fit into kWeights.
constexpr int kCarriedSamples = 16;

template <class T, int D>
struct ApplyInputs {
  DeviceNetwork<T> net;
  Tiling<D> tiling;
  View<D> in, out;
  const T* bias;                   // [outer] or null
  int inner, outer;                // C and N, or N and C
  int inner_stride, outer_stride;  // of W: 1 and C, or C and 1
  int inner_part, outer_part;      // indices per part: their product is at most kWeights
  int outer_parts;                 // parts of the outer index, one block each
  WorkPartition partition;
  Supertiles<T, D> supertiles;
  int64_t first_item;
  int unstable_capacity, log_panel;
};

// P pixels per thread; 1 if the inner index has several parts.
template <class T, int D, int P>
struct Apply : ApplyInputs<T, D> {
  template <class Block>
  SCP_DEVICE void operator()(Block& block) const;
};

// What a block works on. In shared memory, because it would take registers for long.
template <int D>
struct ApplyItem {
  Box<D> box;
  int outer_first, outer_count;
  int64_t end_sample;
};

template <class T, int D>
struct ApplyMemory {
  ApplyItem<D>* item;
  FoldMemory<T, D, kWeights> fold;
  T* carry;  // [kCarriedSamples, kThreads], only if the inner index has several parts

  SCP_HD ApplyMemory(BumpAllocator& allocator, const ApplyInputs<T, D>& a)
      : item(allocator.allocate<ApplyItem<D>>(1)),
        fold(allocator, a.net.h1, a.net.h2, a.unstable_capacity, a.log_panel, true),
        carry(allocator.allocate<T>(a.inner > a.inner_part ? kCarriedSamples * kThreads : 0)) {}
};

// W at P pixels: weight j is the output that offset[j] names. W = cf[0] + sum_r cf[r] basis_r + sum_k W3[k] relu(z_k).
template <class T, int D, int P, class Block>
SCP_DEVICE void evaluate_weights(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                                 const FoldMemory<T, D, kWeights>& memory, int width, const T (&position)[P][D],
                                 T (&weight)[P][kWeights]) {
  constexpr int A = kAffineTerms<D>, kTogether = kColumnsAtATime<P>;
  const auto add = [&](const T* row, const T(&basis)[P]) {
    SCP_UNROLL
    for (int j = 0; j < kWeights; j += 8)
      if (j < width) add_row<8>(row + j, basis, weight, j);
  };
  T basis[P];
  // The folded outputs: affine rows, then the unstable units of layer 1.
  SCP_UNROLL
  for (int j = 0; j < kWeights; j += 4) {
    const Quad<T> four = j < width ? quad(memory.cf + j) : Quad<T>{};
    for (int p = 0; p < P; ++p)
      for (int i = 0; i < 4; ++i) weight[p][j + i] = four.v[i];
  }
  for (int axis = 0; axis < D; ++axis) {
    for (int p = 0; p < P; ++p) basis[p] = position[p][axis];
    add(memory.cf + (1 + axis) * kWeights, basis);
  }
  if (folded.bounded) {
    for (int q = 0; q < folded.unstable1; ++q) {
      relu_at(memory.line + (folded.active1 + q) * 4, position, basis);
      add(memory.cf + (A + q) * kWeights, basis);
    }
  }
  // The unstable units of layer 2, panel by panel, unless fold_outputs has left all of them in memory. On an overflow
  // tile layer 1 has more rows than a panel holds: then kTogether columns at a time, by its rows in parts.
  const bool whole = folded.unstable1 <= memory.unstable_capacity;
  const bool held = whole && first_panel_is_loaded(folded, memory);
  const int columns = whole ? memory.panel() : kTogether;
  for (int first = 0; first < folded.unstable2; first += columns) {
    const int count = folded.unstable2 - first < columns ? folded.unstable2 - first : columns;
    T z[P][kTogether];
    int row = 0;
    do {
      const int left = folded.unstable1 - row, rows = left < memory.unstable_capacity ? left : memory.unstable_capacity;
      if (!held) {
        if (first > 0 || row > 0) block.sync();
        load_panel<T, D, kWeights>(block, net, folded, memory, first, count, row, rows);
      }
      for (int q = 0; q < count; q += kTogether) {
        if (row == 0) start_columns(memory, q, position, z);
        add_to_columns(folded, memory, q, row, rows, position, z);
        if (rows == left) {
          SCP_UNROLL
          for (int i = 0; i < kTogether; ++i) {
            for (int p = 0; p < P; ++p) basis[p] = relu(z[p][i]);
            if (q + i < count) add(memory.outputs + (q + i) * memory.kOutputStride, basis);
          }
        }
      }
      row += rows;
    } while (row < folded.unstable1);
  }
}

// Multiply-adds of evaluate_weights per pixel.
template <int D, int P>
SCP_DEVICE double pixel_macs(const Folded& folded, int width) {
  constexpr int kTogether = kColumnsAtATime<P>;
  const int outputs = (width + 7) / 8 * 8, column_groups = (folded.unstable2 + kTogether - 1) / kTogether;
  const int rows = folded.bounded ? folded.unstable1 : 0;
  const double phi = double(D) * rows + double(outputs) * (D + rows);
  return phi + double(column_groups) * (kTogether * (kAffineTerms<D> + folded.unstable1) + D * folded.unstable1) +
         double(outputs) * folded.unstable2;
}

// Samples b_first .. b_end - 1 at a pixel, for the weights [inner_count, outer_count] of one part, inner index first.
template <class T, int D, class S>
SCP_DEVICE void stream(const ApplyInputs<T, D>& a, const T (&weight)[kWeights], const int (&index)[D], int64_t b_first,
                       int64_t b_end, int inner_first, int inner_count, int outer_first, int outer_count, T* carry) {
  const int width = inner_count * outer_count;
  const bool continued = inner_first > 0, complete = inner_first + inner_count == a.inner;
  const S* from = a.in.template at<S>(b_first, index) + inner_first * a.in.channel;
  S* to = a.out.template at<S>(b_first, index);
  T* carried = carry;
  for (int64_t b = b_first; b < b_end; ++b, from += a.in.batch, to += a.out.batch, carried += kThreads) {
    T sum = continued ? *carried : T(0);
    const S single = *from;  // the gradient of one class is multiplied with all channels
    const S* next = from;
    int read = 0, summed = 0, outer = outer_first;
    SCP_UNROLL
    for (int group = 0; group < kWeights; group += 8) {
      if (group < width) {
        S values[8];  // loaded before any is converted or used: no load waits for another
        SCP_UNROLL
        for (int i = 0; i < 8; ++i) {
          values[i] = single;
          if (inner_count > 1 && group + i < width) values[i] = *next;
          next += a.in.channel;
          if (++read == inner_count) read = 0, next = from;
        }
        SCP_UNROLL
        for (int i = 0; i < 8; ++i) {
          if (group + i < width) {
            sum = multiply_add(weight[group + i], load_as<T>(&values[i]), sum);
            if (++summed == inner_count) {
              if (complete)
                store_as<T>(a.bias == nullptr ? sum : sum + a.bias[outer], to + outer * a.out.channel);
              else
                *carried = sum;
              summed = 0, ++outer, sum = 0;
            }
          }
        }
      }
    }
  }
}

template <class T, int D, int P>
template <class Block>
SCP_DEVICE void Apply<T, D, P>::operator()(Block& block) const {
  const Apply& a = *this;
  BumpAllocator allocator(block.shared());
  const ApplyMemory<T, D> memory(allocator, a);
  const int t = block.thread();
  // The tile of this block. Blocks with parts of the same tile are neighbours: they read the same pixels.
  const int64_t item = a.first_item + block.index() / a.outer_parts, group = a.partition.group(item);
  const Box<D> box = a.tiling.box(a.partition.tile(item));
  const int outer_first = int(block.index() % a.outer_parts) * a.outer_part;
  const int outer_count = a.outer - outer_first < a.outer_part ? a.outer - outer_first : a.outer_part;
  const auto choose_outputs = [&](int inner_first, int inner_count, int from, int outer_number) {
    SCP_NO_UNROLL
    for (int j = t; j < kWeights; j += kThreads)
      memory.fold.offset[j] = j < inner_count * outer_number ? (inner_first + j % inner_count) * a.inner_stride +
                                                                   (from + j / inner_count) * a.outer_stride
                                                             : -1;
  };

  // Step 1, which ends in a barrier.
  if (t == 0) *memory.item = {box, outer_first, outer_count, a.partition.end_sample(item)};
  choose_outputs(0, a.inner_part, outer_first, outer_count);
  const Parent<T, D> parent = a.supertiles.parent(a.net, a.tiling, group, a.partition.tile(item));
  const double* coefficients = a.net.coefficients + group * a.net.h1 * (a.tiling.dims + 1);
  const Folded& folded = fold<false>(block, a.net, coefficients, a.tiling.dims, box, *a.net.not_finite != 0, parent,
                                     memory.fold, [](const Folded&) {});

  // Steps 2 and 3, once for all samples if the inner index fits into the registers. Else a turn for each part of it,
  // and a few samples that carry over its sums.
  const bool one_part = P > 1 || a.inner_part == a.inner;
  const int turns = one_part ? 1 : (a.inner + a.inner_part - 1) / a.inner_part;
  const ApplyItem<D>& of = *memory.item;
  for (int64_t b = a.partition.first_sample(item), end; b < of.end_sample; b = end) {
    end = one_part || of.end_sample - b < kCarriedSamples ? of.end_sample : b + kCarriedSamples;
    SCP_NO_UNROLL
    for (int turn = 0; turn < turns; ++turn) {
      const int inner_first = one_part ? 0 : turn * a.inner_part, left = a.inner - inner_first;
      const int inner_count = left < a.inner_part ? left : a.inner_part, width = inner_count * of.outer_count;
      count(block, a.net, SCP_REPORT_LEAF_MACS, [&] { return P * kThreads * pixel_macs<D, P>(folded, width); });
      fold_outputs(block, a.net, folded, memory.fold, width);
      T position[P][D], weight[P][kWeights];
      const PixelGrid<T, D> grid(a.tiling, of.box);
      for (int p = 0; p < P; ++p) grid.position(p * kThreads + t, position[p]);
      evaluate_weights(block, a.net, folded, memory.fold, width, position, weight);
      // The pixels one after another: the code for one of them is long.
      SCP_NO_UNROLL
      for (int p = 0; p < P; ++p) {
        int index[D];
        if (a.tiling.pixel(of.box, p * kThreads + t, index)) {
          with_dtype<T>(a.in.dtype, [&](auto* type) {
            using S = typename Pointee<decltype(type)>::type;
            stream<T, D, S>(a, weight[0], index, b, end, inner_first, inner_count, of.outer_first, of.outer_count,
                            memory.carry + t);
          });
        }
        SCP_UNROLL
        for (int later = 1; later < P; ++later)
          for (int j = 0; j < kWeights; ++j) weight[later - 1][j] = weight[later][j];
      }
      if (one_part) continue;
      const int next = turn + 1 < turns ? (turn + 1) * a.inner_part : 0;
      choose_outputs(next, a.inner - next < a.inner_part ? a.inner - next : a.inner_part, of.outer_first,
                     of.outer_count);
      block.sync();
    }
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
