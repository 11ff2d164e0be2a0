// The tree of boxes: nodes from their parents, what is done at the leaves, and gradients from nodes to their parents.
//
// With a field, a task cuts its box until W of a part fits into one. On each part it then makes up to three passes,
// two of them over the tree below: fill (leaves write W to the field), stream (W is multiplied with the samples, row by
// row; in a backward pass the field becomes gW), differentiate (leaves read gW; gradients of Phi's parameters go
// up the tree). A single sample needs one pass over the tree, whose leaves have W and gW in registers.
#ifndef SCP_CPU_TREE_H
#define SCP_CPU_TREE_H

#include "fold.h"
#include "single_sample.h"
#include "task.h"

namespace scp {
namespace SCP_NAMESPACE {

// Networks of at most so many unstable units are cut so many times at once (measured: up to a fifth less time than one
// by one).
constexpr int kSmallNetwork = 100;
constexpr int kCutsAtOnce = 2;
// A network whose unstable units cost at most so many multiply-adds on its box is a leaf, of many blocks if need be:
// cutting the box would spare a part of them, and cost two nodes (measured: up to a third less time at small widths).
constexpr int64_t kLeafWork = 64 * 1024;

// The root's own network on a smaller box: its A2 and cf have no slopes, so only layer 1 is recentred.
template <class T, int D>
void move_root(const Node<T, D>& root, const Box<D>& box, ScratchStack& scratch, Node<T, D>& node) {
  node = root;
  node.box = box;
  for (int axis = 0; axis < D; ++axis) {
    node.centre[axis] = box.centre(axis);
    node.shift[axis] = node.centre[axis] - root.centre[axis];
  }
  double* line1 = take<double>(scratch, int64_t(root.m1p) * kAffineTerms<D>);
  std::memcpy(line1, root.line1, sizeof(double) * size_t(root.m1p) * kAffineTerms<D>);
  for (int q = 0; q < root.m1; ++q) line1[q] = root.template lines<double>(q).recentred(node.shift).value;
  node.line1 = line1;
}

// The node of `box` from its parent; gradients of its matrices start at 0 where they are wanted. A dense call has one
// network, whose gradients are the root's.
template <class T, int D>
void make_node(const CallTask<T, D>& task, const Node<T, D>& parent, const Box<D>& box, bool gradients,
               Node<T, D>& node) {
  if (task.job.is_dense()) return move_root(parent, box, task.scratch, node);
  fold(task.job.params, parent, box, task.scratch, node, task.counters);
  if (!gradients) return;
  const auto zeros = [&](int64_t count) {
    T* values = take<T>(task.scratch, count);
    std::memset(values, 0, size_t(count) * sizeof(T));
    return values;
  };
  node.g_A2 = zeros(int64_t(node.basis_size()) * node.m2p + kOverhang<T>);
  node.g_cf = zeros(int64_t(node.basis_size()) * task.job.params.ncp);
}

// What a pass over the tree does at its leaves.
enum class Pass {
  kFill,                  // W to the field
  kDifferentiate,         // gW from the field to the gradients of Phi's parameters
  kSingleSampleForward,   // W and the features to the logits
  kSingleSampleBackward,  // W and the gradient of the logits to all gradients that are wanted
};

constexpr bool carries_gradients(Pass pass) {
  return pass == Pass::kDifferentiate || pass == Pass::kSingleSampleBackward;
}

// First pixel of the box that a pass comes to after the present one: its features are fetched ahead.
template <int D>
struct FirstPixel {
  int index[D];

  explicit FirstPixel(const Box<D>& box) {
    for (int axis = 0; axis < D; ++axis) index[axis] = box.lower[axis];
  }
};

// One pass over the tree below a node.
template <class T, int D>
class TreePass {
 public:
  // `field`: which is filled or read; null for the passes of a single sample.
  TreePass(const CallTask<T, D>& task, Pass pass, const Field<T, D>* field) : task_(task), pass_(pass), field_(field) {}

  // The node of `box` and all below it. `next`: where the pass goes afterwards.
  void visit(const Node<T, D>& parent, const Box<D>& box, const FirstPixel<D>& next) const {
    const ScratchStack::Mark mark = task_.scratch.mark();
    Node<T, D> node;
    make_node(task_, parent, box, carries_gradients(pass_), node);
    descend(node, next);
    if (carries_gradients(pass_) && !task_.job.is_dense())
      fold_backward(task_.job.params, parent, node, task_.sums, task_.scratch, task_.counters);
    task_.scratch.release(mark);
  }

  // All below a node: its children, or the leaf that it is.
  void descend(const Node<T, D>& node, const FirstPixel<D>& next) const {
    const int axis = axis_to_cut(node.box, grain_.extent);
    if (axis < 0 || is_cheap(node)) return leaf(node, next);
    // Small networks are cut in several: the children in between would cost more than they spare.
    const bool small = node.m1 + node.m2 <= kSmallNetwork && !task_.job.is_dense();
    visit_parts(node, node.box, axis, small ? kCutsAtOnce : 1, next);
  }

 private:
  // A network that a cut cannot simplify enough is a leaf of many blocks.
  bool is_cheap(const Node<T, D>& node) const {
    return !task_.job.is_dense() && int64_t(node.m1 + node.m2) * task_.job.params.nc * node.box.pixels() <= kLeafWork;
  }

  // Cuts a part of the node's box, `cuts` times, and visits the pieces.
  void visit_parts(const Node<T, D>& node, const Box<D>& box, int axis, int cuts, const FirstPixel<D>& next) const {
    if (cuts == 0 || axis < 0) return visit(node, box, next);
    Box<D> half[2];
    cut_box<T, D>(box, axis, half[0], half[1]);
    visit_parts(node, half[0], axis_to_cut(half[0], grain_.extent), cuts - 1, FirstPixel<D>(half[1]));
    visit_parts(node, half[1], axis_to_cut(half[1], grain_.extent), cuts - 1, next);
  }

  void leaf(const Node<T, D>& node, const FirstPixel<D>& next) const {
    const ScratchStack::Mark mark = task_.scratch.mark();
    const BasisBlock<T, D> basis = make_basis_block(task_.job.params, node, task_.scratch);
    switch (pass_) {
      case Pass::kFill: fill(node, basis); break;
      case Pass::kDifferentiate: differentiate(node, basis); break;
      case Pass::kSingleSampleForward:
        if constexpr (D == 2) forward(node, basis, next);
        break;
      case Pass::kSingleSampleBackward:
        if constexpr (D == 2) backward(node, basis, next);
    }
    count_leaf(node);
    task_.scratch.release(mark);
  }

  void fill(const Node<T, D>& node, const BasisBlock<T, D>& basis) const {
    for_each_block<T, D>(node.box, [&](const Block<T, D>& block) {
      evaluate_basis(node, block, basis);
      fill_field(task_.job.params, node, block, basis, *field_);
    });
  }

  void differentiate(const Node<T, D>& node, const BasisBlock<T, D>& basis) const {
    const PhiParameters<T>& params = task_.job.params;
    T* const gW = make_gradient_block();
    for_each_block<T, D>(node.box, [&](const Block<T, D>& block) {
      evaluate_basis(node, block, basis);
      read_field(*field_, block, params.nc, gW);
      leaf_backward(params, node, basis, gW, task_.sums, task_.scratch);
    });
  }

  void forward(const Node<T, D>& node, const BasisBlock<T, D>& basis, const FirstPixel<D>& next) const {
    const Job<T, D>& job = task_.job;
    const Block<T, D> next_block = block_at<T, D>(job.map, next.index);
    for_each_block<T, D>(node.box, [&](const Block<T, D>& block) {
      single_sample_forward(job.params, node, block, next_block, basis, job.X, job.Y, job.bias, task_.samples.number[0],
                            job.N, job.C);
    });
  }

  void backward(const Node<T, D>& node, const BasisBlock<T, D>& basis, const FirstPixel<D>& next) const {
    const Job<T, D>& job = task_.job;
    const Rows<T, D>* const gX = include_features(job.results) ? &job.gX : nullptr;
    T* const gW = make_gradient_block();
    T* const weights = take<T>(task_.scratch, int64_t(job.params.ncp) * kBlockPixels);
    const Block<T, D> next_block = block_at<T, D>(job.map, next.index);
    for_each_block<T, D>(node.box, [&](const Block<T, D>& block) {
      single_sample_backward(job.params, node, block, next_block, basis, job.X, job.Y, gX, task_.samples.number[0],
                             job.N, job.C, weights, gW);
      leaf_backward(job.params, node, basis, gW, task_.sums, task_.scratch);
    });
  }

  // gW on a block, [ncp, 64]: its padding is 0, the rest is to be written.
  T* make_gradient_block() const {
    const PhiParameters<T>& params = task_.job.params;
    T* const gW = take<T>(task_.scratch, int64_t(params.ncp) * kBlockPixels);
    for (int64_t p = int64_t(params.nc) * kBlockPixels; p < int64_t(params.ncp) * kBlockPixels; ++p) gW[p] = T(0);
    return gW;
  }

  void count_leaf(const Node<T, D>& node) const {
    Counters& counters = task_.counters;
    const double pixels = double(node.box.pixels()), m1 = node.m1, m2 = node.m2;
    counters.leaves += 1;
    counters.pixels += pixels;
    counters.unstable1 += pixels * m1;
    counters.unstable2 += pixels * m2;
    if (m1 > counters.most_unstable1) counters.most_unstable1 = m1;
    if (m2 > counters.most_unstable2) counters.most_unstable2 = m2;
    const double nc = task_.job.params.nc, basis_size = node.basis_size();
    counters.leaf_macs += pixels * (D * m1 + m2 * (D + m1));
    if (evaluates_weights()) counters.leaf_macs += pixels * nc * (D + m1 + m2);
    if (carries_gradients(pass_))  // leaf_backward, product by product
      counters.leaf_macs +=
          pixels * (m2 * nc + (basis_size + m2) * nc + basis_size * m2 + m1 * (nc + m2) + m1 * (D + 1));
  }

  bool evaluates_weights() const {
    return !carries_gradients(pass_) || (pass_ == Pass::kSingleSampleBackward && include_features(task_.job.results));
  }

  const CallTask<T, D>& task_;
  const Pass pass_;
  const Field<T, D>* const field_;
  const Grain<T, D> grain_;
};

template <class T, int D>
void stream_logits(const CallTask<T, D>& task, const Field<T, D>& field) {
  const Job<T, D>& job = task.job;
  stream_forward(field, job.X, job.Y, job.bias, task.samples, job.N, job.C, task.scratch);
}

template <class T, int D>
void stream_gradients(const CallTask<T, D>& task, const Field<T, D>& field) {
  const Job<T, D>& job = task.job;
  const auto stream = job.results == Results::kAllGradients      ? stream_backward<T, D, true, true>
                      : job.results == Results::kFeatureGradient ? stream_backward<T, D, true, false>
                                                                 : stream_backward<T, D, false, true>;
  stream(field, job.X, job.Y, job.gX, task.samples, job.N, job.C, task.scratch);
}

// The passes on a node whose W fits into a field.
template <class T, int D>
void run_field(const CallTask<T, D>& task, const Node<T, D>& node) {
  const Results results = task.job.results;
  const Field<T, D> field = task.cached != nullptr ? part_of(*task.cached, node.box)
                                                   : make_field<T, D>(node.box, task.job.params.nc, task.scratch);
  const FirstPixel<D> next(node.box);  // not looked at: a field is filled and read without the features
  if (!is_backward(results) || include_features(results)) TreePass<T, D>(task, Pass::kFill, &field).descend(node, next);
  if (!is_backward(results)) return stream_logits(task, field);
  stream_gradients(task, field);
  if (include_parameters(results)) TreePass<T, D>(task, Pass::kDifferentiate, &field).descend(node, next);
}

// The node of `box`, cut until W of a part fits into a field.
template <class T, int D>
void visit_fields(const CallTask<T, D>& task, const Node<T, D>& parent, const Box<D>& box) {
  const ScratchStack::Mark mark = task.scratch.mark();
  const bool gradients = include_parameters(task.job.results);
  Node<T, D> node;
  make_node(task, parent, box, gradients, node);
  const int axis = axis_to_cut_for<T>(WeightPath::kField, box);
  if (axis < 0 || box.pixels() <= task.job.field_pixels()) {
    run_field(task, node);
  } else {
    Box<D> half[2];
    cut_box<T, D>(box, axis, half[0], half[1]);
    for (const Box<D>& part : half) visit_fields(task, node, part);
  }
  if (gradients && !task.job.is_dense())
    fold_backward(task.job.params, parent, node, task.sums, task.scratch, task.counters);
  task.scratch.release(mark);
}

// Does a whole task: `root` carries its gradients where parameters need them.
template <class T, int D>
void run_task(const CallTask<T, D>& task, const Node<T, D>& root, const Box<D>& box) {
  if (task.job.weight_path == WeightPath::kField) return visit_fields(task, root, box);
  const FirstPixel<D> next(box);
  if (task.cached != nullptr) {
    const Field<T, D> field = part_of(*task.cached, box);
    TreePass<T, D>(task, Pass::kFill, &field).visit(root, box, next);
    return stream_logits(task, field);
  }
  const Pass pass = is_backward(task.job.results) ? Pass::kSingleSampleBackward : Pass::kSingleSampleForward;
  TreePass<T, D>(task, pass, nullptr).visit(root, box, next);
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

#endif
