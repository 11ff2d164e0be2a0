// One run through the tasks of a call: the fixed partition of the map, and the sums over tasks in a fixed order.
#ifndef SCP_CPU_TASK_RUN_H
#define SCP_CPU_TASK_RUN_H

#include "parallel.h"
#include "phi_parameters.h"
#include "tree.h"
#include "weight_field_cache.h"

namespace scp {
namespace SCP_NAMESPACE {

// A task has about this many pixels, and a call at most this many tasks per position map: building the tree from the
// root for each costs less than 2 % then, and the partition does not depend on the number of threads.
constexpr int64_t kTaskPixels = 8192;
constexpr int kMostTasks = 16;
// Sums of gradients are held for at most this many ranges of tasks.
constexpr int kMostRanges = 16;

// Boxes that the map is cut into, the same for every number of threads and every position map.
template <class T, int D>
struct TaskBoxes {
  Box<D> box[kMostTasks];
  int count = 1;

  TaskBoxes(WeightPath weight_path, const Box<D>& map) {
    box[0] = map;
    while (count * 2 <= kMostTasks && map.pixels() >= count * 2 * kTaskPixels) {
      Box<D> finer[kMostTasks];
      int finer_count = 0;
      for (int i = 0; i < count; ++i) {
        const int axis = axis_to_cut_for<T>(weight_path, box[i]);
        if (axis < 0) {
          finer[finer_count++] = box[i];
        } else {
          cut_box<T, D>(box[i], axis, finer[finer_count], finer[finer_count + 1]);
          finer_count += 2;
        }
      }
      if (finer_count == count) break;
      for (int i = 0; i < finer_count; ++i) box[i] = finer[i];
      count = finer_count;
    }
  }
};

// The first layer of every position map as the nodes hold it: [maps, D + 1, h1 padded], values before slopes.
struct FirstLayers {
  const double* values;
  int stride;          // h1 padded
  const int* numbers;  // 0, 1, 2, ...: the units of the root
  bool finite;
};

template <class T, int D>
FirstLayers first_layers(const scp_call& call, const PositionMaps& maps, ScratchStack& scratch) {
  constexpr int A = kAffineTerms<D>;
  const int h1 = int(call.hidden1), h2 = int(call.hidden2), stride = padded<double>(h1);
  double* const values = take<double>(scratch, maps.count() * A * stride);
  double finite = 0;
  for (int64_t m = 0; m < maps.count(); ++m) {
    double* const to = values + m * A * stride;
    const double* const from = call.coefficients + maps.source(m) * h1 * A;
    for (int u = 0; u < stride; ++u) {
      for (int a = 0; a < A; ++a) {
        const double c = u < h1 ? from[u * A + (a == 0 ? D : a - 1)] : 0;
        to[a * stride + u] = c;
        finite += c * 0;
      }
    }
  }
  const int most = padded<T>(h1 > h2 ? h1 : h2);
  int* const numbers = take<int>(scratch, most);
  for (int u = 0; u < most; ++u) numbers[u] = u;
  return {values, stride, numbers, finite == 0};
}

template <class T, int D>
Node<T, D> make_root(const PhiParameters<T>& params, const Box<D>& map, const FirstLayers& layers, int64_t number) {
  Node<T, D> root{};
  root.box = map;
  root.m1 = params.h1, root.m1p = layers.stride, root.unit1 = layers.numbers;
  root.line1 = layers.values + number * kAffineTerms<D> * layers.stride;
  root.m2 = params.h2, root.unit2 = layers.numbers, root.m2p = params.h2p;
  root.A2 = params.A2, root.cf = params.cf;
  return root;
}

// W of the position maps in the weight field cache.
template <class T, int D>
struct CachedFields {
  std::vector<FieldHandle> handles;  // one per position map; none where the cache is not used
  Field<T, D> shape{};               // of each, without values

  // Whether the map's W is that of an earlier call.
  bool ready(int64_t map) const { return !handles.empty() && handles[size_t(map)].ready; }
  // Whether the map's W is in the cache, or is to be written there.
  bool held(int64_t map) const { return !handles.empty() && handles[size_t(map)].field != nullptr; }
  Field<T, D> of_map(int64_t map) const {
    Field<T, D> field = shape;
    field.values = static_cast<T*>(values_of(*handles[size_t(map)].field));
    return field;
  }

  int64_t count_ready() const {
    int64_t count = 0;
    for (const FieldHandle& handle : handles) count += handle.ready;
    return count;
  }
  // What the report says of a call.
  int use() const {
    bool stored = false;
    for (const FieldHandle& handle : handles) stored |= handle.field != nullptr && !handle.ready;
    if (stored) return SCP_FIELD_CACHE_STORED;
    return count_ready() > 0 ? SCP_FIELD_CACHE_READ : SCP_FIELD_CACHE_UNUSED;
  }
};

// Every task of every position map, in ranges of tasks that follow each other: each range has its own sums of
// gradients, and belongs to one thread at a time. Where no gradient is summed, a range is one task.
template <class T, int D>
class TaskRun {
 public:
  TaskRun(const scp_call& call, const Job<T, D>& job, const PositionMaps& maps, const FirstLayers& layers,
          const CachedFields<T, D>& cached, ScratchStack& scratch)
      : call_(call),
        job_(job),
        maps_(maps),
        layers_(layers),
        cached_(cached),
        boxes_(job.weight_path, job.map),
        all_tasks_(boxes_.count * maps.count()),
        ranges_(int(include_parameters(job.results) && all_tasks_ > kMostRanges ? kMostRanges : all_tasks_)),
        sequential_(call.threads <= 1 || ranges_ == 1),
        moment_size_(call.hidden1 * (D + 1)),
        counters_(take<Counters>(scratch, ranges_)) {
    if (!include_parameters(job.results)) return;
    sums_ = take<RangeSums<T>>(scratch, ranges_);
    // One thread adds each range's sums to the first's as it ends: the same order of additions, with two arrays.
    for (int r = 0; r < ranges_; ++r) sums_[r] = sequential_ && r > 1 ? sums_[1] : make_sums<T, D>(job.params, scratch);
    moments_ = take<double>(scratch, all_tasks_ * moment_size_);
    std::memset(moments_, 0, size_t(all_tasks_ * moment_size_) * sizeof(double));
  }

  void operator()() const {
    const auto body = [](const void* self, int range) { static_cast<const TaskRun*>(self)->run_range(range); };
    parallel_for(ranges_, call_.threads, body, this);
    if (include_parameters(job_.results)) sum_gradients();
    report();
  }

 private:
  void run_range(int range) const {
    ScratchStack& scratch = thread_scratch();
    const ScratchScope scope(scratch);
    const bool parameters = include_parameters(job_.results);
    counters_[range] = Counters{};
    if (parameters) std::memset(sums_[range].all, 0, size_t(sums_[range].size) * sizeof(T));
    for (int64_t task = all_tasks_ * range / ranges_; task < all_tasks_ * (range + 1) / ranges_; ++task) {
      const int64_t map = task / boxes_.count;
      const Box<D>& box = boxes_.box[task % boxes_.count];
      Field<T, D> field{};
      if (cached_.held(map)) field = cached_.of_map(map);
      if (cached_.ready(map)) {
        stream_logits(CallTask<T, D>{job_, maps_.samples(map), &field, {}, scratch, counters_[range]},
                      part_of(field, box));
        continue;
      }
      Node<T, D> root = make_root<T, D>(job_.params, job_.map, layers_, map);
      GradientSums<T> sums{};
      if (parameters) {
        root.g_A2 = sums_[range].A2;
        root.g_cf = sums_[range].cf;
        sums.W3T = sums_[range].W3T;
        sums.moments = moments_ + task * moment_size_;
      }
      run_task(CallTask<T, D>{job_, maps_.samples(map), cached_.held(map) ? &field : nullptr, sums, scratch,
                              counters_[range]},
               root, box);
    }
    if (parameters && sequential_ && range > 0) add_sums(sums_[range], sums_[0]);
  }

  // Sums over ranges and tasks, in an order that does not depend on the number of threads, and to the caller's layouts.
  void sum_gradients() const {
    if (!sequential_)
      for (int r = 1; r < ranges_; ++r) add_sums(sums_[r], sums_[0]);
    write_gradients<T, D>(job_.params, sums_[0], call_);
    // Of equal position maps the first has the gradient of all.
    std::memset(call_.grad_coefficients, 0, size_t(call_.groups * moment_size_) * sizeof(double));
    for (int64_t m = 0; m < maps_.count(); ++m) {
      double* to = call_.grad_coefficients + maps_.source(m) * moment_size_;
      for (int64_t i = 0; i < moment_size_; ++i) {
        double sum = 0;
        for (int t = 0; t < boxes_.count; ++t) sum += moments_[(m * boxes_.count + t) * moment_size_ + i];
        to[i] = sum;
      }
    }
  }

  void report() const {
    if (call_.report == nullptr) return;
    Counters total{};
    for (int r = 0; r < ranges_; ++r) total.add(counters_[r]);
    double* to = call_.report;
    to[SCP_REPORT_DENSE] = job_.is_dense();
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
    to[SCP_REPORT_FIELD_CACHE] = cached_.use();
    to[SCP_REPORT_MAPS_READ] = double(cached_.count_ready());
  }

  const scp_call& call_;
  const Job<T, D>& job_;
  const PositionMaps& maps_;
  const FirstLayers& layers_;
  const CachedFields<T, D>& cached_;
  const TaskBoxes<T, D> boxes_;
  const int64_t all_tasks_;
  const int ranges_;
  const bool sequential_;
  const int64_t moment_size_;
  Counters* const counters_;      // one per range
  RangeSums<T>* sums_ = nullptr;  // one per range, where gradients of parameters are wanted
  double* moments_ = nullptr;     // one per task, likewise
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
