// Entry points of the CPU backend: checks, the choice of an ISA target, error codes.
#include <cstdio>
#include <new>

#include "common/check.h"
#include "first_layer.h"
#include "isa_target.h"
#include "scp.h"
#include "weight_field_cache.h"

namespace {

enum IsaTarget { kBest = 0, kPortable = 1, kAvx2 = 2, kAvx512 = 3 };

#if defined(__x86_64__)
#define SCP_X86 1
bool has(int target) {
  __builtin_cpu_init();
  switch (target) {
    case kPortable: return true;
    case kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    default: return false;
  }
}
#else
bool has(int target) { return target == kPortable; }
#endif

int best_target() {
  for (int target = kAvx512; target > kPortable; --target)
    if (has(target)) return target;
  return kPortable;
}

using scp::common::data_fault;
using scp::common::fail;
using scp::common::size_fault;

int run(const scp_call* call, bool backward, char* message, int64_t size) {
  if (call == nullptr) return fail(message, size, SCP_BAD_ARGUMENT, "call: expected one");
  if (const char* what = size_fault(*call)) return fail(message, size, SCP_BAD_ARGUMENT, what);
  if (call->position_dims < call->spatial_dims || call->position_dims > scp::common::kMostUnits)
    return fail(message, size, SCP_BAD_ARGUMENT, "position_dims: expected between spatial_dims and 2^25");
  if (call->w1 == nullptr || call->b1 == nullptr || call->positions == nullptr)
    return fail(message, size, SCP_BAD_ARGUMENT, "w1, b1, positions: expected data");
  if (backward && (call->grad_w1 == nullptr) != (call->grad_b1 == nullptr))
    return fail(message, size, SCP_BAD_ARGUMENT, "gradients of parameters: expected all of them or none");
  if (const char* what = data_fault(*call, backward, call->grad_w1)) return fail(message, size, SCP_BAD_ARGUMENT, what);
  const int target = call->isa_target == kBest ? best_target() : call->isa_target;
  if (!has(target))
    return fail(message, size, SCP_UNSUPPORTED, "isa_target: this machine does not have these instructions");
  if (call->report != nullptr) {
    for (int i = 0; i < SCP_REPORT_SIZE; ++i) call->report[i] = 0;
    call->report[SCP_REPORT_ISA_TARGET] = target;
  }
  if (backward && call->grad_w1 == nullptr && call->grad_features.data == nullptr) return SCP_OK;
  try {
    const scp::FirstLayer first(*call, scp::thread_scratch());
    switch (target) {
#if defined(SCP_X86)
      case kAvx512: scp::avx512::run(first.call(), backward); break;
      case kAvx2: scp::avx2::run(first.call(), backward); break;
#endif
      default: scp::portable::run(first.call(), backward);
    }
    first.write_gradients();
  } catch (const std::bad_alloc&) {
    return fail(message, size, SCP_OUT_OF_MEMORY, "out of memory for scratch");
  }
  return SCP_OK;
}

}  // namespace

extern "C" {

int scp_abi_version(void) { return SCP_ABI_VERSION; }

int scp_cpu_isa_targets(void) {
  int targets = 0;
  for (int target = kPortable; target <= kAvx512; ++target)
    if (has(target)) targets |= 1 << target;
  return targets;
}

int scp_cpu_forward(const scp_call* call, char* message, int64_t message_size) {
  return run(call, false, message, message_size);
}

int scp_cpu_backward(const scp_call* call, char* message, int64_t message_size) {
  return run(call, true, message, message_size);
}

int64_t scp_cpu_weight_field_cache_bytes(void) { return scp::weight_field_cache_bytes(); }

void scp_cpu_clear_weight_field_cache(void) { scp::clear_weight_field_cache(); }

}  // extern "C"
