// What every entry point does first: does the call make sense? And how it says that it does not.
#ifndef SCP_COMMON_CHECK_H
#define SCP_COMMON_CHECK_H

#include <cstdio>
#include <initializer_list>
#include <limits>

#include "scp.h"

namespace scp {
namespace common {

constexpr int64_t kMostUnits = std::numeric_limits<int>::max() / 64;

inline int fail(char* message, int64_t size, int status, const char* what) {
  if (message != nullptr && size > 0) std::snprintf(message, size_t(size), "%s", what);
  return status;
}

// Null if sizes and dtypes make sense, else what does not.
inline const char* size_fault(const scp_call& call) {
  if (call.spatial_dims != 2 && call.spatial_dims != 3) return "spatial_dims: expected 2 or 3";
  if (call.dtype < SCP_FLOAT64 || call.dtype > SCP_BFLOAT16) return "dtype: expected one of scp_dtype";
  if (call.compute_dtype != SCP_FLOAT64 && call.compute_dtype != SCP_FLOAT32)
    return "compute_dtype: expected float64 or float32";
  if (call.channels < 1 || call.classes < 1 || call.hidden1 < 1 || call.hidden2 < 1)
    return "channels, classes, hidden widths: expected at least one";
  if (call.channels * call.classes > kMostUnits || call.hidden1 > kMostUnits || call.hidden2 > kMostUnits)
    return "channels, classes, hidden widths: too large";
  if (call.groups != 1 && call.groups != call.batch) return "groups: expected 1 or the batch size";
  for (int axis = 0; axis < call.spatial_dims; ++axis)
    if (call.size[axis] < 0 || call.size[axis] > kMostUnits) return "size: expected between 0 and 2^25 on each axis";
  return nullptr;
}

// The same of the data, but for the first layer, which each backend has in its own form. `first_layer_gradient`: where
// the gradient of that form goes.
inline const char* data_fault(const scp_call& call, bool backward, const void* first_layer_gradient) {
  if (call.features.data == nullptr || call.logits.data == nullptr) return "features, logits: expected data";
  for (const void* data : {call.w2, call.b2, call.w3, call.b3, call.residual})
    if (data == nullptr) return "w2, b2, w3, b3, residual: expected data";
  const bool wanted = first_layer_gradient != nullptr;
  for (const void* data : {call.grad_w2, call.grad_b2, call.grad_w3, call.grad_b3})
    if (backward && (data != nullptr) != wanted) return "gradients of parameters: expected all of them or none";
  return nullptr;
}

}  // namespace common
}  // namespace scp

#endif
