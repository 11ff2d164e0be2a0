// Compiled once for each ISA target, with SCP_ISA_TARGET naming it (portable, avx2, avx512).
#ifndef SCP_ISA_TARGET
#error "SCP_ISA_TARGET must name the ISA target: portable, avx2 or avx512"
#endif

#include "isa_target.h"
#include "tree_call.h"

namespace scp {
namespace SCP_NAMESPACE {

void run(const scp_call& call, bool backward) {
  const bool wide = call.compute_dtype == SCP_FLOAT64;
  if (call.spatial_dims == 2) {
    if (wide) {
      TreeCall<double, 2>{call, backward}();
    } else {
      TreeCall<float, 2>{call, backward}();
    }
  } else if (wide) {
    TreeCall<double, 3>{call, backward}();
  } else {
    TreeCall<float, 3>{call, backward}();
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp
