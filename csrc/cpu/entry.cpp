// Entry points of the CPU backend: checks, the choice of a vector level, error codes.
#include <cstdio>
#include <limits>
#include <new>

#include "../scp.h"
#include "keep.h"
#include "level.h"

namespace {

enum Level { kBest = 0, kPortable = 1, kAvx2 = 2, kAvx512 = 3 };

#if defined(__x86_64__) || defined(_M_X64)
#define SCP_X86 1
bool has(int level) {
  __builtin_cpu_init();
  switch (level) {
    case kPortable: return true;
    case kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    default: return false;
  }
}
#else
bool has(int level) { return level == kPortable; }
#endif

int best_level() {
  for (int level = kAvx512; level > kPortable; --level)
    if (has(level)) return level;
  return kPortable;
}

int fail(char* message, int64_t size, int status, const char* what) {
  if (message != nullptr && size > 0) std::snprintf(message, size_t(size), "%s", what);
  return status;
}

// Null if the call makes sense, else what does not.
const char* fault(const scp_call& call, bool backward) {
  constexpr int64_t most = std::numeric_limits<int>::max() / 64;
  if (call.spatial_dims != 2 && call.spatial_dims != 3) return "spatial_dims: expected 2 or 3";
  if (call.dtype < SCP_FLOAT64 || call.dtype > SCP_BFLOAT16) return "dtype: expected one of scp_dtype";
  if (call.compute_dtype != SCP_FLOAT64 && call.compute_dtype != SCP_FLOAT32)
    return "compute_dtype: expected float64 or float32";
  if (call.channels < 1 || call.classes < 1 || call.hidden1 < 0 || call.hidden2 < 0)
    return "channels, classes: expected at least one; hidden widths: not negative";
  if (call.channels * call.classes > most || call.hidden1 > most || call.hidden2 > most)
    return "channels, classes, hidden widths: too large";
  if (call.groups != 1 && call.groups != call.batch) return "groups: expected 1 or the batch size";
  for (int axis = 0; axis < call.spatial_dims; ++axis)
    if (call.size[axis] < 0 || call.size[axis] > most) return "size: expected between 0 and 2^25 on each axis";
  if (call.features.data == nullptr || call.logits.data == nullptr) return "features, logits: expected data";
  if (call.coefficients == nullptr || call.b3 == nullptr || call.residual == nullptr)
    return "coefficients, b3, residual: expected data";
  if (backward && call.grad_coefficients != nullptr && (call.grad_b3 == nullptr || call.grad_w3 == nullptr))
    return "gradients of parameters: expected all of them or none";
  return nullptr;
}

int run(const scp_call* call, bool backward, char* message, int64_t size) {
  if (call == nullptr) return fail(message, size, SCP_BAD_ARGUMENT, "call: expected one");
  if (const char* what = fault(*call, backward)) return fail(message, size, SCP_BAD_ARGUMENT, what);
  const int level = call->level == kBest ? best_level() : call->level;
  if (!has(level)) return fail(message, size, SCP_UNSUPPORTED, "level: this machine does not have these vectors");
  if (call->report != nullptr) {
    for (int i = 0; i < SCP_REPORT_SIZE; ++i) call->report[i] = 0;
    call->report[SCP_REPORT_LEVEL] = level;
  }
  if (backward && call->grad_coefficients == nullptr && call->grad_features.data == nullptr) return SCP_OK;
  try {
    switch (level) {
#if defined(SCP_X86)
      case kAvx512: scp::avx512::run(*call, backward); break;
      case kAvx2: scp::avx2::run(*call, backward); break;
#endif
      default: scp::portable::run(*call, backward);
    }
  } catch (const std::bad_alloc&) {
    return fail(message, size, SCP_OUT_OF_MEMORY, "out of memory for scratch");
  }
  return SCP_OK;
}

}  // namespace

extern "C" {

int scp_abi_version(void) { return SCP_ABI_VERSION; }

int scp_cpu_levels(void) {
  int levels = 0;
  for (int level = kPortable; level <= kAvx512; ++level)
    if (has(level)) levels |= 1 << level;
  return levels;
}

int scp_cpu_forward(const scp_call* call, char* message, int64_t message_size) {
  return run(call, false, message, message_size);
}

int scp_cpu_backward(const scp_call* call, char* message, int64_t message_size) {
  return run(call, true, message, message_size);
}

int64_t scp_cpu_kept_bytes(void) { return scp::kept_bytes(); }

void scp_cpu_release_kept(void) { scp::release_kept(); }

}  // extern "C"
