// What a call asks for, and how the map is cut into boxes for tasks and fields.
#ifndef SCP_CPU_TASK_H
#define SCP_CPU_TASK_H

#include "field.h"
#include "fold_backward.h"

namespace scp {
namespace SCP_NAMESPACE {

// W of about this many bytes is held in a field. A smaller one would be a longer and thinner box, in which more units
// are unstable (384 KiB: a fifth more time for two samples at h = 256, C = 32).
constexpr int64_t kFieldBytes = 1152 * 1024;
// Rows longer than this are cut before fields are: the basis of a long thin box is large.
constexpr int kLongestRow = 512;
// What a call computes.
enum class Results { kLogits, kFeatureGradient, kParameterGradients, kAllGradients };

constexpr bool is_backward(Results results) { return results != Results::kLogits; }
constexpr bool include_features(Results results) {
  return results == Results::kFeatureGradient || results == Results::kAllGradients;
}
constexpr bool include_parameters(Results results) {
  return results == Results::kParameterGradients || results == Results::kAllGradients;
}

// How the leaves hand W on: to features of many samples by a field, to those of a single one in registers.
enum class WeightPath { kField, kRegisters };

// Which network a block is evaluated with: that of its leaf of the tree, or the root's.
enum class Method { kTree, kDense };

// What all tasks of a run share.
template <class T, int D>
struct Job {
  PhiParameters<T> params;
  Rows<T, D> X, Y, gX;  // Y: logits (forward), their gradient (backward)
  const T* bias;
  int N, C;
  Box<D> map;
  Results results;
  WeightPath weight_path;
  Method method;

  bool is_dense() const { return method == Method::kDense; }
  int64_t field_pixels() const { return kFieldBytes / int64_t(sizeof(T)) / params.nc; }
};

// The samples that share a position map, and what a thread needs to work on a part of their map.
template <class T, int D>
struct CallTask {
  const Job<T, D>& job;
  Samples samples;
  const Field<T, D>* cached;  // W of the map in the weight field cache: read, or written there to stay; or null
  GradientSums<T> sums;       // of the parameters' gradients, where they are wanted
  ScratchStack& scratch;
  Counters& counters;
};

template <class T, int D>
struct Grain {
  int extent[D];
  Grain() {
    for (int axis = 0; axis < D; ++axis) extent[axis] = block_extent<T, D>(axis);
  }
};

// Cuts for tasks and fields. Long rows stream best, so the leading axes go first unless rows are very long.
template <class T, int D>
int axis_to_cut_for(WeightPath weight_path, const Box<D>& box) {
  const Grain<T, D> grain;
  if (weight_path == WeightPath::kField && box.extent(D - 1) <= kLongestRow)
    for (int axis = 0; axis < D - 1; ++axis)
      if (box.extent(axis) > grain.extent[axis]) return axis;
  return axis_to_cut(box, grain.extent);
}

template <class T, int D>
void cut_box(const Box<D>& box, int axis, Box<D>& first, Box<D>& second) {
  first = second = box;
  first.upper[axis] = second.lower[axis] = box.lower[axis] + cut(box.extent(axis), block_extent<T, D>(axis));
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
