// A call as a sequence of launches. A template over who launches: a CUDA stream, or the host's imitation of a grid.
//
// A launcher offers clear(at, bytes), and launch(program, blocks, shared_bytes), where program(block) is a block's
// work.
#ifndef SCP_CUDA_RUN_H
#define SCP_CUDA_RUN_H

#include "apply.h"
#include "collect.h"
#include "common/check.h"
#include "parameters.h"
#include "prepare.h"

namespace scp {
namespace SCP_NAMESPACE {

// Records of tiles are kept for so many bytes at a time (or for kOverflowBlocks tiles, if they take more), and for up to
// kMostRecordBytes where that memory is lent, or where a round would else have too few blocks for the device.
constexpr int64_t kRecordBytes = int64_t(16) << 20, kMostRecordBytes = int64_t(64) << 20;
// Blocks that work on overflow tiles.
constexpr int kOverflowBlocks = 8;
// Samples are dealt out to several blocks a tile until a multiprocessor has so many blocks, or a block so few samples.
constexpr int64_t kBlocksWanted = 2, kSamplesWanted = 4;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostHidden = std::numeric_limits<uint16_t>::max();

struct Failure {
  int status;
  const char* what;
};

template <class T, int D>
class Run {
 public:
  Run(const scp_cuda_call& cuda, bool backward) : cuda_(cuda), call_(cuda.call), backward_(backward) {
    if (call_.hidden1 > kMostHidden || call_.hidden2 > kMostHidden)
      throw Failure{SCP_UNSUPPORTED, "hidden widths: at most 65535 are supported"};
    net_.h1 = int(call_.hidden1), net_.h2 = int(call_.hidden2), net_.nc = int(call_.classes * call_.channels);
    make_tiling();
    parameters_ = backward && call_.grad_coefficients != nullptr;
    Apply<T, D>& a = apply_;
    a.inner = int(backward ? call_.classes : call_.channels), a.outer = int(backward ? call_.channels : call_.classes);
    const int parts = (a.inner + kWeights - 1) / kWeights;
    a.inner_part = (a.inner + parts - 1) / parts;
    a.outer_part = a.outer < kWeights / a.inner_part ? a.outer : kWeights / a.inner_part;
    a.outer_parts = (a.outer + a.outer_part - 1) / a.outer_part;
    a.net = net_, a.tiling = tiling_;
    a.shares = shares_for(a.outer_parts);
    a.unstable_capacity = unstable_capacity([&](int most) {
      Carver carver(nullptr);
      a.unstable_capacity = most;
      ApplyMemory<T, D> memory(carver, a);
      return apply_shared_ = carver.used();
    });
    if (parameters_) {
      unstable_capacity_ = unstable_capacity([&](int most) {
        Carver carver(nullptr);
        ParametersMemory<T, D> memory(carver, net_.h1, net_.h2, most);
        return parameters_shared_ = carver.used();
      });
      size_records();
    }
    if (a.blocks(call_.groups) > kMostBlocks) throw Failure{SCP_UNSUPPORTED, "more tiles than a grid has blocks"};
    carve(nullptr);
  }

  scp_cuda_needs needs() const {
    const int64_t all = call_.groups * parameter_shares_.a_group();
    return {workspace_bytes_,
            apply_shared_,
            parameters_shared_,
            apply_.blocks(call_.groups),
            round_,
            round_ == 0 ? 0 : (all + round_ - 1) / round_,
            parameters_ ? unstable_capacity_ : apply_.unstable_capacity};
  }

  template <class Launcher>
  void operator()(Launcher& launcher) {
    if (call_.batch == 0 || tiling_.tiles == 0) return;
    carve(static_cast<char*>(cuda_.workspace));
    bind_network();
    launcher.clear(header_, kHeader * sizeof(int));
    Prepare<T> prepare{};
    prepare.net = net_, prepare.w3 = static_cast<const T*>(call_.w3), prepare.w2t = w2t_, prepare.w3t = w3t_;
    prepare.coefficients = call_.groups * call_.hidden1 * (call_.spatial_dims + 1);
    prepare.not_finite = header_;
    launcher.launch(prepare, prepare.blocks(), kPrepareShared<T>);
    // The features' gradient last: the records may lie where it will be.
    if (parameters_) run_parameters(launcher);
    if (!backward_ || call_.grad_features.data != nullptr) run_apply(launcher);
  }

 private:
  static constexpr int kHeader = 4;

  void make_tiling() {
    tiling_.dims = call_.spatial_dims;
    tiling_.tiles = 1;
    // 8 x 16 pixels: rows of whole sectors of memory, and near a square, so that a line crosses few. 4 x 4 x 8 voxels.
    constexpr int kLogPlane[2] = {3, 4}, kLogVolume[3] = {2, 2, 3};
    for (int axis = 0; axis < D; ++axis) {
      const int own = axis - (D - call_.spatial_dims);
      tiling_.size[axis] = own < 0 ? 1 : int(call_.size[own]);
      tiling_.log_tile[axis] = own < 0 ? 0 : call_.spatial_dims == 2 ? kLogPlane[own] : kLogVolume[own];
      tiling_.count[axis] = (tiling_.size[axis] + (1 << tiling_.log_tile[axis]) - 1) >> tiling_.log_tile[axis];
      tiling_.tiles *= tiling_.count[axis];
    }
  }

  // Few tiles and many samples: the samples in parts, each of which folds anew, until every multiprocessor has some
  // blocks.
  Shares shares_for(int64_t parts_of_a_tile) const {
    Shares shares{tiling_.tiles, call_.groups == 1 ? call_.batch : 1, 0, 1};
    const int64_t blocks = call_.groups * tiling_.tiles * parts_of_a_tile;
    int64_t parts = blocks == 0 ? 1 : cuda_.multiprocessors * kBlocksWanted / blocks;
    const int64_t most = shares.samples / kSamplesWanted;
    parts = parts < most ? parts : most;
    parts = parts < 1 ? 1 : parts;
    shares.part_samples = (shares.samples + parts - 1) / parts;
    shares.parts = shares.part_samples == 0 ? 1 : (shares.samples + shares.part_samples - 1) / shares.part_samples;
    return shares;
  }

  // Room for so many unstable units of layer 1: about three times what tiles of a large map have on average, less where
  // shared memory is small. The larger a tile is beside the map, the more kinks cross it: at PyTorch's initialisation the
  // tile with most unstable units has 0.7 of its extents' shares of the map's, summed, times h1.
  template <class Bytes>
  int unstable_capacity(const Bytes& bytes) const {
    double share = call_.spatial_dims == 2 ? 1. / 6 : 1. / 4, beside_map = 0;
    for (int axis = tiling_.first_axis(); axis < D; ++axis)
      beside_map += double(1 << tiling_.log_tile[axis]) / (tiling_.size[axis] > 0 ? tiling_.size[axis] : 1);
    if (share < beside_map) share = beside_map;
    int most = share < 1 ? 8 + int(share * net_.h1) : net_.h1;
    if (most > net_.h1) most = net_.h1;
    while (most > 1 && bytes(most) > cuda_.shared_limit) --most;
    if (bytes(most) > cuda_.shared_limit)
      throw Failure{SCP_UNSUPPORTED, "the device's shared memory is too small for such hidden widths"};
    return most;
  }

  void size_records() {
    Carver carver(nullptr);
    Record<T, D> record(carver, net_.h1, net_.h2, net_.nc, unstable_capacity_);
    record_bytes_ = carver.used();
    parameter_shares_ = shares_for(1);
    const int64_t all = call_.groups * parameter_shares_.a_group();
    Carver sums(nullptr);
    Sums<T, D> counted(sums, call_.groups, net_.h1, net_.h2, net_.nc);
    sums_bytes_ = sums.used();
    const int64_t most = kMostRecordBytes / record_bytes_, wanted = cuda_.multiprocessors * kBlocksWanted;
    const int64_t lent = (cuda_.lent_bytes - kOverflowBlocks * sums_bytes_) / record_bytes_;
    int64_t room = kRecordBytes / record_bytes_;
    if (room < lent) room = lent < most ? lent : most;
    if (room < wanted) room = wanted < most ? wanted : most;
    // One round rather than a second one that is not worth its launches.
    if (room < all && all <= room + room / 2 && all <= most) room = all;
    if (room < kOverflowBlocks) room = kOverflowBlocks;
    const int64_t rounds = (all + room - 1) / room;
    round_ = rounds == 0 ? 0 : (all + rounds - 1) / rounds;
    sums_count_ = int(round_ < kOverflowBlocks ? round_ : kOverflowBlocks);
    lent_used_ = cuda_.lent_bytes >= round_ * record_bytes_ + sums_count_ * sums_bytes_;
  }

  void carve(char* workspace) {
    Carver from(workspace);
    header_ = from.take<int>(kHeader);
    w2t_ = from.take<T>(int64_t(net_.h1) * net_.h2);
    w3t_ = from.take<T>(int64_t(net_.h2) * net_.nc);
    if (parameters_) {
      overflows_ = from.take<int>(call_.groups * parameter_shares_.a_group());
      Carver lent(static_cast<char*>(cuda_.lent));
      Carver& large = lent_used_ ? lent : from;
      records_ = large.take<char>(round_ * record_bytes_);
      sums_ = large.take<char>(sums_count_ * sums_bytes_);
    }
    workspace_bytes_ = from.used();
  }

  void bind_network() {
    net_.w2 = static_cast<const T*>(call_.w2), net_.b2 = static_cast<const T*>(call_.b2);
    net_.b3 = static_cast<const T*>(call_.b3), net_.residual = static_cast<const T*>(call_.residual);
    net_.w2t = w2t_, net_.w3t = w3t_;
    net_.coefficients = call_.coefficients, net_.not_finite = header_, net_.report = call_.report;
  }

  static View<D> view(const scp_tensor& tensor, int dtype, int dims) {
    View<D> found{tensor.data, dtype, tensor.stride_batch, tensor.stride_channel, {}};
    for (int axis = D - dims; axis < D; ++axis) found.spatial[axis] = tensor.stride_spatial[axis - (D - dims)];
    return found;
  }

  template <class Launcher>
  void run_apply(Launcher& launcher) {
    Apply<T, D>& a = apply_;
    a.net = net_;
    a.in = view(backward_ ? call_.logits : call_.features, call_.dtype, call_.spatial_dims);
    a.out = view(backward_ ? call_.grad_features : call_.logits, call_.dtype, call_.spatial_dims);
    a.bias = backward_ ? nullptr : static_cast<const T*>(call_.bias);
    a.inner_stride = backward_ ? int(call_.channels) : 1, a.outer_stride = backward_ ? 1 : int(call_.channels);
    launcher.launch(a, a.blocks(call_.groups), apply_shared_);
  }

  template <class Launcher>
  void run_parameters(Launcher& launcher) {
    Parameters<T, D> p{};
    p.subject.net = net_, p.subject.tiling = tiling_, p.subject.shares = parameter_shares_,
    p.subject.channels = int(call_.channels);
    p.subject.features = view(call_.features, call_.dtype, call_.spatial_dims);
    p.subject.grad_logits = view(call_.logits, call_.dtype, call_.spatial_dims);
    p.groups = call_.groups, p.unstable_capacity = unstable_capacity_;
    p.any_overflow = header_ + 1, p.overflows = overflows_;
    p.records = records_, p.record_bytes = record_bytes_;
    p.sums = sums_, p.sums_bytes = sums_bytes_, p.sums_count = sums_count_;
    const int64_t all = call_.groups * parameter_shares_.a_group();
    for (p.first_share = 0; p.first_share < all; p.first_share += round_) {
      const int64_t shares = all - p.first_share < round_ ? all - p.first_share : round_;
      launcher.launch(p, shares, parameters_shared_);
      run_collect(launcher, p, shares);
    }
    p.overflow_pass = true;
    launcher.launch(p, sums_count_, parameters_shared_);
    run_collect(launcher, p, 0);
  }

  template <class Launcher>
  void run_collect(Launcher& launcher, const Parameters<T, D>& p, int64_t shares) {
    Collect<T, D> c{p,
                    shares,
                    static_cast<T*>(call_.grad_w2),
                    static_cast<T*>(call_.grad_w3),
                    static_cast<T*>(call_.grad_b2),
                    static_cast<T*>(call_.grad_b3),
                    call_.grad_coefficients};
    launcher.launch(c, c.blocks(), 0);
  }

  const scp_cuda_call& cuda_;
  const scp_call& call_;
  const bool backward_;
  bool parameters_;
  Network<T> net_{};
  Tiling<D> tiling_{};
  Apply<T, D> apply_{};
  Shares parameter_shares_{};
  int64_t apply_shared_ = 0, parameters_shared_ = 0;
  int unstable_capacity_ = 0;
  int64_t record_bytes_ = 0, round_ = 0, sums_bytes_ = 0;
  bool lent_used_ = false;
  int sums_count_ = 0;
  int64_t workspace_bytes_ = 0;
  int *header_ = nullptr, *overflows_ = nullptr;
  T *w2t_ = nullptr, *w3t_ = nullptr;
  char *records_ = nullptr, *sums_ = nullptr;
};

// Calls use(run) with the run of the call's type and number of axes. In float64 maps of two axes are volumes of one
// slice.
template <class Use>
void with_run(const scp_cuda_call& call, bool backward, const Use& use) {
  if (call.call.compute_dtype == SCP_FLOAT64) {
    Run<double, 3> run(call, backward);
    use(run);
  } else if (call.call.spatial_dims == 2) {
    Run<float, 2> run(call, backward);
    use(run);
  } else {
    Run<float, 3> run(call, backward);
    use(run);
  }
}

// An entry point but for what differs between a device and the host: body() does the work, or throws Failure.
template <class Body>
int guarded(const scp_cuda_call* call, bool backward, bool with_data, char* message, int64_t size, const Body& body) {
  if (call == nullptr) return common::fail(message, size, SCP_BAD_ARGUMENT, "call: expected one");
  const scp_call& of = call->call;
  if (const char* what = common::size_fault(of)) return common::fail(message, size, SCP_BAD_ARGUMENT, what);
  if (with_data) {
    if (of.coefficients == nullptr) return common::fail(message, size, SCP_BAD_ARGUMENT, "coefficients: expected data");
    if (const char* what = common::data_fault(of, backward, of.grad_coefficients))
      return common::fail(message, size, SCP_BAD_ARGUMENT, what);
  }
  if (of.dtype == SCP_FLOAT64 && of.compute_dtype != SCP_FLOAT64)
    return common::fail(message, size, SCP_BAD_ARGUMENT, "compute_dtype: expected float64 for float64 features");
  try {
    body();
  } catch (const Failure& failure) {
    return common::fail(message, size, failure.status, failure.what);
  }
  return SCP_OK;
}

// A call, once it makes sense: with_launcher(run) calls run with a launcher.
template <class WithLauncher>
int run_call(const scp_cuda_call* call, bool backward, char* message, int64_t size, const WithLauncher& with_launcher) {
  return guarded(call, backward, true, message, size, [&] {
    with_run(*call, backward, [&](auto& run) {
      if (call->workspace == nullptr || call->workspace_bytes < run.needs().workspace_bytes)
        throw Failure{SCP_BAD_ARGUMENT, "workspace: smaller than scp_cuda_plan says"};
      if (call->lent == nullptr && call->lent_bytes > 0) throw Failure{SCP_BAD_ARGUMENT, "lent: expected memory"};
      with_launcher(run);
    });
  });
}

inline int plan_call(const scp_cuda_call* call, bool backward, scp_cuda_needs* needs, char* message, int64_t size) {
  return guarded(call, backward, false, message, size,
                 [&] { with_run(*call, backward, [&](auto& run) { *needs = run.needs(); }); });
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
