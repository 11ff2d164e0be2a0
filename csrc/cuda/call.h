// What kernels know of a call: the network, the map of pixels cut into tiles, and users' tensors with any strides and
// dtype.
#ifndef SCP_CUDA_CALL_H
#define SCP_CUDA_CALL_H

#include "block.h"
#include "common/bound.h"
#include "common/geometry.h"
#include "common/half.h"
#include "scp.h"

namespace scp {
namespace SCP_NAMESPACE {

// Phi in device memory. T is the type that is computed in.
template <class T>
struct DeviceNetwork {
  int h1, h2;
  int nc;        // N*C, outputs of Phi: n*C + c is W[n, c]
  const T* w2;   // [h2, h1]
  const T* w2t;  // [h1, h2]
  const T* b2;   // [h2]
  const T* w3t;  // [h2, nc]
  const T* b3;   // [nc]
  const T* residual;
  const double* coefficients;  // [G, h1, dims + 1]
  const int* not_finite;       // nonzero if some parameter is NaN or infinite
  double* report;              // scp_report, to which executed multiply-adds are added; or null
};

// Adds the multiply-adds of a block to the report, if the caller wants one. One thread evaluates `macs()`.
template <class T, class Block, class Macs>
SCP_DEVICE void count(Block& block, const DeviceNetwork<T>& net, scp_report entry, const Macs& macs) {
  if (net.report != nullptr && block.thread() == 0) block.add(net.report + entry, macs());
}

// The map of pixels cut into tiles of kThreads, and into supertiles of several tiles. Maps of fewer than D axes have
// leading ones of size 1. Tiles are numbered supertile by supertile: those of a supertile, and of a run of supertiles,
// are neighbours.
template <int D>
struct Tiling {
  int dims;  // axes of the user's tensors
  int size[D];
  int log_tile[D];       // binary logarithms of a tile's extents
  int count[D];          // tiles on each axis
  int log_supertile[D];  // binary logarithms of a supertile's extents, in tiles
  int supertile_count[D];
  int64_t tiles, supertiles;

  SCP_HD int first_axis() const { return D - dims; }

  // Where a tile is, in tiles; returns the number of its supertile. A supertile at the end of an axis has fewer tiles.
  SCP_HD int64_t locate(int64_t tile, int (&at)[D]) const {
    int64_t supertile = 0;
    int before = 1;  // tiles of the supertile across the axes before this one
    int within[D];
    for (int axis = 0; axis < D; ++axis) {
      const int64_t slab = tiles_of_slab(axis, before);
      const int number = int(tile / slab);
      tile -= number * slab;
      supertile = supertile * supertile_count[axis] + number;
      at[axis] = number << log_supertile[axis];
      within[axis] = tiles_within(axis, number);
      before *= within[axis];
    }
    int rest = int(tile);
    for (int axis = D - 1; axis >= 0; --axis) at[axis] += rest % within[axis], rest /= within[axis];
    return supertile;
  }
  // The first tile of a supertile, or the number of tiles.
  SCP_HD int64_t first_tile(int64_t supertile) const {
    if (supertile >= supertiles) return tiles;
    int number[D];
    for (int axis = D - 1; axis >= 0; --axis)
      number[axis] = int(supertile % supertile_count[axis]), supertile /= supertile_count[axis];
    int64_t tile = 0;
    int before = 1;
    for (int axis = 0; axis < D; ++axis) {
      tile += number[axis] * tiles_of_slab(axis, before);
      before *= tiles_within(axis, number[axis]);
    }
    return tile;
  }

  SCP_HD Box<D> box(int64_t tile) const {
    int at[D];
    locate(tile, at);
    return box_at(at, log_tile);
  }
  SCP_HD int64_t supertile(int64_t tile) const {
    int at[D];
    return locate(tile, at);
  }
  SCP_HD Box<D> supertile_box(int64_t supertile) const {
    int at[D], log_extent[D];
    for (int axis = D - 1; axis >= 0; --axis) {
      at[axis] = int(supertile % supertile_count[axis]), supertile /= supertile_count[axis];
      log_extent[axis] = log_supertile[axis] + log_tile[axis];
    }
    return box_at(at, log_extent);
  }

  // The index of a tile's pixel number `thread`, counted along the last axis first; false if it lies outside the box.
  SCP_HD bool pixel(const Box<D>& box, int thread, int (&index)[D]) const {
    bool inside = true;
    for (int axis = D - 1; axis >= 0; --axis) {
      index[axis] = box.lower[axis] + (thread & ((1 << log_tile[axis]) - 1));
      inside = inside && index[axis] < box.upper[axis];
      thread >>= log_tile[axis];
    }
    return inside;
  }

 private:
  // Tiles whose supertiles have the same number on an axis, and on all axes before it.
  SCP_HD int64_t tiles_of_slab(int axis, int before) const {
    int64_t result = int64_t(before) << log_supertile[axis];
    for (int later = axis + 1; later < D; ++later) result *= count[later];
    return result;
  }
  SCP_HD int tiles_within(int axis, int number) const {
    const int left = count[axis] - (number << log_supertile[axis]), all = 1 << log_supertile[axis];
    return left < all ? left : all;
  }
  SCP_HD Box<D> box_at(const int (&at)[D], const int (&log_extent)[D]) const {
    Box<D> result;
    for (int axis = 0; axis < D; ++axis) {
      result.lower[axis] = at[axis] << log_extent[axis];
      result.upper[axis] = (at[axis] + 1) << log_extent[axis];
      if (result.upper[axis] > size[axis]) result.upper[axis] = size[axis];
    }
    return result;
  }
};

// The pixels of a box: index - centre by their number, as Tiling::pixel counts them. All of it is exact.
template <class T, int D>
struct PixelGrid {
  const Tiling<D>& tiling;
  T half[D];

  SCP_DEVICE PixelGrid(const Tiling<D>& of, const Box<D>& box) : tiling(of) {
    for (int axis = 0; axis < D; ++axis) half[axis] = T(box.extent(axis) - 1) / 2;
  }
  SCP_DEVICE void position(int pixel, T (&position)[D]) const {
    for (int axis = D - 1; axis >= 0; --axis) {
      position[axis] = T(pixel & ((1 << tiling.log_tile[axis]) - 1)) - half[axis];
      pixel >>= tiling.log_tile[axis];
    }
  }
};

// How the work is partitioned into items, one per block: the tiles of each position map ("group"), and if these are too
// few to fill the device, parts of the samples that share the map.
struct WorkPartition {
  int64_t tiles;    // per group
  int64_t samples;  // per group
  int64_t samples_per_part;
  int64_t parts;

  SCP_HD int64_t items_per_group() const { return tiles * parts; }
  SCP_HD int64_t group(int64_t item) const { return item / items_per_group(); }
  SCP_HD int64_t tile(int64_t item) const { return item / parts % tiles; }
  SCP_HD int64_t first_sample(int64_t item) const { return group(item) * samples + item % parts * samples_per_part; }
  SCP_HD int64_t end_sample(int64_t item) const {
    const int64_t end = first_sample(item) + samples_per_part, last = (group(item) + 1) * samples;
    return end < last ? end : last;
  }
};

// A tensor [batch, channels, *spatial], strides in elements.
template <int D>
struct View {
  void* data;
  int dtype;
  int64_t batch, channel, spatial[D];

  template <class S>
  SCP_DEVICE S* at(int64_t b, const int (&index)[D]) const {
    int64_t offset = b * batch;
    for (int axis = 0; axis < D; ++axis) offset += index[axis] * spatial[axis];
    return static_cast<S*>(data) + offset;
  }
};

// Elements of a user's tensor in the type that is computed in.
template <class T>
SCP_DEVICE T load_as(const float* at) {
  return T(*at);
}
template <class T>
SCP_DEVICE T load_as(const double* at) {
  return T(*at);
}
template <class T, class S>
SCP_DEVICE T load_as(const S* at) {
  return T(to_float(*at));
}
template <class T>
SCP_DEVICE void store_as(T value, float* at) {
  *at = float(value);
}
template <class T>
SCP_DEVICE void store_as(T value, double* at) {
  *at = double(value);
}
template <class T, class S>
SCP_DEVICE void store_as(T value, S* at) {
  from_float(float(value), *at);
}

template <class P>
struct Pointee;
template <class S>
struct Pointee<S*> {
  using type = S;
};

// Calls body with a null pointer of the type that `dtype` names. Features wider than T are not among the calls.
template <class T, class Body>
SCP_DEVICE void with_dtype(int dtype, const Body& body) {
  if (sizeof(T) == 8 && dtype == SCP_FLOAT64) return body(static_cast<double*>(nullptr));
  if (dtype == SCP_FLOAT32) return body(static_cast<float*>(nullptr));
  if (dtype == SCP_FLOAT16) return body(static_cast<Half*>(nullptr));
  body(static_cast<BFloat16*>(nullptr));
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
