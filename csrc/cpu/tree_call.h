// A whole call: the root's network, the fixed partition into tasks, and the sums over tasks in a fixed order.
#ifndef SCP_CPU_TREE_CALL_H
#define SCP_CPU_TREE_CALL_H

#include "parallel.h"
#include "phi_parameters.h"
#include "tree.h"
#include "weight_field_cache.h"

namespace scp {
namespace SCP_NAMESPACE {

// Maps of at most this many pixels are evaluated densely: a tree of a few leaves costs more than it saves (measured).
constexpr int64_t kDensePixels = 256;
// A task has about this many pixels, and a call at most this many tasks per position map: building the tree from the root
// for each costs less than 2 % then, and the partition does not depend on the number of threads.
constexpr int64_t kTaskPixels = 8192;
constexpr int kMostTasks = 16;
// Sums of gradients are cached for at most this many groups of tasks.
constexpr int kMostSlots = 16;

// Boxes that the map is cut into, the same for every number of threads.
template <class T, int D>
int cut_into_tasks(WeightPath weight_path, const Box<D>& map, Box<D> (&tasks)[kMostTasks]) {
  int count = 1;
  tasks[0] = map;
  while (count * 2 <= kMostTasks && map.pixels() >= count * 2 * kTaskPixels) {
    Box<D> finer[kMostTasks];
    int made = 0;
    for (int i = 0; i < count; ++i) {
      const int axis = axis_to_cut_for<T>(weight_path, tasks[i]);
      if (axis < 0) {
        finer[made++] = tasks[i];
      } else {
        cut_box<T, D>(tasks[i], axis, finer[made], finer[made + 1]);
        made += 2;
      }
    }
    if (made == count) break;
    for (int i = 0; i < made; ++i) tasks[i] = finer[i];
    count = made;
  }
  return count;
}

template <class T, int D>
Node<T, D> make_root(const PhiParameters<T>& params, const Box<D>& map, const double* line1, const int* numbers) {
  Node<T, D> root{};
  root.box = map;
  root.m1 = params.h1, root.m1p = padded<double>(params.h1), root.unit1 = numbers, root.line1 = line1;
  root.m2 = params.h2, root.unit2 = numbers, root.m2p = params.h2p;
  root.A2 = params.A2, root.cf = params.cf;
  return root;
}

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

template <class T, int D>
class TreeCall {
 public:
  TreeCall(const scp_call& call, bool backward)
      : call_(call), scratch_(thread_scratch()), scope_(scratch_), maps_(call) {
    job_.N = int(call.classes), job_.C = int(call.channels);
    job_.X = rows_of<T, D>(call.features, call.dtype);
    job_.Y = rows_of<T, D>(call.logits, call.dtype);
    job_.gX = rows_of<T, D>(call.grad_features, call.dtype);
    job_.bias = static_cast<const T*>(call.bias);
    job_.results = results_of(call, backward);
    job_.non_temporal = feature_bytes(call) >= kNonTemporalBytes;
    job_.weight_path = weight_path();
    for (int axis = 0; axis < D; ++axis) job_.map.lower[axis] = 0, job_.map.upper[axis] = int(call.size[axis]);
  }

  void operator()() {
    // With frozen weights, W may be cached: then features only pass by it.
    if (!is_backward(job_.results)) look_up_field();
    if (handle_.ready) return stream_cached();
    // The root: Phi's own matrices, and the first layer of each position map. Folding needs finite numbers.
    const bool finite_parameters = pack_parameters<T, D>(call_, scratch_, job_.params);
    const bool finite_lines = lines_from_coefficients();
    job_.dense = call_.method == SCP_METHOD_DENSE || !finite_parameters || !finite_lines ||
                 (call_.method == SCP_METHOD_AUTO && job_.map.pixels() <= kDensePixels);
    run_tasks();
    if (!is_backward(job_.results)) return admit_field(handle_);
    // A NaN or an infinity in X or gY reaches, in PyTorch, gradients of units that are inactive where it occurs (0 times
    // NaN), which folding leaves out. It shows in the gradient of b3, the plain sum of gW; evaluate such calls densely.
    if (include_parameters(job_.results) && !job_.dense && call_.method == SCP_METHOD_AUTO &&
        !all_finite(static_cast<const T*>(call_.grad_b3), job_.params.nc)) {
      job_.dense = true;
      run_tasks();
    }
  }

 private:
  // Registers where each sample has a map of its own: a field would be read once. They need all rows in place, and the
  // pass that differentiates: a gradient of the features alone is streamed.
  WeightPath weight_path() const {
    const bool in_place =
        job_.X.in_place() && job_.Y.in_place() && (!include_features(job_.results) || job_.gX.in_place());
    return D == 2 && maps_.count() == call_.batch && in_place && job_.results != Results::kFeatureGradient
               ? WeightPath::kRegisters
               : WeightPath::kField;
  }

  void look_up_field() {
    const int outputs = job_.N * job_.C;
    cached_ = field_on<T, D>(job_.map);
    cached_size_ = field_size(cached_, outputs);
    handle_ =
        find_field(call_, {maps_.count() * cached_size_ * int64_t(sizeof(T)), kVectorBytes, int64_t(job_.weight_path)});
    if (handle_.field != nullptr) cached_.values = static_cast<T*>(values_of(*handle_.field));
  }

  // The field of one position map in what is cached.
  Field<T, D> cached_field(int64_t map) const {
    Field<T, D> field = cached_;
    field.values += map * cached_size_;
    return field;
  }

  void stream_cached() {
    job_.params.nc = job_.N * job_.C;
    // Long rows stream best, and how the map is cut makes no difference to the sums here.
    tasks_ = cut_into_tasks<T>(WeightPath::kField, job_.map, boxes_);
    const auto body = [](void* self, int task) { static_cast<TreeCall*>(self)->stream_task(task); };
    parallel_for(int(tasks_ * maps_.count()), call_.threads, body, this);
    if (call_.report == nullptr) return;
    call_.report[SCP_REPORT_PIXELS] = double(maps_.count() * job_.map.pixels());
    call_.report[SCP_REPORT_MAPS] = double(maps_.count());
    call_.report[SCP_REPORT_FIELD_CACHE] = SCP_FIELD_CACHE_READ;
  }

  void stream_task(int task) {
    const int64_t map = task / tasks_;
    const Field<T, D> field = cached_field(map);
    Counters unused{};
    const Task<T, D> streamed{job_, maps_.samples(map), &field, {}, thread_scratch(), unused};
    stream_logits(streamed, part_of(field, boxes_[task % tasks_]));
  }

  // The first layer of every position map as the nodes hold it: [maps, D + 1, h1 padded], values before slopes.
  bool lines_from_coefficients() {
    constexpr int A = kAffineTerms<D>;
    line_stride_ = padded<double>(job_.params.h1);
    lines_ = take<double>(scratch_, maps_.count() * A * line_stride_);
    double finite = 0;
    for (int64_t m = 0; m < maps_.count(); ++m) {
      double* const to = lines_ + m * A * line_stride_;
      const double* const from = call_.coefficients + maps_.source(m) * call_.hidden1 * A;
      for (int u = 0; u < line_stride_; ++u) {
        for (int a = 0; a < A; ++a) {
          const double c = u < job_.params.h1 ? from[u * A + (a == 0 ? D : a - 1)] : 0;
          to[a * line_stride_ + u] = c;
          finite += c * 0;
        }
      }
    }
    const int most = job_.params.h1 > job_.params.h2 ? job_.params.h1 : job_.params.h2;
    int* numbers = take<int>(scratch_, padded<T>(most));
    for (int u = 0; u < padded<T>(most); ++u) numbers[u] = u;
    numbers_ = numbers;
    return finite == 0;
  }

  // Every task of every position map, shared out to slots: each slot has its own sums of gradients, and belongs to one
  // thread at a time.
  void run_tasks() {
    const ScratchStack::Mark mark = scratch_.mark();
    tasks_ = cut_into_tasks<T>(job_.weight_path, job_.map, boxes_);
    const int64_t all_tasks = tasks_ * maps_.count();
    slots_ = int(all_tasks < kMostSlots ? all_tasks : kMostSlots);
    counters_ = take<Counters>(scratch_, slots_);
    sequential_ = call_.threads <= 1 || slots_ == 1;
    moment_size_ = call_.hidden1 * (D + 1);
    if (include_parameters(job_.results)) {
      sums_ = take<SlotSums<T>>(scratch_, slots_);
      // One thread adds each slot to the first as it ends: the same order of additions, with two arrays.
      for (int s = 0; s < slots_; ++s)
        sums_[s] = sequential_ && s > 1 ? sums_[1] : make_sums<T, D>(job_.params, scratch_);
      moments_ = take<double>(scratch_, all_tasks * moment_size_);
      std::memset(moments_, 0, size_t(all_tasks * moment_size_) * sizeof(double));
    }
    parallel_for(
        slots_, call_.threads, [](void* self, int slot) { static_cast<TreeCall*>(self)->run_slot(slot); }, this);
    if (include_parameters(job_.results)) sum_gradients();
    report();
    scratch_.release(mark);
  }

  void run_slot(int slot) {
    ScratchStack& scratch = thread_scratch();
    const ScratchScope scope(scratch);
    counters_[slot] = Counters{};
    if (include_parameters(job_.results)) std::memset(sums_[slot].all, 0, size_t(sums_[slot].size) * sizeof(T));
    const int64_t all_tasks = tasks_ * maps_.count();
    for (int64_t task = all_tasks * slot / slots_; task < all_tasks * (slot + 1) / slots_; ++task) {
      const int64_t map = task / tasks_;
      Node<T, D> root = make_root<T, D>(job_.params, job_.map, lines_ + map * kAffineTerms<D> * line_stride_, numbers_);
      GradientSums<T> sums{};
      if (include_parameters(job_.results)) {
        root.g_A2 = sums_[slot].A2;
        root.g_cf = sums_[slot].cf;
        sums.W3T = sums_[slot].W3T;
        sums.moments = moments_ + task * moment_size_;
      }
      Field<T, D> cached{};
      if (handle_.field != nullptr) cached = cached_field(map);
      run_task(Task<T, D>{job_, maps_.samples(map), handle_.field != nullptr ? &cached : nullptr, sums, scratch,
                          counters_[slot]},
               root, boxes_[task % tasks_]);
    }
    if (include_parameters(job_.results) && sequential_ && slot > 0) add_sums(sums_[slot], sums_[0]);
  }

  // Sums over slots and tasks, in an order that does not depend on the number of threads, and to the caller's layouts.
  void sum_gradients() {
    if (!sequential_)
      for (int s = 1; s < slots_; ++s) add_sums(sums_[s], sums_[0]);
    write_gradients<T, D>(job_.params, sums_[0], call_);
    // Of equal position maps the first has the gradient of all.
    std::memset(call_.grad_coefficients, 0, size_t(call_.groups * moment_size_) * sizeof(double));
    for (int64_t m = 0; m < maps_.count(); ++m) {
      double* to = call_.grad_coefficients + maps_.source(m) * moment_size_;
      for (int64_t i = 0; i < moment_size_; ++i) {
        double sum = 0;
        for (int t = 0; t < tasks_; ++t) sum += moments_[(m * tasks_ + t) * moment_size_ + i];
        to[i] = sum;
      }
    }
  }

  void report() {
    if (call_.report == nullptr) return;
    Counters total{};
    for (int s = 0; s < slots_; ++s) total.add(counters_[s]);
    double* to = call_.report;
    to[SCP_REPORT_DENSE] = job_.dense;
    to[SCP_REPORT_NODES] = total.nodes;
    to[SCP_REPORT_LEAVES] = total.leaves;
    to[SCP_REPORT_PIXELS] = total.pixels;
    to[SCP_REPORT_UNSTABLE1] = total.unstable1;
    to[SCP_REPORT_UNSTABLE2] = total.unstable2;
    to[SCP_REPORT_MOST_UNSTABLE1] = total.most_unstable1;
    to[SCP_REPORT_MOST_UNSTABLE2] = total.most_unstable2;
    to[SCP_REPORT_BUILD_MACS] = total.build_macs;
    to[SCP_REPORT_LEAF_MACS] = total.leaf_macs;
    to[SCP_REPORT_MAPS] = double(maps_.count());
    to[SCP_REPORT_FIELD_CACHE] = handle_.field != nullptr ? SCP_FIELD_CACHE_STORED : SCP_FIELD_CACHE_UNUSED;
  }

  const scp_call& call_;
  ScratchStack& scratch_;
  const ScratchScope scope_;
  Job<T, D> job_{};
  const PositionMaps maps_;
  FieldHandle handle_;
  Field<T, D> cached_{};  // of the first position map; no values where none is cached
  int64_t cached_size_ = 0;
  double* lines_ = nullptr;
  int line_stride_ = 0;
  const int* numbers_ = nullptr;
  Box<D> boxes_[kMostTasks];
  int tasks_ = 0, slots_ = 0;
  bool sequential_ = true;
  int64_t moment_size_ = 0;
  Counters* counters_ = nullptr;
  SlotSums<T>* sums_ = nullptr;
  double* moments_ = nullptr;
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
