// The entry points of scp.h that a device and the host's emulation of one share: checks, and errors as codes. Included
// by the one source of each library, which defines run_call_here.
#ifndef SCP_CUDA_ENTRY_H
#define SCP_CUDA_ENTRY_H

#include "common/check.h"
#include "launch_sequence.h"

namespace scp {
namespace SCP_NAMESPACE {

// Calls use(sequence) with the launches of the call's type and number of axes. In float64 maps of two axes are volumes
// of one slice.
template <class Use>
void with_launch_sequence(const scp_cuda_call& call, bool backward, const Use& use) {
  if (call.call.compute_dtype == SCP_FLOAT64) {
    LaunchSequence<double, 3> sequence(call, backward);
    use(sequence);
  } else if (call.call.spatial_dims == 2) {
    LaunchSequence<float, 2> sequence(call, backward);
    use(sequence);
  } else {
    LaunchSequence<float, 3> sequence(call, backward);
    use(sequence);
  }
}

// The part of an entry point that device and host share: checks, then body(), which does the work or throws Failure.
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

// Forward or backward: with_launcher(sequence) calls sequence with a launcher.
template <class WithLauncher>
int run_call(const scp_cuda_call* call, bool backward, char* message, int64_t size, const WithLauncher& with_launcher) {
  return guarded(call, backward, true, message, size, [&] {
    with_launch_sequence(*call, backward, [&](auto& sequence) {
      if (call->workspace == nullptr || call->workspace_bytes < sequence.requirements().workspace_bytes)
        throw Failure{SCP_BAD_ARGUMENT, "workspace: smaller than scp_cuda_query_requirements says"};
      if (call->scratch_alias == nullptr && call->scratch_alias_bytes > 0)
        throw Failure{SCP_BAD_ARGUMENT, "scratch_alias: expected memory"};
      with_launcher(sequence);
    });
  });
}

inline int query_call(const scp_cuda_call* call, bool backward, scp_cuda_requirements* requirements, char* message,
                      int64_t size) {
  return guarded(call, backward, false, message, size, [&] {
    with_launch_sequence(*call, backward, [&](auto& sequence) { *requirements = sequence.requirements(); });
  });
}

// Forward or backward, by the launcher that this library has: run_call with it.
int run_call_here(const scp_cuda_call* call, bool backward, char* message, int64_t size);

}  // namespace SCP_NAMESPACE
}  // namespace scp

extern "C" {

int scp_abi_version(void) { return SCP_ABI_VERSION; }

int scp_cuda_query_requirements(const scp_cuda_call* call, int32_t backward, scp_cuda_requirements* requirements,
                                char* message, int64_t size) {
  return scp::common::query_call(call, backward != 0, requirements, message, size);
}

int scp_cuda_forward(const scp_cuda_call* call, char* message, int64_t size) {
  return scp::common::run_call_here(call, false, message, size);
}

int scp_cuda_backward(const scp_cuda_call* call, char* message, int64_t size) {
  return scp::common::run_call_here(call, true, message, size);
}

}  // extern "C"

#endif
