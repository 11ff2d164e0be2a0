// Gradients of Phi's parameters from the pixels of one box, by one block: the adjoints of "Leaf" and of "Fold" in
// docs/tile_linear.md, where the parent is the root.
//
// An unstable unit u of layer 1 is an affine function on its half of the box:
//   relu(l_u) = 1[l_u > 0] (c_u + a_u di + b_u dj).
// So all that is needed of a quantity g over the box (gW[n], or gz_k of an unstable unit of layer 2) is its sums
// against 1, di, dj: over the whole box, and over the half of every unstable u. With S those sums of gW, and
// g_cf[u, n] = (c, a, b)_u . S[u, :, n] for an unstable u, S[0, :, n] for the affine rows, an active unit k of layer 2
// has
//   gW3[n, k] = A2[:, k] . g_cf[:, n],  gA2[:, k] = g_cf W3[:, k],
// and adds A2[u, k] S[u, :, :] W3[:, k] to the moments of g_l(u). Nothing of it needs the folded outputs.
#ifndef SCP_CUDA_GRADIENTS_H
#define SCP_CUDA_GRADIENTS_H

#include "partial_gradients.h"
#include "pixel_sums.h"

namespace scp {
namespace SCP_NAMESPACE {

// *to = value for the first outputs, += value for the later ones.
template <class T>
SCP_DEVICE void accumulate(T* to, T value, int first_output) {
  *to = first_output == 0 ? value : *to + value;
}

// Active units of layer 2: columns first_active .. count - 1 of the panel at `start` of its list.
template <class T, int D, class Block>
SCP_DEVICE void differentiate_active(Block& block, const DeviceNetwork<T>& net, const Folded& folded, int first,
                                     int width, int start, int first_active, int count,
                                     const GradientMemory<T, D>& memory, const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>, kRows = GradientMemory<T, D>::kSumRows;
  static_assert((1 << kLogPanel) == kWarp, "a lane has a column");
  const auto& fold_memory = memory.fold;
  const int t = block.thread(), lane = t % kWarp, m1 = folded.unstable1, stride = fold_memory.panel_stride();
  const bool active = lane >= first_active && lane < count;
  const int k = active ? fold_memory.unit2[start + lane] : 0;
  const T* const column = fold_memory.rows + lane;
  // gW3, four outputs at a time.
  SCP_NO_UNROLL
  for (int j = t / kWarp * 4; j < width; j += kWarps * 4) {
    Quad<T> sum{};
    const auto add = [&](int row, const T* gradient) {
      const Quad<T> g = quad(gradient + j);
      for (int i = 0; i < 4; ++i) sum.v[i] = multiply_add(column[row * stride], g.v[i], sum.v[i]);
    };
    for (int a = 0; a < A; ++a) add(a, memory.sums + a * kGradients);
    SCP_UNROLL_BY_4
    for (int u = 0; u < m1; ++u) add(A + u, memory.sums + ((1 + u) * kRows + A) * kGradients);
    T* const to = partial.w3 + int64_t(k) * net.nc + first + j;
    for (int i = 0; i < 4; ++i)
      if (active && j + i < width) to[i] = sum.v[i];
  }
  // gA2, and what these units add to the moments: a part per warp, the last warps first.
  SCP_NO_UNROLL
  for (int part = kWarps - 1 - t / kWarp; part <= m1; part += kWarps) {
    T of_part[A] = {};
    SCP_NO_UNROLL
    for (int j = 0; j < width; j += 4) {
      const Quad<T> weight = quad(fold_memory.outputs + lane * fold_memory.kOutputStride + j);
      for (int a = 0; a < A; ++a) {
        const Quad<T> sum = quad(memory.sums + (part * kRows + a) * kGradients + j);
        for (int i = 0; i < 4; ++i) of_part[a] = multiply_add(weight.v[i], sum.v[i], of_part[a]);
      }
    }
    if (part == 0) {
      for (int a = 0; a < A; ++a)
        if (active) accumulate(partial.z + a * partial.stride + k, of_part[a], first);
      continue;
    }
    const Quad<T> line = line_of_part(folded, fold_memory, part);
    const int row = A + part - 1;
    const T weight = active ? column[row * stride] : T(0);
    T total = 0;
    for (int a = 0; a < A; ++a) {
      total = multiply_add(line.v[a], of_part[a], total);
      const T moment = block.template sum_of_lanes<kWarp>(weight * of_part[a]);
      if (lane == 0) memory.moment_parts[(part - 1) * kHidden * A + a] += moment;
    }
    if (active) accumulate(partial.z + int64_t(row) * partial.stride + k, total, first);
  }
}

// Unstable units of layer 2, pixel by pixel: gz = 1[z > 0] sum_n gW[n] W3[n, k], gW3[n, k] += gW[n] relu(z). Starts
// after a barrier, and ends in one if there are any. `held`: the first panel is in memory, and has all of them.
template <class T, int D, class Block>
SCP_DEVICE void differentiate_unstable(Block& block, const DeviceNetwork<T>& net, const Folded& folded, int first,
                                       int width, bool held, const PixelGrid<T, D>& grid,
                                       const GradientMemory<T, D>& memory, const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>;
  const auto& fold_memory = memory.fold;
  const int t = block.thread(), m1 = folded.unstable1, panel = fold_memory.panel(), quads = (width + 3) / 4;
  T* const grad_hidden = memory.hidden + kHidden * kColumnStride;
  for (int start = 0; start < folded.unstable2; start += panel) {
    const int count = folded.unstable2 - start < panel ? folded.unstable2 - start : panel;
    if (!held) load_panel<T, D, kGradients>(block, net, folded, fold_memory, start, count, 0, m1);
    for (int q = 0; q < count; q += kHidden) {
      const uint16_t* const units = fold_memory.unit2 + start + q;
      const int columns = count - q < kHidden ? count - q : kHidden;
      T position[1][D], z[1][kHidden], grad_z[kHidden] = {};
      grid.position(t, position[0]);
      start_columns(fold_memory, q, position, z);
      add_to_columns(folded, fold_memory, q, 0, m1, position, z);
      SCP_NO_UNROLL
      for (int j = 0; j < width; j += 4) {
        const Quad<T> grad = quad(memory.pixels + place_of_quad(t, j));
        SCP_UNROLL
        for (int i = 0; i < kHidden; ++i) {
          const Quad<T> weight = quad(fold_memory.outputs + (q + i) * fold_memory.kOutputStride + j);
          for (int l = 0; l < 4; ++l) grad_z[i] = multiply_add(weight.v[l], grad.v[l], grad_z[i]);
        }
      }
      SCP_UNROLL
      for (int i = 0; i < kHidden; ++i) {
        memory.hidden[i * kColumnStride + t] = relu(z[0][i]);
        grad_hidden[i * kColumnStride + t] = z[0][i] > 0 ? grad_z[i] : T(0);
      }
      block.sync();
      // gW3 of these columns, four outputs at a time.
      for_each_sum<false>(block, columns * quads, [&](int number, bool first_lane) {
        const int i = number / quads, j = number % quads * 4;
        T sum[4] = {};
        SCP_UNROLL_BY_4
        for (int p = t % kSumLanes; p < kThreads; p += kSumLanes) {
          const T value = memory.hidden[i * kColumnStride + p];
          const Quad<T> gradient = quad(memory.pixels + place_of_quad(p, j));
          for (int l = 0; l < 4; ++l) sum[l] = multiply_add(value, gradient.v[l], sum[l]);
        }
        T* const to = partial.w3 + int64_t(units[i]) * net.nc + first + j;
        for (int l = 0; l < 4; ++l) {
          const T total = block.template sum_of_lanes<kSumLanes>(sum[l]);
          if (first_lane && j + l < width) to[l] = total;
        }
      });
      // gA2 of these columns, and what they add to the moments of unstable units of layer 1.
      for_each_sum<true>(block, (1 + m1) * columns, [&](int number, bool first_lane) {
        const int part = number / columns, i = number % columns, k = units[i];
        const Quad<T> line = line_of_part(folded, fold_memory, part);
        T sum[A][1] = {};
        sum_against_position<1>(
            block, line.v, grid, [&](int p, T(&values)[1]) { values[0] = grad_hidden[i * kColumnStride + p]; }, sum);
        if (!first_lane) return;
        if (part == 0) {
          for (int a = 0; a < A; ++a) accumulate(partial.z + a * partial.stride + k, sum[a][0], first);
          return;
        }
        const int row = A + part - 1;
        const T weight = fold_memory.rows[row * fold_memory.panel_stride() + q + i];
        T* const to = memory.moment_parts + ((part - 1) * kHidden + i) * A;
        T total = 0;
        for (int a = 0; a < A; ++a) {
          total = multiply_add(line.v[a], sum[a][0], total);
          to[a] = multiply_add(weight, sum[a][0], to[a]);
        }
        accumulate(partial.z + int64_t(row) * partial.stride + k, total, first);
      });
      block.sync();
    }
  }
}

// What the sums over all tiles need to know of layer 1: lines of active units, rows of unstable ones; and moments.
// Those of unstable units are the sums of their parts; those of active units come from the gradients of the affine
// rows, which overwrite x. Starts after a barrier.
template <class T, int D, class Block>
SCP_DEVICE void finish_layer1(Block& block, const DeviceNetwork<T>& net, const Folded& folded,
                              const GradientMemory<T, D>& memory, const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>;
  const auto& fold_memory = memory.fold;
  const int t = block.thread(), h2 = net.h2;
  count(block, net, SCP_REPORT_BUILD_MACS,
        [&] { return double(A) * folded.active1 * (folded.active2 + folded.unstable2); });
  SCP_NO_UNROLL
  for (int k = t; k < h2; k += kThreads)
    for (int a = 0; a < A; ++a) fold_memory.x[a * h2 + k] = partial.z[a * partial.stride + k];
  SCP_NO_UNROLL
  for (int q = t; q < folded.unstable1; q += kThreads) {
    const int u = fold_memory.unit1[folded.active1 + q];
    partial.unstable_row[u] = q;
    for (int a = 0; a < A; ++a) {
      T sum = 0;
      for (int i = 0; i < kHidden; ++i) sum += memory.moment_parts[(q * kHidden + i) * A + a];
      partial.moments[u * A + a] = sum;
    }
  }
  block.sync();
  SCP_NO_UNROLL
  for (int q = t; q < folded.active1; q += kThreads) {
    const int u = fold_memory.unit1[q];
    quad(partial.line + u * 4) = quad(fold_memory.line + q * 4);
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
  const double m1 = folded.unstable1, m2 = folded.unstable2, parts = 1 + m1, outputs = (width + 3) / 4 * 4;
  const double column_groups = (folded.unstable2 + kHidden - 1) / kHidden;
  const double of_outputs = parts * outputs * (kPixels * (D / 2. + D) + A);
  const double of_active = folded.active2 * ((A + m1) * outputs + parts * A * outputs + m1 * 2 * A);
  const double z_and_gz = kPixels * column_groups * (kHidden * (A + m1) + D * m1 + kHidden * outputs);
  const double of_unstable = m2 * kPixels * outputs + m2 * parts * kPixels * 2 * D + m1 * m2 * 2 * A;
  return of_outputs + of_active + z_and_gz + of_unstable;
}

// Writes the partial gradients of a box: of the samples of a work item. Returns false, and leaves them zero, if the box
// has more unstable units of layer 1 than it has room for. `kept` is the box once more, in shared memory from the first
// barrier on, where it takes no registers.
//   1. Gather gW of kGradients outputs at each pixel: X and gY are read once.
//   2. Fold Phi on the box (fold.h); beside it, sum gW over the box and the halves of unstable units of layer 1.
//   3. Differentiate active and unstable units of layer 2. Steps 1 to 3 (but for folding) again for each kGradients
//      outputs.
//   4. Finish layer 1.
template <class T, int D, class Block>
SCP_DEVICE bool differentiate(Block& block, const GradientInputs<T, D>& of, int64_t item, const Box<D>& box,
                              const Box<D>& kept, const Parent<T, D>& parent, const GradientMemory<T, D>& memory,
                              const PartialGradients<T, D>& partial) {
  constexpr int A = kAffineTerms<D>;
  const DeviceNetwork<T>& net = of.net;
  const int t = block.thread();
  const double* coefficients = net.coefficients + of.partition.group(item) * net.h1 * (of.tiling.dims + 1);
  const auto& fold_memory = memory.fold;
  const auto width_at = [&](int first) { return net.nc - first < kGradients ? net.nc - first : kGradients; };
  gather_outputs(block, of, item, box, 0, width_at(0), memory);
  zero(block, memory.moment_parts, int64_t(fold_memory.unstable_capacity) * kHidden * A);
  const Folded& folded =
      fold<true>(block, net, coefficients, of.tiling.dims, box, false, parent, fold_memory, [&](const Folded& layer1) {
        clear(block, net, partial, layer1.bounded ? A + layer1.unstable1 : A);
        if (layer1.bounded) sum_outputs(block, layer1, width_at(0), PixelGrid<T, D>(of.tiling, kept), memory);
      });
  if (!folded.bounded) return false;
  if (t == 0)
    for (int axis = 0; axis < D; ++axis) partial.centre[axis] = kept.centre(axis);
  const PixelGrid<T, D> grid(of.tiling, kept);
  for (int first = 0; first < net.nc; first += kGradients) {
    const int width = width_at(first);
    count(block, net, SCP_REPORT_LEAF_MACS, [&] { return part_macs<D>(folded, width); });
    if (first > 0) {
      gather_outputs(block, of, item, kept, first, width, memory);
      block.sync();
      sum_outputs(block, folded, width, grid, memory);
      block.sync();
    }
    for_each_active_panel(block, net, folded, fold_memory, folded.unstable1, [&](int start, int from, int end) {
      differentiate_active(block, net, folded, first, width, start, from, end, memory, partial);
    });
    SCP_NO_UNROLL
    for (int j = t; j < width; j += kThreads) partial.b3[first + j] = memory.sums[j];
    block.sync();
    differentiate_unstable(block, net, folded, first, width, first_panel_is_loaded(folded, fold_memory), grid, memory,
                           partial);
  }
  finish_layer1(block, net, folded, memory, partial);
  return true;
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
