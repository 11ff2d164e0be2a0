// The CUDA library: every program as a kernel, and the entry points.
#include <cuda_runtime.h>

#include "entry.h"

namespace scp {
namespace SCP_NAMESPACE {
namespace {

// Blocks that a multiprocessor should hold at least: it limits the registers.
template <class Program>
constexpr int kBlocksAtOnce = 2;
template <class T, int D>
constexpr int kBlocksAtOnce<FoldSupertiles<T, D>> = 1;
template <class T, int D, int P>
constexpr int kBlocksAtOnce<Apply<T, D, P>> = kApplyBlocksAtOnce<T, D, P>;
template <int D>
constexpr int kBlocksAtOnce<ParameterGradients<float, D>> = 3;
template <int D>
constexpr int kBlocksAtOnce<Collect<float, D>> = 3;  // four would spill on 10.0

template <class Program>
__global__ void __launch_bounds__(kThreadsOf<Program>, kBlocksAtOnce<Program>)
    scp_kernel(const __grid_constant__ Program program) {
  DeviceBlock<kThreadsOf<Program>> block;
  program(block);
}

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next call in this thread, which may be a good one, would find the error
  throw Failure{SCP_DEVICE_ERROR, cudaGetErrorString(status)};
}

class Stream {
 public:
  Stream(void* stream, int64_t shared_limit)
      : stream_(static_cast<cudaStream_t>(stream)), shared_limit_(shared_limit) {}

  void clear(void* at, size_t bytes) { check(cudaMemsetAsync(at, 0, bytes, stream_)); }

  template <class Program>
  void launch(const Program& program, int64_t blocks, int64_t shared_bytes) {
    if (blocks == 0) return;
    if (shared_bytes > kSharedWithoutAsking) {
      // Always the limit: another thread may be about to launch the same kernel with more than this call's.
      check(cudaFuncSetAttribute(scp_kernel<Program>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_limit_)));
    }
    scp_kernel<<<unsigned(blocks), kThreadsOf<Program>, size_t(shared_bytes), stream_>>>(program);
    check(cudaGetLastError());
  }

 private:
  // 48 KiB, less what the system may take of them.
  static constexpr int64_t kSharedWithoutAsking = 40 * 1024;
  const cudaStream_t stream_;
  const int64_t shared_limit_;
};

// Makes a device current, and the one before it again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_));
    if (device != before_) check(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace

int run_call_here(const scp_cuda_call* call, bool backward, char* message, int64_t size) {
  return run_call(call, backward, message, size, [&](auto& sequence) {
    CurrentDevice current(call->device);
    Stream stream(call->stream, call->shared_limit);
    sequence(stream);
  });
}

}  // namespace SCP_NAMESPACE
}  // namespace scp

extern "C" int scp_cuda_driver(int32_t* driver, int32_t* built_with) {
  *driver = 0, *built_with = CUDART_VERSION;
  return cudaDriverGetVersion(driver) == cudaSuccess ? SCP_OK : SCP_DEVICE_ERROR;
}
