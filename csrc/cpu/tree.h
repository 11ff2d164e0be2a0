// The walk down the tree of boxes: build a child, work at the leaves, fold_backward gradients back up.
#ifndef SCP_CPU_TREE_H
#define SCP_CPU_TREE_H

#include "field.h"
#include "fold.h"
#include "fold_backward.h"
#include "single_sample.h"

namespace scp {
namespace SCP_NAMESPACE {

// W of about this many bytes is held in a field. A smaller one would be a longer and thinner box, in which more units
// are unstable (384 KiB: a fifth more time for two samples at h = 256, C = 32).
constexpr int64_t kFieldBytes = 1152 * 1024;
// Rows longer than this are cut before fields are: the basis of a long thin box is large.
constexpr int kLongestRow = 512;
// Networks of at most so many unstable units are cut so many times at once (measured: up to a fifth less time than one by
// one).
constexpr int kSmallNetwork = 100;
constexpr int kLevelsAtOnce = 2;
// A network whose unstable units cost at most so many multiply-adds on its box is a leaf, of many blocks if need be:
// cutting the box would spare a part of them, and cost two nodes (measured: up to a third less time at small widths).
constexpr int64_t kLeafWork = 64 * 1024;

// A gradient of the features of at least so many bytes is written past the caches.
constexpr int64_t kNonTemporalBytes = int64_t(16) << 20;

// What all tasks of a call share.
template <class T, int D>
struct Job {
  PhiParameters<T> params;
  Rows<T, D> X, Y, gX;  // Y: logits (forward), their gradient (backward)
  const T* bias;
  int N, C;
  bool backward;
  bool needs_features, needs_parameters;  // backward only
  bool dense;                             // no tree: every block is evaluated with the root's network
  bool direct;                            // one sample per position map, all rows in place: no field
  bool non_temporal;                      // gX is larger than any cache that it could be found in later

  int64_t field_pixels() const { return kFieldBytes / int64_t(sizeof(T)) / params.nc; }
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
int axis_to_cut_for(const Job<T, D>& job, const Box<D>& box) {
  const Grain<T, D> grain;
  if (!job.direct && box.extent(D - 1) <= kLongestRow)
    for (int axis = 0; axis < D - 1; ++axis)
      if (box.extent(axis) > grain.extent[axis]) return axis;
  return axis_to_cut(box, grain.extent);
}

template <class T, int D>
void cut_box(const Box<D>& box, int axis, Box<D>& first, Box<D>& second) {
  first = second = box;
  first.upper[axis] = second.lower[axis] = box.lower[axis] + cut(box.extent(axis), block_extent<T, D>(axis));
}

// One task: a box of pixels, the samples that share a position map.
template <class T, int D>
class TreePass {
 public:
  // `cached`: where W is to stay after the call, or null.
  TreePass(const Job<T, D>& job, const Samples& samples, const Field<T, D>* cached, const GradientSums<T>& sums,
           ScratchStack& scratch, Counters& counters)
      : job_(job), samples_(samples), cached_(cached), sums_(sums), scratch_(scratch), counters_(counters) {}

  // Does the whole task: `root` carries its gradients where parameters need them.
  void run(const Node<T, D>& root, const Box<D>& box) {
    map_ = root.box;
    next_ = corner(box);
    if (job_.direct && cached_ != nullptr) {
      fill_and_stream(part_of(*cached_, box), [&] { visit(root, box); });
    } else {
      visit(root, box);
    }
  }

  // The whole task where W was cached by an earlier call.
  void run_cached(const Box<D>& box) { stream_logits(part_of(*cached_, box)); }

 private:
  void visit(const Node<T, D>& parent, const Box<D>& box) {
    const ScratchStack::Mark mark = scratch_.mark();
    const bool gradients = job_.needs_parameters && !filling_;
    Node<T, D> node;
    if (job_.dense) {
      share(parent, box, node);
    } else {
      fold(job_.params, parent, box, scratch_, node, counters_);
      if (gradients) {
        node.g_A2 = zeros(int64_t(node.basis_size()) * node.m2p + kOverhang<T>);
        node.g_cf = zeros(int64_t(node.basis_size()) * job_.params.ncp);
      }
    }
    walk(node);
    if (gradients && !job_.dense) fold_backward(job_.params, parent, node, sums_, scratch_, counters_);
    scratch_.release(mark);
  }

  // First pixel of the box that the walk comes to after the present one.
  struct Corner {
    int index[D];
  };
  static Corner corner(const Box<D>& box) {
    Corner at;
    for (int axis = 0; axis < D; ++axis) at.index[axis] = box.lower[axis];
    return at;
  }

  T* zeros(int64_t count) {
    T* values = take<T>(scratch_, count);
    std::memset(values, 0, size_t(count) * sizeof(T));
    return values;
  }

  // The root's own network on a smaller box: its A2 and cf have no slopes, so only layer 1 is recentred.
  void share(const Node<T, D>& root, const Box<D>& box, Node<T, D>& node) {
    node = root;
    node.box = box;
    for (int axis = 0; axis < D; ++axis) {
      node.centre[axis] = box.centre(axis);
      node.shift[axis] = node.centre[axis] - root.centre[axis];
    }
    double* line1 = take<double>(scratch_, int64_t(root.m1p) * kAffineTerms<D>);
    std::memcpy(line1, root.line1, sizeof(double) * size_t(root.m1p) * kAffineTerms<D>);
    for (int q = 0; q < root.m1; ++q) line1[q] = root.template lines<double>(q).recentred(node.shift).value;
    node.line1 = line1;
  }

  void walk(const Node<T, D>& node) {
    const bool without_field = !job_.direct && field_ == nullptr;
    int axis = without_field ? axis_to_cut_for(job_, node.box) : axis_to_cut(node.box, grain_.extent);
    if (without_field && (axis < 0 || node.box.pixels() <= job_.field_pixels())) return walk_field(node);
    // A network that no cut can simplify is a leaf of many blocks.
    if (axis < 0 || (!without_field && is_cheap(node))) return leaf(node);
    // Small networks are cut in several: the children in between would cost more than they spare.
    const bool small = node.m1 + node.m2 <= kSmallNetwork && !without_field && !job_.dense;
    descend(node, node.box, axis, small ? kLevelsAtOnce : 1);
  }

  bool is_cheap(const Node<T, D>& node) const {
    return !job_.dense && int64_t(node.m1 + node.m2) * job_.params.nc * node.box.pixels() <= kLeafWork;
  }

  // Cuts a part of the node's box, `levels` times, and visits the pieces.
  void descend(const Node<T, D>& node, const Box<D>& box, int axis, int levels) {
    if (levels == 0 || axis < 0) return visit(node, box);
    Box<D> half[2];
    cut_box<T, D>(box, axis, half[0], half[1]);
    const Corner after = next_;
    next_ = corner(half[1]);
    descend(node, half[0], axis_to_cut(half[0], grain_.extent), levels - 1);
    next_ = after;
    descend(node, half[1], axis_to_cut(half[1], grain_.extent), levels - 1);
  }

  void walk_field(const Node<T, D>& node) {
    const ScratchStack::Mark mark = scratch_.mark();
    Field<T, D> field =
        cached_ != nullptr ? part_of(*cached_, node.box) : make_field<T, D>(node.box, job_.params.nc, scratch_);
    if (!job_.backward) {
      fill_and_stream(field, [&] { walk(node); });
    } else {
      field_ = &field;
      if (job_.needs_features) {
        filling_ = true;
        walk(node);
      }
      filling_ = false;
      stream(field);
      if (job_.needs_parameters) walk(node);
    }
    filling_ = false;
    field_ = nullptr;
    scratch_.release(mark);
  }

  template <class Fill>
  void fill_and_stream(const Field<T, D>& field, Fill fill) {
    field_ = &field;
    filling_ = true;
    fill();
    filling_ = false;
    field_ = nullptr;
    stream_logits(field);
  }

  void stream_logits(const Field<T, D>& field) {
    stream_forward(field, job_.X, job_.Y, job_.bias, samples_, job_.N, job_.C, scratch_);
  }

  void stream(const Field<T, D>& field) {
    const auto run =
        job_.needs_features
            ? (job_.needs_parameters ? stream_backward<T, D, true, true> : stream_backward<T, D, true, false>)
            : stream_backward<T, D, false, true>;
    run(field, job_.X, job_.Y, job_.gX, samples_, job_.N, job_.C, job_.non_temporal, scratch_);
  }

  void leaf(const Node<T, D>& node) {
    const ScratchStack::Mark mark = scratch_.mark();
    const BasisBlock<T, D> basis = make_basis_block(job_.params, node, scratch_);
    if (filling_) {
      for_each_block<T, D>(node.box, [&](const Block<T, D>& block) {
        evaluate_basis(node, block, basis);
        fill_field(job_.params, node, block, basis, *field_);
      });
    } else if (job_.backward) {
      differentiate(node, basis);
    } else if constexpr (D == 2) {
      for_each_block<T, D>(node.box, [&](const Block<T, D>& block) {
        single_sample_forward(job_.params, node, block, next_block(), basis, job_.X, job_.Y, job_.bias,
                              samples_.number[0], job_.N, job_.C);
      });
    }
    count_leaf(node);
    scratch_.release(mark);
  }

  void differentiate(const Node<T, D>& node, const BasisBlock<T, D>& basis) {
    const PhiParameters<T>& params = job_.params;
    T* const gW = take<T>(scratch_, int64_t(params.ncp) * kBlockPixels);
    for (int64_t p = int64_t(params.nc) * kBlockPixels; p < int64_t(params.ncp) * kBlockPixels; ++p) gW[p] = T(0);
    T* const weights = job_.direct ? take<T>(scratch_, int64_t(params.ncp) * kBlockPixels) : nullptr;
    for_each_block<T, D>(node.box, [&](const Block<T, D>& block) {
      if (!job_.direct) {
        evaluate_basis(node, block, basis);
        read_field(*field_, block, params.nc, gW);
      } else if constexpr (D == 2) {
        single_sample_backward(params, node, block, next_block(), basis, job_.X, job_.Y,
                               job_.needs_features ? &job_.gX : nullptr, samples_.number[0], job_.N, job_.C, weights,
                               gW);
      }
      leaf_backward(params, node, basis, gW, sums_, scratch_);
    });
  }

  Block<T, D> next_block() const { return block_at<T, D>(map_, next_.index); }

  void count_leaf(const Node<T, D>& node) {
    const double pixels = double(node.box.pixels()), m1 = node.m1, m2 = node.m2;
    counters_.leaves += 1;
    counters_.pixels += pixels;
    counters_.unstable1 += pixels * m1;
    counters_.unstable2 += pixels * m2;
    if (m1 > counters_.most_unstable1) counters_.most_unstable1 = m1;
    if (m2 > counters_.most_unstable2) counters_.most_unstable2 = m2;
    const double nc = job_.params.nc, basis = kAffineTerms<D> + m1;
    const bool needs_weights = filling_ || !job_.backward || (field_ == nullptr && job_.needs_features);
    counters_.leaf_macs += pixels * (D * m1 + m2 * (D + m1));
    if (needs_weights) counters_.leaf_macs += pixels * nc * (D + m1 + m2);
    if (job_.backward && !filling_)  // leaf_backward, product by product
      counters_.leaf_macs += pixels * (m2 * nc + (basis + m2) * nc + basis * m2 + m1 * (nc + m2) + m1 * (D + 1));
  }

  const Job<T, D>& job_;
  const Samples samples_;
  const Field<T, D>* const cached_;
  const GradientSums<T>& sums_;
  ScratchStack& scratch_;
  Counters& counters_;
  const Grain<T, D> grain_;
  Box<D> map_;
  Corner next_;
  const Field<T, D>* field_ = nullptr;
  bool filling_ = false;
};

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
