// A call as a sequence of launches. A template over the launcher: a CUDA stream, or the host's emulation of a grid.
//
// A launcher offers clear(at, bytes), and launch(program, blocks, shared_bytes), where program(block) is a block's
// work.
#ifndef SCP_CUDA_LAUNCH_SEQUENCE_H
#define SCP_CUDA_LAUNCH_SEQUENCE_H

#include "apply.h"
#include "collect.h"
#include "parameter_gradients.h"
#include "prepare.h"
#include "supertile.h"

namespace scp {
namespace SCP_NAMESPACE {

// Partial gradients take at most kPartialBytes at a time (or what kOverflowBlocks items take, if that is more), and up
// to kMostPartialBytes where scratch_alias has room for them, or where a chunk would else have too few blocks for the
// device.
constexpr int64_t kPartialBytes = int64_t(16) << 20, kMostPartialBytes = int64_t(64) << 20;
// Supertiles' folded networks take at most so much at a time.
constexpr int64_t kSupertileBytes = int64_t(4) << 20;
// Tiles times width, per multiprocessor, from which supertiles pay: docs/gpu.md.
constexpr int64_t kSupertileWork = 1536;
// Blocks of the overflow pass.
constexpr int kOverflowBlocks = 8;
// The samples of a tile are divided among several blocks until there are kBlocksWanted per multiprocessor, or until a
// block has only kSamplesWanted.
constexpr int64_t kBlocksWanted = 2, kSamplesWanted = 4;
// A multiprocessor has at least so many tiles where a block of Apply takes two of them: 4 blocks each, as many as it
// holds at once.
constexpr int64_t kTilesForTwoPixels = 8;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostHidden = std::numeric_limits<uint16_t>::max();

struct Failure {
  int status;
  const char* what;
};

template <class T, int D>
class LaunchSequence {
 public:
  LaunchSequence(const scp_cuda_call& cuda, bool backward) : cuda_(cuda), call_(cuda.call), backward_(backward) {
    if (call_.hidden1 > kMostHidden || call_.hidden2 > kMostHidden)
      throw Failure{SCP_UNSUPPORTED, "hidden widths: at most 65535 are supported"};
    net_.h1 = int(call_.hidden1), net_.h2 = int(call_.hidden2), net_.nc = int(call_.classes * call_.channels);
    tiling_ = tiling_of(0);
    parameters_ = backward && call_.grad_coefficients != nullptr;
    ApplyInputs<T, D>& a = apply_;
    a.inner = int(backward ? call_.classes : call_.channels), a.outer = int(backward ? call_.channels : call_.classes);
    const int parts = (a.inner + kWeights - 1) / kWeights;
    a.inner_part = (a.inner + parts - 1) / parts;
    a.outer_part = a.outer < kWeights / a.inner_part ? a.outer : kWeights / a.inner_part;
    a.outer_parts = (a.outer + a.outer_part - 1) / a.outer_part;
    a.net = net_, a.tiling = tiling_;
    size_supertiles();
    if (parts == 1 && two_pixels_pay()) a.tiling = tiling_of(1), pixels_ = 2;
    a.partition = partition_for(a.tiling, a.outer_parts);
    const int blocks_with_large_panel = size_apply(kLogPanel);
    if (size_apply(kLogSmallPanel) <= blocks_with_large_panel) size_apply(kLogPanel);
    if (parameters_) {
      unstable_capacity_ = unstable_capacity(tiling_.log_tile, [&](int most) {
        BumpAllocator allocator(nullptr);
        ParameterGradientsMemory<T, D> memory(allocator, net_.h1, net_.h2, most);
        return parameters_shared_ = allocator.used();
      });
      size_partials();
    }
    if (apply_blocks() > kMostBlocks) throw Failure{SCP_UNSUPPORTED, "more tiles than a grid has blocks"};
    allocate_workspace(nullptr);
  }

  scp_cuda_requirements requirements() const {
    int64_t chunks = 0, windows = 0;
    for_each_window(tiling_, parameter_partition_, [&](int64_t, int64_t first, int64_t end) {
      windows += supertiles_.unstable_capacity > 0;
      if (chunk_ > 0) chunks += (end - first + chunk_ - 1) / chunk_;
    });
    return {workspace_bytes_,
            apply_shared_,
            parameters_shared_,
            supertiles_shared_,
            windows,
            apply_blocks(),
            chunk_,
            chunks,
            parameters_ ? unstable_capacity_ : apply_.unstable_capacity};
  }

  template <class Launcher>
  void operator()(Launcher& launcher) {
    if (call_.batch == 0 || tiling_.tiles == 0) return;
    allocate_workspace(static_cast<char*>(cuda_.workspace));
    bind_network();
    launcher.clear(header_, kHeader * sizeof(int));
    Prepare<T> prepare{};
    prepare.net = net_, prepare.w3 = static_cast<const T*>(call_.w3), prepare.w2t = w2t_, prepare.w3t = w3t_;
    prepare.coefficients = call_.groups * call_.hidden1 * (call_.spatial_dims + 1);
    prepare.not_finite = header_;
    launcher.launch(prepare, prepare.blocks(), kPrepareShared<T>);
    // The features' gradient last: the partial gradients may lie in its memory.
    if (parameters_) launch_parameter_gradients(launcher);
    if (!backward_ || call_.grad_features.data != nullptr) launch_apply(launcher);
  }

 private:
  static constexpr int kHeader = 4;

  // Returns how many blocks of Apply a multiprocessor holds at once.
  int size_apply(int log_panel) {
    ApplyInputs<T, D>& a = apply_;
    a.log_panel = log_panel;
    a.unstable_capacity = unstable_capacity(a.tiling.log_tile, [&](int most) {
      BumpAllocator allocator(nullptr);
      a.unstable_capacity = most;
      ApplyMemory<T, D> memory(allocator, a);
      return apply_shared_ = allocator.used();
    });
    const int64_t blocks = cuda_.shared_limit / apply_shared_;
    const int most = pixels_ == 2 ? kApplyBlocksAtOnce<T, D, 2> : kApplyBlocksAtOnce<T, D, 1>;
    return blocks < most ? int(blocks) : most;
  }

  // The map cut into tiles that are 2^longer times as long on the first axis: those of Apply.
  Tiling<D> tiling_of(int longer) const {
    Tiling<D> tiling{};
    tiling.dims = call_.spatial_dims;
    tiling.tiles = 1;
    // 8 x 16 pixels: rows of whole sectors of memory, and near a square, so that a line crosses few. 4 x 4 x 8 voxels.
    // Supertiles of 32 x 32 pixels or 8 x 8 x 16 voxels.
    constexpr int kLogPlane[2] = {3, 4}, kLogVolume[3] = {2, 2, 3};
    constexpr int kLogSuperplane[2] = {2, 1}, kLogSupervolume[3] = {1, 1, 1};
    tiling.supertiles = 1;
    for (int axis = 0; axis < D; ++axis) {
      const int users = axis - (D - call_.spatial_dims);  // the axis of the user's tensors, negative if they lack it
      const int more = users == 0 ? longer : 0;
      tiling.size[axis] = users < 0 ? 1 : int(call_.size[users]);
      tiling.log_tile[axis] = users < 0 ? 0 : more + (call_.spatial_dims == 2 ? kLogPlane[users] : kLogVolume[users]);
      tiling.count[axis] = (tiling.size[axis] + (1 << tiling.log_tile[axis]) - 1) >> tiling.log_tile[axis];
      tiling.tiles *= tiling.count[axis];
      const int log = users < 0 ? 0 : (call_.spatial_dims == 2 ? kLogSuperplane[users] : kLogSupervolume[users]) - more;
      tiling.log_supertile[axis] = log;
      tiling.supertile_count[axis] = (tiling.count[axis] + (1 << log) - 1) >> log;
      tiling.supertiles *= tiling.supertile_count[axis];
    }
    return tiling;
  }

  // Apply takes two pixels per thread, which halves what it reads from shared memory, where half of the blocks fill the
  // device still, and where the map is longer than a tile. In float64 two would take too many registers.
  bool two_pixels_pay() const {
    return sizeof(T) == 4 && tiling_.count[tiling_.first_axis()] > 1 &&
           call_.groups * tiling_.tiles >= kTilesForTwoPixels * cuda_.multiprocessors;
  }

  // Few tiles and many samples: the samples are divided, and each part folds anew, until every multiprocessor has some
  // blocks.
  WorkPartition partition_for(const Tiling<D>& tiling, int64_t parts_per_tile) const {
    WorkPartition partition{tiling.tiles, call_.groups == 1 ? call_.batch : 1, 0, 1};
    const int64_t blocks = call_.groups * tiling.tiles * parts_per_tile;
    int64_t parts = blocks == 0 ? 1 : cuda_.multiprocessors * kBlocksWanted / blocks;
    const int64_t most = partition.samples / kSamplesWanted;
    parts = parts < most ? parts : most;
    parts = parts < 1 ? 1 : parts;
    const int64_t per_part = (partition.samples + parts - 1) / parts;
    partition.samples_per_part = per_part;
    partition.parts = per_part == 0 ? 1 : (partition.samples + per_part - 1) / per_part;
    return partition;
  }

  // How many unstable units of layer 1 there is room for on boxes of 2^log_extent pixels: more than twice the most of
  // any tile of the paper's map, less where shared memory is small. The larger a box is relative to the map, the more
  // kinks cross it: at PyTorch's initialisation the most unstable units of any box are 0.7 h1 times the sum, over the
  // axes, of box / map extents.
  template <class Bytes>
  int unstable_capacity(const int (&log_extent)[D], const Bytes& bytes) const {
    double fraction = call_.spatial_dims == 2 ? 2. / 15 : 1. / 4, of_map = 0;
    for (int axis = tiling_.first_axis(); axis < D; ++axis)
      of_map += double(1 << log_extent[axis]) / (tiling_.size[axis] > 0 ? tiling_.size[axis] : 1);
    if (fraction < 0.8 * of_map) fraction = 0.8 * of_map;
    int most = fraction < 1 ? 8 + int(fraction * net_.h1) : net_.h1;
    if (most > net_.h1) most = net_.h1;
    while (most > 1 && bytes(most) > cuda_.shared_limit) --most;
    if (bytes(most) > cuda_.shared_limit)
      throw Failure{SCP_UNSUPPORTED, "the device's shared memory is too small for such hidden widths"};
    return most;
  }

  // Folding supertiles takes as long as the root takes a block, before any tile starts. What they save is in proportion
  // to the widths and to the tiles that a multiprocessor folds one after another: those of ParameterGradients too.
  bool supertiles_pay() const {
    const int64_t width = net_.h1 > net_.h2 ? net_.h1 : net_.h2;
    const int64_t folds = call_.groups * tiling_.tiles * (parameters_ ? 2 : 1);
    return folds * width >= kSupertileWork * cuda_.multiprocessors;
  }

  // Supertiles, where they pay and enough of them fit into memory at a time to fill the device; else a capacity of 0.
  void size_supertiles() {
    const int64_t all = call_.groups * tiling_.supertiles;
    if (tiling_.tiles < 2 * tiling_.supertiles || !supertiles_pay()) return;
    int log_extent[D];
    for (int axis = 0; axis < D; ++axis) log_extent[axis] = tiling_.log_tile[axis] + tiling_.log_supertile[axis];
    const int most = unstable_capacity(log_extent, [&](int capacity) {
      BumpAllocator allocator(nullptr);
      FoldMemory<T, D, kSupertileOutputs> memory(allocator, net_.h1, net_.h2, capacity, kLogPanel, true);
      return supertiles_shared_ = allocator.used();
    });
    BumpAllocator allocator(nullptr);
    Parent<T, D> folded(allocator, net_.h1, net_.h2, net_.nc, most);
    supertiles_.bytes_each = allocator.used();
    window_ = kSupertileBytes / supertiles_.bytes_each;
    if (window_ > all) window_ = all;
    if (window_ >= all || window_ >= cuda_.multiprocessors)
      supertiles_.unstable_capacity = most;
    else
      supertiles_shared_ = 0;
  }

  int64_t apply_blocks() const { return call_.groups * apply_.partition.items_per_group() * apply_.outer_parts; }

  // Calls body(supertile, first, end) with the supertiles of a window, by the first of them, and its work items.
  template <class Body>
  void for_each_window(const Tiling<D>& tiling, const WorkPartition& partition, const Body& body) const {
    const int64_t all = call_.groups * tiling_.supertiles;
    const int64_t step = supertiles_.unstable_capacity > 0 ? window_ : all;
    const auto first_item = [&](int64_t supertile) {
      return supertile / tiling.supertiles * partition.items_per_group() +
             tiling.first_tile(supertile % tiling.supertiles) * partition.parts;
    };
    for (int64_t first = 0; first < all; first += step)
      body(first, first_item(first), first_item(first + step < all ? first + step : all));
  }

  // Folds a window of supertiles, unless that was the last thing done.
  template <class Launcher>
  void launch_supertiles(Launcher& launcher, int64_t first) {
    if (supertiles_.unstable_capacity == 0 || supertiles_.first == first) return;
    supertiles_.first = first;
    const int64_t left = call_.groups * tiling_.supertiles - first;
    launcher.launch(FoldSupertiles<T, D>{net_, tiling_, supertiles_}, left < window_ ? left : window_,
                    supertiles_shared_);
  }

  void size_partials() {
    BumpAllocator allocator(nullptr);
    PartialGradients<T, D> partial(allocator, net_.h1, net_.h2, net_.nc, unstable_capacity_);
    partial_bytes_ = allocator.used();
    parameter_partition_ = partition_for(tiling_, 1);
    const int64_t items = all_items();
    BumpAllocator sums(nullptr);
    OverflowSums<T, D> counted(sums, call_.groups, net_.h1, net_.h2, net_.nc);
    sums_bytes_ = sums.used();
    const int64_t most = kMostPartialBytes / partial_bytes_, wanted = cuda_.multiprocessors * kBlocksWanted;
    const int64_t alias_room = (cuda_.scratch_alias_bytes - kOverflowBlocks * sums_bytes_) / partial_bytes_;
    int64_t room = kPartialBytes / partial_bytes_;
    if (room < alias_room) room = alias_room < most ? alias_room : most;
    if (room < wanted) room = wanted < most ? wanted : most;
    // One chunk rather than a second one that is not worth its launches.
    if (room < items && items <= room + room / 2 && items <= most) room = items;
    if (room < kOverflowBlocks) room = kOverflowBlocks;
    const int64_t chunks = (items + room - 1) / room;
    chunk_ = chunks == 0 ? 0 : (items + chunks - 1) / chunks;
    sums_count_ = int(chunk_ < kOverflowBlocks ? chunk_ : kOverflowBlocks);
    alias_used_ = cuda_.scratch_alias_bytes >= chunk_ * partial_bytes_ + sums_count_ * sums_bytes_;
  }

  int64_t all_items() const { return call_.groups * parameter_partition_.items_per_group(); }

  void allocate_workspace(char* workspace) {
    BumpAllocator allocator(workspace);
    header_ = allocator.allocate<int>(kHeader);
    w2t_ = allocator.allocate<T>(int64_t(net_.h1) * net_.h2);
    w3t_ = allocator.allocate<T>(int64_t(net_.h2) * net_.nc);
    if (supertiles_.unstable_capacity > 0)
      supertiles_.memory = allocator.allocate<char>(window_ * supertiles_.bytes_each);
    if (parameters_) {
      overflows_ = allocator.allocate<int>(all_items());
      BumpAllocator alias(static_cast<char*>(cuda_.scratch_alias));
      BumpAllocator& large = alias_used_ ? alias : allocator;
      partials_ = large.allocate<char>(chunk_ * partial_bytes_);
      sums_ = large.allocate<char>(sums_count_ * sums_bytes_);
    }
    workspace_bytes_ = allocator.used();
  }

  void bind_network() {
    net_.w2 = static_cast<const T*>(call_.w2), net_.b2 = static_cast<const T*>(call_.b2);
    net_.b3 = static_cast<const T*>(call_.b3), net_.residual = static_cast<const T*>(call_.residual);
    net_.w2t = w2t_, net_.w3t = w3t_;
    net_.coefficients = call_.coefficients, net_.not_finite = header_, net_.report = call_.report;
  }

  static View<D> view(const scp_tensor& tensor, int dtype, int dims) {
    View<D> result{tensor.data, dtype, tensor.stride_batch, tensor.stride_channel, {}};
    for (int axis = D - dims; axis < D; ++axis) result.spatial[axis] = tensor.stride_spatial[axis - (D - dims)];
    return result;
  }

  template <class Launcher>
  void launch_apply(Launcher& launcher) {
    ApplyInputs<T, D>& a = apply_;
    a.net = net_;
    a.in = view(backward_ ? call_.logits : call_.features, call_.dtype, call_.spatial_dims);
    a.out = view(backward_ ? call_.grad_features : call_.logits, call_.dtype, call_.spatial_dims);
    a.bias = backward_ ? nullptr : static_cast<const T*>(call_.bias);
    a.inner_stride = backward_ ? int(call_.channels) : 1, a.outer_stride = backward_ ? 1 : int(call_.channels);
    for_each_window(a.tiling, a.partition, [&](int64_t supertile, int64_t first, int64_t end) {
      launch_supertiles(launcher, supertile);
      a.supertiles = supertiles_, a.first_item = first;
      const int64_t blocks = (end - first) * a.outer_parts;
      if constexpr (sizeof(T) == 4) {
        if (pixels_ == 2) return launcher.launch(Apply<T, D, 2>{a}, blocks, apply_shared_);
      }
      launcher.launch(Apply<T, D, 1>{a}, blocks, apply_shared_);
    });
  }

  template <class Launcher>
  void launch_parameter_gradients(Launcher& launcher) {
    ParameterGradients<T, D> p{};
    p.inputs.net = net_, p.inputs.tiling = tiling_, p.inputs.partition = parameter_partition_,
    p.inputs.channels = int(call_.channels);
    p.inputs.features = view(call_.features, call_.dtype, call_.spatial_dims);
    p.inputs.grad_logits = view(call_.logits, call_.dtype, call_.spatial_dims);
    p.groups = call_.groups, p.unstable_capacity = unstable_capacity_;
    p.any_overflow = header_ + 1, p.overflows = overflows_;
    p.partials = partials_, p.partial_bytes = partial_bytes_;
    p.sums = sums_, p.sums_bytes = sums_bytes_, p.sums_count = sums_count_;
    for_each_window(tiling_, parameter_partition_, [&](int64_t supertile, int64_t first, int64_t end) {
      launch_supertiles(launcher, supertile);
      p.inputs.supertiles = supertiles_;
      for (p.first_item = first; p.first_item < end; p.first_item += chunk_) {
        const int64_t count = end - p.first_item < chunk_ ? end - p.first_item : chunk_;
        launcher.launch(p, count, parameters_shared_);
        launch_collect(launcher, p, count);
      }
    });
    p.overflow_pass = true;
    launcher.launch(p, sums_count_, parameters_shared_);
    launch_collect(launcher, p, 0);
  }

  template <class Launcher>
  void launch_collect(Launcher& launcher, const ParameterGradients<T, D>& p, int64_t items) {
    Collect<T, D> c{p,
                    items,
                    static_cast<T*>(call_.grad_w2),
                    static_cast<T*>(call_.grad_w3),
                    static_cast<T*>(call_.grad_b2),
                    static_cast<T*>(call_.grad_b3),
                    call_.grad_coefficients};
    launcher.launch(c, c.blocks(), kCollectShared<T>);
  }

  const scp_cuda_call& cuda_;
  const scp_call& call_;
  const bool backward_;
  bool parameters_;
  DeviceNetwork<T> net_{};
  Tiling<D> tiling_{};
  ApplyInputs<T, D> apply_{};
  int pixels_ = 1;  // per thread of Apply
  WorkPartition parameter_partition_{};
  Supertiles<T, D> supertiles_{nullptr, 0, -1, 0};
  int64_t window_ = 0;  // supertiles at a time
  int64_t apply_shared_ = 0, parameters_shared_ = 0, supertiles_shared_ = 0;
  int unstable_capacity_ = 0;
  int64_t partial_bytes_ = 0, chunk_ = 0, sums_bytes_ = 0;
  bool alias_used_ = false;
  int sums_count_ = 0;
  int64_t workspace_bytes_ = 0;
  int *header_ = nullptr, *overflows_ = nullptr;
  T *w2t_ = nullptr, *w3t_ = nullptr;
  char *partials_ = nullptr, *sums_ = nullptr;
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
