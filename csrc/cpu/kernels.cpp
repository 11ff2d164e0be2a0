// Compiled once for each vector level, with SCP_VECTOR_LEVEL naming it (portable, avx2, avx512).
#ifndef SCP_VECTOR_LEVEL
#error "SCP_VECTOR_LEVEL must name the vector level: portable, avx2 or avx512"
#endif

#include "level.h"
#include "run.h"

namespace scp {
namespace SCP_NAMESPACE {

void run(const scp_call& call, bool backward) {
  const bool wide = call.compute_dtype == SCP_FLOAT64;
  if (call.spatial_dims == 2) {
    if (wide) {
      Run<double, 2>{call, backward}();
    } else {
      Run<float, 2>{call, backward}();
    }
  } else if (wide) {
    Run<double, 3>{call, backward}();
  } else {
    Run<float, 3>{call, backward}();
  }
}

}  // namespace SCP_NAMESPACE
}  // namespace scp
