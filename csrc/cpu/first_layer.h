// The first layer on positions S = P . (index, 1) is affine in the index itself: its coefficients, and their adjoint.
//
// They are made here, in one order of additions whatever the machine, so that equal position maps have equal ones, byte
// for byte: samples.h and weight_field_cache.h compare them.
#ifndef SCP_CPU_FIRST_LAYER_H
#define SCP_CPU_FIRST_LAYER_H

#include "scp.h"
#include "scratch.h"

namespace scp {

// A call together with its coefficients: c[g, u] = w1[u] P[g] + (0, b1[u]), float64.
class FirstLayer {
 public:
  FirstLayer(const scp_call& call, ScratchStack& scratch);

  // The caller's call, with `coefficients` and, where gradients are wanted, `grad_coefficients`.
  const scp_call& call() const { return call_; }

  // gw1[u, r] = sum over g, a of gc[g, u, a] P[g, r, a], gb1[u] = sum over g of gc[g, u, d], where they are wanted.
  void write_gradients() const;

 private:
  scp_call call_;
  const ScratchScope scope_;
};

}  // namespace scp

#endif
