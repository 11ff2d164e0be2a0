// What kernels know of a call: the network, the map of pixels cut into tiles, and users' tensors with any strides and
// dtype.
#ifndef SCP_CUDA_CALL_H
#define SCP_CUDA_CALL_H

#include "scp.h"
#include "common/bound.h"
#include "common/geometry.h"
#include "common/half.h"
#include "block.h"

namespace scp {
namespace SCP_NAMESPACE {

// Phi. T is the type that is computed in.
template <class T>
struct Network {
  int h1, h2;
  int nc;        // N*C, outputs of Phi: n*C + c is W[n, c]
  const T* w2;   // [h2, h1]
  const T* w2t;  // [h1, h2]
  const T* b2;   // [h2]
  const T* w3t;  // [h2, nc]
  const T* b3;   // [nc]
  const T* residual;
  const double* coefficients;  // [G, h1, dims + 1]
  const int* not_finite;       // other than 0 if some parameter is NaN or infinite
  double* report;              // scp_report: multiply-adds are added up here as they are done; or null
};

// Counts what a block does, where the caller wants it counted. `macs()` is evaluated by one thread.
template <class T, class Block, class Macs>
SCP_DEVICE void count(Block& block, const Network<T>& net, scp_report entry, const Macs& macs) {
  if (net.report != nullptr && block.thread() == 0) block.add(net.report + entry, macs());
}

// The map of pixels cut into tiles of kThreads. Maps of fewer than D axes have leading ones of size 1.
template <int D>
struct Tiling {
  int dims;  // axes of the user's tensors
  int size[D];
  int log_tile[D];  // binary logarithms of a tile's extents
  int count[D];     // tiles on each axis
  int64_t tiles;

  SCP_HD int first_axis() const { return D - dims; }

  SCP_HD Box<D> box(int64_t tile) const {
    Box<D> found;
    for (int axis = D - 1; axis >= 0; --axis) {
      found.lower[axis] = int(tile % count[axis]) << log_tile[axis];
      found.upper[axis] = found.lower[axis] + (1 << log_tile[axis]);
      if (found.upper[axis] > size[axis]) found.upper[axis] = size[axis];
      tile /= count[axis];
    }
    return found;
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
};

// How work is shared out: a position map's tiles, and if these are too few to fill the device, its samples in parts.
struct Shares {
  int64_t tiles;
  int64_t samples;       // that share a position map
  int64_t part_samples;  // of a part
  int64_t parts;

  SCP_HD int64_t a_group() const { return tiles * parts; }
  SCP_HD int64_t group(int64_t share) const { return share / a_group(); }
  SCP_HD int64_t tile(int64_t share) const { return share / parts % tiles; }
  SCP_HD int64_t first_sample(int64_t share) const { return group(share) * samples + share % parts * part_samples; }
  SCP_HD int64_t end_sample(int64_t share) const {
    const int64_t end = first_sample(share) + part_samples, last = (group(share) + 1) * samples;
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
