// A whole call: what it asks for, W from the cache where it is frozen, and else one run through the tasks, or two.
#ifndef SCP_CPU_TREE_CALL_H
#define SCP_CPU_TREE_CALL_H

#include "task_run.h"

namespace scp {
namespace SCP_NAMESPACE {

// Maps of at most this many pixels are evaluated densely: a tree of a few leaves costs more than it saves (measured).
constexpr int64_t kDensePixels = 256;
// A gradient of the features of at least so many bytes is larger than any cache that it could be found in later.
constexpr int64_t kNonTemporalBytes = int64_t(16) << 20;

template <class T, int D>
Rows<T, D> rows_of(const scp_tensor& tensor, int dtype) {
  Rows<T, D> rows;
  rows.tensor = tensor;
  rows.dtype = dtype;
  return rows;
}

inline Results results_of(const scp_call& call, bool backward) {
  if (!backward) return Results::kLogits;
  if (call.grad_coefficients == nullptr) return Results::kFeatureGradient;
  return call.grad_features.data == nullptr ? Results::kParameterGradients : Results::kAllGradients;
}

inline int64_t feature_bytes(const scp_call& call) {
  int64_t bytes = call.batch * call.channels * (call.dtype == SCP_FLOAT64 ? 8 : 4);
  for (int axis = 0; axis < call.spatial_dims; ++axis) bytes *= call.size[axis];
  return bytes;
}

// Registers where each sample has a map of its own: a field would be read once. They need all rows in place, and the
// pass that differentiates: a gradient of the features alone is streamed.
template <class T, int D>
WeightPath weight_path_of(const Job<T, D>& job, bool map_per_sample) {
  const bool in_place = job.X.in_place() && job.Y.in_place() && (!include_features(job.results) || job.gX.in_place());
  return D == 2 && map_per_sample && in_place && job.results != Results::kFeatureGradient ? WeightPath::kRegisters
                                                                                          : WeightPath::kField;
}

template <class T, int D>
class TreeCall {
 public:
  TreeCall(const scp_call& call, bool backward)
      : call_(call), scratch_(thread_scratch()), scope_(scratch_), maps_(call), described_(describe(backward)) {}

  void operator()() const {
    // With frozen weights, W may be cached: then the tree is not needed.
    CachedFields<T, D> cached = is_backward(described_.results) ? CachedFields<T, D>{} : look_up_fields();
    if (cached.count_ready() == maps_.count()) return stream_cached(cached);
    // The root: Phi's own matrices, and the first layer of each position map. Folding needs finite numbers.
    Job<T, D> job = described_;
    const bool finite_parameters = pack_parameters<T, D>(call_, scratch_, job.params);
    const FirstLayers layers = first_layers<T, D>(call_, maps_, scratch_);
    const bool finite = finite_parameters && layers.finite;
    job.method = finite ? method_of(job) : Method::kDense;
    if (!finite) cached = {};  // its fields are those of another method
    run(job, layers, cached);
    if (!is_backward(job.results)) return admit_fields(cached.handles);
    if (lost_not_finite(job)) run(densely(job), layers, cached);
  }

 private:
  // The job, without what only tasks need: the parameters, and the method that depends on them.
  Job<T, D> describe(bool backward) const {
    Job<T, D> job{};
    job.N = int(call_.classes), job.C = int(call_.channels);
    job.params.nc = job.N * job.C;
    job.X = rows_of<T, D>(call_.features, call_.dtype);
    job.Y = rows_of<T, D>(call_.logits, call_.dtype);
    job.gX = rows_of<T, D>(call_.grad_features, call_.dtype);
    if (feature_bytes(call_) >= kNonTemporalBytes) job.gX.stores = Stores::kNonTemporal;
    job.bias = static_cast<const T*>(call_.bias);
    job.results = results_of(call_, backward);
    job.weight_path = weight_path_of(job, maps_.count() == call_.batch);
    for (int axis = 0; axis < D; ++axis) job.map.lower[axis] = 0, job.map.upper[axis] = int(call_.size[axis]);
    return job;
  }

  Method method_of(const Job<T, D>& job) const {
    const bool small = call_.method == SCP_METHOD_AUTO && job.map.pixels() <= kDensePixels;
    return call_.method == SCP_METHOD_DENSE || small ? Method::kDense : Method::kTree;
  }

  // A NaN or an infinity in X or gY reaches, in PyTorch, gradients of units that are inactive where it occurs (0 times
  // NaN), which folding leaves out. It shows in the gradient of b3, the plain sum of gW; such calls run again, densely.
  bool lost_not_finite(const Job<T, D>& job) const {
    return include_parameters(job.results) && !job.is_dense() && call_.method == SCP_METHOD_AUTO &&
           !all_finite(static_cast<const T*>(call_.grad_b3), job.params.nc);
  }

  static Job<T, D> densely(Job<T, D> job) {
    job.method = Method::kDense;
    return job;
  }

  void run(const Job<T, D>& job, const FirstLayers& layers, const CachedFields<T, D>& cached) const {
    const ScratchStack::Mark mark = scratch_.mark();
    TaskRun<T, D>(call_, job, maps_, layers, cached, scratch_)();
    scratch_.release(mark);
  }

  CachedFields<T, D> look_up_fields() const {
    CachedFields<T, D> cached;
    cached.shape = field_on<T, D>(described_.map);
    const int64_t bytes = field_size(cached.shape, described_.params.nc) * int64_t(sizeof(T));
    cached.handles = find_fields(call_, {bytes, kVectorBytes, int64_t(described_.weight_path)}, maps_);
    return cached;
  }

  void stream_cached(const CachedFields<T, D>& cached) const {
    // Long rows stream best, and how the map is cut makes no difference to the sums here.
    const TaskBoxes<T, D> boxes(WeightPath::kField, described_.map);
    struct Streams {
      const Job<T, D>& job;
      const PositionMaps& maps;
      const CachedFields<T, D>& cached;
      const TaskBoxes<T, D>& boxes;
    };
    const Streams streams{described_, maps_, cached, boxes};
    const auto body = [](const void* context, int task) {
      const Streams& s = *static_cast<const Streams*>(context);
      const int64_t map = task / s.boxes.count;
      const Field<T, D> field = s.cached.of_map(map);
      Counters unused{};
      const CallTask<T, D> streamed{s.job, s.maps.samples(map), &field, {}, thread_scratch(), unused};
      stream_logits(streamed, part_of(field, s.boxes.box[task % s.boxes.count]));
    };
    parallel_for(int(boxes.count * maps_.count()), call_.threads, body, &streams);
    if (call_.report == nullptr) return;
    call_.report[SCP_REPORT_PIXELS] = double(maps_.count() * described_.map.pixels());
    call_.report[SCP_REPORT_MAPS] = double(maps_.count());
    call_.report[SCP_REPORT_FIELD_CACHE] = cached.use();
    call_.report[SCP_REPORT_MAPS_READ] = double(cached.count_ready());
  }

  const scp_call& call_;
  ScratchStack& scratch_;
  const ScratchScope scope_;
  const PositionMaps maps_;
  const Job<T, D> described_;
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
