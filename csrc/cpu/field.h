// The weight field W of a box held in scratch, and its product with the features of many samples.
//
// Leaves fill W once; it is then multiplied with X in long contiguous rows, whatever the dtype and strides of X.
#ifndef SCP_CPU_FIELD_H
#define SCP_CPU_FIELD_H

#include "leaf.h"
#include "rows.h"
#include "samples.h"

namespace scp {
namespace SCP_NAMESPACE {

// W (or its gradient) on a box: output n at values + n * plane. Rows along the last axis are padded to whole runs.
template <class T, int D>
struct Field {
  T* values;
  int64_t plane;
  int64_t stride[D];  // of an index inside the box; the last is 1
  Box<D> box;

  int64_t offset(const int (&index)[D]) const {
    int64_t at = 0;
    for (int axis = 0; axis < D; ++axis) at += (index[axis] - box.lower[axis]) * stride[axis];
    return at;
  }
};

// A field without memory, which has to have field_size numbers.
template <class T, int D>
Field<T, D> field_on(const Box<D>& box) {
  Field<T, D> field;
  constexpr int run = kRun<T, D>;
  field.values = nullptr;
  field.box = box;
  field.stride[D - 1] = 1;
  int64_t size = (box.extent(D - 1) + run - 1) / run * run;
  for (int axis = D - 2; axis >= 0; --axis) {
    field.stride[axis] = size;
    size *= box.extent(axis);
  }
  field.plane = (size + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  return field;
}

template <class T, int D>
int64_t field_size(const Field<T, D>& field, int outputs) {
  return field.plane * outputs + 2 * kLanes<T>;
}

template <class T, int D>
Field<T, D> make_field(const Box<D>& box, int outputs, ScratchStack& scratch) {
  Field<T, D> field = field_on<T, D>(box);
  field.values = take<T>(scratch, field_size(field, outputs));
  return field;
}

// The part of a field that lies in a smaller box.
template <class T, int D>
Field<T, D> part_of(const Field<T, D>& field, const Box<D>& box) {
  Field<T, D> part = field;
  part.values += field.offset(box.lower);
  part.box = box;
  return part;
}

// Offsets in the field of a block's runs; -1 for those outside.
template <class T, int D>
SCP_INLINE void run_offsets(const Field<T, D>& field, const Block<T, D>& block, int64_t (&offset)[kRuns<T, D>]) {
  for (int run = 0; run < kRuns<T, D>; ++run)
    offset[run] = block.run_valid[run] ? field.offset(block.run_index[run]) : -1;
}

// Leaf: W on a block, into the field.
template <class T, int D>
SCP_INLINE void fill_field(const PhiParameters<T>& params, const Node<T, D>& node, const Block<T, D>& block,
                           const BasisBlock<T, D>& basis, const Field<T, D>& field) {
  constexpr int L = kLanes<T>, run = kRun<T, D>;
  int64_t offset[kRuns<T, D>];
  run_offsets(field, block, offset);
  evaluate_weights(params, node, basis, 0, params.nc, [&](int n, int v, Vector<T> w) SCP_LAMBDA_INLINE {
    T* const to = field.values + n * field.plane;
    if constexpr (L <= run) {
      const int64_t at = offset[v * L / run];
      if (at >= 0) store(to + at + v * L % run, w);
    } else {
      alignas(64) T lanes[L];
      store(lanes, w);
      for (int part = 0; part < L / run; ++part) {
        const int64_t at = offset[v * (L / run) + part];
        if (at >= 0) std::memcpy(to + at, lanes + part * run, run * sizeof(T));
      }
    }
  });
}

// Leaf: a block of the field, as rows of 64 pixels; 0 outside the box.
template <class T, int D>
SCP_INLINE void read_field(const Field<T, D>& field, const Block<T, D>& block, int outputs, T* values) {
  constexpr int run = kRun<T, D>;
  int64_t offset[kRuns<T, D>];
  run_offsets(field, block, offset);
  for (int n = 0; n < outputs; ++n) {
    const T* const from = field.values + n * field.plane;
    T* const to = values + int64_t(n) * kBlockPixels;
    for (int r = 0; r < kRuns<T, D>; ++r) {
      if (offset[r] >= 0) {
        std::memcpy(to + r * run, from + offset[r], run * sizeof(T));
      } else {
        std::memset(to + r * run, 0, run * sizeof(T));
      }
    }
  }
}

// Calls body(index, count, at) for every stretch of pixels that lie next to each other in the field and in all tensors:
// rows, or whole planes where `merged` says that nothing lies between the rows.
template <class T, int D, class Body>
SCP_INLINE void for_each_stretch(const Field<T, D>& field, bool merged, int longest, Body body) {
  int index[D];
  for (int axis = 0; axis < D; ++axis) index[axis] = field.box.lower[axis];
  const int width = field.box.extent(D - 1), height = field.box.extent(D - 2);
  const int outer = D == 3 ? field.box.extent(0) : 1;
  for (int i = 0; i < outer; ++i) {
    if (D == 3) index[0] = field.box.lower[0] + i;
    for (int j = 0; j < (merged ? 1 : height); ++j) {
      index[D - 2] = field.box.lower[D - 2] + j;
      const int count = merged ? width * height : width;
      for (int p = 0; p < count; p += longest) body(index, p, count - p < longest ? count - p : longest);
    }
  }
}

template <class T, int D>
bool rows_adjoin(const Rows<T, D>& rows, const Field<T, D>& field) {
  return rows.in_place() && rows.tensor.stride_spatial[D - 2] == field.box.extent(D - 1);
}

template <class T, int D>
bool field_rows_adjoin(const Field<T, D>& field) {
  return field.stride[D - 2] == field.box.extent(D - 1);
}

// Pixels that are streamed at a time, for one class: long stretches stream best, as long as a few of them, for each
// class, stay in the first-level cache (measured).
constexpr int kForwardStretch = 3072, kBackwardStretch = 2048;

inline int longest_stretch(int pixels, int N) {
  pixels = pixels / N / 64 * 64;
  return pixels < 64 ? 64 : pixels;
}

// Pixels of the field that all samples are multiplied with before the next pixels: W stays in the second-level cache
// (measured against 512 and 768 KiB, and against the whole field for each sample).
inline int cached_stretch(int N, int C, size_t number_bytes) {
  const int stretch = longest_stretch(kForwardStretch, N);
  const int64_t pixels = 384 * 1024 / (int64_t(N) * C * int64_t(number_bytes)) / stretch * stretch;
  return pixels < stretch ? stretch : int(pixels);
}

namespace detail {
// y (+)= sum over N channels of w x, on `count` pixels.
template <class T, int N>
SCP_INLINE void add_channels(T* y, const T* const* w, const T* const* x, int count, bool first, T bias) {
  constexpr int L = kLanes<T>;
  int p = 0;
  for (; p + L <= count; p += L) {
    Vector<T> sum = first ? splat(bias) : load(y + p);
    for (int c = 0; c < N; ++c) sum = fma(load(w[c] + p), load(x[c] + p), sum);
    store(y + p, sum);
  }
  if (p < count) {
    Vector<T> sum = first ? splat(bias) : load_first(y + p, count - p);
    for (int c = 0; c < N; ++c) sum = fma(load_first(w[c] + p, count - p), load_first(x[c] + p, count - p), sum);
    store_first(y + p, sum, count - p);
  }
}
}  // namespace detail

// Y[b, n] = sum_c W[n, c] X[b, c] (+ bias[n]) on the field's box.
template <class T, int D>
void stream_forward(const Field<T, D>& field, const Rows<T, D>& X, const Rows<T, D>& Y, const T* bias,
                    const Samples& samples, int N, int C, ScratchStack& scratch) {
  constexpr int kChannels = 4;
  const ScratchStack::Mark mark = scratch.mark();
  const int longest = longest_stretch(kForwardStretch, N);
  const bool merged = field_rows_adjoin(field) && rows_adjoin(X, field) && rows_adjoin(Y, field);
  T* x_buffer = take<T>(scratch, kChannels * longest);
  T* y_buffer = take<T>(scratch, int64_t(N) * longest);
  // One stretch of one sample.
  const auto stream = [&](const int (&index)[D], int skip, int count, int64_t b) SCP_LAMBDA_INLINE {
    const int64_t at = field.offset(index) + skip;
    const int64_t x_at = X.offset(b, 0, index) + skip * X.tensor.stride_spatial[D - 1];
    const int64_t y_at = Y.offset(b, 0, index) + skip * Y.tensor.stride_spatial[D - 1];
    for (int c = 0; c < C; c += kChannels) {
      const int channels = C - c < kChannels ? C - c : kChannels;
      const T *x[kChannels], *w[kChannels];
      for (int i = 0; i < channels; ++i)
        x[i] = X.read(x_at + (c + i) * X.tensor.stride_channel, count, x_buffer + i * longest);
      for (int n = 0; n < N; ++n) {
        T* y = Y.target(y_at + n * Y.tensor.stride_channel, y_buffer + int64_t(n) * longest);
        for (int i = 0; i < channels; ++i) w[i] = field.values + (int64_t(n) * C + c + i) * field.plane + at;
        const T start = bias == nullptr ? T(0) : bias[n];
        switch (channels) {
          case 4: detail::add_channels<T, 4>(y, w, x, count, c == 0, start); break;
          case 3: detail::add_channels<T, 3>(y, w, x, count, c == 0, start); break;
          case 2: detail::add_channels<T, 2>(y, w, x, count, c == 0, start); break;
          default: detail::add_channels<T, 1>(y, w, x, count, c == 0, start);
        }
      }
    }
    for (int n = 0; n < N; ++n) Y.finish(y_buffer + int64_t(n) * longest, y_at + n * Y.tensor.stride_channel, count);
  };
  for_each_stretch(field, merged, cached_stretch(N, C, sizeof(T)), [&](const int (&index)[D], int first, int all) {
    for (int64_t s = 0; s < samples.count; ++s)
      for (int skip = first; skip < first + all; skip += longest)
        stream(index, skip, first + all - skip < longest ? first + all - skip : longest, samples.number[s]);
  });
  scratch.release(mark);
}

namespace detail {
// One channel of one sample: gx = sum over the N classes of gy w where wanted, and gw[n] (+)= gy[n] x where wanted.
// `ahead` is the x that will be wanted next. Every x is a stretch of its own, whose beginning hardware does not
// foresee.
template <class T, bool kFeatures, bool kWeights, bool kNonTemporal>
void channel_backward(const T* const* gy, const T* const* w, const T* x, const T* ahead, T* gx, T* const* gw, int N,
                      int count, bool first_sample) {
  constexpr int L = kLanes<T>;
  int p = 0;
  for (; p + L <= count; p += L) {
    if (kWeights) __builtin_prefetch(ahead + p);
    Vector<T> sum = zero<T>(), features = zero<T>();
    if (kWeights) features = load(x + p);
    for (int n = 0; n < N; ++n) {
      const Vector<T> g = load(gy[n] + p);
      if (kFeatures) sum = n == 0 ? g * load(w[n] + p) : fma(g, load(w[n] + p), sum);
      if (kWeights) store(gw[n] + p, first_sample ? g * features : fma(g, features, load(gw[n] + p)));
    }
    if (kFeatures && kNonTemporal) store_non_temporal(gx + p, sum);
    if (kFeatures && !kNonTemporal) store(gx + p, sum);
  }
  if (p < count) {
    const int rest = count - p;
    Vector<T> sum = zero<T>();
    for (int n = 0; n < N; ++n) {
      const Vector<T> g = load_first(gy[n] + p, rest);
      if (kFeatures) sum = n == 0 ? g * load_first(w[n] + p, rest) : fma(g, load_first(w[n] + p, rest), sum);
      if (kWeights) {
        const Vector<T> product = g * load_first(x + p, rest);
        store(gw[n] + p, first_sample ? product : load(gw[n] + p) + product);
      }
    }
    if (kFeatures) store_first(gx + p, sum, rest);
  }
}
}  // namespace detail

// gX[b, c] = sum_n gY[b, n] W[n, c], and the field becomes gW[n, c] = sum_b gY[b, n] X[b, c]; either only where wanted.
//
// Stretch by stretch, and in each channel by channel, `together` of them at once; the samples follow each other, so
// that the order of gW's sum is fixed. For each sample:
//   1. Read gY of the stretch, once for all its channels.
//   2. For each channel, find x, and the x that will be wanted next, whose beginning is fetched meanwhile.
//   3. Find where gX goes, and add up gX and gW; gW is summed in a buffer, since W is read until the last sample.
// After the last sample:
//   4. Write gW over W, with zeros in the padding of a row.
template <class T, int D, bool kFeatures, bool kWeights>
void stream_backward(const Field<T, D>& field, const Rows<T, D>& X, const Rows<T, D>& gY, const Rows<T, D>& gX,
                     const Samples& samples, int N, int C, ScratchStack& scratch) {
  const ScratchStack::Mark mark = scratch.mark();
  const int longest = longest_stretch(kBackwardStretch, N);
  const bool non_temporal = kFeatures && gX.stores == Stores::kNonTemporal;
  const int together = gY.in_place() ? 1 : 4;  // channels that share the conversion of gY
  const bool merged = field_rows_adjoin(field) && rows_adjoin(gY, field) && (!kWeights || rows_adjoin(X, field)) &&
                      (!kFeatures || rows_adjoin(gX, field));
  T* x_buffer = take<T>(scratch, longest);
  T* gx_buffer = take<T>(scratch, longest);
  T* gy_buffer = take<T>(scratch, int64_t(N) * longest);
  const T** gy = take<const T*>(scratch, N);
  const T** w = take<const T*>(scratch, N);
  T** gw = take<T*>(scratch, N);
  T* gw_buffer = take<T>(scratch, int64_t(together) * N * longest);
  const int row_end = int(field.stride[D - 2]);
  for_each_stretch(field, merged, longest, [&](const int (&index)[D], int skip, int count) SCP_LAMBDA_INLINE {
    const int64_t at = field.offset(index) + skip;
    for (int c0 = 0; c0 < C; c0 += together) {
      const int channels = C - c0 < together ? C - c0 : together;
      for (int64_t s = 0; s < samples.count; ++s) {
        const int64_t b = samples.number[s];
        // 1. gY.
        const int64_t gy_at = gY.offset(b, 0, index) + skip * gY.tensor.stride_spatial[D - 1];
        for (int n = 0; n < N; ++n)
          gy[n] = gY.read(gy_at + n * gY.tensor.stride_channel, count, gy_buffer + int64_t(n) * longest);
        for (int i = 0; i < channels; ++i) {
          const T *x = nullptr, *ahead = nullptr;
          T* gx = nullptr;
          int64_t gx_at = 0;
          // 2. x, and the next one: of the next channel, of the next sample, or of the next channels' first sample.
          if (kWeights) {
            x = X.read(X.offset(b, c0 + i, index) + skip * X.tensor.stride_spatial[D - 1], count, x_buffer);
            ahead = x;
            if (X.in_place()) {
              if (i + 1 < channels) {
                ahead = x + X.tensor.stride_channel;
              } else if (s + 1 < samples.count) {
                ahead = X.pointer(X.offset(samples.number[s + 1], c0, index) + skip);
              } else if (c0 + together < C) {
                ahead = X.pointer(X.offset(samples.number[0], c0 + together, index) + skip);
              }
            }
          }
          // 3. gX and gW.
          if (kFeatures) {
            gx_at = gX.offset(b, c0 + i, index) + skip * gX.tensor.stride_spatial[D - 1];
            gx = gX.target(gx_at, gx_buffer);
          }
          for (int n = 0; n < N; ++n) {
            w[n] = field.values + (int64_t(n) * C + c0 + i) * field.plane + at;
            gw[n] = gw_buffer + (int64_t(i) * N + n) * longest;
          }
          const bool bypass = non_temporal && gX.in_place() && is_aligned(gx);
          const auto backward = bypass ? detail::channel_backward<T, kFeatures, kWeights, true>
                                       : detail::channel_backward<T, kFeatures, kWeights, false>;
          backward(gy, w, x, ahead, gx, gw, N, count, s == 0);
          if (kFeatures) gX.finish(gx, gx_at, count);
        }
      }
      // 4. gW in the place of W.
      if (!kWeights) continue;
      for (int i = 0; i < channels; ++i) {
        for (int n = 0; n < N; ++n) {
          T* to = field.values + (int64_t(n) * C + c0 + i) * field.plane + at;
          std::memcpy(to, gw_buffer + (int64_t(i) * N + n) * longest, count * sizeof(T));
          // A row's padding is no pixel: its gradient is 0.
          if (!merged && skip + count == field.box.extent(D - 1))
            for (int p = skip + count; p < row_end; ++p) to[p - skip] = T(0);
        }
      }
    }
  });
  if (non_temporal) fence_non_temporal_stores();
  scratch.release(mark);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
